//! Tells clients what of their own is revoked, as it happens.
//!
//! Steps, for each revocation that following brings: ask the database for the live tokens under it; hand each watching
//! client the ids of its own, and nothing of anyone else's; then say that everything up to this revision has been told.
//! Asking the database, rather than the policies, is what makes it exact: a policy may have changed since it granted.
//!
//! A watch that resumes is told what was revoked after its revision from the state, which keeps the newest revocation of
//! everything; so a checkpoint loses nothing. One that reads too slowly is told to resynchronise and never holds up others.
//!
//! # Invariants
//! - `INV-WATCH-1`: a client is told of its own tokens alone.
//! - `INV-WATCH-2`: a heartbeat with revision R comes after everything of the client's that was revoked up to R.
//! - Non-goal: nothing is *correct* because of a watch. The fence is what stops tokens; this only makes clients fast.

use std::collections::HashMap;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, PoisonError, RwLock, Weak};

use tokio::sync::mpsc;

use super::error::BrokerError;
use super::follow::Follow;
use super::inspect::targets_of;
use super::revoke::under;
use super::{Broker, Caller};
use crate::clock::{Clock, UnixMillis};
use crate::domain::audit::LiveToken;
use crate::domain::state::{AcceptedHistory, Revocation, State};
use crate::domain::target::Target;
use crate::id::{ClientId, Revision};
use crate::metrics::Metrics;
use crate::store::{ExposureCursor, StoreError, Under};

/// Events that wait for one slow reader.
const QUEUE: usize = 16;

/// Token ids in one event; more come in further events.
const MOST_IDS: usize = 1000;

/// Tokens asked for at a time, and how often: beyond that, watchers look at what they hold themselves.
const PAGE: u32 = 5000;
const MOST_PAGES: u32 = 20;

/// Watches of one client at a time.
const MOST_OF_ONE: usize = 64;

/// What a watch is told.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Happened {
    /// Tokens of this client were revoked, by a revocation of this target.
    Revoked(Target, Arc<[String]>),
    /// Something may be missing: what is held must be looked at anew.
    Resynchronise,
}

/// One thing that a watch is told, and the revision it happened at.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Told {
    /// The revision.
    pub revision: Revision,
    /// What happened.
    pub happened: Happened,
    /// When it was recorded, where it is news.
    pub since: Option<UnixMillis>,
}

/// One open watch.
pub struct Watch {
    told: mpsc::Receiver<Told>,
    /// Set where something did not fit into the queue. The sending end is the watchers' alone: theirs to drop.
    lagged: Arc<AtomicBool>,
    watchers: Arc<Watchers>,
    metrics: Metrics,
    /// INVARIANT (P7): a watch that nobody reads must not keep the root keys of a sealed vault in memory.
    follow: Weak<Follow>,
    client: ClientId,
    clock: Arc<dyn Clock>,
}

/// The end of a watch where the broker puts things in.
#[derive(Debug)]
struct Entry {
    tell: mpsc::Sender<Told>,
    lagged: Arc<AtomicBool>,
}

/// Every open watch of one replica, by client.
#[derive(Debug, Default)]
pub(super) struct Watchers {
    open: RwLock<HashMap<ClientId, Vec<Arc<Entry>>>>,
    /// Everything up to here has been put into the queues.
    told: AtomicU64,
}

impl Entry {
    fn put(&self, told: Told) -> bool {
        let taken = self.tell.try_send(told).is_ok();
        if !taken {
            self.lagged.store(true, Ordering::SeqCst);
        }
        taken
    }
}

impl Watchers {
    /// Tells of revocations until the vault ends; then every watch ends, too.
    pub(super) async fn run(self: Arc<Self>, follow: Arc<Follow>, clock: Arc<dyn Clock>) {
        let mut moved = follow.moved.subscribe();
        let mut told = moved.borrow_and_update().revision;
        self.told.store(told.0, Ordering::SeqCst);
        while let Some(Ok(())) = follow.ended.run_until_cancelled(moved.changed()).await {
            moved.mark_unchanged();
            let state = follow.vault.state();
            let news: Vec<_> = state.revocations_after(told).cloned().collect();
            for revocation in &news {
                let telling = self.tell(&follow, &state, revocation, clock.now().seconds());
                // INVARIANT (P7): the vault's end does not wait for a long list.
                if follow.ended.run_until_cancelled(telling).await.is_none() {
                    break;
                }
            }
            told = state.head().revision;
            // INVARIANT (INV-WATCH-2): said only once all of it is in the queues.
            self.told.store(told.0, Ordering::SeqCst);
        }
        self.end();
    }

