//! The root keyring: versioned root keys, and the keys that are derived from them, one for each use.
//!
//! Derivation is HKDF-SHA-256 (RFC 5869) with an empty salt, as root keys are uniformly random, and the label of the use
//! as `info`. The newest version seals; every version opens.
//!
//! # Invariants
//! - P2: log and audit rows keep the version they were written with, so old versions stay in the keyring.

use std::collections::BTreeMap;

use aws_lc_rs::hkdf::{HKDF_SHA256, KeyType, Salt};
use aws_lc_rs::{hmac, rand};
use zeroize::Zeroizing;

use super::VaultError;
use super::envelope::{self, Place, SealingKey};
use crate::id::{Chain, Revision, VaultId};
use crate::secret::{BackupKey, CanarySecret, DataKey, KeyringKey, PrivateKeyDer, RootKey, UnsealKey};

// Every label of every derivation stands here.
const CONTROL_LOG: &[u8] = b"p8broker control log v1";
const DATA_KEYS: &[u8] = b"p8broker data keys v1";
const AUDIT_CHAIN: &[u8] = b"p8broker audit chain v1";
const CANARY: &[u8] = b"p8broker canary key v1";
const KEYRING: &[u8] = b"p8broker keyring v1";
const BACKUP: &[u8] = b"p8broker backup v1";

/// Bytes of a wrapped data key: an envelope around 32 bytes.
const WRAPPED_LEN: usize = 5 + 12 + 32 + 16;

/// Root keys, by version, and the key that seals them.
pub struct Keyring {
    own: KeyringKey,
    versions: BTreeMap<u32, Derived>,
    current: u32,
}

struct Derived {
    root: RootKey,
    control_log: SealingKey,
    data_keys: SealingKey,
    audit_chain: hmac::Key,
}

impl Keyring {
    /// A keyring with one new root key, to be sealed by an unseal key.
    ///
    /// # Errors
    /// Where the cryptographic library fails.
    pub fn generate(unseal_key: &UnsealKey) -> Result<Self, VaultError> {
        let mut keyring = Self::empty(unseal_key)?;
        keyring.add(1, random_root()?)?;
        Ok(keyring)
    }

    /// A copy with one more root key, which seals from now on.
    ///
    /// # Errors
    /// Where the cryptographic library fails.
    pub fn rotated(&self) -> Result<Self, VaultError> {
        let own = KeyringKey::from_slice(self.own.expose_key()).ok_or(VaultError::Crypto("copy a key"))?;
        let mut keyring = self.copied_under(own)?;
        keyring.add(self.current.saturating_add(1), random_root()?)?;
        Ok(keyring)
    }

    /// A copy that is sealed by another unseal key.
    ///
    /// # Errors
    /// Where the cryptographic library fails.
    pub fn rekeyed(&self, unseal_key: &UnsealKey) -> Result<Self, VaultError> {
        self.copied_under(keyring_key(unseal_key)?)
    }

    fn empty(unseal_key: &UnsealKey) -> Result<Self, VaultError> {
        Ok(Self { own: keyring_key(unseal_key)?, versions: BTreeMap::new(), current: 0 })
    }

    fn copied_under(&self, own: KeyringKey) -> Result<Self, VaultError> {
        let mut keyring = Self { own, versions: BTreeMap::new(), current: 0 };
        for (version, derived) in &self.versions {
            let copy = RootKey::from_slice(derived.root.expose_key()).ok_or(VaultError::Crypto("copy a key"))?;
            keyring.add(*version, copy)?;
        }
        Ok(keyring)
    }

    /// The version that seals.
    pub fn current(&self) -> u32 {
        self.current
    }

    /// Seals the keyring itself. `place` names the `seal` row and all it says.
    ///
    /// # Errors
    /// Where the cryptographic library fails.
    pub fn seal(&self, place: &Place<'_>) -> Result<Vec<u8>, VaultError> {
        let mut plain = Zeroizing::new(Vec::with_capacity(self.versions.len().saturating_mul(36)));
        for (version, derived) in &self.versions {
            plain.extend_from_slice(&version.to_be_bytes());
            plain.extend_from_slice(derived.root.expose_key());
        }
        SealingKey::new(0, self.own.expose_key())?.seal(place, &plain)
    }

