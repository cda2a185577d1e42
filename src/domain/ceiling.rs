//! Ceilings: what administrators allow any policy to grant, whatever it says.
//!
//! A ceiling takes away and never grants. Policies are not refused for saying more than a ceiling allows: they are
//! narrowed, when they are decided on. So it does not matter which came first, and what is exported can be applied again.
//!
//! # Invariants
//! - `INV-CEILING-1`: adding a ceiling never grants.

use std::collections::BTreeSet;
use std::sync::Arc;

use serde::{Deserialize, Serialize};

use super::pattern::ClientPattern;
use super::principal::Principal;
use super::role::{Role, RoleSet};
use crate::id::{AppGroupName, CeilingName, IssuerName};

/// What no policy may go beyond.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Ceiling {
    /// The broker's name for it.
    pub name: CeilingName,
    /// Where it holds; `None` is everywhere.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub app_groups: Option<BTreeSet<AppGroupName>>,
    /// The longest time to live, in seconds.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub max_ttl_s: Option<i64>,
    /// Roles that nobody gets.
    #[serde(default, skip_serializing_if = "no_roles")]
    pub never_roles: RoleSet,
    /// The only callers, where it names any.
    #[serde(default, skip_serializing_if = "Callers::is_empty")]
    pub callers: Callers,
    /// Whether every token must have a scope.
    #[serde(default)]
    pub require_scope: bool,
    /// Whether team keys are out of use for a group that has, or had, individual ones.
    #[serde(default)]
    pub no_team_keys: bool,
    /// Whether changes take two operators.
    #[serde(default)]
    pub require_approval: bool,
    /// Whether it only counts what it would refuse.
    #[serde(default)]
    pub shadow: bool,
}

#[expect(clippy::trivially_copy_pass_by_ref, reason = "as serde calls it")]
fn no_roles(roles: &RoleSet) -> bool {
    roles.is_empty()
}

/// Who may get tokens at all: whoever is one of these clients, is vouched for by one of these issuers, or is of one of
/// these trust domains.
#[derive(Debug, Clone, Default, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Callers {
    /// These.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub clients: Vec<ClientPattern>,
    /// Those whom these issuers vouch for.
    #[serde(default, skip_serializing_if = "BTreeSet::is_empty")]
    pub issuers: BTreeSet<IssuerName>,
    /// Those of these SPIFFE trust domains.
    #[serde(default, skip_serializing_if = "BTreeSet::is_empty")]
    pub trust_domains: BTreeSet<String>,
}

impl Callers {
    /// Whether nobody is named: then it bounds nobody.
    pub fn is_empty(&self) -> bool {
        self.clients.is_empty() && self.issuers.is_empty() && self.trust_domains.is_empty()
    }

    /// Whether the caller is among them.
    pub fn include(&self, principal: &Principal) -> bool {
        let by_issuer =
            || principal.vouched.as_ref().is_some_and(|vouched| self.issuers.contains(&vouched.issuer.name));
        let by_domain = || principal.client.trust_domain().is_some_and(|domain| self.trust_domains.contains(domain));
        by_issuer() || by_domain() || self.clients.iter().any(|pattern| pattern.matches(principal))
    }

    /// Whether somebody whom the pattern means may be among them.
    pub fn may_include(&self, pattern: &ClientPattern) -> bool {
        self.may_include_of(pattern, |_| true)
    }

    /// The same where of the clients only these count.
    pub fn may_include_of(&self, pattern: &ClientPattern, counts: impl Fn(&ClientPattern) -> bool) -> bool {
        pattern.issuer().is_some_and(|issuer| self.issuers.contains(issuer))
            || pattern.trust_domain().is_some_and(|domain| self.trust_domains.contains(domain))
            || self.clients.iter().any(|named| named.overlaps(pattern) && counts(named))
    }

