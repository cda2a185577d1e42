//! What a decision that grants leaves behind: the permit that signing consumes, and what is told of it.

use std::sync::Arc;

use super::{Shadow, Terms};
use crate::clock::UnixMillis;
use crate::domain::app_group::AppGroup;
use crate::domain::apple::{self, BACKDATE_S};
use crate::domain::enforcement::{self, Enforcement};
use crate::domain::key::Key;
use crate::domain::operation::Operation;
use crate::domain::policy::Policy;
use crate::domain::principal::Principal;
use crate::domain::quota::Quota;
use crate::domain::state::State;
use crate::domain::target::Target;
use crate::id::{Head, IssuerId, PolicyName};

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
    shadows: Vec<Shadow>,
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
    /// The policy that grants it and its quota, where it has one: handing the token out counts against it.
    pub quota: Option<(PolicyName, Quota)>,
    /// The policy, where somebody holds it open for an emergency.
    pub break_glass: Option<PolicyName>,
    /// What would have been refused by policies and ceilings that only count.
    pub shadows: Vec<Shadow>,
}

impl Permit {
    /// `None` where the key's account is not there, which no state that was planned has.
    pub(super) fn new(
        terms: &Terms<'_>,
        expires_at: i64,
        scope: &[Operation],
        shadows: Vec<Shadow>,
        state: &State,
        now: UnixMillis,
    ) -> Option<Self> {
        Some(Self {
            issuer_id: state.accounts().get(&terms.key.account)?.issuer_id.clone(),
            policy: Arc::clone(terms.policy),
            key: Arc::clone(terms.key),
            group: Arc::clone(terms.group),
            scope: scope.to_vec(),
            decided_at: now,
            expires_at,
            head: state.head(),
            shadows,
        })
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

    /// What would have been refused by policies and ceilings that only count.
    pub fn shadows(&self) -> &[Shadow] {
        &self.shadows
    }

    /// Everything whose revocation ends what was issued to this caller under it; the token itself comes on top.
    pub fn revocable_by(&self, caller: &Principal) -> Vec<Target> {
        let mut out = vec![
            Target::Client(caller.client.clone()),
            Target::Policy(self.policy.name.clone()),
            Target::AppGroup(self.group.name.clone()),
            Target::Key(self.key.id.clone()),
            Target::Account(self.key.account.clone()),
        ];
        out.extend(caller.certificate_beside().cloned().map(Target::Client));
        out.extend(caller.client.issuer().map(Target::Issuer));
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
        Decision {
            head: self.head,
            at: self.decided_at,
            enforced_by: self.enforcement(),
            quota: self.quota().map(|quota| (self.policy.name.clone(), quota)),
            break_glass: self.policy.break_glass.then(|| self.policy.name.clone()),
            shadows: self.shadows.clone(),
        }
    }

    /// The quota that its token counts against.
    pub fn quota(&self) -> Option<Quota> {
        self.policy.quota.filter(Quota::is_bounded)
    }

    /// The claims of its token, exactly as Apple lists them.
    pub fn claims(&self) -> apple::Claims {
        let team = self.key.is_team();
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
        enforcement::of_token(&self.key, &self.group, &self.policy, &self.scope)
    }
}
