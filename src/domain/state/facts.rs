//! Single facts that a state holds beside documents and keys: who revoked, opened, accepted or moved what, and who writes
//! audit rows. They are part of checkpoints, so each stays readable as it was written.

use serde::{Deserialize, Serialize};

use crate::domain::key::Stamp;
use crate::domain::target::Target;
use crate::id::{Chain, DecisionId, Head, Revision, WriterId};

/// One revocation, standing or lifted.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Revocation {
    /// What is revoked.
    pub target: Target,
    /// The newest revision that revoked it: tokens committed before it are revoked, also after a reinstatement.
    pub revision: Revision,
    /// Who, and when.
    pub stamp: Stamp,
    /// Why.
    pub reason: String,
    /// Whether somebody lifted it.
    pub lifted: bool,
    /// For a token: when it dies, in Unix seconds.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub dies_at: Option<i64>,
}

/// One author of audit rows.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Writer {
    /// Its name.
    pub id: WriterId,
    /// The replica whose process it is.
    #[serde(default, skip_serializing_if = "String::is_empty")]
    pub replica: String,
    /// Rows up to here must exist: the last one that was committed with a record of the control log.
    pub known_sequence: u64,
    /// Rows up to here were cleared for removal.
    pub pruned_sequence: u64,
    /// The chain value there; zeros where nothing was removed.
    pub pruned_chain: Chain,
}

/// One time that an operator accepted a database that had gone back.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct AcceptedHistory {
    /// Names the acceptance.
    pub id: DecisionId,
    /// The newest head that was seen of what is lost.
    pub seen: Head,
    /// The newest revision that the database had.
    pub database: Revision,
    /// Who, and when.
    pub stamp: Stamp,
}

/// One change of what plans rest on.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Move {
    /// The revision that it made.
    pub revision: Revision,
    /// Who, and when.
    pub stamp: Stamp,
    /// What happened.
    pub what: String,
}

/// A break-glass policy that is held open.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Opened {
    /// When it closes by itself, in Unix seconds.
    pub until: i64,
    /// Who opened it, and when.
    pub stamp: Stamp,
    /// Why.
    pub reason: String,
}
