//! Those who use the fleet: each does one random operation after the other, at a random replica.
//!
//! What an actor stops it lets go on again some operations later, so that most of the fleet can be used most of the time.

use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::Duration;

use p8broker::broker::{Broker, BrokerError, Shares, Wanted};
use p8broker::clock::Clock;
use p8broker::domain::target::Target;
use p8broker::id::{KeyId, Revision, TokenId};
use p8broker::store::{ExposureCursor, Under};
use tokio::time::timeout;

use super::cluster::{End, Fleet, REPLICAS, SkewedClock, caller};
use super::record::{Received, Record, Stop, Stopped};
use super::world::{self, KnownKey};
use crate::chaos::Random;

/// How often a revoke is repeated until it returns, and anything else until it is given up.
const MOST_TRIES: u32 = 300;
const FEW_TRIES: u32 = 20;

/// How far a clock may be from the common one.
pub const CLOCKS_APART_MS: u64 = 4000;

/// How much time passes with one operation, at most.
const STEP_MS: u64 = 40;

/// One call in so many is left by its caller before it returns.
const HANG_UPS: u64 = 60;

/// More tokens than there can be alive.
const ALL: u32 = 1_000_000;

/// What an actor owes the others.
enum Due {
    Reinstate(Target),
    Resume(KeyId),
    Unseal,
    Replace { old: KeyId, new: KnownKey },
}

pub struct Actor {
    fleet: Arc<Fleet>,
    record: Arc<Record>,
    random: Random,
    due: Vec<(u64, Due)>,
}

impl Actor {
    pub fn new(fleet: &Arc<Fleet>, record: &Arc<Record>, random: Random) -> Self {
        Self { fleet: Arc::clone(fleet), record: Arc::clone(record), random, due: Vec::new() }
    }

    /// Goes on until so many operations were done by all of them, then does what it owes.
    pub async fn run(mut self, until: u64) {
        loop {
            let nth = self.begin();
            if nth >= until {
                break;
            }
            match self.due.iter().position(|(at, _)| *at <= nth) {
                Some(at) => {
                    let (_, due) = self.due.swap_remove(at);
                    self.settle(due).await;
                }
                None => self.operate(nth).await,
            }
        }
        for (_, due) in std::mem::take(&mut self.due) {
            self.begin();
            self.settle(due).await;
        }
    }

    /// Answers how many operations were begun before this one.
    fn begin(&mut self) -> u64 {
        self.fleet.weather.begin();
        self.fleet.pass(i64::try_from(self.random.below(STEP_MS)).unwrap());
        self.record.operations.fetch_add(1, Ordering::SeqCst)
    }

    async fn operate(&mut self, nth: u64) {
        match self.random.below(1000) {
            0..620 => self.issue(nth).await,
            620..740 => self.revoke(nth).await,
            740..780 => self.suspend(nth).await,
            780..786 => self.seal(nth).await,
            786..820 => self.apply().await,
            820..830 => {
                let target = world::target(&mut self.random);
                self.reinstate(&target).await;
            }
            830..890 => self.look().await,
            890..940 => self.broker().1.open_again().await,
            940..960 => self.jump(),
            960..966 => self.restart(End::Stop).await,
            966..974 => self.restart(End::Kill).await,
            974..980 => self.rotate().await,
            980..983 => self.rekey().await,
            _ => {
                let (_, broker) = self.broker();
                broker.flush_denials();
                broker.report().await;
            }
        }
    }

    async fn settle(&mut self, due: Due) {
        match due {
            Due::Reinstate(target) => self.reinstate(&target).await,
            Due::Resume(key) => self.resume(&key).await,
            Due::Unseal => self.unseal().await,
            Due::Replace { old, new } => self.replace(&old, &new).await,
        }
    }

    fn owe(&mut self, nth: u64, most: u64, due: Due) {
        let at = nth + self.random.below(most);
        self.due.push((at, due));
    }

    fn broker(&mut self) -> (usize, Arc<Broker>) {
        let nth = usize::try_from(self.random.below(REPLICAS as u64)).unwrap();
        (nth, self.fleet.replicas[nth].broker())
    }

    /// Makes a call; `None` where the caller hangs up: then it may be carried out all the same.
    async fn call<T>(&mut self, call: impl Future<Output = Result<T, BrokerError>>) -> Option<Result<T, BrokerError>> {
        if self.random.below(HANG_UPS) > 0 {
            return Some(call.await);
        }
        timeout(Duration::from_micros(self.random.below(5000)), call).await.ok()
    }

