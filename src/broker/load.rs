//! Reads a vault into memory, and refuses one that is not what this broker wrote.
//!
//! Steps, in this order, as each rests on the one before: the keyring opens (so the `seal` row is genuine), the log folds
//! from the newest checkpoint (each record opens only after its predecessor), the head is the end of the log, the seal
//! row and the anchor are of this history, every key's bytes open and none is missing or left over, and every writer's
//! end is genuine, has its last row, and is as far as the log knows it to be. Nothing here depends on how many audit rows
//! there are: rows before a writer's last are checked by `audit verify`.

use std::collections::{BTreeMap, HashMap};
use std::sync::Arc;

use super::session::{Vault, open_key};
use crate::domain::change::{Change, Record};
use crate::domain::key::KeyState;
use crate::domain::state::State;
use crate::id::{Head, KeyId, Revision, VaultId};
use crate::signer::SigningKey;
use crate::store::anchor::Anchor;
use crate::store::{Store, StoreError, StoredEnd};
use crate::vault::keyring::Keyring;
use crate::vault::log::RecordError;
use crate::vault::unseal::SealRow;

/// Records read at a time.
const PAGE: u32 = 500;

/// Why a vault was not loaded.
#[derive(Debug, thiserror::Error)]
pub(super) enum LoadError {
    /// The database is not what this broker wrote; with what was found.
    #[error("{0}")]
    Tampered(String),
    /// The database is away.
    #[error(transparent)]
    Store(StoreError),
}

impl From<StoreError> for LoadError {
    fn from(error: StoreError) -> Self {
        match error {
            StoreError::Corrupt(why) => Self::Tampered(why),
            other => Self::Store(other),
        }
    }
}

impl From<RecordError> for LoadError {
    fn from(error: RecordError) -> Self {
        Self::Tampered(error.to_string())
    }
}

/// Loads the vault that a keyring opens.
///
/// # Errors
/// With the first thing that is not as it was written.
pub(super) async fn load(
    store: &dyn Store,
    seal: &SealRow,
    keyring: Keyring,
    anchor: Option<&Anchor>,
) -> Result<Vault, LoadError> {
    let vault = &seal.vault;
    let state = fold_log(store, vault, &keyring).await?;
    check_seal(&state, seal, &keyring)?;
    if let Some(anchor) = anchor {
        check_anchor(store, &state, vault, anchor).await?;
    }
    let signing = open_keys(store, &state, vault, &keyring).await?;
    check_writers(&store.writer_ends().await?, &state, vault, &keyring)?;
    Ok(Vault::new(vault.clone(), state, keyring, signing))
}

/// Folds the records after a state's head onto it; answers the new state where there were any.
///
/// # Errors
/// Where a record is not the next one of this history.
pub(super) async fn catch_up(
    store: &dyn Store,
    vault: &VaultId,
    keyring: &Keyring,
    mut state: State,
) -> Result<State, LoadError> {
    loop {
        let page = store.records_from(state.head().revision.next(), PAGE).await?;
        for sealed in &page {
            if sealed.previous != state.head().chain {
                return Err(tampered(format!("revision {} does not follow the one before it", sealed.revision)));
            }
            let record = sealed.open(keyring, vault)?;
            fold(&mut state, &record, sealed.head())?;
        }
        if page.is_empty() {
            return Ok(state);
        }
    }
}

async fn fold_log(store: &dyn Store, vault: &VaultId, keyring: &Keyring) -> Result<State, LoadError> {
    let checkpoint = store.newest_checkpoint().await?;
    let mut state = State::default();
    if checkpoint > Revision::default() {
        let rows = store.records_from(checkpoint, 1).await?;
        let sealed = rows.first().ok_or_else(|| tampered(format!("the checkpoint at {checkpoint} is missing")))?;
        let record = sealed.open(keyring, vault)?;
        let Change::Checkpoint { state: snapshot } = &record.change else {
            return Err(tampered(format!("revision {checkpoint} is not the checkpoint it is marked as")));
        };
        let before = Head { revision: Revision(checkpoint.0.saturating_sub(1)), chain: sealed.previous };
        state = State::from_snapshot(before, (**snapshot).clone());
        fold(&mut state, &record, sealed.head())?;
    }
    let state = catch_up(store, vault, keyring, state).await?;
    let head = store.head().await?;
    // INVARIANT (P2): records cut off at the end, or a head that was moved.
    if head != state.head() {
        return Err(tampered(format!(
            "the control log ends at revision {}, but the head says {}: records were changed or removed",
            state.head().revision,
            head.revision
        )));
    }
    Ok(state)
}

fn fold(state: &mut State, record: &Record, head: Head) -> Result<(), LoadError> {
    state.fold(record, head.chain).map_err(|error| tampered(error.to_string()))
}

/// The `seal` row must be the one that the log ends with, not an earlier one.
fn check_seal(state: &State, seal: &SealRow, keyring: &Keyring) -> Result<(), LoadError> {
    if state.vault() != Some(&seal.vault) {
        return Err(tampered("the control log belongs to another vault than the seal row".to_owned()));
    }
    if state.unseal_generation() != seal.generation || state.root_version() != keyring.current() {
        return Err(tampered(format!(
            "the seal row is of generation {} and root key version {}, but the control log says {} and {}: it was put back",
            seal.generation,
            keyring.current(),
            state.unseal_generation(),
            state.root_version()
        )));
    }
    Ok(())
}

