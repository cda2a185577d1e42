//! Plans over generated documents: what is planned is what comes, and what is there needs no plan.

use proptest::prelude::*;

use super::*;
use crate::domain::any::{any_document, any_world, apply, fold};
use crate::domain::document::Document;

/// What a document says, with its defaults written out and its lists by name.
fn sorted(document: &Document) -> Document {
    let mut out = document.clone();
    out.accounts.sort_by_key(|it| it.name.clone());
    out.app_groups.sort_by_key(|it| it.name.clone());
    out.issuers.sort_by_key(|it| it.name.clone());
    out.ceilings.sort_by_key(|it| it.name.clone());
    out.policies.sort_by_key(|it| it.name.clone());
    out.operators.sort_by_key(|it| it.name.clone());
    out
}

/// What a document means, by name.
fn meant(document: &Document) -> BTreeMap<String, Object> {
    let desired = document.check().unwrap_or_else(|wrong| panic!("{wrong:?}"));
    objects(&desired).into_iter().map(|object| (object.name().to_string(), object)).collect()
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(128))]

    /// With pruning, what is there afterwards is the document, whatever was there before; without, its things are as it has
    /// them and all others as they were.
    #[test]
    fn planned_and_applied_is_what_was_desired(before in any_world(), document in any_document()) {
        let known = before.state();
        let was = meant(&Document::of(&known));
        let wanted = meant(&document);
        for unnamed in [Unnamed::Keep, Unnamed::Remove] {
            let mut state = known.clone();
            let planned = plan(&document.check().unwrap(), unnamed, &state);
            prop_assert!(planned.is_ok(), "{:?}", planned.err());
            let planned = planned.unwrap();
            // What a step says it does is what becomes of its thing.
            let of = |action| planned.steps.iter().filter(|it| it.action == action).map(|it| it.object.to_string()).collect::<BTreeSet<_>>();
            let (created, updated, removed, kept) = (of(Action::Create), of(Action::Update), of(Action::Remove), of(Action::Keep));
            if let Some(change) = planned.change {
                fold(&mut state, change);
            }
            let is = meant(&Document::of(&state));
            let mut expected = if unnamed == Unnamed::Keep { was.clone() } else { BTreeMap::new() };
            expected.extend(wanted.clone());
            prop_assert_eq!(&is, &expected);
            for (name, object) in &is {
                let told = (created.contains(name), updated.contains(name), kept.contains(name));
                let happened = match was.get(name) {
                    None => (true, false, false),
                    Some(old) if old != object => (false, true, false),
                    Some(_) => (false, false, wanted.contains_key(name)),
                };
                prop_assert_eq!(told, happened, "{}", name);
            }
            let gone: BTreeSet<_> = was.keys().filter(|name| !is.contains_key(*name)).cloned().collect();
            prop_assert_eq!(removed, gone);
            // Once more: nothing is left to do.
            let again = plan(&document.check().unwrap(), unnamed, &state).unwrap();
            prop_assert!(again.change.is_none() && again.steps.iter().all(|it| it.action == Action::Keep));
        }
    }

    /// Exported and applied again, also by way of JSON, nothing changes: not even where everything else would be removed.
    #[test]
    fn what_is_exported_changes_nothing_when_it_is_applied(world in any_world()) {
        let mut state = world.state();
        let exported = Document::of(&state);
        let text = serde_json::to_string(&exported).unwrap();
        let read: Document = serde_json::from_str(&text).unwrap();
        prop_assert_eq!(&read, &exported);
        for unnamed in [Unnamed::Keep, Unnamed::Remove] {
            let planned = plan(&read.check().unwrap(), unnamed, &state).unwrap();
            prop_assert!(planned.change.is_none());
            prop_assert!(planned.steps.iter().all(|it| it.action == Action::Keep && it.changes.is_empty()), "{:?}", planned.steps);
        }
        let head = state.head();
        apply(&mut state, &read, Unnamed::Remove);
        prop_assert_eq!(state.head(), head);
        // Into an empty vault it brings everything back.
        let mut empty = State::default();
        apply(&mut empty, &read, Unnamed::Keep);
        prop_assert_eq!(Document::of(&empty), exported);
    }

    /// The order within a document, and how it is cut into several, is irrelevant.
    #[test]
    fn the_order_of_documents_is_irrelevant(document in any_document(), seed in any::<u64>()) {
        let mut whole = State::default();
        apply(&mut whole, &document, Unnamed::Keep);
        let turn = |nth: usize, len: usize| (usize::try_from(seed % 97).unwrap() + nth) % len.max(1);
        let mut turned = document.clone();
        turned.app_groups.reverse();
        turned.issuers.reverse();
        let len = turned.policies.len();
        turned.policies.rotate_left(turn(0, len));
        let len = turned.ceilings.len();
        turned.ceilings.rotate_left(turn(1, len));
        let mut other = State::default();
        apply(&mut other, &turned, Unnamed::Keep);
        prop_assert_eq!(Document::of(&whole), Document::of(&other));
        prop_assert_eq!(sorted(&Document::of(&whole)), Document::of(&whole));
        // What others refer to first; then one thing at a time, ceilings before and after policies.
        let mut cut = State::default();
        let (mut policies, mut ceilings) = (turned.policies.clone(), turned.ceilings.clone());
        apply(&mut cut, &Document { policies: vec![], ceilings: vec![], ..turned }, Unnamed::Keep);
        while !policies.is_empty() || !ceilings.is_empty() {
            let mut one = Document::default();
            // Of two that are left, by turns.
            if ceilings.is_empty() || (!policies.is_empty() && turn(policies.len(), 2) == 0) {
                one.policies.extend(policies.pop());
            } else {
                one.ceilings.extend(ceilings.pop());
            }
            apply(&mut cut, &one, Unnamed::Keep);
        }
        prop_assert_eq!(Document::of(&whole), Document::of(&cut));
    }
}
