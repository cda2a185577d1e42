//! The chain over one writer's audit rows, and the sealed end of it.
//!
//! # Invariants
//! - P2: each row's chain value is an HMAC over the one before and every column of the row, and the writer's end (last
//!   sequence, last chain value, newest revision seen) carries an HMAC of its own, updated in the same transaction. A row
//!   changed, removed, reordered or cut off at the end is found.

use super::VaultError;
use super::keyring::Keyring;
use crate::domain::audit::{AuditEvent, AuditRow};
use crate::id::{Chain, Revision, VaultId, WriterId};

/// The end of one writer's chain: its row in `audit_writer`.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct WriterEnd {
    /// The writer.
    pub writer: WriterId,
    /// The last row; 0 before the first.
    pub sequence: u64,
    /// The chain value there.
    pub chain: Chain,
    /// The newest revision that any of its rows was decided at.
    pub revision: Revision,
    /// The root key version of `tag`.
    pub key_version: u32,
    /// HMAC over all of the above.
    pub tag: Chain,
}

impl WriterEnd {
    /// A writer that has not written yet.
    ///
    /// # Errors
    /// Where the cryptographic library fails.
    pub fn start(keyring: &Keyring, vault: &VaultId, writer: WriterId) -> Result<Self, VaultError> {
        let end = Self {
            writer,
            sequence: 0,
            chain: Chain::default(),
            revision: Revision::default(),
            key_version: keyring.current(),
            tag: Chain::default(),
        };
        end.sealed(keyring, vault)
    }

    /// Gives an event its place after the last row, and moves on. [`Self::sealed`] makes the new end fit to be stored.
    ///
    /// # Errors
    /// Where the cryptographic library fails; the end is then of no further use.
    pub fn push(&mut self, keyring: &Keyring, event: AuditEvent) -> Result<AuditRow, VaultError> {
        self.sequence = self.sequence.saturating_add(1);
        self.revision = self.revision.max(event.revision);
        let mut row = AuditRow {
            writer: self.writer.clone(),
            sequence: self.sequence,
            key_version: keyring.current(),
            event,
            chain: Chain::default(),
        };
        row.chain = keyring.audit_chain(row.key_version, &self.chain, &row.canonical())?;
        self.chain = row.chain;
        Ok(row)
    }

    /// This end with its HMAC, made with the newest root key.
    ///
    /// # Errors
    /// Where the cryptographic library fails.
    pub fn sealed(mut self, keyring: &Keyring, vault: &VaultId) -> Result<Self, VaultError> {
        self.key_version = keyring.current();
        self.tag = self.expected_tag(keyring, vault)?;
        Ok(self)
    }

    /// Whether the HMAC fits.
    ///
    /// # Errors
    /// Where the keyring does not have its version.
    pub fn is_genuine(&self, keyring: &Keyring, vault: &VaultId) -> Result<bool, VaultError> {
        Ok(self.expected_tag(keyring, vault)? == self.tag)
    }

    fn expected_tag(&self, keyring: &Keyring, vault: &VaultId) -> Result<Chain, VaultError> {
        // All parts have fixed lengths but for the label, which no row's canonical form starts with.
        let mut bytes = Vec::with_capacity(128);
        bytes.extend_from_slice(b"end of writer ");
        bytes.extend_from_slice(vault.as_str().as_bytes());
        bytes.extend_from_slice(self.writer.as_str().as_bytes());
        bytes.extend_from_slice(&self.sequence.to_be_bytes());
        bytes.extend_from_slice(&self.revision.0.to_be_bytes());
        bytes.extend_from_slice(&self.key_version.to_be_bytes());
        keyring.audit_chain(self.key_version, &self.chain, &bytes)
    }
}

/// Checks one row against the chain value before it.
///
/// # Errors
/// Where the keyring does not have the row's version.
pub fn follows(keyring: &Keyring, previous: &Chain, row: &AuditRow) -> Result<bool, VaultError> {
    Ok(keyring.audit_chain(row.key_version, previous, &row.canonical())? == row.chain)
}
