//! Apple's keys: import, suspend, resume, confirm. Revoking one is in `revoke`.
//!
//! Steps of an import: read the `.p8`; sign once and have another library verify it; on the newest state, check the id,
//! the material and Apple's limits; seal it for the revision that will import it; append. Only then may it sign.
//!
//! # Invariants
//! - P1: the private key is lent to the parser and to the envelope, and to nothing else.
//! - P6: a Key ID that was ever imported is never imported again, whatever became of it.

use std::collections::BTreeSet;
use std::sync::Arc;

use aws_lc_rs::digest::{SHA256, digest};
use data_encoding::{BASE64, HEXLOWER};

use super::error::BrokerError;
use super::ledger::Proposal;
use super::{Broker, Caller};
use crate::domain::apple::MOST_KEYS_PER_ACCOUNT;
use crate::domain::change::Change;
use crate::domain::document::Violation;
use crate::domain::key::{AppAccess, Key, KeyKind, KeyState, Profile, Stamp};
use crate::domain::operator::Power;
use crate::domain::role::RoleSet;
use crate::domain::state::State;
use crate::domain::target::Target;
use crate::id::{AccountName, AppGroupName, AppleUser, KeyId, Revision, VaultId};
use crate::secret::P8Text;
use crate::signer::SigningKey;
use crate::store::{KeyBytes, SealedKey};
use crate::vault::keyring::{Keyring, private_key_place};
use crate::vault::p8::{self, AppleKey};

/// A key to import; its parts are already well formed.
#[derive(Debug)]
pub struct KeyImport {
    /// Apple's name for it.
    pub id: KeyId,
    /// The account it belongs to.
    pub account: AccountName,
    /// The user and declared app access of an individual key; `None` for a team key.
    pub individual: Option<(AppleUser, AppAccess)>,
    /// The roles it has at Apple.
    pub roles: RoleSet,
    /// The groups it may be used for.
    pub app_groups: BTreeSet<AppGroupName>,
    /// The file.
    pub p8: P8Text,
}

/// A key, and the revision of the state it stands in.
#[derive(Debug, Clone)]
pub struct KeyAnswer {
    /// The key.
    pub key: Arc<Key>,
    /// The revision.
    pub revision: Revision,
}

impl Broker {
    /// Imports a key.
    ///
    /// # Errors
    /// With what is wrong with the file, or what is in the way.
    pub async fn import_key(&self, caller: &Caller, import: KeyImport) -> Result<KeyAnswer, BrokerError> {
        let open = self.open()?;
        // Nobody without the power learns whether a file is a key.
        let asker = self.asker(&open.state(), caller, Power::Custody)?;
        let key = p8::parse(&import.p8).map_err(BrokerError::BadP8)?;
        let signing =
            SigningKey::new(import.id.clone(), &key.der).map_err(|error| BrokerError::Internal(error.to_string()))?;
        signing.prove().map_err(|error| BrokerError::Internal(error.to_string()))?;
        let signing = Arc::new(signing);
        let imported = Stamp { by: asker.actor.name, at: self.parts.clock.now() };
        let (vault, id) = (open.id().clone(), import.id.clone());
        let propose = move |state: &State, keyring: &Keyring| {
            proposal(&import, &key, &imported, &signing, state, keyring, &vault)
        };
        let changed = self.change(caller, Power::Custody, Box::new(propose)).await?;
        self.key_in(&changed.state, &id)
    }

    /// Stops a key for now.
    ///
    /// # Errors
    /// Where there is no such key, or it is revoked.
    pub async fn suspend_key(&self, caller: &Caller, id: &KeyId, reason: String) -> Result<KeyAnswer, BrokerError> {
        let key_id = id.clone();
        self.change_key(caller, id, move |key| match key.state {
            KeyState::Suspended => Ok(None),
            KeyState::Active => Ok(Some(Change::KeySuspended { key_id: key_id.clone(), reason: reason.clone() })),
            KeyState::Revoked => Err(state_error(key, "it never signs again, so there is nothing to suspend")),
        })
        .await
    }

    /// Lets a suspended key sign again.
    ///
    /// # Errors
    /// Where there is no such key, or it is revoked.
    pub async fn resume_key(&self, caller: &Caller, id: &KeyId, reason: String) -> Result<KeyAnswer, BrokerError> {
        let key_id = id.clone();
        self.change_key(caller, id, move |key| match key.state {
            KeyState::Active => Ok(None),
            KeyState::Suspended => Ok(Some(Change::KeyResumed { key_id: key_id.clone(), reason: reason.clone() })),
            KeyState::Revoked => Err(state_error(key, "a revoked key never signs again; import a new one")),
        })
        .await
    }

    /// Records that somebody saw a revoked key revoked at Apple.
    ///
    /// # Errors
    /// Where there is no such key, or it is not revoked here.
    pub async fn confirm_revoked_at_apple(&self, caller: &Caller, id: &KeyId) -> Result<KeyAnswer, BrokerError> {
        let key_id = id.clone();
        self.change_key(caller, id, move |key| match (key.state, &key.confirmed_at_apple) {
            (KeyState::Revoked, Some(_)) => Ok(None),
            (KeyState::Revoked, None) => Ok(Some(Change::KeyConfirmedAtApple { key_id: key_id.clone() })),
            (KeyState::Active | KeyState::Suspended, _) => {
                Err(state_error(key, "revoke it here first, so that no token is issued that Apple would refuse"))
            }
        })
        .await
    }

