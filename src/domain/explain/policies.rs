//! Each policy of the app group: whether it grants the request, and the first condition that failed.

use std::sync::Arc;

use super::{Considered, listed};
use crate::clock::UnixMillis;
use crate::domain::decide::{DenyReason, Miss, Permit, Terms, TokenRequest, grant};
use crate::domain::pattern::{ClientPattern, VouchedPattern};
use crate::domain::policy::Policy;
use crate::domain::principal::Principal;
use crate::domain::state::State;
use crate::domain::target::Target;
use crate::id::CeilingName;

/// The reason of a policy that does not name the client.
pub(super) const NOT_NAMED: &str = "NOT_NAMED";

/// The reason of a policy that only counts.
pub(super) const SHADOW: &str = "SHADOW";

/// What one policy makes of a request.
#[derive(Debug, Clone, Copy)]
pub(super) enum Verdict<'a> {
    /// It does not name the client.
    NotNamed,
    /// It only counts what it would refuse; with what it would make of it.
    Shadow(Result<(), Miss<'a>>),
    /// A condition fails.
    Misses(Miss<'a>),
    /// It grants; with its terms and the moment at which the token would die.
    Grants(Terms<'a>, i64),
}

/// What one policy makes of a request, by what the decision rests on.
pub(super) fn verdict<'a>(
    policy: &'a Arc<Policy>,
    request: &TokenRequest,
    state: &'a State,
    now: UnixMillis,
) -> Verdict<'a> {
    if !policy.names(&request.principal) {
        return Verdict::NotNamed;
    }
    match grant(request, policy, state, now) {
        granted if policy.shadow => Verdict::Shadow(granted.map(|_| ())),
        Ok((terms, expires_at)) => Verdict::Grants(terms, expires_at),
        Err(miss) => Verdict::Misses(miss),
    }
}

impl Verdict<'_> {
    /// The first condition that fails, as a stable constant; empty where none does.
    pub(super) fn reason(&self) -> &'static str {
        match self {
            Self::NotNamed => NOT_NAMED,
            Self::Shadow(_) => SHADOW,
            Self::Misses(miss) => miss.reason.as_str(),
            Self::Grants(..) => "",
        }
    }
}

/// Each policy of the group, by name.
pub(super) fn considered(
    request: &TokenRequest,
    permit: Option<&Permit>,
    state: &State,
    now: UnixMillis,
) -> Vec<Considered> {
    let one = |policy: &Arc<Policy>| {
        let verdict = verdict(policy, request, state, now);
        Considered {
            kind: "policy",
            name: policy.name.to_string(),
            passes: matches!(verdict, Verdict::Grants(..)),
            reason: verdict.reason(),
            explanation: words(&verdict, policy, request, permit, state, now),
        }
    };
    state.policies_of(&request.app_group).iter().map(one).collect()
}

fn words(
    verdict: &Verdict<'_>,
    policy: &Policy,
    request: &TokenRequest,
    permit: Option<&Permit>,
    state: &State,
    now: UnixMillis,
) -> String {
    match verdict {
        Verdict::NotNamed => not_named(policy, &request.principal),
        Verdict::Shadow(Ok(())) => {
            "it only counts what it would refuse, and grants nothing; this it would not refuse".to_owned()
        }
        Verdict::Shadow(Err(miss)) => format!(
            "it only counts what it would refuse, and grants nothing; this it would refuse ({}): {}",
            miss.reason.as_str(),
            failed(*miss, policy, request, state, now)
        ),
        Verdict::Misses(miss) => failed(*miss, policy, request, state, now),
        Verdict::Grants(terms, expires_at) => {
            let what = format!("key {} would sign, until {}", terms.key.id, UnixMillis::from_seconds(*expires_at));
            match permit {
                Some(permit) if permit.policy().name == policy.name => format!("it grants this: {what}"),
                Some(permit) => {
                    let better = better(permit, terms, *expires_at);
                    format!("it grants this, too ({what}), but policy {} {better}", permit.policy().name)
                }
                None => format!("it would grant this: {what}"),
            }
        }
    }
}

