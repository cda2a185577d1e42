//! A replica's whole state: a fold over the records of the control log.
//!
//! # Invariants
//! - `INV-STATE-1`: a record is folded only at the revision after the state's own; nothing is skipped.
//! - P6: a revoked key never leaves [`KeyState::Revoked`], and its id is never taken again.

use std::collections::{BTreeMap, HashMap};
use std::sync::Arc;

use serde::{Deserialize, Serialize};

use super::account::Account;
use super::app_group::AppGroup;
use super::change::{AuditPosition, Change, Object, ObjectName, PrunedRows, Record};
use super::key::{Key, KeyState, Stamp};
use super::operator::{Operator, Power};
use super::policy::Policy;
use super::target::Target;
use crate::id::{
    AccountName, AppGroupName, Chain, ClientId, Head, KeyId, OperatorName, PolicyName, Revision, VaultId, WriterId,
};

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

/// One revocation, standing or lifted.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Revocation {
    /// What is revoked.
    pub target: Target,
    /// The newest revision that revoked it: tokens committed before it are revoked, also after a reinstatement.
    pub revision: Revision,
    /// Who, and when.
    pub stamp: Stamp,
    /// Why.
    pub reason: String,
    /// Whether somebody lifted it.
    pub lifted: bool,
}

/// One author of audit rows.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Writer {
    /// Its name.
    pub id: WriterId,
    /// Rows up to here must exist: the last one that was committed with a record of the control log.
    pub known_sequence: u64,
    /// Rows up to here were cleared for removal.
    pub pruned_sequence: u64,
    /// The chain value there; zeros where nothing was removed.
    pub pruned_chain: Chain,
}

/// Everything the control plane says, as of one revision.
#[derive(Debug, Clone, Default)]
pub struct State {
    head: Head,
    data: Snapshot,
    revocations: HashMap<Target, Arc<Revocation>>,
    policies_by_group: HashMap<AppGroupName, Vec<Arc<Policy>>>,
    keys_by_group: HashMap<AppGroupName, Vec<Arc<Key>>>,
}

/// The state as a checkpoint holds it; what can be derived from it is left out.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Snapshot {
    vault: Option<VaultId>,
    accounts: BTreeMap<AccountName, Account>,
    app_groups: BTreeMap<AppGroupName, Arc<AppGroup>>,
    policies: BTreeMap<PolicyName, Arc<Policy>>,
    operators: BTreeMap<OperatorName, Arc<Operator>>,
    keys: BTreeMap<KeyId, Arc<Key>>,
    revocations: Vec<Arc<Revocation>>,
    writers: BTreeMap<WriterId, Writer>,
    sealed: Option<Stamp>,
    unseal_generation: u32,
    root_version: u32,
    checkpoint: Revision,
}

