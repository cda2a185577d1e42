//! Accepts, by name, a database that went back in time.
//!
//! A replica that finds revisions missing that it saw, or that its anchor saw, refuses to serve, and keeps nothing but its
//! keyring. Steps of an acceptance: read the history that the database has; check the caller's power in it and, where this
//! replica still has the state that was lost, in that; register a writer on the database's history; record the acceptance,
//! which names what was seen and what is there; serve. The other replicas read that record, and serve again where they saw
//! no more than it names.

use std::sync::Arc;

use super::error::BrokerError;
use super::ledger::{Proposal, Propose};
use super::load::{self, LoadError, is_accepted};
use super::session::Vault;
use super::{Asker, Broker, Caller, Lost, Phase, require};
use crate::domain::change::{Actor, Change};
use crate::domain::operator::Power;
use crate::domain::state::State;
use crate::id::{Revision, VaultId};
use crate::vault::keyring::Keyring;
use crate::vault::unseal::SealRow;

/// What a replica keeps while it waits for an acceptance.
#[derive(Clone)]
pub(super) struct Waiting {
    vault: VaultId,
    keyring: Arc<Keyring>,
    /// The state that was lost, where it was in memory.
    seen: Option<Arc<State>>,
}

impl Waiting {
    pub(super) fn of(vault: &Vault) -> Self {
        Self { vault: vault.id.clone(), keyring: vault.keyring(), seen: Some(vault.state()) }
    }

    pub(super) fn at_start(vault: VaultId, keyring: Arc<Keyring>) -> Self {
        Self { vault, keyring, seen: None }
    }
}

impl Broker {
    /// Accepts the database as it is. Answers the revision that records it.
    ///
    /// # Errors
    /// Where nothing is missing, something else is than was named, or the caller lacks the power.
    pub async fn accept_history(
        self: &Arc<Self>,
        caller: &Caller,
        database: Revision,
        seen: Revision,
        reason: String,
    ) -> Result<Revision, BrokerError> {
        let _one_at_a_time = self.sealing.lock().await;
        let lost = self.lost().ok_or(BrokerError::HistoryUnchanged)?;
        let waiting = self.waiting.lock().await.clone().ok_or(BrokerError::HistoryUnchanged)?;
        self.accept(caller, &lost, &waiting, (database, seen), reason).await
    }

    async fn accept(
        self: &Arc<Self>,
        caller: &Caller,
        lost: &Lost,
        waiting: &Waiting,
        (database, seen): (Revision, Revision),
        reason: String,
    ) -> Result<Revision, BrokerError> {
        let store = self.parts.store.as_ref();
        if let Some(seen) = &waiting.seen {
            // What was lost may be the very revocation of this operator.
            require(seen, &caller.principal, Power::Administer)?;
        }
        let state = load::fold_log(store, &waiting.vault, &waiting.keyring).await.map_err(refused)?;
        let name = require(&state, &caller.principal, Power::Administer)?;
        let there = state.head().revision;
        if (database, seen) != (there, lost.seen.revision) {
            return Err(BrokerError::HistoryMoved { database: there, seen: lost.seen.revision });
        }
        let asker = Asker {
            actor: Actor { name, client: Some(caller.client().clone()) },
            identity: caller.identity.clone(),
            decision_id: self.decision_id()?,
        };
        let (principal, id, seen_head) = (caller.principal.clone(), asker.decision_id.clone(), lost.seen);
        let accept: Propose = Box::new(move |state, _| {
            require(state, &principal, Power::Administer)?;
            let (id, reason) = (id.clone(), reason.clone());
            Ok(Proposal::of(Change::HistoryAccepted { id, seen: seen_head, database: there, reason }))
        });
        // Loaded as at a start, but for the anchor, which is what the acceptance is about.
        let vault = load::load(store, |row| newest(&waiting.keyring, row), None).await?;
        tracing::warn!(caller = %caller.client(), database = there.0, seen = seen.0, "lost history is accepted");
        self.serve(Arc::new(vault), Some((asker, accept))).await.map(|state| state.head().revision)
    }

    /// Serves again where an operator accepted, on another replica, what this one saw lost.
    pub(super) async fn reopen_accepted(self: &Arc<Self>) {
        let Ok(_one_at_a_time) = self.sealing.try_lock() else { return };
        let Some(lost) = self.lost() else { return };
        let Ok(head) = self.parts.store.head().await else { return };
        if head == lost.database {
            return;
        }
        let Some(waiting) = self.waiting.lock().await.clone() else { return };
        if let Err(error) = self.reopen(&lost, &waiting).await {
            tracing::debug!(%error, "lost history is not accepted");
        }
    }

    async fn reopen(self: &Arc<Self>, lost: &Lost, waiting: &Waiting) -> Result<(), BrokerError> {
        let store = self.parts.store.as_ref();
        let state = load::fold_log(store, &waiting.vault, &waiting.keyring).await.map_err(refused)?;
        if !is_accepted(&state, lost.seen, &lost.accepted) {
            return Err(BrokerError::HistoryUnchanged);
        }
        let vault = load::load(store, |row| newest(&waiting.keyring, row), None).await?;
        if let Some(stamp) = vault.state().sealed() {
            self.meet_seal(stamp, vault.state().head());
            return Ok(());
        }
        self.serve(Arc::new(vault), None).await.map(drop)
    }

    fn lost(&self) -> Option<Box<Lost>> {
        if let Phase::Refusing(refusal) = &*self.phase() { refusal.lost.clone() } else { None }
    }
}

/// The keyring as the database's history has it; it may have fewer root keys than the one that was seen.
fn newest(keyring: &Keyring, row: &SealRow) -> Result<Keyring, BrokerError> {
    row.open_newer(keyring).map_err(|_| {
        BrokerError::KeyFile(
            "the unseal key was another one at that time; restart, and unseal with that one".to_owned(),
        )
    })
}

fn refused(error: LoadError) -> BrokerError {
    match error {
        LoadError::Refused(refusal) => BrokerError::Refusing(refusal),
        LoadError::Store(error) => error.into(),
        error @ LoadError::NewerRoot => BrokerError::KeyFile(error.to_string()),
    }
}
