//! What must be true, whatever went wrong, computed from the tables alone: from the control log, opened and folded here,
//! and from the audit rows.
//!
//! 1. A token is committed only while nothing that it is under is stopped: revoked, suspended, or everything sealed.
//! 2. A token is committed only at a head that is not older than any that had been heard of when it was asked for.
//! 3. A token is handed out again only where nothing that it is under was revoked since it was signed.
//! 4. Every token that a client received is in the audit, as it was received.
//! 5. Every exposure equals the live tokens committed at a lower revision, and what it belongs to stood when it was told.
//! 6. The law of P5: after a revoke returned, no client receives a token under it whose id is not in its exposure, unless
//!    it was dead by the clock of the answering replica, or decided after the revoke was lifted.
//! 7. Nothing follows a seal in the control log but its lifting.
//!
//! The sixth follows from those before it; it is checked all the same, from what clients saw, because it is the promise.

use std::collections::{HashMap, HashSet};

use p8broker::domain::audit::{AuditEvent, AuditRow, Outcome};
use p8broker::domain::change::{Change, Record as LogRecord};
use p8broker::domain::state::State;
use p8broker::domain::target::Target;
use p8broker::id::{AccountName, AppGroupName, ClientId, KeyId, PolicyName, TokenId, WriterId};
use p8broker::store::Store;
use p8broker::vault::unseal::parse_key_file;

use super::cluster::UNSEAL_KEY;
use super::record::{News, Received, Stop, Stopped};

/// How long tokens are kept after their death, in seconds: longer than from one look to the next.
const KEPT_S: i64 = 120;

/// Rows and records read at a time.
const PAGE: u32 = 5000;

/// A row of a token that was signed.
struct Signed {
    revision: u64,
    expires_at: i64,
    /// Everything that can stop it.
    stops: Vec<Stop>,
    event: AuditEvent,
}

#[derive(Default)]
pub struct Model {
    pub state: State,
    /// When each thing was stopped and let go on, by revision.
    changes: HashMap<Stop, Vec<(u64, Now)>>,
    /// How far each writer's rows were read.
    ends: HashMap<WriterId, u64>,
    /// Tokens that may still be alive.
    signed: Vec<Signed>,
    sealed_at: Option<u64>,
    started_at: Option<u64>,
}

#[derive(Clone, Copy, PartialEq, Eq)]
enum Now {
    Stopped,
    GoesOn,
}

impl Model {
    /// Reads what came since, and answers everything that is wrong with it.
    pub async fn judge(&mut self, store: &dyn Store, news: &News, now_s: i64) -> Vec<String> {
        let mut wrong = self.follow(store).await;
        let rows = self.new_rows(store).await;
        self.signed.retain(|token| token.expires_at > now_s - KEPT_S);
        for row in &rows {
            self.judge_row(&row.event, &mut wrong);
        }
        let by_decision: HashMap<&str, &AuditEvent> =
            rows.iter().map(|row| (row.event.decision_id.as_str(), &row.event)).collect();
        for token in &news.received {
            judge_received(token, by_decision.get(token.decision_id.as_str()).copied(), &mut wrong);
        }
        let mut under: HashMap<Stop, Vec<&Received>> = HashMap::new();
        for token in &news.received {
            let named = (token.id.as_str(), token.client.as_str(), token.policy.as_str());
            for stop in stops(named, &token.app_group, &token.key_id, &token.account) {
                under.entry(stop).or_default().push(token);
            }
        }
        for stopped in &news.stopped {
            let exposed = self.judge_exposure(stopped, &mut wrong);
            let received = under.get(&stopped.what).map_or(&[][..], Vec::as_slice);
            self.judge_law(stopped, &exposed, received, &mut wrong);
        }
        wrong
    }

    /// Opens and folds the records that came since.
    async fn follow(&mut self, store: &dyn Store) -> Vec<String> {
        let mut wrong = Vec::new();
        let row = store.seal_row().await.unwrap().expect("there is a vault");
        let keyring = row.open(&parse_key_file(UNSEAL_KEY.as_bytes()).unwrap()).unwrap();
        loop {
            let page = store.records_from(self.state.head().revision.next(), PAGE).await.unwrap();
            for sealed in &page {
                assert_eq!(sealed.previous, self.state.head().chain, "the log is one chain");
                let record = sealed.open(&keyring, &row.vault).unwrap();
                self.state.fold(&record, sealed.head().chain).unwrap();
                self.judge_record(&record, &mut wrong);
            }
            if page.len() < PAGE as usize {
                break;
            }
        }
        assert_eq!(store.head().await.unwrap(), self.state.head());
        wrong
    }

