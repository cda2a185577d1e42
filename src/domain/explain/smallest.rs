//! The smallest change that would allow a refused request, found by trying.
//!
//! Steps: lift what stands in the way of every policy (a seal, a revocation, an issuer that is not trusted, an app group
//! that is not there); then, for each policy of the group and for a new one that names exactly this client, mend the first
//! condition that fails, again and again, until the policy grants; leave out what applying would refuse; take what needs
//! the fewest changes, policies that are there before the new one, then the first name. What policies alone can bring about
//! is preferred to what they can't: so where the answer is the latter, no policy may allow the request as things are.

use std::borrow::Cow;
use std::sync::Arc;

use super::policies::verdict;
use super::repair::{self, Step, Work};
use crate::clock::UnixMillis;
use crate::domain::change::{Actor, AuditPosition, Change, Object, Record};
use crate::domain::decide::{TokenRequest, decide};
use crate::domain::document::Document;
use crate::domain::plan::{Unnamed, plan};
use crate::domain::policy::Policy;
use crate::domain::state::State;
use crate::id::{PolicyName, WriterId};

/// Most conditions that are mended, for all policies and for one.
const MOST_STEPS: usize = 16;

/// What would allow a refused request.
#[derive(Debug, Clone)]
pub struct SmallestChange {
    /// Each change, a sentence each, in the order in which to make them.
    pub sentences: Vec<String>,
    /// Whether policies, with what the caller itself can do, are enough. Where not, no policy may allow it.
    pub policy_may_allow: bool,
    /// The same as records of the control log.
    pub(super) records: Vec<Change>,
    /// The request as it would be made then.
    pub(super) request: TokenRequest,
}

/// A request on a state, in which some things may have been mended.
#[derive(Debug)]
pub(super) struct World<'a> {
    pub(super) state: Cow<'a, State>,
    pub(super) request: TokenRequest,
    pub(super) now: UnixMillis,
}

/// One policy of a world, as it would have to be.
#[derive(Debug)]
struct Trial<'a> {
    world: World<'a>,
    policy: Policy,
    is_new: bool,
    common: &'a [Step],
    steps: Vec<Step>,
}

/// How dear a trial is. It only grows while more is mended.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
struct Rank {
    beyond_policies: bool,
    changes: usize,
    is_new: bool,
    name: PolicyName,
}

/// Finds what would allow a request that is refused.
pub(super) fn smallest(request: &TokenRequest, state: &State, now: UnixMillis) -> SmallestChange {
    let mut world = World { state: Cow::Borrowed(state), request: request.clone(), now };
    let mut common = Vec::new();
    while let Some(step) = repair::common(&world).filter(|_| common.len() < MOST_STEPS) {
        world.take(&step.work);
        common.push(step);
    }
    let mut best: Option<(Rank, SmallestChange)> = None;
    let known = world.state.policies_of(&request.app_group).iter().map(|policy| (Policy::clone(policy), None));
    for (policy, created) in known.chain(repair::new_policy(&world).map(|(policy, step)| (policy, Some(step)))) {
        let mended = World { state: Cow::Borrowed(&world.state), request: world.request.clone(), now };
        let is_new = created.is_some();
        let trial = Trial { world: mended, policy, is_new, common: &common, steps: created.into_iter().collect() };
        let Some(trial) = trial.mended(best.as_ref().map(|(rank, _)| rank)) else { continue };
        let (rank, can_be_applied, change) = (trial.rank(), trial.can_be_applied(), trial.into_change());
        // INVARIANT (INV-EXPLAIN-2)
        if can_be_applied && change.holds(state, now) {
            best = Some((rank, change));
        }
    }
    best.map_or_else(|| none_found(request), |(_, change)| change)
}

fn none_found(request: &TokenRequest) -> SmallestChange {
    let sentence = "no few changes would allow it: see what stands in the way of each policy";
    SmallestChange {
        sentences: vec![sentence.to_owned()],
        policy_may_allow: false,
        records: Vec::new(),
        request: request.clone(),
    }
}

impl World<'_> {
    fn take(&mut self, work: &Work) {
        match work {
            Work::Request(request) => self.request.clone_from(request),
            Work::Record(change) => fold(self.state.to_mut(), change, self.now),
            Work::Policy(_) => {}
        }
    }
}

