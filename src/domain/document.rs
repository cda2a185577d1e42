//! Desired state as somebody wrote it, and what it means once every rule has been checked.
//!
//! A [`Document`] holds text as it came, from YAML or from an RPC; [`Document::check`] turns it into [`Desired`] or
//! says everything that is wrong with it at once, each violation with the path of its field. What can only be told with
//! the state at hand (does this app group exist?) is told by [`super::plan`].

use std::collections::BTreeSet;

use super::account::Account;
use super::app_group::AppGroup;
use super::apple;
use super::operation::OperationTemplate;
use super::operator::{Operator, Power};
use super::pattern::ClientPattern;
use super::policy::{DEFAULT_TTL_S, Policy};
use super::role::{Role, RoleSet};
use crate::clock::UnixMillis;
use crate::id::{AccountName, AppGroupName, AppId, IdError, IssuerId, OperatorName, PolicyName, shown};

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
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Document {
    /// `accounts`
    pub accounts: Vec<AccountText>,
    /// `app_groups`
    pub app_groups: Vec<AppGroupText>,
    /// `policies`
    pub policies: Vec<PolicyText>,
    /// `operators`
    pub operators: Vec<OperatorText>,
}

/// An account as it was written.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct AccountText {
    /// `name`
    pub name: String,
    /// `issuer_id`
    pub issuer_id: String,
}

/// An app group as it was written.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct AppGroupText {
    /// `name`
    pub name: String,
    /// `account`
    pub account: String,
    /// `apps`
    pub apps: Vec<String>,
}

/// One entry of `clients` as it was written.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum ClientText {
    /// `spiffe: …`
    Spiffe(String),
    /// `dns: …`
    Dns(String),
    /// Neither.
    Missing,
}

/// A policy as it was written.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct PolicyText {
    /// `name`
    pub name: String,
    /// `clients`
    pub clients: Vec<ClientText>,
    /// `app_group`
    pub app_group: String,
    /// `roles`
    pub roles: Vec<String>,
    /// `max_ttl`, in seconds
    pub max_ttl_s: Option<i64>,
    /// `default_ttl`, in seconds
    pub default_ttl_s: Option<i64>,
    /// `operations`
    pub operations: Vec<String>,
    /// `require_scope`
    pub require_scope: bool,
    /// `not_before`
    pub not_before: Option<UnixMillis>,
    /// `not_after`
    pub not_after: Option<UnixMillis>,
}

/// An operator as it was written.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct OperatorText {
    /// `name`
    pub name: String,
    /// `clients`
    pub clients: Vec<ClientText>,
    /// `powers`
    pub powers: Vec<String>,
    /// `app_groups`
    pub app_groups: Vec<String>,
}

/// Desired state in which every single thing is well formed.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Desired {
    /// The accounts.
    pub accounts: Vec<Account>,
    /// The app groups.
    pub app_groups: Vec<AppGroup>,
    /// The policies.
    pub policies: Vec<Policy>,
    /// The operators.
    pub operators: Vec<Operator>,
}

impl Document {
    /// Checks every rule that needs no state.
    ///
    /// # Errors
    /// With everything that is wrong.
    pub fn check(&self) -> Result<Desired, Vec<Violation>> {
        let mut check = Check::default();
        let accounts = check.each("accounts", &self.accounts, |text| &text.name, Check::account);
        let app_groups = check.each("app_groups", &self.app_groups, |text| &text.name, Check::app_group);
        let policies = check.each("policies", &self.policies, |text| &text.name, Check::policy);
        let operators = check.each("operators", &self.operators, |text| &text.name, Check::operator);
        if check.0.is_empty() { Ok(Desired { accounts, app_groups, policies, operators }) } else { Err(check.0) }
    }
}

/// Gathers violations; each part answers `None` where it has added one.
#[derive(Default)]
struct Check(Vec<Violation>);

impl Check {
    fn refuse<T>(&mut self, path: &str, message: impl Into<String>) -> Option<T> {
        self.0.push(Violation { path: path.to_owned(), message: message.into() });
        None
    }

    fn id<T>(&mut self, path: &str, parsed: Result<T, IdError>) -> Option<T> {
        parsed.map_err(|error| self.refuse::<T>(path, error.to_string())).ok()
    }

    fn each<T, U>(
        &mut self,
        list: &str,
        texts: &[T],
        name: impl Fn(&T) -> &String,
        check: impl Fn(&mut Self, &str, &T) -> Option<U>,
    ) -> Vec<U> {
        let mut seen = BTreeSet::new();
        let mut out = Vec::new();
        for (at, text) in texts.iter().enumerate() {
            let path = format!("{list}[{at}]");
            if !seen.insert(name(text)) {
                self.refuse::<()>(&format!("{path}.name"), format!("`{}` stands twice in {list}", shown(name(text))));
            }
            out.extend(check(self, &path, text));
        }
        out
    }

