//! A change of documents that waits for a second operator.
//!
//! # Invariants
//! - `INV-PROPOSAL-1`: what is approved is what was reviewed: a proposal names everything that it puts and removes, and what
//!   that does; approving makes just that, where it still does just that, or nothing.
//! - `INV-PROPOSAL-2`: nobody approves their own proposal, under whatever operator's name.

use std::collections::BTreeSet;

use serde::{Deserialize, Serialize};

use super::change::{Object, ObjectName};
use super::key::Stamp;
use super::principal::Principal;
use crate::id::{ClientId, OperatorName, ProposalId, Revision};

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
    /// The newest revision when it was planned.
    pub planned_on: Revision,
    /// SHA-256 of all that its plan says: what changes, who gains and loses what, and who enforces it. In hex.
    #[serde(default)]
    pub effect: String,
    /// Who proposed it, and when.
    pub stamp: Stamp,
    /// The caller's name: nobody approves what they proposed.
    pub client: ClientId,
    /// The name in the certificate of the caller's connection, where that is another one: its holder is the caller, too.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub certificate: Option<ClientId>,
    /// All operators that the caller was then.
    #[serde(default)]
    pub operators: BTreeSet<OperatorName>,
    /// Why, for whoever reviews it.
    #[serde(default, skip_serializing_if = "String::is_empty")]
    pub reason: String,
}

impl Proposal {
    /// Whether this caller proposed it, under one of the names by which it was known then or is now.
    pub fn is_by(&self, caller: &Principal) -> bool {
        let names = [Some(&caller.client), caller.certificate.as_ref()];
        names.into_iter().flatten().any(|name| *name == self.client || Some(name) == self.certificate.as_ref())
    }

    /// From when on it can't be approved any more, in Unix seconds.
    pub fn expires_at(&self) -> i64 {
        self.stamp.at.seconds().saturating_add(LIVES_S)
    }
}
