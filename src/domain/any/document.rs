//! Documents: policies and ceilings of every kind, over a few groups and issuers that are always the same.

use proptest::collection::vec;
use proptest::option;
use proptest::prelude::*;
use proptest::sample::{select, subsequence};

use super::{GROUPS, NOW, ROLES};
use crate::clock::UnixMillis;
use crate::domain::document::{
    AccountText, AppGroupText, CeilingText, ClientText, Document, HoursText, IssuerText, OidcText, OperatorText,
    PolicyText,
};

const OPERATIONS: [&str; 5] = [
    "GET /v1/apps",
    "GET /v1/apps/{app}/customerReviews",
    "GET /v1/builds?filter[app]={app}",
    "GET /v1/ciBuildRuns/5",
    "GET /v1/ciProducts",
];
const FEATURES: [&str; 6] =
    ["reviews:read", "reviews:write", "xcode-cloud:read", "metadata:write", "builds:read", "analytics:read"];

pub(super) fn texts(list: &[&str]) -> Vec<String> {
    list.iter().map(|text| (*text).to_owned()).collect()
}

fn spiffe(text: &str) -> ClientText {
    ClientText { spiffe: Some(text.to_owned()), ..ClientText::default() }
}

fn dns(text: &str) -> ClientText {
    ClientText { dns: Some(text.to_owned()), ..ClientText::default() }
}

fn oidc(issuer: &str, subject: Option<&str>, claims: &[(&str, &[&str])]) -> ClientText {
    let claims = claims.iter().map(|(name, values)| ((*name).to_owned(), texts(values))).collect();
    let oidc = OidcText { issuer: issuer.to_owned(), subject: subject.map(str::to_owned), claims };
    ClientText { oidc: Some(oidc), ..ClientText::default() }
}

fn names() -> Vec<ClientText> {
    vec![
        spiffe("spiffe://acme/ci"),
        spiffe("spiffe://acme/ns/*"),
        spiffe("spiffe://acme/ns/b*"),
        spiffe("spiffe://acme/ns/a"),
        spiffe("spiffe://beta/ci"),
        dns("ci.acme.internal"),
        dns("ci*.acme.internal"),
    ]
}

fn clients() -> Vec<ClientText> {
    let mut out = names();
    out.extend([
        oidc("github", None, &[("repository_id", &["41", "42"])]),
        oidc("github", None, &[("repository", &["acme/*"]), ("ref", &["refs/heads/main", "refs/tags/v*"])]),
        oidc("github", Some("repo:acme/*:ref:refs/heads/main"), &[]),
        oidc("corp", Some("release-*"), &[]),
        oidc("corp", Some("bot"), &[("groups", &["ops-*"])]),
        oidc("corp", None, &[("azp", &["app"])]),
    ]);
    out
}

fn any_ttl() -> impl Strategy<Value = i64> {
    select(vec![30, 60, 600, 1080, 1100, 1200])
}

/// A time on a half hour, or close to now.
fn any_time() -> impl Strategy<Value = UnixMillis> {
    let half_hours = (-144..=240_i64).prop_map(|nth| nth * 1_800_000);
    let close = select(vec![-1, 0, 1, 500, 999, 1000, 60_000]);
    prop_oneof![1 => half_hours, 1 => close].prop_map(|by| UnixMillis(NOW.0 + by))
}

prop_compose! {
    fn any_hours()(
        time_zone in select(vec!["Etc/UTC", "Europe/Berlin", "Asia/Kathmandu"]),
        days in subsequence(vec!["mon", "tue", "wed", "thu", "fri", "sat", "sun"], 1..=7),
        from in 0..24_u8,
        length in 1..=24_u8,
    ) -> HoursText {
        let until = if from == 0 && length == 24 { 24 } else { (from + length.min(23)) % 24 };
        HoursText {
            time_zone: time_zone.to_owned(),
            days: texts(&days),
            from: format!("{from:02}:00"),
            until: format!("{until:02}:00"),
        }
    }
}