    fn account(&mut self, path: &str, text: &AccountText) -> Option<Account> {
        let name = self.id(&format!("{path}.name"), AccountName::parse(&text.name));
        let issuer_id = self.id(&format!("{path}.issuer_id"), IssuerId::parse(&text.issuer_id.to_ascii_lowercase()));
        Some(Account { name: name?, issuer_id: issuer_id? })
    }

    fn app_group(&mut self, path: &str, text: &AppGroupText) -> Option<AppGroup> {
        let name = self.id(&format!("{path}.name"), AppGroupName::parse(&text.name));
        let account = self.id(&format!("{path}.account"), AccountName::parse(&text.account));
        let apps = self.list(&format!("{path}.apps"), &text.apps, AtLeast::One, |check, path, app| {
            check.id(path, AppId::parse(app))
        });
        Some(AppGroup { name: name?, account: account?, apps: apps?.into_iter().collect() })
    }

    fn policy(&mut self, path: &str, text: &PolicyText) -> Option<Policy> {
        let field = |name: &str| format!("{path}.{name}");
        let name = self.id(&field("name"), PolicyName::parse(&text.name));
        let clients = self.list(&field("clients"), &text.clients, AtLeast::One, Self::client);
        let app_group = self.id(&field("app_group"), AppGroupName::parse(&text.app_group));
        let roles = self.list(&field("roles"), &text.roles, AtLeast::One, |check, path, text| check.role(path, text));
        let operations = self.list(&field("operations"), &text.operations, AtLeast::None, |check, path, text| {
            OperationTemplate::parse(text).map_err(|error| check.refuse::<()>(path, error.to_string())).ok()
        });
        let ttl = operations.as_ref().and_then(|operations| self.ttl(path, text, operations));
        if let (Some(start), Some(end)) = (text.not_before, text.not_after)
            && start >= end
        {
            self.refuse::<()>(
                &field("not_after"),
                "lies at or before not_before: the policy would never grant anything",
            );
        }
        let (max_ttl_s, default_ttl_s) = ttl?;
        Some(Policy {
            name: name?,
            clients: clients?,
            app_group: app_group?,
            roles: roles?.into_iter().collect::<RoleSet>(),
            max_ttl_s,
            default_ttl_s,
            operations: operations?,
            require_scope: text.require_scope,
            not_before: text.not_before,
            not_after: text.not_after,
        })
    }

    /// The longest and the default time to live.
    fn ttl(&mut self, path: &str, text: &PolicyText, operations: &[OperationTemplate]) -> Option<(i64, i64)> {
        let before = self.0.len();
        let max = text.max_ttl_s.unwrap_or(apple::LONGEST_TTL_S);
        // INVARIANT (P8): a policy can say more than 20 minutes only where every read it grants is on Apple's list.
        let long = !operations.is_empty() && operations.iter().all(|it| apple::may_live_long(it.as_operation()));
        let limit = if long { apple::LONGEST_SCOPED_LIFETIME_S } else { apple::LONGEST_LIFETIME_S };
        if !(apple::SHORTEST_TTL_S..=limit).contains(&max) {
            self.refuse::<()>(
                &format!("{path}.max_ttl"),
                format!(
                    "must lie between {}s and {limit}s: Apple accepts at most 20 minutes, and up to 180 days only where \
                     every one of the policy's operations is on its list of long-lived reads",
                    apple::SHORTEST_TTL_S
                ),
            );
        }
        let default = text.default_ttl_s.unwrap_or_else(|| max.min(DEFAULT_TTL_S));
        if text.default_ttl_s.is_some() && !(apple::SHORTEST_TTL_S..=max.max(apple::SHORTEST_TTL_S)).contains(&default)
        {
            self.refuse::<()>(
                &format!("{path}.default_ttl"),
                format!("must lie between {}s and max_ttl ({max}s)", apple::SHORTEST_TTL_S),
            );
        }
        (self.0.len() == before).then_some((max, default))
    }

    fn operator(&mut self, path: &str, text: &OperatorText) -> Option<Operator> {
        let name = self.id(&format!("{path}.name"), OperatorName::parse(&text.name));
        let clients = self.list(&format!("{path}.clients"), &text.clients, AtLeast::One, Self::client);
        let powers = self
            .list(&format!("{path}.powers"), &text.powers, AtLeast::One, |check, path, text| check.power(path, text));
        let groups = self.list(&format!("{path}.app_groups"), &text.app_groups, AtLeast::None, |check, path, group| {
            check.id(path, AppGroupName::parse(group))
        });
        let powers: BTreeSet<Power> = powers?.into_iter().collect();
        let groups: BTreeSet<AppGroupName> = groups?.into_iter().collect();
        if !groups.is_empty() && powers.iter().any(|power| *power != Power::AuthorPolicies) {
            return self.refuse(
                &format!("{path}.app_groups"),
                "confines author_policies alone: give the other powers to an operator of another name",
            );
        }
        Some(Operator { name: name?, clients: clients?, powers, app_groups: groups })
    }

