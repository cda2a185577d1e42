//! Opens a vault, and serves it until it ends.
//!
//! Steps: (1) the keyring, which opens only with the unseal key; (2) the vault, checked as `load` has it; (3) where an
//! operator's seal stands, the caller's power to lift it, as the state just loaded says; (4) a writer, registered together
//! with the lifting; (5) what follows the log and tells watchers; (6) the phase. Nothing is served before (6).

use std::sync::Arc;
use std::sync::atomic::AtomicU64;

use arc_swap::{ArcSwap, ArcSwapOption};
use tokio::sync::Mutex;
use tokio_util::sync::CancellationToken;

use super::error::BrokerError;
use super::follow::Follow;
use super::history::Waiting;
use super::issue::Tokens;
use super::ledger::{Proposal, Propose};
use super::load::load;
use super::quota::UsedUp;
use super::seal::Sealing;
use super::session::Vault;
use super::watch::Watchers;
use super::writer::{First, Writer};
use super::{Asker, Broker, Caller, OpenVault, Phase, require};
use crate::clock::Stopwatch;
use crate::domain::change::{Actor, Change};
use crate::domain::key::Stamp;
use crate::domain::operator::Power;
use crate::domain::state::State;
use crate::id::Head;
use crate::trace;
use crate::vault::keyring::Keyring;
use crate::vault::unseal::SealRow;

/// Who wants the vault open.
pub(super) enum Opener<'a> {
    /// The broker itself, at its start.
    Start,
    /// An operator.
    Operator(&'a Caller),
    /// The process that has just initialised it.
    Init,
}

impl Broker {
    pub(super) async fn open_with_key_file(self: &Arc<Self>, opener: Opener<'_>) -> Result<(), BrokerError> {
        let (current, previous) = self.parts.key_source.read()?;
        let open = |row: &SealRow| match (row.open(&current), &previous) {
            (Ok(keyring), _) => Ok(keyring),
            (Err(error), None) => Err(does_not_fit(&error.to_string())),
            (Err(_), Some(previous)) => row.open(previous).map_err(|error| does_not_fit(&error.to_string())),
        };
        self.open_with(open, opener).await
    }

    pub(super) async fn open_with(
        self: &Arc<Self>,
        open: impl Fn(&SealRow) -> Result<Keyring, BrokerError>,
        opener: Opener<'_>,
    ) -> Result<(), BrokerError> {
        let store = self.parts.store.as_ref();
        let vault = match load(store, &open, self.parts.anchor.as_ref()).await {
            Ok(vault) => Arc::new(vault),
            // INVARIANT (P2): what was changed is found here, named, and nothing is served.
            Err(BrokerError::Refusing(refusal)) => {
                tracing::error!(why = %refusal.why, "the broker refuses to serve");
                if refusal.lost.is_some()
                    && let Some(row) = store.seal_row().await?
                    && let Ok(keyring) = open(&row)
                {
                    *self.waiting.lock().await = Some(Waiting::at_start(row.vault, Arc::new(keyring)));
                }
                self.set_phase(Phase::Refusing(refusal.clone()));
                return Err(BrokerError::Refusing(refusal));
            }
            Err(error) => return Err(error),
        };
        let state = vault.state();
        let lift = match (state.sealed(), opener) {
            (None, _) | (Some(_), Opener::Init) => None,
            // INVARIANT (P7): at a start the seal stands; the keys just loaded are dropped.
            (Some(stamp), Opener::Start) => {
                self.meet_seal(stamp, state.head());
                return Ok(());
            }
            (Some(stamp), Opener::Operator(caller)) => {
                let name = require(&state, &caller.principal, Power::Unseal)
                    .inspect_err(|_| self.meet_seal(stamp, state.head()))?;
                let asker = Asker {
                    actor: Actor { name, client: Some(caller.client().clone()) },
                    identity: caller.identity.clone(),
                    decision_id: self.decision_id()?,
                };
                let principal = caller.principal.clone();
                let met = stamp.clone();
                let lift: Propose = Box::new(move |state, _| {
                    require(state, &principal, Power::Unseal)?;
                    match state.sealed() {
                        None => Ok(Proposal::default()),
                        Some(stamp) if *stamp == met => Ok(Proposal::of(Change::VaultUnsealed)),
                        // INVARIANT (P7): whoever lifts a seal has seen that one; a newer one stands.
                        Some(_) => Err(BrokerError::Sealed { why: "it was sealed anew meanwhile".to_owned() }),
                    }
                });
                Some((asker, lift))
            }
        };
        self.serve(vault, lift).await.map(drop)
    }

