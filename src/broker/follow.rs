//! Keeps this replica's state at the head of the control log, whoever appended what came since.
//!
//! Steps: ask for the head; compare it with the newest one seen; read what came since, in order and without a gap; fold it;
//! open the keys that it brought; publish the state; move the anchor. A notification makes this fast; a poll, and every
//! commit that finds the head moved, make it certain.
//!
//! # Invariants
//! - P2: a database whose head is older than one seen, or whose chain differs, is never followed: it went back in time.
//! - P7: a seal that is read here stops this replica before anything else is done.
//! - `INV-FOLLOW-1`: a record that this release does not know stops it; nothing is ever skipped.

use std::fmt;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use arc_swap::{ArcSwap, ArcSwapOption};
use tokio::sync::{Mutex, watch};
use tokio_util::sync::CancellationToken;

use super::error::BrokerError;
use super::load::{self, LoadError, tampered};
use super::seal::KeySource;
use super::session::{Vault, open_key};
use super::{Phase, Refusal};
use crate::clock::{Clock, Stopwatch};
use crate::domain::change::Change;
use crate::domain::key::KeyState;
use crate::domain::state::State;
use crate::id::{Head, KeyId};
use crate::metrics::Metrics;
use crate::signer::SigningKey;
use crate::store::anchor::{Anchor, Anchored};
use crate::store::{Store, StoreError};
use crate::vault::keyring::Keyring;

/// How often the log is looked at without a hint.
const POLL: Duration = Duration::from_secs(1);

/// What follows the log, for one open vault.
pub(super) struct Follow {
    pub(super) store: Arc<dyn Store>,
    pub(super) vault: Arc<Vault>,
    pub(super) metrics: Metrics,
    pub(super) anchor: Option<Anchor>,
    pub(super) key_source: KeySource,
    pub(super) phase: Arc<ArcSwap<Phase>>,
    /// Cancelled when this vault serves no more: sealed, refusing, or stopped.
    pub(super) ended: CancellationToken,
    /// Tells those who wait for it that the state has moved on.
    pub(super) moved: watch::Sender<Head>,
    /// One at a time moves the state on.
    pub(super) one: Mutex<()>,
    /// Looks at the log that have begun, and the last one that succeeded.
    pub(super) begun: AtomicU64,
    pub(super) looked: AtomicU64,
    /// When that was.
    pub(super) last_look: ArcSwap<Stopwatch>,
    /// Since when the writer has been at what it took from the queue; `None` where it waits for more.
    pub(super) writing: ArcSwapOption<Stopwatch>,
    pub(super) clock: Arc<dyn Clock>,
}

/// What a change of this replica's own has brought beside its record.
#[derive(Debug, Default)]
pub(super) struct News {
    /// The keyring from then on.
    pub(super) keyring: Option<Arc<Keyring>>,
    /// Keys that sign from then on.
    pub(super) signing: Vec<(KeyId, Arc<SigningKey>)>,
}

/// What the records that were just folded ask of this replica.
#[derive(Debug, Default, Clone, Copy)]
struct Owed {
    keys: bool,
    rekeyed: bool,
}

impl fmt::Debug for Follow {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Follow").field("vault", &self.vault).finish_non_exhaustive()
    }
}

impl Follow {
    /// Follows until the vault ends.
    pub(super) async fn run(self: Arc<Self>) {
        loop {
            let waiting = async {
                tokio::select! {
                    () = self.store.hint() => {}
                    () = tokio::time::sleep(POLL) => {}
                }
            };
            if self.ended.run_until_cancelled(waiting).await.is_none() {
                return;
            }
            match self.catch_up().await {
                Ok(_) => {}
                // The database is away: the next look may find it.
                Err(BrokerError::Unavailable(error)) => tracing::debug!(%error, "the control log can't be read"),
                Err(error) => tracing::error!(%error, "the control log can't be followed"),
            }
        }
    }

