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

proptest! {
    #![proptest_config(ProptestConfig::with_cases(1024))]

    /// Of what only counts, the path and the table say what was counted: the same things, for the same reasons.
    #[test]
    fn the_path_and_the_table_agree_on_what_only_counts((state, request) in any_world()) {
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
