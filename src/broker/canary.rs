//! The canary: the fleet tries its own revocation, so that how fast it is, and that it works, is known before it is needed.
//!
//! Steps of a run, which one replica leads: claim it, as there is one run at a time for the whole fleet; get a token of
//! the canary's key, through the same queue, fence and audit as any; suspend the key; wait until every replica that is
//! alive has been refused; resume the key; get a token again. Each replica, as soon as its state says that the key is
//! suspended, tries to commit a token that was decided before and to get one now, and writes down the revision at which both
//! were refused.
//!
//! The key is in no account and no document, and Apple does not know it. Its tokens are dropped where they are made: their
//! rows say that they were, and count in no exposure. A leader that dies leaves the key suspended, which the next run ends.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use super::error::BrokerError;
use super::ledger::{Committed, Proposal};
use super::{Asker, Broker, OpenVault, Phase};
use crate::clock::{Stopwatch, UnixMillis};
use crate::domain::audit::{AuditEvent, Outcome};
use crate::domain::change::Change;
use crate::domain::decide::Decision;
use crate::domain::state::State;
use crate::id::Revision;
use crate::signer::CanaryKey;
use crate::trace::Within;
use crate::vault::keyring::Keyring;

/// How long the replicas have to be seen refusing.
const PATIENCE_S: f64 = 10.0;

/// How often it is looked whether they have.
const LOOK: Duration = Duration::from_millis(20);

/// A replica that has been quiet for longer is not waited for.
const ALIVE_MS: i64 = 15_000;

/// How often a refusal is written down at most, where that fails.
const MOST_REPORTS: u32 = 5;

/// What rows of the canary's tokens are called.
const CANARY_TOKEN: &str = "CANARY_TOKEN";

/// Whether a run is on its way, led by this replica.
#[derive(Debug, Default)]
pub(super) struct Canary(AtomicBool);

/// Why a run failed.
#[derive(Debug, thiserror::Error)]
pub enum CanaryError {
    /// A token was refused while the key may sign.
    #[error("no token was handed out while the canary's key is active: {0}")]
    Refused(String),
    /// A token was granted while the key is suspended, which must not be.
    #[error("a token was handed out at revision {0}, at which the canary's key is suspended")]
    Granted(Revision),
    /// A replica was not seen to refuse.
    #[error("replicas were not seen to refuse the suspended key within {PATIENCE_S} s: {0}")]
    Silent(String),
    /// It could not be carried out.
    #[error(transparent)]
    Broker(#[from] BrokerError),
}

impl Broker {
    /// Leads a run where one is due, beside the requests; called every few seconds.
    pub async fn run_canary(self: &Arc<Self>) {
        let every_s = self.parts.canary_every_s;
        if every_s == 0 || !matches!(&*self.phase(), Phase::Open(_)) || self.canary.0.swap(true, Ordering::SeqCst) {
            return;
        }
        let broker = Arc::clone(self);
        let run = async move {
            if broker.claim(every_s).await {
                // A replica that stops leaves the key as it is, for the next run.
                match broker.stopping.run_until_cancelled(broker.lead_canary()).await {
                    Some(Ok(seconds)) => tracing::debug!(seconds, "every replica refused the canary"),
                    Some(Err(error)) => tracing::error!(%error, "the canary failed"),
                    None => {}
                }
            }
            broker.canary.0.store(false, Ordering::SeqCst);
        };
        self.tasks.spawn(run);
    }

    async fn claim(&self, every_s: u32) -> bool {
        let claimed = self.parts.store.begin_canary(i64::from(every_s).saturating_mul(1000)).await;
        claimed.unwrap_or_else(|error| {
            tracing::debug!(%error, "the canary waits for the database");
            false
        })
    }

