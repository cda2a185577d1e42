//! What a batch of audit rows counts against quotas, and what the database says of it.
//!
//! An engine counts in the transaction of the rows, one key after the other in their order, in windows that begin with each
//! whole hour and minute of Unix time by the database's own clock. A window never goes back: where that clock was set back,
//! counting goes on in the window that it had reached.
//!
//! # Invariants
//! - `INV-QUOTA-1`: what was committed for a key in one window is never more than its bound.

use crate::domain::quota::Quota;

/// Milliseconds of an hour and of a minute.
const HOUR_MS: i64 = 3_600_000;
const MINUTE_MS: i64 = 60_000;

/// The row of a quota is forgotten when its hour has been over for so many hours. One of an hour that is as far ahead was
/// counted by a clock that was wrong, and is forgotten too.
pub(super) const FORGET_HOURS: i64 = 2;

/// Most rows forgotten at once.
pub(super) const MOST_FORGOTTEN: i64 = 10_000;

/// What a batch hands out to one client under one policy.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct QuotaAsk {
    /// Under which policy.
    pub policy: String,
    /// To which client.
    pub client: String,
    /// The policy's bounds.
    pub quota: Quota,
    /// How many tokens, signed or reused.
    pub tokens: u32,
    /// How many of them are signed.
    pub fresh: u32,
}

/// What still fits into the windows of one key.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct QuotaLeft {
    /// Under which policy.
    pub policy: String,
    /// To which client.
    pub client: String,
    /// How many tokens, signed or reused.
    pub tokens: u32,
    /// How many signed ones.
    pub fresh: u32,
    /// When the hour ends, counted from when the database was asked; never longer.
    pub hour_ends_ms: u64,
    /// When the minute ends.
    pub minute_ends_ms: u64,
}

/// The row of one key, as it would be with what was asked for.
#[derive(Debug, Clone, Copy)]
pub(super) struct Counted {
    pub(super) hour: i64,
    pub(super) hour_count: i64,
    pub(super) minute: i64,
    pub(super) minute_count: i64,
    /// The database's time, before it was counted.
    pub(super) now_ms: i64,
}

impl QuotaAsk {
    /// What is left of this key without it; `None` where all of it fits.
    pub(super) fn exceeds(&self, counted: &Counted) -> Option<QuotaLeft> {
        let tokens = room(self.quota.tokens_per_hour, counted.hour_count, self.tokens);
        let fresh = room(self.quota.fresh_per_minute, counted.minute_count, self.fresh);
        if tokens >= self.tokens && fresh >= self.fresh {
            return None;
        }
        let ends = |window: i64, length: i64| {
            let end = window.saturating_add(1).saturating_mul(length);
            // It was that millisecond or a part of it later.
            end.saturating_sub(counted.now_ms).saturating_sub(1).max(0).unsigned_abs()
        };
        Some(QuotaLeft {
            policy: self.policy.clone(),
            client: self.client.clone(),
            tokens,
            fresh,
            hour_ends_ms: ends(counted.hour, HOUR_MS),
            minute_ends_ms: ends(counted.minute, MINUTE_MS),
        })
    }
}

/// How many fit, of a count that includes what is asked for.
fn room(bound: Option<u32>, counted: i64, asked: u32) -> u32 {
    let Some(bound) = bound else { return u32::MAX };
    let before = counted.saturating_sub(asked.into()).max(0);
    u32::try_from(i64::from(bound).saturating_sub(before)).unwrap_or_default()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn ask(tokens: u32, fresh: u32) -> QuotaAsk {
        let quota = Quota { tokens_per_hour: Some(10), fresh_per_minute: Some(3) };
        QuotaAsk { policy: "p".to_owned(), client: "c".to_owned(), quota, tokens, fresh }
    }

    fn counted(hour_count: i64, minute_count: i64) -> Counted {
        Counted { hour: 5, hour_count, minute: 301, minute_count, now_ms: 5 * HOUR_MS + 61_500 }
    }

    #[test]
    fn a_bound_is_reached_and_never_passed() {
        assert_eq!(ask(2, 1).exceeds(&counted(10, 3)), None);
        let left = |ask: QuotaAsk, counted| {
            let left = ask.exceeds(&counted).unwrap();
            (left.tokens, left.fresh, left.hour_ends_ms, left.minute_ends_ms)
        };
        assert_eq!(left(ask(2, 1), counted(11, 2)), (1, 2, 3_538_499, 58_499));
        assert_eq!(left(ask(2, 2), counted(4, 5)), (8, 0, 3_538_499, 58_499));
        // Bounds that were lowered since: nothing is left, and that is no mistake.
        assert_eq!(left(ask(1, 0), counted(101, 50)), (0, 0, 3_538_499, 58_499));
        // One that is reused is not held to how many are signed.
        assert_eq!(ask(1, 0).exceeds(&counted(5, 50)), None);
        // A count that somebody set below nothing gives no more than the bound.
        assert_eq!(left(ask(11, 0), counted(-50, 0)), (10, 3, 3_538_499, 58_499));
    }

    #[test]
    fn what_is_not_bounded_is_always_left() {
        let ask = QuotaAsk { quota: Quota { tokens_per_hour: None, fresh_per_minute: Some(3) }, ..ask(7, 4) };
        let left = ask.exceeds(&counted(i64::MAX, 4)).unwrap();
        assert_eq!((left.tokens, left.fresh), (u32::MAX, 3));
    }
}
