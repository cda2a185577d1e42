//! The way back: what is in force, as somebody would write it. Defaults are written out.

use super::{
    AccountText, AppGroupText, CeilingText, ClientText, ConditionsText, Document, HoursText, IssuerText, OidcText,
    OperatorText, PolicyText, QuotaText,
};
use crate::domain::account::Account;
use crate::domain::app_group::AppGroup;
use crate::domain::ceiling::Ceiling;
use crate::domain::change::Object;
use crate::domain::claims::ClaimConditions;
use crate::domain::hours::Hours;
use crate::domain::issuer::{Issuer, IssuerKeys};
use crate::domain::operator::Operator;
use crate::domain::pattern::ClientPattern;
use crate::domain::policy::Policy;
use crate::domain::quota::Quota;
use crate::domain::role::RoleSet;
use crate::domain::state::State;

impl Document {
    /// The whole desired state that is in force: applied again, it changes nothing.
    pub fn of(state: &State) -> Self {
        Self {
            accounts: state.accounts().values().map(AccountText::of).collect(),
            app_groups: state.app_groups().values().map(|it| AppGroupText::of(it)).collect(),
            issuers: state.issuers().values().map(|it| IssuerText::of(it)).collect(),
            ceilings: state.ceilings().values().map(|it| CeilingText::of(it)).collect(),
            policies: state.policies().values().map(|it| PolicyText::of(it)).collect(),
            operators: state.operators().values().map(|it| OperatorText::of(it)).collect(),
        }
    }

    /// These things, each in the list of its kind.
    pub fn of_objects<'a>(objects: impl IntoIterator<Item = &'a Object>) -> Self {
        let mut out = Self::default();
        for object in objects {
            match object {
                Object::Account(it) => out.accounts.push(AccountText::of(it)),
                Object::AppGroup(it) => out.app_groups.push(AppGroupText::of(it)),
                Object::Issuer(it) => out.issuers.push(IssuerText::of(it)),
                Object::Ceiling(it) => out.ceilings.push(CeilingText::of(it)),
                Object::Policy(it) => out.policies.push(PolicyText::of(it)),
                Object::Operator(it) => out.operators.push(OperatorText::of(it)),
            }
        }
        out
    }
}

fn texts<T: ToString>(items: impl IntoIterator<Item = T>) -> Vec<String> {
    items.into_iter().map(|item| item.to_string()).collect()
}

fn some_texts<T: ToString>(items: impl IntoIterator<Item = T>) -> Option<Vec<String>> {
    Some(texts(items)).filter(|list| !list.is_empty())
}

fn roles(roles: RoleSet) -> Vec<String> {
    texts(roles.iter())
}

fn clients(patterns: &[ClientPattern]) -> Vec<ClientText> {
    patterns.iter().map(ClientText::of).collect()
}

fn conditions(claims: &ClaimConditions) -> ConditionsText {
    claims.iter().map(|(name, globs)| (name.clone(), texts(globs))).collect()
}

impl AccountText {
    /// As somebody would write it.
    pub fn of(account: &Account) -> Self {
        Self { name: account.name.to_string(), issuer_id: account.issuer_id.to_string() }
    }
}

impl AppGroupText {
    /// As somebody would write it.
    pub fn of(group: &AppGroup) -> Self {
        Self { name: group.name.to_string(), account: group.account.to_string(), apps: texts(&group.apps) }
    }
}

impl IssuerText {
    /// As somebody would write it.
    pub fn of(issuer: &Issuer) -> Self {
        let (jwks_url, jwks) = match &issuer.keys {
            IssuerKeys::Discovery => (None, None),
            IssuerKeys::JwksUrl(url) => (Some(url.clone()), None),
            IssuerKeys::Pinned(keys) => (None, Some(keys.clone())),
        };
        Self {
            name: issuer.name.to_string(),
            kind: issuer.kind.as_str().to_owned(),
            url: Some(issuer.url.clone()),
            jwks_url,
            jwks,
            audiences: texts(&issuer.audiences),
            algorithms: issuer.algorithms.iter().map(|it| it.as_str().to_owned()).collect(),
            leeway: Some(issuer.leeway_s),
            max_age: Some(issuer.max_age_s),
            subject: issuer.subject.as_ref().map(ToString::to_string),
            claims: conditions(&issuer.claims),
        }
    }
}

impl ClientText {
    /// As somebody would write it.
    pub fn of(pattern: &ClientPattern) -> Self {
        match (pattern, pattern.name_parts()) {
            (_, Some(("dns", name))) => Self { dns: Some(name.to_owned()), ..Self::default() },
            (_, Some((_, id))) => Self { spiffe: Some(id.to_owned()), ..Self::default() },
            (ClientPattern::Vouched(it), None) => Self {
                oidc: Some(OidcText {
                    issuer: it.issuer.to_string(),
                    subject: it.subject.as_ref().map(ToString::to_string),
                    claims: conditions(&it.claims),
                }),
                ..Self::default()
            },
            (ClientPattern::Name(_), None) => Self::default(),
        }
    }
}

impl CeilingText {
    /// As somebody would write it.
    pub fn of(ceiling: &Ceiling) -> Self {
        let callers = &ceiling.callers;
        Self {
            name: ceiling.name.to_string(),
            app_groups: ceiling.app_groups.as_ref().map(texts),
            every_app_group: ceiling.app_groups.is_none(),
            max_ttl: ceiling.max_ttl_s,
            never_roles: some_texts(ceiling.never_roles.iter()),
            clients: Some(clients(&callers.clients)).filter(|list| !list.is_empty()),
            issuers: some_texts(&callers.issuers),
            trust_domains: some_texts(&callers.trust_domains),
            require_scope: ceiling.require_scope,
            no_team_keys: ceiling.no_team_keys,
            require_approval: ceiling.require_approval,
            shadow: ceiling.shadow,
        }
    }
}

impl PolicyText {
    /// As somebody would write it.
    pub fn of(policy: &Policy) -> Self {
        Self {
            name: policy.name.to_string(),
            clients: clients(&policy.clients),
            app_group: policy.app_group.to_string(),
            roles: roles(policy.roles),
            max_ttl: Some(policy.max_ttl_s),
            default_ttl: Some(policy.default_ttl_s),
            operations: texts(&policy.operations),
            features: texts(&policy.features),
            require_scope: policy.require_scope,
            require_mtls: clients(&policy.require_mtls),
            quota: policy.quota.as_ref().map(QuotaText::of),
            not_before: policy.not_before,
            not_after: policy.not_after,
            hours: policy.hours.as_ref().map(HoursText::of),
            break_glass: policy.break_glass,
            shadow: policy.shadow,
        }
    }
}

impl QuotaText {
    fn of(quota: &Quota) -> Self {
        Self {
            tokens_per_hour: quota.tokens_per_hour.map(i64::from),
            fresh_per_minute: quota.fresh_per_minute.map(i64::from),
        }
    }
}

impl HoursText {
    fn of(hours: &Hours) -> Self {
        Self {
            time_zone: hours.time_zone().to_owned(),
            days: texts(hours.days()),
            from: hours.from(),
            until: hours.until(),
        }
    }
}

impl OperatorText {
    /// As somebody would write it.
    pub fn of(operator: &Operator) -> Self {
        Self {
            name: operator.name.to_string(),
            clients: clients(&operator.clients),
            powers: operator.powers.iter().map(|power| power.as_str().to_owned()).collect(),
            app_groups: texts(&operator.app_groups),
        }
    }
}
