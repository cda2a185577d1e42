//! Who goes without, and what is remembered.

use tokio::sync::oneshot;

use super::*;
use crate::clock::Stopwatch;
use crate::domain::decide::Decision;
use crate::id::{Head, PolicyName, Revision};
use crate::trace::Within;

const NOW: UnixMillis = UnixMillis(1_800_000_000_000);
const QUOTA: Quota = Quota { tokens_per_hour: Some(5), fresh_per_minute: Some(2) };

fn event(client: &str, outcome: Outcome) -> AuditEvent {
    AuditEvent {
        at: NOW,
        event: "IssueToken".to_owned(),
        outcome,
        reason: "OK".to_owned(),
        decision_id: String::new(),
        caller: client.to_owned(),
        identity: String::new(),
        detail: String::new(),
        policy: None,
        key_id: None,
        app_group: None,
        role: None,
        scope: None,
        token: None,
        revision: Revision(1),
    }
}

fn row(client: &str, outcome: Outcome, quota: Option<Quota>) -> (Row, oneshot::Receiver<Committed>) {
    let (reply, answer) = oneshot::channel();
    let quota = quota.map(|quota| (PolicyName::parse("p").unwrap(), quota));
    let decision = Decision {
        head: Head::default(),
        at: NOW,
        enforced_by: Vec::new(),
        quota,
        break_glass: None,
        shadows: Vec::new(),
    };
    let waiting =
        Waiting { decision, again: Box::new(|_, _| None), since: Stopwatch::start(), within: Within::default(), reply };
    ((event(client, outcome), Some(waiting)), answer)
}

fn left(client: &str, tokens: u32, fresh: u32) -> QuotaLeft {
    let (policy, client) = ("p".to_owned(), client.to_owned());
    QuotaLeft { policy, client, tokens, fresh, hour_ends_ms: 1_799_999, minute_ends_ms: 59_000 }
}

/// Which rows stay, by number, and what the others are told.
fn fit(rows: Vec<(&str, Outcome)>, left: Vec<QuotaLeft>, used_up: &UsedUp) -> (Vec<usize>, Vec<Option<(Bound, u64)>>) {
    let (rows, answers): (Vec<_>, Vec<_>) =
        rows.into_iter().map(|(client, outcome)| row(client, outcome, Some(QUOTA))).unzip();
    let kept = keep_fitting(rows, left, used_up, Asked::at(NOW));
    let told: Vec<_> = answers
        .into_iter()
        .map(|mut answer| match answer.try_recv() {
            Ok(Committed::OverQuota(over)) => Some((over.bound, over.retry_after_s)),
            Ok(other) => panic!("{other:?}"),
            Err(_) => None,
        })
        .collect();
    let stay: Vec<_> = told.iter().enumerate().filter(|(_, told)| told.is_none()).map(|(nth, _)| nth).collect();
    assert_eq!(stay.len(), kept.len());
    (stay, told)
}

#[test]
fn asks_are_one_for_each_key_and_sorted() {
    use Outcome::{Reused, Signed};
    let other = Quota { tokens_per_hour: Some(9), ..QUOTA };
    let rows = [
        row("b", Signed, Some(QUOTA)).0,
        row("a", Reused, Some(other)).0,
        (event("a", Outcome::Denied), None),
        row("b", Reused, Some(QUOTA)).0,
        row("a", Signed, None).0,
    ];
    let ask = |client: &str, quota, tokens, fresh| QuotaAsk {
        policy: "p".to_owned(),
        client: client.to_owned(),
        quota,
        tokens,
        fresh,
    };
    assert_eq!(asks(&rows), [ask("a", other, 1, 0), ask("b", QUOTA, 2, 1)]);
}

#[test]
fn rows_that_came_first_stay_as_many_as_fit_and_others_keys_are_not_touched() {
    use Outcome::{Reused, Signed};
    let used_up = UsedUp::default();
    let rows =
        vec![("a", Signed), ("b", Signed), ("a", Signed), ("a", Reused), ("b", Signed), ("a", Reused), ("a", Reused)];
    let (stay, told) = fit(rows, vec![left("a", 3, 1)], &used_up);
    assert_eq!(stay, [0, 1, 3, 4, 5]);
    assert_eq!(told[2], Some((Bound::FreshPerMinute, 60)), "a signed one too many; reused ones after it still fit");
    assert_eq!(told[6], Some((Bound::TokensPerHour, 1800)));
    // Something was left, so nothing is remembered: what fitted may yet come to nothing.
    for bound in [Bound::TokensPerHour, Bound::FreshPerMinute] {
        assert_eq!(used_up.retry_after_s(("p", "a"), QUOTA, bound, NOW), None);
    }
}

#[test]
fn inv_quota_2_what_is_used_up_is_remembered_for_its_bounds_and_its_window_alone() {
    let used_up = UsedUp::default();
    let (stay, told) = fit(vec![("a", Outcome::Signed)], vec![left("a", 4, 0)], &used_up);
    assert!(stay.is_empty() && told == [Some((Bound::FreshPerMinute, 60))]);
    let retry = |quota, bound, after_ms| used_up.retry_after_s(("p", "a"), quota, bound, UnixMillis(NOW.0 + after_ms));
    assert_eq!(retry(QUOTA, Bound::TokensPerHour, 0), None, "of the hour something is left");
    let raised = Quota { fresh_per_minute: Some(3), ..QUOTA };
    assert_eq!(retry(raised, Bound::FreshPerMinute, 0), None, "another bound is asked for anew");
    assert_eq!(used_up.retry_after_s(("p", "b"), QUOTA, Bound::FreshPerMinute, NOW), None);
    let soon = retry(QUOTA, Bound::FreshPerMinute, 0).unwrap();
    assert!((58..=60).contains(&soon), "{soon}");
    let later = retry(QUOTA, Bound::FreshPerMinute, 50_000).unwrap();
    assert!((8..=10).contains(&later), "{later}");
    assert_eq!(retry(QUOTA, Bound::FreshPerMinute, 59_000), None, "over, to the millisecond");
    assert_eq!(retry(QUOTA, Bound::FreshPerMinute, 0), None, "and forgotten");
}

/// A wall clock that stands still, or goes back, keeps nothing in memory for longer than the window lasts.
#[test]
fn inv_quota_2_the_monotonic_clock_ends_what_the_wall_clock_would_keep() {
    let used_up = UsedUp::default();
    let short = QuotaLeft { hour_ends_ms: 500, ..left("a", 0, 4) };
    used_up.remember(&short, QUOTA, Asked::at(NOW));
    let retry = |at| used_up.retry_after_s(("p", "a"), QUOTA, Bound::TokensPerHour, at);
    assert_eq!(retry(UnixMillis(NOW.0 - 60_000)), Some(1));
    std::thread::sleep(Duration::from_millis(520));
    assert_eq!(retry(UnixMillis(NOW.0 - 60_000)), None);
}

#[test]
fn rows_without_a_quota_are_not_sent_back() {
    let (mine, mut answer) = row("a", Outcome::Signed, Some(QUOTA));
    let (free, _) = row("a", Outcome::Signed, None);
    let kept = send_back(vec![mine, free, (event("a", Outcome::Denied), None)]);
    assert_eq!(kept.len(), 2);
    assert!(matches!(answer.try_recv(), Ok(Committed::HeadMoved)));
}
