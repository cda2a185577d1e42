//! The writer: the one task of a replica that writes, and with it the fence.
//!
//! It drains what has queued, appends the changes in one transaction, then commits the rows in one more.
//!
//! Steps for rows: tokens decided at another head than this replica's are decided again, and go back where that changes
//! anything; the others are given their place in the chain and committed where the head in the database is still that one
//! and no quota is exceeded; only then do their waiters learn of it. Where a quota is, the rows that do not fit are answered,
//! and the others go on at once.
//! Steps for changes: propose each on the state that the one before it leaves (authority is checked there), seal it for that
//! head, append all of them with their audit rows where the head in the database is still the first one's; fold, publish,
//! move the anchor, answer. Where the head has moved, catch up and start over, until the deadline.
//!
//! The whole of it stands in one file, past 400 lines: it is what the fence is on this side, and is read as one.
//!
//! # Invariants
//! - P4: a waiter is told "committed" only after the commit of its row returned.
//! - P5: a token's row is committed only at the head that the token was decided at.
//! - `INV-LEDGER-1`: after a commit whose outcome is unknown the writer's chain is abandoned and a new writer started.

use std::sync::Arc;

use tokio::sync::{mpsc, oneshot};
use tokio_util::task::TaskTracker;

use super::Asker;
use super::error::BrokerError;
use super::follow::Follow;
use super::group::Group;
use super::ledger::{Changed, Committed, Entry, Ledger, Proposal, Propose, Row, Waiting};
use super::quota::{self, Asked, UsedUp};
use super::record::random_bits;
use crate::clock::{Clock, Stopwatch, UnixMillis};
use crate::domain::audit::AuditEvent;
use crate::domain::change::{AuditPosition, Change};
use crate::domain::state::State;
use crate::id::{DecisionId, Head, WriterId};
use crate::store::{Append, AuditBatch, Fenced, KeyBytes, QuotaAsk, QuotaLeft, Store, StoreError};
use crate::trace::{self, Fact};
use crate::vault::audit_chain::WriterEnd;

/// Most entries taken from the queue for one commit.
const MOST_ENTRIES: usize = 1024;

/// Most changes in one append: each is held in memory, and in one transaction.
const MOST_CHANGES: usize = 64;

/// How long a change tries to be the next one before it answers that the control plane is contended.
const CHANGE_DEADLINE_S: f64 = 20.0;

/// Records after which the whole state is written down, so that a start reads no more than these.
const CHECKPOINT_EVERY: u64 = 1000;

/// A token's row that loses the head this often goes back to be asked for again.
const MOST_TRIES: u32 = 5;

/// How often a batch is made to fit into its quotas; after that, all rows that count against one go back.
const MOST_FITTINGS: u32 = 4;

/// What is done together with the registration of a writer, checked on the state that it is done on.
pub(super) type First = (Asker, Propose);

/// What became of rows; those that lost the head come back, and those of a batch that is over a quota.
enum Written {
    Committed,
    HeadMoved(Vec<AuditEvent>),
    OverQuota(Vec<AuditEvent>, Vec<QuotaLeft>),
}

/// A change that waits to be made.
struct Wanted {
    asker: Asker,
    propose: Propose,
    reply: oneshot::Sender<Result<Changed, BrokerError>>,
}

/// What the ledger's task works with.
pub(super) struct Writer {
    pub(super) store: Arc<dyn Store>,
    pub(super) follow: Arc<Follow>,
    pub(super) clock: Arc<dyn Clock>,
    pub(super) tasks: TaskTracker,
    /// The replica's name.
    pub(super) replica: String,
    /// The end of this writer's chain; `None` before the first writer, and after a commit of unknown outcome.
    pub(super) end: Option<WriterEnd>,
    pub(super) used_up: Arc<UsedUp>,
}

