//! Where one issuer's keys come from, and the last ones that came.
//!
//! Users of keys that are there never wait. Keys that are due are fetched again in the background; a `kid` that is not
//! there has them fetched once more, and whoever brought it waits for that. Whatever tokens arrive, one fetch is on its way
//! at a time, and none starts sooner after another than the cooldown.
//!
//! # Invariants
//! - `INV-KEYS-1`: keys are used past their refresh only while a fetch is on its way or the last one failed, and never
//!   longer than the stale time after the start of the last fetch that succeeded.
//! - `INV-KEYS-2`: between the starts of two fetches is the cooldown, whatever is asked for.

use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use tokio::sync::watch;
use tokio::time::timeout;
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;

use super::config::OidcConfig;
use super::error::BearerError;
use super::fetch::{FetchError, Fetcher, pinned};
use super::keys::{Key, KeySet};
use super::token::Presented;
use crate::clock::{Clock, UnixMillis};
use crate::domain::issuer::{Issuer, IssuerKeys};
use crate::id::IssuerName;
use crate::metrics::Metrics;

/// What all sources of a verifier share.
pub(super) struct Fetching {
    pub(super) fetcher: Fetcher,
    pub(super) clock: Arc<dyn Clock>,
    pub(super) metrics: Metrics,
    pub(super) tasks: TaskTracker,
    pub(super) stop: CancellationToken,
    refresh_ms: u64,
    stale_ms: u64,
    cooldown_ms: u64,
}

impl Fetching {
    pub(super) fn new(config: &OidcConfig, fetcher: Fetcher, clock: Arc<dyn Clock>, metrics: Metrics) -> Self {
        let ms = |seconds: u64| seconds.saturating_mul(1000);
        Self {
            fetcher,
            clock,
            metrics,
            tasks: TaskTracker::new(),
            stop: CancellationToken::new(),
            refresh_ms: ms(config.jwks_refresh_s),
            stale_ms: ms(config.jwks_stale_s),
            cooldown_ms: ms(config.jwks_cooldown_s),
        }
    }
}

/// The keys of one issuer.
pub(super) struct Source {
    issuer: IssuerName,
    url: String,
    keys: IssuerKeys,
    shared: Arc<Fetching>,
    state: Mutex<State>,
    /// Outside the lock, as a task may be dropped while it is spawned; set only under it.
    fetching: AtomicBool,
    /// A fetch has ended.
    ended: watch::Sender<()>,
}

#[derive(Default)]
struct State {
    held: Option<Held>,
    /// When the last fetch started.
    tried_at: Option<UnixMillis>,
    /// Whether the last fetch that ended had failed.
    away: bool,
}

struct Held {
    set: Arc<KeySet>,
    /// When the fetch started that brought it.
    at: UnixMillis,
}

/// What there is at this moment.
enum Look {
    Use(Arc<KeySet>),
    Wait,
    Away,
}

impl Source {
    pub(super) fn new(issuer: &Issuer, shared: Arc<Fetching>) -> Self {
        let mut state = State::default();
        if let IssuerKeys::Pinned(text) = &issuer.keys {
            match pinned(text) {
                Ok(set) => state.held = Some(Held { set: Arc::new(set), at: shared.clock.now() }),
                Err(error) => tracing::error!(issuer = %issuer.name, %error, "pinned keys can't be used"),
            }
        }
        Self {
            issuer: issuer.name.clone(),
            url: issuer.url.clone(),
            keys: issuer.keys.clone(),
            shared,
            state: Mutex::new(state),
            fetching: AtomicBool::new(false),
            ended: watch::Sender::new(()),
        }
    }

    /// Whether it is where this issuer's keys come from.
    pub(super) fn is_of(&self, issuer: &Issuer) -> bool {
        self.issuer == issuer.name && self.url == issuer.url && self.keys == issuer.keys
    }

    /// The keys that can be used without waiting. Starts to fetch them again where that is due.
    pub(super) fn current(self: &Arc<Self>) -> Option<Arc<KeySet>> {
        match self.look() {
            Look::Use(set) => Some(set),
            Look::Wait | Look::Away => None,
        }
    }

    /// The key that has signed a token; waits for keys that are not there, at most as long as a fetch takes.
    pub(super) async fn verify(self: &Arc<Self>, token: &Presented<'_>) -> Result<Arc<Key>, BearerError> {
        let set = self.usable().await?;
        let refusal = match set.verify(token) {
            Err(error @ BearerError::KeyUnknown) => error,
            // Without a `kid` nothing else tells that the issuer has another key now.
            Err(error @ BearerError::Signature) if token.key_id.is_none() => error,
            verdict => return verdict,
        };
        match self.newer(&set).await? {
            Some(set) => set.verify(token),
            None => Err(refusal),
        }
    }

    async fn usable(self: &Arc<Self>) -> Result<Arc<KeySet>, BearerError> {
        // Before the look, so that no end in between is missed.
        let mut ended = self.ended.subscribe();
        match self.look() {
            Look::Use(set) => return Ok(set),
            Look::Away => return Err(BearerError::IssuerUnavailable),
            Look::Wait => self.wait(&mut ended).await,
        }
        self.current().ok_or(BearerError::IssuerUnavailable)
    }

