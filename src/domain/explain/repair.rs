//! What mends one condition that fails: a sentence, and the same as something that can be tried.
//!
//! Policies are mended by what widens them least. What the caller can do itself (ask with a scope, show a certificate) comes
//! before widening a policy; what an administrator has set (ceilings, revocations, keys) no policy mends, and the sentence
//! says so.

mod common;
mod keys;
mod scope;

use std::sync::Arc;

use super::policies::Verdict;
use super::smallest::World;
use crate::clock::UnixMillis;
use crate::domain::ceiling::Ceiling;
use crate::domain::change::{Change, Object};
use crate::domain::claims::ClaimConditions;
use crate::domain::decide::{DenyReason, Miss, TokenRequest};
use crate::domain::glob::ClaimGlob;
use crate::domain::operation::OperationTemplate;
use crate::domain::pattern::{ClientPattern, VouchedPattern};
use crate::domain::policy::{DEFAULT_TTL_S, Policy};
use crate::domain::principal::{Principal, Vouched};
use crate::domain::role::RoleSet;
use crate::domain::target::Target;
use crate::id::{ClientId, PolicyName};
pub(super) use common::common;

/// How long a break-glass policy is held open, for the trial, in seconds.
const HELD_OPEN_S: i64 = 3600;

/// One thing that is mended.
#[derive(Debug)]
pub(super) struct Step {
    /// What to do.
    pub(super) sentence: String,
    /// How many changes it is.
    pub(super) changes: usize,
    /// Whether neither policies nor the caller can do it.
    pub(super) beyond_policies: bool,
    /// The same, to be tried.
    pub(super) work: Work,
}

/// What a step does.
#[derive(Debug)]
pub(super) enum Work {
    /// The policy becomes this.
    Policy(Box<Policy>),
    /// The caller asks so.
    Request(Box<TokenRequest>),
    /// This happens.
    Record(Box<Change>),
}

impl Step {
    fn policy(sentence: String, policy: Policy) -> Self {
        Self { sentence, changes: 1, beyond_policies: false, work: Work::Policy(Box::new(policy)) }
    }

    fn caller(sentence: String, request: TokenRequest) -> Self {
        Self { sentence, changes: 1, beyond_policies: false, work: Work::Request(Box::new(request)) }
    }

    fn beyond(sentence: String, change: Change) -> Self {
        Self { sentence, changes: 1, beyond_policies: true, work: Work::Record(Box::new(change)) }
    }

    fn put(sentence: String, put: Vec<Object>) -> Self {
        Self::beyond(sentence, Change::DocumentApplied { put, removed: Vec::new() })
    }

    fn reinstate(target: Target) -> Self {
        let sentence = format!("reinstate {target}: an administrator runs `p8broker reinstate {target} --reason ...`");
        Self::beyond(sentence, Change::Reinstated { target, reason: String::new() })
    }
}

/// A policy of its own for what is asked, and nothing else.
pub(super) fn new_policy(world: &World<'_>) -> Option<(Policy, Step)> {
    let request = &world.request;
    let client = exact(&request.principal)?;
    let operations = request.scope.iter().filter_map(|entry| OperationTemplate::parse(&entry.to_string()).ok());
    let policy = Policy {
        name: free_name(world)?,
        clients: vec![client],
        app_group: request.app_group.clone(),
        roles: [request.role].into_iter().collect(),
        max_ttl_s: DEFAULT_TTL_S,
        default_ttl_s: DEFAULT_TTL_S,
        operations: operations.collect(),
        require_scope: false,
        not_before: None,
        not_after: None,
        features: Vec::new(),
        quota: None,
        hours: None,
        require_mtls: Vec::new(),
        break_glass: false,
        shadow: false,
    };
    let only = if policy.operations.is_empty() { "" } else { ", only for these reads" };
    let sentence = format!(
        "add a policy, such as {}, that grants {} on app group {} to exactly {}{only}",
        policy.name,
        request.role,
        request.app_group,
        policy.clients.first()?
    );
    let step = Step::policy(sentence, policy.clone());
    Some((policy, step))
}

