//! What is said of policies and ceilings that only count.

use proptest::prelude::*;

use super::properties::any_world;
use super::*;

/// Alone the ceiling would leave the other policy its key; together with the one that is in force it leaves none.
#[test]
fn a_ceiling_that_only_counts_is_looked_at_beside_those_in_force() {
    use Role::{AppManager, CustomerSupport, Developer};
    let policies = [put(policy("long", &[Developer, AppManager])), put(policy("short", &[Developer, CustomerSupport]))];
    let keys = [team("WEAKKEY001", &[Developer, CustomerSupport]), team("MOREROLES1", &[Developer, AppManager])];
    let never = |name: &str, role: Role| Ceiling { never_roles: [role].into_iter().collect(), ..ceiling(name) };
    let tried = put_ceiling(Ceiling { shadow: true, ..never("tried", CustomerSupport) });
    let said = |changes: Vec<Change>| {
        let changes = policies.iter().chain(&keys).cloned().chain(changes).collect();
        let explained = explain(&request(Developer), &world(changes), NOW);
        let in_path = explained
            .path
            .iter()
            .any(|step| step == "ceiling tried only counts, and would have refused it: KEY_EXCEEDS_POLICY");
        (entry(&explained, "tried").explanation.clone(), in_path)
    };
    assert_eq!(said(vec![tried.clone()]), ("it only counts, and would refuse nothing here".to_owned(), false));
    let both = said(vec![tried, put_ceiling(never("held", AppManager))]);
    let says = "it only counts: it would refuse this (KEY_EXCEEDS_POLICY), as beside what policies grant and other \
                ceilings leave, it would leave no key";
    assert_eq!(both, (says.to_owned(), true));
}

const FEW: [Role; 3] = [Role::Developer, Role::AppManager, Role::CustomerSupport];

prop_compose! {
    /// Policies, keys and ceilings of few roles, so that ceilings often meet over one key.
    fn any_few()(
        policies in prop::collection::vec((prop::sample::subsequence(&FEW[1..], 0..3), prop::bool::weighted(0.3)), 1..4),
        keys in prop::collection::vec((prop::sample::subsequence(&FEW[1..], 0..3), any::<bool>()), 1..4),
        ceilings in prop::collection::vec((prop::sample::subsequence(&FEW[1..], 1..2), prop::bool::weighted(0.3), any::<bool>()), 1..4),
    ) -> (State, TokenRequest) {
        let with = |roles: Vec<Role>| [vec![Role::Developer], roles].concat();
        let mut changes = Vec::new();
        for (nth, (roles, shadow)) in policies.into_iter().enumerate() {
            changes.push(put(Policy { shadow, ..policy(&format!("p{nth}"), &with(roles)) }));
        }
        for (nth, (roles, is_team)) in keys.into_iter().enumerate() {
            let kind = if is_team { KeyKind::Team } else { individual(AppAccess::All) };
            changes.push(key(&format!("KEY000000{nth}"), kind, &with(roles), 1));
        }
        for (nth, (never, no_team_keys, shadow)) in ceilings.into_iter().enumerate() {
            let never_roles = never.into_iter().collect();
            changes.push(put_ceiling(Ceiling { never_roles, no_team_keys, shadow, ..ceiling(&format!("c{nth}")) }));
        }
        (world(changes), request(Role::Developer))
    }
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(1024))]

    /// Of what only counts, the path and the table say what was counted: the same things, for the same reasons.
    #[test]
    fn the_path_and_the_table_agree_on_what_only_counts((state, request) in prop_oneof![any_world(), any_few()]) {
        let explained = explain(&request, &state, NOW);
        let Ok(permit) = decide(&request, &state, NOW) else { return Ok(()) };
        let counted: BTreeSet<(&str, &str, &str)> =
            permit.shadows().iter().map(|it| (it.kind, it.name.as_str(), it.reason.as_str())).collect();
        let reasons = || DenyReason::ALL.iter().map(|reason| reason.as_str());
        for it in &explained.considered {
            let is_counted = |reason: &&str| counted.contains(&(it.kind, it.name.as_str(), reason));
            let (in_table, in_path) = if it.kind == "ceiling" {
                let table = |reason: &&str| it.explanation.contains(&format!("would refuse this ({reason})"));
                let path = |reason: &&str| format!("ceiling {} only counts, and would have refused it: {reason}", it.name);
                (reasons().find(table), reasons().find(|reason| explained.path.contains(&path(reason))))
            } else {
                let table = |reason: &&str| it.explanation.contains(&format!("this it would refuse ({reason})"));
                let path = |reason: &&str| format!("policy {} only counts, and would refuse it: {reason}", it.name);
                (reasons().find(table), reasons().find(|reason| explained.path.contains(&path(reason))))
            };
            let expected = reasons().find(is_counted);
            prop_assert_eq!((in_table, in_path), (expected, expected), "{} {}: {:?}", it.kind, it.name, explained.path);
        }
    }
}
