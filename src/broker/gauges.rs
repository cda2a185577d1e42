//! Gauges: what is so now, for whoever watches. What the database knows is read every few seconds, never when a metric is
//! asked for, so that no scrape can hurt it.

use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::sync::{Arc, Mutex, PoisonError};

use super::fleet::STOPPED;
use super::{Broker, OpenVault, Phase};
use crate::clock::{Stopwatch, UnixMillis};
use crate::domain::apple::MOST_KEYS_PER_ACCOUNT;
use crate::domain::key::{Key, KeyState};
use crate::domain::state::State;
use crate::id::{ClientId, Head, PolicyName};
use crate::store::{LiveCount, Replica, StoreError};

/// A replica that has been quiet for longer is not counted.
const ALIVE_MS: i64 = 60_000;

/// Every phase, so that one that is over is shown as over.
const PHASES: [&str; 4] = ["NOT_INITIALISED", "SEALED", "REFUSING", "OPEN"];

const STATES: [KeyState; 3] = [KeyState::Active, KeyState::Suspended, KeyState::Revoked];

/// A client whose certificate is near its end counts for so long after it was seen, in seconds.
const SEEN_S: i64 = 600;

/// Most of them that are told apart.
const MOST_SEEN: usize = 10_000;

/// Clients whose certificate is near its end, and when they were last seen, in Unix seconds.
#[derive(Debug, Default)]
pub(super) struct NearExpiry(Mutex<HashMap<ClientId, i64>>);

/// Keys that were revoked and not confirmed at Apple when the vault was last open.
#[derive(Debug, Default)]
pub(super) struct Unconfirmed(Mutex<BTreeSet<String>>);

type Shown = BTreeMap<Vec<String>, f64>;

impl Broker {
    /// Shows what this replica knows by itself; called every second.
    pub fn show_present(&self) {
        let (phase, metrics) = (self.phase(), &self.parts.metrics);
        for name in PHASES {
            metrics.phase.with_label_values(&[name]).set(i64::from(name == phase.as_str()));
        }
        self.count_opened();
        let oldest = self.parts.clock.now().seconds().saturating_sub(SEEN_S);
        let mut seen = self.near_expiry.0.lock().unwrap_or_else(PoisonError::into_inner);
        seen.retain(|_, at| *at > oldest);
        metrics.near_expiry.set(count(seen.len()));
        drop(seen);
        let writing = self.if_open().and_then(|open| open.follow.writing.load_full());
        metrics.audit_lag.set(writing.map_or(0.0, |since| since.seconds()));
    }

    /// Notes that a client came with a certificate that is near its end.
    pub fn saw_near_expiry(&self, client: &ClientId) {
        let mut seen = self.near_expiry.0.lock().unwrap_or_else(PoisonError::into_inner);
        if seen.len() < MOST_SEEN || seen.contains_key(client) {
            seen.insert(client.clone(), self.parts.clock.now().seconds());
        }
    }

    /// Reads what the database knows; called every few seconds. Where it is away, what was read last stays.
    pub async fn read_gauges(&self) {
        let metrics = &self.parts.metrics;
        let (used, idle) = self.parts.store.connections();
        metrics.database_connections.with_label_values(&["used"]).set(i64::from(used));
        metrics.database_connections.with_label_values(&["idle"]).set(i64::from(idle));
        let watch = Stopwatch::start();
        let head = self.parts.store.head().await;
        metrics.database_ping.set(watch.seconds());
        // Of the smallest question alone: a database that takes long to count is not away.
        metrics.database_up.set(i64::from(head.is_ok()));
        let read = match head {
            Ok(head) => self.read_all(head).await,
            Err(error) => Err(error),
        };
        if let Err(error) = read {
            tracing::debug!(%error, "gauges can't be read");
        }
    }

    async fn read_all(&self, head: Head) -> Result<(), StoreError> {
        let (metrics, now) = (&self.parts.metrics, self.parts.clock.now());
        let replicas = self.parts.store.replicas().await?;
        let alive = |it: &&Replica| it.phase != STOPPED && now.0.saturating_sub(it.seen.0) < ALIVE_MS;
        let alive = replicas.iter().filter(alive);
        let succeeded = self.parts.store.canary_succeeded().await?;
        metrics.canary_last_success.set(succeeded.map_or(0, UnixMillis::seconds));
        metrics.replicas.set(count(alive.count()));
        metrics.canary_interval.set(i64::from(self.parts.canary_every_s));
        let state = self.if_open().map(|open| open.state());
        match &state {
            Some(state) => self.show_open(head, state).await?,
            None => self.show_closed(),
        }
        // The last, as it is what may take long.
        let live = self.parts.store.live_counts(now.seconds()).await?;
        self.show_exposure(&live, state.as_deref(), now.seconds());
        Ok(())
    }

