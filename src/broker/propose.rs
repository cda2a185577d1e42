//! Two operators for one change: one proposes it, another approves it.
//!
//! Steps to propose: plan as for applying; check that the proposer could make each step; append the proposal, which holds
//! everything that it puts and removes. Steps to approve: find it on the newest state; refuse one's own, and one that the
//! state has moved under; check that proposer and approver may each make every step; append the approval, which makes it.
//!
//! # Invariants
//! - `INV-PROPOSAL-1`: what is approved is what was reviewed, on what it was reviewed on.
//! - `INV-PROPOSAL-2`: nobody approves their own proposal: neither the same caller nor the same operator.

use std::sync::{Arc, Mutex, PoisonError};

use super::apply::{Wanted, detail, may_make, plan_for, power_for, unmoved};
use super::error::BrokerError;
use super::ledger;
use super::record::random_bits;
use super::{Applied, Broker, Caller};
use crate::domain::change::Change;
use crate::domain::key::Stamp;
use crate::domain::operator::Power;
use crate::domain::plan::{Step, steps_of};
use crate::domain::proposal::{self, Proposal};
use crate::domain::state::State;
use crate::id::{ProposalId, Revision};
use crate::vault::keyring::Keyring;

/// A proposal, and what it would do.
#[derive(Debug, Clone)]
pub struct Proposed {
    /// The proposal.
    pub proposal: Arc<Proposal>,
    /// What it does to the state it was planned on.
    pub steps: Vec<Step>,
    /// What moved since: then it can't be approved any more.
    pub moved: Vec<String>,
    /// The revision it made, or was read at.
    pub revision: Revision,
}

/// What approving did.
pub type Approved = Applied;

impl Broker {
    /// Proposes a document.
    ///
    /// # Errors
    /// As for applying, and where there is nothing to do.
    pub async fn propose(&self, caller: &Caller, wanted: Wanted, reason: String) -> Result<Proposed, BrokerError> {
        let open = self.open()?;
        let state = open.state();
        let first = plan_for(&wanted, &state, &caller.principal)?;
        let power = power_for(&first.steps, &state, &caller.principal);
        let asker = self.asker(&state, caller, power)?;
        let id = ProposalId::from_random(random_bits()?);
        let (principal, by, name, clock) =
            (caller.principal.clone(), asker.actor.name.clone(), id.clone(), Arc::clone(&self.parts.clock));
        let propose = move |state: &State, _: &Keyring| {
            let plan = plan_for(&wanted, state, &principal)?;
            let Some(Change::DocumentApplied { put, removed }) = plan.change else {
                return Err(BrokerError::invalid("document", "changes nothing: there is nothing to propose"));
            };
            // One that nobody looked at in time is in nobody's way.
            let now = clock.now();
            let waiting = state.proposals().values().filter(|it| it.expires_at() > now.seconds()).count();
            if waiting >= proposal::MOST_OPEN {
                return Err(BrokerError::TooManyProposals(waiting));
            }
            let proposal = Proposal {
                id: name.clone(),
                put,
                removed,
                planned_on: state.head().revision,
                stamp: Stamp { by: by.clone(), at: now },
                client: principal.client.clone(),
                certificate: principal.certificate.clone().filter(|name| *name != principal.client),
                reason: reason.clone(),
            };
            let detail = Some(format!("proposal {name}: {}", detail(&plan.steps)));
            let change = Some(Change::ChangeProposed { proposal: Box::new(proposal) });
            Ok(ledger::Proposal { change, detail, ..ledger::Proposal::default() })
        };
        let changed = open.ledger.change(asker, Box::new(propose)).await?;
        found(&changed.state, &id, self.parts.clock.now().seconds())
    }

    /// One proposal, as of now.
    ///
    /// # Errors
    /// Where there is none of this name.
    pub fn proposal(&self, id: &ProposalId) -> Result<Proposed, BrokerError> {
        found(&self.open()?.state(), id, self.parts.clock.now().seconds())
    }

    /// All proposals that can still be approved or closed, oldest first.
    ///
    /// # Errors
    /// Where the vault is not open.
    pub fn proposals(&self) -> Result<(Vec<Proposed>, Revision), BrokerError> {
        let (state, now_s) = (self.open()?.state(), self.parts.clock.now().seconds());
        let mut all: Vec<Proposed> = state.proposals().keys().filter_map(|id| found(&state, id, now_s).ok()).collect();
        all.sort_by_key(|it| it.proposal.stamp.at);
        Ok((all, state.head().revision))
    }

