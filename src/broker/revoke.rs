//! Revokes, tells what is exposed, and reinstates.
//!
//! Steps of a revoke: append the record (the fence: from then on no token under the target is committed); for a key,
//! make sure its bytes are in no file; then read the exposure, as tokens with a lower revision that are still alive.
//! Reading after the commit keeps the lock short, and misses nothing: no row with a lower revision can come any more.
//!
//! # Invariants
//! - P5: after the answer, no client receives a token under the target whose id is not in its exposure.
//! - P6: revoking a key deletes its bytes in the same transaction.

use std::collections::BTreeMap;

use super::error::BrokerError;
use super::keys::not_found;
use super::ledger::Proposal;
use super::{Broker, Caller};
use crate::domain::audit::LiveToken;
use crate::domain::change::Change;
use crate::domain::key::{KeyKind, KeyState};
use crate::domain::operator::Power;
use crate::domain::state::State;
use crate::domain::target::Target;
use crate::id::Revision;
use crate::store::{ExposureCursor, ExposureGroup, ExposureTotals, KeyBytes, Under};
use crate::vault::keyring::Keyring;

/// Most tokens that one answer lists.
const MOST_LISTED: u32 = 1000;

/// Most counts of one property in an answer.
const MOST_COUNTED: usize = 100;

/// Tokens alive under a target.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Exposure {
    /// Tokens committed before this revision are counted.
    pub revision: Revision,
    /// How many, and when the last one dies; nothing on a page after the first.
    pub totals: ExposureTotals,
    /// The first of them, first to die first.
    pub tokens: Vec<LiveToken>,
    /// Whether there are more of them after these.
    pub more: bool,
    /// All of them by client, policy and key, largest first.
    pub counts: Vec<Count>,
}

/// What live tokens are counted by.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum CountedBy {
    /// Who got them.
    Client,
    /// The policy that granted them.
    Policy,
    /// The key that signed them.
    Key,
}

impl CountedBy {
    const ALL: [Self; 3] = [Self::Client, Self::Policy, Self::Key];

    /// The name, as answers spell it.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Client => "client",
            Self::Policy => "policy",
            Self::Key => "key",
        }
    }
}

/// How many live tokens share one property.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Count {
    /// Which property.
    pub by: CountedBy,
    /// Its value.
    pub name: String,
    /// How many.
    pub count: u64,
}

/// A revoke that took effect.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Revoked {
    /// What is still alive; its revision is the revoke's.
    pub exposure: Exposure,
    /// What is left to do at Apple, for a key.
    pub left_at_apple: Option<String>,
}

impl Broker {
    /// Revokes, or finds it revoked already.
    ///
    /// # Errors
    /// Where there is no such key, or it can't be recorded.
    pub async fn revoke(&self, caller: &Caller, target: Target, reason: String) -> Result<Revoked, BrokerError> {
        let what = target.clone();
        // A revoke that is repeated finds it revoked, also once the token is dead.
        let known = self.state_for(caller, Power::Revoke)?.is_revoked(&target);
        let dies_at = if known { None } else { self.death_of(caller, &target).await? };
        let propose = move |state: &State, _: &Keyring| {
            let mut proposal = Proposal::default();
            if state.is_revoked(&what) {
                return Ok(proposal);
            }
            let last = match &what {
                Target::Client(client) => !state.has_administrator_beside(Some(client)),
                Target::Issuer(issuer) => !state.has_administrator_without(issuer),
                _ => false,
            };
            if last {
                // INVARIANT (INV-PLAN-2): nobody could ever reinstate it.
                return Err(BrokerError::LastAdministrator(what.to_string()));
            }
            if let Target::Key(id) = &what {
                state.keys().get(id).ok_or_else(|| not_found(id))?;
                proposal.keys.push(KeyBytes::Destroy(id.clone()));
            }
            proposal.change = Some(Change::Revoked { target: what.clone(), reason: reason.clone(), dies_at });
            Ok(proposal)
        };
        let changed = self.change(caller, Power::Revoke, Box::new(propose)).await?;
        let lost = || BrokerError::Internal("a revocation is not in the state after it".to_owned());
        let revision = changed.state.revocation(&target).ok_or_else(lost)?.revision;
        // INVARIANT (P5): read after the commit, up to the revision that the commit made.
        let under = under(&changed.state, &target);
        let exposure = self.read_exposure(&under, revision, &ExposureCursor::default()).await?;
        if matches!(target, Target::Key(_)) {
            // INVARIANT (P6): also when a repeated revoke finds the record there already.
            self.scrub().await?;
        }
        Ok(Revoked { exposure, left_at_apple: left_at_apple(&changed.state, &target) })
    }

    /// Tells what is alive under a target, or in the whole vault, without revoking; or, where it is revoked, what is still
    /// alive.
    ///
    /// # Errors
    /// Where the caller lacks the power, or there is no such key or live token.
    pub async fn exposure(
        &self,
        caller: &Caller,
        target: Option<&Target>,
        after: &ExposureCursor,
    ) -> Result<Exposure, BrokerError> {
        self.state_for(caller, Power::Revoke)?;
        let state = self.open()?.follow.catch_up().await?;
        match target {
            Some(Target::Key(id)) => drop(state.keys().get(id).ok_or_else(|| not_found(id))?),
            Some(token @ Target::Token(_)) => drop(self.death_of(caller, token).await?),
            _ => {}
        }
        let under = target.map_or(Under::Everything, |target| under(&state, target));
        self.read_exposure(&under, state.head().revision.next(), after).await
    }

