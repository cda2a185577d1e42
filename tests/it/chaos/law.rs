//! The law of P5, over what clients and the revoker saw: after a revoke returned, no client receives a token under it
//! whose id is not in that revoke's exposure, until it is reinstated.
//!
//! The check is a pure function over one history, and a little stricter than the law: it holds every token against every
//! revoke of it, also one that was received before the revoke returned. Such a token was committed before the revoke, so
//! it must be listed as well.
//!
//! A token outside of an exposure is excused by two things alone: it was dead when the revoke returned, or it was decided
//! after the reinstatement. A history knows the latter only from the order of what happened and from the revisions of the
//! answers, and both must agree: it was received after the reinstatement was sent, and its revision is not below that of
//! the reinstatement.

use std::collections::HashSet;

use p8broker::grpc::proto::{Target, TargetKind};

/// Something that a client or the revoker saw. Its place in the history is the moment it was seen.
#[derive(Debug, Clone)]
pub enum Event {
    Received(Token),
    /// It returned. A revoke that failed is in doubt and says nothing; it is repeated until it returns.
    Revoked(Revoke),
    /// About to be sent for the first time.
    Reinstating(Target),
    /// It returned, or is known to be done: then without its revision.
    Reinstated {
        target: Target,
        revision: Option<u64>,
    },
}

#[derive(Debug, Clone)]
pub struct Token {
    pub id: String,
    pub client: String,
    pub policy: String,
    pub app_group: String,
    /// The revision it was decided at.
    pub revision: u64,
    /// In Unix seconds.
    pub expires_at: i64,
}

#[derive(Debug, Clone)]
pub struct Revoke {
    pub target: Target,
    pub revision: u64,
    pub exposure: HashSet<String>,
    /// When it returned, in Unix seconds.
    pub at: i64,
}

impl Token {
    fn is_under(&self, target: &Target) -> bool {
        match target.kind() {
            TargetKind::Client => self.client == target.name,
            TargetKind::Policy => self.policy == target.name,
            TargetKind::AppGroup => self.app_group == target.name,
            TargetKind::Token => self.id == target.name,
            TargetKind::Unspecified | TargetKind::Key | TargetKind::Account | TargetKind::Issuer => {
                panic!("{target:?} is not revoked here")
            }
        }
    }
}

/// Every breach of the law, as a sentence.
pub fn violations(history: &[Event]) -> Vec<String> {
    let mut out = Vec::new();
    for (returned, event) in history.iter().enumerate() {
        let Event::Revoked(revoke) = event else { continue };
        let lift = lift(revoke, &history[returned..]).map(|(sent, revision)| (returned + sent, revision));
        for (received, event) in history.iter().enumerate() {
            let Event::Received(token) = event else { continue };
            let listed = revoke.exposure.contains(&token.id);
            let dead = token.expires_at <= revoke.at;
            let reinstated = lift.is_some_and(|(sent, revision)| received > sent && token.revision >= revision);
            if token.is_under(&revoke.target) && !listed && !dead && !reinstated {
                out.push(format!(
                    "token {} of {} was decided at revision {}, received {} the revoke of `{}` at revision {} returned, and \
                     is not among the {} of its exposure",
                    token.id,
                    token.client,
                    token.revision,
                    if received > returned { "after" } else { "before" },
                    revoke.target.name,
                    revoke.revision,
                    revoke.exposure.len(),
                ));
            }
        }
    }
    out
}

/// How often a token was decided before a revoke of it, and arrived after that had returned. Without any, nothing was
/// tested.
pub fn crossings(history: &[Event]) -> usize {
    let crossed = |returned: usize, revoke: &Revoke| {
        let late = |event: &&Event| matches!(event, Event::Received(token) if token.is_under(&revoke.target) && token.revision < revoke.revision);
        history[returned..].iter().filter(late).count()
    };
    let revokes = history.iter().enumerate();
    revokes.map(|(at, event)| if let Event::Revoked(revoke) = event { crossed(at, revoke) } else { 0 }).sum()
}