async fn check_anchor(store: &dyn Store, state: &State, vault: &VaultId, anchor: &Anchor) -> Result<(), LoadError> {
    let path = anchor.path().display();
    let anchored = anchor.read().map_err(|error| tampered(format!("the anchor {path} can't be read: {error}")))?;
    let Some(anchored) = anchored else {
        // At init there is none yet. Later, one that is gone would hide what it is for.
        if state.head().revision <= Revision(1) || anchor.is_empty() {
            return Ok(());
        }
        return Err(tampered(format!(
            "the anchor {path} is missing; to start a new one from this history, make an empty file there"
        )));
    };
    if anchored.vault != *vault {
        return Err(tampered(format!("the anchor {path} belongs to vault {}, not to {vault}", anchored.vault)));
    }
    let (newest, ours) = (anchored.head.revision, state.head().revision);
    if newest > ours {
        return Err(tampered(format!(
            "the database went back in time: the anchor saw revision {newest}, the database ends at {ours}; revisions {} to {newest} are missing",
            ours.next()
        )));
    }
    let rows = store.records_from(newest, 1).await?;
    let same = rows.first().is_some_and(|record| record.head() == anchored.head);
    if newest > Revision::default() && !same {
        return Err(tampered(format!("revision {newest} is not the one that the anchor saw: this is another history")));
    }
    Ok(())
}

async fn open_keys(
    store: &dyn Store,
    state: &State,
    vault: &VaultId,
    keyring: &Keyring,
) -> Result<HashMap<KeyId, Arc<SigningKey>>, LoadError> {
    let mut signing = HashMap::new();
    for sealed in store.sealed_keys().await? {
        let known = state.keys().get(&sealed.key_id).filter(|key| key.state != KeyState::Revoked);
        let Some(key) = known else {
            return Err(tampered(format!(
                "sealed key {} was put there: the control log has no such key, or revoked it",
                sealed.key_id
            )));
        };
        if sealed.imported != key.imported_revision {
            return Err(tampered(format!("sealed key {} is not of the revision that imported it", sealed.key_id)));
        }
        let place = crate::vault::keyring::private_key_place(vault, &key.id, key.imported_revision);
        let version =
            crate::vault::envelope::version(&place, &sealed.sealed).map_err(|error| tampered(error.to_string()))?;
        // INVARIANT (P2): rotating reseals every key, so an older version is a copy that was put back.
        if version != state.root_version() {
            return Err(tampered(format!(
                "sealed key {} is of root key version {version}: an old copy was put back",
                key.id
            )));
        }
        let opened = open_key(keyring, vault, key, &sealed).map_err(tampered)?;
        signing.insert(sealed.key_id, Arc::new(opened));
    }
    let missing = state.keys().values().find(|key| key.state != KeyState::Revoked && !signing.contains_key(&key.id));
    match missing {
        Some(key) => Err(tampered(format!("sealed key {} is missing", key.id))),
        None => Ok(signing),
    }
}

fn check_writers(ends: &[StoredEnd], state: &State, vault: &VaultId, keyring: &Keyring) -> Result<(), LoadError> {
    let stored: BTreeMap<_, _> = ends.iter().map(|stored| (&stored.end.writer, stored)).collect();
    if let Some(unknown) = stored.keys().find(|id| !state.writers().contains_key(id)) {
        return Err(tampered(format!("audit writer {unknown} was never started")));
    }
    for writer in state.writers().values() {
        let id = &writer.id;
        let stored = stored.get(id).ok_or_else(|| tampered(format!("audit writer {id} is missing")))?;
        let end = &stored.end;
        if !end.is_genuine(keyring, vault).map_err(|error| tampered(error.to_string()))? {
            return Err(tampered(format!("the end of audit writer {id} was changed")));
        }
        if end.sequence < writer.known_sequence.max(writer.pruned_sequence) {
            return Err(tampered(format!(
                "audit writer {id} ends at row {}, but the control log knows of row {}: rows were taken back",
                end.sequence,
                writer.known_sequence.max(writer.pruned_sequence)
            )));
        }
        if end.revision > state.head().revision {
            return Err(tampered(format!(
                "audit writer {id} saw revision {}, but the control log ends at {}: the control log was taken back",
                end.revision,
                state.head().revision
            )));
        }
        let whole = if end.sequence == writer.pruned_sequence {
            // Everything was cleared for removal: the last row may be gone already.
            end.chain == writer.pruned_chain && stored.row_chain.is_none_or(|chain| chain == end.chain)
        } else {
            stored.row_chain == Some(end.chain)
        };
        if !whole || stored.has_more {
            return Err(tampered(format!(
                "the audit rows of writer {id} do not end where its end says: rows were changed, removed or added"
            )));
        }
    }
    Ok(())
}

fn tampered(why: String) -> LoadError {
    LoadError::Tampered(why)
}