    /// Ends every watch.
    pub(super) fn end(&self) {
        self.open.write().unwrap_or_else(PoisonError::into_inner).clear();
    }

    async fn tell(&self, follow: &Follow, state: &State, revocation: &Revocation, now_s: i64) {
        if self.open.read().unwrap_or_else(PoisonError::into_inner).is_empty() {
            return;
        }
        match tokens_by_client(follow, state, revocation, now_s).await {
            Ok(Some(by_client)) => {
                for (client, ids) in by_client {
                    self.put(follow, &client, revocation, &ids);
                }
                // A revoked client without a token is told, too: its watch ends.
                if let Target::Client(client) = &revocation.target {
                    self.put(follow, client, revocation, &[]);
                }
            }
            other => {
                if let Err(error) = other {
                    tracing::warn!(%error, "what was revoked can't be told one by one; watchers resynchronise");
                }
                let open = self.open.read().unwrap_or_else(PoisonError::into_inner);
                for entry in open.values().flatten() {
                    let since = Some(revocation.stamp.at);
                    entry.put(Told { revision: revocation.revision, happened: Happened::Resynchronise, since });
                }
            }
        }
    }

    fn put(&self, follow: &Follow, client: &ClientId, revocation: &Revocation, ids: &[String]) {
        let open = self.open.read().unwrap_or_else(PoisonError::into_inner);
        // INVARIANT (INV-WATCH-1): by the client's own name.
        let Some(entries) = open.get(client) else { return };
        for told in events(revocation, ids) {
            for entry in entries {
                let news = Told { since: Some(revocation.stamp.at), ..told.clone() };
                if !entry.put(news) {
                    follow.metrics.watchers_lagged.inc();
                }
            }
        }
    }
}

/// The events of one revocation for one client; at least one.
fn events(revocation: &Revocation, ids: &[String]) -> Vec<Told> {
    let one = |ids: &[String]| Told {
        revision: revocation.revision,
        happened: Happened::Revoked(revocation.target.clone(), ids.into()),
        since: None,
    };
    if ids.is_empty() { vec![one(ids)] } else { ids.chunks(MOST_IDS).map(one).collect() }
}

/// Live tokens under a revocation that were committed before it, by client; `None` where there are too many to tell.
async fn tokens_by_client(
    follow: &Follow,
    state: &State,
    revocation: &Revocation,
    now_s: i64,
) -> Result<Option<HashMap<ClientId, Vec<String>>>, StoreError> {
    let mut out: HashMap<ClientId, Vec<String>> = HashMap::new();
    let mut after = ExposureCursor::default();
    let under = under(state, &revocation.target);
    for _ in 0..MOST_PAGES {
        let page = follow.store.exposure(&under, revocation.revision, now_s, &after, PAGE).await?;
        for token in &page {
            let client = ClientId::parse(&token.client).map_err(|error| StoreError::Corrupt(error.to_string()))?;
            let ids = out.entry(client).or_default();
            if ids.last().is_none_or(|last| *last != token.id.as_str()) {
                ids.push(token.id.to_string());
            }
        }
        match page.last() {
            Some(last) if page.len() == PAGE as usize => after = ExposureCursor::at(last),
            _ => return Ok(Some(out)),
        }
    }
    Ok(None)
}

/// All live tokens of one client; `None` where there are too many to look through.
async fn tokens_of(follow: &Follow, client: &ClientId, now_s: i64) -> Result<Option<Vec<LiveToken>>, StoreError> {
    let (under, mut after, mut out) = (Under::HeldBy(client.clone()), ExposureCursor::default(), Vec::new());
    for _ in 0..MOST_PAGES {
        let page = follow.store.exposure(&under, Revision(u64::MAX), now_s, &after, PAGE).await?;
        let is_last = page.len() < PAGE as usize;
        after = page.last().map(ExposureCursor::at).unwrap_or_default();
        out.extend(page);
        if is_last {
            return Ok(Some(out));
        }
    }
    Ok(None)
}