    /// When a token dies that is to be revoked.
    async fn death_of(&self, caller: &Caller, target: &Target) -> Result<Option<i64>, BrokerError> {
        let Target::Token(id) = target else { return Ok(None) };
        self.state_for(caller, Power::Revoke)?;
        let now_s = self.parts.clock.now().seconds();
        let under = Under::Token(id.clone());
        let totals = self.parts.store.exposure_totals(&under, Revision(u64::MAX), now_s).await?;
        let none = || BrokerError::NotFound { kind: "live token", name: id.to_string() };
        totals.last_expires_at.ok_or_else(none).map(Some)
    }

    /// Lifts a revocation. Tokens issued before it stay revoked.
    ///
    /// # Errors
    /// For a key, or where nothing is revoked.
    pub async fn reinstate(&self, caller: &Caller, target: Target, reason: String) -> Result<Revision, BrokerError> {
        if matches!(target, Target::Key(_)) {
            // INVARIANT (P6)
            return Err(BrokerError::KeyIsGone);
        }
        if matches!(target, Target::Token(_)) {
            return Err(BrokerError::TokenStaysRevoked);
        }
        let propose = move |state: &State, _: &Keyring| {
            if !state.is_revoked(&target) {
                return Err(BrokerError::NotRevoked(target.to_string()));
            }
            Ok(Proposal::of(Change::Reinstated { target: target.clone(), reason: reason.clone() }))
        };
        let changed = self.change(caller, Power::Administer, Box::new(propose)).await?;
        Ok(changed.state.head().revision)
    }

    async fn read_exposure(
        &self,
        under: &Under,
        revision: Revision,
        after: &ExposureCursor,
    ) -> Result<Exposure, BrokerError> {
        let now_s = self.parts.clock.now().seconds();
        let store = &self.parts.store;
        let is_first = *after == ExposureCursor::default();
        // One more than is listed tells whether all of them are at hand.
        let mut tokens = store.exposure(under, revision, now_s, after, MOST_LISTED.saturating_add(1)).await?;
        let more = tokens.len() > MOST_LISTED as usize;
        // Sums are told once: those who go on with a next page have them.
        let groups = match (is_first, more) {
            (true, true) => store.exposure_groups(under, revision, now_s).await?,
            (true, false) => tokens.iter().map(group_of).collect(),
            (false, _) => Vec::new(),
        };
        tokens.truncate(MOST_LISTED as usize);
        let totals = ExposureTotals {
            count: groups.iter().map(|group| group.count).sum(),
            last_expires_at: groups.iter().map(|group| group.last_expires_at).max(),
        };
        let counts = CountedBy::ALL.iter().flat_map(|by| counted(&groups, *by)).collect();
        Ok(Exposure { revision, totals, tokens, more, counts })
    }
}

/// Which live tokens are under a target: for an account those of all keys it ever had.
pub(super) fn under(state: &State, target: &Target) -> Under {
    match target {
        Target::Token(id) => Under::Token(id.clone()),
        Target::Client(id) => Under::Client(id.clone()),
        Target::Policy(name) => Under::Policy(name.clone()),
        Target::AppGroup(name) => Under::AppGroup(name.clone()),
        Target::Key(id) => Under::Keys(vec![id.clone()]),
        Target::Account(name) => {
            let theirs = state.keys().values().filter(|key| key.account == *name);
            Under::Keys(theirs.map(|key| key.id.clone()).collect())
        }
        Target::Issuer(name) => Under::Issuer(name.clone()),
    }
}

fn group_of(token: &LiveToken) -> ExposureGroup {
    ExposureGroup {
        client: token.client.clone(),
        policy: token.policy.clone(),
        key_id: token.key_id.clone(),
        count: 1,
        last_expires_at: token.expires_at,
    }
}

fn counted(groups: &[ExposureGroup], by: CountedBy) -> Vec<Count> {
    let mut counts: BTreeMap<&str, u64> = BTreeMap::new();
    for group in groups {
        let name = match by {
            CountedBy::Client => &group.client,
            CountedBy::Policy => &group.policy,
            CountedBy::Key => &group.key_id,
        };
        let count = counts.entry(name).or_default();
        *count = count.saturating_add(group.count);
    }
    let mut out: Vec<Count> =
        counts.into_iter().map(|(name, count)| Count { by, name: name.to_owned(), count }).collect();
    out.sort_by_key(|it| std::cmp::Reverse(it.count));
    out.truncate(MOST_COUNTED);
    out
}

fn left_at_apple(state: &State, target: &Target) -> Option<String> {
    match target {
        Target::Key(id) => {
            let key = state
                .keys()
                .get(id)
                .filter(|key| key.state == KeyState::Revoked && key.confirmed_at_apple.is_none())?;
            let place = match &key.kind {
                KeyKind::Team => "App Store Connect, Users and Access, Integrations, Team Keys".to_owned(),
                KeyKind::Individual { user, .. } => {
                    format!("App Store Connect, the profile of {user}, Individual API Key")
                }
            };
            Some(format!(
                "revoke key {id} at Apple too ({place}): this broker signs nothing with it any more, but only Apple can \
                 end tokens that are out and copies of the .p8 elsewhere; then run `p8broker key \
                 confirm-revoked-at-apple {id}`"
            ))
        }
        Target::Account(name) => {
            let theirs = state.keys().values().filter(|key| key.account == *name && key.confirmed_at_apple.is_none());
            let ids: Vec<String> = theirs.map(|key| key.id.to_string()).collect();
            (!ids.is_empty()).then(|| {
                format!(
                    "nothing is issued for account {name} any more, but Apple still takes its keys ({}): where copies of a \
                     .p8 may be elsewhere, revoke that key here (`p8broker revoke key`) and at Apple",
                    ids.join(", ")
                )
            })
        }
        _ => None,
    }
}
