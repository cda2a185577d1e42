//! Worlds for properties: documents that check and plan, keys, revocations, and callers of every kind.
//!
//! Names come from small pools, so that patterns meet callers, ceilings meet policies and keys meet both; times lie on
//! half hours around [`NOW`], or close to it.

use std::collections::BTreeSet;

use proptest::collection::{btree_set, vec};
use proptest::option;
use proptest::prelude::*;
use proptest::sample::{select, subsequence};

use super::change::{Actor, AuditPosition, Change, Record};
use super::claims::Claims;
use super::document::{
    AccountText, AppGroupText, CeilingText, ClientText, Document, HoursText, IssuerText, OidcText, OperatorText,
    PolicyText,
};
use super::key::{AppAccess, Key, KeyKind, KeyState, Profile, Stamp};
use super::operation::Operation;
use super::plan::{Unnamed, plan};
use super::principal::{Facts, Principal};
use super::role::Role;
use super::state::State;
use super::target::Target;
use crate::clock::UnixMillis;
use crate::id::{AccountName, AppGroupName, AppId, AppleUser, Chain, ClientId, KeyId, PolicyName, Revision, WriterId};

/// Friday, 15 January 2027, 08:00 UTC.
pub(crate) const NOW: UnixMillis = UnixMillis(1_800_000_000_000);

/// The roles that policies and keys have.
pub(crate) const ROLES: [Role; 4] = [Role::Admin, Role::AppManager, Role::Developer, Role::CustomerSupport];

const GROUPS: [&str; 3] = ["games", "tools", "lab"];
const OPERATIONS: [&str; 5] = [
    "GET /v1/apps",
    "GET /v1/apps/{app}/customerReviews",
    "GET /v1/builds?filter[app]={app}",
    "GET /v1/ciBuildRuns/5",
    "GET /v1/ciProducts",
];
const FEATURES: [&str; 6] =
    ["reviews:read", "reviews:write", "xcode-cloud:read", "metadata:write", "builds:read", "analytics:read"];

/// Scopes that requests have: for each policy that grants a read, one of them holds one, long-lived where it can be.
pub(crate) const SCOPES: [&[&str]; 15] = [
    &[],
    &["GET /v1/apps"],
    &["GET /v1/apps/111/customerReviews"],
    &["GET /v1/apps/333/customerReviews"],
    &["GET /v1/apps/444/customerReviews"],
    &["GET /v1/apps/999/customerReviews"],
    &["GET /v1/builds?filter[app]=222&limit=5"],
    &["GET /v1/builds?filter[app]=333"],
    &["GET /v1/builds?filter[app]=444"],
    &["GET /v1/builds"],
    &["GET /v1/diagnosticSignatures/7/logs"],
    &["GET /v1/ciBuildRuns/5"],
    &["GET /v1/ciProducts"],
    &["GET /v1/ciProducts?include=app"],
    &["GET /v1/apps", "GET /v1/ciProducts"],
];

/// Everything that a state is folded from.
#[derive(Debug, Clone)]
pub(crate) struct World {
    pub(crate) document: Document,
    pub(crate) keys: Vec<Key>,
    pub(crate) revoked: Vec<Target>,
    /// Break-glass policies by number, and for how many seconds each is open.
    pub(crate) opened: Vec<(usize, i64)>,
    pub(crate) sealed: bool,
}

/// One more record.
pub(crate) fn fold(state: &mut State, change: Change) {
    let record = Record {
        revision: state.head().revision.next(),
        at: NOW,
        actor: Actor::broker(),
        audit: AuditPosition { writer: WriterId::from_random(1), sequence: 1 },
        change,
    };
    state.fold(&record, Chain([7; 32])).unwrap();
}

/// Applies a document, as it is.
pub(crate) fn apply(state: &mut State, document: &Document, unnamed: Unnamed) {
    let desired = document.check().unwrap_or_else(|wrong| panic!("{wrong:?}"));
    let planned = plan(&desired, unnamed, state).unwrap_or_else(|wrong| panic!("{wrong:?}"));
    if let Some(change) = planned.change {
        fold(state, change);
    }
}

