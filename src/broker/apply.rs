//! Applies a document: accounts, app groups, issuers, ceilings, policies, operators.
//!
//! Steps: plan it on the newest state; refuse a plan that was looked at on another one; check that the caller may make each
//! step of the plan, alone; append the one change that makes them all. A plan that is only asked for takes the first step
//! and looks at powers, so that nobody without one learns what is there. Plans are made beside the requests, and the writer
//! makes another one only where the state has moved meanwhile.
//!
//! # Invariants
//! - `INV-APPLY-1`: no one grants what they do not hold: policies of a group take the power to author them there, and all
//!   else the power to administer, which stands above every power.

use std::sync::{Arc, Mutex, PoisonError};

use super::error::BrokerError;
use super::ledger::Proposal;
use super::{Broker, Caller, require};
use crate::domain::change::ObjectName;
use crate::domain::document::{Desired, Document, Violation};
use crate::domain::enforcement::EnforcedBy;
use crate::domain::operator::Power;
use crate::domain::plan::{Action, Plan, Step, Unnamed, plan};
use crate::domain::principal::Principal;
use crate::domain::state::State;
use crate::id::{CeilingName, Head, Revision};
use crate::vault::keyring::Keyring;

/// What somebody wants to be so.
#[derive(Debug, Clone)]
pub struct Wanted {
    /// The document.
    pub desired: Desired,
    /// What becomes of what it does not name.
    pub unnamed: Unnamed,
    /// Whether limits that nobody enforces are refused.
    pub refuse_advisory: bool,
    /// The revision of the plan that was looked at; 0 for none.
    pub planned_on: Revision,
}

impl Wanted {
    /// A document as it is: what it does not name stays, and it may come upon any revision.
    pub fn new(desired: Desired) -> Self {
        Self { desired, unnamed: Unnamed::Keep, refuse_advisory: false, planned_on: Revision::default() }
    }
}

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
    pub async fn plan(&self, caller: &Caller, wanted: Wanted) -> Result<Applied, BrokerError> {
        let planned = self.planned(caller, wanted).await?;
        Ok(Applied { revision: planned.head.revision, steps: planned.plan.steps })
    }

    /// Plans on the state as it is.
    pub(super) async fn planned(&self, caller: &Caller, wanted: Wanted) -> Result<Planned, BrokerError> {
        let (state, principal) = (self.open()?.state(), caller.principal.clone());
        self.aside(move || {
            let plan = plan_for(&wanted, &state, &principal)?;
            let power = power_for(&plan.steps, &state, &principal);
            Ok(Planned { wanted, principal, head: state.head(), plan, power })
        })
        .await?
    }

    /// Applies a document, all of it or nothing.
    ///
    /// # Errors
    /// With everything in the document that can't be.
    pub async fn apply(&self, caller: &Caller, wanted: Wanted) -> Result<Applied, BrokerError> {
        let open = self.open()?;
        let first = self.planned(caller, wanted).await?;
        let asker = self.asker(&open.state(), caller, first.power)?;
        let steps = Arc::new(Mutex::new(Vec::new()));
        let planned = Arc::clone(&steps);
        let propose = move |state: &State, _: &Keyring| {
            let plan = first.on(state)?;
            if let Some(ceiling) = approval(&plan.steps) {
                return Err(BrokerError::ApprovalRequired(ceiling));
            }
            let detail = Some(detail(&plan.steps));
            *planned.lock().unwrap_or_else(PoisonError::into_inner) = plan.steps;
            Ok(Proposal { change: plan.change, detail, ..Proposal::default() })
        };
        let changed = open.ledger.change(asker, Box::new(propose)).await?;
        let steps = std::mem::take(&mut *steps.lock().unwrap_or_else(PoisonError::into_inner));
        self.forget_shadows_of(&steps).await;
        Ok(Applied { steps, revision: changed.state.head().revision })
    }

    /// The whole desired state, and its revision.
    ///
    /// # Errors
    /// Where the vault is not open.
    pub fn export(&self) -> Result<(Document, Revision), BrokerError> {
        let state = self.open()?.state();
        Ok((Document::of(&state), state.head().revision))
    }
}

/// A plan, and what it was made for.
#[derive(Debug)]
pub(super) struct Planned {
    wanted: Wanted,
    principal: Principal,
    head: Head,
    plan: Plan,
    /// The power that it takes.
    pub(super) power: Power,
}

