//! What gives a policy a key that signs: more of its roles, a key that is suspended, or a new one.

use std::sync::Arc;

use super::{Step, World};
use crate::domain::app_group::AppGroup;
use crate::domain::change::Change;
use crate::domain::decide::{passed_over, routing, strength};
use crate::domain::key::{AppAccess, Key, KeyKind, KeyState, Profile, Stamp};
use crate::domain::policy::Policy;
use crate::domain::role::{Role, RoleSet};
use crate::id::{AppleUser, CeilingName, KeyId, Revision};

/// What mends that no key signs.
pub(super) fn mend(world: &World<'_>, policy: &Policy) -> Option<Step> {
    let state = world.state.as_ref();
    let group = state.app_groups().get(&policy.app_group)?;
    let (left, team_keys) = routing(policy.roles, &group.name, state);
    let wanted =
        format!("a key with the role {} and no role beyond {left} for app group {}", world.request.role, group.name);
    widen(world, policy, group, &wanted)
        .or_else(|| resume(world, group, left, team_keys))
        .or_else(|| import(world, group, &wanted, team_keys))
}

/// More roles in the policy, up to those of the key that needs the fewest.
fn widen(world: &World<'_>, policy: &Policy, group: &AppGroup, wanted: &str) -> Option<Step> {
    let (state, role) = (world.state.as_ref(), world.request.role);
    let every: RoleSet = Role::ALL.iter().copied().collect();
    // A role that a ceiling allows nobody is none that a policy could add.
    let (allowed, team_keys) = routing(every, &group.name, state);
    let keys = state.keys_of(&group.name).iter();
    let usable = keys.filter(|key| passed_over(key, role, allowed, team_keys.is_ok(), group).is_none());
    let key = usable.min_by_key(|key| (key.roles.without(policy.roles).len(), strength(key, group)))?;
    let more = key.roles.without(policy.roles);
    let sentence = format!(
        "import {wanted}; or, which grants more, add {more} to the roles of policy {}, as key {} has them",
        policy.name, key.id
    );
    Some(Step::policy(sentence, Policy { roles: policy.roles.union(more), ..policy.clone() }))
}

fn resume(world: &World<'_>, group: &AppGroup, left: RoleSet, team_keys: Result<(), &CeilingName>) -> Option<Step> {
    let resumed = |key: &&Arc<Key>| {
        let active = Key { state: KeyState::Active, ..Key::clone(key) };
        key.state == KeyState::Suspended
            && passed_over(&active, world.request.role, left, team_keys.is_ok(), group).is_none()
    };
    let suspended = world.state.keys_of(&group.name).iter().filter(resumed);
    let key = suspended.min_by_key(|key| strength(key, group))?;
    let sentence = format!("resume key {}, which is suspended", key.id);
    Some(Step::beyond(sentence, Change::KeyResumed { key_id: key.id.clone(), reason: String::new() }))
}

fn import(world: &World<'_>, group: &AppGroup, wanted: &str, team_keys: Result<(), &CeilingName>) -> Option<Step> {
    let ids = (0..10_000_u32).filter_map(|nth| KeyId::parse(&format!("NEWKEY{nth:04}")).ok());
    let kind = match team_keys {
        Ok(()) => KeyKind::Team,
        Err(_) => KeyKind::Individual {
            user: AppleUser::parse("new").ok()?,
            app_access: AppAccess::Only(group.apps.clone()),
            declared_at: world.now,
        },
    };
    let sentence = match team_keys {
        Ok(()) => format!("import {wanted}"),
        Err(ceiling) => format!("import {wanted}, an individual one: ceiling {ceiling} allows no team key there"),
    };
    let key = Key {
        id: ids.into_iter().find(|id| !world.state.keys().contains_key(id))?,
        account: group.account.clone(),
        profile: Profile::AppStoreConnect,
        kind,
        roles: [world.request.role].into_iter().collect(),
        app_groups: [group.name.clone()].into(),
        fingerprint: String::new(),
        public_key: String::new(),
        state: KeyState::Active,
        imported: Stamp { by: String::new(), at: world.now },
        imported_revision: Revision::default(),
        revoked: None,
        confirmed_at_apple: None,
    };
    Some(Step::beyond(sentence, Change::KeyImported { key: Box::new(key) }))
}
