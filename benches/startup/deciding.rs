//! A decision, with few policies and with 100,000 over 10,000 app groups under 1,000 ceilings, by kinds of callers.

use std::collections::BTreeMap;
use std::hint::black_box;
use std::sync::Arc;

use p8broker::clock::{Stopwatch, UnixMillis};
use p8broker::domain::change::{Actor, AuditPosition, Change, Object, Record};
use p8broker::domain::claims::Claims;
use p8broker::domain::decide::{TokenRequest, decide};
use p8broker::domain::document::{
    AccountText, AppGroupText, CeilingText, ClientText, Document, IssuerText, OidcText, PolicyText,
};
use p8broker::domain::key::{Key, KeyKind, KeyState, Profile, Stamp};
use p8broker::domain::principal::{Principal, Vouched};
use p8broker::domain::role::Role;
use p8broker::domain::state::State;
use p8broker::id::{AccountName, AppGroupName, Chain, ClientId, IssuerName, KeyId, Revision, WriterId};

use crate::median;

const NOW: UnixMillis = UnixMillis(1_800_000_000_000);

/// Policies of the one app group that has as many as there may be.
const FULL: usize = 100;

fn texts(list: &[&str]) -> Vec<String> {
    list.iter().map(|text| (*text).to_owned()).collect()
}

/// Every fourth names a certificate exactly, by a glob, and what GitHub says, by id or by name.
fn client(nth: usize) -> ClientText {
    let oidc = |claims: &[(&str, String)]| {
        let claims = claims.iter().map(|(name, value)| ((*name).to_owned(), vec![value.clone()])).collect();
        let oidc = OidcText { issuer: "github".to_owned(), subject: None, claims };
        ClientText { oidc: Some(oidc), ..ClientText::default() }
    };
    match nth % 4 {
        0 => ClientText { spiffe: Some(format!("spiffe://acme.internal/ns/ci/sa/job-{nth}")), ..ClientText::default() },
        1 => {
            ClientText { spiffe: Some(format!("spiffe://acme.internal/ns/ci/sa/job-{nth}-*")), ..ClientText::default() }
        }
        2 => oidc(&[("repository_id", nth.to_string()), ("ref", "refs/tags/v*".to_owned())]),
        _ => oidc(&[("repository", format!("acme/app-{nth}-*")), ("environment", "production".to_owned())]),
    }
}

fn document(policies: usize, groups: usize, ceilings: usize) -> Document {
    let group = |nth: usize| format!("g{nth}");
    let in_group = |nth: usize| if nth < FULL { 0 } else { nth % groups };
    // In the last group everybody is named by every policy.
    let everyone = vec![ClientText {
        spiffe: Some("spiffe://acme.internal/ns/ci/sa/everyone".to_owned()),
        ..ClientText::default()
    }];
    let policy = |nth: usize, clients: Vec<ClientText>, group: String| PolicyText {
        name: format!("p{nth:06}"),
        clients,
        app_group: group,
        roles: texts(&["APP_MANAGER"]),
        ..PolicyText::default()
    };
    let ceiling = |nth: usize| CeilingText {
        name: format!("c{nth:04}"),
        every_app_group: nth < 10,
        app_groups: (nth >= 10).then(|| (0..10).map(|step| group((nth * 10 + step) % groups)).collect()),
        max_ttl: Some(900 + i64::try_from(nth % 60).unwrap()),
        never_roles: Some(texts(if nth.is_multiple_of(2) { &["ADMIN"] } else { &["ACCOUNT_HOLDER", "FINANCE"] })),
        trust_domains: nth.is_multiple_of(3).then(|| texts(&["acme.internal"])),
        issuers: nth.is_multiple_of(3).then(|| texts(&["github"])),
        ..CeilingText::default()
    };
    let mut app_groups: Vec<_> = (0..groups).map(group).collect();
    app_groups.push("everyone".to_owned());
    Document {
        accounts: vec![AccountText {
            name: "acme".to_owned(),
            issuer_id: "57246542-96fe-1a63-e053-0824d011072a".to_owned(),
        }],
        app_groups: app_groups
            .into_iter()
            .map(|name| AppGroupText { name, account: "acme".to_owned(), apps: texts(&["1234567890"]) })
            .collect(),
        issuers: vec![IssuerText {
            name: "github".to_owned(),
            kind: "github_actions".to_owned(),
            audiences: texts(&["p8broker"]),
            ..IssuerText::default()
        }],
        ceilings: (0..ceilings).map(ceiling).collect(),
        policies: (0..policies)
            .map(|nth| policy(nth, vec![client(nth)], group(in_group(nth))))
            .chain((0..FULL).map(|nth| policy(policies + nth, everyone.clone(), "everyone".to_owned())))
            .collect(),
        ..Document::default()
    }
}

