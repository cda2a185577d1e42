//! Rekey: a new unseal key. Rotate: a new root key version. Both while serving.
//!
//! Steps of a rekey by shares: a threshold of current shares proves who asks; new shares are handed out and kept in
//! memory only; a threshold of the new shares proves that they arrived; then one transaction replaces the `seal` row and
//! records it. Killed at any point before that, the old shares are in force and the new ones are named as unconfirmed;
//! after it, the new ones are, and the old are named as outdated. At no point does the vault hang on shares nobody has.
//!
//! Steps of a rotation: one transaction puts the new keyring, every key sealed anew under it, and the record.

use std::sync::Arc;

use super::error::BrokerError;
use super::ledger::Proposal;
use super::session::open_private_key;
use super::{Broker, Caller, Shares, require};
use crate::domain::change::Change;
use crate::domain::key::KeyState;
use crate::domain::operator::Power;
use crate::domain::state::State;
use crate::id::Revision;
use crate::secret::{ShareText, UnsealKey};
use crate::store::{KeyBytes, SealedKey};
use crate::vault::VaultError;
use crate::vault::keyring::{Keyring, private_key_place};
use crate::vault::unseal::{Method, Progress, SealRow, share_digest, split};

/// A rotation that finds keys imported under it starts over, this often.
const MOST_TRIES: u32 = 5;

/// A rekey on its way.
#[derive(Debug, Default)]
pub(super) struct Rekeying {
    current: Progress,
    staged: Option<Staged>,
}

#[derive(Debug)]
struct Staged {
    /// What the `seal` row will say; its keyring is sealed at the end.
    row: SealRow,
    key: UnsealKey,
    confirmed: Progress,
}

/// Where a rekey stands.
#[derive(Debug)]
pub enum RekeyStep {
    /// More current shares are needed.
    Waiting {
        /// How many are given.
        given: u32,
        /// How many it takes.
        threshold: u32,
    },
    /// New shares, which must be confirmed.
    Staged {
        /// The new shares, shown once.
        shares: Vec<ShareText>,
        /// How many it will take.
        threshold: u32,
    },
    /// The new key is in force: there was nothing to hand out.
    Done(Rekeyed),
}

/// A confirmation.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Rekeyed {
    /// Whether the new unseal key is in force.
    pub done: bool,
    /// How many new shares are given back.
    pub given: u32,
    /// How many it takes.
    pub threshold: u32,
    /// The generation in force, or about to be.
    pub generation: u32,
    /// The revision that put it in force; 0 while it is not.
    pub revision: Revision,
}

impl Broker {
    /// Takes current shares towards a new unseal key; with a key file, seals the keyring with the current file.
    ///
    /// # Errors
    /// With what is wrong with a share (the others are kept), or what is in the way.
    pub async fn rekey(&self, caller: &Caller, shares: &[ShareText], new: Shares) -> Result<RekeyStep, BrokerError> {
        let mut sealing = self.sealing.lock().await;
        let state = self.state_for(caller, Power::Administer)?;
        let row = self.parts.store.seal_row().await?.ok_or(BrokerError::NotInitialised)?;
        let generation = state.unseal_generation().saturating_add(1);
        let threshold = match &row.method {
            Method::KeyFile => {
                let (key, _) = self.parts.key_source.read()?;
                let row = SealRow { generation, keyring: Vec::new(), ..row };
                return self.put_unseal_key(caller, row, key).await.map(RekeyStep::Done);
            }
            Method::Shares { threshold, .. } => *threshold,
        };
        // Numbers that make no sense are refused before anybody gives a share.
        let (new_key, texts) = split(&row.vault, generation, new.shares, new.threshold).map_err(BrokerError::Split)?;
        for share in shares {
            let taken = sealing.rekey.current.add(share, &row);
            let given = sealing.rekey.current.len();
            let Some(key) = taken.map_err(|error| BrokerError::Share { error, given, threshold })? else { continue };
            row.open(&key)?;
            let digests = texts.iter().map(share_digest).collect();
            let method = Method::Shares { threshold: new.threshold, digests };
            let row = SealRow { generation, method, keyring: Vec::new(), ..row };
            sealing.rekey.current = Progress::default();
            sealing.rekey.staged = Some(Staged { row, key: new_key, confirmed: Progress::default() });
            return Ok(RekeyStep::Staged { shares: texts, threshold: new.threshold });
        }
        Ok(RekeyStep::Waiting { given: sealing.rekey.current.len(), threshold })
    }

