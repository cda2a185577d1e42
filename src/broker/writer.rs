//! The writer: the one task of a replica that writes, and with it the fence.
//!
//! It drains what has queued, commits the rows in one transaction, then makes the changes, one by one.
//!
//! Steps for rows: rows decided at another head than this replica's go back at once; the others are given their place in
//! the chain and committed where the head in the database is still that one; only then do their waiters learn of it.
//! Steps for a change: propose it on the newest state (authority is checked there), seal it for that head, append it
//! with its audit row where the head is still that one, fold it, publish the state, move the anchor, answer.
//!
//! # Invariants
//! - P4: a waiter is told "committed" only after the commit of its row returned.
//! - P5: a token's row is committed only at the head that the token was decided at.
//! - `INV-LEDGER-1`: after a commit whose outcome is unknown the writer's chain is abandoned and a new writer started.

use std::sync::Arc;

use arc_swap::ArcSwap;
use tokio::sync::{mpsc, oneshot};

use super::error::BrokerError;
use super::ledger::{Changed, Committed, Entry, Ledger, Proposal, Propose};
use super::load;
use super::record::{change_event, random_bits};
use super::session::Vault;
use super::{Asker, Phase};
use crate::clock::{Clock, Stopwatch};
use crate::domain::audit::AuditEvent;
use crate::domain::change::{AuditPosition, Change, Record};
use crate::domain::state::State;
use crate::id::{DecisionId, Head, KeyId, WriterId};
use crate::metrics::Metrics;
use crate::signer::SigningKey;
use crate::store::anchor::{Anchor, Anchored};
use crate::store::{Append, AuditBatch, Fenced, Store, StoreError};
use crate::vault::audit_chain::WriterEnd;
use crate::vault::keyring::Keyring;
use crate::vault::log::SealedRecord;

/// Most entries taken from the queue for one commit.
const MOST_ENTRIES: usize = 1024;

/// A change that loses the head this often answers that the control plane is contended.
const MOST_TRIES: u32 = 5;

/// Records after which the whole state is written down, so that a start reads no more than these.
const CHECKPOINT_EVERY: u64 = 1000;

/// A row to commit; a token's with the head it was decided at, and who waits for it.
type Row = (AuditEvent, Option<(Head, oneshot::Sender<Committed>)>);

/// What the ledger's task works with.
pub(super) struct Writer {
    pub(super) store: Arc<dyn Store>,
    pub(super) vault: Arc<Vault>,
    pub(super) clock: Arc<dyn Clock>,
    pub(super) metrics: Metrics,
    pub(super) anchor: Option<Anchor>,
    pub(super) phase: Arc<ArcSwap<Phase>>,
    /// The end of this writer's chain; `None` before the first writer, and after a commit of unknown outcome.
    pub(super) end: Option<WriterEnd>,
    /// A change of unknown outcome, with what goes with it.
    pub(super) pending: Option<Pending>,
}

/// A change whose outcome is not known yet.
pub(super) struct Pending {
    record: SealedRecord,
    keyring: Option<Keyring>,
    signing: Option<(KeyId, Arc<SigningKey>)>,
}

impl Writer {
    /// Starts to write: registers this process as an author of audit rows, and lifts a seal where somebody asks for it.
    ///
    /// # Errors
    /// Where that can't be written.
    pub(super) async fn start(
        mut self,
        lift: Option<Asker>,
    ) -> Result<(Ledger, impl Future<Output = ()> + Send), BrokerError> {
        self.begin().await?;
        let state = self.vault.state();
        if let Some(asker) = lift
            && self.append(&asker, Change::VaultUnsealed, Proposal::default(), &state).await?.is_none()
        {
            return Err(BrokerError::Contended);
        }
        let (ledger, queue) = Ledger::queue();
        Ok((ledger, self.run(queue)))
    }