    /// One run, whether or not it is due. Answers how long it took until every replica was seen to refuse.
    ///
    /// # Errors
    /// With what is not as it must be.
    pub async fn lead_canary(&self) -> Result<f64, CanaryError> {
        let open = self.open()?;
        // INVARIANT (P7): a run does not keep the root keys of a vault that is sealed meanwhile.
        // Nor has it failed.
        let Some(outcome) = open.follow.ended.run_until_cancelled(self.run_of_canary(&open)).await else {
            return Err(BrokerError::Sealed { why: "the run ended with the vault".to_owned() }.into());
        };
        let metrics = &self.parts.metrics;
        metrics.canary_runs.with_label_values(&[if outcome.is_ok() { "ok" } else { "failed" }]).inc();
        if let Ok(seconds) = &outcome {
            metrics.canary_revocation.observe(*seconds);
            self.parts.store.end_canary().await.map_err(BrokerError::from)?;
            metrics.canary_last_success.set(self.parts.clock.now().seconds());
        }
        outcome
    }

    async fn run_of_canary(&self, open: &OpenVault) -> Result<f64, CanaryError> {
        if open.state().canary_suspended().is_some() {
            self.set_canary(open, Change::CanaryResumed).await?;
        }
        self.canary_token(open).await.map_err(|error| CanaryError::Refused(error.to_string()))?;
        let watch = Stopwatch::start();
        let state = self.set_canary(open, Change::CanarySuspended).await?;
        let seen = self.all_refuse(state.canary_suspended().unwrap_or_default(), watch).await;
        // Whatever was seen, and also where nobody was.
        self.set_canary(open, Change::CanaryResumed).await?;
        let seconds = seen?;
        self.canary_token(open).await.map_err(|error| CanaryError::Refused(error.to_string()))?;
        Ok(seconds)
    }

    /// Suspends the canary's key and nothing else: what a leader that dies leaves. For trying that out.
    ///
    /// # Errors
    /// Where it can't be recorded.
    pub async fn suspend_canary(&self) -> Result<(), BrokerError> {
        let open = self.open()?;
        self.set_canary(&open, Change::CanarySuspended).await.map(drop)
    }

    /// Waits until every replica that is alive and open has been refused at a revision or later.
    async fn all_refuse(&self, at: Revision, watch: Stopwatch) -> Result<f64, CanaryError> {
        loop {
            let replicas = self.parts.store.replicas().await.map_err(BrokerError::from)?;
            let refusals = self.parts.store.canary_refusals().await.map_err(BrokerError::from)?;
            let now = self.parts.clock.now();
            let alive = replicas.iter().filter(|it| it.phase == "OPEN" && now.0.saturating_sub(it.seen.0) < ALIVE_MS);
            // This one is there, also where it has not said so yet.
            let names = alive.map(|it| it.name.as_str()).chain([self.replica()]);
            let refused = |name: &&str| refusals.iter().any(|(replica, revision)| replica == name && *revision >= at);
            let mut silent: Vec<&str> = names.filter(|name| !refused(name)).collect();
            if silent.is_empty() {
                return Ok(watch.seconds());
            }
            if watch.seconds() > PATIENCE_S {
                silent.sort_unstable();
                silent.dedup();
                return Err(CanaryError::Silent(silent.join(", ")));
            }
            tokio::time::sleep(LOOK).await;
        }
    }

    /// Watches for the suspension of the canary's key, for as long as the vault is open: then this replica must be refused.
    pub(super) async fn watch_canary(self: Arc<Self>, open: Arc<OpenVault>) {
        let mut moved = open.follow.moved.subscribe();
        let mut before = open.state();
        let mut refused = Revision::default();
        let ended = open.follow.ended.clone();
        while let Some(Ok(())) = ended.run_until_cancelled(moved.changed()).await {
            let earlier = std::mem::replace(&mut before, open.state());
            let Some(at) = open.state().canary_suspended().filter(|at| *at > refused) else { continue };
            // First as one that was decided before the suspension, which the ledger must send back; then as one that is
            // decided now.
            let tried = match self.late_token(&open, &earlier).await {
                Ok(()) => self.canary_token(&open).await,
                other => other,
            };
            match tried {
                Err(CanaryError::Refused(_)) => {
                    refused = at;
                    self.report_refusal(at).await;
                }
                // Resumed meanwhile; or what must not be, and then the leader waits in vain.
                Ok(()) if open.state().canary_suspended() != Some(at) => {}
                Ok(()) => tracing::error!(error = %CanaryError::Granted(at), "the canary was not refused"),
                Err(error @ CanaryError::Granted(_)) => tracing::error!(%error, "the canary was not refused"),
                Err(error) => tracing::debug!(%error, "the canary could not be tried"),
            }
        }
    }