impl Writer {
    /// Starts to write: registers this process as an author of audit rows, and makes a first change where somebody asks
    /// for one: the lifting of a seal, or the acceptance of a history.
    ///
    /// # Errors
    /// Where that can't be written.
    pub(super) async fn start(
        mut self,
        first: Option<First>,
    ) -> Result<(Ledger, impl Future<Output = ()> + Send), BrokerError> {
        self.register(first).await?;
        let (ledger, queue) = Ledger::queue();
        Ok((ledger, self.run(queue)))
    }

    async fn run(mut self, mut queue: mpsc::Receiver<Entry>) {
        let mut entries = Vec::with_capacity(MOST_ENTRIES);
        let ended = self.follow.ended.clone();
        loop {
            // What queued before the end is answered: the fence refuses what must not be committed any more.
            if ended.run_until_cancelled(queue.recv_many(&mut entries, MOST_ENTRIES)).await == Some(0) {
                return;
            }
            if ended.is_cancelled() {
                queue.close();
                while queue.recv_many(&mut entries, MOST_ENTRIES).await > 0 {}
                self.take(&mut entries).await;
                return;
            }
            self.take(&mut entries).await;
        }
    }

    /// Changes first: a revoke waits for no row. The rows that it overtakes were decided before it, and are decided again.
    async fn take(&mut self, entries: &mut Vec<Entry>) {
        self.follow.writing.store(Some(Arc::new(Stopwatch::start())));
        let mut rows = Vec::with_capacity(entries.len());
        let mut changes = Vec::new();
        for entry in entries.drain(..) {
            match entry {
                Entry::Token { event, waiting } => {
                    self.follow.metrics.commit_wait.observe(waiting.since.seconds());
                    rows.push((event, Some(*waiting)));
                }
                Entry::Refusal(event) => rows.push((event, None)),
                Entry::Change { asker, propose, reply } => changes.push(Wanted { asker, propose, reply }),
            }
        }
        while !changes.is_empty() {
            let rest = changes.split_off(changes.len().min(MOST_CHANGES));
            self.change_all(std::mem::replace(&mut changes, rest)).await;
        }
        self.commit(rows).await;
        self.follow.writing.store(None);
    }

    /// Commits rows. Where the head moves under them, the tokens among them are decided again here, on the newer state, so
    /// that changes of others do not starve them.
    async fn commit(&mut self, mut rows: Vec<Row>) {
        let (mut moves, mut fittings) = (0_u32, 0_u32);
        while moves < MOST_TRIES {
            let state = self.follow.vault.state();
            let rows_at_head = decided_at(rows, &state, self.clock.now());
            if rows_at_head.is_empty() {
                return;
            }
            let asks = quota::asks(&rows_at_head);
            let (events, waiting): (Vec<_>, Vec<_>) = rows_at_head.into_iter().unzip();
            let fence = waiting.iter().any(Option::is_some).then_some(state.head());
            let asked = Asked::at(self.clock.now());
            let steps = group_commit(&waiting, events.len());
            let written = self.write(events, asks, fence).await;
            drop(steps);
            match written {
                Ok(Written::Committed) => {
                    self.follow.metrics.last_commit.set(self.clock.now().seconds());
                    // INVARIANT (P4): nobody is told before this line.
                    for Waiting { decision, reply, .. } in waiting.into_iter().flatten() {
                        let _ = reply.send(Committed::Yes(decision));
                    }
                    return;
                }
                Ok(Written::OverQuota(events, left)) => {
                    fittings = fittings.saturating_add(1);
                    let all = events.into_iter().zip(waiting).collect();
                    rows = quota::keep_fitting(all, left, &self.used_up, asked);
                    if fittings >= MOST_FITTINGS {
                        rows = quota::send_back(rows);
                    }
                }
                Ok(Written::HeadMoved(events)) => {
                    moves = moves.saturating_add(1);
                    self.follow.metrics.fence_retries.inc_by(waiting.iter().flatten().count() as u64);
                    rows = events.into_iter().zip(waiting).collect();
                    if let Err(error) = self.follow.catch_up().await {
                        tracing::error!(%error, "the control log can't be followed");
                        break;
                    }
                }
                Err(error) => {
                    self.follow.metrics.commit_failures.inc();
                    tracing::error!(error = %chain(&error), "audit rows can't be written: no token leaves");
                    for Waiting { reply, .. } in waiting.into_iter().flatten() {
                        let _ = reply.send(Committed::Unavailable);
                    }
                    return;
                }
            }
        }
        for Waiting { reply, .. } in rows.into_iter().filter_map(|(_, waiting)| waiting) {
            let _ = reply.send(Committed::HeadMoved);
        }
    }