    fn client(&mut self, path: &str, text: &ClientText) -> Option<ClientPattern> {
        let (field, parsed) = match text {
            ClientText::Spiffe(text) => ("spiffe", ClientPattern::spiffe(text)),
            ClientText::Dns(text) => ("dns", ClientPattern::dns(text)),
            ClientText::Missing => return self.refuse(path, "names nobody: write `spiffe: …` or `dns: …`"),
        };
        parsed.map_err(|error| self.refuse::<()>(&format!("{path}.{field}"), error.to_string())).ok()
    }

    fn role(&mut self, path: &str, text: &str) -> Option<Role> {
        let known = || Role::ALL.iter().map(|role| role.as_str()).collect::<Vec<_>>().join(", ");
        Role::parse(text)
            .or_else(|| self.refuse(path, format!("`{}` is not a role of Apple's: {}", shown(text), known())))
    }

    fn power(&mut self, path: &str, text: &str) -> Option<Power> {
        let known = || Power::ALL.iter().map(|power| power.as_str()).collect::<Vec<_>>().join(", ");
        Power::parse(text).or_else(|| self.refuse(path, format!("`{}` is not a power: {}", shown(text), known())))
    }

    fn list<T, U>(
        &mut self,
        path: &str,
        texts: &[T],
        at_least: AtLeast,
        check: impl Fn(&mut Self, &str, &T) -> Option<U>,
    ) -> Option<Vec<U>> {
        // Empty never means all: what must name something has to name it.
        if at_least == AtLeast::One && texts.is_empty() {
            return self.refuse(path, "is empty: name at least one");
        }
        if texts.len() > MOST_ENTRIES {
            return self.refuse(path, format!("has {} entries, more than {MOST_ENTRIES}", texts.len()));
        }
        let out: Vec<U> =
            texts.iter().enumerate().filter_map(|(at, text)| check(self, &format!("{path}[{at}]"), text)).collect();
        (out.len() == texts.len()).then_some(out)
    }
}

#[derive(Clone, Copy, PartialEq, Eq)]
enum AtLeast {
    None,
    One,
}

#[cfg(test)]
mod tests {
    use super::*;

    fn policy() -> PolicyText {
        PolicyText {
            name: "p".to_owned(),
            clients: vec![ClientText::Spiffe("spiffe://acme/ci".to_owned())],
            app_group: "games".to_owned(),
            roles: vec!["APP_MANAGER".to_owned()],
            ..PolicyText::default()
        }
    }

    fn violations(policy: PolicyText) -> Vec<String> {
        let document = Document { policies: vec![policy], ..Document::default() };
        document.check().err().unwrap_or_default().into_iter().map(|violation| violation.path).collect()
    }

    #[test]
    fn everything_wrong_is_said_at_once() {
        let paths = violations(PolicyText {
            name: "Bad Name".to_owned(),
            clients: vec![ClientText::Missing, ClientText::Dns("*".to_owned())],
            app_group: String::new(),
            roles: vec!["KING".to_owned()],
            max_ttl_s: Some(-1),
            default_ttl_s: Some(i64::MAX),
            operations: vec!["POST /v1/apps".to_owned(), "GET /v1/../x".to_owned()],
            ..PolicyText::default()
        });
        let expected = [
            "policies[0].name",
            "policies[0].clients[0]",
            "policies[0].clients[1].dns",
            "policies[0].app_group",
            "policies[0].roles[0]",
            "policies[0].operations[0]",
            "policies[0].operations[1]",
        ];
        assert_eq!(paths, expected);
    }

    #[test]
    fn empty_never_means_all() {
        let paths = violations(PolicyText { clients: vec![], roles: vec![], ..policy() });
        assert_eq!(paths, ["policies[0].clients", "policies[0].roles"]);
    }

    #[test]
    fn a_long_life_needs_long_lived_reads() {
        let day = Some(86_400);
        assert_eq!(violations(PolicyText { max_ttl_s: day, ..policy() }), ["policies[0].max_ttl"]);
        let reads = |operation: &str| PolicyText { max_ttl_s: day, operations: vec![operation.to_owned()], ..policy() };
        assert_eq!(violations(reads("GET /v1/ciBuildRuns/5")), [""; 0]);
        assert_eq!(violations(reads("GET /v1/ciProducts/5/app")), ["policies[0].max_ttl"]);
        assert_eq!(violations(reads("GET /v1/apps/{app}")), ["policies[0].max_ttl"]);
        let year = PolicyText { max_ttl_s: Some(366 * 86_400), ..reads("GET /v1/ciBuildRuns/5") };
        assert_eq!(violations(year), ["policies[0].max_ttl"]);
    }
}
