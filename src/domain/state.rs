//! A replica's whole state: a fold over the records of the control log.
//!
//! # Invariants
//! - `INV-STATE-1`: a record is folded only at the revision after the state's own; nothing is skipped.
//! - P6: a revoked key never leaves [`KeyState::Revoked`], and its id is never taken again.

mod documents;
mod facts;
mod index;
mod questions;

use std::collections::{BTreeMap, BTreeSet, HashMap, VecDeque};
use std::sync::Arc;

use serde::{Deserialize, Serialize};

use super::account::Account;
use super::app_group::AppGroup;
use super::ceiling::Ceiling;
use super::change::{AuditPosition, Change, PrunedRows, Record};
use super::issuer::Issuer;
use super::key::{Key, KeyState, Stamp};
use super::operator::Operator;
use super::policy::Policy;
use super::proposal::{self, Proposal};
use super::target::Target;
use crate::id::{
    AccountName, AppGroupName, CeilingName, Chain, Head, IssuerName, KeyId, OperatorName, PolicyName, ProposalId,
    Revision, VaultId, WriterId,
};
pub use facts::{AcceptedHistory, Move, Opened, Revocation, Writer};
pub use index::GroupPolicies;
use index::Index;

/// How long after its death, by the log's own time, a revoked token is remembered, in seconds.
const FORGET_AFTER_S: i64 = 3600;

/// Most moves that are remembered, to say what came between.
const MOST_MOVES: usize = 100;

/// Why a record can't follow this state: the log is damaged, or newer than this program.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum FoldError {
    /// The record is not the next one.
    #[error("revision {found} follows revision {at}: records are missing")]
    Gap {
        /// The state's revision.
        at: Revision,
        /// The record's revision.
        found: Revision,
    },
    /// The record speaks of something that is not there.
    #[error("revision {at} changes {what}, which is not there")]
    Unknown {
        /// The record's revision.
        at: Revision,
        /// What it speaks of.
        what: String,
    },
}

/// Everything the control plane says, as of one revision.
#[derive(Debug, Clone, Default)]
pub struct State {
    head: Head,
    data: Snapshot,
    /// The same revocations as in `data`, by what they are about.
    revocations: HashMap<Target, Arc<Revocation>>,
    /// When revoked tokens die, in Unix seconds, with the revision that revoked each.
    deaths: BTreeSet<(i64, Revision)>,
    /// Of the revocations, policies whose stands: asked for each policy of a decision.
    revoked_policies: BTreeSet<PolicyName>,
    index: Index,
    keys_by_group: HashMap<AppGroupName, Vec<Arc<Key>>>,
}

/// The state as a checkpoint holds it; what can be derived from it is left out.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Snapshot {
    vault: Option<VaultId>,
    accounts: BTreeMap<AccountName, Account>,
    app_groups: Arc<BTreeMap<AppGroupName, Arc<AppGroup>>>,
    policies: Arc<BTreeMap<PolicyName, Arc<Policy>>>,
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    issuers: BTreeMap<IssuerName, Arc<Issuer>>,
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    ceilings: BTreeMap<CeilingName, Arc<Ceiling>>,
    operators: BTreeMap<OperatorName, Arc<Operator>>,
    keys: BTreeMap<KeyId, Arc<Key>>,
    /// By the newest revision that revoked: no two share one.
    #[serde(with = "as_list")]
    revocations: BTreeMap<Revision, Arc<Revocation>>,
    writers: BTreeMap<WriterId, Writer>,
    sealed: Option<Stamp>,
    unseal_generation: u32,
    root_version: u32,
    checkpoint: Revision,
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    accepted: Vec<AcceptedHistory>,
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    break_glass: BTreeMap<PolicyName, Opened>,
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    proposals: BTreeMap<ProposalId, Arc<Proposal>>,
    /// The newest changes of what plans rest on.
    #[serde(default, skip_serializing_if = "VecDeque::is_empty")]
    moves: VecDeque<Move>,
    /// When operators or issuers were changed last.
    #[serde(default)]
    authority_moved: Revision,
    /// Where the canary's key was stopped, while it is.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    canary_suspended: Option<Revision>,
}

impl State {
    /// The state that a checkpoint holds, before the checkpoint itself is folded.
    pub fn from_snapshot(head: Head, snapshot: Snapshot) -> Self {
        let mut state = Self { head, data: snapshot, ..Self::default() };
        for revocation in state.data.revocations.values() {
            state.revocations.insert(revocation.target.clone(), Arc::clone(revocation));
            state.deaths.extend(revocation.dies_at.map(|dies_at| (dies_at, revocation.revision)));
            if let (Target::Policy(name), false) = (&revocation.target, revocation.lifted) {
                state.revoked_policies.insert(name.clone());
            }
        }
        state.index = Index::of(&state.data);
        state.index_keys();
        state
    }

