//! Counts what somebody should notice of tokens that were handed out: those under opened break-glass policies, and those
//! that policies and ceilings in shadow mode would have refused.
//!
//! Counts are kept here for some seconds and then added to the database's, so that all replicas are in one report. They
//! are information: a replica that is killed loses its last seconds, and nothing is decided by them.

use std::collections::BTreeMap;
use std::sync::{Mutex, PoisonError};

use super::Broker;
use super::error::BrokerError;
use crate::clock::UnixMillis;
use crate::domain::decide::{Decision, TokenRequest};
use crate::store::{ShadowCount, ShadowKey};

/// Most different counts between two flushes; beyond them only the metric counts.
const MOST_KEPT: usize = 10_000;

/// How long a count is kept after it was last raised, in milliseconds: 30 days.
const FORGET_MS: i64 = 30 * 24 * 3600 * 1000;

/// Most counts of one report.
const MOST_REPORTED: u32 = 1000;

/// Counts since the last flush.
#[derive(Debug, Default)]
pub(super) struct Shadows(Mutex<BTreeMap<ShadowKey, (u64, UnixMillis)>>);

impl Broker {
    /// Counts a token that leaves.
    pub(super) fn count_watched(&self, decision: &Decision, request: &TokenRequest) {
        if let Some(policy) = &decision.break_glass {
            self.parts.metrics.break_glass_tokens.with_label_values(&[policy.as_str()]).inc();
            tracing::warn!(%policy, client = %request.principal.client, "a token was handed out under a break-glass policy");
        }
        if decision.shadows.is_empty() {
            return;
        }
        let mut kept = self.shadows.0.lock().unwrap_or_else(PoisonError::into_inner);
        for shadow in &decision.shadows {
            let labels = [shadow.kind, shadow.name.as_str(), shadow.reason.as_str()];
            self.parts.metrics.shadow_refusals.with_label_values(&labels).inc();
            let key = ShadowKey {
                kind: shadow.kind.to_owned(),
                name: shadow.name.clone(),
                reason: shadow.reason.as_str().to_owned(),
                client: request.principal.client.to_string(),
                app_group: request.app_group.to_string(),
            };
            if kept.len() < MOST_KEPT || kept.contains_key(&key) {
                let (count, last) = kept.entry(key).or_default();
                *count = count.saturating_add(1);
                *last = decision.at;
            }
        }
    }

    /// Adds what was counted here to the database's counts; called every few seconds.
    pub async fn flush_shadows(&self) {
        let counts = std::mem::take(&mut *self.shadows.0.lock().unwrap_or_else(PoisonError::into_inner));
        if counts.is_empty() {
            return;
        }
        // By key, so that replicas that add to the same counts wait for each other in one order.
        let counts: Vec<ShadowCount> =
            counts.into_iter().map(|(key, (count, last))| ShadowCount { key, count, last }).collect();
        let forget = UnixMillis(self.parts.clock.now().0.saturating_sub(FORGET_MS));
        if let Err(error) = self.parts.store.add_shadows(&counts, forget).await {
            tracing::debug!(%error, "counts of shadow mode were not added");
        }
    }

    /// What policies and ceilings that are in shadow mode now would have refused, most often first.
    ///
    /// # Errors
    /// Where the database is away.
    pub async fn shadows(&self) -> Result<Vec<ShadowCount>, BrokerError> {
        let open = self.open()?;
        self.flush_shadows().await;
        let state = open.state();
        let is_shadow = |key: &ShadowKey| match key.kind.as_str() {
            "policy" => state.policies().values().any(|it| it.shadow && it.name.as_str() == key.name),
            _ => state.ceilings().values().any(|it| it.shadow && it.name.as_str() == key.name),
        };
        let mut all = self.parts.store.shadows(MOST_REPORTED).await?;
        all.retain(|count| is_shadow(&count.key));
        Ok(all)
    }
}
