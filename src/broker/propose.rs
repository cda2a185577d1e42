//! Two operators for one change: one proposes it, another approves it.
//!
//! Steps to propose: plan as for applying; check that the proposer could make each step; append the proposal, which holds
//! everything that it puts and removes, and a digest of what its plan says. Steps to approve: find it on the newest state;
//! refuse one's own; plan it again, and refuse one that would do anything else by now, or whose proposer may be somebody
//! else by now; check that the approver may make every step; append the approval, which makes it. So what others change
//! elsewhere, however often, is in nobody's way.
//!
//! # Invariants
//! - `INV-PROPOSAL-1`: what is approved is what was reviewed, and does what it did when it was.
//! - `INV-PROPOSAL-2`: nobody approves their own proposal: neither the same caller nor the same operator.

use std::fmt::Write as _;
use std::sync::{Arc, Mutex, PoisonError};

use aws_lc_rs::digest::{SHA256, digest};
use data_encoding::HEXLOWER;

use super::apply::{Wanted, detail, may_make, moves, power_for};
use super::error::BrokerError;
use super::ledger;
use super::record::random_bits;
use super::{Applied, Broker, Caller};
use crate::domain::change::Change;
use crate::domain::key::Stamp;
use crate::domain::operator::Power;
use crate::domain::plan::{Action, Step, replan, steps_of};
use crate::domain::principal::Principal;
use crate::domain::proposal::{self, Proposal};
use crate::domain::state::State;
use crate::id::{ProposalId, Revision};
use crate::vault::keyring::Keyring;

/// A proposal, and what it would do.
#[derive(Debug, Clone)]
pub struct Proposed {
    /// The proposal.
    pub proposal: Arc<Proposal>,
    /// What it does, on the newest state.
    pub steps: Vec<Step>,
    /// What moved under it since: then it can't be approved any more.
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
        let first = self.planned(caller, wanted).await?;
        let asker = self.asker(&open.state(), caller, first.power)?;
        let id = ProposalId::from_random(random_bits()?);
        let (principal, by, name, clock) =
            (caller.principal.clone(), asker.actor.name.clone(), id.clone(), Arc::clone(&self.parts.clock));
        let propose = move |state: &State, _: &Keyring| {
            let plan = first.on(state)?;
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
                effect: effect(&plan.steps),
                stamp: Stamp { by: by.clone(), at: now },
                client: principal.client.clone(),
                certificate: principal.certificate_beside().cloned(),
                operators: state.operators_of(&principal).map(|it| it.name.clone()).collect(),
                reason: reason.clone(),
            };
            let detail = Some(format!("proposal {name}: {}", detail(&plan.steps)));
            let change = Some(Change::ChangeProposed { proposal: Box::new(proposal) });
            Ok(ledger::Proposal { change, detail, ..ledger::Proposal::default() })
        };
        let changed = open.ledger.change(asker, Box::new(propose)).await?;
        let now_s = self.parts.clock.now().seconds();
        self.aside(move || found(&changed.state, &id, now_s)).await?
    }

    /// One proposal, as of now.
    ///
    /// # Errors
    /// Where there is none of this name.
    pub async fn proposal(&self, id: &ProposalId) -> Result<Proposed, BrokerError> {
        let (state, id, now_s) = (self.open()?.state(), id.clone(), self.parts.clock.now().seconds());
        self.aside(move || found(&state, &id, now_s)).await?
    }

    /// All proposals that can still be approved or closed, oldest first.
    ///
    /// # Errors
    /// Where the vault is not open.
    pub async fn proposals(&self) -> Result<(Vec<Proposed>, Revision), BrokerError> {
        let (state, now_s) = (self.open()?.state(), self.parts.clock.now().seconds());
        self.aside(move || {
            let all = state.proposals().keys().filter_map(|id| found(&state, id, now_s).ok());
            let mut all: Vec<Proposed> = all.collect();
            all.sort_by_key(|it| it.proposal.stamp.at);
            (all, state.head().revision)
        })
        .await
    }

    /// Approves a proposal, and with that makes it.
    ///
    /// # Errors
    /// Where it is the caller's own, the state has moved under it, or one of the two may not make it.
    pub async fn approve(&self, caller: &Caller, id: &ProposalId) -> Result<Approved, BrokerError> {
        let open = self.open()?;
        let state = open.state();
        let now_s = self.parts.clock.now().seconds();
        let (approver, name, on) = (caller.principal.clone(), id.clone(), Arc::clone(&state));
        let review = move |state: &State| reviewed(state, &name, &approver, now_s);
        let (review, first) = self.aside(move || review(&on).map(|steps| (review, steps))).await??;
        let asker = self.asker(&state, caller, power_for(&first, &state, &caller.principal))?;
        let (name, head) = (id.clone(), state.head());
        let steps = Arc::new(Mutex::new(Vec::new()));
        let planned = Arc::clone(&steps);
        let propose = move |state: &State, _: &Keyring| {
            let steps = if state.head() == head { first.clone() } else { review(state)? };
            let detail = Some(format!("proposal {name}: {}", detail(&steps)));
            *planned.lock().unwrap_or_else(PoisonError::into_inner) = steps;
            let change = Some(Change::ProposalApproved { id: name.clone() });
            Ok(ledger::Proposal { change, detail, ..ledger::Proposal::default() })
        };
        let changed = open.ledger.change(asker, Box::new(propose)).await?;
        let steps = std::mem::take(&mut *steps.lock().unwrap_or_else(PoisonError::into_inner));
        self.forget_shadows_of(&steps).await;
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
    let (steps, moved) = looked_at(&proposal, state);
    Ok(Proposed { proposal, steps, moved, revision: state.head().revision })
}