    async fn write(
        &mut self,
        events: Vec<AuditEvent>,
        asks: Vec<QuotaAsk>,
        fence: Option<Head>,
    ) -> Result<Written, BrokerError> {
        // INVARIANT (INV-LEDGER-1): taken here and given back only after a known outcome.
        let mut end = match self.end.take() {
            Some(end) => end,
            None => {
                self.begin().await?;
                self.end.take().ok_or_else(|| BrokerError::Internal("a started writer has no end".to_owned()))?
            }
        };
        if fence.is_some_and(|head| head != self.follow.vault.state().head()) {
            self.end = Some(end);
            return Ok(Written::HeadMoved(events));
        }
        let before = end.clone();
        let keyring = self.follow.vault.keyring();
        let rows = events.into_iter().map(|event| end.push(&keyring, event)).collect::<Result<Vec<_>, _>>()?;
        let batch = AuditBatch { rows, end: end.sealed(&keyring, &self.follow.vault.id)?, quota: asks };
        self.follow.metrics.batch_rows.observe(batch.rows.len() as f64);
        Ok(match self.store.commit_rows(fence, &batch).await? {
            Fenced::Committed => {
                self.end = Some(batch.end);
                Written::Committed
            }
            Fenced::HeadMoved => {
                self.end = Some(before);
                Written::HeadMoved(batch.rows.into_iter().map(|row| row.event).collect())
            }
            Fenced::OverQuota(left) => {
                self.end = Some(before);
                Written::OverQuota(batch.rows.into_iter().map(|row| row.event).collect(), left)
            }
        })
    }

    /// Makes changes, as few appends as they allow.
    async fn change_all(&mut self, mut wanted: Vec<Wanted>) {
        let watch = Stopwatch::start();
        while !wanted.is_empty() {
            match self.change_some(&mut wanted).await {
                Ok(()) if watch.seconds() < CHANGE_DEADLINE_S => {}
                Ok(()) => {
                    for one in wanted.drain(..) {
                        let _ = one.reply.send(Err(BrokerError::Contended));
                    }
                }
                Err(error) => {
                    tracing::error!(error = %chain(&error), "changes can't be written");
                    // All of them hear what stopped the first; a caller that has hung up does not undo its change.
                    for one in wanted.drain(..) {
                        let _ = one.reply.send(Err(error.again()));
                    }
                }
            }
        }
    }

