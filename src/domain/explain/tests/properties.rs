//! What holds of every explanation, over generated states with everything in them that can stand in the way.

use proptest::prelude::*;

use super::*;
use crate::domain::decide::tests::{any_key, any_request, any_role};

prop_compose! {
    fn any_policy()(
        roles in prop::collection::vec(any_role(), 1..6),
        max_ttl_s in 30..=1200_i64,
        operations in prop::option::weighted(0.3, prop::collection::vec(prop::sample::select(
            &["GET /v1/apps", "GET /v1/apps/{app}/builds", "GET /v1/ciBuildRuns/5"][..]), 1..3)),
        features in prop::option::weighted(0.2, prop::collection::btree_set(prop::sample::select(
            &["builds:read", "reviews:read", "xcode-cloud:write"][..]), 1..2)),
        times in [prop::option::weighted(0.15, -500_000..500_000_i64), prop::option::weighted(0.15, -500_000..500_000_i64)],
        whom in 0..8_u8,
        certificate in 0..12_u8,
        flags in prop::collection::vec(prop::bool::weighted(0.12), 4),
    ) -> Policy {
        let pattern = |text: &str| ClientPattern::spiffe(text).unwrap();
        let github = r#"{"oidc":{"issuer":"github","subject":"repo:acme/bot:ref:refs/heads/main"}}"#;
        let github: ClientPattern = serde_json::from_str(github).unwrap();
        let features: Vec<FeatureGrant> = features.iter().flatten().map(|text| FeatureGrant::parse(text).unwrap()).collect();
        let writes = features.iter().any(|it| it.to_string().ends_with("write"));
        let at = |by: Option<i64>| by.map(|by| UnixMillis(NOW.0 + by));
        let not_before = at(times[0]);
        Policy {
            clients: match whom {
                0 => vec![pattern("spiffe://acme/cd")],
                1 => vec![github],
                2 => vec![pattern(ME)],
                _ => vec![pattern(ME), github],
            },
            max_ttl_s,
            default_ttl_s: max_ttl_s.min(600),
            operations: if writes { vec![] } else { operations.iter().flatten().map(|text| OperationTemplate::parse(text).unwrap()).collect() },
            features,
            require_scope: flags[0] && !writes,
            not_before,
            not_after: at(times[1]).filter(|end| not_before.is_none_or(|start| start < *end)),
            hours: flags[1].then(|| Hours::parse("UTC", &[], "23:00", "23:30").unwrap()),
            require_mtls: match certificate { 0 => vec![pattern("spiffe://acme/host-*")], 1 => vec![pattern(ME)], _ => vec![] },
            break_glass: flags[2],
            shadow: flags[3],
            ..policy("p", &roles)
        }
    }
}

prop_compose! {
    fn any_ceiling()(
        never in prop::collection::vec(any_role(), 0..2),
        callers in 0..8_u8,
        max_ttl_s in prop::option::of(30..600_i64),
        flags in prop::collection::vec(prop::bool::weighted(0.2), 4),
    ) -> Ceiling {
        let callers = match callers {
            0 => Callers { trust_domains: ["other".to_owned()].into(), ..Callers::default() },
            1 => Callers { clients: vec![ClientPattern::spiffe(ME).unwrap()], ..Callers::default() },
            2 => Callers { issuers: [IssuerName::parse("github").unwrap()].into(), ..Callers::default() },
            _ => Callers::default(),
        };
        Ceiling {
            app_groups: flags[0].then(|| [AppGroupName::parse("elsewhere").unwrap()].into()),
            max_ttl_s,
            never_roles: never.into_iter().collect(),
            callers,
            require_scope: flags[1],
            no_team_keys: flags[2],
            shadow: flags[3],
            ..ceiling("c")
        }
    }
}