    /// Brings the state to the log's head; answers it.
    ///
    /// # Errors
    /// Where the database is away; or where this replica must not go on, which it then does not.
    pub(super) async fn catch_up(&self) -> Result<Arc<State>, BrokerError> {
        let seen = self.begun.load(Ordering::SeqCst);
        let _one_at_a_time = self.one.lock().await;
        // A look that began after this caller came, and found the log readable, is this caller's, too.
        if self.looked.load(Ordering::SeqCst) > seen {
            return Ok(self.vault.state());
        }
        let begun = self.begun.fetch_add(1, Ordering::SeqCst).saturating_add(1);
        match self.follow().await {
            Ok(state) => {
                self.looked.store(begun, Ordering::SeqCst);
                self.last_look.store(Arc::new(Stopwatch::start()));
                Ok(state)
            }
            Err(LoadError::Store(error)) => Err(error.into()),
            Err(LoadError::Refused(refusal)) => {
                tracing::error!(why = %refusal.why, "the broker refuses to serve");
                self.stop(Phase::Refusing(refusal.clone()));
                Err(BrokerError::Refusing(refusal))
            }
            // It has stopped: no answer may be given on the state that it had.
            Err(error @ LoadError::NewerRoot) => Err(BrokerError::Sealed { why: error.to_string() }),
        }
    }

    async fn follow(&self) -> Result<Arc<State>, LoadError> {
        let state = self.vault.state();
        let head = self.store.head().await?;
        check_history(&state, head)?;
        if head == state.head() {
            return Ok(state);
        }
        let mut owed = Owed::default();
        let mut fold = self.fold(&state, &mut owed).await;
        if matches!(fold, Err(LoadError::NewerRoot)) {
            if !self.take_newer_keyring().await? {
                let why = "the unseal key was replaced and the root key rotated on another replica; unseal this one with \
                           the new unseal key";
                self.stop(Phase::Sealed(why.to_owned()));
                return Err(LoadError::NewerRoot);
            }
            fold = self.fold(&state, &mut owed).await;
        }
        let state = Arc::new(match fold {
            // Nobody else's log follows what was seen.
            Err(LoadError::Refused(refusal)) if refusal.diverged => return Err(lost(state.head(), head, &state)),
            other => other?,
        });
        if owed.rekeyed {
            // Where it can't be had, the root keys at hand go on until they are rotated.
            self.take_newer_keyring().await?;
        }
        if owed.keys && state.sealed().is_none() {
            self.open_new_keys(&state).await?;
        }
        self.publish(&state);
        Ok(state)
    }

    async fn fold(&self, state: &State, owed: &mut Owed) -> Result<State, LoadError> {
        let keyring = self.vault.keyring();
        load::catch_up(self.store.as_ref(), &self.vault.id, &keyring, state.clone(), |record| match &record.change {
            Change::KeyImported { .. } => owed.keys = true,
            Change::UnsealKeyReplaced { .. } => owed.rekeyed = true,
            _ => {}
        })
        .await
    }

    /// Opens the `seal` row as it is now: with the key that opened the last one or, after a rekey elsewhere, with the key
    /// file as it is now. Answers whether one of them did.
    async fn take_newer_keyring(&self) -> Result<bool, LoadError> {
        let row = self.store.seal_row().await?.ok_or_else(|| tampered("the seal row is missing".to_owned()))?;
        let mut newer = row.open_newer(&self.vault.keyring()).ok();
        if newer.is_none()
            && let Ok((current, previous)) = self.key_source.read()
        {
            newer = row.open(&current).ok().or_else(|| previous.and_then(|previous| row.open(&previous).ok()));
        }
        let Some(keyring) = newer else { return Ok(false) };
        self.vault.replace_keyring(Arc::new(keyring));
        Ok(true)
    }

