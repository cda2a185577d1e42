//! Who enforces what (P9): for each limit of a policy or token, the one who holds its bearer to it.

use serde::{Deserialize, Serialize};

use super::app_group::AppGroup;
use super::decide::{passed_over, routing};
use super::feature::{self, Access};
use super::key::{AppAccess, Key, KeyKind};
use super::operation::{Operation, OperationTemplate};
use super::policy::Policy;
use super::quota::Quota;
use super::state::State;

/// Who enforces a limit.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "SCREAMING_SNAKE_CASE")]
pub enum EnforcedBy {
    /// Apple, by the roles of the key.
    AppleKeyRole,
    /// Apple, by the token's `scope` claim.
    AppleScope,
    /// Apple, by the app access of the individual key's user, as declared here.
    AppleIndividualAccess,
    /// The broker, when it issues the token.
    BrokerAtIssue,
    /// Nobody: the limit is an agreement with the bearer.
    Nobody,
}

impl EnforcedBy {
    /// The spelling in answers.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::AppleKeyRole => "APPLE_KEY_ROLE",
            Self::AppleScope => "APPLE_SCOPE",
            Self::AppleIndividualAccess => "APPLE_INDIVIDUAL_ACCESS",
            Self::BrokerAtIssue => "BROKER_AT_ISSUE",
            Self::Nobody => "NOBODY",
        }
    }
}

/// One limit, and who holds the bearer to it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Enforcement {
    /// Which: `lifetime`, `role`, `app_group`, `operations`, `features` or, of a policy, `quota`.
    pub limit: &'static str,
    /// Who.
    pub by: EnforcedBy,
    /// A sentence for a reader who knows nothing of Apple.
    pub explanation: String,
}

fn entry(limit: &'static str, by: EnforcedBy, explanation: impl Into<String>) -> Enforcement {
    Enforcement { limit, by, explanation: explanation.into() }
}

/// What holds the bearer of one token.
pub(super) fn of_token(key: &Key, group: &AppGroup, policy: &Policy, scope: &[Operation]) -> Vec<Enforcement> {
    let has_scope = !scope.is_empty();
    let app_group = if key.is_confined_to(&group.apps) {
        let since = key.declared_at().map(|at| at.to_string()).unwrap_or_default();
        let text =
            format!("the key belongs to one user, whose apps (as declared on {since}) all lie within the app group");
        entry("app_group", EnforcedBy::AppleIndividualAccess, text)
    } else if has_scope && scope.iter().all(|entry| entry.is_confined_to(&group.apps)) {
        entry("app_group", EnforcedBy::AppleScope, "every read in the token's scope names an app of the group")
    } else {
        let text = format!("{}: the bearer can use the token on apps outside the app group", reach(key));
        entry("app_group", EnforcedBy::Nobody, text)
    };
    let mut out = vec![
        entry(
            "lifetime",
            EnforcedBy::BrokerAtIssue,
            "the broker signs the expiry into the token; Apple refuses the token after it",
        ),
        entry(
            "role",
            EnforcedBy::AppleKeyRole,
            format!("Apple grants the bearer what the key's roles allow: {}", key.roles),
        ),
        app_group,
        if has_scope {
            let text = "Apple refuses every request that the token's scope does not name";
            entry("operations", EnforcedBy::AppleScope, text)
        } else {
            let text = "the token has no scope: the bearer can read and write whatever the key's roles allow";
            entry("operations", EnforcedBy::Nobody, text)
        },
    ];
    if !policy.features.is_empty() {
        out.push(if has_scope { features_of_scope(scope, policy, group) } else { features_without_scope(policy) });
    }
    out
}

