//! Decides whether a caller may have a token, and says why.
//!
//! Pure and total: the request, the state and the time are arguments, and every one of them has an answer.
//!
//! Steps: is the caller still whom it was authenticated as; which policies of the group name it; what each of them grants,
//! under the ceilings ([`weigh`]); the best of those that grant all of it; what those that only count would have refused.
//!
//! # Invariants
//! - P3: with no policy that grants all of a request, the answer is a [`Denial`]. Only [`decide`] builds a [`Permit`],
//!   and the signer takes nothing else, so signing what was not decided does not compile.
//! - `INV-DECIDE-1`: the order of policies and keys is irrelevant; ties are broken by name.
//! - `INV-CEILING-1`: what a ceiling forbids no policy grants.
//! - P8: a permit's lifetime lies within Apple's limit, with the backdating inside it.

mod permit;
mod reason;
mod route;
mod shadow;

use std::cell::RefCell;
use std::cmp::Ordering;
use std::sync::Arc;

use super::app_group::AppGroup;
use super::apple;
use super::ceiling::{Bounds, Callers};
use super::key::Key;
use super::operation::Operation;
use super::policy::Policy;
use super::principal::Principal;
use super::role::{Role, RoleSet};
use super::state::{GroupPolicies, State};
use super::target::Target;
use crate::clock::UnixMillis;
use crate::id::{AppGroupName, CeilingName, Head, PolicyName};
pub use permit::{Decision, Permit};
pub use reason::DenyReason;
use route::route;
pub use route::{PassedOver, passed_over};
pub(super) use route::{has_individual_keys, strength};
pub use shadow::Shadow;

/// What a client asks for; its parts are already well formed.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct TokenRequest {
    /// Who asks, as authenticated.
    pub principal: Principal,
    /// For which apps.
    pub app_group: AppGroupName,
    /// With which role.
    pub role: Role,
    /// For how long, in seconds; the policy's default where absent.
    pub ttl_s: Option<i64>,
    /// Confined to which reads; empty for a token without a scope.
    pub scope: Vec<Operation>,
}

/// A refusal: why, and by which policy where one came near.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Denial {
    /// Why.
    pub reason: DenyReason,
    /// The policy that came nearest.
    pub policy: Option<PolicyName>,
    /// The ceiling that stood in its way, where one did.
    pub ceiling: Option<CeilingName>,
    /// What it was decided on.
    pub head: Head,
}

/// Why one policy does not grant a request.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Miss<'a> {
    /// The first condition that fails.
    pub reason: DenyReason,
    /// The ceiling that sets it, where one does.
    pub ceiling: Option<&'a CeilingName>,
}

impl From<DenyReason> for Miss<'_> {
    fn from(reason: DenyReason) -> Self {
        Self { reason, ceiling: None }
    }
}

/// What one policy grants one caller with one role, whatever the scope and life that are asked for.
#[derive(Debug, Clone, Copy)]
pub struct Terms<'a> {
    /// The policy.
    pub policy: &'a Arc<Policy>,
    /// The key that signs.
    pub key: &'a Arc<Key>,
    /// The app group.
    pub group: &'a Arc<AppGroup>,
    /// The longest time to live, in seconds, under the policy and the ceilings.
    pub max_ttl_s: i64,
    /// No token lives past this moment, in Unix seconds.
    pub ends_at: i64,
    /// Whether the token must have a scope, by the policy or a ceiling.
    pub needs_scope: bool,
}