    /// A set that came after this one; `None` where the issuer has no other, or was asked a moment ago.
    async fn newer(self: &Arc<Self>, than: &Arc<KeySet>) -> Result<Option<Arc<KeySet>>, BearerError> {
        let mut ended = self.ended.subscribe();
        let fetching = {
            let mut state = self.state();
            let held = state.held.as_ref().filter(|held| !Arc::ptr_eq(&held.set, than));
            if let Some(held) = held {
                return Ok(Some(Arc::clone(&held.set)));
            }
            self.start(&mut state, self.shared.clock.now())
        };
        if fetching {
            self.wait(&mut ended).await;
        }
        let state = self.state();
        match &state.held {
            Some(held) if !Arc::ptr_eq(&held.set, than) => Ok(Some(Arc::clone(&held.set))),
            // Whether it has such a key by now, nobody can say.
            _ if state.away => Err(BearerError::IssuerUnavailable),
            _ => Ok(None),
        }
    }

    fn look(self: &Arc<Self>) -> Look {
        let now = self.shared.clock.now();
        let mut state = self.state();
        let Some(held) = &state.held else {
            return if self.start(&mut state, now) { Look::Wait } else { Look::Away };
        };
        let (set, age) = (Arc::clone(&held.set), apart(now, held.at));
        if self.is_pinned() || age < self.shared.refresh_ms {
            return Look::Use(set);
        }
        let fetching = self.start(&mut state, now);
        // INVARIANT (INV-KEYS-1)
        if age >= self.shared.stale_ms {
            return if fetching { Look::Wait } else { Look::Away };
        }
        // Nobody has asked for long: the issuer is not known to be away, so that what it says now is worth waiting for.
        let overdue = age >= self.shared.refresh_ms.saturating_mul(2);
        if overdue && fetching && !state.away { Look::Wait } else { Look::Use(set) }
    }

    /// Whether a fetch is on its way, now that one was wanted.
    fn start(self: &Arc<Self>, state: &mut State, now: UnixMillis) -> bool {
        if self.fetching.load(Ordering::SeqCst) {
            return true;
        }
        // INVARIANT (INV-KEYS-2)
        let cools = state.tried_at.is_some_and(|at| apart(now, at) < self.shared.cooldown_ms);
        if cools || self.is_pinned() || self.shared.stop.is_cancelled() {
            return false;
        }
        state.tried_at = Some(now);
        self.fetching.store(true, Ordering::SeqCst);
        let flight = Flight(Arc::clone(self));
        let fetch = async move {
            let source = &flight.0;
            let fetched = source.shared.fetcher.keys(&source.url, &source.keys).await;
            source.take(fetched, now);
        };
        self.shared.tasks.spawn(self.shared.stop.clone().run_until_cancelled_owned(fetch));
        true
    }

    /// What a fetch brought that started at this moment.
    fn take(&self, fetched: Result<KeySet, FetchError>, at: UnixMillis) {
        let metrics = &self.shared.metrics;
        let mut state = self.state();
        state.away = fetched.is_err();
        let (outcome, stale) = match fetched {
            Ok(set) => {
                if set.is_empty() {
                    tracing::warn!(issuer = %self.issuer, "an issuer publishes no key that can verify");
                }
                // The same keys stay the same set, so that a `kid` that is not in it is known not to be there.
                let known = state.held.take().map(|held| held.set).filter(|known| **known == set);
                state.held = Some(Held { set: known.unwrap_or_else(|| Arc::new(set)), at });
                metrics.jwks_fetched.with_label_values(&[self.issuer.as_str()]).set(at.seconds());
                ("ok", false)
            }
            Err(error) => {
                tracing::warn!(issuer = %self.issuer, %error, "the keys of a trusted issuer could not be fetched");
                let now = self.shared.clock.now();
                let fresh = |held: &Held| apart(now, held.at) < self.shared.refresh_ms;
                ("failed", state.held.as_ref().is_some_and(|held| !fresh(held)))
            }
        };
        let issuer = self.issuer.as_str();
        metrics.jwks_fetches.with_label_values(&[issuer, outcome]).inc();
        metrics.jwks_stale.with_label_values(&[issuer]).set(i64::from(stale));
    }

    /// Waits until the fetch that is on its way has ended.
    async fn wait(&self, ended: &mut watch::Receiver<()>) {
        // A fetch has a limit of its own; this one is for a runtime that is on its way down.
        let limit = self.shared.fetcher.limit().saturating_add(Duration::from_secs(1));
        let _ = timeout(limit, ended.changed()).await;
    }

    fn is_pinned(&self) -> bool {
        matches!(self.keys, IssuerKeys::Pinned(_))
    }

    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// A fetch on its way. However it ends, it has ended.
struct Flight(Arc<Source>);

impl Drop for Flight {
    fn drop(&mut self) {
        self.0.fetching.store(false, Ordering::SeqCst);
        self.0.ended.send_replace(());
    }
}

/// How far two moments are apart, in milliseconds. A clock that was set back makes keys old, not young for ever.
fn apart(a: UnixMillis, b: UnixMillis) -> u64 {
    a.0.abs_diff(b.0)
}
