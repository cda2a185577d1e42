//! Between messages and documents as somebody writes them, both ways, for the service and for its clients.
//!
//! Numbers that are no role, power or kind become text that no check lets pass; so do durations with parts of a second.

use std::collections::{BTreeMap, HashMap};

use prost_types::{Duration, Timestamp};

use super::convert::{millis_in, millis_out, seconds_out};
use super::proto;
use super::proto::client_pattern::Pattern;
use crate::domain::document::{
    AccountText, AppGroupText, CeilingText, ClientText, ConditionsText, Document, HoursText, IssuerText, OidcText,
    OperatorText, PolicyText, QuotaText,
};

impl From<proto::Document> for Document {
    fn from(it: proto::Document) -> Self {
        Self {
            accounts: each(it.accounts),
            app_groups: each(it.app_groups),
            issuers: each(it.issuers),
            ceilings: each(it.ceilings),
            policies: each(it.policies),
            operators: each(it.operators),
        }
    }
}

impl From<Document> for proto::Document {
    fn from(it: Document) -> Self {
        Self {
            accounts: each(it.accounts),
            app_groups: each(it.app_groups),
            issuers: each(it.issuers),
            ceilings: each(it.ceilings),
            policies: each(it.policies),
            operators: each(it.operators),
        }
    }
}

fn each<T, U: From<T>>(items: Vec<T>) -> Vec<U> {
    items.into_iter().map(U::from).collect()
}

impl From<proto::Account> for AccountText {
    fn from(it: proto::Account) -> Self {
        Self { name: it.name, issuer_id: it.issuer_id }
    }
}

impl From<AccountText> for proto::Account {
    fn from(it: AccountText) -> Self {
        Self { name: it.name, issuer_id: it.issuer_id }
    }
}

impl From<proto::AppGroup> for AppGroupText {
    fn from(it: proto::AppGroup) -> Self {
        Self { name: it.name, account: it.account, apps: it.apps }
    }
}

impl From<AppGroupText> for proto::AppGroup {
    fn from(it: AppGroupText) -> Self {
        Self { name: it.name, account: it.account, apps: it.apps }
    }
}

impl From<proto::Issuer> for IssuerText {
    fn from(it: proto::Issuer) -> Self {
        Self {
            name: it.name,
            kind: word(it.kind, |kind: proto::IssuerKind| kind.as_str_name(), "ISSUER_KIND_").to_ascii_lowercase(),
            url: some(it.url),
            jwks_url: some(it.jwks_url),
            jwks: some(it.jwks),
            audiences: it.audiences,
            algorithms: it.algorithms,
            leeway: it.leeway.map(seconds),
            max_age: it.max_age.map(seconds),
            subject: some(it.subject),
            claims: conditions_in(it.claims),
        }
    }
}

impl From<IssuerText> for proto::Issuer {
    fn from(it: IssuerText) -> Self {
        let kind = proto::IssuerKind::from_str_name(&format!("ISSUER_KIND_{}", it.kind.to_ascii_uppercase()));
        Self {
            name: it.name,
            kind: kind.unwrap_or_default().into(),
            url: it.url.unwrap_or_default(),
            jwks_url: it.jwks_url.unwrap_or_default(),
            jwks: it.jwks.unwrap_or_default(),
            audiences: it.audiences,
            algorithms: it.algorithms,
            leeway: it.leeway.map(seconds_out),
            max_age: it.max_age.map(seconds_out),
            subject: it.subject.unwrap_or_default(),
            claims: conditions_out(it.claims),
        }
    }
}

impl From<proto::ClientPattern> for ClientText {
    fn from(it: proto::ClientPattern) -> Self {
        match it.pattern {
            Some(Pattern::Spiffe(text)) => Self { spiffe: Some(text), ..Self::default() },
            Some(Pattern::Dns(text)) => Self { dns: Some(text), ..Self::default() },
            Some(Pattern::Oidc(it)) => {
                let oidc = OidcText { issuer: it.issuer, subject: some(it.subject), claims: conditions_in(it.claims) };
                Self { oidc: Some(oidc), ..Self::default() }
            }
            None => Self::default(),
        }
    }
}

impl From<ClientText> for proto::ClientPattern {
    fn from(it: ClientText) -> Self {
        let oidc = |it: OidcText| proto::OidcPattern {
            issuer: it.issuer,
            subject: it.subject.unwrap_or_default(),
            claims: conditions_out(it.claims),
        };
        let pattern =
            it.spiffe.map(Pattern::Spiffe).or(it.dns.map(Pattern::Dns)).or(it.oidc.map(oidc).map(Pattern::Oidc));
        Self { pattern }
    }
}

impl From<proto::Ceiling> for CeilingText {
    fn from(it: proto::Ceiling) -> Self {
        Self {
            name: it.name,
            app_groups: listed(it.app_groups),
            every_app_group: it.every_app_group,
            max_ttl: it.max_ttl.map(seconds),
            never_roles: listed(it.never_roles).map(roles_in),
            clients: listed(it.clients).map(each),
            issuers: listed(it.issuers),
            trust_domains: listed(it.trust_domains),
            require_scope: it.require_scope,
            no_team_keys: it.no_team_keys,
            require_approval: it.require_approval,
            shadow: it.shadow,
        }
    }
}

