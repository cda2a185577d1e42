//! Opens policies that are for emergencies, for a stated time and reason, and closes them.
//!
//! The clock closes them by itself: a decision grants nothing past the stated end, and no token lives beyond it.
//!
//! # Invariants
//! - `INV-APPLY-1`: whoever opens a policy could have written it; closing is easier, as revoking is.

use super::error::BrokerError;
use super::ledger::Proposal;
use super::{Broker, Caller, OpenVault, require};
use crate::domain::change::Change;
use crate::domain::operator::Power;
use crate::domain::policy::Policy;
use crate::domain::principal::Principal;
use crate::domain::state::State;
use crate::id::{PolicyName, Revision};
use crate::vault::keyring::Keyring;

/// Shortest and longest time that a policy is held open, in seconds.
const SHORTEST_S: i64 = 60;
const LONGEST_S: i64 = 86_400;

impl Broker {
    /// Opens a break-glass policy; answers the end, in Unix seconds, and the revision.
    ///
    /// # Errors
    /// Where there is no such policy, it is not one for emergencies, or the caller could not have written it.
    pub async fn open_break_glass(
        &self,
        caller: &Caller,
        policy: PolicyName,
        for_s: i64,
        reason: String,
    ) -> Result<(i64, Revision), BrokerError> {
        if !(SHORTEST_S..=LONGEST_S).contains(&for_s) {
            let message = format!("must lie between {SHORTEST_S}s and {LONGEST_S}s");
            return Err(BrokerError::invalid("duration", message));
        }
        let open = self.open()?;
        let state = open.state();
        let power = power_over(&policy, &state, &caller.principal)?;
        let asker = self.asker(&state, caller, power)?;
        let until = self.parts.clock.now().seconds().saturating_add(for_s);
        let (principal, name) = (caller.principal.clone(), policy.clone());
        let propose = move |state: &State, _: &Keyring| {
            power_over(&name, state, &principal)?;
            if !known(&name, state)?.break_glass {
                return Err(BrokerError::NotBreakGlass(name.clone()));
            }
            let change = Change::BreakGlassOpened { policy: name.clone(), until, reason: reason.clone() };
            Ok(Proposal::of(change))
        };
        let changed = open.ledger.change(asker, Box::new(propose)).await?;
        tracing::warn!(policy = %policy, until, caller = %caller.client(), "a break-glass policy is open");
        self.count_opened();
        Ok((until, changed.state.head().revision))
    }

    /// Closes a break-glass policy before its time; one that is closed stays so.
    ///
    /// # Errors
    /// Where there is no such policy, or the caller may neither write it nor revoke.
    pub async fn close_break_glass(
        &self,
        caller: &Caller,
        policy: PolicyName,
        reason: String,
    ) -> Result<Revision, BrokerError> {
        let open = self.open()?;
        let state = open.state();
        let asker = self.asker(&state, caller, power_to_close(&policy, &state, &caller.principal)?)?;
        let (principal, name) = (caller.principal.clone(), policy.clone());
        let propose = move |state: &State, _: &Keyring| {
            power_to_close(&name, state, &principal)?;
            known(&name, state)?;
            let change = Change::BreakGlassClosed { policy: name.clone(), reason: reason.clone() };
            Ok(state.opened(&name).map_or_else(Proposal::default, |_| Proposal::of(change)))
        };
        let changed = open.ledger.change(asker, Box::new(propose)).await?;
        tracing::warn!(policy = %policy, caller = %caller.client(), "a break-glass policy is closed");
        self.count_opened();
        Ok(changed.state.head().revision)
    }

    /// How many policies are held open now, for whoever watches.
    pub(super) fn count_opened(&self) {
        let now_s = self.parts.clock.now().seconds();
        let opened = |open: &OpenVault| open.state().all_opened().values().filter(|it| it.until > now_s).count();
        // A vault that is not open grants nothing under any policy.
        let count = self.if_open().map_or(0, |open| opened(&open));
        self.parts.metrics.break_glass_open.set(i64::try_from(count).unwrap_or(i64::MAX));
    }
}

fn known<'a>(name: &PolicyName, state: &'a State) -> Result<&'a Policy, BrokerError> {
    let absent = || BrokerError::NotFound { kind: "policy", name: name.to_string() };
    state.policies().get(name).map(AsRef::as_ref).ok_or_else(absent)
}

/// INVARIANT (INV-APPLY-1)
fn power_over(name: &PolicyName, state: &State, caller: &Principal) -> Result<Power, BrokerError> {
    if require(state, caller, Power::Administer).is_ok() {
        return Ok(Power::Administer);
    }
    require(state, caller, Power::AuthorPolicies)?;
    let group = &known(name, state)?.app_group;
    if state.operators_of(caller).any(|operator| operator.may_author(group)) {
        return Ok(Power::AuthorPolicies);
    }
    Err(BrokerError::OutsideAppGroup(group.to_string()))
}

fn power_to_close(name: &PolicyName, state: &State, caller: &Principal) -> Result<Power, BrokerError> {
    if require(state, caller, Power::Revoke).is_ok() {
        return Ok(Power::Revoke);
    }
    power_over(name, state, caller)
}