prop_compose! {
    /// Everything that can stand in the way, and a request that some of it stands in the way of.
    pub(super) fn any_world()(
        policies in prop::collection::vec(any_policy(), 0..6),
        ceilings in prop::collection::vec(any_ceiling(), 0..3),
        keys in prop::collection::vec(any_key(), 0..7),
        suspended in prop::collection::vec(0..8_u8, 0..2),
        revoked in prop::collection::vec(0..40_u8, 0..3),
        opened in prop::option::of(0..5_usize),
        sealed in prop::bool::weighted(0.02),
        trusted in prop::bool::weighted(0.95),
        by_issuer in any::<bool>(),
        certificate in any::<bool>(),
        asked in any_request(),
    ) -> (State, TokenRequest) {
        let name = |nth: usize| PolicyName::parse(&format!("p{nth}")).unwrap();
        let mut changes: Vec<Change> = if trusted { vec![issuer()] } else { vec![] };
        changes.extend(policies.into_iter().enumerate().map(|(nth, it)| put(Policy { name: name(nth), ..it })));
        changes.extend(ceilings.into_iter().enumerate().map(|(nth, it)| {
            put_ceiling(Ceiling { name: CeilingName::parse(&format!("c{nth}")).unwrap(), ..it })
        }));
        let imported: BTreeSet<KeyId> = keys.iter().filter_map(|change| match change {
            Change::KeyImported { key } => Some(key.id.clone()),
            _ => None,
        }).collect();
        changes.extend(keys);
        changes.extend(suspended.into_iter().filter_map(|nth| {
            let key_id = KeyId::parse(&format!("KEY000000{nth}")).unwrap();
            imported.contains(&key_id).then(|| Change::KeySuspended { key_id, reason: String::new() })
        }));
        changes.extend(opened.map(|nth| {
            Change::BreakGlassOpened { policy: name(nth), until: NOW.seconds() + 100, reason: String::new() }
        }));
        changes.extend(revoked.into_iter().filter_map(|nth| match nth {
            0 => Some(Target::Client(client(ME))),
            1 => Some(Target::Issuer(IssuerName::parse("github").unwrap())),
            2 => Some(Target::Account(AccountName::parse("acme").unwrap())),
            3 => Some(Target::AppGroup(group_name())),
            4..8 => Some(Target::Policy(name(usize::from(nth) - 4))),
            _ => None,
        }.map(revoke)));
        changes.extend(sealed.then(|| Change::VaultSealed { reason: String::new() }));
        let state = world(changes);
        let facts = Facts { certificate: certificate.then(|| client("spiffe://acme/host-1")), claims: Claims::default() };
        let who = if by_issuer { BOT } else { ME };
        let asked = TokenRequest { principal: imagine(client(who), facts, &state), ..asked };
        (state, asked)
    }
}

