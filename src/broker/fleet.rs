//! What replicas tell of themselves, and how one opens again by itself. Information only: nothing here is needed for the
//! fence to hold.

use std::sync::Arc;
use std::time::Duration;

use super::error::BrokerError;
use super::load;
use super::seal::KeySource;
use super::{Broker, Phase};
use crate::clock::UnixMillis;
use crate::domain::state::State;
use crate::id::Revision;
use crate::store::{Hazard, Replica};

/// A replica that has been quiet for longer is forgotten.
const FORGET_MS: i64 = 24 * 3600 * 1000;

/// What a replica says of itself last: nobody waits for it.
pub(super) const STOPPED: &str = "STOPPED";

/// How long that may take.
const GOODBYE: Duration = Duration::from_secs(2);

/// Every hazard that an engine may name, so that a metric that is 0 is there, too.
const HAZARDS: &[&str] = &[
    "FSYNC_OFF",
    "FULL_PAGE_WRITES_OFF",
    "SYNCHRONOUS_COMMIT_OFF",
    "STANDBYS_ASYNCHRONOUS",
    "NOT_THE_OWNER",
    "CLOCKS_APART",
];

impl Broker {
    /// This replica's name.
    pub fn replica(&self) -> &str {
        &self.parts.replica
    }

    /// Folds the log onto an earlier state of this vault: what a replica does that is behind. For measuring.
    ///
    /// # Errors
    /// Where the vault is not open, or the log can't be read.
    pub async fn replay(&self, from: State) -> Result<State, BrokerError> {
        let open = self.open()?;
        let keyring = open.vault.keyring();
        let caught_up = load::catch_up(self.parts.store.as_ref(), open.id(), &keyring, from, |_| ()).await;
        caught_up.map_err(|error| BrokerError::Internal(error.to_string()))
    }

    /// Writes down how this replica is; called every few seconds.
    pub async fn report(&self) {
        self.say(self.phase().as_str()).await;
    }

    /// Writes down that this replica is about to end, so that nobody waits for it. Where the database is away it is not waited for.
    pub(super) async fn say_goodbye(&self) {
        let _ = tokio::time::timeout(GOODBYE, self.say(STOPPED)).await;
    }

    async fn say(&self, what: &str) {
        let phase = self.phase();
        let now = self.parts.clock.now();
        let replica = Replica {
            name: self.parts.replica.clone(),
            version: env!("CARGO_PKG_VERSION").to_owned(),
            phase: what.to_owned(),
            revision: if let Phase::Open(open) = &*phase { open.state().head().revision } else { Revision::default() },
            started: self.started,
            seen: now,
        };
        if let Err(error) = self.parts.store.report(&replica, UnixMillis(now.0.saturating_sub(FORGET_MS))).await {
            tracing::debug!(%error, "this replica can't describe itself");
        }
    }

    /// Forgets counts of quotas that are over for long; called every minute.
    pub async fn forget_quotas(&self) {
        if let Err(error) = self.parts.store.forget_quotas().await {
            tracing::debug!(%error, "old counts of quotas can't be forgotten");
        }
    }

    /// Replicas that gave a sign of life lately, by name.
    ///
    /// # Errors
    /// Where the database is away.
    pub async fn replicas(&self) -> Result<Vec<Replica>, BrokerError> {
        Ok(self.parts.store.replicas().await?)
    }

    /// Looks for ways in which acknowledged commits could be lost; called every minute, and by `doctor`.
    ///
    /// # Errors
    /// Where the database is away.
    pub async fn hazards(&self) -> Result<Vec<Hazard>, BrokerError> {
        let found = self.parts.store.hazards(self.parts.clock.now()).await?;
        for name in HAZARDS {
            let is = found.iter().any(|hazard| hazard.name == *name);
            self.parts.metrics.hazards.with_label_values(&[name]).set(i64::from(is));
        }
        Ok(found)
    }

    /// Opens again where that needs nobody: the vault was made or the database came back since, or an operator lifted a
    /// seal on another replica. Called every second.
    pub async fn open_again(self: &Arc<Self>) {
        if self.stopping.is_cancelled() {
            return;
        }
        let by_itself = match &*self.phase() {
            Phase::NotInitialised => true,
            Phase::Sealed(_) => self.parts.key_source != KeySource::Shares,
            Phase::Refusing(refusal) if refusal.lost.is_some() => return self.reopen_accepted().await,
            Phase::Refusing(_) | Phase::Open(_) => false,
        };
        if !by_itself {
            return;
        }
        // INVARIANT (P7): while an operator's seal stands, the log ends with it, and nothing is opened to look.
        if let Some(sealed_at) = **self.sealed_at.load()
            && !self.parts.store.head().await.is_ok_and(|head| head != sealed_at)
        {
            return;
        }
        // Whoever saw the database without a vault may start an anchor from its beginning.
        if matches!(&*self.phase(), Phase::NotInitialised)
            && let Some(anchor) = &self.parts.anchor
            && let Err(error) = anchor.begin()
        {
            tracing::error!(%error, path = %anchor.path().display(), "the anchor can't be started");
        }
        // An operator who is at it already goes first.
        let Ok(_one_at_a_time) = self.sealing.try_lock() else { return };
        if !matches!(&*self.phase(), Phase::Open(_)) {
            self.start().await;
        }
    }
}