    /// Whether this keyring's own key opens these sealed bytes.
    pub fn opens(&self, place: &Place<'_>, sealed: &[u8]) -> bool {
        SealingKey::new(0, self.own.expose_key()).is_ok_and(|key| key.open(place, sealed).is_ok())
    }

    /// Opens a sealed keyring.
    ///
    /// # Errors
    /// Where the unseal key is another one, or the row was changed.
    pub fn open(unseal_key: &UnsealKey, place: &Place<'_>, sealed: &[u8]) -> Result<Self, VaultError> {
        Self::open_under(keyring_key(unseal_key)?, place, sealed)
    }

    /// Opens what the same unseal key sealed since: the keyring after another replica's rotation.
    ///
    /// # Errors
    /// Where the unseal key is another one by now, or the row was changed.
    pub fn open_newer(&self, place: &Place<'_>, sealed: &[u8]) -> Result<Self, VaultError> {
        let own = KeyringKey::from_slice(self.own.expose_key()).ok_or(VaultError::Crypto("copy a key"))?;
        Self::open_under(own, place, sealed)
    }

    fn open_under(own: KeyringKey, place: &Place<'_>, sealed: &[u8]) -> Result<Self, VaultError> {
        let mut keyring = Self { own, versions: BTreeMap::new(), current: 0 };
        let plain = SealingKey::new(0, keyring.own.expose_key())?.open(place, sealed)?;
        let (entries, rest) = plain.as_chunks::<36>();
        for entry in entries {
            let (version, root) = entry.split_first_chunk::<4>().ok_or(VaultError::Crypto("read the keyring"))?;
            let root = RootKey::from_slice(root).ok_or(VaultError::Crypto("read the keyring"))?;
            keyring.add(u32::from_be_bytes(*version), root)?;
        }
        if rest.is_empty() && !entries.is_empty() { Ok(keyring) } else { Err(VaultError::Crypto("read the keyring")) }
    }

    /// Seals a control record with the newest version.
    ///
    /// # Errors
    /// Where the cryptographic library fails.
    pub fn seal_record(&self, place: &Place<'_>, record: &[u8]) -> Result<Vec<u8>, VaultError> {
        self.version(self.current, place)?.control_log.seal(place, record)
    }

    /// Opens a control record.
    ///
    /// # Errors
    /// Where the record, its place or its predecessor are not what they were.
    pub fn open_record(&self, place: &Place<'_>, sealed: &[u8]) -> Result<Zeroizing<Vec<u8>>, VaultError> {
        self.version(envelope::version(place, sealed)?, place)?.control_log.open(place, sealed)
    }

    /// Seals an Apple key under a data key of its own, which is wrapped by the newest root key.
    ///
    /// # Errors
    /// Where the cryptographic library fails.
    pub fn seal_private_key(&self, place: &Place<'_>, key: &PrivateKeyDer) -> Result<Vec<u8>, VaultError> {
        let data_key = DataKey::fill_with(rand::fill).map_err(|_| VaultError::Crypto("draw a data key"))?;
        let mut out = self.version(self.current, place)?.data_keys.seal(place, data_key.expose_key())?;
        out.extend(SealingKey::new(self.current, data_key.expose_key())?.seal(place, key.expose_der())?);
        Ok(out)
    }

    /// Opens a sealed Apple key.
    ///
    /// # Errors
    /// Where the bytes or their place are not what they were.
    pub fn open_private_key(&self, place: &Place<'_>, sealed: &[u8]) -> Result<PrivateKeyDer, VaultError> {
        let failed = || VaultError::does_not_open(place.id);
        let version = envelope::version(place, sealed)?;
        let (wrapped, sealed) = sealed.split_at_checked(WRAPPED_LEN).ok_or_else(failed)?;
        let data_key = self.version(version, place)?.data_keys.open(place, wrapped)?;
        let data_key = DataKey::from_slice(&data_key).ok_or_else(failed)?;
        let mut plain = SealingKey::new(version, data_key.expose_key())?.open(place, sealed)?;
        Ok(PrivateKeyDer::new(std::mem::take(&mut *plain)))
    }