    async fn run(mut self, mut queue: mpsc::Receiver<Entry>) {
        let mut entries = Vec::with_capacity(MOST_ENTRIES);
        while queue.recv_many(&mut entries, MOST_ENTRIES).await > 0 {
            self.take(&mut entries).await;
            if self.vault.state().sealed().is_some() {
                queue.close();
                self.vault.forget_keys();
            }
        }
    }

    /// Rows first, then the changes among them: a row decided before a change is committed before it.
    async fn take(&mut self, entries: &mut Vec<Entry>) {
        let mut rows = Vec::with_capacity(entries.len());
        for entry in entries.drain(..) {
            match entry {
                Entry::Token { event, decided_at, reply } => rows.push((event, Some((decided_at, reply)))),
                Entry::Refusal(event) => rows.push((event, None)),
                Entry::Change { asker, propose, reply } => {
                    self.commit(std::mem::take(&mut rows)).await;
                    // A caller that has hung up does not undo its change.
                    let _ = reply.send(self.change(&asker, propose).await);
                }
            }
        }
        self.commit(rows).await;
    }

    async fn commit(&mut self, rows: Vec<Row>) {
        let head = self.vault.state().head();
        let mut events = Vec::with_capacity(rows.len());
        let mut waiting = Vec::with_capacity(rows.len());
        for (event, token) in rows {
            match token {
                // INVARIANT (P5): decided on another head means decided again.
                Some((decided_at, reply)) if decided_at != head => drop(reply.send(Committed::HeadMoved)),
                Some((_, reply)) => {
                    waiting.push(reply);
                    events.push(event);
                }
                None => events.push(event),
            }
        }
        if events.is_empty() {
            return;
        }
        let fence = (!waiting.is_empty()).then_some(head);
        let outcome = match self.write(events, fence).await {
            Ok(Fenced::Committed) => {
                self.metrics.last_commit.set(self.clock.now().seconds());
                Committed::Yes
            }
            Ok(Fenced::HeadMoved) => {
                if let Err(error) = self.catch_up().await {
                    tracing::error!(%error, "the control log can't be followed");
                }
                Committed::HeadMoved
            }
            Err(error) => {
                self.metrics.commit_failures.inc();
                tracing::error!(%error, "audit rows can't be written: no token leaves");
                Committed::Unavailable
            }
        };
        // INVARIANT (P4): nobody is told before this line.
        for reply in waiting {
            let _ = reply.send(outcome);
        }
    }

    async fn write(&mut self, events: Vec<AuditEvent>, fence: Option<Head>) -> Result<Fenced, BrokerError> {
        // INVARIANT (INV-LEDGER-1): taken here and given back only after a known outcome.
        let mut end = match self.end.take() {
            Some(end) => end,
            None => {
                self.begin().await?;
                self.end.take().ok_or_else(|| BrokerError::Internal("a started writer has no end".to_owned()))?
            }
        };
        if fence.is_some_and(|head| head != self.vault.state().head()) {
            self.end = Some(end);
            return Ok(Fenced::HeadMoved);
        }
        let before = end.clone();
        let keyring = self.vault.keyring();
        let rows = events.into_iter().map(|event| end.push(&keyring, event)).collect::<Result<Vec<_>, _>>()?;
        let batch = AuditBatch { rows, end: end.sealed(&keyring, &self.vault.id)? };
        self.metrics.batch_rows.observe(batch.rows.len() as f64);
        let fenced = self.store.commit_rows(fence, &batch).await?;
        self.end = Some(if fenced == Fenced::Committed { batch.end } else { before });
        Ok(fenced)
    }

    async fn change(&mut self, asker: &Asker, mut propose: Propose) -> Result<Changed, BrokerError> {
        for _ in 0..MOST_TRIES {
            if self.end.is_none() {
                self.begin().await?;
            }
            let (state, keyring) = (self.vault.state(), self.vault.keyring());
            if state.sealed().is_some() {
                return Err(BrokerError::Sealed { why: "an operator sealed it".to_owned() });
            }
            let mut proposal = propose(&state, &keyring)?;
            let Some(change) = proposal.change.take() else {
                return Ok(Changed { state });
            };
            if let Some(state) = self.append(asker, change, proposal, &state).await? {
                if let Err(error) = self.checkpoint(&state).await {
                    tracing::warn!(%error, "no checkpoint was written; the next change tries again");
                }
                return Ok(Changed { state });
            }
        }
        Err(BrokerError::Contended)
    }