/// What the policy that decides has before another one that grants.
fn better(permit: &Permit, terms: &Terms<'_>, expires_at: i64) -> &'static str {
    if permit.key().id != terms.key.id {
        "has a weaker key"
    } else if permit.expires_at() != expires_at {
        "lets the token live longer"
    } else {
        "comes first by name"
    }
}

/// Whom it names instead; for those whom the same issuer vouches for, what is not as the policy asks.
fn not_named(policy: &Policy, principal: &Principal) -> String {
    let mut unmet = Vec::new();
    for pattern in &policy.clients {
        let ClientPattern::Vouched(vouched) = pattern else { continue };
        if principal.vouched.as_ref().is_some_and(|it| it.issuer.name == vouched.issuer) {
            unmet.extend(vouched.first_unmet(principal).map(|what| mismatch(vouched, what, principal)));
        }
    }
    if unmet.is_empty() { format!("its clients are {}", listed(&policy.clients)) } else { listed(unmet) }
}

fn mismatch(pattern: &VouchedPattern, what: &str, principal: &Principal) -> String {
    let Some(vouched) = &principal.vouched else { return String::new() };
    if what == "subject" {
        let wanted = pattern.subject.as_ref().map(ToString::to_string).unwrap_or_default();
        return format!("its subject must be `{wanted}`, and is `{}`", vouched.subject);
    }
    let wanted: Vec<String> = pattern.claims.get(what).into_iter().flatten().map(ToString::to_string).collect();
    let found = vouched.claims.values(what);
    let found = if found.is_empty() { "is not there".to_owned() } else { format!("is `{}`", found.join("`, `")) };
    format!("claim `{what}` must be `{}`, and {found}", wanted.join("` or `"))
}

/// The condition that failed, and what would be needed.
fn failed(miss: Miss<'_>, policy: &Policy, request: &TokenRequest, state: &State, now: UnixMillis) -> String {
    let ceiling = miss.ceiling.map(CeilingName::as_str).unwrap_or_default();
    let group = state.app_groups().get(&request.app_group);
    match miss.reason {
        DenyReason::AccountRevoked => {
            group.map(|group| revoked(&Target::Account(group.account.clone()), state)).unwrap_or_default()
        }
        DenyReason::AppGroupRevoked => revoked(&Target::AppGroup(request.app_group.clone()), state),
        DenyReason::PolicyRevoked => revoked(&Target::Policy(policy.name.clone()), state),
        DenyReason::OutsideValidity => match policy.not_before.filter(|start| now < *start) {
            Some(start) => format!("it grants nothing before {start}"),
            None => match policy.not_after {
                Some(end) => format!("it grants nothing from {end} on"),
                None => "no token under it would live to the next second".to_owned(),
            },
        },
        DenyReason::OutsideHours => {
            let hours = policy.hours.as_ref();
            let next = hours.and_then(|hours| hours.next_opening(now));
            let next = next.map(|at| format!("; they next begin at {}", UnixMillis::from_seconds(at)));
            let hours = hours.map(ToString::to_string).unwrap_or_default();
            format!("its hours are {hours}{}", next.unwrap_or_default())
        }
        DenyReason::BreakGlassClosed => match state.opened(&policy.name) {
            Some(opened) => {
                let until = UnixMillis::from_seconds(opened.until);
                format!("it is for emergencies; {} had opened it until {until}", opened.stamp.by)
            }
            None => "it is for emergencies, and nobody holds it open".to_owned(),
        },
        DenyReason::CertificateRequired => {
            let found = request.principal.certificate.as_ref().map_or("no certificate", |name| name.as_str());
            format!("it asks for a certificate of {}; there is {found}", listed(&policy.require_mtls))
        }
        DenyReason::CallerOverCeiling => format!("ceiling {ceiling} allows only other callers"),
        DenyReason::RoleNotGranted => format!("it grants {}, and not {}", policy.roles, request.role),
        DenyReason::RoleOverCeiling => format!("ceiling {ceiling} allows nobody {}", request.role),
        DenyReason::ScopeRequired if ceiling.is_empty() => {
            "it asks for a scope in every token, and none is asked for".to_owned()
        }
        DenyReason::ScopeRequired => {
            format!("ceiling {ceiling} asks for a scope in every token, and none is asked for")
        }
        DenyReason::ScopeNotGranted => {
            let entry = group.and_then(|group| policy.refused_entry(&request.scope, &group.apps));
            let entry = entry.map(ToString::to_string).unwrap_or_default();
            format!("it does not grant `{entry}`; entries match exactly, query included")
        }
        DenyReason::NoActiveKey => format!("no active key of the app group has the role {}", request.role),
        DenyReason::KeyExceedsPolicy => {
            format!("each key with the role {} has other roles that are not granted", request.role)
        }
        DenyReason::TeamKeyOverCeiling => {
            format!("ceiling {ceiling} allows no team key here, and no individual key will do")
        }
        // What the decision says before it looks at any policy.
        DenyReason::Sealed
        | DenyReason::ClientRevoked
        | DenyReason::IssuerRevoked
        | DenyReason::IssuerNotTrusted
        | DenyReason::NoPolicy => miss.reason.safe_message().to_owned(),
    }
}

/// That something is revoked, by whom, and what lifts that.
pub(super) fn revoked(target: &Target, state: &State) -> String {
    let by = state
        .revocation(target)
        .map(|revocation| format!(" since {}, by {}: {}", revocation.stamp.at, revocation.stamp.by, revocation.reason));
    format!("{target} is revoked{}; `p8broker reinstate {target}` lifts that", by.unwrap_or_default())
}
