//! Desired state as somebody wrote it, and what it means once every rule has been checked.
//!
//! A [`Document`] holds text as it came, from YAML or from an RPC; [`Document::check`] turns it into [`Desired`] or says
//! everything that is wrong with it at once, each violation with the path of its field; [`Document::of`] goes the other
//! way, so that what is exported can be applied again. What can only be told with the state at hand (does this app group
//! exist?) is told by [`super::plan`].
//!
//! Names of fields are the ones of documents: durations are whole seconds and times Unix milliseconds here, and read as
//! `10m` and `2026-12-31T00:00:00Z` there ([`shape`], [`spelling`]).

mod check;
mod describe;
pub mod shape;
pub mod spelling;

use std::collections::BTreeMap;
use std::ops::Not;

use serde::{Deserialize, Serialize};

use super::account::Account;
use super::app_group::AppGroup;
use super::ceiling::Ceiling;
use super::issuer::Issuer;
use super::operator::Operator;
use super::policy::Policy;
use crate::clock::UnixMillis;

/// Most entries in one list of a document.
pub const MOST_ENTRIES: usize = 1000;

/// One thing that is wrong with a document: where, and what.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Violation {
    /// The field, for example `policies[0].clients[1].spiffe`.
    pub path: String,
    /// What is wrong, and what to write instead.
    pub message: String,
}

/// Desired state as it was written.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
#[expect(missing_docs, reason = "each field is named as documents name it")]
pub struct Document {
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub accounts: Vec<AccountText>,
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub app_groups: Vec<AppGroupText>,
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub issuers: Vec<IssuerText>,
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub ceilings: Vec<CeilingText>,
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub policies: Vec<PolicyText>,
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub operators: Vec<OperatorText>,
}

/// An account as it was written.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
#[expect(missing_docs, reason = "each field is named as documents name it")]
pub struct AccountText {
    pub name: String,
    pub issuer_id: String,
}

/// An app group as it was written.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
#[expect(missing_docs, reason = "each field is named as documents name it")]
pub struct AppGroupText {
    pub name: String,
    pub account: String,
    pub apps: Vec<String>,
}

/// What claims must be: one of these values each.
pub type ConditionsText = BTreeMap<String, Vec<String>>;

/// A trusted issuer as it was written.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
#[expect(missing_docs, reason = "each field is named as documents name it")]
pub struct IssuerText {
    pub name: String,
    pub kind: String,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub url: Option<String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub jwks_url: Option<String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub jwks: Option<String>,
    pub audiences: Vec<String>,
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub algorithms: Vec<String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub leeway: Option<i64>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub max_age: Option<i64>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub subject: Option<String>,
    #[serde(skip_serializing_if = "BTreeMap::is_empty")]
    pub claims: ConditionsText,
}

/// One entry of `clients` as it was written: exactly one of these.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
#[expect(missing_docs, reason = "each field is named as documents name it")]
pub struct ClientText {
    #[serde(skip_serializing_if = "Option::is_none")]
    pub spiffe: Option<String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub dns: Option<String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub oidc: Option<OidcText>,
}

/// Whom an issuer vouches for, as it was written.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
#[expect(missing_docs, reason = "each field is named as documents name it")]
pub struct OidcText {
    pub issuer: String,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub subject: Option<String>,
    #[serde(skip_serializing_if = "BTreeMap::is_empty")]
    pub claims: ConditionsText,
}

/// A ceiling as it was written.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
#[expect(missing_docs, reason = "each field is named as documents name it")]
pub struct CeilingText {
    pub name: String,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub app_groups: Option<Vec<String>>,
    #[serde(skip_serializing_if = "Not::not")]
    pub every_app_group: bool,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub max_ttl: Option<i64>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub never_roles: Option<Vec<String>>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub clients: Option<Vec<ClientText>>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub issuers: Option<Vec<String>>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub trust_domains: Option<Vec<String>>,
    #[serde(skip_serializing_if = "Not::not")]
    pub require_scope: bool,
    #[serde(skip_serializing_if = "Not::not")]
    pub no_team_keys: bool,
    #[serde(skip_serializing_if = "Not::not")]
    pub require_approval: bool,
    #[serde(skip_serializing_if = "Not::not")]
    pub shadow: bool,
}

/// A policy as it was written.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
#[expect(missing_docs, reason = "each field is named as documents name it")]
pub struct PolicyText {
    pub name: String,
    pub clients: Vec<ClientText>,
    pub app_group: String,
    pub roles: Vec<String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub max_ttl: Option<i64>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub default_ttl: Option<i64>,
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub operations: Vec<String>,
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub features: Vec<String>,
    #[serde(skip_serializing_if = "Not::not")]
    pub require_scope: bool,
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub require_mtls: Vec<ClientText>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub quota: Option<QuotaText>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub not_before: Option<UnixMillis>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub not_after: Option<UnixMillis>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub hours: Option<HoursText>,
    #[serde(skip_serializing_if = "Not::not")]
    pub break_glass: bool,
    #[serde(skip_serializing_if = "Not::not")]
    pub shadow: bool,
}

/// A quota as it was written.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
#[expect(missing_docs, reason = "each field is named as documents name it")]
pub struct QuotaText {
    #[serde(skip_serializing_if = "Option::is_none")]
    pub tokens_per_hour: Option<i64>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub fresh_per_minute: Option<i64>,
}

/// Allowed hours as they were written.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
#[expect(missing_docs, reason = "each field is named as documents name it")]
pub struct HoursText {
    pub time_zone: String,
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub days: Vec<String>,
    pub from: String,
    pub until: String,
}

/// An operator as it was written.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
#[expect(missing_docs, reason = "each field is named as documents name it")]
pub struct OperatorText {
    pub name: String,
    pub clients: Vec<ClientText>,
    pub powers: Vec<String>,
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub app_groups: Vec<String>,
}

/// Desired state in which every single thing is well formed.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Desired {
    /// The accounts.
    pub accounts: Vec<Account>,
    /// The app groups.
    pub app_groups: Vec<AppGroup>,
    /// The trusted issuers.
    pub issuers: Vec<Issuer>,
    /// The ceilings.
    pub ceilings: Vec<Ceiling>,
    /// The policies.
    pub policies: Vec<Policy>,
    /// The operators.
    pub operators: Vec<Operator>,
}

#[cfg(test)]
mod tests;
