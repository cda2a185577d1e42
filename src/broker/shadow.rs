//! Counts what somebody should notice of tokens that were handed out: those under opened break-glass policies, and those
//! that policies and ceilings in shadow mode would have refused.
//!
//! Counts are kept here for some seconds and then added to the database's, so that all replicas are in one report. They
//! are information: a replica that is killed loses its last seconds, and nothing is decided by them. A policy or ceiling
//! that changes is counted anew, but for the last seconds of other replicas.

use std::collections::BTreeMap;
use std::sync::{Mutex, MutexGuard, PoisonError};

use super::Broker;
use super::error::BrokerError;
use crate::clock::UnixMillis;
use crate::domain::change::ObjectName;
use crate::domain::decide::{Decision, TokenRequest};
use crate::domain::plan::{Action, Step};
use crate::store::{ShadowCount, ShadowKey};

/// Most different counts between two flushes; beyond them only the metric counts.
const MOST_KEPT: usize = 10_000;

/// How long a count is kept after it was last raised, in milliseconds: 30 days.
const FORGET_MS: i64 = 30 * 24 * 3600 * 1000;

/// Most counts of one report.
const MOST_REPORTED: u32 = 1000;

/// Counts since the last flush.
#[derive(Debug, Default)]
pub(super) struct Shadows(Mutex<Kept>);

type Kept = BTreeMap<ShadowKey, (u64, UnixMillis)>;

impl Broker {
    /// Counts a token that leaves.
    pub(super) fn count_watched(&self, decision: &Decision, request: &TokenRequest) {
        if let Some(policy) = &decision.break_glass {
            self.parts.metrics.break_glass_tokens.inc(policy.as_str(), []);
            tracing::warn!(%policy, client = %request.principal.client, "a token was handed out under a break-glass policy");
        }
        if decision.shadows.is_empty() {
            return;
        }
        let mut kept = self.kept();
        for shadow in &decision.shadows {
            self.parts.metrics.shadow_refusals.inc(&shadow.name, [shadow.kind, shadow.reason.as_str()]);
            let key = ShadowKey {
                kind: shadow.kind.to_owned(),
                name: shadow.name.clone(),
                reason: shadow.reason.as_str().to_owned(),
                client: request.principal.client.to_string(),
                app_group: request.app_group.to_string(),
            };
            add(&mut kept, key, 1, decision.at);
        }
    }

    /// Adds what was counted here to the database's counts; called every few seconds.
    pub async fn flush_shadows(&self) {
        let counts = std::mem::take(&mut *self.kept());
        if counts.is_empty() {
            return;
        }
        // By key, so that replicas that add to the same counts wait for each other in one order.
        let counts: Vec<ShadowCount> =
            counts.into_iter().map(|(key, (count, last))| ShadowCount { key, count, last }).collect();
        let forget = UnixMillis(self.parts.clock.now().0.saturating_sub(FORGET_MS));
        if let Err(error) = self.parts.store.add_shadows(&counts, forget).await {
            tracing::debug!(%error, "counts of shadow mode wait for the database");
            let mut kept = self.kept();
            for ShadowCount { key, count, last } in counts {
                add(&mut kept, key, count, last);
            }
        }
    }

    /// What steps change is counted anew.
    pub(super) async fn forget_shadows_of(&self, steps: &[Step]) {
        let counted = |it: &&Step| matches!(it.object, ObjectName::Policy(_) | ObjectName::Ceiling(_));
        let changed = steps.iter().filter(|it| matches!(it.action, Action::Update | Action::Remove)).filter(counted);
        let of: Vec<String> = changed.map(|it| it.object.to_string()).collect();
        if of.is_empty() {
            return;
        }
        self.kept().retain(|key, _| !of.contains(&format!("{} {}", key.kind, key.name)));
        if let Err(error) = self.parts.store.forget_shadows(&of).await {
            tracing::warn!(%error, "counts of shadow mode were not forgotten, of what was changed");
        }
    }

    fn kept(&self) -> MutexGuard<'_, Kept> {
        self.shadows.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// What policies and ceilings that are in shadow mode now would have refused, most often first; and whether there is
    /// more of it.
    ///
    /// # Errors
    /// Where the database is away.
    pub async fn shadows(&self) -> Result<(Vec<ShadowCount>, bool), BrokerError> {
        let open = self.open()?;
        self.flush_shadows().await;
        let state = open.state();
        let policies = state.policies().values().filter(|it| it.shadow).map(|it| ObjectName::Policy(it.name.clone()));
        let ceilings = state.ceilings().values().filter(|it| it.shadow).map(|it| ObjectName::Ceiling(it.name.clone()));
        let of: Vec<String> = policies.chain(ceilings).map(|it| it.to_string()).collect();
        let mut counts = self.parts.store.shadows(&of, MOST_REPORTED.saturating_add(1)).await?;
        let most = usize::try_from(MOST_REPORTED).unwrap_or(usize::MAX);
        let has_more = counts.len() > most;
        counts.truncate(most);
        Ok((counts, has_more))
    }
}

/// Adds to a count, unless it is one too many.
fn add(kept: &mut Kept, key: ShadowKey, count: u64, last: UnixMillis) {
    if kept.len() < MOST_KEPT || kept.contains_key(&key) {
        let (known, newest) = kept.entry(key).or_default();
        *known = known.saturating_add(count);
        *newest = last.max(*newest);
    }
}