    /// The state after one more record, whose chain value is `chain`.
    ///
    /// # Errors
    /// Where the record can't follow; the state is then of no further use.
    pub fn fold(&mut self, record: &Record, chain: Chain) -> Result<(), FoldError> {
        // INVARIANT (INV-STATE-1)
        if record.revision != self.head.revision.next() {
            return Err(FoldError::Gap { at: self.head.revision, found: record.revision });
        }
        self.forget_dead_tokens(record.at.seconds());
        self.apply(record)?;
        self.remember_move(record);
        self.know_row(&record.audit);
        self.head = Head { revision: record.revision, chain };
        Ok(())
    }

    fn apply(&mut self, record: &Record) -> Result<(), FoldError> {
        let stamp = || Stamp { by: record.actor.name.clone(), at: record.at };
        match &record.change {
            Change::VaultInitialised { vault, operators } => {
                self.data.vault = Some(vault.clone());
                self.data.unseal_generation = 1;
                self.data.root_version = 1;
                for operator in operators {
                    self.data.operators.insert(operator.name.clone(), Arc::new(operator.clone()));
                }
                self.add_writer(&record.audit.writer, "");
            }
            Change::WriterStarted { writer, ends, replica, .. } => {
                for end in ends {
                    self.know_row(end);
                }
                self.add_writer(writer, replica);
            }
            Change::DocumentApplied { put, removed } => self.apply_document(put, removed, record.revision),
            Change::ChangeProposed { proposal } => {
                // One that nobody looked at in time goes, so that the state does not grow.
                let oldest = record.at.seconds().saturating_sub(proposal::LIVES_S);
                self.data.proposals.retain(|_, known| known.stamp.at.seconds() > oldest);
                self.data.proposals.insert(proposal.id.clone(), Arc::new((**proposal).clone()));
            }
            Change::ProposalApproved { id } => {
                let proposal = self.data.proposals.remove(id);
                let unknown = || FoldError::Unknown { at: record.revision, what: format!("proposal {id}") };
                let proposal = proposal.ok_or_else(unknown)?;
                // INVARIANT (INV-PROPOSAL-1): what was reviewed, to the letter.
                self.apply_document(&proposal.put, &proposal.removed, record.revision);
            }
            Change::ProposalClosed { id, .. } => drop(self.data.proposals.remove(id)),
            Change::BreakGlassOpened { policy, until, reason } => {
                let opened = Opened { until: *until, stamp: stamp(), reason: reason.clone() };
                self.data.break_glass.insert(policy.clone(), opened);
            }
            Change::BreakGlassClosed { policy, .. } => drop(self.data.break_glass.remove(policy)),
            Change::KeyImported { key } => {
                let key = Key { imported_revision: record.revision, ..(**key).clone() };
                self.data.keys.insert(key.id.clone(), Arc::new(key));
                self.index_keys();
            }
            Change::KeySuspended { key_id, .. } => {
                self.change_key(key_id, record.revision, |key| key.state = KeyState::Suspended)?;
            }
            Change::KeyResumed { key_id, .. } => {
                self.change_key(key_id, record.revision, |key| key.state = KeyState::Active)?;
            }
            Change::CanarySuspended => self.data.canary_suspended = Some(record.revision),
            Change::CanaryResumed => self.data.canary_suspended = None,
            Change::KeyConfirmedAtApple { key_id } => {
                self.change_key(key_id, record.revision, |key| key.confirmed_at_apple = Some(stamp()))?;
            }
            Change::Revoked { target, reason, dies_at } => {
                if let Target::Key(key_id) = target {
                    self.change_key(key_id, record.revision, |key| {
                        key.state = KeyState::Revoked;
                        key.revoked = Some(stamp());
                    })?;
                }
                self.put_revocation(Revocation {
                    target: target.clone(),
                    revision: record.revision,
                    stamp: stamp(),
                    reason: reason.clone(),
                    lifted: false,
                    dies_at: *dies_at,
                });
            }
            Change::Reinstated { target, .. } => {
                let unknown =
                    || FoldError::Unknown { at: record.revision, what: format!("the revocation of {target}") };
                let revocation = self.revocations.get(target).ok_or_else(unknown)?;
                self.put_revocation(Revocation { lifted: true, ..(**revocation).clone() });
            }
            Change::VaultSealed { .. } => self.data.sealed = Some(stamp()),
            Change::VaultUnsealed => self.data.sealed = None,
            Change::UnsealKeyReplaced { generation } => self.data.unseal_generation = *generation,
            Change::RootKeyRotated { version } => self.data.root_version = *version,
            Change::AuditPruned { upto } => self.prune(upto),
            Change::HistoryAccepted { id, seen, database, .. } => {
                let (id, seen, database) = (id.clone(), *seen, *database);
                self.data.accepted.push(AcceptedHistory { id, seen, database, stamp: stamp() });
            }
            Change::Checkpoint { .. } => self.data.checkpoint = record.revision,
        }
        Ok(())
    }

    /// INVARIANT (P2): from here on, a writer that ends before this row was taken back.
    fn know_row(&mut self, row: &AuditPosition) {
        if let Some(writer) = self.data.writers.get_mut(&row.writer) {
            writer.known_sequence = writer.known_sequence.max(row.sequence);
        }
    }

