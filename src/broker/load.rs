//! Reads a vault into memory, and refuses one that is not what this broker wrote.
//!
//! Steps, in this order, as each rests on the one before: the keyring opens (so the `seal` row is genuine), the log folds
//! from the newest checkpoint (each record opens only after its predecessor), the head is the end of the log, the seal
//! row and the anchor are of this history, every key's bytes open and none is missing or left over, and every writer's
//! end is genuine, has its last row, and is as far as the log knows it to be. Nothing here depends on how many audit rows
//! there are: rows before a writer's last are checked by `audit verify`. Where other replicas change something meanwhile, it
//! starts over.

use std::collections::{BTreeMap, HashMap};
use std::sync::Arc;
use std::time::Duration;

use super::Refusal;
use super::error::BrokerError;
use super::session::{Vault, open_key};
use crate::domain::change::{Change, Record};
use crate::domain::key::KeyState;
use crate::domain::state::State;
use crate::id::{DecisionId, Head, KeyId, Revision, VaultId};
use crate::signer::SigningKey;
use crate::store::anchor::Anchor;
use crate::store::{SealedKey, Store, StoreError, StoredEnd};
use crate::vault::VaultError;
use crate::vault::keyring::Keyring;
use crate::vault::log::{RecordError, SealedRecord};
use crate::vault::unseal::SealRow;

/// Records read at a time.
const PAGE: u32 = 500;

/// How often loading starts over because other replicas changed something meanwhile.
const MOST_TRIES: u32 = 20;

/// Between two tries, times the tries so far.
const PAUSE: Duration = Duration::from_millis(10);

/// Why a vault was not loaded.
#[derive(Debug, thiserror::Error)]
pub(super) enum LoadError {
    /// The database is not what this broker wrote, or not what it saw; with what was found.
    #[error("{}", .0.why)]
    Refused(Refusal),
    /// A record is sealed with a root key that the keyring at hand does not have: another replica rotated it.
    #[error("a record is sealed with a newer root key")]
    NewerRoot,
    /// The database is away.
    #[error(transparent)]
    Store(StoreError),
}

impl From<StoreError> for LoadError {
    fn from(error: StoreError) -> Self {
        match error {
            StoreError::Corrupt(why) => tampered(why),
            other => Self::Store(other),
        }
    }
}

impl From<RecordError> for LoadError {
    fn from(error: RecordError) -> Self {
        match error {
            RecordError::Vault(VaultError::UnknownVersion { .. }) => Self::NewerRoot,
            other => tampered(other.to_string()),
        }
    }
}

/// Loads the vault that a keyring opens.
///
/// # Errors
/// With the first thing that is not as it was written.
pub(super) async fn load(
    store: &dyn Store,
    open: impl Fn(&SealRow) -> Result<Keyring, BrokerError>,
    anchor: Option<&Anchor>,
) -> Result<Vault, BrokerError> {
    let mut tries = 0_u32;
    loop {
        let head = store.head().await?;
        let row = store.seal_row().await?.ok_or(BrokerError::NotInitialised)?;
        let keyring = open(&row)?;
        let found = match load_once(store, &row, keyring, anchor).await {
            Ok(vault) => return Ok(vault),
            Err(LoadError::Store(error)) => return Err(error.into()),
            Err(found) => found,
        };
        tries += 1;
        // The tables are read one after the other. What does not fit may have been changed in between by another replica,
        // and then the head has moved; what does not fit although it has not is as it stands.
        if store.head().await? != head {
            if tries < MOST_TRIES {
                tokio::time::sleep(PAUSE.saturating_mul(tries)).await;
                continue;
            }
            return Err(BrokerError::Contended);
        }
        return Err(match found {
            LoadError::Refused(refusal) => BrokerError::Refusing(refusal),
            other => BrokerError::Refusing(Refusal::tampered(other.to_string())),
        });
    }
}

async fn load_once(
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
    let signing = open_keys(store.sealed_keys().await?, &state, vault, &keyring)?;
    check_writers(&store.writer_ends().await?, &state, vault, &keyring)?;
    Ok(Vault::new(vault.clone(), state, keyring, signing))
}

/// Folds the records after a state's head onto it, and shows each to `seen`; answers the new state.
///
/// # Errors
/// Where a record is not the next one of this history.
pub(super) async fn catch_up(
    store: &dyn Store,
    vault: &VaultId,
    keyring: &Keyring,
    mut state: State,
    mut seen: impl FnMut(&Record),
) -> Result<State, LoadError> {
    loop {
        let page = store.records_from(state.head().revision.next(), PAGE).await?;
        for sealed in &page {
            seen(&follow(&mut state, sealed, vault, keyring)?);
        }
        if page.len() < PAGE as usize {
            return Ok(state);
        }
    }
}

/// Folds the next record of this history onto a state.
///
/// # Errors
/// Where it is another one, or can't be read.
pub(super) fn follow(
    state: &mut State,
    sealed: &SealedRecord,
    vault: &VaultId,
    keyring: &Keyring,
) -> Result<Record, LoadError> {
    if sealed.previous != state.head().chain {
        let why = format!("revision {} does not follow the one before it", sealed.revision);
        return Err(LoadError::Refused(Refusal { diverged: true, ..Refusal::tampered(why) }));
    }
    let record = sealed.open(keyring, vault)?;
    fold(state, &record, sealed.head())?;
    Ok(record)
}

