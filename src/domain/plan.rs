//! What applying a document would do: a list of steps, and the one change that makes them all.
//!
//! Steps: compare each thing with what is there; fold the difference into a copy of the state; look whether that can be
//! (`outcome`); say what each step means, with the state before and after at hand.
//!
//! # Invariants
//! - `INV-PLAN-1`: the state after the change refers to nothing that is not there.
//! - `INV-PLAN-2`: an administrator is left.
//! - `INV-PLAN-3`: where changes come to take two administrators, there are two.

mod outcome;

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

use super::change::{Change, Object, ObjectName};
use super::document::{Desired, Document, Violation, shape};
use super::enforcement::{self, Enforcement};
use super::meaning;
use super::state::State;
use super::target::Target;
use crate::id::{AppGroupName, CeilingName};

/// What becomes of things that the document does not name.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Unnamed {
    /// They stay.
    Keep,
    /// They are removed.
    Remove,
}

/// What happens to one thing.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Action {
    /// It is new.
    Create,
    /// It changes.
    Update,
    /// It goes.
    Remove,
    /// It is there already, just so.
    Keep,
}

impl Action {
    /// The spelling in answers.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Create => "CREATE",
            Self::Update => "UPDATE",
            Self::Remove => "REMOVE",
            Self::Keep => "KEEP",
        }
    }
}

/// What happens to one thing, and how.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Step {
    /// What happens.
    pub action: Action,
    /// To what.
    pub object: ObjectName,
    /// Each field that changes, as `field: old -> new`.
    pub changes: Vec<String>,
    /// What else there is to know, such as a revocation that stays.
    pub note: Option<String>,
    /// Who gains, and who loses what.
    pub means: Vec<String>,
    /// For a policy that is there afterwards: who holds its bearers to each limit.
    pub enforced_by: Vec<Enforcement>,
    /// The app groups whose policies this changes, before and after.
    pub authored_groups: BTreeSet<AppGroupName>,
    /// The ceiling under which this takes two operators.
    pub approval: Option<CeilingName>,
}

/// What applying a document would do.
#[derive(Debug, Clone)]
pub struct Plan {
    /// What happens to each thing that the document names or that goes.
    pub steps: Vec<Step>,
    /// The change that does it; `None` where there is nothing to do.
    pub change: Option<Change>,
}

/// Plans a document against a state.
///
/// # Errors
/// With everything in the document that can't be, in this state.
pub fn plan(desired: &Desired, unnamed: Unnamed, state: &State) -> Result<Plan, Vec<Violation>> {
    let objects = objects(desired);
    let named: BTreeSet<ObjectName> = objects.iter().map(Object::name).collect();
    let removed: Vec<ObjectName> = match unnamed {
        Unnamed::Keep => Vec::new(),
        Unnamed::Remove => every_name(state).filter(|name| !named.contains(name)).collect(),
    };
    let put: Vec<Object> =
        objects.iter().filter(|object| current(&object.name(), state).as_ref() != Some(*object)).cloned().collect();
    // A fold on a copy, so that what is checked is what will be.
    let mut after = state.clone();
    after.preview(&put, &removed);
    let violations = outcome::violations(desired, &removed, state, &after);
    if !violations.is_empty() {
        return Err(violations);
    }
    let steps = objects.iter().map(|object| (object.name(), Some(object)));
    let steps = steps.chain(removed.iter().map(|name| (name.clone(), None)));
    let steps = steps.map(|(name, object)| step(name, object, state, &after)).collect();
    let nothing = put.is_empty() && removed.is_empty();
    Ok(Plan { steps, change: (!nothing).then_some(Change::DocumentApplied { put, removed }) })
}

/// What a reviewed change does to a state: the same steps, planned from the things themselves.
pub fn steps_of(put: &[Object], removed: &[ObjectName], state: &State) -> Vec<Step> {
    replan(put, removed, state).0
}

/// The same, and everything about it that can't be any more.
pub fn replan(put: &[Object], removed: &[ObjectName], state: &State) -> (Vec<Step>, Vec<Violation>) {
    let mut after = state.clone();
    after.preview(put, removed);
    let violations = outcome::violations(&desired(put), removed, state, &after);
    let steps = put.iter().map(|object| (object.name(), Some(object)));
    let steps = steps.chain(removed.iter().map(|name| (name.clone(), None)));
    (steps.map(|(name, object)| step(name, object, state, &after)).collect(), violations)
}

