//! What applying a document would do: a list of steps, and the one change that makes them all.
//!
//! # Invariants
//! - `INV-PLAN-1`: the state after the change refers to nothing that is not there.
//! - `INV-PLAN-2`: an administrator is left.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

use serde::Serialize;

use super::change::{Change, Object, ObjectName};
use super::document::{Desired, Violation};
use super::policy::MOST_PER_APP_GROUP;
use super::state::State;
use super::target::Target;
use crate::id::{AccountName, AppGroupName};

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
    /// The app groups whose policies this changes, before and after.
    pub authored_groups: BTreeSet<AppGroupName>,
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
    let mut steps = Vec::new();
    let mut put = Vec::new();
    let mut named = BTreeSet::new();
    let mut consider = |object: Object, before: Option<Object>| {
        named.insert(object.name());
        let step = step(&object, before.as_ref(), state);
        if step.action != Action::Keep {
            put.push(object);
        }
        steps.push(step);
    };
    for account in &desired.accounts {
        consider(Object::Account(account.clone()), state.accounts().get(&account.name).cloned().map(Object::Account));
    }
    for group in &desired.app_groups {
        let before = state.app_groups().get(&group.name).map(|group| Object::AppGroup((**group).clone()));
        consider(Object::AppGroup(group.clone()), before);
    }
    for policy in &desired.policies {
        let before = state.policies().get(&policy.name).cloned().map(Object::Policy);
        consider(Object::Policy(Arc::new(policy.clone())), before);
    }
    for operator in &desired.operators {
        let before = state.operators().get(&operator.name).map(|operator| Object::Operator((**operator).clone()));
        consider(Object::Operator(operator.clone()), before);
    }
    let removed: Vec<ObjectName> = match unnamed {
        Unnamed::Keep => Vec::new(),
        Unnamed::Remove => every_name(state).filter(|name| !named.contains(name)).collect(),
    };
    steps.extend(removed.iter().map(|name| removal(name, state)));
    let violations = Outcome::of(&put, &removed, state).violations(desired);
    if !violations.is_empty() {
        return Err(violations);
    }
    let nothing = put.is_empty() && removed.is_empty();
    Ok(Plan { steps, change: (!nothing).then_some(Change::DocumentApplied { put, removed }) })
}

fn step(object: &Object, before: Option<&Object>, state: &State) -> Step {
    let mut authored_groups = BTreeSet::new();
    let (action, changes) = match before {
        None => (Action::Create, Vec::new()),
        Some(before) if before == object => (Action::Keep, Vec::new()),
        Some(before) => (Action::Update, differences(before, object)),
    };
    for policy in [Some(object), before].into_iter().flatten() {
        if let Object::Policy(policy) = policy {
            authored_groups.insert(policy.app_group.clone());
        }
    }
    Step { action, changes, note: standing_revocation(&object.name(), state), object: object.name(), authored_groups }
}

fn removal(name: &ObjectName, state: &State) -> Step {
    let mut authored_groups = BTreeSet::new();
    if let ObjectName::Policy(name) = name
        && let Some(policy) = state.policies().get(name)
    {
        authored_groups.insert(policy.app_group.clone());
    }
    Step {
        action: Action::Remove,
        object: name.clone(),
        changes: Vec::new(),
        note: standing_revocation(name, state),
        authored_groups,
    }
}

/// A revocation stands until it is lifted by name: applying a document never does.
fn standing_revocation(name: &ObjectName, state: &State) -> Option<String> {
    let target = match name {
        ObjectName::AppGroup(name) => Target::AppGroup(name.clone()),
        ObjectName::Policy(name) => Target::Policy(name.clone()),
        ObjectName::Account(_) | ObjectName::Operator(_) => return None,
    };
    state.is_revoked(&target).then(|| "revoked, stays revoked".to_owned())
}

fn differences(before: &Object, after: &Object) -> Vec<String> {
    let fields = |object: &Object| match object {
        Object::Account(it) => json(it),
        Object::AppGroup(it) => json(it),
        Object::Policy(it) => json(it.as_ref()),
        Object::Operator(it) => json(it),
    };
    let (before, after) = (fields(before), fields(after));
    let names: BTreeSet<&String> = before.keys().chain(after.keys()).collect();
    let value = |fields: &BTreeMap<String, serde_json::Value>, name: &String| {
        fields.get(name).map_or_else(|| "(none)".to_owned(), ToString::to_string)
    };
    names
        .into_iter()
        .filter(|name| before.get(*name) != after.get(*name))
        .map(|name| format!("{name}: {} -> {}", value(&before, name), value(&after, name)))
        .collect()
}

