//! Rows of refusals: written asynchronously, and bounded, so that nobody fills the audit by being refused.
//!
//! Ten a second for one caller have rows of their own; the rest of that second becomes one summary row. Callers beyond
//! [`MOST_CALLERS`] share one bucket; so do those of one issuer whom nothing here names, because an issuer such as a public
//! CI may vouch for anybody. What is refused while sealed is kept, bounded, and written at the next unseal. A
//! peer without an identity never gets here.

use std::collections::{HashMap, VecDeque};
use std::sync::{Mutex, PoisonError};

use super::error::BrokerError;
use super::{Broker, Caller, Phase};
use crate::domain::audit::{AuditEvent, Outcome};
use crate::domain::decide::DenyReason;
use crate::domain::operator::Power;
use crate::id::{DecisionId, Revision};

/// Rows of one caller in one second.
const MOST_ROWS: u32 = 10;

/// Callers that are told apart.
const MOST_CALLERS: usize = 10_000;

/// Events kept while sealed; beyond them only a number.
const MOST_KEPT: usize = 1000;

/// What is known of recent refusals.
#[derive(Debug, Default)]
pub(super) struct Denials(Mutex<Recent>);

#[derive(Debug, Default)]
struct Recent {
    second: i64,
    callers: HashMap<String, Bucket>,
    while_sealed: VecDeque<AuditEvent>,
    dropped_while_sealed: u64,
}

#[derive(Debug)]
struct Bucket {
    rows: u32,
    /// The newest refusal that has no row, and how many there are.
    summarised: Option<(AuditEvent, u64)>,
}

impl Recent {
    /// Answers the rows to write now: this one, or the summaries of a second that is over; and whether this one goes into a
    /// summary.
    fn take(&mut self, event: AuditEvent) -> (Vec<AuditEvent>, bool) {
        let mut out = self.roll(event.at.seconds());
        let name = shared_bucket(&event).unwrap_or_else(|| event.caller.clone());
        let known = self.callers.contains_key(&name);
        let name = if known || self.callers.len() < MOST_CALLERS { name } else { "(others)".to_owned() };
        let bucket = self.callers.entry(name).or_insert(Bucket { rows: 0, summarised: None });
        let has_row = bucket.rows < MOST_ROWS;
        if has_row {
            bucket.rows = bucket.rows.saturating_add(1);
            out.push(event);
        } else {
            let count = bucket.summarised.as_ref().map_or(0, |(_, count)| *count).saturating_add(1);
            bucket.summarised = Some((event, count));
        }
        (out, !has_row)
    }

    fn roll(&mut self, second: i64) -> Vec<AuditEvent> {
        if second == self.second {
            return Vec::new();
        }
        self.second = second;
        self.callers.drain().filter_map(|(name, bucket)| bucket.summarised.map(|it| summary(&name, it))).collect()
    }
}

/// The row of refusals that have none: of one caller, or of those who share a bucket, and then of no single one of them.
fn summary(bucket: &str, (event, count): (AuditEvent, u64)) -> AuditEvent {
    let last = format!("{count} more refusals within the second, the last of them: {}", event.detail);
    if event.caller == bucket {
        return AuditEvent { detail: last, ..event };
    }
    let detail = format!("{last}; of {}", event.caller);
    AuditEvent { caller: bucket.to_owned(), identity: String::new(), detail, ..event }
}

/// The bucket of a caller whom an issuer vouches for, and whom no policy or operator names.
fn shared_bucket(event: &AuditEvent) -> Option<String> {
    let lacks_power = BrokerError::LacksPower(Power::Administer);
    let strangers = [DenyReason::NoPolicy.as_str(), BrokerError::NotAnOperator.reason(), lacks_power.reason()];
    let (issuer, _) = event.caller.strip_prefix("oidc:")?.split_once(':')?;
    strangers.contains(&event.reason.as_str()).then(|| format!("oidc:{issuer}"))
}

impl Broker {
    /// Records a refusal of an authenticated caller.
    pub(super) fn record_denial(&self, event: AuditEvent) {
        self.parts.metrics.denials.with_label_values(&[&event.reason]).inc();
        let (rows, is_summarised) = self.recent(|recent| recent.take(event));
        self.parts.metrics.denials_summarised.inc_by(u64::from(is_summarised));
        self.write_denials(rows);
    }

    /// Records that an authenticated caller was refused an RPC.
    pub fn record_refused_rpc(&self, caller: &Caller, method: &str, reason: &str) {
        let Ok(decision_id) = self.decision_id() else { return };
        match &*self.phase() {
            Phase::Open(open) => {
                let revision = open.state().head().revision;
                self.record_denial(self.refusal(caller, method, reason, &decision_id, revision));
            }
            _ => self.remember_while_sealed(caller, method, reason, &decision_id),
        }
    }

    /// Keeps what happens while sealed for the audit of the next unseal.
    pub(super) fn remember_while_sealed(&self, caller: &Caller, method: &str, reason: &str, id: &DecisionId) {
        tracing::info!(caller = %caller.client(), method, reason, "refused while not serving");
        self.parts.metrics.denials.with_label_values(&[reason]).inc();
        let event = self.refusal(caller, method, reason, id, Revision::default());
        self.recent(|recent| {
            if recent.while_sealed.len() < MOST_KEPT {
                recent.while_sealed.push_back(event);
            } else {
                recent.dropped_while_sealed = recent.dropped_while_sealed.saturating_add(1);
            }
        });
    }

    /// Writes what happened while sealed; called once the vault is open.
    pub(super) fn write_remembered(&self) {
        let (mut events, dropped) = self.recent(|recent| {
            (std::mem::take(&mut recent.while_sealed), std::mem::take(&mut recent.dropped_while_sealed))
        });
        if let Some(last) = events.back_mut().filter(|_| dropped > 0) {
            last.detail = format!("{}; and {dropped} more requests while sealed", last.detail);
        }
        self.write_denials(events.into());
    }

    /// Writes summaries of seconds that are over; called every second.
    pub fn flush_denials(&self) {
        let now = self.parts.clock.now().seconds();
        let rows = self.recent(|recent| recent.roll(now));
        self.write_denials(rows);
    }

    /// Writes all summaries, also that of the present second; called when stopping.
    pub(super) fn flush_all_denials(&self) {
        let rows = self.recent(|recent| recent.roll(i64::MIN));
        self.write_denials(rows);
    }

    fn write_denials(&self, rows: Vec<AuditEvent>) {
        let Phase::Open(open) = &*self.phase() else { return };
        for row in rows {
            if !open.ledger.refuse(row) {
                self.parts.metrics.audit_rows_dropped.inc();
            }
        }
    }

    pub(super) fn refusal(
        &self,
        caller: &Caller,
        method: &str,
        reason: &str,
        decision_id: &DecisionId,
        revision: Revision,
    ) -> AuditEvent {
        AuditEvent {
            at: self.parts.clock.now(),
            event: method.to_owned(),
            outcome: Outcome::Denied,
            reason: reason.to_owned(),
            decision_id: decision_id.to_string(),
            caller: caller.client().to_string(),
            identity: caller.identity.clone(),
            detail: String::new(),
            policy: None,
            key_id: None,
            app_group: None,
            role: None,
            scope: None,
            token: None,
            revision,
        }
    }

    fn recent<T>(&self, use_it: impl FnOnce(&mut Recent) -> T) -> T {
        use_it(&mut self.denials.0.lock().unwrap_or_else(PoisonError::into_inner))
    }
}