fn state(policies: usize, groups: usize, ceilings: usize) -> State {
    let desired = document(policies, groups, ceilings).check().unwrap();
    let mut put: Vec<Object> = desired.accounts.into_iter().map(Object::Account).collect();
    put.extend(desired.app_groups.iter().cloned().map(Object::AppGroup));
    put.extend(desired.issuers.into_iter().map(Arc::new).map(Object::Issuer));
    put.extend(desired.ceilings.into_iter().map(Arc::new).map(Object::Ceiling));
    put.extend(desired.policies.into_iter().map(Arc::new).map(Object::Policy));
    let key = Key {
        id: KeyId::parse("AAAAAAAAAA").unwrap(),
        account: AccountName::parse("acme").unwrap(),
        profile: Profile::AppStoreConnect,
        kind: KeyKind::Team,
        roles: [Role::AppManager].into_iter().collect(),
        app_groups: desired.app_groups.into_iter().map(|group| group.name).collect(),
        fingerprint: String::new(),
        public_key: String::new(),
        state: KeyState::Active,
        imported: Stamp { by: String::new(), at: UnixMillis(0) },
        imported_revision: Revision(0),
        revoked: None,
        confirmed_at_apple: None,
    };
    let mut state = State::default();
    for change in [Change::DocumentApplied { put, removed: vec![] }, Change::KeyImported { key: Box::new(key) }] {
        let record = Record {
            revision: state.head().revision.next(),
            at: UnixMillis(0),
            actor: Actor::broker(),
            audit: AuditPosition { writer: WriterId::from_random(1), sequence: 1 },
            change,
        };
        state.fold(&record, Chain::default()).unwrap();
    }
    state
}

fn certified(name: &str) -> Principal {
    Principal::of_certificate(ClientId::parse(name).unwrap())
}

fn vouched(state: &State, claims: &[(&str, &str)]) -> Principal {
    let issuer = Arc::clone(&state.issuers()[&IssuerName::parse("github").unwrap()]);
    let mut all = BTreeMap::from([("repository_owner", "acme"), ("run_id", "7"), ("event_name", "push")]);
    all.extend(claims.iter().copied());
    let subject = "repo:acme/app:ref:refs/tags/v1".to_owned();
    let client = ClientId::parse(&format!("oidc:github:{subject}")).unwrap();
    let claims = Claims::from_pairs(all);
    Principal { client, certificate: None, vouched: Some(Arc::new(Vouched { issuer, subject, claims, expires_at: 0 })) }
}

fn time(state: &State, principal: Principal, group: &str) -> f64 {
    let request = TokenRequest {
        principal,
        app_group: AppGroupName::parse(group).unwrap(),
        role: Role::AppManager,
        ttl_s: None,
        scope: vec![],
    };
    let batch = || {
        let watch = Stopwatch::start();
        for _ in 0..100 {
            assert!(black_box(decide(black_box(&request), state, NOW)).is_ok());
        }
        watch.seconds() / 100.0
    };
    median((0..200).map(|_| batch()).collect()) * 1e6
}

pub(crate) fn run() {
    println!("decide, median of 200 batches of 100, in microseconds:");
    for (policies, groups, ceilings) in [(200, 10, 0), (100_000, 10_000, 1000)] {
        let state = state(policies, groups, ceilings);
        println!("  {policies} policies over {groups} app groups, {ceilings} ceilings");
        // The last of each kind: in a group with some ten others, and in the one with a hundred.
        for (where_it_is, below) in [("a group of some ten", policies), ("a group of 100", FULL)] {
            let last = |kind: usize| below - 4 + kind;
            let group = |nth: usize| if nth < FULL { "g0".to_owned() } else { format!("g{}", nth % groups) };
            let tag = [("repository_id", last(2).to_string()), ("ref", "refs/tags/v1".to_owned())];
            let named = [("repository", format!("acme/app-{}-x", last(3))), ("environment", "production".to_owned())];
            let borrowed = |pairs: &[(&'static str, String); 2]| {
                let pairs: Vec<(&str, &str)> = pairs.iter().map(|(name, value)| (*name, value.as_str())).collect();
                vouched(&state, &pairs)
            };
            let exact = certified(&format!("spiffe://acme.internal/ns/ci/sa/job-{}", last(0)));
            let glob = certified(&format!("spiffe://acme.internal/ns/ci/sa/job-{}-x", last(1)));
            println!(
                "    {where_it_is}: exact name {:.2}, glob {:.2}, claims by id {:.2}, claims by glob {:.2}",
                time(&state, exact, &group(last(0))),
                time(&state, glob, &group(last(1))),
                time(&state, borrowed(&tag), &group(last(2))),
                time(&state, borrowed(&named), &group(last(3))),
            );
        }
        let everyone = certified("spiffe://acme.internal/ns/ci/sa/everyone");
        println!("    a group of 100, all of which grant: {:.2}", time(&state, everyone, "everyone"));
    }
}