impl World {
    /// Everything but the document: keys, revocations, open policies.
    pub(crate) fn changes(&self) -> Vec<Change> {
        let mut out: Vec<Change> =
            self.keys.iter().map(|key| Change::KeyImported { key: Box::new(key.clone()) }).collect();
        let policies = self.document.policies.iter().filter(|policy| policy.break_glass).collect::<Vec<_>>();
        let opened = self.opened.iter().filter_map(|(nth, seconds)| Some((policies.get(*nth)?, seconds)));
        out.extend(opened.map(|(policy, seconds)| Change::BreakGlassOpened {
            policy: PolicyName::parse(&policy.name).unwrap(),
            until: NOW.seconds() + seconds,
            reason: "why".to_owned(),
        }));
        let is_there =
            |target: &&Target| !matches!(target, Target::Key(id) if !self.keys.iter().any(|key| key.id == *id));
        let revoked = self.revoked.iter().filter(is_there).cloned();
        out.extend(revoked.map(|target| Change::Revoked { target, reason: "why".to_owned(), dies_at: None }));
        if self.sealed {
            out.push(Change::VaultSealed { reason: "why".to_owned() });
        }
        out
    }

    pub(crate) fn state(&self) -> State {
        let mut state = State::default();
        apply(&mut state, &self.document, Unnamed::Keep);
        self.changes().into_iter().for_each(|change| fold(&mut state, change));
        state
    }
}

/// Callers of every kind, as far as their issuers are trusted for them; some with all claims and some with none, some with
/// a certificate beside.
pub(crate) fn principals(state: &State) -> Vec<Principal> {
    let id = |text: &str| ClientId::parse(text).unwrap();
    let imagined = |text: &str, claims: &[(&str, &str)], certificate: Option<&str>| {
        let facts = Facts { certificate: certificate.map(id), claims: Claims::from_pairs(claims.iter().copied()) };
        Principal::imagined(id(text), facts, state.issuers())
    };
    let bot = "oidc:github:repo:acme/bot:ref:refs/heads/main";
    let claims = [("repository_id", "42"), ("repository", "acme/bot"), ("ref", "refs/heads/main")];
    let all = vec![
        imagined("spiffe://acme/ci", &[], None),
        imagined("spiffe://acme/ns/a", &[], None),
        imagined("spiffe://acme/ns/b1", &[], None),
        imagined("spiffe://beta/ci", &[], None),
        imagined("dns:ci.acme.internal", &[], None),
        imagined("dns:ci-1.acme.internal", &[], None),
        imagined(bot, &claims, None),
        imagined(bot, &claims, Some("spiffe://acme/ci")),
        imagined(bot, &[("ref", "refs/heads/dev")], None),
        imagined(bot, &[], Some("spiffe://acme/ns/b1")),
        imagined("oidc:github:repo:evil/bot", &[("repository_id", "43"), ("repository", "evil/bot")], None),
        imagined("oidc:corp:bot", &[("groups", "x"), ("groups", "ops-1")], None),
        imagined("oidc:corp:release-1", &[("azp", "app")], Some("dns:ci.acme.internal")),
        imagined("oidc:corp:release-1", &[], None),
    ];
    let covered = |it: &Principal| it.vouched.as_ref().is_none_or(|it| it.issuer.covers(&it.subject, &it.claims));
    all.into_iter().filter(covered).collect()
}

/// The scope as a request has it.
pub(crate) fn scope(texts: &[&str]) -> Vec<Operation> {
    texts.iter().map(|text| Operation::parse(text).unwrap()).collect()
}

pub(crate) fn group(name: &str) -> AppGroupName {
    AppGroupName::parse(name).unwrap()
}

/// All groups of a world.
pub(crate) fn groups() -> [AppGroupName; 3] {
    GROUPS.map(group)
}

