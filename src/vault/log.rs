//! The sealed control log: how a record becomes bytes that can't be changed, swapped, replayed or left out.
//!
//! # Invariants
//! - P2: a record is sealed for one known predecessor. Its revision and the chain value before it are associated data,
//!   so it opens only at its own place in its own history; the chain value after it covers its sealed bytes.

use aws_lc_rs::digest::{Context, SHA256};

use super::VaultError;
use super::envelope::Place;
use super::keyring::Keyring;
use crate::domain::change::{Change, Record};
use crate::id::{Chain, Head, Revision, VaultId};

/// One row of the control log.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct SealedRecord {
    /// Its position.
    pub revision: Revision,
    /// Whether it holds the whole state, so that reading can start here.
    pub checkpoint: bool,
    /// The chain value before it.
    pub previous: Chain,
    /// The sealed record.
    pub sealed: Vec<u8>,
}

impl SealedRecord {
    /// Seals a record as the one after `head`.
    ///
    /// # Errors
    /// Where the cryptographic library fails.
    pub fn seal(keyring: &Keyring, vault: &VaultId, head: Head, record: &Record) -> Result<Self, VaultError> {
        let checkpoint = matches!(record.change, Change::Checkpoint { .. });
        let plain = serde_json::to_vec(record).map_err(|_| VaultError::Crypto("write a record"))?;
        let id = record.revision.to_string();
        let place = place(vault, &id, record.revision, head.chain, checkpoint);
        Ok(Self {
            revision: record.revision,
            checkpoint,
            previous: head.chain,
            sealed: keyring.seal_record(&place, &plain)?,
        })
    }

    /// Opens a record.
    ///
    /// # Errors
    /// Where the row is not what was written there, or a newer release wrote it.
    pub fn open(&self, keyring: &Keyring, vault: &VaultId) -> Result<Record, RecordError> {
        let id = self.revision.to_string();
        let plain =
            keyring.open_record(&place(vault, &id, self.revision, self.previous, self.checkpoint), &self.sealed)?;
        let unknown =
            |error: serde_json::Error| RecordError::Unknown { revision: self.revision, why: error.to_string() };
        let record: Record = serde_json::from_slice(&plain).map_err(unknown)?;
        if record.revision == self.revision { Ok(record) } else { Err(VaultError::does_not_open(&id).into()) }
    }

    /// The position and chain value after this record.
    pub fn head(&self) -> Head {
        let mut hash = Context::new(&SHA256);
        hash.update(&self.previous.0);
        hash.update(&self.revision.0.to_be_bytes());
        hash.update(&self.sealed);
        let mut chain = [0; 32];
        chain.copy_from_slice(hash.finish().as_ref());
        Head { revision: self.revision, chain: Chain(chain) }
    }
}

/// Why a record can't be read.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum RecordError {
    /// It was changed or moved.
    #[error(transparent)]
    Vault(#[from] VaultError),
    /// It says something this release does not know. It is never skipped: it may be a revocation.
    #[error("revision {revision} was written by a newer release ({why}); upgrade this broker")]
    Unknown {
        /// Its position.
        revision: Revision,
        /// What was not understood.
        why: String,
    },
}

fn place<'a>(vault: &'a VaultId, id: &'a str, revision: Revision, previous: Chain, checkpoint: bool) -> Place<'a> {
    let table = if checkpoint { "control_log checkpoint" } else { "control_log" };
    Place { vault, table, id, revision, previous }
}
