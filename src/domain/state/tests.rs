//! A state that was folded step by step is the one that a checkpoint brings back.

use proptest::prelude::*;

use super::*;
use crate::clock::UnixMillis;
use crate::domain::any::{NOW, ROLES, World, any_world, fold, groups, principals, scope};
use crate::domain::decide::{TokenRequest, decide};
use crate::domain::document::Document;
use crate::domain::plan::{Unnamed, plan};

/// One change after another: documents that come and go, keys, revocations and what lifts them, policies that are opened.
fn changes(worlds: &[World]) -> State {
    let mut state = State::default();
    for (nth, world) in worlds.iter().enumerate() {
        // Something of each world is left out, so that there is something to remove.
        let mut document = Document { ceilings: world.document.ceilings.clone(), ..world.document.clone() };
        document.policies.truncate(5 - nth.min(3));
        let unnamed = if nth % 2 == 1 { Unnamed::Remove } else { Unnamed::Keep };
        // Of a group that has keys nobody else can have the account; those worlds stay as they are.
        if let Ok(planned) = plan(&document.check().unwrap(), unnamed, &state)
            && let Some(change) = planned.change
        {
            fold(&mut state, change);
        }
        for change in world.changes() {
            let is_there = |key: &Key| state.keys().contains_key(&key.id);
            if !matches!(&change, Change::KeyImported { key } if is_there(key)) {
                fold(&mut state, change);
            }
        }
        let first = state.keys().keys().next().cloned();
        if let Some(key_id) = first.filter(|_| nth % 2 == 0) {
            let reason = String::new();
            fold(&mut state, Change::KeySuspended { key_id: key_id.clone(), reason: reason.clone() });
            fold(&mut state, Change::KeyResumed { key_id, reason });
        }
        let lifted = world.revoked.iter().find(|it| !matches!(it, Target::Key(_)) && state.is_revoked(it));
        if let Some(target) = lifted.cloned() {
            fold(&mut state, Change::Reinstated { target, reason: String::new() });
        }
        if world.sealed {
            fold(&mut state, Change::VaultUnsealed);
        }
        let open = state.all_opened().keys().next().cloned();
        if let Some(policy) = open.filter(|_| nth % 3 == 2) {
            fold(&mut state, Change::BreakGlassClosed { policy, reason: String::new() });
        }
    }
    state
}

/// What every caller is told, of everything.
fn answers(state: &State, now: UnixMillis) -> Vec<String> {
    let mut out = Vec::new();
    for principal in principals(state) {
        for app_group in groups() {
            for role in ROLES {
                for wanted in [&[][..], &["GET /v1/apps"], &["GET /v1/ciProducts"]] {
                    let (principal, app_group, scope) = (principal.clone(), app_group.clone(), scope(wanted));
                    let request = TokenRequest { principal, app_group, role, ttl_s: None, scope };
                    out.push(match decide(&request, state, now) {
                        Ok(it) => {
                            format!("{} {} {} {:?}", it.policy().name, it.key().id, it.expires_at(), it.shadows())
                        }
                        Err(denial) => format!("{denial:?}"),
                    });
                }
            }
        }
    }
    out
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(64))]

    /// INV-INDEX-1, and that nothing of what is derived hangs on the order in which it came.
    #[test]
    fn a_folded_state_is_the_one_that_its_checkpoint_brings_back(worlds in prop::collection::vec(any_world(), 1..5)) {
        let folded = changes(&worlds);
        let text = serde_json::to_string(&folded.snapshot()).unwrap();
        let rebuilt = State::from_snapshot(folded.head(), serde_json::from_str(&text).unwrap());
        prop_assert!(folded.data == rebuilt.data);
        prop_assert!(folded.index == rebuilt.index, "the index is not the one that is built anew");
        prop_assert_eq!(&folded.keys_by_group, &rebuilt.keys_by_group);
        prop_assert_eq!(&folded.revocations, &rebuilt.revocations);
        prop_assert_eq!(&folded.revoked_policies, &rebuilt.revoked_policies);
        prop_assert_eq!(&folded.deaths, &rebuilt.deaths);
        prop_assert_eq!(answers(&folded, NOW), answers(&rebuilt, NOW));
    }

    /// INV-INDEX-1: the index leaves out only policies that do not name the caller.
    #[test]
    fn the_index_finds_what_looking_at_every_policy_finds(worlds in prop::collection::vec(any_world(), 1..4)) {
        let state = changes(&worlds);
        for principal in principals(&state) {
            for group in groups() {
                let found: Vec<_> = state.group_policies(&group)
                    .map(|it| it.naming(&principal).map(|it| it.name.clone()).collect()).unwrap_or_default();
                let all: Vec<_> = state.policies().values()
                    .filter(|it| it.app_group == group && it.names(&principal)).map(|it| it.name.clone()).collect();
                prop_assert_eq!(found, all);
            }
        }
    }
}