fn texts(list: &[&str]) -> Vec<String> {
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
        oidc("github", None, &[("repository_id", &["42"])]),
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
    prop_oneof![3 => half_hours, 1 => close].prop_map(|by| UnixMillis(NOW.0 + by))
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
        policies in vec(any_policy(), 0..7),
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

prop_compose! {
    fn any_key()(
        kind in 0..4_u8,
        roles in subsequence(ROLES.to_vec(), 1..=4),
        group in select(&GROUPS[..]),
        both in any::<bool>(),
        state in select(vec![KeyState::Active, KeyState::Active, KeyState::Active, KeyState::Suspended, KeyState::Revoked]),
    ) -> Key {
        let of_acme = group != "lab";
        let mut app_groups: BTreeSet<_> = [self::group(group)].into();
        if of_acme && both {
            app_groups.extend([self::group("games"), self::group("tools")]);
        }
        let user = AppleUser::parse("a@b").unwrap();
        let only = |apps: &[&str]| AppAccess::Only(apps.iter().map(|app| AppId::parse(app).unwrap()).collect());
        let individual = |app_access| KeyKind::Individual { user, app_access, declared_at: NOW };
        Key {
            id: KeyId::parse("AAAAAAAAAA").unwrap(),
            account: AccountName::parse(if of_acme { "acme" } else { "other" }).unwrap(),
            profile: Profile::AppStoreConnect,
            kind: match kind {
                0 => individual(AppAccess::All),
                1 => individual(only(&["111"])),
                _ => KeyKind::Team,
            },
            roles: roles.into_iter().collect(),
            app_groups,
            fingerprint: String::new(),
            public_key: String::new(),
            state,
            imported: Stamp { by: "x".to_owned(), at: NOW },
            imported_revision: Revision(0),
            revoked: None,
            confirmed_at_apple: None,
        }
    }
}

fn any_target() -> impl Strategy<Value = Target> {
    let clients = ["spiffe://acme/ci", "spiffe://acme/ns/a", "dns:ci.acme.internal", "oidc:corp:bot"];
    let parse = |kind: &'static str| move |name: String| Target::parse(kind, &name).unwrap().unwrap();
    prop_oneof![
        3 => select(texts(&clients)).prop_map(parse("client")),
        3 => (0..7_u8).prop_map(|nth| format!("p{nth}")).prop_map(parse("policy")),
        1 => select(texts(&GROUPS)).prop_map(parse("app-group")),
        1 => select(texts(&["acme", "other"])).prop_map(parse("account")),
        1 => select(texts(&["github", "corp"])).prop_map(parse("issuer")),
        2 => (0..7_u8).prop_map(|nth| format!("KEY000000{nth}")).prop_map(parse("key")),
    ]
}

prop_compose! {
    pub(crate) fn any_world()(
        document in any_document(),
        keys in vec(any_key(), 0..7),
        revoked in option::weighted(0.4, btree_set(any_target(), 1..3)),
        opened in btree_set(0..2_usize, 0..2),
        open_for in select(vec![-5_i64, 1, 90, 3600]),
        sealed in prop::bool::weighted(0.03),
    ) -> World {
        let keys = keys.into_iter().enumerate()
            .map(|(nth, key)| Key { id: KeyId::parse(&format!("KEY000000{nth}")).unwrap(), ..key }).collect();
        World {
            document,
            keys,
            revoked: revoked.unwrap_or_default().into_iter().collect(),
            opened: opened.into_iter().map(|nth| (nth, open_for)).collect(),
            sealed,
        }
    }
}

/// The principal with these claims besides.
pub(crate) fn with_claims(principal: &Principal, more: &[(String, String)], state: &State) -> Principal {
    let known = principal.vouched.as_ref().map(|vouched| vouched.claims.clone()).unwrap_or_default();
    let known = known.iter().flat_map(|(name, values)| values.iter().map(move |value| (name, value.as_str())));
    let more = more.iter().map(|(name, value)| (name.as_str(), value.as_str()));
    let claims = Claims::from_pairs(known.chain(more));
    let facts = Facts { certificate: principal.certificate.clone(), claims };
    Principal::imagined(principal.client.clone(), facts, state.issuers())
}