fn json(object: &impl Serialize) -> BTreeMap<String, serde_json::Value> {
    match serde_json::to_value(object) {
        Ok(serde_json::Value::Object(fields)) => fields.into_iter().collect(),
        _ => BTreeMap::new(),
    }
}

fn every_name(state: &State) -> impl Iterator<Item = ObjectName> {
    let accounts = state.accounts().keys().cloned().map(ObjectName::Account);
    let groups = state.app_groups().keys().cloned().map(ObjectName::AppGroup);
    let policies = state.policies().keys().cloned().map(ObjectName::Policy);
    let operators = state.operators().keys().cloned().map(ObjectName::Operator);
    accounts.chain(groups).chain(policies).chain(operators)
}

/// What would be there after the change, as far as references go.
struct Outcome<'a> {
    accounts: BTreeSet<AccountName>,
    groups: BTreeMap<AppGroupName, AccountName>,
    policies: BTreeMap<AppGroupName, usize>,
    has_administrator: bool,
    state: &'a State,
    removed: &'a [ObjectName],
}

impl<'a> Outcome<'a> {
    fn of(put: &[Object], removed: &'a [ObjectName], state: &'a State) -> Self {
        let mut after = state.clone();
        // A fold on a copy, so that what is checked is what will be.
        after.preview(put, removed);
        let mut policies = BTreeMap::new();
        for policy in after.policies().values() {
            *policies.entry(policy.app_group.clone()).or_insert(0) += 1;
        }
        Self {
            accounts: after.accounts().keys().cloned().collect(),
            groups: after.app_groups().values().map(|group| (group.name.clone(), group.account.clone())).collect(),
            policies,
            has_administrator: after.has_administrator_beside(None),
            state,
            removed,
        }
    }

    fn violations(&self, desired: &Desired) -> Vec<Violation> {
        let mut out = Vec::new();
        let mut refuse = |path: String, message: String| out.push(Violation { path, message });
        for (at, group) in desired.app_groups.iter().enumerate() {
            if !self.accounts.contains(&group.account) {
                refuse(format!("app_groups[{at}].account"), unknown("account", group.account.as_str()));
            }
            let moved = self.state.app_groups().get(&group.name).is_some_and(|before| before.account != group.account);
            if moved && !self.state.keys_of(&group.name).is_empty() {
                refuse(
                    format!("app_groups[{at}].account"),
                    "the group has keys of its present account; make a group of another name".to_owned(),
                );
            }
        }
        for (at, account) in desired.accounts.iter().enumerate() {
            let before = self.state.accounts().get(&account.name);
            let has_keys = self.state.keys().values().any(|key| key.account == account.name);
            if has_keys && before.is_some_and(|before| before.issuer_id != account.issuer_id) {
                refuse(
                    format!("accounts[{at}].issuer_id"),
                    "the account has keys, which Apple issued under its present Issuer ID; make an account of another name".to_owned(),
                );
            }
        }
        for (at, policy) in desired.policies.iter().enumerate() {
            if !self.groups.contains_key(&policy.app_group) {
                refuse(format!("policies[{at}].app_group"), unknown("app group", policy.app_group.as_str()));
            }
            let count = self.policies.get(&policy.app_group).copied().unwrap_or_default();
            if count > MOST_PER_APP_GROUP {
                refuse(
                    format!("policies[{at}].app_group"),
                    format!(
                        "`{}` would have {count} policies; at most {MOST_PER_APP_GROUP} for one app group",
                        policy.app_group
                    ),
                );
            }
        }
        for (at, operator) in desired.operators.iter().enumerate() {
            for (nth, group) in operator.app_groups.iter().enumerate() {
                if !self.groups.contains_key(group) {
                    refuse(format!("operators[{at}].app_groups[{nth}]"), unknown("app group", group.as_str()));
                }
            }
        }
        // INVARIANT (INV-PLAN-1): removing asks of what stays.
        for name in self.removed {
            let used = match name {
                ObjectName::Account(name) => {
                    self.groups.values().any(|account| account == name)
                        || self.state.keys().values().any(|key| key.account == *name)
                }
                ObjectName::AppGroup(name) => self.policies.contains_key(name) || !self.state.keys_of(name).is_empty(),
                ObjectName::Policy(_) | ObjectName::Operator(_) => false,
            };
            if used {
                refuse(name.to_string(), "is still used by policies, groups or keys; it can't be removed".to_owned());
            }
        }
        // INVARIANT (INV-PLAN-2)
        if !self.has_administrator {
            refuse(
                "operators".to_owned(),
                "nobody who is not revoked would be left with the power `administer`".to_owned(),
            );
        }
        out
    }
}

fn unknown(kind: &str, name: &str) -> String {
    format!("there is no {kind} `{name}`, neither in the document nor in the vault")
}