    /// Appends one change; `None` where the head had moved.
    async fn append(
        &mut self,
        asker: &Asker,
        change: Change,
        proposal: Proposal,
        state: &Arc<State>,
    ) -> Result<Option<Arc<State>>, BrokerError> {
        let lost = || BrokerError::Internal("a change needs a writer".to_owned());
        let mut end = self.end.take().ok_or_else(lost)?;
        let before = end.clone();
        let vault = Arc::clone(&self.vault);
        let current = vault.keyring();
        let keyring = proposal.keyring.as_ref().unwrap_or(&current);
        let revision = state.head().revision.next();
        let record = Record {
            revision,
            at: self.clock.now(),
            actor: asker.actor.clone(),
            audit: AuditPosition { writer: end.writer.clone(), sequence: end.sequence.saturating_add(1) },
            change,
        };
        let mut event = change_event(asker, &record);
        if let Some(detail) = proposal.detail {
            event.detail = detail;
        }
        let row = end.push(keyring, event)?;
        let append = Append {
            expected: state.head(),
            record: SealedRecord::seal(keyring, &vault.id, state.head(), &record)?,
            audit: AuditBatch { rows: vec![row], end: end.sealed(keyring, &vault.id)? },
            keys: proposal.keys,
            seal: proposal.seal,
        };
        let fenced = match self.store.append(&append).await {
            Ok(fenced) => fenced,
            Err(error) => match self.find_out(&append, error).await {
                Ok(fenced) => fenced,
                Err(error) => {
                    // What goes with the record must not be lost where it turns out to have landed.
                    self.pending =
                        Some(Pending { record: append.record, keyring: proposal.keyring, signing: proposal.signing });
                    return Err(error);
                }
            },
        };
        if fenced == Fenced::HeadMoved {
            self.end = Some(before);
            self.catch_up().await?;
            return Ok(None);
        }
        self.end = Some(append.audit.end);
        let mut after = (**state).clone();
        after.fold(&record, append.record.head().chain).map_err(|error| BrokerError::Internal(error.to_string()))?;
        self.adopt(proposal.keyring, proposal.signing);
        let after = Arc::new(after);
        self.publish(&after);
        tracing::info!(revision = revision.0, change = record.change.event(), actor = %record.actor.name, "changed");
        Ok(Some(after))
    }

    /// A change that failed may have landed all the same: the log says.
    async fn find_out(&mut self, append: &Append, error: StoreError) -> Result<Fenced, BrokerError> {
        self.metrics.commit_failures.inc();
        match self.store.records_from(append.record.revision, 1).await {
            Ok(rows) if rows.first() == Some(&append.record) => Ok(Fenced::Committed),
            _ => Err(error.into()),
        }
    }

    fn adopt(&self, keyring: Option<Keyring>, signing: Option<(KeyId, Arc<SigningKey>)>) {
        if let Some(keyring) = keyring {
            self.vault.replace_keyring(keyring);
        }
        if let Some((id, key)) = signing {
            self.vault.add_signing_key(id, key);
        }
    }

