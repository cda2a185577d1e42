//! What is appended together: records sealed one after the other, each for the head that the one before it leaves, with
//! their audit rows and the state after them.

use std::sync::Arc;

use super::Asker;
use super::error::BrokerError;
use super::follow::News;
use super::ledger::Proposal;
use super::record::change_event;
use super::session::Vault;
use crate::clock::UnixMillis;
use crate::domain::change::{AuditPosition, Record};
use crate::domain::state::State;
use crate::store::{Append, AuditBatch};
use crate::vault::audit_chain::WriterEnd;
use crate::vault::log::SealedRecord;

/// What is appended together: the records, and what goes with them.
pub(super) struct Group {
    pub(super) append: Append,
    /// The state after them.
    pub(super) after: State,
    pub(super) news: News,
    /// The event of each record, for the log.
    pub(super) events: Vec<(&'static str, String)>,
}

impl Group {
    /// Nothing yet, on a state and after the end of a writer's chain.
    pub(super) fn on(state: &State, end: WriterEnd) -> Self {
        let audit = AuditBatch { rows: Vec::new(), end, quota: Vec::new() };
        let append = Append { expected: state.head(), records: Vec::new(), audit, keys: Vec::new(), seal: None };
        Self { append, after: state.clone(), news: News::default(), events: Vec::new() }
    }

    /// Whether it does more than to add records.
    pub(super) fn is_weighty(&self) -> bool {
        !self.append.keys.is_empty() || self.append.seal.is_some() || self.news.keyring.is_some()
    }

    /// Seals one change for the head that the ones before it leave, and folds it.
    ///
    /// # Errors
    /// Where the cryptographic library fails.
    pub(super) fn add(
        &mut self,
        asker: &Asker,
        proposal: Proposal,
        vault: &Vault,
        at: UnixMillis,
    ) -> Result<(), BrokerError> {
        let Some(change) = proposal.change else { return Ok(()) };
        let keyring = proposal
            .keyring
            .map_or_else(|| vault.keyring(), |keyring| Arc::clone(self.news.keyring.insert(Arc::new(keyring))));
        let end = &mut self.append.audit.end;
        let head = self.after.head();
        let record = Record {
            revision: head.revision.next(),
            at,
            actor: asker.actor.clone(),
            audit: AuditPosition { writer: end.writer.clone(), sequence: end.sequence.saturating_add(1) },
            change,
        };
        let mut event = change_event(asker, &record);
        if let Some(detail) = proposal.detail {
            event.detail = detail;
        }
        let row = end.push(&keyring, event)?;
        *end = end.clone().sealed(&keyring, &vault.id)?;
        self.append.audit.rows.push(row);
        let sealed = SealedRecord::seal(&keyring, &vault.id, head, &record)?;
        self.after.fold(&record, sealed.head().chain).map_err(|error| BrokerError::Internal(error.to_string()))?;
        self.append.records.push(sealed);
        self.append.keys.extend(proposal.keys);
        self.append.seal = proposal.seal.or(self.append.seal.take());
        self.news.signing.extend(proposal.signing);
        self.events.push((record.change.event(), record.actor.name));
        Ok(())
    }
}