    async fn report_refusal(&self, at: Revision) {
        for _ in 0..MOST_REPORTS {
            match self.parts.store.report_refusal(self.replica(), at).await {
                Ok(()) => return,
                Err(error) => tracing::debug!(%error, "a refusal of the canary was not written down"),
            }
            tokio::time::sleep(LOOK).await;
        }
    }

    /// Tries to commit a token that was decided on an earlier state, in which the key was not suspended: it must come back.
    async fn late_token(&self, open: &OpenVault, earlier: &State) -> Result<(), CanaryError> {
        if earlier.canary_suspended().is_some() {
            return Ok(());
        }
        let now = self.parts.clock.now();
        let event = self.canary_event(earlier, now)?;
        // Nothing to decide anew: as if it were suspended in every state to come.
        let again = |_: &State, _| None;
        match open.ledger.commit(event, decision(earlier, now), Box::new(again), Within::default()).await {
            Committed::Yes(decision) => Err(CanaryError::Granted(decision.head.revision)),
            Committed::HeadMoved | Committed::OverQuota(_) => Ok(()),
            Committed::Unavailable => Err(unwritten()),
        }
    }

    /// Gets a token of the canary's key, as a client would: decided on this replica's state, signed, written down at the
    /// head it was decided at. The token is dropped.
    async fn canary_token(&self, open: &OpenVault) -> Result<(), CanaryError> {
        let state = open.state();
        let suspended = |at: Revision| CanaryError::Refused(format!("its key is suspended since revision {at}"));
        if let Some(at) = state.canary_suspended() {
            return Err(suspended(at));
        }
        let internal = |error: String| CanaryError::Broker(BrokerError::Internal(error));
        let secret = open.vault.keyring().canary_secret().map_err(|error| internal(error.to_string()))?;
        CanaryKey::derive(&secret).and_then(|key| key.sign()).map_err(|error| internal(error.to_string()))?;
        let now = self.parts.clock.now();
        let again = |state: &State, now| state.canary_suspended().is_none().then(|| decision(state, now));
        let event = self.canary_event(&state, now)?;
        match open.ledger.commit(event, decision(&state, now), Box::new(again), Within::default()).await {
            Committed::Yes(_) => Ok(()),
            Committed::HeadMoved | Committed::OverQuota(_) => Err(open
                .state()
                .canary_suspended()
                .map_or_else(|| CanaryError::Broker(BrokerError::Contended), suspended)),
            Committed::Unavailable => Err(unwritten()),
        }
    }

    fn canary_event(&self, state: &State, now: UnixMillis) -> Result<AuditEvent, BrokerError> {
        Ok(AuditEvent {
            at: now,
            event: CANARY_TOKEN.to_owned(),
            // Not `SIGNED`: nothing leaves.
            outcome: Outcome::Read,
            reason: "OK".to_owned(),
            decision_id: self.decision_id()?.to_string(),
            caller: "broker".to_owned(),
            identity: String::new(),
            detail: "signed, verified and dropped".to_owned(),
            policy: None,
            key_id: None,
            app_group: None,
            role: None,
            scope: None,
            token: None,
            revision: state.head().revision,
        })
    }

    async fn set_canary(&self, open: &OpenVault, change: Change) -> Result<Arc<State>, BrokerError> {
        let asker = Asker::broker(self.decision_id()?);
        let wanted = matches!(change, Change::CanarySuspended);
        let propose = move |state: &State, _: &Keyring| {
            let is = state.canary_suspended().is_some();
            Ok(if is == wanted { Proposal::default() } else { Proposal::of(change.clone()) })
        };
        Ok(open.ledger.change(asker, Box::new(propose)).await?.state)
    }
}

/// Where the database is away nothing is refused, and nothing is shown.
fn unwritten() -> CanaryError {
    CanaryError::Broker(BrokerError::Internal("the canary's audit row could not be written".to_owned()))
}

fn decision(state: &State, at: UnixMillis) -> Decision {
    let (head, enforced_by, shadows) = (state.head(), Vec::new(), Vec::new());
    Decision { head, at, enforced_by, quota: None, break_glass: None, shadows }
}
