//! A policy: which clients may have tokens for which app group, with which limits.

use serde::{Deserialize, Serialize};

use super::operation::{Operation, OperationTemplate};
use super::pattern::ClientPattern;
use super::role::RoleSet;
use crate::clock::UnixMillis;
use crate::id::{AppGroupName, PolicyName};

/// Most policies for one app group: what one decision has to look at.
pub const MOST_PER_APP_GROUP: usize = 100;

/// Time to live of a token when neither the request nor the policy says one: 10 minutes, in seconds.
pub const DEFAULT_TTL_S: i64 = 600;

/// What some clients are granted.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Policy {
    /// The broker's name for it.
    pub name: PolicyName,
    /// Whose requests it decides.
    pub clients: Vec<ClientPattern>,
    /// The apps it is about.
    pub app_group: AppGroupName,
    /// The roles that may be asked for. A key with a role outside of these is never used.
    pub roles: RoleSet,
    /// The longest time to live, in seconds.
    pub max_ttl_s: i64,
    /// The time to live when the request names none, in seconds.
    pub default_ttl_s: i64,
    /// The only reads that a token's scope may hold; empty for no such limit.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub operations: Vec<OperationTemplate>,
    /// Whether a token must have a scope.
    #[serde(default)]
    pub require_scope: bool,
    /// The first moment it grants anything.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub not_before: Option<UnixMillis>,
    /// The moment from which it grants nothing; no token outlives it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub not_after: Option<UnixMillis>,
}

impl Policy {
    /// Whether a token under this policy must have a scope: listed operations can be enforced in no other way.
    pub fn needs_scope(&self) -> bool {
        self.require_scope || !self.operations.is_empty()
    }

    /// The first entry of the scope that the policy does not grant.
    pub fn refused_entry<'a>(
        &self,
        scope: &'a [Operation],
        apps: &std::collections::BTreeSet<crate::id::AppId>,
    ) -> Option<&'a Operation> {
        if self.operations.is_empty() {
            return None;
        }
        scope.iter().find(|entry| !self.operations.iter().any(|template| template.grants(entry, apps)))
    }
}