    fn add_writer(&mut self, id: &WriterId, replica: &str) {
        let writer = Writer {
            id: id.clone(),
            replica: replica.to_owned(),
            known_sequence: 0,
            pruned_sequence: 0,
            pruned_chain: Chain::default(),
        };
        self.data.writers.insert(id.clone(), writer);
    }

    fn prune(&mut self, upto: &[PrunedRows]) {
        for rows in upto {
            if let Some(writer) = self.data.writers.get_mut(&rows.writer) {
                writer.pruned_sequence = rows.sequence;
                writer.pruned_chain = rows.chain;
            }
        }
    }

    /// Remembers a change of what plans rest on: documents, keys, revocations. A writer that starts, a checkpoint or a
    /// pruned audit moves nothing.
    fn remember_move(&mut self, record: &Record) {
        let moves = match &record.change {
            Change::VaultInitialised { .. }
            | Change::DocumentApplied { .. }
            | Change::ProposalApproved { .. }
            | Change::BreakGlassOpened { .. }
            | Change::BreakGlassClosed { .. }
            | Change::KeyImported { .. }
            | Change::KeySuspended { .. }
            | Change::KeyResumed { .. }
            | Change::Reinstated { .. } => true,
            Change::Revoked { target, .. } => !matches!(target, Target::Token(_)),
            Change::WriterStarted { .. }
            | Change::ChangeProposed { .. }
            | Change::ProposalClosed { .. }
            | Change::KeyConfirmedAtApple { .. }
            | Change::VaultSealed { .. }
            | Change::VaultUnsealed
            | Change::UnsealKeyReplaced { .. }
            | Change::RootKeyRotated { .. }
            | Change::AuditPruned { .. }
            | Change::HistoryAccepted { .. }
            | Change::CanarySuspended
            | Change::CanaryResumed
            | Change::Checkpoint { .. } => false,
        };
        if !moves {
            return;
        }
        if self.data.moves.len() >= MOST_MOVES {
            self.data.moves.pop_front();
        }
        let (key, what) = record.change.summary();
        let key = key.map(|id| format!(" {id}")).unwrap_or_default();
        let mut what = format!("{}{key}: {what}", record.change.event());
        if what.len() > 500 {
            what = what.chars().take(500).chain("…".chars()).collect();
        }
        let stamp = Stamp { by: record.actor.name.clone(), at: record.at };
        self.data.moves.push_back(Move { revision: record.revision, stamp, what });
    }

    fn change_key(&mut self, id: &KeyId, at: Revision, change: impl FnOnce(&mut Key)) -> Result<(), FoldError> {
        let unknown = || FoldError::Unknown { at, what: format!("key {id}") };
        let key = self.data.keys.get_mut(id).map(Arc::make_mut).ok_or_else(unknown)?;
        // INVARIANT (P6): whatever a record says, a revoked key stays revoked.
        let revoked = key.state == KeyState::Revoked;
        change(key);
        if revoked {
            key.state = KeyState::Revoked;
        }
        self.index_keys();
        Ok(())
    }

    fn put_revocation(&mut self, revocation: Revocation) {
        if let Target::Policy(name) = &revocation.target {
            if revocation.lifted {
                self.revoked_policies.remove(name);
            } else {
                self.revoked_policies.insert(name.clone());
            }
        }
        let revocation = Arc::new(revocation);
        if let Some(earlier) = self.revocations.insert(revocation.target.clone(), Arc::clone(&revocation)) {
            self.data.revocations.remove(&earlier.revision);
        }
        self.deaths.extend(revocation.dies_at.map(|dies_at| (dies_at, revocation.revision)));
        self.data.revocations.insert(revocation.revision, revocation);
    }

    /// A token's own revocation goes with the token, by the time that the log itself tells.
    fn forget_dead_tokens(&mut self, now_s: i64) {
        // Clocks of replicas differ: one that runs ahead must not have a living token's revocation forgotten.
        let surely_dead = |dies_at: i64| dies_at.saturating_add(FORGET_AFTER_S) <= now_s;
        while let Some((_, revision)) = self.deaths.first().copied().filter(|(dies_at, _)| surely_dead(*dies_at)) {
            self.deaths.pop_first();
            if let Some(dead) = self.data.revocations.remove(&revision) {
                self.revocations.remove(&dead.target);
            }
        }
    }

    fn index_keys(&mut self) {
        self.keys_by_group.clear();
        for key in self.data.keys.values() {
            for group in &key.app_groups {
                self.keys_by_group.entry(group.clone()).or_default().push(Arc::clone(key));
            }
        }
    }
}

/// Revocations as a list: each holds its revision.
mod as_list {
    use super::{Arc, BTreeMap, Deserialize, Revision, Revocation};

    type Revocations = BTreeMap<Revision, Arc<Revocation>>;

    pub(super) fn serialize<S: serde::Serializer>(all: &Revocations, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.collect_seq(all.values())
    }

    pub(super) fn deserialize<'de, D: serde::Deserializer<'de>>(deserializer: D) -> Result<Revocations, D::Error> {
        let list = Vec::<Arc<Revocation>>::deserialize(deserializer)?;
        Ok(list.into_iter().map(|revocation| (revocation.revision, revocation)).collect())
    }
}

#[cfg(test)]
mod tests;