    async fn change_key(
        &self,
        caller: &Caller,
        id: &KeyId,
        change: impl Fn(&Key) -> Result<Option<Change>, BrokerError> + Send + 'static,
    ) -> Result<KeyAnswer, BrokerError> {
        let wanted = id.clone();
        let propose = move |state: &State, _: &Keyring| {
            let key = state.keys().get(&wanted).ok_or_else(|| not_found(&wanted))?;
            Ok(Proposal { change: change(key)?, ..Proposal::default() })
        };
        let changed = self.change(caller, Power::Custody, Box::new(propose)).await?;
        self.key_in(&changed.state, id)
    }

    fn key_in(&self, state: &State, id: &KeyId) -> Result<KeyAnswer, BrokerError> {
        let key = state.keys().get(id).cloned().ok_or_else(|| not_found(id))?;
        Ok(KeyAnswer { key, revision: state.head().revision })
    }
}

pub(super) fn not_found(id: &KeyId) -> BrokerError {
    BrokerError::NotFound { kind: "key", name: id.to_string() }
}

fn state_error(key: &Key, why: &'static str) -> BrokerError {
    BrokerError::KeyState { id: key.id.clone(), state: key.state.to_string(), why }
}

fn proposal(
    import: &KeyImport,
    key: &AppleKey,
    imported: &Stamp,
    signing: &Arc<SigningKey>,
    state: &State,
    keyring: &Keyring,
    vault: &VaultId,
) -> Result<Proposal, BrokerError> {
    let record = record(import, key, imported, state)?;
    let revision = state.head().revision.next();
    let sealed = keyring.seal_private_key(&private_key_place(vault, &import.id, revision), &key.der)?;
    Ok(Proposal {
        change: Some(Change::KeyImported { key: Box::new(record) }),
        keys: vec![KeyBytes::Put(SealedKey { key_id: import.id.clone(), imported: revision, sealed })],
        signing: Some((import.id.clone(), Arc::clone(signing))),
        ..Proposal::default()
    })
}

fn record(import: &KeyImport, key: &AppleKey, imported: &Stamp, state: &State) -> Result<Key, BrokerError> {
    // INVARIANT (P6): a revoked key's id stays taken, for good.
    if let Some(known) = state.keys().get(&import.id) {
        return Err(BrokerError::KeyExists { id: import.id.clone(), state: known.state.to_string() });
    }
    if state.is_revoked(&Target::Key(import.id.clone())) {
        return Err(BrokerError::KeyExists { id: import.id.clone(), state: KeyState::Revoked.to_string() });
    }
    let fingerprint = HEXLOWER.encode(digest(&SHA256, &key.public_key).as_ref());
    if let Some(known) = state.keys().values().find(|known| known.fingerprint == fingerprint) {
        return Err(BrokerError::SameMaterial { id: known.id.clone() });
    }
    check_references(import, state)?;
    let kind = match &import.individual {
        None => {
            let count = state.keys_counted_at_apple(&import.account);
            // INVARIANT (P8): no 51st key that Apple may still count.
            if count >= MOST_KEYS_PER_ACCOUNT {
                return Err(BrokerError::TooManyKeys { account: import.account.to_string(), count });
            }
            KeyKind::Team
        }
        Some((user, app_access)) => {
            let theirs = |known: &&Arc<Key>| {
                known.state != KeyState::Revoked
                    && known.account == import.account
                    && matches!(&known.kind, KeyKind::Individual { user: theirs, .. } if theirs == user)
            };
            if let Some(known) = state.keys().values().find(theirs) {
                return Err(BrokerError::UserHasKey { user: user.to_string(), id: known.id.clone() });
            }
            KeyKind::Individual { user: user.clone(), app_access: app_access.clone(), declared_at: imported.at }
        }
    };
    Ok(Key {
        id: import.id.clone(),
        account: import.account.clone(),
        profile: Profile::AppStoreConnect,
        kind,
        roles: import.roles,
        app_groups: import.app_groups.clone(),
        fingerprint,
        public_key: BASE64.encode(&key.public_key),
        state: KeyState::Active,
        imported: imported.clone(),
        imported_revision: Revision::default(),
        revoked: None,
        confirmed_at_apple: None,
    })
}

fn check_references(import: &KeyImport, state: &State) -> Result<(), BrokerError> {
    let mut violations = Vec::new();
    let mut refuse = |path: String, message: String| violations.push(Violation { path, message });
    if !state.accounts().contains_key(&import.account) {
        refuse("account".to_owned(), format!("there is no account `{}`; apply a document that has it", import.account));
    }
    for (at, name) in import.app_groups.iter().enumerate() {
        match state.app_groups().get(name) {
            None => refuse(
                format!("app_groups[{at}]"),
                format!("there is no app group `{name}`; apply a document that has it"),
            ),
            Some(group) if group.account != import.account => refuse(
                format!("app_groups[{at}]"),
                format!("`{name}` belongs to account `{}`, not to `{}`", group.account, import.account),
            ),
            Some(_) => {}
        }
    }
    if violations.is_empty() { Ok(()) } else { Err(BrokerError::Invalid(violations)) }
}