/// Decides a request on a state at a time.
///
/// # Errors
/// With the nearest miss, where no policy grants all of the request.
pub fn decide(request: &TokenRequest, state: &State, now: UnixMillis) -> Result<Permit, Denial> {
    let deny = |reason| Denial { reason, policy: None, ceiling: None, head: state.head() };
    // INVARIANT (P7): a sealed state grants nothing, whoever asks.
    if state.sealed().is_some() {
        return Err(deny(DenyReason::Sealed));
    }
    // INVARIANT (P5): what is revoked grants nothing at this head; the fence makes this head the newest.
    if let Some(reason) = state.refuses(&request.principal) {
        return Err(deny(reason));
    }
    let Some(policies) = state.group_policies(&request.app_group) else { return Err(deny(DenyReason::NoPolicy)) };
    let ground = Ground::of(&request.app_group, state);
    let (terms, expires_at) = match ground.best(request, policies, state, now) {
        Ok(granted) => granted,
        Err(None) => return Err(deny(DenyReason::NoPolicy)),
        Err(Some((miss, policy))) => {
            let (policy, ceiling) = (Some(policy.clone()), miss.ceiling.cloned());
            return Err(Denial { policy, ceiling, ..deny(miss.reason) });
        }
    };
    let shadows = ground.shadows(request, policies, state, now);
    Permit::new(&terms, expires_at, &request.scope, shadows, state, now).ok_or_else(|| deny(DenyReason::NoActiveKey))
}

/// What one policy grants one caller with one role; what `decide` rests on, for those who explain it.
///
/// # Errors
/// With the first condition that fails.
pub fn weigh<'a>(
    principal: &Principal,
    role: Role,
    policy: &'a Arc<Policy>,
    state: &'a State,
    now: UnixMillis,
) -> Result<Terms<'a>, Miss<'a>> {
    let ground = Ground::of(&policy.app_group, state);
    ground.terms(&ground.caller(principal), role, policy, state, now)
}

/// What one policy that names the caller makes of a whole request: its terms, and the moment at which the token would die.
///
/// # Errors
/// With the first condition that fails.
pub fn grant<'a>(
    request: &TokenRequest,
    policy: &'a Arc<Policy>,
    state: &'a State,
    now: UnixMillis,
) -> Result<(Terms<'a>, i64), Miss<'a>> {
    let ground = Ground::of(&request.app_group, state);
    ground.grant(request, &ground.caller(&request.principal), policy, state, now)
}

/// What keys of a group are looked at under: the roles that ceilings leave of those granted, and the ceiling under which no
/// team key signs, where there is one.
pub(super) fn routing<'a>(
    granted: RoleSet,
    group: &AppGroupName,
    state: &'a State,
) -> (RoleSet, Result<(), &'a CeilingName>) {
    let ground = Ground::of(group, state);
    (granted.without(ground.never_roles), ground.team_keys)
}

/// What is the same for every policy of one group, and each condition of a decision as a part of its own.
pub(super) struct Ground<'a> {
    group: Option<&'a Arc<AppGroup>>,
    account_revoked: bool,
    group_revoked: bool,
    keys: &'a [Arc<Key>],
    bounds: Vec<&'a Bounds>,
    max_ttl_s: i64,
    never_roles: RoleSet,
    needs_scope: Option<&'a CeilingName>,
    team_keys: Result<(), &'a CeilingName>,
    /// Keys by what they were looked for with: most policies of a group grant the same roles.
    routes: RefCell<Vec<(Role, RoleSet, Routed<'a>)>>,
}

/// Who asks, and the ceiling under which nobody like that gets anything, where there is one: the same for every policy.
#[derive(Clone, Copy)]
struct Caller<'p, 'a> {
    principal: &'p Principal,
    forbidden_by: Option<&'a CeilingName>,
}

/// The key that signs, or why there is none.
type Routed<'a> = Result<&'a Arc<Key>, Miss<'a>>;

impl<'a> Ground<'a> {
    /// What there is for policies of this group.
    pub(super) fn of(name: &AppGroupName, state: &'a State) -> Self {
        Self::under(name, state.bounds_of(name).collect(), state)
    }

    fn under(name: &AppGroupName, bounds: Vec<&'a Bounds>, state: &'a State) -> Self {
        let group = state.app_groups().get(name);
        let keys = state.keys_of(name);
        let account = group.map(|group| Target::Account(group.account.clone()));
        let forbids = bounds.iter().find_map(|bounds| bounds.forbids_team_keys());
        Self {
            account_revoked: account.is_some_and(|account| state.is_revoked(&account)),
            group_revoked: group.is_some_and(|group| state.is_revoked(&Target::AppGroup(group.name.clone()))),
            never_roles: bounds.iter().fold(RoleSet::default(), |roles, bounds| roles.union(bounds.never_roles())),
            max_ttl_s: bounds.iter().filter_map(|bounds| bounds.max_ttl()).fold(i64::MAX, |least, (s, _)| least.min(s)),
            needs_scope: bounds.iter().find_map(|bounds| bounds.requires_scope()),
            team_keys: forbids.filter(|_| has_individual_keys(keys)).map_or(Ok(()), Err),
            group,
            keys,
            bounds,
            routes: RefCell::default(),
        }
    }