    async fn issue(&mut self, nth: u64) {
        let fresh = (self.random.below(2) > 0).then_some(nth);
        let ask = world::ask(&mut self.random, fresh);
        let client = ask.request.principal.client.clone();
        let (_, broker) = self.broker();
        let asked_at = self.record.heard();
        match self.call(broker.issue(&caller(client.as_str()), ask)).await {
            Some(Ok(issued)) => self.record.receive(Received::of(&client, &issued, asked_at)),
            Some(Err(error)) => self.record.judge("a client", &error),
            None => {}
        }
    }

    async fn revoke(&mut self, nth: u64) {
        let (target, due) = match self.random.below(100) {
            0..15 => {
                let drawn = self.random.next() >> 32;
                let Some(id) = self.record.recent_token(drawn) else { return };
                (Target::Token(TokenId::parse(&id).unwrap()), None)
            }
            15..18 => {
                let drawn = self.random.next() >> 32;
                let Some(old) = self.record.some_key(drawn).map(|key| key.id) else { return };
                let Some(new) = self.record.retire_key(&old) else { return };
                (Target::Key(old.clone()), Some(Due::Replace { old, new }))
            }
            _ => {
                let target = world::target(&mut self.random);
                (target.clone(), Some(Due::Reinstate(target)))
            }
        };
        if self.revoke_until_it_returns(&target).await
            && let Some(due) = due
        {
            self.owe(nth, 40, due);
        }
    }

    /// A revoke in doubt is repeated until it returns.
    async fn revoke_until_it_returns(&mut self, target: &Target) -> bool {
        let operator = self.fleet.operator.clone();
        let mut last = String::new();
        for _ in 0..MOST_TRIES {
            let (nth, broker) = self.broker();
            let clock = Arc::clone(&self.fleet.replicas[nth].clock);
            let (mark, asked_at) = (clock.mark(), self.record.heard());
            match self.call(broker.revoke(&operator, target.clone(), "a simulation".to_owned())).await {
                Some(Ok(revoked)) => {
                    self.record.revokes.fetch_add(1, Ordering::SeqCst);
                    let exposure = revoked.exposure;
                    self.record.stop(Stopped {
                        what: Stop::Revoked(target.clone()),
                        revision: exposure.revision.0,
                        listed: exposure.tokens.iter().map(|token| token.id.to_string()).collect(),
                        count: exposure.totals.count,
                        between: clock.since(&mark),
                        asked_at,
                    });
                    return true;
                }
                Some(Err(BrokerError::NotFound { .. })) if matches!(target, Target::Token(_)) => return false,
                Some(Err(BrokerError::Sealed { .. })) if self.random.below(10) == 0 => self.unseal().await,
                Some(Err(error)) => {
                    self.record.judge("a revoker", &error);
                    last = format!("{error:?}");
                }
                None => {}
            }
            self.fleet.weather.others(1).await;
        }
        self.record.complain(format!("a revoke of {target} never returned: {last}"));
        false
    }

    async fn suspend(&mut self, nth: u64) {
        let drawn = self.random.next() >> 32;
        let Some(key) = self.record.some_key(drawn).map(|key| key.id) else { return };
        let (replica, broker) = self.broker();
        let asked_at = self.record.heard();
        let operator = self.fleet.operator.clone();
        match self.call(broker.suspend_key(&operator, &key, "a simulation".to_owned())).await {
            Some(Ok(answer)) => {
                let under = Under::Keys(vec![key.clone()]);
                self.note_stop(Stop::Suspended(key.clone()), &under, answer.revision, replica, asked_at).await;
            }
            Some(Err(error)) => self.record.judge("a custodian", &error),
            None => {}
        }
        self.owe(nth, 60, Due::Resume(key));
    }

    async fn seal(&mut self, nth: u64) {
        let (replica, broker) = self.broker();
        let asked_at = self.record.heard();
        let operator = self.fleet.operator.clone();
        match self.call(broker.seal(&operator, "a simulation".to_owned())).await {
            Some(Ok(revision)) => self.note_stop(Stop::Sealed, &Under::Everything, revision, replica, asked_at).await,
            Some(Err(error)) => self.record.judge("a sealer", &error),
            None => {}
        }
        self.owe(nth, 30, Due::Unseal);
    }

    /// What stops without an exposure in its answer is held to the same: what is alive is read when it has returned.
    async fn note_stop(&mut self, what: Stop, under: &Under, revision: Revision, replica: usize, asked_at: u64) {
        self.record.hear(revision.0);
        let now_s = self.fleet.replicas[replica].clock.now().seconds();
        let truth = &self.fleet.truth;
        let alive = truth.exposure(under, revision, now_s, &ExposureCursor::default(), ALL).await.unwrap();
        let listed = alive.iter().map(|token| token.id.to_string()).collect();
        let count = alive.len() as u64;
        self.record.stop(Stopped { what, revision: revision.0, listed, count, between: (now_s, now_s), asked_at });
    }

