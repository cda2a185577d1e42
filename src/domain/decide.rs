//! Decides whether a caller may have a token, and says why.
//!
//! Pure and total: the request, the state and the time are arguments, and every one of them has an answer.
//!
//! # Invariants
//! - P3: with no policy that grants all of a request, the answer is a [`Denial`]. Only [`decide`] builds a [`Permit`],
//!   and the signer takes nothing else, so signing what was not decided does not compile.
//! - `INV-DECIDE-1`: the order of policies and keys is irrelevant; ties are broken by name.
//! - P8: a permit's lifetime lies within Apple's limit, with the backdating inside it.

use std::cmp::Reverse;
use std::sync::Arc;

use super::app_group::AppGroup;
use super::apple::{self, BACKDATE_S};
use super::enforcement::{self, Enforcement};
use super::key::{Key, KeyKind, KeyState};
use super::operation::Operation;
use super::policy::Policy;
use super::role::Role;
use super::state::State;
use super::target::Target;
use crate::clock::UnixMillis;
use crate::id::{AppGroupName, ClientId, Head, IssuerId, PolicyName};

/// What a client asks for; its parts are already well formed.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct TokenRequest {
    /// Who asks, as authenticated.
    pub client: ClientId,
    /// For which apps.
    pub app_group: AppGroupName,
    /// With which role.
    pub role: Role,
    /// For how long, in seconds; the policy's default where absent.
    pub ttl_s: Option<i64>,
    /// Confined to which reads; empty for a token without a scope.
    pub scope: Vec<Operation>,
}

/// Proof that one request passed policy. Not `Clone`, and consumed by signing: one permit, one token.
#[derive(Debug)]
#[must_use = "a permit that is dropped is a decision nobody acted on"]
pub struct Permit {
    policy: Arc<Policy>,
    key: Arc<Key>,
    group: Arc<AppGroup>,
    issuer_id: IssuerId,
    scope: Vec<Operation>,
    decided_at: UnixMillis,
    expires_at: i64,
    head: Head,
}

/// What is told of a decision that permits.
#[derive(Debug, Clone)]
pub struct Decision {
    /// What it was decided on.
    pub head: Head,
    /// When.
    pub at: UnixMillis,
    /// Who holds the bearer to each limit.
    pub enforced_by: Vec<Enforcement>,
}

/// Why a request was refused; in the order in which a request is looked at, so that a larger reason is a nearer miss.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum DenyReason {
    /// The vault is sealed.
    Sealed,
    /// The client is revoked.
    ClientRevoked,
    /// The issuer that vouches for the client is revoked.
    IssuerRevoked,
    /// No policy names this client for this app group, or there is no such group: one answer.
    NoPolicy,
    /// The account of the app group is revoked.
    AccountRevoked,
    /// The app group is revoked.
    AppGroupRevoked,
    /// The policy is revoked.
    PolicyRevoked,
    /// The policy grants nothing yet, or nothing any more.
    OutsideValidity,
    /// The policy does not grant the role.
    RoleNotGranted,
    /// The policy asks for a scope.
    ScopeRequired,
    /// The policy does not grant an entry of the scope.
    ScopeNotGranted,
    /// The app group has no active key with the role.
    NoActiveKey,
    /// The only keys with the role have others that the policy does not grant.
    KeyExceedsPolicy,
}

impl DenyReason {
    /// Every reason, in order.
    pub const ALL: &[Self] = &[
        Self::Sealed,
        Self::ClientRevoked,
        Self::IssuerRevoked,
        Self::NoPolicy,
        Self::AccountRevoked,
        Self::AppGroupRevoked,
        Self::PolicyRevoked,
        Self::OutsideValidity,
        Self::RoleNotGranted,
        Self::ScopeRequired,
        Self::ScopeNotGranted,
        Self::NoActiveKey,
        Self::KeyExceedsPolicy,
    ];

