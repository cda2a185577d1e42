//! Quotas, on the side of a replica: what a batch counts, who goes without where that is too much, and what is remembered.
//!
//! The database counts, in the transaction of the rows (`store::quota`). Where a batch is over, it says what is left of each
//! key; of that key's rows those that came first stay, as many as fit, the others are answered, and the batch goes on
//! without them at once.
//!
//! # Invariants
//! - `INV-QUOTA-2`: nothing is refused from memory that the database would grant. Within a window its counts only grow, and
//!   what is remembered is that nothing at all was left of it. That holds for the very bounds that were asked for, and ends
//!   when the database said that the window does, counted from before it was asked: on the monotonic clock, or on the wall
//!   clock where that is sooner, as the other may stand still while a machine sleeps. (A hand that lowers a count in the
//!   database is heard of at the end of the window.)

use std::collections::{BTreeMap, HashMap};
use std::time::Duration;

use moka::sync::Cache;

use super::ledger::{Committed, OverQuota, Row, Waiting};
use crate::clock::{Stopwatch, UnixMillis};
use crate::domain::audit::{AuditEvent, Outcome};
use crate::domain::quota::{Bound, Quota};
use crate::store::{QuotaAsk, QuotaLeft};

/// Most windows remembered; past it, the least used are asked for again.
const MOST_REMEMBERED: u64 = 10_000;

/// No window is longer.
const LONGEST: Duration = Duration::from_hours(1);

/// Windows of which nothing is left.
#[derive(Debug)]
pub(super) struct UsedUp(Cache<Window, Until>);

#[derive(Debug, Clone, PartialEq, Eq, Hash)]
struct Window {
    policy: String,
    client: String,
    quota: Quota,
    bound: Bound,
}

#[derive(Debug, Clone, Copy)]
struct Until {
    asked: Asked,
    lasts_ms: u64,
}

/// Just before the database was asked.
#[derive(Debug, Clone, Copy)]
pub(super) struct Asked {
    watch: Stopwatch,
    at: UnixMillis,
}

impl Asked {
    pub(super) fn at(now: UnixMillis) -> Self {
        Self { watch: Stopwatch::start(), at: now }
    }

    fn ago_ms(self, now: UnixMillis) -> u64 {
        let by_wall = u64::try_from(now.0.saturating_sub(self.at.0)).unwrap_or_default();
        // Rounded up, so that what is remembered ends early and not late.
        let by_watch = Duration::try_from_secs_f64(self.watch.seconds()).unwrap_or_default();
        u64::try_from(by_watch.as_millis()).unwrap_or(u64::MAX).saturating_add(1).max(by_wall)
    }
}

impl Default for UsedUp {
    fn default() -> Self {
        Self(Cache::builder().max_capacity(MOST_REMEMBERED).time_to_live(LONGEST).build())
    }
}

impl UsedUp {
    /// In how many seconds there is something left again, where there is nothing now.
    pub(super) fn retry_after_s(
        &self,
        (policy, client): (&str, &str),
        quota: Quota,
        bound: Bound,
        now: UnixMillis,
    ) -> Option<u64> {
        let window = Window { policy: policy.to_owned(), client: client.to_owned(), quota, bound };
        let until = self.0.get(&window)?;
        // INVARIANT (INV-QUOTA-2)
        let left = until.lasts_ms.checked_sub(until.asked.ago_ms(now)).filter(|left| *left > 0);
        if left.is_none() {
            self.0.invalidate(&window);
        }
        left.map(seconds)
    }

    fn remember(&self, left: &QuotaLeft, quota: Quota, asked: Asked) {
        let full = [
            (Bound::TokensPerHour, left.tokens, left.hour_ends_ms),
            (Bound::FreshPerMinute, left.fresh, left.minute_ends_ms),
        ];
        for (bound, _, lasts_ms) in full.into_iter().filter(|(_, left, _)| *left == 0) {
            let window = Window { policy: left.policy.clone(), client: left.client.clone(), quota, bound };
            self.0.insert(window, Until { asked, lasts_ms });
        }
    }
}