    /// Takes new shares back; with enough of them, the new unseal key comes into force.
    ///
    /// # Errors
    /// With what is wrong with a share (the others are kept), or where no rekey is on its way.
    pub async fn confirm_rekey(&self, caller: &Caller, shares: &[ShareText]) -> Result<Rekeyed, BrokerError> {
        let mut sealing = self.sealing.lock().await;
        self.state_for(caller, Power::Administer)?;
        let staged = sealing.rekey.staged.as_mut().ok_or(BrokerError::NoRekey)?;
        let threshold = match &staged.row.method {
            Method::Shares { threshold, .. } => *threshold,
            Method::KeyFile => 0,
        };
        for share in shares {
            let taken = staged.confirmed.add(share, &staged.row);
            let given = staged.confirmed.len();
            if taken.map_err(|error| BrokerError::Share { error, given, threshold })?.is_some() {
                let Some(staged) = sealing.rekey.staged.take() else { return Err(BrokerError::NoRekey) };
                return self.put_unseal_key(caller, staged.row, staged.key).await;
            }
        }
        Ok(Rekeyed {
            done: false,
            given: staged.confirmed.len(),
            threshold,
            generation: staged.row.generation,
            revision: Revision::default(),
        })
    }

    async fn put_unseal_key(&self, caller: &Caller, row: SealRow, key: UnsealKey) -> Result<Rekeyed, BrokerError> {
        let generation = row.generation;
        let threshold = match &row.method {
            Method::Shares { threshold, .. } => *threshold,
            Method::KeyFile => 0,
        };
        let propose = move |state: &State, keyring: &Keyring| {
            if state.unseal_generation().saturating_add(1) != generation {
                return Err(BrokerError::NoRekey);
            }
            let keyring = keyring.rekeyed(&key)?;
            let seal = SealRow::seal(&row.vault, generation, row.method.clone(), &keyring)?;
            let change = Change::UnsealKeyReplaced { generation };
            Ok(Proposal { seal: Some(seal), keyring: Some(keyring), ..Proposal::of(change) })
        };
        let changed = self.change(caller, Power::Administer, Box::new(propose)).await?;
        // What the old unseal key opens must be in no file any more.
        self.scrub().await?;
        Ok(Rekeyed { done: true, given: threshold, threshold, generation, revision: changed.state.head().revision })
    }

    /// Adds a root key version, and seals every key and the keyring anew. Answers the version, and the revision that put it in force.
    ///
    /// # Errors
    /// Where the caller lacks the power, or it can't be written.
    pub async fn rotate(&self, caller: &Caller) -> Result<(u32, Revision), BrokerError> {
        let _one_at_a_time = self.sealing.lock().await;
        for _ in 0..MOST_TRIES {
            let open = self.open()?;
            require(&open.state(), &caller.principal, Power::Administer)?;
            let state = open.follow.catch_up().await?;
            let row = self.parts.store.seal_row().await?.ok_or(BrokerError::NotInitialised)?;
            if row.generation == state.unseal_generation() && !row.is_sealed_by(&open.vault.keyring()) {
                return Err(BrokerError::WrongMethod(
                    "the unseal key was replaced on another replica, and this one has the one before it: rotate there, or \
                     restart this one and unseal it with the new one",
                ));
            }
            let sealed = Arc::new(self.parts.store.sealed_keys().await?);
            let propose = move |state: &State, keyring: &Keyring| rotation(state, keyring, &row, &sealed);
            match self.change(caller, Power::Administer, Box::new(propose)).await {
                Ok(changed) => {
                    // Nor what the old root key opens.
                    self.scrub().await?;
                    return Ok((changed.state.root_version(), changed.state.head().revision));
                }
                Err(BrokerError::Contended) => {}
                Err(error) => return Err(error),
            }
        }
        Err(BrokerError::Contended)
    }
}

fn rotation(state: &State, keyring: &Keyring, row: &SealRow, sealed: &[SealedKey]) -> Result<Proposal, BrokerError> {
    // The row may be older than the state: what it says of shares must be what is in force now.
    if row.generation != state.unseal_generation() || !row.is_sealed_by(keyring) {
        return Err(BrokerError::Contended);
    }
    let next = keyring.rotated()?;
    let mut keys = Vec::with_capacity(sealed.len());
    for key in state.keys().values().filter(|key| key.state != KeyState::Revoked) {
        // A key that was imported since the bytes were read: read them again.
        let Some(old) = sealed.iter().find(|old| old.key_id == key.id) else { return Err(BrokerError::Contended) };
        let der = open_private_key(keyring, &row.vault, key, old).map_err(|error| match error {
            // Another replica rotated since: read the keys and the log again.
            VaultError::UnknownVersion { .. } => BrokerError::Contended,
            other => other.into(),
        })?;
        let place = private_key_place(&row.vault, &key.id, key.imported_revision);
        keys.push(KeyBytes::Put(SealedKey { sealed: next.seal_private_key(&place, &der)?, ..old.clone() }));
    }
    let seal = SealRow::seal(&row.vault, state.unseal_generation(), row.method.clone(), &next)?;
    let change = Change::RootKeyRotated { version: next.current() };
    Ok(Proposal { keys, seal: Some(seal), keyring: Some(next), ..Proposal::of(change) })
}