    /// The stable constant: `ErrorInfo.reason`, metrics label and audit column.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Sealed => "SEALED",
            Self::ClientRevoked => "CLIENT_REVOKED",
            Self::IssuerRevoked => "ISSUER_REVOKED",
            Self::NoPolicy => "NO_POLICY",
            Self::AccountRevoked => "ACCOUNT_REVOKED",
            Self::AppGroupRevoked => "APP_GROUP_REVOKED",
            Self::PolicyRevoked => "POLICY_REVOKED",
            Self::OutsideValidity => "OUTSIDE_VALIDITY",
            Self::RoleNotGranted => "ROLE_NOT_GRANTED",
            Self::ScopeRequired => "SCOPE_REQUIRED",
            Self::ScopeNotGranted => "SCOPE_NOT_GRANTED",
            Self::NoActiveKey => "NO_ACTIVE_KEY",
            Self::KeyExceedsPolicy => "KEY_EXCEEDS_POLICY",
        }
    }

    /// What the caller is told. Which policy, key or pattern it was stays between the broker and its operators.
    pub fn safe_message(self) -> &'static str {
        match self {
            Self::Sealed => "the vault is sealed; an operator must unseal it",
            Self::ClientRevoked => "this client is revoked; an administrator can reinstate it",
            Self::IssuerRevoked => {
                "the issuer that vouches for this client is revoked; an administrator can reinstate it"
            }
            Self::NoPolicy => "no policy grants this client anything for this app group",
            Self::AccountRevoked => "the account of the app group is revoked; an administrator can reinstate it",
            Self::AppGroupRevoked => "the app group is revoked; an administrator can reinstate it",
            Self::PolicyRevoked => "the policy that granted this is revoked; an administrator can reinstate it",
            Self::OutsideValidity => "the policy for this client is not in force at this time",
            Self::RoleNotGranted => "the policy for this client does not grant this role; ask for one that it grants",
            Self::ScopeRequired => "the policy for this client asks for a scope; name the reads the token is for",
            Self::ScopeNotGranted => {
                "the policy for this client does not grant an entry of the scope; entries match exactly, query included"
            }
            Self::NoActiveKey => {
                "the app group has no active key with this role; an operator must import or resume one"
            }
            Self::KeyExceedsPolicy => {
                "the only keys with this role can do more than the policy grants; an operator must import a weaker one"
            }
        }
    }
}

/// A refusal: why, and by which policy where one came near.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Denial {
    /// Why.
    pub reason: DenyReason,
    /// The policy that came nearest.
    pub policy: Option<PolicyName>,
    /// What it was decided on.
    pub head: Head,
}

/// Decides a request on a state at a time.
///
/// # Errors
/// With the nearest miss, where no policy grants all of the request.
pub fn decide(request: &TokenRequest, state: &State, now: UnixMillis) -> Result<Permit, Denial> {
    let deny = |reason, policy: Option<&Arc<Policy>>| Denial {
        reason,
        policy: policy.map(|policy| policy.name.clone()),
        head: state.head(),
    };
    // INVARIANT (P7): a sealed state grants nothing, whoever asks.
    if state.sealed().is_some() {
        return Err(deny(DenyReason::Sealed, None));
    }
    // INVARIANT (P5): what is revoked grants nothing at this head; the fence makes this head the newest.
    if state.is_revoked(&Target::Client(request.client.clone())) {
        return Err(deny(DenyReason::ClientRevoked, None));
    }
    if state.is_client_revoked(&request.client) {
        return Err(deny(DenyReason::IssuerRevoked, None));
    }
    let mut best: Option<Permit> = None;
    let mut miss = deny(DenyReason::NoPolicy, None);
    for policy in state.policies_of(&request.app_group) {
        if !policy.clients.iter().any(|pattern| pattern.matches(&request.client)) {
            continue;
        }
        match grant(request, policy, state, now) {
            Ok(permit) => {
                if best.as_ref().is_none_or(|best| permit.preference() < best.preference()) {
                    best = Some(permit);
                }
            }
            Err(reason) => {
                // Policies come by name, so of equal misses the first name stays.
                if reason > miss.reason {
                    miss = deny(reason, Some(policy));
                }
            }
        }
    }
    best.ok_or(miss)
}

/// What one policy that names the client makes of the request.
fn grant(request: &TokenRequest, policy: &Arc<Policy>, state: &State, now: UnixMillis) -> Result<Permit, DenyReason> {
    let group = state.app_groups().get(&request.app_group).ok_or(DenyReason::NoPolicy)?;
    if state.is_revoked(&Target::Account(group.account.clone())) {
        return Err(DenyReason::AccountRevoked);
    }
    if state.is_revoked(&Target::AppGroup(request.app_group.clone())) {
        return Err(DenyReason::AppGroupRevoked);
    }
    if state.is_revoked(&Target::Policy(policy.name.clone())) {
        return Err(DenyReason::PolicyRevoked);
    }
    if policy.not_before.is_some_and(|start| now < start) || policy.not_after.is_some_and(|end| now >= end) {
        return Err(DenyReason::OutsideValidity);
    }
    // INVARIANT (P3): role, scope and lifetime are the policy's, or less.
    if !policy.roles.contains(request.role) {
        return Err(DenyReason::RoleNotGranted);
    }
    if policy.needs_scope() && request.scope.is_empty() {
        return Err(DenyReason::ScopeRequired);
    }
    if policy.refused_entry(&request.scope, &group.apps).is_some() {
        return Err(DenyReason::ScopeNotGranted);
    }
    let key = route(request.role, policy, group, state)?;
    let issuer_id = state.accounts().get(&key.account).ok_or(DenyReason::NoActiveKey)?.issuer_id.clone();
    // INVARIANT (P8): Apple's limit caps what the request and the policy say.
    let ttl_s =
        request.ttl_s.unwrap_or(policy.default_ttl_s).min(policy.max_ttl_s).min(apple::longest_ttl_s(&request.scope));
    let end = policy.not_after.map_or(i64::MAX, UnixMillis::seconds);
    let expires_at = now.seconds().saturating_add(ttl_s).min(end);
    if expires_at <= now.seconds() {
        return Err(DenyReason::OutsideValidity);
    }
    Ok(Permit {
        policy: Arc::clone(policy),
        key: Arc::clone(key),
        group: Arc::clone(group),
        issuer_id,
        scope: request.scope.clone(),
        decided_at: now,
        expires_at,
        head: state.head(),
    })
}