    async fn reinstate(&mut self, target: &Target) {
        let operator = self.fleet.operator.clone();
        for _ in 0..FEW_TRIES {
            let (_, broker) = self.broker();
            match self.call(broker.reinstate(&operator, target.clone(), "a simulation".to_owned())).await {
                Some(Ok(revision)) => return self.record.hear(revision.0),
                Some(Err(BrokerError::NotRevoked(_))) => return,
                Some(Err(error)) => self.retry("an administrator", &error).await,
                None => {}
            }
        }
    }

    async fn resume(&mut self, key: &KeyId) {
        let operator = self.fleet.operator.clone();
        for _ in 0..FEW_TRIES {
            let (_, broker) = self.broker();
            match self.call(broker.resume_key(&operator, key, "a simulation".to_owned())).await {
                Some(Ok(answer)) => return self.record.hear(answer.revision.0),
                Some(Err(BrokerError::KeyState { .. })) => return,
                Some(Err(error)) => self.retry("a custodian", &error).await,
                None => {}
            }
        }
    }

    async fn unseal(&mut self) {
        let operator = self.fleet.operator.clone();
        for _ in 0..FEW_TRIES {
            let (_, broker) = self.broker();
            match self.call(broker.unseal(&operator, None)).await {
                Some(Ok(answer)) if !answer.sealed => return,
                Some(Ok(_)) | None => {}
                Some(Err(error)) => self.retry("an unsealer", &error).await,
            }
        }
    }

    async fn retry(&mut self, who: &str, error: &BrokerError) {
        self.record.judge(who, error);
        self.fleet.weather.others(2).await;
    }

    /// Apple forgets the old key, and a new one takes its place.
    async fn replace(&mut self, old: &KeyId, new: &KnownKey) {
        let operator = self.fleet.operator.clone();
        for _ in 0..FEW_TRIES {
            let (_, broker) = self.broker();
            match self.call(broker.confirm_revoked_at_apple(&operator, old)).await {
                Some(Ok(_)) => break,
                Some(Err(error)) => self.retry("a custodian", &error).await,
                None => {}
            }
        }
        for _ in 0..MOST_TRIES {
            let (_, broker) = self.broker();
            match self.call(broker.import_key(&operator, world::import(new))).await {
                // One that was in doubt was carried out.
                Some(Ok(_) | Err(BrokerError::KeyExists { .. })) => return self.record.add_key(new),
                Some(Err(BrokerError::Sealed { .. })) if self.random.below(10) == 0 => self.unseal().await,
                Some(Err(error)) => self.retry("a custodian", &error).await,
                None => {}
            }
        }
        self.record.complain(format!("key {} is never imported", new.id));
    }

    async fn apply(&mut self) {
        let document = world::changed_policy(&mut self.random).check().unwrap();
        let operator = self.fleet.operator.clone();
        let (_, broker) = self.broker();
        match self.call(broker.apply(&operator, Wanted::new(document))).await {
            Some(Ok(applied)) => self.record.hear(applied.revision.0),
            Some(Err(error)) => self.record.judge("an author", &error),
            None => {}
        }
    }

    async fn look(&mut self) {
        let target = world::target(&mut self.random);
        let operator = self.fleet.operator.clone();
        let (_, broker) = self.broker();
        if let Some(Err(error)) = self.call(broker.exposure(&operator, Some(&target), &ExposureCursor::default())).await
        {
            self.record.judge("a reader", &error);
        }
    }

    async fn rotate(&mut self) {
        let operator = self.fleet.operator.clone();
        let (_, broker) = self.broker();
        match self.call(broker.rotate(&operator)).await {
            Some(Ok((_, revision))) => self.record.hear(revision.0),
            Some(Err(error)) => self.record.judge("an administrator who rotates", &error),
            None => {}
        }
    }

    async fn rekey(&mut self) {
        let operator = self.fleet.operator.clone();
        let (_, broker) = self.broker();
        let numbers = Shares { shares: 0, threshold: 0 };
        match self.call(broker.rekey(&operator, &[], numbers)).await {
            // Somebody else replaced it meanwhile.
            Some(Ok(_) | Err(BrokerError::NoRekey)) | None => {}
            Some(Err(error)) => self.record.judge("an administrator who rekeys", &error),
        }
    }

    fn jump(&mut self) {
        let (nth, _) = self.broker();
        let offset = i64::try_from(self.random.below(2 * CLOCKS_APART_MS)).unwrap();
        let clock: &SkewedClock = &self.fleet.replicas[nth].clock;
        clock.jump(offset - i64::try_from(CLOCKS_APART_MS).unwrap());
    }

    async fn restart(&mut self, end: End) {
        let (nth, _) = self.broker();
        self.fleet.restart(nth, end).await;
    }
}