/// What holds the bearers of any token under one policy, whatever key of those that there are now signs it.
pub fn of_policy(policy: &Policy, state: &State) -> Vec<Enforcement> {
    let mut out = vec![
        entry(
            "lifetime",
            EnforcedBy::BrokerAtIssue,
            "the broker signs the expiry into every token; Apple refuses it after that",
        ),
        entry(
            "role",
            EnforcedBy::AppleKeyRole,
            "only keys whose roles all stand in the policy sign; Apple holds the bearer to those",
        ),
        app_group_of(policy, state),
        if needs_scope(policy, state) {
            let text = "every token must have a scope, and Apple refuses what it does not name";
            entry("operations", EnforcedBy::AppleScope, text)
        } else {
            let text =
                "tokens without a scope are allowed: their bearers can read and write whatever the key's roles allow";
            entry("operations", EnforcedBy::Nobody, text)
        },
    ];
    if !policy.features.is_empty() {
        out.push(if needs_scope(policy, state) {
            let operations = if policy.operations.is_empty() { "" } else { " and the policy's operations" };
            let text =
                format!("every token must have a scope that names only reads of these features{operations}; Apple refuses the rest");
            entry("features", EnforcedBy::AppleScope, text)
        } else {
            features_without_scope(policy)
        });
    }
    if policy.quota.as_ref().is_some_and(Quota::is_bounded) {
        let text = "the broker counts the tokens that it hands out to each client; nobody counts what their bearers do with them";
        out.push(entry("quota", EnforcedBy::BrokerAtIssue, text));
    }
    out
}

fn needs_scope(policy: &Policy, state: &State) -> bool {
    policy.needs_scope() || state.bounds_of(&policy.app_group).any(|bounds| bounds.requires_scope().is_some())
}

fn app_group_of(policy: &Policy, state: &State) -> Enforcement {
    let scoped = policy.features.is_empty()
        && !policy.operations.is_empty()
        && policy.operations.iter().all(OperationTemplate::is_confined);
    if scoped {
        let text = "every granted read names an app of the group, and every token must have a scope";
        return entry("app_group", EnforcedBy::AppleScope, text);
    }
    if let Some(group) = state.app_groups().get(&policy.app_group) {
        // The keys that a decision takes, for any role that is granted.
        let (roles, team_keys) = routing(policy.roles, &policy.app_group, state);
        let signs =
            |key: &Key| roles.iter().any(|role| passed_over(key, role, roles, team_keys.is_ok(), group).is_none());
        let mut keys = state.keys_of(&policy.app_group).iter().filter(|key| signs(key)).peekable();
        if keys.peek().is_some() && keys.all(|key| key.is_confined_to(&group.apps)) {
            let later = match team_keys {
                Ok(()) => "a team key imported later would change that".to_owned(),
                Err(ceiling) => format!("ceiling {ceiling} allows no team key there"),
            };
            let text = format!(
                "every key that can sign now is an individual one, whose user's apps (as declared) lie within the group; {later}"
            );
            return entry("app_group", EnforcedBy::AppleIndividualAccess, text);
        }
    }
    entry(
        "app_group",
        EnforcedBy::Nobody,
        "a team key reaches every app of the account; only an individual key whose user is confined to the group's apps is \
         held to them by Apple",
    )
}

/// The features of one token's scope, each read of which the policy grants by a feature or by an operation.
fn features_of_scope(scope: &[Operation], policy: &Policy, group: &AppGroup) -> Enforcement {
    let by_feature =
        |entry: &&Operation| feature::is_granted(&policy.features, entry) && !entry.names_other_apps(&group.apps);
    let text = match scope.iter().filter(by_feature).count() {
        all if all == scope.len() => "the token's scope names only reads of these features; Apple refuses the rest",
        0 => {
            "the token's scope names no reads of these features, only operations of the policy; Apple refuses the rest"
        }
        _ => {
            "the token's scope names only reads of these features and operations of the policy; Apple refuses the rest"
        }
    };
    entry("features", EnforcedBy::AppleScope, text)
}

/// The features of tokens without a scope: writes are an agreement.
fn features_without_scope(policy: &Policy) -> Enforcement {
    let writes: Vec<String> =
        policy.features.iter().filter(|grant| grant.access == Access::Write).map(ToString::to_string).collect();
    let what = if writes.is_empty() { "its features".to_owned() } else { writes.join(", ") };
    let text = format!(
        "Apple's scope takes reads only, so a token for {what} has none: its bearer is asked to keep to the features, and \
         can do whatever the key's roles allow"
    );
    entry("features", EnforcedBy::Nobody, text)
}

fn reach(key: &Key) -> &'static str {
    match &key.kind {
        KeyKind::Team => "a team key reaches every app of the account",
        KeyKind::Individual { app_access: AppAccess::All, .. } => {
            "the individual key's user reaches every app of the account"
        }
        KeyKind::Individual { .. } => "the individual key's user reaches apps outside the group",
    }
}

#[cfg(test)]
mod tests;