impl Trial<'_> {
    /// Mends one condition after the other; `None` where one can't be mended, or this is no better than what is known.
    fn mended(mut self, known: Option<&Rank>) -> Option<Self> {
        for _ in 0..MOST_STEPS {
            if known.is_some_and(|known| self.rank() >= *known) {
                return None;
            }
            let policy = Arc::new(self.policy.clone());
            let found = verdict(&policy, &self.world.request, &self.world.state, self.world.now);
            if found.reason().is_empty() {
                return Some(self);
            }
            let step = repair::mend(&self.world, &policy, &found)?;
            if let Work::Policy(policy) = &step.work {
                self.policy.clone_from(policy);
            }
            self.world.take(&step.work);
            self.steps.push(step);
        }
        None
    }

    fn rank(&self) -> Rank {
        let steps = || self.common.iter().chain(&self.steps);
        Rank {
            beyond_policies: steps().any(|step| step.beyond_policies),
            changes: steps().map(|step| step.changes).sum(),
            is_new: self.is_new,
            name: self.policy.name.clone(),
        }
    }

    fn changes_policy(&self) -> bool {
        self.steps.iter().any(|step| matches!(step.work, Work::Policy(_)))
    }

    /// Whether a document with the policy would be taken.
    fn can_be_applied(&self) -> bool {
        if !self.changes_policy() {
            return true;
        }
        let object = Object::Policy(Arc::new(self.policy.clone()));
        let Ok(desired) = Document::of_objects([&object]).check() else { return false };
        match plan(&desired, Unnamed::Keep, &self.world.state) {
            Ok(_) => true,
            // What else is wrong with the state is not this policy's.
            Err(violations) => !violations.iter().any(|violation| violation.path.starts_with("policies")),
        }
    }

    fn into_change(self) -> SmallestChange {
        let policy_may_allow = !self.rank().beyond_policies;
        let changes_policy = self.changes_policy();
        let put = vec![Object::Policy(Arc::new(self.policy))];
        let document = changes_policy.then(|| Change::DocumentApplied { put, removed: Vec::new() });
        // What no policy may comes first. A policy that is changed is closed again: opening it comes last.
        let is_of_policy = |step: &Step| matches!(step.work, Work::Policy(_));
        let (of_policy, others): (Vec<Step>, Vec<Step>) = self.steps.into_iter().partition(is_of_policy);
        let (beyond, last): (Vec<Step>, Vec<Step>) = others.into_iter().partition(|step| step.beyond_policies);
        let sentence = |step: &Step| step.sentence.clone();
        let before = || self.common.iter().chain(&beyond);
        let mut sentences: Vec<String> = before().chain(&of_policy).map(sentence).collect();
        let mut bounds = self.world.state.bounds_of(&self.world.request.app_group);
        if let Some(ceiling) = bounds.find_map(|bounds| bounds.requires_approval())
            && let Some(last) = sentences.last_mut().filter(|_| changes_policy)
        {
            last.push_str(&format!("; by ceiling {ceiling} that takes two operators"));
        }
        sentences.extend(last.iter().map(sentence));
        let record = |step: &Step| if let Work::Record(change) = &step.work { Some((**change).clone()) } else { None };
        let records = before().filter_map(record).chain(document).chain(last.iter().filter_map(record)).collect();
        SmallestChange { sentences, policy_may_allow, records, request: self.world.request.clone() }
    }
}

impl SmallestChange {
    /// Whether the request is granted once the changes are made.
    pub(super) fn holds(&self, state: &State, now: UnixMillis) -> bool {
        let mut after = state.clone();
        for change in &self.records {
            fold(&mut after, change, now);
        }
        decide(&self.request, &after, now).is_ok()
    }
}

/// The state after one more change, by nobody. A change that can't be leaves it as it is, and mends nothing.
fn fold(state: &mut State, change: &Change, now: UnixMillis) {
    let head = state.head();
    let audit = AuditPosition { writer: WriterId::from_random(0), sequence: 0 };
    let record =
        Record { revision: head.revision.next(), at: now, actor: Actor::broker(), audit, change: change.clone() };
    let _ = state.fold(&record, head.chain);
}