    fn publish(&self, state: &Arc<State>) {
        let was_sealed = self.vault.state().sealed().is_some();
        self.vault.publish(Arc::clone(state));
        self.metrics.revision.set(i64::try_from(state.head().revision.0).unwrap_or(i64::MAX));
        let unconfirmed = state.keys().values().filter(|key| key.revoked.is_some() && key.confirmed_at_apple.is_none());
        self.metrics.unconfirmed_at_apple.set(i64::try_from(unconfirmed.count()).unwrap_or(i64::MAX));
        // A state that was sealed before is one whose seal is about to be lifted: only then does a writer start on it.
        if let Some(stamp) = state.sealed().filter(|_| !was_sealed) {
            // INVARIANT (P7): before the sealing operator is answered, this replica has stopped and dropped its keys.
            self.vault.forget_keys();
            self.metrics.unsealed.set(0);
            self.phase.store(Arc::new(Phase::sealed_by(stamp)));
        }
        if let Some(anchor) = &self.anchor {
            let anchored = Anchored { vault: self.vault.id.clone(), head: state.head() };
            if let Err(error) = anchor.write(&anchored) {
                self.metrics.commit_failures.inc();
                tracing::error!(%error, path = %anchor.path().display(), "the anchor can't be written; it is behind the database");
            }
        }
    }

    /// Follows what others appended.
    async fn catch_up(&mut self) -> Result<(), BrokerError> {
        if let Some(pending) = self.pending.take() {
            match self.store.records_from(pending.record.revision, 1).await {
                Ok(rows) if rows.first() == Some(&pending.record) => self.adopt(pending.keyring, pending.signing),
                Ok(_) => {}
                Err(error) => {
                    self.pending = Some(pending);
                    return Err(error.into());
                }
            }
        }
        let state = (*self.vault.state()).clone();
        let before = state.head();
        let state = load::catch_up(self.store.as_ref(), &self.vault.id, &self.vault.keyring(), state)
            .await
            .map_err(|error| BrokerError::Refusing { why: error.to_string() })?;
        if state.head() != before {
            self.publish(&Arc::new(state));
        }
        Ok(())
    }

    /// Registers a new writer, and writes a checkpoint where one is due.
    async fn begin(&mut self) -> Result<(), BrokerError> {
        let begun = self.register().await;
        if begun.is_err() {
            // A writer that the log does not know must not write.
            self.end = None;
        }
        begun
    }

    async fn register(&mut self) -> Result<(), BrokerError> {
        self.catch_up().await?;
        for _ in 0..MOST_TRIES {
            let state = self.vault.state();
            let ends = self.ends_beyond(&state).await?;
            let writer = WriterId::from_random(random_bits()?);
            self.end = Some(WriterEnd::start(&self.vault.keyring(), &self.vault.id, writer.clone())?);
            let change = Change::WriterStarted { writer, version: env!("CARGO_PKG_VERSION").to_owned(), ends };
            let asker = Asker::broker(DecisionId::from_random(random_bits()?));
            if let Some(state) = self.append(&asker, change, Proposal::default(), &state).await? {
                return self.checkpoint(&state).await;
            }
        }
        Err(BrokerError::Contended)
    }

    /// Ends of writers that have come further than the log knows.
    async fn ends_beyond(&self, state: &State) -> Result<Vec<AuditPosition>, BrokerError> {
        let keyring = self.vault.keyring();
        let mut out = Vec::new();
        for stored in self.store.writer_ends().await? {
            let end = stored.end;
            let beyond = state.writers().get(&end.writer).is_some_and(|known| end.sequence > known.known_sequence);
            if beyond && end.is_genuine(&keyring, &self.vault.id)? {
                out.push(AuditPosition { writer: end.writer, sequence: end.sequence });
            }
        }
        Ok(out)
    }

    async fn checkpoint(&mut self, state: &Arc<State>) -> Result<(), BrokerError> {
        if state.head().revision.0.saturating_sub(state.checkpoint().0) < CHECKPOINT_EVERY || state.sealed().is_some() {
            return Ok(());
        }
        let watch = Stopwatch::start();
        let change = Change::Checkpoint { state: Box::new(state.snapshot()) };
        let asker = Asker::broker(DecisionId::from_random(random_bits()?));
        // Where the head moves under it, the next start of a writer tries again.
        self.append(&asker, change, Proposal::default(), state).await?;
        tracing::info!(seconds = watch.seconds(), "wrote a checkpoint");
        Ok(())
    }
}
