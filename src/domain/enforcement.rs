//! Who enforces what (P9): for each limit of a policy or token, the one who holds its bearer to it.

use serde::{Deserialize, Serialize};

use super::key::{AppAccess, Key, KeyKind};
use super::policy::Policy;

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
    /// Which: `lifetime`, `role`, `app_group` or `operations`.
    pub limit: &'static str,
    /// Who.
    pub by: EnforcedBy,
    /// A sentence for a reader who knows nothing of Apple.
    pub explanation: String,
}

/// What holds the bearer of one token: `confined` says whether each entry of its scope names an app of the group.
pub(super) fn of_token(
    key: &Key,
    group: &super::app_group::AppGroup,
    has_scope: bool,
    confined: bool,
) -> Vec<Enforcement> {
    let app_group = if key.is_confined_to(&group.apps) {
        let since = key.declared_at().map(|at| at.to_string()).unwrap_or_default();
        (
            EnforcedBy::AppleIndividualAccess,
            format!("the key belongs to one user, whose apps (as declared on {since}) all lie within the app group"),
        )
    } else if has_scope && confined {
        (EnforcedBy::AppleScope, "every read in the token's scope names an app of the group".to_owned())
    } else {
        (EnforcedBy::Nobody, format!("{}: the bearer can use the token on apps outside the app group", reach(key)))
    };
    vec![
        Enforcement {
            limit: "lifetime",
            by: EnforcedBy::BrokerAtIssue,
            explanation: "the broker signs the expiry into the token; Apple refuses the token after it".to_owned(),
        },
        Enforcement {
            limit: "role",
            by: EnforcedBy::AppleKeyRole,
            explanation: format!("Apple grants the bearer what the key's roles allow: {}", key.roles),
        },
        Enforcement { limit: "app_group", by: app_group.0, explanation: app_group.1 },
        if has_scope {
            Enforcement {
                limit: "operations",
                by: EnforcedBy::AppleScope,
                explanation: "Apple refuses every request that the token's scope does not name".to_owned(),
            }
        } else {
            Enforcement {
                limit: "operations",
                by: EnforcedBy::Nobody,
                explanation: "the token has no scope: the bearer can read and write whatever the key's roles allow"
                    .to_owned(),
            }
        },
    ]
}

/// What holds the bearers of any token under one policy, whatever key signs it.
pub fn of_policy(policy: &Policy) -> Vec<Enforcement> {
    let every_operation_names_an_app = !policy.operations.is_empty()
        && policy.operations.iter().all(|operation| {
            // As `Operation::is_confined_to` has it for a token.
            let text = operation.to_string();
            text.starts_with("GET /v1/apps/{app}") || text.contains("filter[app]={app}")
        });
    let entry = |limit, by, text: &str| Enforcement { limit, by, explanation: text.to_owned() };
    vec![
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
        if every_operation_names_an_app {
            entry(
                "app_group",
                EnforcedBy::AppleScope,
                "every granted read names an app of the group, and every token must have a scope",
            )
        } else {
            entry(
                "app_group",
                EnforcedBy::Nobody,
                "a team key reaches every app of the account; only an individual key whose user is confined to the group's apps is held to them by Apple",
            )
        },
        if policy.needs_scope() {
            entry(
                "operations",
                EnforcedBy::AppleScope,
                "every token must have a scope, and Apple refuses what it does not name",
            )
        } else {
            entry(
                "operations",
                EnforcedBy::Nobody,
                "tokens without a scope are allowed: their bearers can read and write whatever the key's roles allow",
            )
        },
    ]
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