/// Where the reinstatement that follows was sent, and the first revision at which it can have been in force.
fn lift(revoke: &Revoke, after: &[Event]) -> Option<(usize, u64)> {
    let sent =
        after.iter().position(|event| matches!(event, Event::Reinstating(target) if *target == revoke.target))?;
    let known = after.iter().skip(sent).find_map(|event| match event {
        Event::Reinstated { target, revision } if *target == revoke.target => *revision,
        _ => None,
    });
    Some((sent, known.unwrap_or(revoke.revision + 1)))
}

#[test]
fn a_token_outside_of_an_exposure_is_reported_unless_it_was_dead_or_decided_after_the_reinstatement() {
    let target = |kind: TargetKind, name: &str| Target { kind: kind.into(), name: name.to_owned() };
    let policy = target(TargetKind::Policy, "p");
    let token = |id: &str, revision: u64| Token {
        id: id.to_owned(),
        client: "c".to_owned(),
        policy: "p".to_owned(),
        app_group: "g".to_owned(),
        revision,
        expires_at: 130,
    };
    let received = |id: &str, revision: u64| Event::Received(token(id, revision));
    let revoked = |target: &Target| {
        let exposure = HashSet::from(["listed".to_owned()]);
        Event::Revoked(Revoke { target: target.clone(), revision: 10, exposure, at: 100 })
    };
    let sent = || Event::Reinstating(policy.clone());
    let lifted = |revision| Event::Reinstated { target: policy.clone(), revision };
    let breaches = |history: &[Event]| violations(history).len();

    assert_eq!(breaches(&[revoked(&policy), received("listed", 9)]), 0);
    assert_eq!(
        crossings(&[received("early", 9), revoked(&policy), received("listed", 9), sent(), received("new", 12)]),
        1
    );
    assert_eq!(breaches(&[revoked(&policy), received("escaped", 9)]), 1, "the law");
    assert_eq!(breaches(&[revoked(&policy), received("escaped", 10)]), 1, "decided as if there were no revoke");
    assert_eq!(breaches(&[received("early", 9), revoked(&policy)]), 1, "committed before, and not listed");
    for (kind, name, count) in [
        (TargetKind::Client, "c", 1),
        (TargetKind::Client, "another", 0),
        (TargetKind::AppGroup, "g", 1),
        (TargetKind::Policy, "another", 0),
        (TargetKind::Token, "escaped", 1),
    ] {
        assert_eq!(breaches(&[revoked(&target(kind, name)), received("escaped", 9)]), count, "{name}");
    }
    let dead = Event::Received(Token { expires_at: 100, ..token("dead", 9) });
    assert_eq!(breaches(&[revoked(&policy), dead]), 0);

    // The reinstatement excuses what was decided at its revision or later, and received after it was sent: both.
    assert_eq!(breaches(&[revoked(&policy), sent(), received("new", 12), lifted(Some(12))]), 0);
    assert_eq!(breaches(&[revoked(&policy), sent(), lifted(Some(12)), received("new", 13)]), 0);
    assert_eq!(breaches(&[revoked(&policy), sent(), lifted(Some(12)), received("late", 9)]), 1);
    assert_eq!(breaches(&[revoked(&policy), sent(), lifted(Some(12)), received("between", 11)]), 1);
    assert_eq!(breaches(&[revoked(&policy), received("too early", 12), sent(), lifted(Some(12))]), 1);
    // One whose answer was lost: anything after the revoke, but nothing from before it.
    assert_eq!(breaches(&[revoked(&policy), sent(), lifted(None), received("new", 11)]), 0);
    assert_eq!(breaches(&[revoked(&policy), sent(), lifted(None), received("late", 9)]), 1);
    // Another target's reinstatement excuses nothing, and neither does an earlier one of this target.
    let other = Event::Reinstating(target(TargetKind::AppGroup, "g"));
    assert_eq!(breaches(&[revoked(&policy), other, received("escaped", 12)]), 1);
    assert_eq!(breaches(&[sent(), lifted(Some(8)), revoked(&policy), received("escaped", 9)]), 1);
}
