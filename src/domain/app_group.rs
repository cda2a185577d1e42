//! A group of apps of one account: what policies grant access to.

use std::collections::BTreeSet;

use serde::{Deserialize, Serialize};

use crate::id::{AccountName, AppGroupName, AppId};

/// Some apps of one account.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct AppGroup {
    /// The broker's name for it.
    pub name: AppGroupName,
    /// The account the apps belong to.
    pub account: AccountName,
    /// The apps.
    pub apps: BTreeSet<AppId>,
}