    fn caller<'p>(&self, principal: &'p Principal) -> Caller<'p, 'a> {
        let forbidden_by = self.bounds.iter().find_map(|bounds| bounds.forbids_caller(principal));
        Caller { principal, forbidden_by }
    }

    fn route(&self, role: Role, granted: RoleSet, group: &AppGroup) -> Routed<'a> {
        let mut routes = self.routes.borrow_mut();
        if let Some((.., known)) = routes.iter().find(|(asked, roles, _)| (*asked, *roles) == (role, granted)) {
            return *known;
        }
        let forbidden = self.bounds.iter().find_map(|bounds| bounds.forbids_role(role));
        let found = match forbidden {
            Some(ceiling) => Err(Miss { reason: DenyReason::RoleOverCeiling, ceiling: Some(ceiling) }),
            None => route(role, granted.without(self.never_roles), self.team_keys, group, self.keys),
        };
        routes.push((role, granted, found));
        found
    }

    fn terms(
        &self,
        caller: &Caller<'_, 'a>,
        role: Role,
        policy: &'a Arc<Policy>,
        state: &'a State,
        now: UnixMillis,
    ) -> Result<Terms<'a>, Miss<'a>> {
        let group = self.standing(policy, state)?;
        let ends_at = in_force(policy, state, now)?;
        if !has_certificate(caller.principal, policy) {
            return Err(DenyReason::CertificateRequired.into());
        }
        // INVARIANT (INV-CEILING-1)
        if let Some(ceiling) = caller.forbidden_by {
            return Err(Miss { reason: DenyReason::CallerOverCeiling, ceiling: Some(ceiling) });
        }
        self.offer(role, policy, group, ends_at)
    }

    /// The group, where neither it, nor its account, nor the policy is revoked.
    pub(super) fn standing(&self, policy: &Policy, state: &State) -> Result<&'a Arc<AppGroup>, Miss<'a>> {
        let group = self.group.ok_or(DenyReason::NoPolicy)?;
        if self.account_revoked {
            return Err(DenyReason::AccountRevoked.into());
        }
        if self.group_revoked {
            return Err(DenyReason::AppGroupRevoked.into());
        }
        if state.is_policy_revoked(&policy.name) {
            return Err(DenyReason::PolicyRevoked.into());
        }
        Ok(group)
    }

    /// Who may get tokens at all, by ceiling.
    pub(super) fn callers(&self) -> impl Iterator<Item = (&'a Callers, &'a CeilingName)> {
        self.bounds.iter().flat_map(|bounds| bounds.callers())
    }

    /// What the policy grants with the role to whoever is its client and may have tokens now.
    pub(super) fn offer(
        &self,
        role: Role,
        policy: &'a Arc<Policy>,
        group: &'a Arc<AppGroup>,
        ends_at: i64,
    ) -> Result<Terms<'a>, Miss<'a>> {
        // INVARIANT (P3): role, scope and lifetime are the policy's, or less.
        if !policy.roles.contains(role) {
            return Err(DenyReason::RoleNotGranted.into());
        }
        let key = self.route(role, policy.roles, group)?;
        Ok(Terms {
            policy,
            key,
            group,
            max_ttl_s: self.max_ttl_s.min(policy.max_ttl_s),
            ends_at,
            needs_scope: policy.needs_scope() || self.needs_scope.is_some(),
        })
    }

    fn grant(
        &self,
        request: &TokenRequest,
        caller: &Caller<'_, 'a>,
        policy: &'a Arc<Policy>,
        state: &'a State,
        now: UnixMillis,
    ) -> Result<(Terms<'a>, i64), Miss<'a>> {
        let terms = match self.terms(caller, request.role, policy, state, now) {
            // What is asked comes before what there are keys for: a scope that is missing is the caller's to mend.
            Err(miss) if miss.reason < DenyReason::ScopeRequired => return Err(miss),
            other => other,
        };
        if request.scope.is_empty() && (policy.needs_scope() || self.needs_scope.is_some()) {
            let ceiling = self.needs_scope.filter(|_| !policy.needs_scope());
            return Err(Miss { reason: DenyReason::ScopeRequired, ceiling });
        }
        if self.group.is_some_and(|group| policy.refused_entry(&request.scope, &group.apps).is_some()) {
            return Err(DenyReason::ScopeNotGranted.into());
        }
        let terms = terms?;
        // INVARIANT (P8): Apple's limit caps what the request and the policy say.
        let longest = terms.max_ttl_s.min(apple::longest_ttl_s(&request.scope));
        let ttl_s = request.ttl_s.unwrap_or(policy.default_ttl_s).min(longest);
        let expires_at = now.seconds().saturating_add(ttl_s).min(terms.ends_at);
        if expires_at <= now.seconds() {
            return Err(DenyReason::OutsideValidity.into());
        }
        Ok((terms, expires_at))
    }

    /// The best of what the policies that name the caller grant; or the nearest miss, where one names it at all.
    fn best(
        &self,
        request: &TokenRequest,
        policies: &'a GroupPolicies,
        state: &'a State,
        now: UnixMillis,
    ) -> Result<(Terms<'a>, i64), Option<(Miss<'a>, &'a PolicyName)>> {
        let mut best: Option<(Terms<'a>, i64)> = None;
        let mut nearest: Option<(Miss<'a>, &'a PolicyName)> = None;
        let caller = self.caller(&request.principal);
        for policy in policies.naming(&request.principal).filter(|policy| !policy.shadow) {
            match self.grant(request, &caller, policy, state, now) {
                // Policies come by name, so of equals the first name stays (INV-DECIDE-1).
                Ok(granted) => {
                    if best.as_ref().is_none_or(|known| is_better(&granted, known)) {
                        best = Some(granted);
                    }
                }
                Err(miss) => {
                    if nearest.as_ref().is_none_or(|(known, _)| miss.reason > known.reason) {
                        nearest = Some((miss, &policy.name));
                    }
                }
            }
        }
        best.ok_or(nearest)
    }
}

/// Whether what one policy grants goes before what another does: the weaker key first, then the longer life.
fn is_better((terms, expires_at): &(Terms<'_>, i64), (known, known_expires_at): &(Terms<'_>, i64)) -> bool {
    let by_key = if Arc::ptr_eq(terms.key, known.key) {
        Ordering::Equal
    } else {
        strength(terms.key, terms.group).cmp(&strength(known.key, known.group))
    };
    by_key.then(known_expires_at.cmp(expires_at)).is_lt()
}

/// Whether the policy grants anything now, and the moment from which it will not, in Unix seconds.
pub(super) fn in_force(policy: &Policy, state: &State, now: UnixMillis) -> Result<i64, DenyReason> {
    let mut ends_at = policy.not_after.map_or(i64::MAX, UnixMillis::seconds);
    // Tokens live whole seconds: none fits into the second in which the policy ends.
    if policy.not_before.is_some_and(|start| now < start) || now.seconds() >= ends_at {
        return Err(DenyReason::OutsideValidity);
    }
    if let Some(hours) = &policy.hours {
        ends_at = ends_at.min(hours.open_until(now).ok_or(DenyReason::OutsideHours)?);
    }
    if policy.break_glass {
        let opened = state.opened(&policy.name).filter(|opened| now.seconds() < opened.until);
        ends_at = ends_at.min(opened.ok_or(DenyReason::BreakGlassClosed)?.until);
    }
    Ok(ends_at)
}

/// Whether the caller presents one of the certificates that the policy asks for.
pub(super) fn has_certificate(principal: &Principal, policy: &Policy) -> bool {
    let presented = principal.certificate.as_ref();
    policy.require_mtls.is_empty()
        || presented.is_some_and(|name| policy.require_mtls.iter().any(|pattern| pattern.names(name)))
}

#[cfg(test)]
pub(super) mod tests;