    /// Proposes the changes one after the other and appends them together; answers those that are settled, and leaves the
    /// others.
    async fn change_some(&mut self, wanted: &mut Vec<Wanted>) -> Result<(), BrokerError> {
        if self.end.is_none() {
            self.begin().await?;
        }
        let vault = Arc::clone(&self.follow.vault);
        let state = vault.state();
        if state.sealed().is_some() || self.follow.ended.is_cancelled() {
            return Err(BrokerError::Sealed { why: "an operator sealed it".to_owned() });
        }
        let mut group = Group::on(&state, self.end.clone().ok_or_else(no_end)?);
        let mut answers = Vec::with_capacity(wanted.len());
        for one in wanted.iter_mut() {
            let keyring = group.news.keyring.as_ref().map_or_else(|| vault.keyring(), Arc::clone);
            match (one.propose)(&group.after, &keyring) {
                Err(error) => answers.push(Err(error)),
                Ok(proposal) => {
                    // What touches keys or the seal goes alone, so that each append does one thing to them.
                    if !group.append.records.is_empty() && (proposal.is_weighty() || group.is_weighty()) {
                        break;
                    }
                    group.add(&one.asker, proposal, &vault, self.clock.now())?;
                    answers.push(Ok(()));
                }
            }
            if group.after.sealed().is_some() {
                break;
            }
        }
        let after = if group.append.records.is_empty() {
            // INVARIANT (P5): "it is so already" and "it can't be" are answers about the newest state, which another
            // replica may have moved; where something is appended, the fence compares.
            if self.follow.catch_up().await?.head() != state.head() {
                return Ok(());
            }
            if answers.iter().any(Result::is_ok) {
                self.store.confirm().await?;
            }
            state
        } else {
            match self.append(group).await? {
                Some(after) => after,
                // All of it is proposed again on the newer state.
                None => return Ok(()),
            }
        };
        for (one, answer) in wanted.drain(..answers.len()).zip(answers) {
            let _ = one.reply.send(answer.map(|()| Changed { state: Arc::clone(&after) }));
        }
        if let Err(error) = self.checkpoint(&after).await {
            tracing::warn!(%error, "no checkpoint was written; the next change tries again");
        }
        Ok(())
    }

    fn group_of(&self, asker: &Asker, change: Change, state: &State) -> Result<Group, BrokerError> {
        let mut group = Group::on(state, self.end.clone().ok_or_else(no_end)?);
        group.add(asker, Proposal::of(change), &self.follow.vault, self.clock.now())?;
        Ok(group)
    }

    /// Appends a group; `None` where the head had moved.
    async fn append(&mut self, group: Group) -> Result<Option<Arc<State>>, BrokerError> {
        let before = self.end.take().ok_or_else(no_end)?;
        let Group { append, after, news, events } = group;
        let fenced = match self.store.append(&append).await {
            Ok(fenced) => fenced,
            // What failed may have landed all the same: the log says. Where it can't say now, following finds it later.
            Err(error) => self.find_out(&append, error).await?,
        };
        // Changes count against no quota.
        if fenced != Fenced::Committed {
            self.end = Some(before);
            self.follow.catch_up().await?;
            return Ok(None);
        }
        for (record, (change, actor)) in append.records.iter().zip(events) {
            tracing::info!(revision = record.revision.0, change, actor, "changed");
        }
        self.end = Some(append.audit.end);
        if append.keys.iter().any(|key| matches!(key, KeyBytes::Destroy(_))) || append.seal.is_some() {
            // INVARIANT (P6): whoever asked for it may have hung up.
            let store = Arc::clone(&self.store);
            self.tasks.spawn(async move {
                if let Err(error) = store.scrub().await {
                    tracing::error!(%error, "destroyed bytes may still be in the database's files; the next start tries again");
                }
            });
        }
        Ok(Some(self.follow.appended(append.expected, Arc::new(after), news).await))
    }

    async fn find_out(&mut self, append: &Append, error: StoreError) -> Result<Fenced, BrokerError> {
        self.follow.metrics.commit_failures.inc();
        let Some(first) = append.records.first() else { return Err(error.into()) };
        match self.store.records_from(first.revision, 1).await {
            Ok(rows) if rows.first() == Some(first) => {
                self.store.confirm().await?;
                Ok(Fenced::Committed)
            }
            _ => Err(error.into()),
        }
    }

    /// Registers a new writer, and writes a checkpoint where one is due.
    async fn begin(&mut self) -> Result<(), BrokerError> {
        let begun = self.register(None).await;
        if begun.is_err() {
            // A writer that the log does not know must not write.
            self.end = None;
        }
        begun
    }

