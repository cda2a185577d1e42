//! An App Store Connect account.

use serde::{Deserialize, Serialize};

use crate::id::{AccountName, IssuerId};

/// An account, and the Issuer ID that Apple gave it.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Account {
    /// The broker's name for it.
    pub name: AccountName,
    /// Apple's name for it: the `iss` of tokens signed with its team keys.
    pub issuer_id: IssuerId,
}