/// Whole seconds in which so many milliseconds, and the fraction of one, are over.
fn seconds(ms: u64) -> u64 {
    (ms / 1000).saturating_add(1)
}

/// What a row counts against: policy, client, and the quota.
fn key<'a>(event: &'a AuditEvent, waiting: Option<&'a Waiting>) -> Option<((&'a str, &'a str), Quota)> {
    let (policy, quota) = waiting?.decision.quota.as_ref()?;
    Some(((policy.as_str(), &event.caller), *quota))
}

/// What rows count against quotas, sorted. All of them were decided at one head, so a policy has one quota.
pub(super) fn asks(rows: &[Row]) -> Vec<QuotaAsk> {
    let mut out: BTreeMap<(&str, &str), QuotaAsk> = BTreeMap::new();
    for (event, waiting) in rows {
        let Some(((policy, client), quota)) = key(event, waiting.as_ref()) else { continue };
        let ask = out.entry((policy, client)).or_insert_with(|| QuotaAsk {
            policy: policy.to_owned(),
            client: client.to_owned(),
            quota,
            tokens: 0,
            fresh: 0,
        });
        ask.tokens = ask.tokens.saturating_add(1);
        ask.fresh = ask.fresh.saturating_add(is_fresh(event).into());
    }
    out.into_values().collect()
}

fn is_fresh(event: &AuditEvent) -> bool {
    event.outcome == Outcome::Signed
}

/// Keeps the rows that fit into what is left, in the order in which they came; answers the others, and remembers what is
/// used up.
pub(super) fn keep_fitting(rows: Vec<Row>, left: Vec<QuotaLeft>, used_up: &UsedUp, asked: Asked) -> Vec<Row> {
    let mut left: HashMap<(String, String), QuotaLeft> =
        left.into_iter().map(|left| ((left.policy.clone(), left.client.clone()), left)).collect();
    for ask in asks(&rows) {
        if let Some(left) = left.get(&(ask.policy, ask.client)) {
            used_up.remember(left, ask.quota, asked);
        }
    }
    let mut kept = Vec::with_capacity(rows.len());
    for (event, waiting) in rows {
        let of_key = key(&event, waiting.as_ref()).map(|((policy, client), _)| (policy.to_owned(), client.to_owned()));
        let exceeded = of_key.and_then(|key| left.get_mut(&key)).and_then(|left| take(left, is_fresh(&event)));
        match (exceeded, waiting) {
            (Some((bound, ends_ms)), Some(waiting)) => {
                let over = OverQuota { event: Box::new(event), bound, retry_after_s: seconds(ends_ms) };
                let _ = waiting.reply.send(Committed::OverQuota(over));
            }
            (_, waiting) => kept.push((event, waiting)),
        }
    }
    kept
}

/// Takes one token from what is left; answers the bound that is in the way, and when its window ends.
fn take(left: &mut QuotaLeft, is_fresh: bool) -> Option<(Bound, u64)> {
    if left.tokens == 0 {
        return Some((Bound::TokensPerHour, left.hour_ends_ms));
    }
    if is_fresh && left.fresh == 0 {
        return Some((Bound::FreshPerMinute, left.minute_ends_ms));
    }
    left.tokens = left.tokens.saturating_sub(1);
    left.fresh = left.fresh.saturating_sub(is_fresh.into());
    None
}

/// Sends back all rows that count against a quota: others use up what is left faster than this replica finds out.
pub(super) fn send_back(rows: Vec<Row>) -> Vec<Row> {
    let mut kept = Vec::with_capacity(rows.len());
    for (event, waiting) in rows {
        match waiting {
            Some(waiting) if waiting.decision.quota.is_some() => {
                let _ = waiting.reply.send(Committed::HeadMoved);
            }
            waiting => kept.push((event, waiting)),
        }
    }
    kept
}

#[cfg(test)]
mod tests;
