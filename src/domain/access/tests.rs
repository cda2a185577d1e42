//! What is listed is what is granted, over generated worlds (INV-ACCESS-1).

use proptest::prelude::*;

use super::*;
use crate::domain::any::{NOW, ROLES, SCOPES, World, any_world, fold, groups, principals, scope, with_claims};
use crate::domain::change::Change;
use crate::domain::decide::{TokenRequest, decide, grant, weigh};
use crate::id::{AppGroupName, ClientId};

/// Longer than any token lives.
const FOR_EVER_S: i64 = 20_000_000;

fn request(principal: &Principal, group: &AppGroupName, role: Role, wanted: &[&str]) -> TokenRequest {
    TokenRequest {
        principal: principal.clone(),
        app_group: group.clone(),
        role,
        ttl_s: Some(FOR_EVER_S),
        scope: scope(wanted),
    }
}

/// The longest life that one policy grants, over all scopes; and whether it grants a token without one.
fn best(
    principal: &Principal,
    role: Role,
    policy: &Arc<Policy>,
    state: &State,
    now: UnixMillis,
) -> Option<(i64, bool)> {
    if state.sealed().is_some() || state.refuses(principal).is_some() || !policy.names(principal) || policy.shadow {
        return None;
    }
    let granted = |wanted: &[&str]| {
        let granted = grant(&request(principal, &policy.app_group, role, wanted), policy, state, now);
        granted.ok().map(|(_, expires_at)| expires_at - now.seconds())
    };
    let longest = SCOPES.iter().filter_map(|wanted| granted(wanted)).max()?;
    Some((longest, granted(&[]).is_some()))
}

/// A value for every claim that a policy or ceiling of the worlds asks for and that the caller was not said to have.
fn with_all_claims(principal: &Principal, state: &State) -> Principal {
    let wanted = [
        ("repository_id", "42"),
        ("repository", "acme/x"),
        ("ref", "refs/heads/main"),
        ("ref", "refs/tags/v1"),
        ("groups", "ops-1"),
        ("azp", "app"),
    ];
    let known = |name: &str| principal.vouched.as_ref().is_some_and(|it| !it.claims.values(name).is_empty());
    let more: Vec<_> = wanted.iter().filter(|(name, _)| !known(name)).collect();
    let more: Vec<_> = more.iter().map(|(name, value)| ((*name).to_owned(), (*value).to_owned())).collect();
    with_claims(principal, &more, state)
}

/// The caller with each certificate that somebody could bring; who is named by one has no other.
fn with_certificates(principal: &Principal) -> Vec<Principal> {
    let names = [
        "spiffe://acme/ci",
        "spiffe://acme/ns/a",
        "spiffe://acme/ns/b1",
        "spiffe://beta/ci",
        "dns:ci.acme.internal",
        "dns:ci-1.acme.internal",
    ];
    let mut out = vec![principal.clone()];
    if principal.vouched.is_some() {
        let names = names.iter().map(|name| Some(ClientId::parse(name).unwrap()));
        out.extend(names.map(|certificate| Principal { certificate, ..principal.clone() }));
    }
    out
}

fn open(entry: &Access) -> bool {
    entry.closed.is_none() && entry.conditions.is_empty()
}

/// The world with every break-glass policy held open.
fn opened(world: &World) -> State {
    let mut state = world.state();
    let closed: Vec<_> = state.policies().values().filter(|it| it.break_glass).map(|it| it.name.clone()).collect();
    for policy in closed {
        let until = NOW.seconds() + 30 * 86_400;
        fold(&mut state, Change::BreakGlassOpened { policy, until, reason: String::new() });
    }
    state
}