/// The steps of a proposal that this caller may approve on this state.
fn reviewed(state: &State, id: &ProposalId, approver: &Principal, now_s: i64) -> Result<Vec<Step>, BrokerError> {
    let writes = [Power::Administer, Power::AuthorPolicies];
    if !writes.iter().any(|power| super::require(state, approver, *power).is_ok()) {
        return Err(BrokerError::LacksPower(Power::AuthorPolicies));
    }
    let proposal = alive(state, id, now_s)?;
    // INVARIANT (INV-PROPOSAL-2): nor as the same operator under another client's name, whichever of the approver's
    // operators the power comes from.
    let same_operator = || state.operators_of(approver).any(|it| proposal.operators.contains(&it.name));
    if proposal.is_by(approver) || same_operator() {
        return Err(BrokerError::OwnProposal);
    }
    // INVARIANT (INV-PROPOSAL-1)
    let (steps, moved) = looked_at(&proposal, state);
    if !moved.is_empty() {
        return Err(BrokerError::PlanStale { planned_on: proposal.planned_on, moved });
    }
    may_make(&steps, state, approver)?;
    Ok(steps)
}

/// What it does on this state; and what moved under it, where that is not what it did, can't be, or where its proposer may
/// not be who it was.
fn looked_at(proposal: &Proposal, state: &State) -> (Vec<Step>, Vec<String>) {
    let (steps, violations) = replan(&proposal.put, &proposal.removed, state);
    let mut names = [Some(&proposal.client), proposal.certificate.as_ref()].into_iter().flatten();
    let same_proposer =
        state.authority_moved() <= proposal.planned_on && !names.any(|name| state.is_client_revoked(name));
    if same_proposer && violations.is_empty() && effect(&steps) == proposal.effect {
        return (steps, Vec::new());
    }
    let mut moved = moves(proposal.planned_on, state);
    moved.extend(violations.into_iter().map(|it| format!("{}: {}", it.path, it.message)));
    if moved.is_empty() {
        moved.push("this replica tells what the change does in other words than the one it was proposed to".to_owned());
    }
    (steps, moved)
}

/// A digest of all that a plan says.
fn effect(steps: &[Step]) -> String {
    let mut text = String::new();
    for step in steps.iter().filter(|step| step.action != Action::Keep) {
        let enforced_by = step.enforced_by.iter().map(|it| format!("{}: {:?}: {}", it.limit, it.by, it.explanation));
        let lines = step.changes.iter().chain(&step.note).chain(&step.means).cloned().chain(enforced_by);
        let groups = step.authored_groups.iter().map(ToString::to_string);
        let lines = lines.chain(groups).chain(step.approval.iter().map(ToString::to_string));
        let _ = writeln!(text, "{} {}: {:?}", step.action.as_str(), step.object, lines.collect::<Vec<_>>());
    }
    HEXLOWER.encode(digest(&SHA256, text.as_bytes()).as_ref())
}
