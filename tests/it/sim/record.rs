//! What those who take part in a simulation see, for the model to judge.

use std::collections::HashSet;
use std::sync::Mutex;
use std::sync::atomic::{AtomicU64, Ordering};

use p8broker::broker::{BrokerError, Issued};
use p8broker::domain::target::Target;
use p8broker::id::{ClientId, KeyId};

use super::world::{self, KnownKey};

/// What stops tokens: for good, for now, or all of them.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub enum Stop {
    Revoked(Target),
    Suspended(KeyId),
    Sealed,
}

/// A token that a client received.
#[derive(Debug, Clone)]
pub struct Received {
    pub decision_id: String,
    pub id: String,
    pub client: String,
    pub policy: String,
    pub app_group: String,
    pub key_id: String,
    pub account: String,
    /// The revision it was decided at, this time.
    pub revision: u64,
    pub expires_at: i64,
    pub reused: bool,
    /// The newest revision that anybody had heard of when it was asked for.
    pub asked_at: u64,
}

impl Received {
    pub fn of(client: &ClientId, issued: &Issued, asked_at: u64) -> Self {
        let permit = issued.token.permit();
        Self {
            decision_id: issued.decision_id.to_string(),
            id: issued.token.id().to_string(),
            client: client.to_string(),
            policy: permit.policy().name.to_string(),
            app_group: permit.app_group().name.to_string(),
            key_id: permit.key().id.to_string(),
            account: permit.key().account.to_string(),
            revision: issued.revision.0,
            expires_at: permit.expires_at(),
            reused: issued.reused,
            asked_at,
        }
    }
}

/// Something was stopped: the call returned, with what was alive under it.
#[derive(Debug, Clone)]
pub struct Stopped {
    pub what: Stop,
    pub revision: u64,
    /// Tokens that the answer lists, and how many it says there are; more than are listed where they are many.
    pub listed: HashSet<String>,
    pub count: u64,
    /// The earliest and the latest second that the answering replica's clock can have shown meanwhile.
    pub between: (i64, i64),
    pub asked_at: u64,
}

/// What happened since the model last looked.
#[derive(Debug, Default)]
pub struct News {
    pub received: Vec<Received>,
    pub stopped: Vec<Stopped>,
    /// What is wrong in itself.
    pub complaints: Vec<String>,
}

/// What happened, kept by everybody who takes part.
pub struct Record {
    news: Mutex<News>,
    /// The newest revision in any answer.
    heard: AtomicU64,
    pub operations: AtomicU64,
    pub revokes: AtomicU64,
    /// Keys that may sign, and the number of the next one.
    keys: Mutex<(Vec<KnownKey>, u64)>,
    /// Ids of tokens that were handed out lately.
    recent: Mutex<Vec<String>>,
}

/// Of which tokens one is picked to be revoked.
const RECENT: usize = 64;

impl Record {
    pub fn new() -> Self {
        let keys = world::known_keys();
        let next = keys.len() as u64;
        Self {
            news: Mutex::default(),
            heard: AtomicU64::default(),
            operations: AtomicU64::default(),
            revokes: AtomicU64::default(),
            keys: Mutex::new((keys, next)),
            recent: Mutex::default(),
        }
    }

    pub fn heard(&self) -> u64 {
        self.heard.load(Ordering::SeqCst)
    }

    pub fn hear(&self, revision: u64) {
        self.heard.fetch_max(revision, Ordering::SeqCst);
    }

    pub fn receive(&self, token: Received) {
        self.hear(token.revision);
        let mut recent = self.recent.lock().unwrap();
        if recent.len() == RECENT {
            recent.remove(0);
        }
        recent.push(token.id.clone());
        self.news.lock().unwrap().received.push(token);
    }

    pub fn stop(&self, stopped: Stopped) {
        self.hear(stopped.revision);
        self.news.lock().unwrap().stopped.push(stopped);
    }

    pub fn complain(&self, what: String) {
        self.news.lock().unwrap().complaints.push(what);
    }

    /// Refusals are answers; what fails because something was injected is asked again; the rest is a complaint.
    pub fn judge(&self, asked: &str, error: &BrokerError) {
        match error {
            BrokerError::Denied { .. }
            | BrokerError::Sealed { .. }
            | BrokerError::Contended
            | BrokerError::Unavailable(_)
            | BrokerError::NotFound { .. }
            | BrokerError::NotRevoked(_)
            | BrokerError::KeyState { .. } => {}
            other => self.complain(format!("{asked} was told: {other:?}")),
        }
    }

    pub fn take(&self) -> News {
        std::mem::take(&mut self.news.lock().unwrap())
    }

    pub fn recent_token(&self, nth: u64) -> Option<String> {
        let recent = self.recent.lock().unwrap();
        recent.get(usize::try_from(nth).unwrap() % recent.len().max(1)).cloned()
    }

    /// A key that is there; none where all of them are about to be replaced.
    pub fn some_key(&self, nth: u64) -> Option<KnownKey> {
        let keys = self.keys.lock().unwrap();
        let place = usize::try_from(nth).unwrap() % keys.0.len().max(1);
        keys.0.get(place).cloned()
    }

    /// A key is about to be revoked; answers the one that is to take its place once it is imported.
    pub fn retire_key(&self, old: &KeyId) -> Option<KnownKey> {
        let mut keys = self.keys.lock().unwrap();
        let place = keys.0.iter().position(|key| key.id == *old)?;
        let id = world::key_id(keys.1);
        keys.1 += 1;
        let new = KnownKey { id, ..keys.0[place].clone() };
        keys.0.remove(place);
        Some(new)
    }

    pub fn add_key(&self, key: &KnownKey) {
        self.keys.lock().unwrap().0.push(key.clone());
    }
}