    fn judge_record(&mut self, record: &LogRecord, wrong: &mut Vec<String>) {
        let at = record.revision.0;
        let change = match &record.change {
            Change::Revoked { target, .. } => Some((Stop::Revoked(target.clone()), Now::Stopped)),
            Change::Reinstated { target, .. } => Some((Stop::Revoked(target.clone()), Now::GoesOn)),
            Change::KeySuspended { key_id, .. } => Some((Stop::Suspended(key_id.clone()), Now::Stopped)),
            Change::KeyResumed { key_id, .. } => Some((Stop::Suspended(key_id.clone()), Now::GoesOn)),
            Change::VaultSealed { .. } => Some((Stop::Sealed, Now::Stopped)),
            Change::VaultUnsealed => Some((Stop::Sealed, Now::GoesOn)),
            _ => None,
        };
        if let Some(sealed_at) = self.sealed_at {
            // Who lifts a seal is a new writer, which starts in the same append.
            let lifts = matches!(record.change, Change::VaultUnsealed) && self.started_at == Some(at - 1);
            let starts = matches!(record.change, Change::WriterStarted { .. }) && self.started_at.is_none();
            if !lifts && !starts {
                let what = self.started_at.map_or("something", |_| "a writer that lifts nothing");
                wrong.push(format!("{what} follows the seal of revision {sealed_at}, before revision {at}"));
                self.sealed_at = None;
            }
            self.started_at = starts.then_some(at);
        }
        match &record.change {
            Change::VaultSealed { .. } => (self.sealed_at, self.started_at) = (Some(at), None),
            Change::VaultUnsealed => self.sealed_at = None,
            _ => {}
        }
        if let Some((stop, now)) = change {
            self.changes.entry(stop).or_default().push((at, now));
        }
    }

    async fn new_rows(&mut self, store: &dyn Store) -> Vec<AuditRow> {
        let mut out = Vec::new();
        for stored in store.writer_ends().await.unwrap() {
            let read = self.ends.entry(stored.end.writer.clone()).or_default();
            while *read < stored.end.sequence {
                let page = store.rows_of_writer(&stored.end.writer, *read, PAGE).await.unwrap();
                *read = page.last().expect("rows up to the writer's end").sequence;
                out.extend(page);
            }
        }
        out.retain(|row| matches!(row.event.outcome, Outcome::Signed | Outcome::Reused));
        // What was signed comes before what was handed out again.
        out.sort_by_key(|row| (row.event.revision, row.event.outcome));
        out
    }

    fn judge_row(&mut self, event: &AuditEvent, wrong: &mut Vec<String>) {
        let token = event.token.as_ref().expect("the row of a token");
        let id = token.id.as_str();
        let (policy, group) = (event.policy.as_deref().unwrap(), event.app_group.as_deref().unwrap());
        let key_id = event.key_id.as_deref().unwrap();
        let account = self.state.keys()[&KeyId::parse(key_id).unwrap()].account.to_string();
        let stops = stops((id, &event.caller, policy), group, key_id, &account);
        let revision = event.revision.0;
        for stop in stops.iter().filter(|stop| self.is_stopped(stop, revision)) {
            wrong.push(format!("token {id} is committed at revision {revision}, where {stop:?} is stopped"));
        }
        if event.outcome == Outcome::Signed {
            let expires_at = token.expires_at;
            self.signed.push(Signed { revision, expires_at, stops, event: event.clone() });
            return;
        }
        let as_handed_out = |signed: &&Signed| {
            let first = &signed.event;
            signed.revision <= revision
                && first.token.as_ref().is_some_and(|token| token.id.as_str() == id)
                && (&first.caller, &first.policy, &first.key_id, &first.app_group, &first.scope)
                    == (&event.caller, &event.policy, &event.key_id, &event.app_group, &event.scope)
        };
        let newest = self.signed.iter().filter(as_handed_out).map(|signed| signed.revision).max();
        let Some(newest) = newest else {
            wrong.push(format!("token {id} is handed out again at revision {revision}, and was never signed"));
            return;
        };
        for stop in stops.iter().filter(|stop| matches!(stop, Stop::Revoked(_))) {
            let revoked = |(at, now): &(u64, Now)| *now == Now::Stopped && *at > newest && *at <= revision;
            if self.changes.get(stop).is_some_and(|changes| changes.iter().any(revoked)) {
                wrong.push(format!(
                    "token {id}, signed at revision {newest}, is handed out again at {revision}, and {stop:?} in between"
                ));
            }
        }
    }

    fn is_stopped(&self, stop: &Stop, at: u64) -> bool {
        let changes = self.changes.get(stop).map_or(&[][..], Vec::as_slice);
        changes.iter().rev().find(|(revision, _)| *revision <= at).is_some_and(|(_, now)| *now == Now::Stopped)
    }

    /// The revision that stopped it: an answer may be of a later one, where other changes were made together with it.
    fn stopped_at(&self, stopped: &Stopped) -> Option<u64> {
        let changes = self.changes.get(&stopped.what)?;
        changes.iter().rev().find(|(at, now)| *at <= stopped.revision && *now == Now::Stopped).map(|(at, _)| *at)
    }