prop_compose! {
    pub(crate) fn any_policy()(
        clients in subsequence(clients(), 1..=4),
        app_group in select(&GROUPS[..]),
        roles in subsequence(ROLES.map(|role| role.as_str().to_owned()).to_vec(), 1..=4),
        ttl in any_ttl(),
        long in option::weighted(0.3, select(vec![86_400_i64, 15_000_000])),
        operations in subsequence(texts(&OPERATIONS), 0..=3),
        features in subsequence(texts(&FEATURES), 0..=2),
        narrow in (any::<bool>(), any::<bool>(), prop::bool::weighted(0.2)),
        require_mtls in option::weighted(0.2, subsequence(names(), 1..=2)),
        not_before in option::weighted(0.25, any_time()),
        not_after in option::weighted(0.25, any_time()),
        hours in option::weighted(0.25, any_hours()),
        break_glass in prop::bool::weighted(0.15),
        shadow in prop::bool::weighted(0.1),
    ) -> PolicyText {
        let (by_operations, by_features, require_scope) = narrow;
        let features = if by_features { features } else { vec![] };
        let writes = features.iter().any(|feature| feature.ends_with(":write"));
        let operations = if by_operations && !writes { operations } else { vec![] };
        let lasting = !operations.is_empty() && features.is_empty() && operations.iter().all(|it| it.contains("/ci"));
        PolicyText {
            name: String::new(),
            clients,
            app_group: app_group.to_owned(),
            roles,
            max_ttl: long.filter(|_| lasting).or(Some(ttl)),
            operations,
            features,
            require_scope: require_scope && !writes,
            require_mtls: require_mtls.unwrap_or_default(),
            not_before,
            not_after: not_after.filter(|end| not_before.is_none_or(|start| start < *end)),
            hours,
            break_glass,
            shadow,
            ..PolicyText::default()
        }
    }
}

prop_compose! {
    pub(crate) fn any_ceiling()(
        app_groups in option::of(subsequence(texts(&GROUPS), 1..=2)),
        max_ttl in option::weighted(0.4, prop_oneof![any_ttl(), Just(100_000)]),
        never_roles in option::weighted(0.3, subsequence(ROLES.map(|role| role.as_str().to_owned()).to_vec(), 1..=2)),
        callers in option::weighted(0.3, (
            subsequence(clients(), 1..=5),
            option::weighted(0.3, subsequence(texts(&["github", "corp"]), 1..=2)),
            option::weighted(0.3, subsequence(texts(&["acme", "beta"]), 1..=2)),
        )),
        require_scope in prop::bool::weighted(0.15),
        no_team_keys in prop::bool::weighted(0.2),
        shadow in prop::bool::weighted(0.2),
    ) -> CeilingText {
        let (clients, issuers, trust_domains) = callers.map_or((None, None, None), |(a, b, c)| (Some(a), b, c));
        let bounds = max_ttl.is_some() || never_roles.is_some() || clients.is_some() || require_scope;
        CeilingText {
            name: String::new(),
            every_app_group: app_groups.is_none(),
            app_groups,
            max_ttl,
            never_roles,
            clients,
            issuers,
            trust_domains,
            require_scope,
            no_team_keys: no_team_keys || !bounds,
            require_approval: false,
            shadow,
        }
    }
}

prop_compose! {
    pub(crate) fn any_document()(
        policies in vec(any_policy(), 1..8),
        ceilings in vec(any_ceiling(), 0..4),
        bots_alone in prop::bool::weighted(0.2),
    ) -> Document {
        let account = |name: &str, issuer_id: &str| AccountText { name: name.to_owned(), issuer_id: issuer_id.to_owned() };
        let group = |name: &str, account: &str, apps: &[&str]| {
            AppGroupText { name: name.to_owned(), account: account.to_owned(), apps: texts(apps) }
        };
        let issuer = |name: &str, kind: &str, url: Option<&str>, subject: Option<&str>| IssuerText {
            name: name.to_owned(),
            kind: kind.to_owned(),
            url: url.map(str::to_owned),
            audiences: texts(&["p8broker"]),
            subject: subject.map(str::to_owned),
            ..IssuerText::default()
        };
        Document {
            accounts: vec![
                account("acme", "57246542-96fe-1a63-e053-0824d011072a"),
                account("other", "57246542-96fe-1a63-e053-0824d011072b"),
            ],
            app_groups: vec![
                group("games", "acme", &["111", "222"]),
                group("tools", "acme", &["333"]),
                group("lab", "other", &["444"]),
            ],
            issuers: vec![
                issuer("github", "github_actions", None, None),
                issuer("corp", "oidc", Some("https://corp.example"), bots_alone.then_some("bot*")),
            ],
            ceilings: ceilings.into_iter().enumerate()
                .map(|(nth, ceiling)| CeilingText { name: format!("c{nth}"), ..ceiling }).collect(),
            policies: policies.into_iter().enumerate()
                .map(|(nth, policy)| PolicyText { name: format!("p{nth}"), ..policy }).collect(),
            operators: vec![OperatorText {
                name: "admin".to_owned(),
                clients: vec![spiffe("spiffe://acme/admin")],
                powers: texts(&["administer"]),
                app_groups: vec![],
            }],
        }
    }
}