/// Whether any policy at all could grant the request as it is, or as its caller could make it.
fn a_policy_could(request: &TokenRequest, state: &State) -> bool {
    let github = r#"{"oidc":{"issuer":"github","subject":"repo:acme/bot:ref:refs/heads/main"}}"#;
    let clients = vec![ClientPattern::spiffe(ME).unwrap(), serde_json::from_str(github).unwrap()];
    let widest = put(Policy { clients, ..policy("widest", Role::ALL) });
    let mut after = state.clone();
    let Change::DocumentApplied { put, removed } = widest else { return false };
    after.preview(&put, &removed);
    decide(request, &after, NOW).is_ok()
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(1024))]

    /// INV-EXPLAIN-1, in every part of the answer.
    #[test]
    fn an_explanation_never_disagrees_with_the_decision((state, request) in any_world()) {
        let explained = explain(&request, &state, NOW);
        let of_kind = |kind: &str| explained.considered.iter().filter(|it| it.kind == kind).collect::<Vec<_>>();
        let (policies, ceilings) = (of_kind("policy"), of_kind("ceiling"));
        prop_assert_eq!(policies.len(), state.policies_of(&request.app_group).len());
        let over = state.ceilings().values().filter(|it| it.holds_for(&request.app_group));
        prop_assert_eq!(ceilings.len(), over.count());
        prop_assert_eq!(explained.keys.len(), state.keys_of(&request.app_group).len());
        prop_assert!(explained.considered.iter().all(|it| it.passes == it.reason.is_empty() && !it.explanation.is_empty()));
        let chosen: Vec<&KeyId> = explained.keys.iter().filter(|it| it.chosen).map(|it| &it.id).collect();
        match (decide(&request, &state, NOW), &explained.outcome) {
            (Ok(permit), Ok(granted)) => {
                prop_assert_eq!(&permit.policy().name, &granted.policy);
                prop_assert_eq!(permit.expires_at(), granted.expires_at);
                prop_assert_eq!(chosen, [&permit.key().id]);
                prop_assert!(explained.keys.iter().all(|it| it.chosen == it.explanation.starts_with("it signs")));
                prop_assert!(entry(&explained, granted.policy.as_str()).passes);
                prop_assert!(ceilings.iter().all(|it| it.passes), "{:?}", ceilings);
                prop_assert!(explained.smallest_change.is_none());
            }
            (Err(denial), Err(explained_denial)) => {
                prop_assert_eq!(&denial, explained_denial);
                prop_assert!(chosen.is_empty());
                prop_assert!(explained.path.iter().any(|step| step.contains(denial.reason.as_str()) || denial.reason == DenyReason::Sealed));
                // Where no policy was looked at, one may pass all the same.
                if denial.reason >= DenyReason::NoPolicy {
                    prop_assert!(policies.iter().all(|it| !it.passes), "{:?}", policies);
                }
                if let Some(policy) = &denial.policy {
                    prop_assert_eq!(entry(&explained, policy.as_str()).reason, denial.reason.as_str());
                }
                if let Some(ceiling) = &denial.ceiling {
                    prop_assert!(!entry(&explained, ceiling.as_str()).passes);
                }
            }
            other => prop_assert!(false, "{:?}", other.1),
        }
    }

    /// INV-EXPLAIN-2: what is said to be enough is enough, by policies alone where that is said; and where it is said that no
    /// policy may, none may.
    #[test]
    fn the_smallest_change_makes_decide_grant((state, request) in any_world()) {
        let explained = explain(&request, &state, NOW);
        let Some(change) = explained.smallest_change else { return Ok(()) };
        prop_assert!(change.holds(&state, NOW), "{:?} after {:?}", change, explained.outcome);
        prop_assert!(!change.sentences.is_empty());
        let by_policy = |change: &Change| match change {
            Change::DocumentApplied { put, removed } => {
                removed.is_empty() && put.iter().all(|object| matches!(object, Object::Policy(_)))
            }
            Change::BreakGlassOpened { .. } => true,
            _ => false,
        };
        prop_assert!(!change.policy_may_allow || change.records.iter().all(by_policy), "{:?}", change);
        prop_assert_eq!(change.policy_may_allow, a_policy_could(&request, &state), "{:?}", change);
    }

    /// Nothing less would do: without any one of the changes the request is still refused.
    #[test]
    fn every_part_of_the_smallest_change_is_needed((state, request) in any_world()) {
        let Some(change) = explain(&request, &state, NOW).smallest_change else { return Ok(()) };
        for without in 0..change.records.len() {
            // A ceiling that is in the way twice is changed twice, and the second change holds the first.
            let later = |it: &Change| matches!((it, &change.records[without]), (Change::DocumentApplied { put: a, .. },
                Change::DocumentApplied { put: b, .. }) if a[0].name() == b[0].name());
            if change.records[without + 1..].iter().any(later) {
                continue;
            }
            let mut less = change.clone();
            less.records.remove(without);
            prop_assert!(!less.holds(&state, NOW), "without {:?}: {:?}", change.records[without], change.sentences);
        }
        let asked_as_before = SmallestChange { request: request.clone(), ..change.clone() };
        prop_assert!(change.request == request || !asked_as_before.holds(&state, NOW), "{:?}", change);
    }
}