impl Broker {
    /// Opens a watch of the caller's own tokens; `from` as the client names it, 0 for from now on.
    ///
    /// # Errors
    /// Where the vault is not open, the client is revoked, or has too many watches.
    pub async fn watch(&self, caller: &Caller, from: Revision) -> Result<Watch, BrokerError> {
        let open = self.open()?;
        let state = open.follow.catch_up().await?;
        let client = caller.client();
        if let Some(reason) = state.refuses(&caller.principal) {
            return Err(BrokerError::Refused(reason));
        }
        let (tell, told) = mpsc::channel(QUEUE);
        // A revision that this history does not have, or has anew since an operator accepted that it was lost.
        let lost = |accepted: &AcceptedHistory| from > accepted.database && from <= accepted.seen.revision;
        let unknown = from > state.head().revision || state.accepted_histories().iter().any(lost);
        let lagged = Arc::new(AtomicBool::new(unknown));
        let entry = Arc::new(Entry { tell, lagged: Arc::clone(&lagged) });
        {
            let mut all = open.watchers.open.write().unwrap_or_else(PoisonError::into_inner);
            let mine = all.entry(client.clone()).or_default();
            if mine.len() >= MOST_OF_ONE {
                return Err(BrokerError::TooManyWatches(MOST_OF_ONE));
            }
            mine.push(Arc::clone(&entry));
        }
        self.parts.metrics.watchers.inc();
        let watchers = Arc::clone(&open.watchers);
        let (metrics, follow) = (self.parts.metrics.clone(), Arc::downgrade(&open.follow));
        let clock = Arc::clone(&self.parts.clock);
        let watch = Watch { told, lagged, watchers, metrics, follow, client: client.clone(), clock };
        if from > Revision::default() {
            // Registered first, then looked back: nothing falls between; what is told twice does no harm.
            let now_s = self.parts.clock.now().seconds();
            let state = open.state();
            match tokens_of(&open.follow, client, now_s).await? {
                Some(tokens) => {
                    for revocation in state.revocations_after(from) {
                        let under = |token: &&LiveToken| {
                            token.revision < revocation.revision
                                && targets_of(token, &state).contains(&revocation.target)
                        };
                        let ids: Vec<_> = tokens.iter().filter(under).map(|token| token.id.to_string()).collect();
                        for told in events(revocation, &ids).into_iter().filter(|_| !ids.is_empty()) {
                            entry.put(told);
                        }
                    }
                }
                None => watch.lagged.store(true, Ordering::SeqCst),
            }
        }
        Ok(watch)
    }
}

impl Watch {
    /// Waits for the next thing to tell; `None` when the vault ends. Cancel safe.
    pub fn poll_next(&mut self, context: &mut std::task::Context<'_>) -> std::task::Poll<Option<Told>> {
        if self.lagged.load(Ordering::SeqCst) {
            // What waits is no longer worth telling: all of it is to be looked at anew.
            while self.told.try_recv().is_ok() {}
            self.lagged.store(false, Ordering::SeqCst);
            let revision = self.told_up_to();
            return std::task::Poll::Ready(Some(Told { revision, happened: Happened::Resynchronise, since: None }));
        }
        let told = self.told.poll_recv(context);
        if let std::task::Poll::Ready(Some(Told { since: Some(since), .. })) = &told {
            let ms = self.clock.now().0.saturating_sub(since.0).max(0);
            self.metrics.watch_seconds.observe(ms as f64 / 1000.0);
        }
        told
    }

    /// Everything of this client's that was revoked up to here is in the queue, or was told; read it before the queue.
    pub fn told_up_to(&self) -> Revision {
        Revision(self.watchers.told.load(Ordering::SeqCst))
    }

    /// Whether the client itself is revoked by now.
    pub fn is_client_revoked(&self) -> bool {
        self.follow.upgrade().is_none_or(|follow| follow.vault.state().is_client_revoked(&self.client))
    }
}

impl Drop for Watch {
    fn drop(&mut self) {
        self.metrics.watchers.dec();
        let mut open = self.watchers.open.write().unwrap_or_else(PoisonError::into_inner);
        if let Some(mine) = open.get_mut(&self.client) {
            mine.retain(|entry| !Arc::ptr_eq(&entry.lagged, &self.lagged));
            if mine.is_empty() {
                open.remove(&self.client);
            }
        }
    }
}
