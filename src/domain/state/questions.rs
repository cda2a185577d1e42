//! What others ask of a state.

use std::collections::BTreeMap;
use std::sync::Arc;

use super::{AcceptedHistory, GroupPolicies, Move, Opened, Revocation, Snapshot, State, Writer};
use crate::domain::account::Account;
use crate::domain::app_group::AppGroup;
use crate::domain::ceiling::{Bounds, Ceiling};
use crate::domain::decide::DenyReason;
use crate::domain::issuer::Issuer;
use crate::domain::key::{Key, Stamp};
use crate::domain::operator::{Operator, Power};
use crate::domain::pattern::ClientPattern;
use crate::domain::policy::Policy;
use crate::domain::principal::Principal;
use crate::domain::proposal::Proposal;
use crate::domain::target::Target;
use crate::id::{
    AccountName, AppGroupName, CeilingName, ClientId, Head, IssuerName, KeyId, OperatorName, PolicyName, ProposalId,
    Revision, VaultId, WriterId,
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

    /// The revision at which the canary's key was stopped; `None` where it may sign.
    pub fn canary_suspended(&self) -> Option<Revision> {
        self.data.canary_suspended
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

    /// All trusted issuers, by name.
    pub fn issuers(&self) -> &BTreeMap<IssuerName, Arc<Issuer>> {
        &self.data.issuers
    }

    /// The trusted issuer whose tokens have this `iss`.
    pub fn issuer_of(&self, url: &str) -> Option<&Arc<Issuer>> {
        self.data.issuers.values().find(|issuer| issuer.url == url)
    }

    /// All ceilings, by name.
    pub fn ceilings(&self) -> &BTreeMap<CeilingName, Arc<Ceiling>> {
        &self.data.ceilings
    }

    /// The ceilings over one app group, compiled: those that hold everywhere, and its own.
    pub fn bounds_of(&self, group: &AppGroupName) -> impl Iterator<Item = &Bounds> + Clone {
        self.index.bounds_of(group).into_iter().flatten()
    }

    /// The ceilings over one app group that only count, each for itself: those that hold everywhere, and its own.
    pub fn shadows_of(&self, group: &AppGroupName) -> impl Iterator<Item = (&CeilingName, &Bounds)> + Clone {
        self.index.shadows_of(group)
    }

    /// Proposed changes that wait for a second operator, by id.
    pub fn proposals(&self) -> &BTreeMap<ProposalId, Arc<Proposal>> {
        &self.data.proposals
    }

    /// How a break-glass policy is held open, whether or not its time is over.
    pub fn opened(&self, policy: &PolicyName) -> Option<&Opened> {
        self.data.break_glass.get(policy)
    }

    /// All break-glass policies that somebody opened, by name; the time of some may be over.
    pub fn all_opened(&self) -> &BTreeMap<PolicyName, Opened> {
        &self.data.break_glass
    }

    /// Changes after a revision of what plans rest on, oldest first; of older ones only the last hundred are known.
    pub fn moves_after(&self, revision: Revision) -> impl Iterator<Item = &Move> {
        self.data.moves.iter().filter(move |it| it.revision > revision)
    }

    /// The newest change of what plans rest on.
    pub fn last_move(&self) -> Revision {
        self.data.moves.back().map(|it| it.revision).unwrap_or_default()
    }

    /// When operators or issuers were changed last, and with that who may be whom, and do what.
    pub fn authority_moved(&self) -> Revision {
        self.data.authority_moved
    }

    /// The policies of one app group, by name.
    pub fn policies_of(&self, group: &AppGroupName) -> &[Arc<Policy>] {
        self.index.policies_of(group).map_or(&[], GroupPolicies::all)
    }

    /// The same, to ask who is meant.
    pub fn group_policies(&self, group: &AppGroupName) -> Option<&GroupPolicies> {
        self.index.policies_of(group)
    }

    /// The claims that a decision about this group and issuer may ask about: what the audit keeps of a caller.
    pub fn claims_named<'a>(&'a self, group: &AppGroupName, issuer: &'a Issuer) -> impl Iterator<Item = &'a str> {
        let policies = self.index.policies_of(group).into_iter().flat_map(GroupPolicies::claims_named);
        let bounds = self.bounds_of(group).chain(self.shadows_of(group).map(|(_, bounds)| bounds));
        let patterns = bounds.flat_map(Bounds::callers).flat_map(|(callers, _)| &callers.clients);
        let ceilings = patterns.filter_map(|pattern| match pattern {
            ClientPattern::Vouched(vouched) => Some(&vouched.claims),
            ClientPattern::Name(_) => None,
        });
        let ceilings = ceilings.chain([&issuer.claims]).flat_map(|claims| claims.keys().map(String::as_str));
        policies.chain(ceilings)
    }

    /// Whether the revocation of the policy stands.
    pub fn is_policy_revoked(&self, policy: &PolicyName) -> bool {
        self.revoked_policies.contains(policy)
    }

    /// The keys that may be used for one app group, by id.
    pub fn keys_of(&self, group: &AppGroupName) -> &[Arc<Key>] {
        self.keys_by_group.get(group).map_or(&[], Vec::as_slice)
    }

    /// The operators that this caller is, by name.
    pub fn operators_of<'a>(&'a self, caller: &'a Principal) -> impl Iterator<Item = &'a Arc<Operator>> {
        self.data.operators.values().filter(|operator| operator.is(caller))
    }

    /// The first operator of this caller that holds the power.
    pub fn operator_with(&self, caller: &Principal, power: Power) -> Option<&Arc<Operator>> {
        if self.refuses(caller).is_some() {
            return None;
        }
        self.data.operators.values().find(|operator| operator.is(caller) && operator.powers.contains(&power))
    }

    /// Why a caller is not whom this state knows by that name, whatever it asks for.
    ///
    /// INVARIANT (P5): trust in an issuer that was taken back or changed since its token was verified is gone.
    pub fn refuses(&self, caller: &Principal) -> Option<DenyReason> {
        let revoked = |client: &ClientId| self.is_revoked(&Target::Client(client.clone()));
        if !self.revocations.is_empty() {
            if revoked(&caller.client) || caller.certificate_beside().is_some_and(revoked) {
                return Some(DenyReason::ClientRevoked);
            }
            if caller.client.issuer().is_some_and(|issuer| self.is_revoked(&Target::Issuer(issuer))) {
                return Some(DenyReason::IssuerRevoked);
            }
        }
        let trusted = match &caller.vouched {
            Some(vouched) => {
                let known = self.data.issuers.get(&vouched.issuer.name);
                known.is_some_and(|known| Arc::ptr_eq(known, &vouched.issuer) || known == &vouched.issuer)
            }
            None => caller.client.trust_domain().is_some() || caller.client.dns_name().is_some(),
        };
        (!trusted).then_some(DenyReason::IssuerNotTrusted)
    }

    /// Whether somebody could still administer if this client were revoked, too. A pattern with a `*` may always have
    /// another caller.
    pub fn has_administrator_beside(&self, client: Option<&ClientId>) -> bool {
        self.administrators().any(|pattern| self.may_act(pattern, |name| Some(name) != client))
    }

    /// Whether somebody could still administer without anyone that this issuer vouches for.
    pub fn has_administrator_without(&self, issuer: &IssuerName) -> bool {
        let mut others = self.administrators().filter(|pattern| pattern.issuer() != Some(issuer));
        others.any(|pattern| self.may_act(pattern, |_| true))
    }

    /// Whether somebody could lift an operator's seal: by the name in a certificate, as a sealed broker trusts no issuer.
    pub fn could_be_unsealed(&self) -> bool {
        let mut holders = self.data.operators.values().filter(|operator| operator.powers.contains(&Power::Unseal));
        holders.any(|it| it.clients.iter().any(|name| name.issuer().is_none() && self.may_act(name, |_| true)))
    }

    /// Whether some changes take two operators.
    pub fn asks_for_approval(&self) -> bool {
        self.data.ceilings.values().any(|ceiling| ceiling.require_approval && !ceiling.shadow)
    }

    /// Whether there are two who could administer, under different names and for different clients.
    pub fn has_two_administrators(&self) -> bool {
        let administers = |operator: &&Arc<Operator>| operator.powers.contains(&Power::Administer);
        let acting = |operator: &Arc<Operator>| -> Vec<ClientPattern> {
            operator.clients.iter().filter(|pattern| self.may_act(pattern, |_| true)).cloned().collect()
        };
        let all: Vec<Vec<ClientPattern>> = self.data.operators.values().filter(administers).map(acting).collect();
        let differ = |one: &[ClientPattern], other: &[ClientPattern]| one.iter().any(|a| other.iter().any(|b| a != b));
        all.iter().enumerate().any(|(at, one)| all.iter().skip(at.saturating_add(1)).any(|other| differ(one, other)))
    }

    fn administrators(&self) -> impl Iterator<Item = &ClientPattern> {
        let administers = |operator: &&Arc<Operator>| operator.powers.contains(&Power::Administer);
        self.data.operators.values().filter(administers).flat_map(|operator| &operator.clients)
    }

    fn may_act(&self, pattern: &ClientPattern, counts: impl Fn(&ClientId) -> bool) -> bool {
        let vouches = |issuer: &IssuerName| {
            self.data.issuers.contains_key(issuer) && !self.is_revoked(&Target::Issuer(issuer.clone()))
        };
        pattern.issuer().is_none_or(vouches)
            && pattern.exact().is_none_or(|name| counts(&name) && !self.is_client_revoked(&name))
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