impl From<CeilingText> for proto::Ceiling {
    fn from(it: CeilingText) -> Self {
        Self {
            name: it.name,
            app_groups: it.app_groups.unwrap_or_default(),
            every_app_group: it.every_app_group,
            max_ttl: it.max_ttl.map(seconds_out),
            never_roles: roles_out(it.never_roles.unwrap_or_default()),
            clients: each(it.clients.unwrap_or_default()),
            issuers: it.issuers.unwrap_or_default(),
            trust_domains: it.trust_domains.unwrap_or_default(),
            require_scope: it.require_scope,
            no_team_keys: it.no_team_keys,
            require_approval: it.require_approval,
            shadow: it.shadow,
        }
    }
}

impl From<proto::Policy> for PolicyText {
    fn from(it: proto::Policy) -> Self {
        let bound = |number: i64| (number != 0).then_some(number);
        Self {
            name: it.name,
            clients: each(it.clients),
            app_group: it.app_group,
            roles: roles_in(it.roles),
            max_ttl: it.max_ttl.map(seconds),
            default_ttl: it.default_ttl.map(seconds),
            operations: it.operations,
            features: it.features,
            require_scope: it.require_scope,
            require_mtls: each(it.require_mtls),
            // One that bounds nothing is none.
            quota: it.quota.filter(|quota| *quota != proto::Quota::default()).map(|quota| QuotaText {
                tokens_per_hour: bound(quota.tokens_per_hour),
                fresh_per_minute: bound(quota.fresh_per_minute),
            }),
            not_before: it.not_before.as_ref().map(millis_in),
            not_after: it.not_after.as_ref().map(millis_in),
            hours: it.hours.map(|hours| HoursText {
                time_zone: hours.time_zone,
                days: hours.days,
                from: hours.from,
                until: hours.until,
            }),
            break_glass: it.break_glass,
            shadow: it.shadow,
        }
    }
}

impl From<PolicyText> for proto::Policy {
    fn from(it: PolicyText) -> Self {
        let time = |at| -> Timestamp { millis_out(at) };
        Self {
            name: it.name,
            clients: each(it.clients),
            app_group: it.app_group,
            roles: roles_out(it.roles),
            max_ttl: it.max_ttl.map(seconds_out),
            default_ttl: it.default_ttl.map(seconds_out),
            operations: it.operations,
            features: it.features,
            require_scope: it.require_scope,
            require_mtls: each(it.require_mtls),
            quota: it.quota.map(|quota| proto::Quota {
                tokens_per_hour: quota.tokens_per_hour.unwrap_or_default(),
                fresh_per_minute: quota.fresh_per_minute.unwrap_or_default(),
            }),
            not_before: it.not_before.map(time),
            not_after: it.not_after.map(time),
            hours: it.hours.map(|hours| proto::Hours {
                time_zone: hours.time_zone,
                days: hours.days,
                from: hours.from,
                until: hours.until,
            }),
            break_glass: it.break_glass,
            shadow: it.shadow,
        }
    }
}

impl From<proto::Operator> for OperatorText {
    fn from(it: proto::Operator) -> Self {
        let power = |number| word(number, |power: proto::Power| power.as_str_name(), "POWER_").to_ascii_lowercase();
        Self {
            name: it.name,
            clients: each(it.clients),
            powers: it.powers.into_iter().map(power).collect(),
            app_groups: it.app_groups,
        }
    }
}

impl From<OperatorText> for proto::Operator {
    fn from(it: OperatorText) -> Self {
        let power = |name: String| {
            proto::Power::from_str_name(&format!("POWER_{}", name.to_ascii_uppercase())).unwrap_or_default().into()
        };
        Self {
            name: it.name,
            clients: each(it.clients),
            powers: it.powers.into_iter().map(power).collect(),
            app_groups: it.app_groups,
        }
    }
}

/// Values of claims as they are sent.
pub(crate) fn conditions_out(claims: ConditionsText) -> HashMap<String, proto::ClaimValues> {
    claims.into_iter().map(|(name, values)| (name, proto::ClaimValues { values })).collect()
}

pub(super) fn conditions_in(claims: HashMap<String, proto::ClaimValues>) -> ConditionsText {
    claims.into_iter().map(|(name, values)| (name, values.values)).collect::<BTreeMap<_, _>>()
}

fn roles_in(numbers: Vec<i32>) -> Vec<String> {
    numbers.into_iter().map(|number| word(number, |role: proto::Role| role.as_str_name(), "ROLE_")).collect()
}

fn roles_out(names: Vec<String>) -> Vec<i32> {
    let number = |name: String| proto::Role::from_str_name(&format!("ROLE_{name}")).unwrap_or_default().into();
    names.into_iter().map(number).collect()
}

/// The name of a number, without what all names of its kind begin with.
fn word<E: TryFrom<i32> + Default + PartialEq>(number: i32, name: impl Fn(E) -> &'static str, prefix: &str) -> String {
    match E::try_from(number).ok().filter(|known| *known != E::default()) {
        Some(known) => name(known).trim_start_matches(prefix).to_owned(),
        None => number.to_string(),
    }
}

fn seconds(duration: Duration) -> i64 {
    if duration.nanos == 0 { duration.seconds } else { -1 }
}

fn some(text: String) -> Option<String> {
    Some(text).filter(|text| !text.is_empty())
}

fn listed<T>(items: Vec<T>) -> Option<Vec<T>> {
    Some(items).filter(|items| !items.is_empty())
}