/// Things, as a document has them.
fn desired(objects: &[Object]) -> Desired {
    let mut out = Desired::default();
    for object in objects {
        match object {
            Object::Account(it) => out.accounts.push(it.clone()),
            Object::AppGroup(it) => out.app_groups.push(it.clone()),
            Object::Issuer(it) => out.issuers.push((**it).clone()),
            Object::Ceiling(it) => out.ceilings.push((**it).clone()),
            Object::Policy(it) => out.policies.push((**it).clone()),
            Object::Operator(it) => out.operators.push(it.clone()),
        }
    }
    out
}

/// Everything that a document names.
fn objects(desired: &Desired) -> Vec<Object> {
    let mut out: Vec<Object> = desired.accounts.iter().cloned().map(Object::Account).collect();
    out.extend(desired.app_groups.iter().cloned().map(Object::AppGroup));
    out.extend(desired.issuers.iter().cloned().map(Arc::new).map(Object::Issuer));
    out.extend(desired.ceilings.iter().cloned().map(Arc::new).map(Object::Ceiling));
    out.extend(desired.policies.iter().cloned().map(Arc::new).map(Object::Policy));
    out.extend(desired.operators.iter().cloned().map(Object::Operator));
    out
}

/// The thing of this name as it is.
fn current(name: &ObjectName, state: &State) -> Option<Object> {
    match name {
        ObjectName::Account(name) => state.accounts().get(name).cloned().map(Object::Account),
        ObjectName::AppGroup(name) => state.app_groups().get(name).map(|it| Object::AppGroup((**it).clone())),
        ObjectName::Policy(name) => state.policies().get(name).cloned().map(Object::Policy),
        ObjectName::Operator(name) => state.operators().get(name).map(|it| Object::Operator((**it).clone())),
        ObjectName::Issuer(name) => state.issuers().get(name).cloned().map(Object::Issuer),
        ObjectName::Ceiling(name) => state.ceilings().get(name).cloned().map(Object::Ceiling),
    }
}

fn step(name: ObjectName, object: Option<&Object>, state: &State, after: &State) -> Step {
    let before = current(&name, state);
    let (action, changes) = match (&before, object) {
        // A proposal may name what somebody else has removed since.
        (None, None) => (Action::Keep, Vec::new()),
        (None, Some(_)) => (Action::Create, Vec::new()),
        (Some(_), None) => (Action::Remove, Vec::new()),
        (Some(before), Some(object)) if before == object => (Action::Keep, Vec::new()),
        (Some(before), Some(object)) => (Action::Update, differences(before, object)),
    };
    let policies = [before.as_ref(), object].into_iter().flatten().filter_map(|object| match object {
        Object::Policy(policy) => Some(policy.app_group.clone()),
        _ => None,
    });
    let enforced_by = match object {
        Some(Object::Policy(policy)) => enforcement::of_policy(policy, after),
        _ => Vec::new(),
    };
    let mut step = Step {
        action,
        changes,
        note: standing_revocation(&name, state),
        means: if action == Action::Keep { kept(object, after) } else { means(before.as_ref(), object, state, after) },
        enforced_by,
        authored_groups: policies.collect(),
        approval: None,
        object: name,
    };
    if action != Action::Keep {
        step.approval = approval(&step, before.as_ref(), object, state);
    }
    step
}

/// A policy that stays says what ceilings take from it, so that a plan shows all of what a document comes to.
fn kept(object: Option<&Object>, after: &State) -> Vec<String> {
    if let Some(Object::Policy(policy)) = object { meaning::narrowed(policy, after) } else { Vec::new() }
}

fn means(before: Option<&Object>, object: Option<&Object>, state: &State, after: &State) -> Vec<String> {
    match (before, object) {
        (None, Some(Object::Policy(new))) => meaning::of_new_policy(new, after),
        (Some(Object::Policy(old)), Some(Object::Policy(new))) => meaning::of_changed_policy(old, new, state, after),
        (Some(Object::Policy(old)), None) => meaning::of_removed_policy(old, state),
        (Some(Object::AppGroup(old)), Some(Object::AppGroup(new))) => {
            let texts = |apps: BTreeSet<&crate::id::AppId>| apps.into_iter().map(ToString::to_string).collect();
            let gained = texts(new.apps.difference(&old.apps).collect());
            let lost = texts(old.apps.difference(&new.apps).collect());
            meaning::of_apps(&gained, &lost, after.policies_of(&new.name))
        }
        (old, new) => match (old, new) {
            (Some(Object::Operator(_)), _) | (_, Some(Object::Operator(_))) => {
                meaning::of_operator(old.and_then(Object::as_operator), new.and_then(Object::as_operator))
            }
            (Some(Object::Issuer(_)), _) | (_, Some(Object::Issuer(_))) => {
                meaning::of_issuer(old.and_then(Object::as_issuer), new.and_then(Object::as_issuer), after)
            }
            (Some(Object::Ceiling(_)), _) | (_, Some(Object::Ceiling(_))) => {
                let (old, new) = (old.and_then(Object::as_ceiling), new.and_then(Object::as_ceiling));
                meaning::of_ceiling(old, new, state, after)
            }
            _ => Vec::new(),
        },
    }
}