    /// The next value of an audit chain, made with the given root key version.
    ///
    /// # Errors
    /// Where the keyring does not have the version.
    pub fn audit_chain(&self, version: u32, previous: &Chain, row: &[u8]) -> Result<Chain, VaultError> {
        let derived =
            self.versions.get(&version).ok_or(VaultError::UnknownVersion { place: "audit".to_owned(), version })?;
        let mut context = hmac::Context::with_key(&derived.audit_chain);
        context.update(&previous.0);
        context.update(row);
        context.sign().as_ref().try_into().map(Chain).map_err(|_| VaultError::Crypto("make a MAC"))
    }

    /// A secret that the canary's key is made of: the newest version's, so that every replica has the same.
    ///
    /// # Errors
    /// Where the cryptographic library fails.
    pub fn canary_secret(&self) -> Result<CanarySecret, VaultError> {
        let version = self.versions.get(&self.current).ok_or(VaultError::Crypto("find a root key"))?;
        let failed = VaultError::Crypto("derive a key");
        derive(version.root.expose_key(), &[CANARY], |key| CanarySecret::from_slice(key).ok_or(failed))
    }

    /// The key of one backup file, from the root key version that its header names and the random bytes that are its own.
    ///
    /// # Errors
    /// Where the keyring does not have the version.
    pub fn backup_key(&self, version: u32, file: &[u8; 32]) -> Result<BackupKey, VaultError> {
        let derived =
            self.versions.get(&version).ok_or(VaultError::UnknownVersion { place: "backup".to_owned(), version })?;
        let failed = VaultError::Crypto("derive a key");
        derive(derived.root.expose_key(), &[BACKUP, file], |key| BackupKey::from_slice(key).ok_or(failed))
    }

    fn version(&self, version: u32, place: &Place<'_>) -> Result<&Derived, VaultError> {
        let unknown = || VaultError::UnknownVersion { place: format!("{} {}", place.table, place.id), version };
        self.versions.get(&version).ok_or_else(unknown)
    }

    fn add(&mut self, version: u32, root: RootKey) -> Result<(), VaultError> {
        let derived = Derived {
            control_log: derive(root.expose_key(), &[CONTROL_LOG], |key| SealingKey::new(version, key))?,
            data_keys: derive(root.expose_key(), &[DATA_KEYS], |key| SealingKey::new(version, key))?,
            audit_chain: derive(root.expose_key(), &[AUDIT_CHAIN], |key| Ok(hmac::Key::new(hmac::HMAC_SHA256, key)))?,
            root,
        };
        self.versions.insert(version, derived);
        self.current = self.current.max(version);
        Ok(())
    }
}

// INVARIANT (P1): a keyring that is formatted shows its versions and nothing else.
impl std::fmt::Debug for Keyring {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Keyring").field("current", &self.current).finish_non_exhaustive()
    }
}

/// The place of an Apple key's sealed bytes: bound to the key's name and to the revision that imported it.
pub fn private_key_place<'a>(vault: &'a VaultId, key_id: &'a crate::id::KeyId, imported: Revision) -> Place<'a> {
    Place { vault, table: "sealed_keys", id: key_id.as_str(), revision: imported, previous: Chain::default() }
}

fn random_root() -> Result<RootKey, VaultError> {
    RootKey::fill_with(rand::fill).map_err(|_| VaultError::Crypto("draw a root key"))
}

fn keyring_key(unseal_key: &UnsealKey) -> Result<KeyringKey, VaultError> {
    let failed = VaultError::Crypto("derive a key");
    derive(unseal_key.expose_key(), &[KEYRING], |key| KeyringKey::from_slice(key).ok_or(failed))
}

fn derive<T>(
    root: &[u8; 32],
    info: &[&[u8]],
    make: impl FnOnce(&[u8; 32]) -> Result<T, VaultError>,
) -> Result<T, VaultError> {
    struct Len;
    impl KeyType for Len {
        fn len(&self) -> usize {
            32
        }
    }
    let failed = |_| VaultError::Crypto("derive a key");
    let mut out = Zeroizing::new([0; 32]);
    let secret = Salt::new(HKDF_SHA256, &[]).extract(root);
    secret.expand(info, Len).map_err(failed)?.fill(out.as_mut_slice()).map_err(failed)?;
    make(&out)
}