/// The first time from now on at which the policy is in force, by looking at every quarter of an hour.
fn first_time(policy: &Policy, state: &State) -> Option<UnixMillis> {
    let quarters = (0..=14 * 96).map(|nth| UnixMillis(NOW.0 + nth * 900_000));
    let close = [0, 1, 500, 999, 1000].map(|by| UnixMillis(NOW.0 + by));
    close.into_iter().chain(quarters).find(|at| in_force(policy, state, *at).is_ok())
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 160, ..ProptestConfig::default() })]

    #[test]
    fn what_can_be_had_now_is_what_a_decision_permits(world in any_world()) {
        let state = world.state();
        for principal in principals(&state) {
            let all = of_client(&principal, &state, NOW);
            prop_assert!(all.iter().all(|entry| entry.closed.is_none() || entry.max_ttl_s > 0));
            for group in groups() {
                for role in ROLES {
                    let entries: Vec<_> = all.iter()
                        .filter(|it| open(it) && it.policy.app_group == group && it.role == role).collect();
                    let mut permitted = false;
                    for wanted in SCOPES {
                        let Ok(permit) = decide(&request(&principal, &group, role, wanted), &state, NOW) else { continue };
                        permitted = true;
                        let entry = entries.iter().find(|it| it.policy.name == permit.policy().name);
                        prop_assert!(entry.is_some(), "{} is permitted under {}", principal.client, permit.policy().name);
                        let entry = entry.unwrap();
                        prop_assert_eq!(&entry.key.id, &permit.key().id);
                        prop_assert!(permit.expires_at() - NOW.seconds() <= entry.max_ttl_s);
                        prop_assert!(!entry.needs_scope || !wanted.is_empty());
                    }
                    prop_assert_eq!(permitted, !entries.is_empty());
                    for policy in state.policies_of(&group) {
                        let entry = entries.iter().find(|it| it.policy.name == policy.name);
                        let listed = entry.map(|it| (it.max_ttl_s, !it.needs_scope));
                        prop_assert_eq!(listed, best(&principal, role, policy, &state, NOW), "{:?}", policy);
                        let key = weigh(&principal, role, policy, &state, NOW).ok().map(|terms| terms.key);
                        prop_assert!(entry.is_none_or(|it| Some(&it.key) == key));
                    }
                }
            }
        }
    }

    #[test]
    fn what_is_closed_can_be_had_at_another_time_or_with_a_certificate_and_nothing_else(world in any_world()) {
        let (state, opened) = (world.state(), opened(&world));
        for principal in principals(&state) {
            let all = of_client(&principal, &state, NOW);
            // Who comes with a revoked certificate gets nothing, whatever another one would do.
            if state.refuses(&principal).is_some() {
                prop_assert!(all.is_empty());
                continue;
            }
            for policy in state.policies().values() {
                let at = first_time(policy, &opened);
                for role in ROLES {
                    let can = |at| with_certificates(&principal).iter().any(|it| best(it, role, policy, &opened, at).is_some());
                    let entry = all.iter()
                        .find(|it| it.policy.name == policy.name && it.role == role && it.conditions.is_empty());
                    prop_assert_eq!(entry.is_some(), at.is_some_and(can), "{} as {} at {:?}: {:?}", principal.client, role, at, policy);
                    let why = weigh(&principal, role, policy, &state, NOW).err().map(|miss| miss.reason);
                    prop_assert!(entry.is_none_or(|entry| entry.closed == why));
                }
            }
        }
    }

    #[test]
    fn what_has_conditions_can_be_had_where_the_issuer_says_more(world in any_world()) {
        let state = world.state();
        for principal in principals(&state) {
            let some = of_client(&principal, &state, NOW);
            let all = of_client(&with_all_claims(&principal, &state), &state, NOW);
            prop_assert!(all.iter().all(|entry| entry.conditions.is_empty()));
            let bare = some.into_iter().map(|entry| Access { conditions: vec![], ..entry }).collect::<Vec<_>>();
            prop_assert_eq!(bare, all);
        }
    }

    #[test]
    fn who_can_touch_a_group_is_whoever_can_get_something_there(world in any_world()) {
        let state = world.state();
        let callers: Vec<_> = principals(&state).iter().map(|it| with_all_claims(it, &state)).collect();
        for group in groups() {
            let by_pattern = of_group(&group, &state, NOW);
            let same = |a: &Access, b: &Access| {
                (&a.policy, a.role, &a.key, a.needs_scope) == (&b.policy, b.role, &b.key, b.needs_scope)
                    && (a.closed == b.closed || b.closed == Some(DenyReason::CertificateRequired))
            };
            let meant = |entry: &Access, caller: &Principal| {
                entry.policy.clients.iter().any(|it| it.to_string() == entry.client && it.matches(caller))
            };
            for caller in &callers {
                for entry in of_client(caller, &state, NOW).iter().filter(|it| it.policy.app_group == group) {
                    let found = by_pattern.iter().any(|it| same(it, entry) && meant(it, caller));
                    prop_assert!(found, "{} has {:?}", caller.client, entry);
                }
            }
            // Two conditions may exclude each other: each is asked alone.
            let revoked = world.revoked.iter().any(|it| matches!(it, crate::domain::target::Target::Client(_)));
            for entry in by_pattern.iter().filter(|it| it.conditions.len() <= 1 && !revoked) {
                let caller = callers.iter().filter(|it| meant(entry, it)).flat_map(with_certificates);
                let mut found = caller.flat_map(|it| of_client(&it, &state, NOW));
                prop_assert!(found.any(|it| same(entry, &it) && it.conditions.is_empty()), "{:?}", entry);
            }
        }
    }
}
