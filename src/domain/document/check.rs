//! Every rule of documents that needs no state, all violations at once.

use std::collections::{BTreeMap, BTreeSet};

use super::{
    AccountText, AppGroupText, ClientText, ConditionsText, Desired, Document, HoursText, MOST_ENTRIES, OidcText,
    OperatorText, PolicyText, QuotaText, Violation, spelling,
};
use crate::domain::account::Account;
use crate::domain::app_group::AppGroup;
use crate::domain::apple;
use crate::domain::claims::ClaimConditions;
use crate::domain::feature::FeatureGrant;
use crate::domain::glob::ClaimGlob;
use crate::domain::hours::Hours;
use crate::domain::operation::OperationTemplate;
use crate::domain::operator::{Operator, Power};
use crate::domain::pattern::{ClientPattern, VouchedPattern};
use crate::domain::policy::{DEFAULT_TTL_S, Policy};
use crate::domain::quota::Quota;
use crate::domain::role::{Role, RoleSet};
use crate::id::{AccountName, AppGroupName, AppId, IdError, IssuerId, IssuerName, OperatorName, PolicyName, shown};

mod control;

/// Most tokens that a quota can allow; more is no quota.
const MOST_TOKENS: i64 = 1_000_000_000;

impl Document {
    /// Checks every rule that needs no state.
    ///
    /// # Errors
    /// With everything that is wrong.
    pub fn check(&self) -> Result<Desired, Vec<Violation>> {
        let mut check = Check::default();
        let desired = Desired {
            accounts: check.each("accounts", &self.accounts, |text| &text.name, Check::account),
            app_groups: check.each("app_groups", &self.app_groups, |text| &text.name, Check::app_group),
            issuers: check.each("issuers", &self.issuers, |text| &text.name, Check::issuer),
            ceilings: check.each("ceilings", &self.ceilings, |text| &text.name, Check::ceiling),
            policies: check.each("policies", &self.policies, |text| &text.name, Check::policy),
            operators: check.each("operators", &self.operators, |text| &text.name, Check::operator),
        };
        if check.0.is_empty() { Ok(desired) } else { Err(check.0) }
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
        self.parsed(path, parsed)
    }

    fn parsed<T, E: ToString>(&mut self, path: &str, parsed: Result<T, E>) -> Option<T> {
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
        let roles = self.roles(&field("roles"), &text.roles);
        let operations = self.list(&field("operations"), &text.operations, AtLeast::None, |check, path, text| {
            check.parsed(path, OperationTemplate::parse(text))
        });
        let features = self.list(&field("features"), &text.features, AtLeast::None, |check, path, text| {
            check.parsed(path, FeatureGrant::parse(text))
        });
        let ttl = operations.as_ref().and_then(|operations| self.ttl(path, text, operations));
        let require_mtls = self.list(&field("require_mtls"), &text.require_mtls, AtLeast::None, |check, path, text| {
            if text.oidc.is_some() {
                return check.refuse(path, "names who must present a certificate: write `spiffe: …` or `dns: …`");
            }
            check.client(path, text)
        });
        let quota = text.quota.as_ref().map(|quota| self.quota(&field("quota"), quota));
        let hours = text.hours.as_ref().map(|hours| self.hours(&field("hours"), hours));
        for (name, at) in [("not_before", text.not_before), ("not_after", text.not_after)] {
            if at.is_some_and(|at| !spelling::can_be_written(at)) {
                self.refuse::<()>(&field(name), "must lie in the years 0 to 9999, as RFC 3339 has no others");
            }
        }
        if let (Some(start), Some(end)) = (text.not_before, text.not_after)
            && start >= end
        {
            self.refuse::<()>(
                &field("not_after"),
                "lies at or before not_before: the policy would never grant anything",
            );
        }
        let (max_ttl_s, default_ttl_s) = ttl?;
        let policy = Policy {
            name: name?,
            clients: clients?,
            app_group: app_group?,
            roles: roles?,
            max_ttl_s,
            default_ttl_s,
            operations: operations?,
            require_scope: text.require_scope,
            not_before: text.not_before,
            not_after: text.not_after,
            features: features?.into_iter().collect::<BTreeSet<_>>().into_iter().collect(),
            quota: quota.map_or(Some(None), |quota| quota.map(Some))?,
            hours: hours.map_or(Some(None), |hours| hours.map(Some))?,
            require_mtls: require_mtls?,
            break_glass: text.break_glass,
            shadow: text.shadow,
        };
        if policy.writes() && (policy.require_scope || !policy.operations.is_empty()) {
            let message = "a feature that writes needs tokens without a scope, as Apple's scope takes GET only; but \
                           require_scope or operations ask for one in every token: make two policies of it";
            return self.refuse(&field("features"), message);
        }
        Some(policy)
    }

    fn roles(&mut self, path: &str, texts: &[String]) -> Option<RoleSet> {
        let roles = self.list(path, texts, AtLeast::One, |check, path, text| check.role(path, text));
        Some(roles?.into_iter().collect())
    }

    /// The longest and the default time to live.
    fn ttl(&mut self, path: &str, text: &PolicyText, operations: &[OperationTemplate]) -> Option<(i64, i64)> {
        let before = self.0.len();
        let max = text.max_ttl.unwrap_or(apple::LONGEST_TTL_S);
        // INVARIANT (P8): a policy can say more than 20 minutes only where every read it grants is on Apple's list.
        let long = !operations.is_empty()
            && text.features.is_empty()
            && operations.iter().all(|it| apple::may_live_long(it.as_operation()));
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
        let default = text.default_ttl.unwrap_or_else(|| max.min(DEFAULT_TTL_S));
        if text.default_ttl.is_some() && !(apple::SHORTEST_TTL_S..=max.max(apple::SHORTEST_TTL_S)).contains(&default) {
            self.refuse::<()>(
                &format!("{path}.default_ttl"),
                format!("must lie between {}s and max_ttl ({max}s)", apple::SHORTEST_TTL_S),
            );
        }
        (self.0.len() == before).then_some((max, default))
    }