/// The ceiling under which a step takes two operators. Where there is one at all, so do changes of those who could get
/// around it: ceilings, operators and issuers.
fn approval(step: &Step, before: Option<&Object>, object: Option<&Object>, state: &State) -> Option<CeilingName> {
    let of_group = |group: &AppGroupName| state.bounds_of(group).find_map(|bounds| bounds.requires_approval());
    match &step.object {
        ObjectName::Policy(_) => step.authored_groups.iter().find_map(of_group).cloned(),
        ObjectName::AppGroup(name) => of_group(name).cloned(),
        ObjectName::Account(name) => {
            let groups = state.app_groups().values().filter(|group| group.account == *name);
            groups.map(|group| &group.name).find_map(of_group).cloned()
        }
        ObjectName::Operator(_) | ObjectName::Issuer(_) | ObjectName::Ceiling(_) => {
            debug_assert!(before.is_some() || object.is_some(), "a step is about something");
            let mut asking = state.ceilings().values().filter(|ceiling| ceiling.require_approval && !ceiling.shadow);
            asking.next().map(|ceiling| ceiling.name.clone())
        }
    }
}

/// A revocation stands until it is lifted by name: applying a document never does.
fn standing_revocation(name: &ObjectName, state: &State) -> Option<String> {
    let target = match name {
        ObjectName::AppGroup(name) => Target::AppGroup(name.clone()),
        ObjectName::Policy(name) => Target::Policy(name.clone()),
        ObjectName::Account(name) => Target::Account(name.clone()),
        ObjectName::Issuer(name) => Target::Issuer(name.clone()),
        ObjectName::Operator(_) | ObjectName::Ceiling(_) => return None,
    };
    state.is_revoked(&target).then(|| "revoked, stays revoked".to_owned())
}

fn differences(before: &Object, after: &Object) -> Vec<String> {
    let fields = |object: &Object| -> BTreeMap<String, serde_json::Value> {
        // As documents name and write them.
        let document = serde_json::to_value(Document::of_objects([object])).unwrap_or_default();
        let lists = document.as_object().into_iter().flat_map(|lists| lists.values());
        let first = lists.filter_map(serde_json::Value::as_array).find_map(|list| list.first());
        first
            .and_then(serde_json::Value::as_object)
            .into_iter()
            .flatten()
            .map(|(k, v)| (k.clone(), v.clone()))
            .collect()
    };
    let (before, after) = (fields(before), fields(after));
    let names: BTreeSet<&String> = before.keys().chain(after.keys()).collect();
    let value = |fields: &BTreeMap<String, serde_json::Value>, name: &String| {
        fields.get(name).map_or_else(|| "(none)".to_owned(), |value| shape::shown(name, value))
    };
    names
        .into_iter()
        .filter(|name| before.get(*name) != after.get(*name))
        .map(|name| format!("{name}: {} -> {}", value(&before, name), value(&after, name)))
        .collect()
}

fn every_name(state: &State) -> impl Iterator<Item = ObjectName> {
    let accounts = state.accounts().keys().cloned().map(ObjectName::Account);
    let groups = state.app_groups().keys().cloned().map(ObjectName::AppGroup);
    let policies = state.policies().keys().cloned().map(ObjectName::Policy);
    let operators = state.operators().keys().cloned().map(ObjectName::Operator);
    let issuers = state.issuers().keys().cloned().map(ObjectName::Issuer);
    let ceilings = state.ceilings().keys().cloned().map(ObjectName::Ceiling);
    accounts.chain(groups).chain(policies).chain(operators).chain(issuers).chain(ceilings)
}

#[cfg(test)]
mod tests;