/// The state at an earlier revision: the newest checkpoint up to there, and the records from it on.
///
/// # Errors
/// Where records are not there any more, or can't be read.
pub(super) async fn state_at(
    store: &dyn Store,
    vault: &VaultId,
    keyring: &Keyring,
    revision: Revision,
) -> Result<State, LoadError> {
    let checkpoint = store.checkpoint_before(revision).await?;
    let mut state = from_checkpoint(store, vault, keyring, checkpoint).await?;
    while state.head().revision < revision {
        let missing = revision.0.saturating_sub(state.head().revision.0);
        let limit = u32::try_from(missing).unwrap_or(PAGE).min(PAGE);
        let page = store.records_from(state.head().revision.next(), limit).await?;
        if page.first().is_none_or(|sealed| sealed.revision != state.head().revision.next()) {
            return Err(tampered(format!("the records after revision {} are not there", state.head().revision)));
        }
        for sealed in &page {
            follow(&mut state, sealed, vault, keyring)?;
        }
    }
    Ok(state)
}

/// The state that the log ends with.
///
/// # Errors
/// Where the log is not what this broker wrote.
pub(super) async fn fold_log(store: &dyn Store, vault: &VaultId, keyring: &Keyring) -> Result<State, LoadError> {
    let checkpoint = store.newest_checkpoint().await?;
    let state = from_checkpoint(store, vault, keyring, checkpoint).await?;
    let (mut state, mut head) = (catch_up(store, vault, keyring, state, |_| ()).await?, store.head().await?);
    for _ in 0..MOST_TRIES {
        if head.revision <= state.head().revision {
            break;
        }
        // Other replicas go on meanwhile: what came since is less each time.
        state = catch_up(store, vault, keyring, state, |_| ()).await?;
        if state.head() == head {
            break;
        }
        head = store.head().await?;
    }
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

/// The state that a checkpoint holds; the empty one for no checkpoint.
async fn from_checkpoint(
    store: &dyn Store,
    vault: &VaultId,
    keyring: &Keyring,
    checkpoint: Revision,
) -> Result<State, LoadError> {
    if checkpoint == Revision::default() {
        return Ok(State::default());
    }
    let rows = store.records_from(checkpoint, 1).await?;
    let sealed = rows.first().ok_or_else(|| tampered(format!("the checkpoint at {checkpoint} is missing")))?;
    begin_at(sealed, vault, keyring)
}

/// The state after a checkpoint, from nothing but the checkpoint.
///
/// # Errors
/// Where it is none, or can't be read.
pub(super) fn begin_at(sealed: &SealedRecord, vault: &VaultId, keyring: &Keyring) -> Result<State, LoadError> {
    let record = sealed.open(keyring, vault)?;
    let Change::Checkpoint { state: snapshot } = &record.change else {
        return Err(tampered(format!("revision {} is not the checkpoint it is marked as", sealed.revision)));
    };
    let before = Head { revision: Revision(sealed.revision.0.saturating_sub(1)), chain: sealed.previous };
    let mut state = State::from_snapshot(before, (**snapshot).clone());
    fold(&mut state, &record, sealed.head())?;
    Ok(state)
}

fn fold(state: &mut State, record: &Record, head: Head) -> Result<(), LoadError> {
    state.fold(record, head.chain).map_err(|error| tampered(error.to_string()))
}

/// The `seal` row must be the one that the log ends with, not an earlier one; fails where it is not.
pub(super) fn check_seal(state: &State, seal: &SealRow, keyring: &Keyring) -> Result<(), LoadError> {
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
    let same = newest <= ours
        && (newest == Revision::default()
            || store.records_from(newest, 1).await?.first().is_some_and(|record| record.head() == anchored.head));
    if same || is_accepted(state, anchored.head, &anchored.accepted) {
        return Ok(());
    }
    Err(LoadError::Refused(Refusal::lost(anchored.head, state.head(), anchored.accepted)))
}

/// Whether an operator has accepted, by name, that a head which was seen is lost; `known` are acceptances that stood in the
/// history of that head already, and so are about earlier losses.
pub(super) fn is_accepted(state: &State, seen: Head, known: &[DecisionId]) -> bool {
    let mut new = state.accepted_histories().iter().filter(|accepted| !known.contains(&accepted.id));
    new.any(|accepted| accepted.seen.revision >= seen.revision)
}

/// Opens every sealed key that the state knows, and finds those that it does not know or that are missing.
///
/// # Errors
/// With the first key that is not as the log says.
pub(super) fn open_keys(
    sealed: Vec<SealedKey>,
    state: &State,
    vault: &VaultId,
    keyring: &Keyring,
) -> Result<HashMap<KeyId, Arc<SigningKey>>, LoadError> {
    let mut signing = HashMap::new();
    for sealed in sealed {
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

/// Whether every writer is known, genuine, there, and as far as the log knows it to be.
///
/// # Errors
/// With the first that is not.
pub(super) fn check_writers(
    ends: &[StoredEnd],
    state: &State,
    vault: &VaultId,
    keyring: &Keyring,
) -> Result<(), LoadError> {
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

/// What was changed, named.
pub(super) fn tampered(why: String) -> LoadError {
    LoadError::Refused(Refusal::tampered(why))
}