    async fn show_open(&self, head: Head, state: &State) -> Result<(), StoreError> {
        let metrics = &self.parts.metrics;
        let behind = head.revision.0.saturating_sub(state.head().revision.0);
        metrics.control_lag.set(i64::try_from(behind).unwrap_or(i64::MAX));
        self.show_keys(state);
        let used = self.parts.store.quotas_used().await?;
        let ratio = |(policy, used): (String, u32)| {
            let name = PolicyName::parse(&policy).ok()?;
            let most = state.policies().get(&name)?.quota?.tokens_per_hour.filter(|most| *most > 0)?;
            Some((vec![policy], f64::from(used) / f64::from(most)))
        };
        metrics.quota_used.show(used.into_iter().filter_map(ratio).collect(), f64::max);
        Ok(())
    }

    fn show_keys(&self, state: &State) {
        let metrics = &self.parts.metrics;
        for wanted in STATES {
            let of_state = state.keys().values().filter(|key| key.state == wanted);
            metrics.keys.with_label_values(&[&wanted.to_string()]).set(count(of_state.count()));
        }
        let share = |used: usize| ratio(used, MOST_KEYS_PER_ACCOUNT);
        let accounts = state.accounts().keys();
        let accounts = accounts.map(|name| (vec![name.to_string()], share(state.keys_counted_at_apple(name))));
        metrics.account_keys.show(accounts.collect(), f64::max);
        let in_use = state.keys().values().filter(|key| key.state != KeyState::Revoked);
        let imported =
            in_use.map(|key| (vec![key.id.to_string(), key.account.to_string()], key.imported.at.0 as f64 / 1000.0));
        metrics.key_imported.show(imported.collect(), f64::min);
    }

    /// Of a vault that is not open nobody knows keys, quotas and the log.
    fn show_closed(&self) {
        let metrics = &self.parts.metrics;
        for state in STATES {
            metrics.keys.with_label_values(&[&state.to_string()]).set(0);
        }
        for gauge in [&metrics.account_keys, &metrics.key_imported, &metrics.quota_used] {
            gauge.show(Shown::new(), f64::max);
        }
        metrics.unconfirmed_at_apple.set(0);
        metrics.control_lag.set(0);
    }

    /// Tokens that are out die also while the vault is not open, those too under keys that were revoked when it last was.
    fn show_exposure(&self, live: &[LiveCount], state: Option<&State>, now_s: i64) {
        let metrics = &self.parts.metrics;
        let mut unconfirmed = self.unconfirmed.0.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(state) = state {
            let revoked = |it: &&Arc<Key>| it.state == KeyState::Revoked && it.confirmed_at_apple.is_none();
            *unconfirmed = state.keys().values().filter(revoked).map(|it| it.id.to_string()).collect();
        }
        let (mut groups, mut group_ends, mut keys, mut key_ends) =
            (Shown::new(), Shown::new(), Shown::new(), Shown::new());
        let mut revoked = 0_u64;
        for it in live {
            let (tokens, left) = (it.count as f64, it.last_expires_at.saturating_sub(now_s).max(0) as f64);
            for (name, count, end) in
                [(&it.app_group, &mut groups, &mut group_ends), (&it.key_id, &mut keys, &mut key_ends)]
            {
                *count.entry(vec![name.clone()]).or_default() += tokens;
                let end = end.entry(vec![name.clone()]).or_default();
                *end = left.max(*end);
            }
            if unconfirmed.contains(&it.key_id) {
                revoked = revoked.saturating_add(it.count);
            }
        }
        metrics.exposure.show(groups, |a, b| a + b);
        metrics.exposure_end.show(group_ends, f64::max);
        metrics.key_exposure.show(keys, |a, b| a + b);
        metrics.key_exposure_end.show(key_ends, f64::max);
        metrics.revoked_exposure.set(i64::try_from(revoked).unwrap_or(i64::MAX));
    }

    /// The open vault; nobody has asked for it.
    pub(super) fn if_open(&self) -> Option<Arc<OpenVault>> {
        if let Phase::Open(open) = &*self.phase() { Some(Arc::clone(open)) } else { None }
    }
}

fn count(number: usize) -> i64 {
    i64::try_from(number).unwrap_or(i64::MAX)
}

fn ratio(part: usize, whole: usize) -> f64 {
    part as f64 / whole as f64
}
