//! How many tokens a policy hands out to one client, in fixed windows of the database's time.

use serde::{Deserialize, Serialize};

/// Bounds for each client of a policy. Windows are whole hours and whole minutes of Unix time.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Quota {
    /// Tokens handed out in one hour, signed or reused.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub tokens_per_hour: Option<u32>,
    /// Tokens signed in one minute.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub fresh_per_minute: Option<u32>,
}
