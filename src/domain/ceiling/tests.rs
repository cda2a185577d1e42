//! What a ceiling that comes to any world takes away, and that it gives nothing.

use std::sync::Arc;

use proptest::prelude::*;

use super::*;
use crate::domain::any::{NOW, ROLES, World, any_ceiling, any_world, apply, fold, groups, principals, scope};
use crate::domain::change::{Change, Object};
use crate::domain::decide::{TokenRequest, decide, grant, passed_over, strength};
use crate::domain::document::{CeilingText, Document};
use crate::domain::plan::Unnamed;
use crate::domain::state::State;

/// Every kind of request: with and without a scope, for long and for the default.
fn requests(state: &State) -> Vec<TokenRequest> {
    let scopes: [&[&str]; 4] = [&[], &["GET /v1/apps"], &["GET /v1/apps/111/customerReviews"], &["GET /v1/ciProducts"]];
    let mut out = Vec::new();
    for principal in principals(state) {
        for app_group in groups() {
            for role in ROLES {
                for (nth, wanted) in scopes.iter().enumerate() {
                    let (principal, app_group) = (principal.clone(), app_group.clone());
                    let ttl_s = (nth % 2 == 0).then_some(20_000_000);
                    out.push(TokenRequest { principal, app_group, role, ttl_s, scope: scope(wanted) });
                }
            }
        }
    }
    out
}

fn with(world: &World, ceiling: &CeilingText) -> State {
    let mut state = world.state();
    let ceiling = CeilingText { name: "one-more".to_owned(), shadow: false, ..ceiling.clone() };
    apply(&mut state, &Document { ceilings: vec![ceiling], ..Document::default() }, Unnamed::Keep);
    state
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(128))]

    /// INV-CEILING-1: whatever is granted under one more ceiling, the same policy granted without it: with a key that would
    /// have done, none weaker than the one that signed, and for a life no shorter.
    #[test]
    fn a_ceiling_never_grants(world in any_world(), ceiling in any_ceiling()) {
        let (before, after) = (world.state(), with(&world, &ceiling));
        for request in requests(&before) {
            let (was, is) = (decide(&request, &before, NOW), decide(&request, &after, NOW));
            let Ok(is) = is else { continue };
            prop_assert!(was.is_ok(), "a denial became a permit: {:?}", request);
            let policy = &before.policies()[&is.policy().name];
            let granted = grant(&request, policy, &before, NOW);
            prop_assert!(granted.is_ok(), "the policy did not grant it before: {:?}", request);
            let (terms, expires_at) = granted.unwrap();
            prop_assert!(is.expires_at() <= expires_at, "it lives longer: {:?}", request);
            let never = before.bounds_of(&request.app_group).fold(RoleSet::default(), |all, it| all.union(it.never_roles()));
            prop_assert_eq!(passed_over(is.key(), request.role, policy.roles.without(never), true, is.app_group()), None);
            // The weakest of fewer keys.
            prop_assert!(strength(terms.key, is.app_group()) <= strength(is.key(), is.app_group()));
        }
    }

    /// Nothing that one policy grants is longer, or freer, under one more ceiling.
    #[test]
    fn a_ceiling_never_lengthens_what_one_policy_grants(world in any_world(), ceiling in any_ceiling()) {
        let (before, after) = (world.state(), with(&world, &ceiling));
        for request in requests(&before) {
            for policy in before.policies_of(&request.app_group).iter().filter(|it| it.names(&request.principal)) {
                let was = grant(&request, policy, &before, NOW);
                let is = grant(&request, &after.policies()[&policy.name], &after, NOW);
                match (was, is) {
                    (_, Err(_)) => {}
                    (Err(miss), Ok(_)) => prop_assert!(false, "{:?} became a grant: {:?}", miss, request),
                    (Ok((old, until)), Ok((new, end))) => {
                        prop_assert!(end <= until && new.max_ttl_s <= old.max_ttl_s);
                        prop_assert!(new.needs_scope || !old.needs_scope);
                    }
                }
            }
        }
    }

    /// A ceiling in shadow mode counts just what would be refused were it in force, with that reason.
    #[test]
    fn what_a_ceiling_counts_in_shadow_mode_it_refuses_in_force(world in any_world()) {
        let state = world.state();
        let shadows: Vec<_> = state.ceilings().values().filter(|it| it.shadow).cloned().collect();
        let in_force: Vec<_> = shadows.iter().map(|ceiling| {
            let mut state = state.clone();
            let ceiling = Object::Ceiling(Arc::new(Ceiling { shadow: false, ..(**ceiling).clone() }));
            fold(&mut state, Change::DocumentApplied { put: vec![ceiling], removed: vec![] });
            state
        }).collect();
        for request in requests(&state) {
            let Ok(permit) = decide(&request, &state, NOW) else { continue };
            for (ceiling, in_force) in shadows.iter().zip(&in_force) {
                let counted = permit.shadows().iter().find(|it| it.kind == "ceiling" && it.name == ceiling.name.as_str());
                let refused = decide(&request, in_force, NOW).err().map(|denial| denial.reason);
                prop_assert_eq!(counted.map(|it| it.reason), refused, "{:?} {:?}", ceiling, request);
            }
        }
    }

    /// It does not matter how ceilings are cut: two that say one thing each are one that says both.
    #[test]
    fn two_ceilings_are_one_that_says_both(world in any_world(), ceiling in any_ceiling()) {
        let whole = with(&world, &ceiling);
        let mut parts = world.state();
        let none = CeilingText {
            app_groups: ceiling.app_groups.clone(),
            every_app_group: ceiling.every_app_group,
            ..CeilingText::default()
        };
        let cut = [
            CeilingText { max_ttl: ceiling.max_ttl, name: "part-a".to_owned(), ..none.clone() },
            CeilingText { never_roles: ceiling.never_roles.clone(), name: "part-b".to_owned(), ..none.clone() },
            CeilingText {
                clients: ceiling.clients.clone(),
                issuers: ceiling.issuers.clone(),
                trust_domains: ceiling.trust_domains.clone(),
                name: "part-c".to_owned(),
                ..none.clone()
            },
            CeilingText { require_scope: ceiling.require_scope, name: "part-d".to_owned(), ..none.clone() },
            CeilingText { no_team_keys: ceiling.no_team_keys, name: "part-e".to_owned(), ..none },
        ];
        let ceilings = cut.into_iter().filter(|it| Document { ceilings: vec![it.clone()], ..Document::default() }.check().is_ok());
        apply(&mut parts, &Document { ceilings: ceilings.collect(), ..Document::default() }, Unnamed::Keep);
        for request in requests(&whole) {
            let told = |state: &State| decide(&request, state, NOW)
                .map(|it| (it.policy().name.clone(), it.key().id.clone(), it.expires_at()))
                .map_err(|denial| (denial.reason, denial.policy));
            prop_assert_eq!(told(&whole), told(&parts));
        }
    }
}