/// The weakest key that will do.
fn route<'a>(role: Role, policy: &Policy, group: &AppGroup, state: &'a State) -> Result<&'a Arc<Key>, DenyReason> {
    let with_role = || {
        state
            .keys_of(&policy.app_group)
            .iter()
            .filter(|key| key.state == KeyState::Active && key.account == group.account && key.roles.contains(role))
    };
    // INVARIANT (P3): a key whose roles exceed the policy's is never used, even if it is the only one.
    with_role()
        .filter(|key| key.roles.is_subset_of(policy.roles))
        .min_by_key(|key| strength(key, group))
        .ok_or(if with_role().next().is_some() { DenyReason::KeyExceedsPolicy } else { DenyReason::NoActiveKey })
}

/// Not confined to the group by Apple; administrative; number of roles; number of groups; newest import first.
type Strength = (bool, bool, u32, usize, Reverse<u64>);

/// Smaller is weaker, and so preferred; unique, as no two imports share a revision.
fn strength(key: &Key, group: &AppGroup) -> Strength {
    (
        !key.is_confined_to(&group.apps),
        key.roles.is_administrative(),
        key.roles.len(),
        key.app_groups.len(),
        Reverse(key.imported_revision.0),
    )
}

impl Permit {
    /// The weakest key first, then the longest life, then the first name (INV-DECIDE-1).
    fn preference(&self) -> (Strength, Reverse<i64>, &PolicyName) {
        (strength(&self.key, &self.group), Reverse(self.expires_at), &self.policy.name)
    }

    /// The policy that grants it.
    pub fn policy(&self) -> &Policy {
        &self.policy
    }

    /// The key that signs it.
    pub fn key(&self) -> &Key {
        &self.key
    }

    /// The app group it is for.
    pub fn app_group(&self) -> &AppGroup {
        &self.group
    }

    /// The Issuer ID of the key's account.
    pub fn issuer_id(&self) -> &IssuerId {
        &self.issuer_id
    }

    /// The reads it is confined to; empty for none.
    pub fn scope(&self) -> &[Operation] {
        &self.scope
    }

    /// Everything whose revocation ends what was issued to this client under it; the token itself comes on top.
    pub fn revocable_by(&self, client: &ClientId) -> Vec<Target> {
        let mut out = vec![
            Target::Client(client.clone()),
            Target::Policy(self.policy.name.clone()),
            Target::AppGroup(self.group.name.clone()),
            Target::Key(self.key.id.clone()),
            Target::Account(self.key.account.clone()),
        ];
        out.extend(client.issuer().map(Target::Issuer));
        out
    }

    /// When it was decided.
    pub fn decided_at(&self) -> UnixMillis {
        self.decided_at
    }

    /// The latest moment its token may live to, in Unix seconds.
    pub fn expires_at(&self) -> i64 {
        self.expires_at
    }

    /// What it was decided on.
    pub fn head(&self) -> Head {
        self.head
    }

    /// What is told of the decision; it outlives the permit, which signing consumes.
    pub fn decision(&self) -> Decision {
        Decision { head: self.head, at: self.decided_at, enforced_by: self.enforcement() }
    }

    /// The claims of its token, exactly as Apple lists them.
    pub fn claims(&self) -> apple::Claims {
        let team = matches!(self.key.kind, KeyKind::Team);
        apple::Claims {
            iss: team.then(|| self.issuer_id.to_string()),
            sub: (!team).then(|| "user".to_owned()),
            iat: self.decided_at.seconds().saturating_sub(BACKDATE_S),
            exp: self.expires_at,
            aud: apple::AUDIENCE.to_owned(),
            scope: (!self.scope.is_empty()).then(|| self.scope.iter().map(ToString::to_string).collect()),
        }
    }

    /// Who holds the bearer to each limit (P9).
    pub fn enforcement(&self) -> Vec<Enforcement> {
        let confined = self.scope.iter().all(|entry| entry.is_confined_to(&self.group.apps));
        enforcement::of_token(&self.key, &self.group, !self.scope.is_empty(), confined)
    }
}

#[cfg(test)]
mod tests;
