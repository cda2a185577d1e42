//! What plans say, as examples.

use super::*;
use crate::domain::app_group::AppGroup;
use crate::domain::change::{Change, Object, ObjectName};
use crate::domain::decide::tests::{apps, base, group_name, policy, put, state};
use crate::domain::plan::steps_of;
use crate::domain::role::Role;
use crate::id::AccountName;

const DEV: &[Role] = &[Role::Developer];

fn spiffe(text: &str) -> ClientPattern {
    ClientPattern::spiffe(text).unwrap()
}

fn world(changes: Vec<Change>) -> State {
    state(base().into_iter().chain(changes).collect())
}

/// What a plan says of the first thing that is put there, or of the first that goes.
fn means(change: Change, state: &State) -> Vec<String> {
    let Change::DocumentApplied { put, removed } = change else { panic!("a change of documents") };
    steps_of(&put, &removed, state).remove(0).means
}

fn remove(policy: &Policy) -> Change {
    Change::DocumentApplied { put: vec![], removed: vec![ObjectName::Policy(policy.name.clone())] }
}

#[test]
fn nobody_gains_or_loses_by_a_policy_that_only_counts() {
    let counting = Policy { shadow: true, ..policy("counting", DEV) };
    let wider = Policy {
        clients: vec![spiffe("spiffe://acme/ci"), spiffe("spiffe://acme/cd")],
        max_ttl_s: 900,
        ..Policy { shadow: true, ..policy("counting", &[Role::Developer, Role::Admin]) }
    };
    let before = world(vec![put(counting.clone())]);
    let nothing = ["nobody gains or loses: it only counts what it would refuse"];
    assert_eq!(means(put(counting.clone()), &world(vec![])), nothing);
    assert_eq!(means(put(wider.clone()), &before), nothing);
    assert_eq!(means(put(counting.clone()), &world(vec![put(wider.clone())])), nothing);
    assert_eq!(means(remove(&counting), &before), ["nobody gains or loses: it only counted"]);
    // Where it comes to grant, somebody does.
    let said = means(put(Policy { shadow: false, ..wider }), &before);
    assert!(said.len() == 2 && said[1].starts_with("spiffe://acme/cd gains ADMIN, DEVELOPER"), "{said:?}");
    let said = means(put(counting), &world(vec![put(policy("counting", DEV))]));
    assert!(said[0].starts_with("spiffe://acme/ci loses DEVELOPER"), "{said:?}");
    assert_eq!(said[1], "from now on it only counts what it would refuse");
}

#[test]
fn apps_come_and_go_for_the_clients_of_policies_that_grant() {
    let counting = Policy { shadow: true, ..policy("counting", DEV) };
    let group =
        AppGroup { name: group_name(), account: AccountName::parse("acme").unwrap(), apps: apps(&["111", "333"]) };
    let moved = || Change::DocumentApplied { put: vec![Object::AppGroup(group.clone())], removed: vec![] };
    let said = means(moved(), &world(vec![put(policy("granting", DEV)), put(counting.clone())]));
    assert_eq!(said, ["clients of granting gain app 333", "clients of granting lose app 222"]);
    assert_eq!(means(moved(), &world(vec![put(counting)]))[0], "clients of no policy yet gain app 333");
}
