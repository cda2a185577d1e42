//! Who runs the broker, and with which powers.

use std::collections::BTreeSet;

use serde::{Deserialize, Serialize};

use super::pattern::ClientPattern;
use super::principal::Principal;
use crate::id::{AppGroupName, OperatorName};

/// What an operator may do. Revoking is its own power, so that it can be given away more freely than any other.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Power {
    /// Accounts, app groups, operators, ceilings, issuers, reinstating, root keys.
    Administer,
    /// Importing, suspending and resuming keys.
    Custody,
    /// Writing policies; may be confined to app groups.
    AuthorPolicies,
    /// Revoking, and seeing what is exposed.
    Revoke,
    /// Reading, checking and pruning the audit.
    Audit,
    /// Sealing, and lifting a seal.
    Unseal,
}

impl Power {
    /// Every power.
    pub const ALL: &[Self] =
        &[Self::Administer, Self::Custody, Self::AuthorPolicies, Self::Revoke, Self::Audit, Self::Unseal];

    /// The spelling in documents.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Administer => "administer",
            Self::Custody => "custody",
            Self::AuthorPolicies => "author_policies",
            Self::Revoke => "revoke",
            Self::Audit => "audit",
            Self::Unseal => "unseal",
        }
    }

    /// Takes the spelling in documents.
    pub fn parse(text: &str) -> Option<Self> {
        Self::ALL.iter().copied().find(|power| power.as_str() == text)
    }
}

/// A person or robot that runs the broker.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Operator {
    /// The broker's name for it.
    pub name: OperatorName,
    /// Who is this operator.
    pub clients: Vec<ClientPattern>,
    /// What it may do.
    pub powers: BTreeSet<Power>,
    /// Where it may author policies; empty is everywhere.
    #[serde(default, skip_serializing_if = "BTreeSet::is_empty")]
    pub app_groups: BTreeSet<AppGroupName>,
}

impl Operator {
    /// Whether the caller is this operator.
    pub fn is(&self, caller: &Principal) -> bool {
        self.clients.iter().any(|pattern| pattern.matches(caller))
    }

    /// Whether it may write policies for this group.
    pub fn may_author(&self, group: &AppGroupName) -> bool {
        self.powers.contains(&Power::AuthorPolicies) && (self.app_groups.is_empty() || self.app_groups.contains(group))
    }
}
