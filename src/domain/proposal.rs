//! A change of documents that waits for a second operator.
//!
//! # Invariants
//! - `INV-PROPOSAL-1`: what is approved is what was reviewed: a proposal names everything that it puts and removes, and the
//!   last move it was planned on; approving makes just that, on that, or nothing.
//! - `INV-PROPOSAL-2`: nobody approves their own proposal, under whatever operator's name.

use serde::{Deserialize, Serialize};

use super::change::{Object, ObjectName};
use super::key::Stamp;
use crate::id::{ClientId, ProposalId, Revision};

/// Most proposals that wait at a time.
pub const MOST_OPEN: usize = 100;

/// How long one can be approved, in seconds: a week.
pub const LIVES_S: i64 = 7 * 86_400;

/// A proposed change.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Proposal {
    /// Its name.
    pub id: ProposalId,
    /// What would be there, new or changed.
    pub put: Vec<Object>,
    /// What would go.
    pub removed: Vec<ObjectName>,
    /// The newest move of the control plane when it was planned.
    pub planned_on: Revision,
    /// Who proposed it, and when.
    pub stamp: Stamp,
    /// The caller's name: nobody approves what they proposed.
    pub client: ClientId,
    /// Why, for whoever reviews it.
    #[serde(default, skip_serializing_if = "String::is_empty")]
    pub reason: String,
}

impl Proposal {
    /// From when on it can't be approved any more, in Unix seconds.
    pub fn expires_at(&self) -> i64 {
        self.stamp.at.seconds().saturating_add(LIVES_S)
    }
}