    async fn register(&mut self, mut first: Option<First>) -> Result<(), BrokerError> {
        let (watch, mut lost_once) = (Stopwatch::start(), false);
        while watch.seconds() < CHANGE_DEADLINE_S {
            let state = self.follow.catch_up().await?;
            // INVARIANT (P7): while a seal stands the log ends with it; who lifts it brings a first change. A seal that came
            // meanwhile has ended this vault, and is not the one to lift.
            if self.follow.ended.is_cancelled() || (first.is_none() && state.sealed().is_some()) {
                return Err(BrokerError::Sealed { why: "an operator sealed it".to_owned() });
            }
            let ends = self.ends_beyond(&state).await?;
            let writer = WriterId::from_random(random_bits()?);
            self.end = Some(WriterEnd::start(&self.follow.vault.keyring(), &self.follow.vault.id, writer.clone())?);
            let version = env!("CARGO_PKG_VERSION").to_owned();
            let change = Change::WriterStarted { writer, version, replica: self.replica.clone(), ends };
            let asker = Asker::broker(DecisionId::from_random(random_bits()?));
            let mut group = self.group_of(&asker, change, &state)?;
            if let Some((asker, propose)) = &mut first {
                // Together or not at all: a writer on a history that is not accepted would hide that it is not.
                let proposal = propose(&group.after, &self.follow.vault.keyring())?;
                group.add(asker, proposal, &self.follow.vault, self.clock.now())?;
            }
            match self.append(group).await {
                Ok(Some(state)) => return self.checkpoint(&state).await,
                Ok(None) => {}
                // A connection that was lost since it was last used says so now; the next one is new. Done twice, it does no
                // more: a writer that never writes, and a change that is proposed on what is there then.
                Err(BrokerError::Unavailable(error)) if !lost_once => {
                    tracing::debug!(%error, "a writer's start is tried once more");
                    lost_once = true;
                }
                Err(error) => return Err(error),
            }
        }
        Err(BrokerError::Contended)
    }

    /// Ends of writers that have come further than the log knows.
    async fn ends_beyond(&self, state: &State) -> Result<Vec<AuditPosition>, BrokerError> {
        let keyring = self.follow.vault.keyring();
        let mut out = Vec::new();
        for stored in self.store.writer_ends().await? {
            let end = stored.end;
            let beyond = state.writers().get(&end.writer).is_some_and(|known| end.sequence > known.known_sequence);
            // An end of a root key version that is not known here yet is of a writer that goes on.
            if beyond && end.is_genuine(&keyring, &self.follow.vault.id).unwrap_or(false) {
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
        let group = self.group_of(&asker, change, state)?;
        // Where the head moves under it, the next change tries again.
        self.append(group).await?;
        tracing::info!(seconds = watch.seconds(), "wrote a checkpoint");
        Ok(())
    }
}

/// In each row's trace, the commit that it has a part in.
fn group_commit(waiting: &[Option<Waiting>], rows: usize) -> Vec<trace::Step> {
    let begin = |it: &Waiting| {
        let mut step = it.within.step("group_commit");
        step.note(|| [Fact::Rows(rows)]);
        step
    };
    waiting.iter().flatten().filter(|it| it.within.is_sampled()).map(begin).collect()
}

/// Rows that hold on this state: refusals, and tokens that were decided on it or, decided again, may go out as they are.
/// The others go back.
fn decided_at(rows: Vec<Row>, state: &State, now: UnixMillis) -> Vec<Row> {
    let mut out = Vec::with_capacity(rows.len());
    for (mut event, waiting) in rows {
        let Some(mut waiting) = waiting else {
            out.push((event, None));
            continue;
        };
        // INVARIANT (P5): decided on another head means decided again.
        if waiting.decision.head != state.head() {
            let Some(decision) = (waiting.again)(state, now) else {
                let _ = waiting.reply.send(Committed::HeadMoved);
                continue;
            };
            event.revision = decision.head.revision;
            waiting.decision = decision;
        }
        out.push((event, Some(waiting)));
    }
    out
}

fn no_end() -> BrokerError {
    BrokerError::Internal("a change needs a writer".to_owned())
}

/// An error with what is behind it, for the broker's own log.
fn chain(error: &BrokerError) -> String {
    match std::error::Error::source(error) {
        Some(source) => format!("{error}: {source}"),
        None => error.to_string(),
    }
}
