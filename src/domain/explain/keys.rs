//! Each key of the app group: the one that signs, and why the others do not.

use std::cmp::Reverse;
use std::sync::Arc;

use super::ConsideredKey;
use crate::domain::app_group::AppGroup;
use crate::domain::decide::{PassedOver, Permit, TokenRequest, passed_over, routing, strength};
use crate::domain::key::Key;
use crate::domain::policy::Policy;
use crate::domain::role::RoleSet;
use crate::domain::state::State;
use crate::id::CeilingName;

/// Each key of the group, as it looks under the policy that decided or came nearest; without one, as under a policy that
/// grants the role alone.
pub(super) fn considered(
    request: &TokenRequest,
    policy: Option<&Policy>,
    permit: Option<&Permit>,
    state: &State,
) -> Vec<ConsideredKey> {
    let Some(group) = state.app_groups().get(&request.app_group) else { return Vec::new() };
    let granted = policy.map_or_else(|| [request.role].into_iter().collect(), |policy| policy.roles);
    let (left, team_keys) = routing(granted, &group.name, state);
    let why = |key: &Key| passed_over(key, request.role, left, team_keys.is_ok(), group);
    let keys = state.keys_of(&group.name);
    let weakest = keys.iter().filter(|key| why(key).is_none()).min_by_key(|key| strength(key, group));
    let one = |key: &Arc<Key>| {
        let chosen = permit.is_some_and(|permit| permit.key().id == key.id);
        let explanation = match (why(key), weakest) {
            (Some(why), _) => words(why, key, group, left, team_keys),
            (None, Some(weakest)) if weakest.id != key.id => preferred(weakest, key, group),
            (None, _) if chosen => "it signs: it is the weakest key that will do".to_owned(),
            (None, _) => "it would sign if the rest allowed it: it is the weakest key that will do".to_owned(),
        };
        ConsideredKey { id: key.id.clone(), chosen, explanation }
    };
    keys.iter().map(one).collect()
}

fn words(why: PassedOver, key: &Key, group: &AppGroup, left: RoleSet, team_keys: Result<(), &CeilingName>) -> String {
    let what = why.as_str();
    match why {
        PassedOver::NotActive => format!("{what}: {}", key.state),
        PassedOver::OtherAccount => format!("{what}: {} and {}", key.account, group.account),
        PassedOver::LacksRole => format!("{what}: it has {}", key.roles),
        PassedOver::ExceedsRoles => format!("{what}: {}", key.roles.without(left)),
        PassedOver::TeamKey => team_keys.err().map_or_else(|| what.to_owned(), |name| format!("{what}: {name}")),
    }
}

/// Why the weakest key is preferred to another one that would do: the first place in which their strengths differ.
fn preferred(weakest: &Key, key: &Key, group: &AppGroup) -> String {
    let id = &weakest.id;
    let (best, own) = (strength(weakest, group), strength(key, group));
    if best.0 != own.0 {
        return format!("Apple does not confine it to the apps of the group, as it does key {id}");
    }
    if best.1 != own.1 {
        return format!("it is administrative, and key {id} is not");
    }
    if best.2 != own.2 {
        return format!("it has {} roles, and key {id} has {}", own.2, best.2);
    }
    if best.3 != own.3 {
        return format!("it is for {} app groups, and key {id} for {}", own.3, best.3);
    }
    let (Reverse(newer), Reverse(older)) = (best.4, own.4);
    format!("key {id} was imported after it, at revision {newer} and not {older}")
}
