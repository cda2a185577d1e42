//! An open vault: everything a replica holds in memory from unsealing until sealing.

use std::collections::HashMap;
use std::sync::{Arc, PoisonError, RwLock};

use arc_swap::ArcSwap;

use crate::domain::key::{Key, KeyState};
use crate::domain::state::State;
use crate::id::{KeyId, VaultId};
use crate::secret::PrivateKeyDer;
use crate::signer::SigningKey;
use crate::store::SealedKey;
use crate::vault::VaultError;
use crate::vault::keyring::{Keyring, private_key_place};

/// What an unsealed replica holds.
#[derive(Debug)]
pub(super) struct Vault {
    /// The vault's name.
    pub(super) id: VaultId,
    state: ArcSwap<State>,
    keyring: ArcSwap<Keyring>,
    signing: RwLock<HashMap<KeyId, Arc<SigningKey>>>,
}

impl Vault {
    /// Takes over what loading found.
    pub(super) fn new(id: VaultId, state: State, keyring: Keyring, signing: HashMap<KeyId, Arc<SigningKey>>) -> Self {
        Self {
            id,
            state: ArcSwap::from_pointee(state),
            keyring: ArcSwap::from_pointee(keyring),
            signing: RwLock::new(signing),
        }
    }

    /// The state now.
    pub(super) fn state(&self) -> Arc<State> {
        self.state.load_full()
    }

    /// The root keys.
    pub(super) fn keyring(&self) -> Arc<Keyring> {
        self.keyring.load_full()
    }

    /// A key that signs; `None` for one that was destroyed or never imported.
    pub(super) fn signing_key(&self, id: &KeyId) -> Option<Arc<SigningKey>> {
        self.signing.read().unwrap_or_else(PoisonError::into_inner).get(id).cloned()
    }

    /// Moves on to a newer state. Keys that it says are revoked are dropped.
    pub(super) fn publish(&self, state: Arc<State>) {
        // INVARIANT (P6): the parsed key goes with the state that revoked it.
        let mut signing = self.signing.write().unwrap_or_else(PoisonError::into_inner);
        signing.retain(|id, _| state.keys().get(id).is_some_and(|key| key.state != KeyState::Revoked));
        drop(signing);
        self.state.store(state);
    }

    pub(super) fn add_signing_key(&self, id: KeyId, key: Arc<SigningKey>) {
        self.signing.write().unwrap_or_else(PoisonError::into_inner).insert(id, key);
    }

    pub(super) fn replace_keyring(&self, keyring: Arc<Keyring>) {
        self.keyring.store(keyring);
    }

    /// INVARIANT (P7): parsed keys are dropped as soon as this replica learns of a seal.
    pub(super) fn forget_keys(&self) {
        self.signing.write().unwrap_or_else(PoisonError::into_inner).clear();
    }
}

/// Opens one sealed key and checks that it is the one that the state speaks of.
///
/// # Errors
/// With what does not fit.
pub(super) fn open_key(
    keyring: &Keyring,
    vault: &VaultId,
    key: &Key,
    sealed: &SealedKey,
) -> Result<SigningKey, String> {
    let der = open_private_key(keyring, vault, key, sealed).map_err(|error| error.to_string())?;
    SigningKey::new(key.id.clone(), &der).map_err(|error| format!("key {}: {error}", key.id))
}

/// Opens one sealed key's bytes, for signing or for sealing them anew.
///
/// # Errors
/// Where the bytes or their place are not what they were.
pub(super) fn open_private_key(
    keyring: &Keyring,
    vault: &VaultId,
    key: &Key,
    sealed: &SealedKey,
) -> Result<PrivateKeyDer, VaultError> {
    keyring.open_private_key(&private_key_place(vault, &key.id, key.imported_revision), &sealed.sealed)
}
