//! Applies a document: accounts, app groups, policies, operators.
//!
//! Steps: plan it on the newest state; check that the caller may make each step of the plan; append the one change that
//! makes them all. A plan that is only asked for takes the first two steps.

use std::sync::Arc;

use super::error::BrokerError;
use super::ledger::Proposal;
use super::{Broker, Caller, require};
use crate::domain::change::ObjectName;
use crate::domain::document::Desired;
use crate::domain::operator::Power;
use crate::domain::plan::{Action, Plan, Step, Unnamed, plan};
use crate::domain::state::State;
use crate::id::{ClientId, Revision};
use crate::vault::keyring::Keyring;

/// What applying did, or would do.
#[derive(Debug, Clone)]
pub struct Applied {
    /// What happens to each thing.
    pub steps: Vec<Step>,
    /// The revision it was planned on or, where something was applied, the one it made.
    pub revision: Revision,
}

impl Broker {
    /// Says what applying would do.
    ///
    /// # Errors
    /// With everything in the document that can't be.
    pub fn plan(&self, caller: &Caller, desired: &Desired, unnamed: Unnamed) -> Result<Applied, BrokerError> {
        let state = self.open()?.state();
        let plan = plan_for(desired, unnamed, &state, &caller.client)?;
        Ok(Applied { steps: plan.steps, revision: state.head().revision })
    }

    /// Applies a document, all of it or nothing.
    ///
    /// # Errors
    /// With everything in the document that can't be.
    pub async fn apply(&self, caller: &Caller, desired: Desired, unnamed: Unnamed) -> Result<Applied, BrokerError> {
        let open = self.open()?;
        let state = open.state();
        let first = plan_for(&desired, unnamed, &state, &caller.client)?;
        let power = power_for(&first, &state, &caller.client);
        let asker = self.asker(&state, caller, power)?;
        let client = caller.client.clone();
        let steps = Arc::new(std::sync::Mutex::new(first.steps));
        let planned = Arc::clone(&steps);
        let propose = move |state: &State, _: &Keyring| {
            // Planned again where the head has moved: what is applied is what was checked on this very state.
            let plan = plan_for(&desired, unnamed, state, &client)?;
            let detail = Some(detail(&plan.steps));
            *planned.lock().unwrap_or_else(std::sync::PoisonError::into_inner) = plan.steps;
            Ok(Proposal { change: plan.change, detail, ..Proposal::default() })
        };
        let changed = open.ledger.change(asker, Box::new(propose)).await?;
        let steps = std::mem::take(&mut *steps.lock().unwrap_or_else(std::sync::PoisonError::into_inner));
        Ok(Applied { steps, revision: changed.state.head().revision })
    }
}

/// What the audit says: each step that changes something, and how.
fn detail(steps: &[Step]) -> String {
    const MOST: usize = 4000;
    let one = |step: &Step| {
        let verb = step.action.as_str().to_ascii_lowercase();
        let changes = if step.changes.is_empty() { String::new() } else { format!(" ({})", step.changes.join("; ")) };
        format!("{verb} {}{changes}", step.object)
    };
    let all = steps.iter().filter(|step| step.action != Action::Keep).map(one).collect::<Vec<_>>().join(", ");
    // The control log has all of it; a row need not.
    if all.len() <= MOST { all } else { all.chars().take(MOST).chain("…".chars()).collect() }
}

/// Plans, and checks that the caller may make each step.
fn plan_for(desired: &Desired, unnamed: Unnamed, state: &State, client: &ClientId) -> Result<Plan, BrokerError> {
    let writes =
        require(state, client, Power::Administer).is_ok() || require(state, client, Power::AuthorPolicies).is_ok();
    if !writes {
        // Nobody without a power learns what is there.
        return Err(BrokerError::LacksPower(Power::AuthorPolicies));
    }
    let plan = plan(desired, unnamed, state).map_err(BrokerError::Invalid)?;
    for step in plan.steps.iter().filter(|step| step.action != Action::Keep) {
        match &step.object {
            ObjectName::Account(_) | ObjectName::AppGroup(_) | ObjectName::Operator(_) => {
                require(state, client, Power::Administer)?;
            }
            ObjectName::Policy(_) => may_author(state, client, step)?,
        }
    }
    Ok(plan)
}

fn may_author(state: &State, client: &ClientId, step: &Step) -> Result<(), BrokerError> {
    if state.is_client_revoked(client) {
        return Err(BrokerError::LacksPower(Power::AuthorPolicies));
    }
    for group in &step.authored_groups {
        if !state.operators_of(client).any(|operator| operator.may_author(group)) {
            return match require(state, client, Power::AuthorPolicies) {
                Ok(_) => Err(BrokerError::OutsideAppGroup(group.to_string())),
                Err(error) => Err(error),
            };
        }
    }
    Ok(())
}

/// The power under whose operator the change is recorded: each step has been checked already.
fn power_for(plan: &Plan, state: &State, client: &ClientId) -> Power {
    let policy = |step: &Step| matches!(step.object, ObjectName::Policy(_)) || step.action == Action::Keep;
    let authored = plan.steps.iter().all(policy) && require(state, client, Power::AuthorPolicies).is_ok();
    if authored { Power::AuthorPolicies } else { Power::Administer }
}
