//! Which key signs: the weakest that will do.

use std::cmp::Reverse;
use std::sync::Arc;

use super::{DenyReason, Miss};
use crate::domain::app_group::AppGroup;
use crate::domain::key::{Key, KeyState};
use crate::domain::role::{Role, RoleSet};
use crate::id::CeilingName;

/// Why a key of the group is not the one that signs.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum PassedOver {
    /// It is suspended or revoked.
    NotActive,
    /// It belongs to another account than the group.
    OtherAccount,
    /// It does not have the role.
    LacksRole,
    /// It has roles beyond what is granted.
    ExceedsRoles,
    /// It is a team key, and a ceiling allows none here.
    TeamKey,
}

impl PassedOver {
    /// In words.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::NotActive => "it is not active",
            Self::OtherAccount => "it belongs to another account than the app group",
            Self::LacksRole => "it does not have the role",
            Self::ExceedsRoles => "it has roles that are not granted",
            Self::TeamKey => "it is a team key, and a ceiling allows none where there are individual keys",
        }
    }
}

/// Why a key can't sign for this role, under these granted roles; `None` for a candidate.
pub fn passed_over(key: &Key, role: Role, granted: RoleSet, team_keys: bool, group: &AppGroup) -> Option<PassedOver> {
    if key.state != KeyState::Active {
        Some(PassedOver::NotActive)
    } else if key.account != group.account {
        Some(PassedOver::OtherAccount)
    } else if !key.roles.contains(role) {
        Some(PassedOver::LacksRole)
    } else if !key.roles.is_subset_of(granted) {
        // INVARIANT (P3): a key whose roles exceed what is granted is never used, even if it is the only one.
        Some(PassedOver::ExceedsRoles)
    } else if !team_keys && key.is_team() {
        Some(PassedOver::TeamKey)
    } else {
        None
    }
}

/// Whether the group has an individual key, or had one: revoking it must not bring the team keys back.
pub(in crate::domain) fn has_individual_keys(keys: &[Arc<Key>]) -> bool {
    keys.iter().any(|key| !key.is_team())
}

/// The weakest key that will do.
pub(super) fn route<'a>(
    role: Role,
    granted: RoleSet,
    team_keys: Result<(), &'a CeilingName>,
    group: &AppGroup,
    keys: &'a [Arc<Key>],
) -> Result<&'a Arc<Key>, Miss<'a>> {
    let mut best: Option<(Strength, &Arc<Key>)> = None;
    let mut nearest = PassedOver::NotActive;
    for key in keys {
        match passed_over(key, role, granted, team_keys.is_ok(), group) {
            None => {
                let strength = strength(key, group);
                if best.as_ref().is_none_or(|(known, _)| strength < *known) {
                    best = Some((strength, key));
                }
            }
            Some(why) => nearest = nearest.max(why),
        }
    }
    if let Some((_, key)) = best {
        return Ok(key);
    }
    Err(match nearest {
        PassedOver::NotActive | PassedOver::OtherAccount | PassedOver::LacksRole => DenyReason::NoActiveKey.into(),
        PassedOver::ExceedsRoles => DenyReason::KeyExceedsPolicy.into(),
        PassedOver::TeamKey => Miss { reason: DenyReason::TeamKeyOverCeiling, ceiling: team_keys.err() },
    })
}

/// Not confined to the group by Apple; administrative; number of roles; number of groups; newest import first.
pub(in crate::domain) type Strength = (bool, bool, u32, usize, Reverse<u64>);

/// Smaller is weaker, and so preferred; unique, as no two imports share a revision.
pub(in crate::domain) fn strength(key: &Key, group: &AppGroup) -> Strength {
    (
        !key.is_confined_to(&group.apps),
        key.roles.is_administrative(),
        key.roles.len(),
        key.app_groups.len(),
        Reverse(key.imported_revision.0),
    )
}