    /// Whether surely everybody whom the pattern means is among them.
    pub fn surely_include(&self, pattern: &ClientPattern) -> bool {
        let exact = || pattern.exact().filter(|_| pattern.issuer().is_none()).map(Principal::of_certificate);
        pattern.issuer().is_some_and(|issuer| self.issuers.contains(issuer))
            || pattern.trust_domain().is_some_and(|domain| self.trust_domains.contains(domain))
            || self.clients.contains(pattern)
            || exact().is_some_and(|principal| self.include(&principal))
    }
}

impl Ceiling {
    /// Whether it holds for this group.
    pub fn holds_for(&self, group: &AppGroupName) -> bool {
        self.app_groups.as_ref().is_none_or(|groups| groups.contains(group))
    }
}

/// Several ceilings as one: what is left under all of them. Each bound remembers the first ceiling, by name, that sets it.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Bounds {
    max_ttl: Option<(i64, CeilingName)>,
    never_roles: RoleSet,
    by_role: Vec<(RoleSet, CeilingName)>,
    callers: Vec<(Arc<Callers>, CeilingName)>,
    require_scope: Option<CeilingName>,
    no_team_keys: Option<CeilingName>,
    require_approval: Option<CeilingName>,
}

impl Bounds {
    /// Compiles ceilings, which come by name.
    pub fn of<'a>(ceilings: impl IntoIterator<Item = &'a Arc<Ceiling>>) -> Self {
        let mut out = Self::default();
        for ceiling in ceilings {
            let name = || ceiling.name.clone();
            if let Some(max) = ceiling.max_ttl_s
                && out.max_ttl.as_ref().is_none_or(|(least, _)| max < *least)
            {
                out.max_ttl = Some((max, name()));
            }
            if !ceiling.never_roles.is_subset_of(out.never_roles) {
                out.never_roles = out.never_roles.union(ceiling.never_roles);
                out.by_role.push((ceiling.never_roles, name()));
            }
            if !ceiling.callers.is_empty() && !out.callers.iter().any(|(known, _)| **known == ceiling.callers) {
                out.callers.push((Arc::new(ceiling.callers.clone()), name()));
            }
            let first = |known: &mut Option<CeilingName>, sets: bool| {
                if sets && known.is_none() {
                    *known = Some(name());
                }
            };
            first(&mut out.require_scope, ceiling.require_scope);
            first(&mut out.no_team_keys, ceiling.no_team_keys);
            first(&mut out.require_approval, ceiling.require_approval);
        }
        out
    }

    /// The longest life, in seconds, and by which ceiling.
    pub fn max_ttl(&self) -> Option<(i64, &CeilingName)> {
        self.max_ttl.as_ref().map(|(seconds, name)| (*seconds, name))
    }

    /// Roles that nobody gets.
    pub fn never_roles(&self) -> RoleSet {
        self.never_roles
    }

    /// The ceiling under which nobody gets the role.
    pub fn forbids_role(&self, role: Role) -> Option<&CeilingName> {
        self.by_role.iter().find(|(roles, _)| roles.contains(role)).map(|(_, name)| name)
    }

    /// The ceiling under which the caller gets nothing.
    pub fn forbids_caller(&self, principal: &Principal) -> Option<&CeilingName> {
        self.callers.iter().find(|(callers, _)| !callers.include(principal)).map(|(_, name)| name)
    }

    /// Who may get tokens, by ceiling.
    pub fn callers(&self) -> impl Iterator<Item = (&Callers, &CeilingName)> {
        self.callers.iter().map(|(callers, name)| (callers.as_ref(), name))
    }

    /// The ceiling under which every token must have a scope.
    pub fn requires_scope(&self) -> Option<&CeilingName> {
        self.require_scope.as_ref()
    }

    /// The ceiling under which team keys give way to individual ones.
    pub fn forbids_team_keys(&self) -> Option<&CeilingName> {
        self.no_team_keys.as_ref()
    }

    /// The ceiling under which changes take two operators.
    pub fn requires_approval(&self) -> Option<&CeilingName> {
        self.require_approval.as_ref()
    }
}

#[cfg(test)]
mod tests;