fn free_name(world: &World<'_>) -> Option<PolicyName> {
    let role = world.request.role.as_str().to_ascii_lowercase().replace('_', "-");
    let group: String = world.request.app_group.as_str().chars().take(24).collect();
    let taken = |name: &PolicyName| {
        world.state.policies().contains_key(name) || world.state.is_revoked(&Target::Policy(name.clone()))
    };
    let numbered = (2..1000_u32).map(|nth| format!("{group}-{role}-{nth}"));
    let names = std::iter::once(format!("{group}-{role}")).chain(numbered);
    names.filter_map(|name| PolicyName::parse(&name).ok()).find(|name| !taken(name))
}

/// What mends the first condition of a policy that fails; `None` where nothing does.
pub(super) fn mend(world: &World<'_>, policy: &Arc<Policy>, found: &Verdict<'_>) -> Option<Step> {
    let name = &policy.name;
    match found {
        Verdict::NotNamed => {
            let client = exact(&world.request.principal)?;
            let sentence = format!("add `{client}` to the clients of policy {name}");
            let clients = policy.clients.iter().cloned().chain([client]).collect();
            Some(Step::policy(sentence, Policy { clients, ..Policy::clone(policy) }))
        }
        Verdict::Shadow(_) => {
            let sentence = format!("let policy {name} grant: take `shadow: true` from it");
            Some(Step::policy(sentence, Policy { shadow: false, ..Policy::clone(policy) }))
        }
        Verdict::Misses(miss) => of_miss(world, policy, *miss),
        Verdict::Grants(..) => None,
    }
}

fn of_miss(world: &World<'_>, policy: &Policy, miss: Miss<'_>) -> Option<Step> {
    let (name, role) = (&policy.name, world.request.role);
    match miss.reason {
        DenyReason::PolicyRevoked => Some(Step::reinstate(Target::Policy(name.clone()))),
        DenyReason::OutsideValidity => validity(world, policy),
        DenyReason::OutsideHours => {
            let hours = policy.hours.as_ref()?;
            let sentence = format!("widen the hours of policy {name} ({hours}) to take in {}", world.now);
            Some(Step::policy(sentence, Policy { hours: None, ..policy.clone() }))
        }
        DenyReason::BreakGlassClosed => {
            let until = world.now.seconds().saturating_add(HELD_OPEN_S);
            let change = Change::BreakGlassOpened { policy: name.clone(), until, reason: String::new() };
            let sentence = format!("open the break-glass policy {name}");
            // Whoever may open it could have written it without.
            Some(Step { beyond_policies: false, ..Step::beyond(sentence, change) })
        }
        DenyReason::CertificateRequired => certificate(world, policy),
        DenyReason::CallerOverCeiling => {
            let client = exact(&world.request.principal)?;
            let what = format!("allows only other callers than {}", world.request.principal.client);
            ceiling(world, miss, &what, |ceiling| ceiling.callers.clients.push(client))
        }
        DenyReason::RoleNotGranted => {
            let roles = policy.roles.union([role].into_iter().collect());
            let sentence = format!("add the role {role} to policy {name}");
            Some(Step::policy(sentence, Policy { roles, ..policy.clone() }))
        }
        DenyReason::RoleOverCeiling => ceiling(world, miss, &format!("allows nobody {role}"), |ceiling| {
            let role: RoleSet = [role].into_iter().collect();
            ceiling.never_roles = ceiling.never_roles.without(role);
        }),
        DenyReason::ScopeRequired => scope::ask_with_one(world, policy),
        DenyReason::ScopeNotGranted => scope::grant_it(world, policy),
        DenyReason::NoActiveKey | DenyReason::KeyExceedsPolicy | DenyReason::TeamKeyOverCeiling => {
            keys::mend(world, policy)
        }
        // What is mended for every policy, or is not said of one.
        DenyReason::Sealed
        | DenyReason::ClientRevoked
        | DenyReason::IssuerRevoked
        | DenyReason::IssuerNotTrusted
        | DenyReason::AccountRevoked
        | DenyReason::AppGroupRevoked
        | DenyReason::NoPolicy => None,
    }
}

