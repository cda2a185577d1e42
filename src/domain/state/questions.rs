//! What others ask of a state.

use std::collections::BTreeMap;
use std::sync::Arc;

use super::{AcceptedHistory, Revocation, Snapshot, State, Writer};
use crate::domain::account::Account;
use crate::domain::app_group::AppGroup;
use crate::domain::key::{Key, Stamp};
use crate::domain::operator::{Operator, Power};
use crate::domain::policy::Policy;
use crate::domain::target::Target;
use crate::id::{
    AccountName, AppGroupName, ClientId, Head, IssuerName, KeyId, OperatorName, PolicyName, Revision, VaultId, WriterId,
};

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
        if self.is_client_revoked(client) {
            return None;
        }
        self.data.operators.values().find(|operator| operator.is(client) && operator.powers.contains(&power))
    }

    /// Whether somebody could still administer if this client were revoked, too. A pattern with a `*` may always have
    /// another certificate.
    pub fn has_administrator_beside(&self, client: Option<&ClientId>) -> bool {
        let can_act = |name: ClientId| Some(&name) != client && !self.is_client_revoked(&name);
        let administers = |operator: &&Arc<Operator>| operator.powers.contains(&Power::Administer);
        let mut patterns = self.data.operators.values().filter(administers).flat_map(|operator| &operator.clients);
        patterns.any(|pattern| pattern.exact().is_none_or(can_act))
    }

    /// Whether somebody could still administer without anyone that this issuer vouches for.
    pub fn has_administrator_without(&self, issuer: &IssuerName) -> bool {
        let can_act = |name: ClientId| name.issuer().as_ref() != Some(issuer) && !self.is_client_revoked(&name);
        let administers = |operator: &&Arc<Operator>| operator.powers.contains(&Power::Administer);
        let mut patterns = self.data.operators.values().filter(administers).flat_map(|operator| &operator.clients);
        patterns.any(|pattern| pattern.exact().is_none_or(can_act))
    }

    /// Whether the revocation of the target stands.
    pub fn is_revoked(&self, target: &Target) -> bool {
        self.revocations.get(target).is_some_and(|revocation| !revocation.lifted)
    }

    /// Whether a revocation of the client stands, or of the issuer that vouches for it.
    pub fn is_client_revoked(&self, client: &ClientId) -> bool {
        self.is_revoked(&Target::Client(client.clone()))
            || client.issuer().is_some_and(|issuer| self.is_revoked(&Target::Issuer(issuer)))
    }

    /// Revocations after a revision, standing or lifted, oldest first.
    pub fn revocations_after(&self, revision: Revision) -> impl Iterator<Item = &Arc<Revocation>> {
        self.data.revocations.range(revision.next()..).map(|(_, revocation)| revocation)
    }

    /// Databases that went back in time and were accepted, oldest first.
    pub fn accepted_histories(&self) -> &[AcceptedHistory] {
        &self.data.accepted
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
