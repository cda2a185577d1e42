//! Worlds for properties: documents that check and plan, keys, revocations, and callers of every kind.
//!
//! Names come from small pools, so that patterns meet callers, ceilings meet policies and keys meet both; times lie on
//! half hours around [`NOW`], or close to it.

mod document;

use std::collections::BTreeSet;

use proptest::collection::{btree_set, vec};
use proptest::option;
use proptest::prelude::*;
use proptest::sample::{select, subsequence};

use super::change::{Actor, AuditPosition, Change, Record};
use super::claims::Claims;
use super::document::Document;
use super::key::{AppAccess, Key, KeyKind, KeyState, Profile, Stamp};
use super::operation::Operation;
use super::plan::{Unnamed, plan};
use super::principal::{Facts, Principal};
use super::role::Role;
use super::state::State;
use super::target::Target;
use crate::clock::UnixMillis;
use crate::id::{AccountName, AppGroupName, AppId, AppleUser, Chain, ClientId, KeyId, PolicyName, Revision, WriterId};

use document::texts;
pub(crate) use document::{any_ceiling, any_document};

/// Friday, 15 January 2027, 08:00 UTC.
pub(crate) const NOW: UnixMillis = UnixMillis(1_800_000_000_000);

/// The roles that policies and keys have.
pub(crate) const ROLES: [Role; 4] = [Role::Admin, Role::AppManager, Role::Developer, Role::CustomerSupport];

const GROUPS: [&str; 3] = ["games", "tools", "lab"];

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

prop_compose! {
    fn any_key()(
        kind in 0..4_u8,
        roles in subsequence(ROLES.to_vec(), 1..=2),
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
        keys in vec(any_key(), 1..8),
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