fn validity(world: &World<'_>, policy: &Policy) -> Option<Step> {
    let (name, now) = (&policy.name, world.now);
    if let Some(start) = policy.not_before.filter(|start| now < *start) {
        let sentence = format!("move not_before of policy {name} from {start} to {now} or before");
        return Some(Step::policy(sentence, Policy { not_before: Some(now), ..policy.clone() }));
    }
    let end = policy.not_after.filter(|end| end.seconds() <= now.seconds())?;
    let ttl_s = world.request.ttl_s.unwrap_or(policy.default_ttl_s);
    let later = UnixMillis::from_seconds(now.seconds().saturating_add(ttl_s));
    let sentence = format!("move not_after of policy {name} from {end} past {now}, to {later} or later");
    Some(Step::policy(sentence, Policy { not_after: Some(later), ..policy.clone() }))
}

/// A caller with a bearer token can show a certificate beside it; one by certificate can show no other.
fn certificate(world: &World<'_>, policy: &Policy) -> Option<Step> {
    let (name, principal) = (&policy.name, &world.request.principal);
    if principal.vouched.is_some() {
        let example = |pattern: &ClientPattern| ClientId::parse(&pattern.to_string().replace('*', "x")).ok();
        let certificate = Some(policy.require_mtls.iter().find_map(example)?);
        let sentence = format!("connect with a certificate of {}", super::listed(&policy.require_mtls));
        let principal = Principal { certificate, ..principal.clone() };
        return Some(Step::caller(sentence, TokenRequest { principal, ..world.request.clone() }));
    }
    let client = exact(principal)?;
    let sentence = format!("add `{client}` to require_mtls of policy {name}");
    let require_mtls = policy.require_mtls.iter().cloned().chain([client]).collect();
    Some(Step::policy(sentence, Policy { require_mtls, ..policy.clone() }))
}

fn ceiling(world: &World<'_>, miss: Miss<'_>, what: &str, change: impl FnOnce(&mut Ceiling)) -> Option<Step> {
    let name = miss.ceiling?;
    let mut ceiling = Ceiling::clone(world.state.ceilings().get(name)?);
    change(&mut ceiling);
    let sentence = format!("no policy may: ceiling {name} {what}; an administrator would have to change it");
    Some(Step::put(sentence, vec![Object::Ceiling(Arc::new(ceiling))]))
}

/// A pattern that means this caller and nobody else, as narrow as documents ask for.
fn exact(principal: &Principal) -> Option<ClientPattern> {
    let Some(vouched) = &principal.vouched else { return ClientPattern::name(principal.client.as_str()).ok() };
    let subject = glob(&vouched.subject)?;
    let none = std::iter::once(ClaimConditions::new());
    let conditions = none.chain(vouched.claims.iter().filter_map(|(name, values)| {
        let value = values.first().and_then(|value| glob(value))?;
        Some(ClaimConditions::from([(name.to_owned(), vec![value])]))
    }));
    let is_anchored = |claims: &ClaimConditions| says_whose(vouched, &subject, claims);
    let claims = conditions.into_iter().find(is_anchored)?;
    Some(ClientPattern::Vouched(VouchedPattern { issuer: vouched.issuer.name.clone(), subject: Some(subject), claims }))
}

fn says_whose(vouched: &Vouched, subject: &ClaimGlob, claims: &ClaimConditions) -> bool {
    let issuer = &vouched.issuer;
    issuer.kind.is_anchored(Some(subject), claims) || issuer.kind.is_anchored(issuer.subject.as_ref(), &issuer.claims)
}

fn glob(value: &str) -> Option<ClaimGlob> {
    ClaimGlob::parse(value).ok().filter(ClaimGlob::is_exact)
}