    /// The revision from which it goes on.
    fn lifted(&self, stopped: &Stopped) -> Option<u64> {
        let stopped_at = self.stopped_at(stopped)?;
        let changes = self.changes.get(&stopped.what)?;
        changes.iter().find(|(at, now)| *at > stopped_at && *now == Now::GoesOn).map(|(at, _)| *at)
    }

    /// Answers the ids that the answer stands for: those that it lists or, where they are many, those that it counts.
    fn judge_exposure(&self, stopped: &Stopped, wrong: &mut Vec<String>) -> HashSet<String> {
        let Stopped { what, revision, listed, count, between: (earliest, latest), asked_at } = stopped;
        let stopped_at = self.stopped_at(stopped);
        if stopped_at.is_none_or(|at| at != *revision && matches!(what, Stop::Revoked(_))) {
            wrong.push(format!("{what:?} was told to be stopped at revision {revision}, and was at {stopped_at:?}"));
        }
        if let Some(lifted) = self.lifted(stopped).filter(|lifted| lifted <= asked_at) {
            wrong.push(format!(
                "{what:?} was told to be stopped at revision {revision}; it went on at {lifted}, and {asked_at} was known"
            ));
        }
        let under = || self.signed.iter().filter(|token| token.revision < *revision && token.stops.contains(what));
        // A token has one row for each client and policy that were granted it within one second.
        let alive = |at: i64| {
            let alive = under().filter(move |token| token.expires_at > at);
            alive.map(|token| (id_of(token), &token.event.caller, &token.event.policy)).collect::<HashSet<_>>()
        };
        let (most, least) = (alive(*earliest), alive(*latest));
        if *count < least.len() as u64 || *count > most.len() as u64 {
            wrong.push(format!(
                "the exposure of {what:?} at revision {revision} counts {count}, and there are {} to {}",
                least.len(),
                most.len()
            ));
        }
        let ids =
            |tokens: &HashSet<(&str, _, _)>| tokens.iter().map(|(id, ..)| (*id).to_owned()).collect::<HashSet<_>>();
        let (most, least) = (ids(&most), ids(&least));
        for strange in listed.difference(&most) {
            wrong.push(format!("the exposure of {what:?} at revision {revision} lists {strange}, which is not alive"));
        }
        if *count > listed.len() as u64 {
            return most;
        }
        for missing in least.difference(listed) {
            wrong.push(format!("the exposure of {what:?} at revision {revision} does not list {missing}"));
        }
        listed.clone()
    }

    fn judge_law(&self, stopped: &Stopped, exposed: &HashSet<String>, under: &[&Received], wrong: &mut Vec<String>) {
        let lifted = self.lifted(stopped).unwrap_or(u64::MAX);
        for token in under {
            let dead = token.expires_at <= stopped.between.1;
            if !exposed.contains(&token.id) && !dead && token.revision < lifted {
                wrong.push(format!(
                    "the law: token {} of {}, decided at revision {}, is under {:?}, stopped at revision {}, and is not \
                     among the {} of its exposure",
                    token.id,
                    token.client,
                    token.revision,
                    stopped.what,
                    stopped.revision,
                    exposed.len()
                ));
            }
        }
    }
}

fn id_of(token: &Signed) -> &str {
    token.event.token.as_ref().map_or("", |token| token.id.as_str())
}

fn judge_received(token: &Received, row: Option<&AuditEvent>, wrong: &mut Vec<String>) {
    if token.revision < token.asked_at {
        wrong.push(format!(
            "token {} was committed at revision {}, and {} was known before it was asked for",
            token.id, token.revision, token.asked_at
        ));
    }
    let Some(row) = row else {
        wrong.push(format!(
            "token {} was received, and its decision {} is not in the audit",
            token.id, token.decision_id
        ));
        return;
    };
    let written = (
        row.token.as_ref().map(|token| (token.id.as_str(), token.expires_at)),
        row.caller.as_str(),
        row.revision.0,
        row.outcome == Outcome::Reused,
    );
    let received = (Some((token.id.as_str(), token.expires_at)), token.client.as_str(), token.revision, token.reused);
    if written != received {
        wrong.push(format!("a token was received as {received:?}, and written down as {written:?}"));
    }
}

/// Everything that can stop a token.
fn stops((id, client, policy): (&str, &str, &str), group: &str, key_id: &str, account: &str) -> Vec<Stop> {
    let key = KeyId::parse(key_id).unwrap();
    vec![
        Stop::Sealed,
        Stop::Suspended(key.clone()),
        Stop::Revoked(Target::Key(key)),
        Stop::Revoked(Target::Token(TokenId::parse(id).unwrap())),
        Stop::Revoked(Target::Client(ClientId::parse(client).unwrap())),
        Stop::Revoked(Target::Policy(PolicyName::parse(policy).unwrap())),
        Stop::Revoked(Target::AppGroup(AppGroupName::parse(group).unwrap())),
        Stop::Revoked(Target::Account(AccountName::parse(account).unwrap())),
    ]
}