    /// Stays sealed, and remembers where: the log moves on only when somebody lifts it.
    pub(super) fn meet_seal(&self, stamp: &Stamp, at: Head) {
        self.sealed_at.store(Arc::new(Some(at)));
        self.set_phase(Phase::sealed_by(stamp));
    }

    /// Serves a vault that was loaded; `first` is a change to make before anything else. Answers the state it starts with.
    pub(super) async fn serve(
        self: &Arc<Self>,
        vault: Arc<Vault>,
        first: Option<First>,
    ) -> Result<Arc<State>, BrokerError> {
        let follow = Arc::new(Follow {
            store: Arc::clone(&self.parts.store),
            vault: Arc::clone(&vault),
            metrics: self.parts.metrics.clone(),
            anchor: self.parts.anchor.clone(),
            key_source: self.parts.key_source.clone(),
            phase: Arc::clone(&self.phase),
            ended: CancellationToken::new(),
            moved: tokio::sync::watch::Sender::new(vault.state().head()),
            one: Mutex::default(),
            begun: AtomicU64::default(),
            looked: AtomicU64::default(),
            last_look: ArcSwap::from_pointee(Stopwatch::start()),
            writing: ArcSwapOption::empty(),
            clock: Arc::clone(&self.parts.clock),
        });
        let used_up = Arc::new(UsedUp::default());
        let writer = Writer {
            store: Arc::clone(&self.parts.store),
            follow: Arc::clone(&follow),
            clock: Arc::clone(&self.parts.clock),
            tasks: self.tasks.clone(),
            replica: self.parts.replica.clone(),
            end: None,
            used_up: Arc::clone(&used_up),
        };
        let step = trace::step("commit");
        let (ledger, task) = writer.start(first).await?;
        drop(step);
        let state = vault.state();
        if let Some(stamp) = state.sealed() {
            // Sealed while it started, or a sealed history that was accepted.
            self.meet_seal(stamp, state.head());
            return Ok(state);
        }
        let watchers = Arc::new(Watchers::default());
        self.sealed_at.store(Arc::new(None));
        self.tasks.spawn(task);
        self.tasks.spawn(Arc::clone(&watchers).run(Arc::clone(&follow), Arc::clone(&self.parts.clock)));
        tracing::info!(vault = %vault.id, revision = state.head().revision.0, "unsealed");
        let tokens = Tokens::default();
        let open = OpenVault { vault, follow: Arc::clone(&follow), ledger, tokens, watchers, used_up };
        // Shares given towards a rekey, and a keyring kept for lost history, are of an earlier opening.
        *self.waiting.lock().await = None;
        let open = Arc::new(open);
        self.set_phase(Phase::Open(Arc::clone(&open)));
        self.tasks.spawn(Arc::clone(self).watch_canary(open));
        let broker = Arc::clone(self);
        self.tasks.spawn(async move {
            Arc::clone(&follow).run().await;
            broker.vault_ended(&follow).await;
        });
        self.write_remembered();
        // INVARIANT (P6): a process that was killed before it could has left this to the next one.
        let store = Arc::clone(&self.parts.store);
        self.tasks.spawn(async move {
            if let Err(error) = store.scrub().await {
                tracing::warn!(%error, "the tables of keys were not written anew");
            }
        });
        Ok(state)
    }

    /// What is left to do when a vault serves no more.
    async fn vault_ended(&self, follow: &Follow) {
        let state = follow.vault.state();
        // INVARIANT (P7): shares given towards a rekey do not outlive the vault in memory, whoever sealed it.
        *self.sealing.lock().await = Sealing::default();
        match &*self.phase() {
            Phase::Refusing(refusal) if refusal.lost.is_some() => {
                *self.waiting.lock().await = Some(Waiting::of(&follow.vault));
            }
            Phase::Sealed(_) if state.sealed().is_some() => self.sealed_at.store(Arc::new(Some(state.head()))),
            _ => {}
        }
    }
}

fn does_not_fit(error: &str) -> BrokerError {
    BrokerError::KeyFile(format!("neither the key file nor the one before it opens the keyring: {error}"))
}