    /// Approves a proposal, and with that makes it.
    ///
    /// # Errors
    /// Where it is the caller's own, the state has moved under it, or one of the two may not make it.
    pub async fn approve(&self, caller: &Caller, id: &ProposalId) -> Result<Approved, BrokerError> {
        let open = self.open()?;
        let state = open.state();
        let now_s = self.parts.clock.now().seconds();
        let first = reviewed(&state, id, caller, now_s)?;
        let asker = self.asker(&state, caller, power_for(&first, &state, &caller.principal))?;
        let (caller, name) = (caller.clone(), id.clone());
        let steps = Arc::new(Mutex::new(first));
        let planned = Arc::clone(&steps);
        let propose = move |state: &State, _: &Keyring| {
            let steps = reviewed(state, &name, &caller, now_s)?;
            let detail = Some(format!("proposal {name}: {}", detail(&steps)));
            *planned.lock().unwrap_or_else(PoisonError::into_inner) = steps;
            let change = Some(Change::ProposalApproved { id: name.clone() });
            Ok(ledger::Proposal { change, detail, ..ledger::Proposal::default() })
        };
        let changed = open.ledger.change(asker, Box::new(propose)).await?;
        let steps = std::mem::take(&mut *steps.lock().unwrap_or_else(PoisonError::into_inner));
        Ok(Approved { steps, revision: changed.state.head().revision })
    }

    /// Takes a proposal back, or turns it down. Whoever could make the change can.
    ///
    /// # Errors
    /// Where there is none of this name, or the caller may not make it.
    pub async fn close_proposal(
        &self,
        caller: &Caller,
        id: &ProposalId,
        reason: String,
    ) -> Result<Revision, BrokerError> {
        let open = self.open()?;
        let state = open.state();
        let proposed = known(&state, id)?;
        let steps = steps_of(&proposed.put, &proposed.removed, &state);
        let asker = self.asker(&state, caller, power_for(&steps, &state, &caller.principal))?;
        let (principal, id) = (caller.principal.clone(), id.clone());
        let propose = move |state: &State, _: &Keyring| {
            let proposed = known(state, &id)?;
            may_make(&steps_of(&proposed.put, &proposed.removed, state), state, &principal)?;
            let change = Change::ProposalClosed { id: id.clone(), reason: reason.clone() };
            Ok(ledger::Proposal::of(change))
        };
        let changed = open.ledger.change(asker, Box::new(propose)).await?;
        Ok(changed.state.head().revision)
    }
}

fn known(state: &State, id: &ProposalId) -> Result<Arc<Proposal>, BrokerError> {
    let absent = || BrokerError::NotFound { kind: "waiting proposal", name: id.to_string() };
    state.proposals().get(id).cloned().ok_or_else(absent)
}

fn alive(state: &State, id: &ProposalId, now_s: i64) -> Result<Arc<Proposal>, BrokerError> {
    let proposal = known(state, id)?;
    if proposal.expires_at() <= now_s {
        return Err(BrokerError::NotFound { kind: "waiting proposal", name: id.to_string() });
    }
    Ok(proposal)
}

fn found(state: &State, id: &ProposalId, now_s: i64) -> Result<Proposed, BrokerError> {
    let proposal = alive(state, id, now_s)?;
    let moved = match unmoved(proposal.planned_on, state) {
        Err(BrokerError::PlanStale { moved, .. }) => moved,
        _ => Vec::new(),
    };
    let steps = steps_of(&proposal.put, &proposal.removed, state);
    Ok(Proposed { proposal, steps, moved, revision: state.head().revision })
}

/// The steps of a proposal that this caller may approve on this state.
fn reviewed(state: &State, id: &ProposalId, caller: &Caller, now_s: i64) -> Result<Vec<Step>, BrokerError> {
    let writes = [Power::Administer, Power::AuthorPolicies];
    if !writes.iter().any(|power| super::require(state, &caller.principal, *power).is_ok()) {
        return Err(BrokerError::LacksPower(Power::AuthorPolicies));
    }
    let proposal = alive(state, id, now_s)?;
    // INVARIANT (INV-PROPOSAL-2): nor as the same operator under another client's name, whichever of the approver's
    // operators the power comes from.
    let same_operator = || state.operators_of(&caller.principal).any(|it| it.name.as_str() == proposal.stamp.by);
    if proposal.is_by(&caller.principal) || same_operator() {
        return Err(BrokerError::OwnProposal);
    }
    // INVARIANT (INV-PROPOSAL-1): whatever moved since, the proposer's powers included, is in the list of moves.
    unmoved(proposal.planned_on, state)?;
    let steps = steps_of(&proposal.put, &proposal.removed, state);
    may_make(&steps, state, &caller.principal)?;
    Ok(steps)
}
