//! How many tokens a policy hands out to one client, in fixed windows of the database's time.

use std::fmt;

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

impl Quota {
    /// Whether it bounds anything: what is not bounded is not counted.
    pub fn is_bounded(&self) -> bool {
        self.tokens_per_hour.is_some() || self.fresh_per_minute.is_some()
    }
}

/// One bound of a quota.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Bound {
    /// Tokens handed out in one hour.
    TokensPerHour,
    /// Tokens signed in one minute.
    FreshPerMinute,
}

impl Bound {
    /// The field of the quota that says it.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::TokensPerHour => "tokens_per_hour",
            Self::FreshPerMinute => "fresh_per_minute",
        }
    }
}

/// For a person.
impl fmt::Display for Bound {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::TokensPerHour => "tokens per hour",
            Self::FreshPerMinute => "fresh tokens per minute",
        })
    }
}
