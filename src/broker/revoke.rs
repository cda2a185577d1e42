//! Revokes, tells what is exposed, and reinstates.
//!
//! Steps of a revoke: append the record (the fence: from then on no token under the target is committed); for a key,
//! make sure its bytes are in no file; then read the exposure, as tokens with a lower revision that are still alive.
//! Reading after the commit keeps the lock short, and misses nothing: no row with a lower revision can come any more.
//!
//! # Invariants
//! - P5: after the answer, no client receives a token under the target whose id is not in its exposure.
//! - P6: revoking a key deletes its bytes in the same transaction.

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
use crate::store::{ExposureCursor, ExposureTotals, KeyBytes};
use crate::vault::keyring::Keyring;

/// Most tokens that one answer lists.
pub const MOST_LISTED: u32 = 1000;

/// Tokens alive under a target.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Exposure {
    /// Tokens committed before this revision are counted.
    pub revision: Revision,
    /// How many, and when the last one dies.
    pub totals: ExposureTotals,
    /// The first of them, first to die first.
    pub tokens: Vec<LiveToken>,
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
        let propose = move |state: &State, _: &Keyring| {
            let mut proposal = Proposal::default();
            if state.is_revoked(&what) {
                return Ok(proposal);
            }
            if let Target::Client(client) = &what
                && !state.has_administrator_beside(Some(client))
            {
                // INVARIANT (INV-PLAN-2): nobody could ever reinstate it.
                return Err(BrokerError::LastAdministrator(client.to_string()));
            }
            if let Target::Key(id) = &what {
                state.keys().get(id).ok_or_else(|| not_found(id))?;
                proposal.keys.push(KeyBytes::Destroy(id.clone()));
            }
            proposal.change = Some(Change::Revoked { target: what.clone(), reason: reason.clone() });
            Ok(proposal)
        };
        let changed = self.change(caller, Power::Revoke, Box::new(propose)).await?;
        let lost = || BrokerError::Internal("a revocation is not in the state after it".to_owned());
        let revision = changed.state.revocation(&target).ok_or_else(lost)?.revision;
        // INVARIANT (P5): read after the commit, up to the revision that the commit made.
        let exposure = self.read_exposure(&target, revision, &ExposureCursor::default()).await?;
        if matches!(target, Target::Key(_)) {
            // INVARIANT (P6): also when a repeated revoke finds the record there already.
            self.scrub().await?;
        }
        Ok(Revoked { exposure, left_at_apple: left_at_apple(&changed.state, &target) })
    }

    /// Tells what is alive under a target, without revoking; or, where it is revoked, what is still alive.
    ///
    /// # Errors
    /// Where the caller lacks the power, or there is no such key.
    pub async fn exposure(
        &self,
        caller: &Caller,
        target: &Target,
        after: &ExposureCursor,
    ) -> Result<Exposure, BrokerError> {
        let state = self.state_for(caller, Power::Revoke)?;
        if let Target::Key(id) = target {
            state.keys().get(id).ok_or_else(|| not_found(id))?;
        }
        self.read_exposure(target, state.head().revision.next(), after).await
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
        target: &Target,
        revision: Revision,
        after: &ExposureCursor,
    ) -> Result<Exposure, BrokerError> {
        let now_s = self.parts.clock.now().seconds();
        let totals = self.parts.store.exposure_totals(target, revision, now_s).await?;
        let tokens = self.parts.store.exposure(target, revision, now_s, after, MOST_LISTED).await?;
        Ok(Exposure { revision, totals, tokens })
    }
}

fn left_at_apple(state: &State, target: &Target) -> Option<String> {
    let Target::Key(id) = target else { return None };
    let key = state.keys().get(id)?;
    if key.state != KeyState::Revoked || key.confirmed_at_apple.is_some() {
        return None;
    }
    let place = match &key.kind {
        KeyKind::Team => "App Store Connect, Users and Access, Integrations, Team Keys".to_owned(),
        KeyKind::Individual { user, .. } => format!("App Store Connect, the profile of {user}, Individual API Key"),
    };
    Some(format!(
        "revoke key {id} at Apple too ({place}): this broker signs nothing with it any more, but only Apple can end tokens \
         that are out and copies of the .p8 elsewhere; then run `p8broker key confirm-revoked-at-apple {id}`"
    ))
}
