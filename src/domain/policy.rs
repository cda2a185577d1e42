//! A policy: which clients may have tokens for which app group, with which limits.

use std::collections::BTreeSet;
use std::ops::Not;

use serde::{Deserialize, Serialize};

use super::feature::{self, Access, FeatureGrant};
use super::hours::Hours;
use super::operation::{Operation, OperationTemplate};
use super::pattern::ClientPattern;
use super::principal::Principal;
use super::quota::Quota;
use super::role::RoleSet;
use crate::clock::UnixMillis;
use crate::id::{AppGroupName, AppId, PolicyName};

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
    /// What it is for, in features; empty for no such limit. What is only read becomes a limit of scopes.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub features: Vec<FeatureGrant>,
    /// How many tokens one client gets.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub quota: Option<Quota>,
    /// The hours at which it grants something; no token outlives them.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub hours: Option<Hours>,
    /// Names in certificates, one of which must come with a caller's bearer token; empty for no such limit.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub require_mtls: Vec<ClientPattern>,
    /// Whether it grants only while an operator holds it open.
    #[serde(default, skip_serializing_if = "Not::not")]
    pub break_glass: bool,
    /// Whether it grants nothing, and only counts what it would refuse of what others grant.
    #[serde(default, skip_serializing_if = "Not::not")]
    pub shadow: bool,
}

impl Policy {
    /// Whether the caller is one of its clients.
    pub fn names(&self, principal: &Principal) -> bool {
        self.clients.iter().any(|pattern| pattern.matches(principal))
    }

    /// Whether a token under this policy must have a scope: a limit to reads can be enforced in no other way. A feature
    /// that writes makes room for tokens without one, as a scope takes no writes.
    pub fn needs_scope(&self) -> bool {
        self.require_scope || !self.operations.is_empty() || (!self.features.is_empty() && !self.writes())
    }

    /// Whether a feature of it writes.
    pub fn writes(&self) -> bool {
        self.features.iter().any(|grant| grant.access == Access::Write)
    }

    /// The first entry of the scope that the policy does not grant.
    pub fn refused_entry<'a>(&self, scope: &'a [Operation], apps: &BTreeSet<AppId>) -> Option<&'a Operation> {
        if self.operations.is_empty() && self.features.is_empty() {
            return None;
        }
        let by_operation = |entry: &Operation| self.operations.iter().any(|template| template.grants(entry, apps));
        // A feature is granted for the group: a read that names an app names one of the group's.
        let by_feature =
            |entry: &Operation| feature::is_granted(&self.features, entry) && !entry.names_other_apps(apps);
        scope.iter().find(|entry| !by_operation(entry) && !by_feature(entry))
    }
}