impl State {
    /// The state that a checkpoint holds, before the checkpoint itself is folded.
    pub fn from_snapshot(head: Head, snapshot: Snapshot) -> Self {
        let mut state = Self { head, data: snapshot, ..Self::default() };
        for revocation in &state.data.revocations {
            state.revocations.insert(revocation.target.clone(), Arc::clone(revocation));
        }
        state.index_policies();
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
        self.apply(record)?;
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
                self.add_writer(&record.audit.writer);
            }
            Change::WriterStarted { writer, ends, .. } => {
                for end in ends {
                    self.know_row(end);
                }
                self.add_writer(writer);
            }
            Change::DocumentApplied { put, removed } => self.apply_document(put, removed),
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
            Change::KeyConfirmedAtApple { key_id } => {
                self.change_key(key_id, record.revision, |key| key.confirmed_at_apple = Some(stamp()))?;
            }
            Change::Revoked { target, reason } => {
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

    fn add_writer(&mut self, id: &WriterId) {
        let writer = Writer { id: id.clone(), known_sequence: 0, pruned_sequence: 0, pruned_chain: Chain::default() };
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

    /// What the state would hold if this were applied, for a plan to look at.
    pub(super) fn preview(&mut self, put: &[Object], removed: &[ObjectName]) {
        self.apply_document(put, removed);
    }

    fn apply_document(&mut self, put: &[Object], removed: &[ObjectName]) {
        for object in put {
            match object {
                Object::Account(account) => {
                    self.data.accounts.insert(account.name.clone(), account.clone());
                }
                Object::AppGroup(group) => {
                    self.data.app_groups.insert(group.name.clone(), Arc::new(group.clone()));
                }
                Object::Policy(policy) => {
                    self.data.policies.insert(policy.name.clone(), Arc::clone(policy));
                }
                Object::Operator(operator) => {
                    self.data.operators.insert(operator.name.clone(), Arc::new(operator.clone()));
                }
            }
        }
        for name in removed {
            match name {
                ObjectName::Account(name) => drop(self.data.accounts.remove(name)),
                ObjectName::AppGroup(name) => drop(self.data.app_groups.remove(name)),
                ObjectName::Policy(name) => drop(self.data.policies.remove(name)),
                ObjectName::Operator(name) => drop(self.data.operators.remove(name)),
            }
        }
        self.index_policies();
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
        let revocation = Arc::new(revocation);
        self.data.revocations.retain(|known| known.target != revocation.target);
        self.data.revocations.push(Arc::clone(&revocation));
        self.revocations.insert(revocation.target.clone(), revocation);
    }

    fn index_policies(&mut self) {
        self.policies_by_group.clear();
        for policy in self.data.policies.values() {
            self.policies_by_group.entry(policy.app_group.clone()).or_default().push(Arc::clone(policy));
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

// What others ask of a state.
impl State {
    /// The newest revision, and the chain value there.
    pub fn head(&self) -> Head {
        self.head
    }

    /// The vault's name; `None` before init.
    pub fn vault(&self) -> Option<&VaultId> {
        self.data.vault.as_ref()
    }

    /// Who sealed the vault, and when; `None` where no operator's seal stands.
    pub fn sealed(&self) -> Option<&Stamp> {
        self.data.sealed.as_ref()
    }

    /// The generation of unseal keys.
    pub fn unseal_generation(&self) -> u32 {
        self.data.unseal_generation
    }

    /// The version of the root key that seals.
    pub fn root_version(&self) -> u32 {
        self.data.root_version
    }

    /// The newest checkpoint; 0 for none.
    pub fn checkpoint(&self) -> Revision {
        self.data.checkpoint
    }

    /// The state for a checkpoint.
    pub fn snapshot(&self) -> Snapshot {
        self.data.clone()
    }

    /// All accounts, by name.
    pub fn accounts(&self) -> &BTreeMap<AccountName, Account> {
        &self.data.accounts
    }

    /// All app groups, by name.
    pub fn app_groups(&self) -> &BTreeMap<AppGroupName, Arc<AppGroup>> {
        &self.data.app_groups
    }

    /// All policies, by name.
    pub fn policies(&self) -> &BTreeMap<PolicyName, Arc<Policy>> {
        &self.data.policies
    }

    /// All operators, by name.
    pub fn operators(&self) -> &BTreeMap<OperatorName, Arc<Operator>> {
        &self.data.operators
    }

    /// All keys ever imported, by id.
    pub fn keys(&self) -> &BTreeMap<KeyId, Arc<Key>> {
        &self.data.keys
    }

    /// All authors of audit rows, by id.
    pub fn writers(&self) -> &BTreeMap<WriterId, Writer> {
        &self.data.writers
    }

    /// The policies of one app group, by name.
    pub fn policies_of(&self, group: &AppGroupName) -> &[Arc<Policy>] {
        self.policies_by_group.get(group).map_or(&[], Vec::as_slice)
    }

    /// The keys that may be used for one app group, by id.
    pub fn keys_of(&self, group: &AppGroupName) -> &[Arc<Key>] {
        self.keys_by_group.get(group).map_or(&[], Vec::as_slice)
    }

    /// The operators that this certificate is, by name.
    pub fn operators_of<'a>(&'a self, client: &'a ClientId) -> impl Iterator<Item = &'a Arc<Operator>> {
        self.data.operators.values().filter(|operator| operator.is(client))
    }

    /// The first operator of this certificate that holds the power.
    pub fn operator_with(&self, client: &ClientId, power: Power) -> Option<&Arc<Operator>> {
        if self.is_revoked(&Target::Client(client.clone())) {
            return None;
        }
        self.data.operators.values().find(|operator| operator.is(client) && operator.powers.contains(&power))
    }

    /// Whether somebody could still administer if this client were revoked, too. A pattern with a `*` may always have
    /// another certificate.
    pub fn has_administrator_beside(&self, client: Option<&ClientId>) -> bool {
        let can_act = |name: ClientId| Some(&name) != client && !self.is_revoked(&Target::Client(name));
        let administers = |operator: &&Arc<Operator>| operator.powers.contains(&Power::Administer);
        let mut patterns = self.data.operators.values().filter(administers).flat_map(|operator| &operator.clients);
        patterns.any(|pattern| pattern.exact().is_none_or(can_act))
    }

    /// Whether the revocation of the target stands.
    pub fn is_revoked(&self, target: &Target) -> bool {
        self.revocations.get(target).is_some_and(|revocation| !revocation.lifted)
    }

    /// The newest revocation of the target, standing or lifted.
    pub fn revocation(&self, target: &Target) -> Option<&Revocation> {
        self.revocations.get(target).map(Arc::as_ref)
    }

    /// Whether a token committed at `revision` was revoked since, by any of what it was issued under.
    pub fn revoked_since<'a>(&self, revision: Revision, under: impl IntoIterator<Item = &'a Target>) -> bool {
        let newer = |target| self.revocation(target).is_some_and(|revocation| revocation.revision > revision);
        under.into_iter().any(newer)
    }

    /// How many keys of the account Apple may still count as active.
    pub fn keys_counted_at_apple(&self, account: &AccountName) -> usize {
        self.data.keys.values().filter(|key| key.account == *account && key.counts_at_apple()).count()
    }
}
