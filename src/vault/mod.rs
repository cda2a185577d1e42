//! The sealed vault: root keys, envelopes, unsealing, and what a `.p8` is. No I/O: rows come and go through the store.

pub mod audit_chain;
pub mod backup;
pub mod envelope;
pub mod keyring;
pub mod log;
pub mod p8;
pub mod unseal;

use crate::id::shown;

/// Why sealed data can't be opened, or made.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum VaultError {
    /// The bytes, their place or their key are not what they were when they were sealed.
    #[error("{place} does not open: it was changed, moved or sealed with another key")]
    DoesNotOpen {
        /// Where the bytes stand.
        place: String,
    },
    /// The keyring has no such version.
    #[error("{place} was sealed with root key version {version}, which the keyring does not have")]
    UnknownVersion {
        /// Where the bytes stand.
        place: String,
        /// The version that the bytes name.
        version: u32,
    },
    /// The cryptographic library failed.
    #[error("the cryptographic library failed to {0}")]
    Crypto(&'static str),
}

impl VaultError {
    fn does_not_open(place: &str) -> Self {
        Self::DoesNotOpen { place: shown(place) }
    }
}