impl Planned {
    /// The plan for this very state: made again where the head has moved.
    pub(super) fn on(&self, state: &State) -> Result<Plan, BrokerError> {
        // A plan that never was made of any revision may have been looked at on a later one, which this history has lost.
        if self.wanted.planned_on > state.head().revision {
            let planned_on = self.wanted.planned_on;
            let lost = format!("revision {planned_on} is not in this history, which ends at {}", state.head().revision);
            return Err(BrokerError::PlanStale { planned_on, moved: vec![lost] });
        }
        if state.head() == self.head { Ok(self.plan.clone()) } else { plan_for(&self.wanted, state, &self.principal) }
    }
}

/// The ceiling under which one of the steps takes two operators.
pub(super) fn approval(steps: &[Step]) -> Option<CeilingName> {
    steps.iter().find_map(|step| step.approval.clone())
}

/// What the audit says: each step that changes something, and how.
pub(super) fn detail(steps: &[Step]) -> String {
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
pub(super) fn plan_for(wanted: &Wanted, state: &State, caller: &Principal) -> Result<Plan, BrokerError> {
    let writes =
        require(state, caller, Power::Administer).is_ok() || require(state, caller, Power::AuthorPolicies).is_ok();
    if !writes {
        // Nobody without a power learns what is there.
        return Err(BrokerError::LacksPower(Power::AuthorPolicies));
    }
    unmoved(wanted.planned_on, state)?;
    let plan = plan(&wanted.desired, wanted.unnamed, state).map_err(BrokerError::Invalid)?;
    may_make(&plan.steps, state, caller)?;
    if wanted.refuse_advisory {
        let limits = advisory(&plan.steps);
        if !limits.is_empty() {
            return Err(BrokerError::Advisory(limits));
        }
    }
    Ok(plan)
}

/// Refuses a plan of another state, with what came between.
fn unmoved(planned_on: Revision, state: &State) -> Result<(), BrokerError> {
    if planned_on == Revision::default() || state.last_move() <= planned_on {
        return Ok(());
    }
    Err(BrokerError::PlanStale { planned_on, moved: moves(planned_on, state) })
}

/// What came after a revision, in words.
pub(super) fn moves(after: Revision, state: &State) -> Vec<String> {
    let moved = state.moves_after(after);
    moved.map(|it| format!("revision {} by {}: {}", it.revision, it.stamp.by, it.what)).collect()
}

/// Limits of policies of the document that nobody enforces. A policy that says nothing of operations has no such limit.
fn advisory(steps: &[Step]) -> Vec<Violation> {
    let mut out = Vec::new();
    let mut nth = 0_usize;
    for step in steps.iter().filter(|step| matches!(step.object, ObjectName::Policy(_))) {
        let nobody = step.enforced_by.iter();
        let nobody = nobody.filter(|entry| entry.by == EnforcedBy::Nobody && entry.limit != "operations");
        out.extend(nobody.map(|entry| Violation {
            path: format!("policies[{nth}]"),
            message: format!("nobody enforces the limit `{}`: {}", entry.limit, entry.explanation),
        }));
        nth = nth.saturating_add(1);
    }
    out
}

/// INVARIANT (INV-APPLY-1)
pub(super) fn may_make(steps: &[Step], state: &State, caller: &Principal) -> Result<(), BrokerError> {
    for step in steps.iter().filter(|step| step.action != Action::Keep) {
        match &step.object {
            ObjectName::Account(_)
            | ObjectName::AppGroup(_)
            | ObjectName::Operator(_)
            | ObjectName::Issuer(_)
            | ObjectName::Ceiling(_) => {
                require(state, caller, Power::Administer)?;
            }
            ObjectName::Policy(_) => may_author(state, caller, step)?,
        }
    }
    Ok(())
}

fn may_author(state: &State, caller: &Principal, step: &Step) -> Result<(), BrokerError> {
    if state.refuses(caller).is_some() {
        return Err(BrokerError::LacksPower(Power::AuthorPolicies));
    }
    for group in &step.authored_groups {
        if !state.operators_of(caller).any(|operator| operator.may_author(group)) {
            return match require(state, caller, Power::AuthorPolicies) {
                Ok(_) => Err(BrokerError::OutsideAppGroup(group.to_string())),
                Err(error) => Err(error),
            };
        }
    }
    Ok(())
}

/// The power under whose operator the change is recorded: each step has been checked already.
pub(super) fn power_for(steps: &[Step], state: &State, caller: &Principal) -> Power {
    let policy = |step: &Step| matches!(step.object, ObjectName::Policy(_)) || step.action == Action::Keep;
    let authored = steps.iter().all(policy) && require(state, caller, Power::AuthorPolicies).is_ok();
    if authored { Power::AuthorPolicies } else { Power::Administer }
}
