//! Apple's `.p8` key, as the control log knows it: everything but the key.

use std::collections::BTreeSet;
use std::fmt;

use serde::{Deserialize, Serialize};

use super::role::RoleSet;
use crate::clock::UnixMillis;
use crate::id::{AccountName, AppGroupName, AppId, AppleUser, KeyId, Revision};

/// What a key signs tokens for. One today; the record carries it from the start.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Profile {
    /// The App Store Connect API.
    AppStoreConnect,
}

/// Whose key it is in Apple's eyes.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(tag = "kind", rename_all = "snake_case", deny_unknown_fields)]
pub enum KeyKind {
    /// Reaches all apps of the account, limited by its roles alone.
    Team,
    /// Has the roles and the app access of one user, both as somebody declared them here.
    Individual {
        /// The user.
        user: AppleUser,
        /// The apps the user is said to reach.
        app_access: AppAccess,
        /// When that was said.
        declared_at: UnixMillis,
    },
}

/// The apps that an individual key's user reaches.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum AppAccess {
    /// Every app of the account.
    All,
    /// These, and no others.
    Only(BTreeSet<AppId>),
}

/// What a key may do now.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum KeyState {
    /// Signs.
    Active,
    /// Stopped for now.
    Suspended,
    /// Stopped for good.
    Revoked,
}

impl fmt::Display for KeyState {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Active => "ACTIVE",
            Self::Suspended => "SUSPENDED",
            Self::Revoked => "REVOKED",
        })
    }
}

/// Who did something, and when.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Stamp {
    /// The operator's name.
    pub by: String,
    /// The moment.
    pub at: UnixMillis,
}

/// A key: what it is, what it may be used for, and its state.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Key {
    /// Apple's name for it.
    pub id: KeyId,
    /// The account it belongs to.
    pub account: AccountName,
    /// What it signs for.
    pub profile: Profile,
    /// Whose it is.
    pub kind: KeyKind,
    /// The roles it has at Apple.
    pub roles: RoleSet,
    /// The groups it may be used for.
    pub app_groups: BTreeSet<AppGroupName>,
    /// SHA-256 of the public key's SubjectPublicKeyInfo (RFC 5280, section 4.1.2.7), in hex.
    pub fingerprint: String,
    /// The public key's SubjectPublicKeyInfo, in base64: kept when the key is destroyed, so that its tokens can be told.
    pub public_key: String,
    /// What it may do now.
    pub state: KeyState,
    /// Who imported it, and when.
    pub imported: Stamp,
    /// The revision of the import. The newest import is the one that a replaced key drains to.
    pub imported_revision: Revision,
    /// Who revoked it, and when.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub revoked: Option<Stamp>,
    /// Who confirmed that it is revoked at Apple too, and when.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub confirmed_at_apple: Option<Stamp>,
}

impl Key {
    /// Whether it reaches every app of the account.
    pub fn is_team(&self) -> bool {
        matches!(self.kind, KeyKind::Team)
    }

    /// Whether Apple may still count this key against the account's limit, as far as the broker knows.
    pub fn counts_at_apple(&self) -> bool {
        matches!(self.kind, KeyKind::Team) && self.confirmed_at_apple.is_none()
    }

    /// When the app access was declared, for an individual key.
    pub fn declared_at(&self) -> Option<UnixMillis> {
        match &self.kind {
            KeyKind::Individual { declared_at, .. } => Some(*declared_at),
            KeyKind::Team => None,
        }
    }

    /// Whether the key is an individual one whose declared apps lie within these: then Apple confines it to them.
    pub fn is_confined_to(&self, apps: &BTreeSet<AppId>) -> bool {
        match &self.kind {
            KeyKind::Individual { app_access: AppAccess::Only(declared), .. } => {
                !declared.is_empty() && declared.is_subset(apps)
            }
            KeyKind::Individual { app_access: AppAccess::All, .. } | KeyKind::Team => false,
        }
    }
}