    async fn open_new_keys(&self, state: &State) -> Result<(), LoadError> {
        let sealed = self.store.sealed_keys().await?;
        for key in state.keys().values().filter(|key| key.state != KeyState::Revoked) {
            if self.vault.signing_key(&key.id).is_some() {
                continue;
            }
            // A key that is gone again was revoked since: the next records say so.
            let Some(sealed) = sealed.iter().find(|sealed| sealed.key_id == key.id) else { continue };
            match open_key(&self.vault.keyring(), &self.vault.id, key, sealed) {
                Ok(opened) => self.vault.add_signing_key(key.id.clone(), Arc::new(opened)),
                Err(why) if self.store.head().await? == state.head() => return Err(tampered(why)),
                // Sealed anew by a rotation since: start over, with its records.
                Err(_) => {
                    return Err(LoadError::Store(StoreError::Unavailable("the keys are being resealed".to_owned())));
                }
            }
        }
        Ok(())
    }

    /// Takes over a change that this replica has just appended.
    pub(super) async fn appended(&self, before: Head, after: Arc<State>, news: News) -> Arc<State> {
        let _one_at_a_time = self.one.lock().await;
        if let Some(keyring) = news.keyring.filter(|keyring| keyring.current() >= self.vault.keyring().current()) {
            self.vault.replace_keyring(keyring);
        }
        for (id, key) in news.signing {
            self.vault.add_signing_key(id, key);
        }
        // Where following was faster, the state has these records already, and perhaps more.
        if self.vault.state().head() == before {
            self.publish(&after);
        }
        after
    }

    fn publish(&self, state: &Arc<State>) {
        let before = self.vault.state();
        let was_sealed = before.sealed().is_some();
        self.vault.publish(Arc::clone(state));
        let now = self.clock.now();
        for revocation in state.revocations_after(before.head().revision).filter(|it| !it.lifted) {
            let ms = now.0.saturating_sub(revocation.stamp.at.0).max(0);
            self.metrics.revocation_apply.observe(ms as f64 / 1000.0);
        }
        self.metrics.revision.set(i64::try_from(state.head().revision.0).unwrap_or(i64::MAX));
        let unconfirmed = state.keys().values().filter(|key| key.revoked.is_some() && key.confirmed_at_apple.is_none());
        self.metrics.unconfirmed_at_apple.set(i64::try_from(unconfirmed.count()).unwrap_or(i64::MAX));
        // A state that was sealed before is one whose seal is about to be lifted: only then does a writer start on it.
        if let Some(stamp) = state.sealed().filter(|_| !was_sealed) {
            // INVARIANT (P7): before the sealing operator is answered, this replica has stopped and dropped its keys.
            self.stop(Phase::sealed_by(stamp));
        }
        self.moved.send_replace(state.head());
        if let Some(anchor) = &self.anchor {
            let accepted = state.accepted_histories().iter().map(|history| history.id.clone()).collect();
            let anchored = Anchored { vault: self.vault.id.clone(), head: state.head(), accepted };
            if let Err(error) = anchor.write(&anchored) {
                self.metrics.anchor_failures.inc();
                tracing::error!(%error, path = %anchor.path().display(), "the anchor can't be written; it is behind the database");
            }
        }
    }

    fn stop(&self, phase: Phase) {
        self.vault.forget_keys();
        self.metrics.unsealed.set(0);
        // Whoever ends it first says why.
        if !self.ended.is_cancelled() {
            self.phase.store(Arc::new(phase));
        }
        self.ended.cancel();
    }
}

/// INVARIANT (P2): the head that was seen is in the database's history, as far as its head can tell.
fn check_history(state: &State, head: Head) -> Result<(), LoadError> {
    let seen = state.head();
    let back = head.revision < seen.revision || (head.revision == seen.revision && head.chain != seen.chain);
    if back { Err(lost(seen, head, state)) } else { Ok(()) }
}

fn lost(seen: Head, database: Head, state: &State) -> LoadError {
    let accepted = state.accepted_histories().iter().map(|history| history.id.clone()).collect();
    LoadError::Refused(Refusal::lost(seen, database, accepted))
}