/// What is left is decided as ever: where a ceiling takes the weakest key, another policy comes to grant what it always said.
#[test]
fn where_a_ceiling_takes_the_weakest_key_another_policy_decides() {
    let read = |ceilings: &str| -> Document {
        let text = r#"{
            "accounts": [{"name": "acme", "issuer_id": "57246542-96fe-1a63-e053-0824d011072a"}],
            "app_groups": [{"name": "games", "account": "acme", "apps": ["111"]}],
            "policies": [
                {"name": "long", "clients": [{"spiffe": "spiffe://acme/ci"}], "app_group": "games",
                 "roles": ["DEVELOPER", "APP_MANAGER", "MARKETING"], "max_ttl": 600},
                {"name": "short", "clients": [{"spiffe": "spiffe://acme/ci"}], "app_group": "games",
                 "roles": ["DEVELOPER", "CUSTOMER_SUPPORT"], "max_ttl": 60}
            ],
            "ceilings": [CEILINGS],
            "operators": [{"name": "a", "clients": [{"spiffe": "spiffe://acme/a"}], "powers": ["administer"]}]
        }"#;
        serde_json::from_str(&text.replace("CEILINGS", ceilings)).unwrap()
    };
    let key = |id: &str, roles: &str| {
        let text = format!(
            r#"{{"id": "{id}", "account": "acme", "profile": "app_store_connect", "kind": {{"kind": "team"}},
                "roles": [{roles}], "app_groups": ["games"], "fingerprint": "", "public_key": "", "state": "active",
                "imported": {{"by": "x", "at": 0}}, "imported_revision": 0}}"#
        );
        Change::KeyImported { key: serde_json::from_str(&text).unwrap() }
    };
    let told = |ceilings: &str| {
        let mut state = State::default();
        apply(&mut state, &read(ceilings), Unnamed::Keep);
        fold(&mut state, key("WEAKKEY001", r#""DEVELOPER", "CUSTOMER_SUPPORT""#));
        fold(&mut state, key("MOREROLES1", r#""DEVELOPER", "APP_MANAGER", "MARKETING""#));
        let principal = Principal::of_certificate(crate::id::ClientId::parse("spiffe://acme/ci").unwrap());
        let app_group = crate::id::AppGroupName::parse("games").unwrap();
        let request = TokenRequest { principal, app_group, role: Role::Developer, ttl_s: Some(1200), scope: vec![] };
        let permit = decide(&request, &state, NOW).unwrap();
        let counted: Vec<_> = permit.shadows().iter().map(|it| (it.name.clone(), it.reason.as_str())).collect();
        let life = permit.expires_at() - NOW.seconds();
        ((permit.policy().name.to_string(), permit.key().id.to_string(), life), counted)
    };
    let short = ("short".to_owned(), "WEAKKEY001".to_owned(), 60);
    let long = ("long".to_owned(), "MOREROLES1".to_owned(), 600);
    assert_eq!(told(""), (short.clone(), vec![]));
    let ceiling = r#"{"name": "c", "every_app_group": true, "never_roles": ["CUSTOMER_SUPPORT"]}"#;
    assert_eq!(told(ceiling), (long.clone(), vec![]));
    // One that only counts is asked beside those that are in force: alone, it would take nothing here.
    let shadow = r#"{"name": "d", "every_app_group": true, "never_roles": ["MARKETING"], "shadow": true}"#;
    assert_eq!(told(shadow), (short, vec![]));
    let both = format!("{ceiling}, {shadow}");
    assert_eq!(told(&both), (long, vec![("d".to_owned(), "KEY_EXCEEDS_POLICY")]));
}
