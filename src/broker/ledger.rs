//! The ledger: the queue through which everything becomes durable, and the only way to it.
//!
//! Audit rows of tokens, rows of refusals and changes wait here together for the one task that writes ([`super::writer`]).
//! So the cost of a commit is shared by all who wait for it, and this replica's rows have one chain without gaps.
//!
//! # Invariants
//! - P4: a waiter is told "committed" only after the commit of its row returned.

use std::sync::Arc;

use tokio::sync::{mpsc, oneshot};

use super::Asker;
use super::error::BrokerError;
use crate::clock::{Stopwatch, UnixMillis};
use crate::domain::audit::AuditEvent;
use crate::domain::change::Change;
use crate::domain::decide::Decision;
use crate::domain::quota::Bound;
use crate::domain::state::State;
use crate::id::KeyId;
use crate::signer::SigningKey;
use crate::store::KeyBytes;
use crate::trace::{self, Fact, Within};
use crate::vault::keyring::Keyring;
use crate::vault::unseal::SealRow;

/// Most entries waiting; more callers wait to queue.
const QUEUE: usize = 8192;

/// What became of a token's row.
#[derive(Debug, Clone)]
#[must_use]
pub(super) enum Committed {
    /// It is durable; with the decision that it was committed on.
    Yes(Decision),
    /// The head has moved, and what was decided does not hold as it is; or what is left of its quota went to others while
    /// this replica asked: the token must be decided again.
    HeadMoved,
    /// Its quota is used up.
    OverQuota(OverQuota),
    /// It could not be written.
    Unavailable,
}

/// Why a token's row was not written, and when it could be.
#[derive(Debug, Clone)]
pub(super) struct OverQuota {
    /// The row, as decided last.
    pub(super) event: Box<AuditEvent>,
    /// Which bound is reached.
    pub(super) bound: Bound,
    /// In how many seconds its window is over.
    pub(super) retry_after_s: u64,
}

/// A change that was made, or found to be made already.
#[derive(Debug)]
pub(super) struct Changed {
    /// The state after it.
    pub(super) state: Arc<State>,
}

/// What a change consists of.
#[derive(Debug, Default)]
pub(super) struct Proposal {
    /// The change; `None` where everything is as asked for already.
    pub(super) change: Option<Change>,
    /// What happens to sealed keys with it.
    pub(super) keys: Vec<KeyBytes>,
    /// The new `seal` row with it.
    pub(super) seal: Option<SealRow>,
    /// The keyring from then on.
    pub(super) keyring: Option<Keyring>,
    /// A key that signs from then on.
    pub(super) signing: Option<(KeyId, Arc<SigningKey>)>,
    /// What the audit row says, where it is more than the change's own summary.
    pub(super) detail: Option<String>,
}

impl Proposal {
    /// Whether it does more than to add a record.
    pub(super) fn is_weighty(&self) -> bool {
        !self.keys.is_empty() || self.seal.is_some() || self.keyring.is_some()
    }

    /// A change and nothing else.
    pub(super) fn of(change: Change) -> Self {
        Self { change: Some(change), ..Self::default() }
    }
}

/// Proposes a change on a state, as often as the head moves.
pub(super) type Propose = Box<dyn FnMut(&State, &Keyring) -> Result<Proposal, BrokerError> + Send>;

/// Decides on a newer state whether a token that is signed already may go out as it is.
pub(super) type Again = Box<dyn Fn(&State, UnixMillis) -> Option<Decision> + Send>;

/// Who waits for a token's row, and what it was decided on.
pub(super) struct Waiting {
    pub(super) decision: Decision,
    pub(super) again: Again,
    /// Since it queued.
    pub(super) since: Stopwatch,
    /// Where in its trace it waits.
    pub(super) within: Within,
    pub(super) reply: oneshot::Sender<Committed>,
}

/// A row to commit; a token's with who waits for it.
pub(super) type Row = (AuditEvent, Option<Waiting>);

/// What waits to become durable.
pub(super) enum Entry {
    Token { event: AuditEvent, waiting: Box<Waiting> },
    Refusal(AuditEvent),
    Change { asker: Asker, propose: Propose, reply: oneshot::Sender<Result<Changed, BrokerError>> },
}

/// The way into the queue.
#[derive(Debug, Clone)]
pub(super) struct Ledger(mpsc::Sender<Entry>);

impl Ledger {
    /// A queue, and its end where the writer takes from.
    pub(super) fn queue() -> (Self, mpsc::Receiver<Entry>) {
        let (sender, receiver) = mpsc::channel(QUEUE);
        (Self(sender), receiver)
    }

    /// Waits until a token's row is durable, or is not.
    pub(super) async fn commit(
        &self,
        event: AuditEvent,
        decision: Decision,
        again: Again,
        within: Within,
    ) -> Committed {
        let (reply, answer) = oneshot::channel();
        let waiting = Waiting { decision, again, since: Stopwatch::start(), within, reply };
        if self.0.send(Entry::Token { event, waiting: Box::new(waiting) }).await.is_err() {
            // The ledger ends with the vault: decided again, the request meets the seal.
            return Committed::HeadMoved;
        }
        answer.await.unwrap_or(Committed::Unavailable)
    }

    /// Queues the row of a refusal; answers whether there was room.
    pub(super) fn refuse(&self, event: AuditEvent) -> bool {
        self.0.try_send(Entry::Refusal(event)).is_ok()
    }

    /// Makes a change. It runs to its end also where the caller stops waiting.
    pub(super) async fn change(&self, asker: Asker, propose: Propose) -> Result<Changed, BrokerError> {
        // The step ends with the answer.
        let _step = trace::step("commit");
        trace::note(|| [Fact::DecisionId(&asker.decision_id)]);
        let (reply, answer) = oneshot::channel();
        let sealed = || BrokerError::Sealed { why: "it was sealed while the request waited".to_owned() };
        self.0.send(Entry::Change { asker, propose, reply }).await.map_err(|_| sealed())?;
        answer.await.map_err(|_| sealed())?
    }
}