    fn quota(&mut self, path: &str, text: &QuotaText) -> Option<Quota> {
        let mut bound = |name: &str, value: Option<i64>| match value {
            None => Some(None),
            Some(number) => match u32::try_from(number) {
                Ok(bound) if (1..=MOST_TOKENS).contains(&number) => Some(Some(bound)),
                _ => self.refuse(&format!("{path}.{name}"), format!("must lie between 1 and {MOST_TOKENS}")),
            },
        };
        let (per_hour, per_minute) =
            (bound("tokens_per_hour", text.tokens_per_hour), bound("fresh_per_minute", text.fresh_per_minute));
        let quota = Quota { tokens_per_hour: per_hour?, fresh_per_minute: per_minute? };
        if quota.tokens_per_hour.is_none() && quota.fresh_per_minute.is_none() {
            return self.refuse(path, "bounds nothing: name tokens_per_hour, fresh_per_minute or both");
        }
        Some(quota)
    }

    fn hours(&mut self, path: &str, text: &HoursText) -> Option<Hours> {
        match Hours::parse(&text.time_zone, &text.days, &text.from, &text.until) {
            Ok(hours) => Some(hours),
            Err(wrong) => {
                for (field, message) in wrong {
                    self.refuse::<()>(&format!("{path}.{field}"), message);
                }
                None
            }
        }
    }

    fn operator(&mut self, path: &str, text: &OperatorText) -> Option<Operator> {
        let name = self.id(&format!("{path}.name"), OperatorName::parse(&text.name));
        let clients = self.list(&format!("{path}.clients"), &text.clients, AtLeast::One, Self::client);
        let powers = self
            .list(&format!("{path}.powers"), &text.powers, AtLeast::One, |check, path, text| check.power(path, text));
        let groups = self.groups(&format!("{path}.app_groups"), &text.app_groups, AtLeast::None);
        let powers: BTreeSet<Power> = powers?.into_iter().collect();
        let groups = groups?;
        if !groups.is_empty() && powers.iter().any(|power| *power != Power::AuthorPolicies) {
            return self.refuse(
                &format!("{path}.app_groups"),
                "confines author_policies alone: give the other powers to an operator of another name",
            );
        }
        Some(Operator { name: name?, clients: clients?, powers, app_groups: groups })
    }

    fn groups(&mut self, path: &str, texts: &[String], at_least: AtLeast) -> Option<BTreeSet<AppGroupName>> {
        let groups = self.list(path, texts, at_least, |check, path, group| check.id(path, AppGroupName::parse(group)));
        Some(groups?.into_iter().collect())
    }

    fn client(&mut self, path: &str, text: &ClientText) -> Option<ClientPattern> {
        match text {
            ClientText { spiffe: Some(text), dns: None, oidc: None } => {
                self.parsed(&format!("{path}.spiffe"), ClientPattern::spiffe(text))
            }
            ClientText { spiffe: None, dns: Some(text), oidc: None } => {
                self.parsed(&format!("{path}.dns"), ClientPattern::dns(text))
            }
            ClientText { spiffe: None, dns: None, oidc: Some(text) } => self.vouched(&format!("{path}.oidc"), text),
            ClientText { spiffe: None, dns: None, oidc: None } => {
                self.refuse(path, "names nobody: write `spiffe: …`, `dns: …` or `oidc: …`")
            }
            _ => self.refuse(path, "names two kinds of client: make two entries of it"),
        }
    }

    fn vouched(&mut self, path: &str, text: &OidcText) -> Option<ClientPattern> {
        let issuer = self.id(&format!("{path}.issuer"), IssuerName::parse(&text.issuer));
        let subject = text.subject.as_ref().map(|glob| self.parsed(&format!("{path}.subject"), ClaimGlob::parse(glob)));
        let claims = self.conditions(&format!("{path}.claims"), &text.claims);
        let subject = subject.map_or(Some(None), |glob| glob.map(Some))?;
        let claims = claims?;
        if subject.is_none() && claims.is_empty() {
            return self.refuse(path, "means everyone whom the issuer vouches for: name a subject or claims");
        }
        Some(ClientPattern::Vouched(VouchedPattern { issuer: issuer?, subject, claims }))
    }

    fn conditions(&mut self, path: &str, texts: &ConditionsText) -> Option<ClaimConditions> {
        let mut out = BTreeMap::new();
        for (name, values) in texts {
            let path = format!("{path}.{}", shown(name));
            if name.is_empty() || name.len() > 200 || !name.bytes().all(|b| b.is_ascii_graphic()) {
                self.refuse::<()>(&path, "is not the name of a claim: 1 to 200 printable ASCII characters");
            }
            if matches!(name.as_str(), "exp" | "nbf" | "iat" | "jti" | "cnf") {
                self.refuse::<()>(&path, "is another for each token; name a claim that says who it is");
            }
            // Whoever may call by this issuer has these: a condition on them would look like a limit and be none.
            if matches!(name.as_str(), "iss" | "aud") {
                let message = "is the same for everyone whom the issuer vouches for, and stands in the issuer's url and \
                               audiences; name a claim that says who it is";
                self.refuse::<()>(&path, message);
            }
            let globs =
                self.list(&path, values, AtLeast::One, |check, path, text| check.parsed(path, ClaimGlob::parse(text)));
            out.extend(globs.map(|globs| (name.clone(), globs)));
        }
        (out.len() == texts.len()).then_some(out)
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
