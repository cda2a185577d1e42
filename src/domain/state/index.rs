//! What a decision looks up: the policies of one group, by whom they may mean, and the ceilings over it, as one.
//!
//! Derived from the documents, and built anew for each group that a change of documents touches. A decision must cost no
//! more where there are many policies: those that name a client exactly, or an issuer with a claim exactly, are found by
//! that; only those with a `*` are looked at one by one.
//!
//! # Invariants
//! - `INV-INDEX-1`: what the index answers is what looking at every policy would: it leaves out only what can't match.

use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::sync::Arc;

use super::Snapshot;
use crate::domain::ceiling::{Bounds, Ceiling};
use crate::domain::change::{Object, ObjectName};
use crate::domain::pattern::ClientPattern;
use crate::domain::policy::Policy;
use crate::domain::principal::Principal;
use crate::id::{AppGroupName, CeilingName, ClientId, IssuerName};

/// The policies of one group.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct GroupPolicies {
    /// All of them, by name.
    policies: Vec<Arc<Policy>>,
    /// Where those that count are, by the exact name of a client.
    by_client: HashMap<ClientId, Vec<usize>>,
    /// By issuer, the name of a claim (`sub` for the subject), and its exact value.
    by_claim: HashMap<IssuerName, BTreeMap<String, HashMap<String, Vec<usize>>>>,
    /// Those that have to be looked at one by one.
    loose: Vec<usize>,
    has_shadows: bool,
    /// Claims that some pattern asks about.
    claims: BTreeSet<String>,
}

/// A ceiling that is looked at by itself.
type Alone = (CeilingName, Bounds);

/// All groups, and the ceilings over them.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub(super) struct Index {
    groups: Arc<HashMap<AppGroupName, Arc<GroupPolicies>>>,
    everywhere: Arc<Bounds>,
    bounds: Arc<HashMap<AppGroupName, Bounds>>,
    /// Ceilings that only count, each for itself: those that hold everywhere, and those of each group.
    shadows_everywhere: Arc<Vec<Alone>>,
    shadows: Arc<HashMap<AppGroupName, Vec<Alone>>>,
}

impl GroupPolicies {
    fn of(policies: Vec<Arc<Policy>>) -> Self {
        let mut out = Self { policies, ..Self::default() };
        for (at, policy) in out.policies.iter().enumerate() {
            out.has_shadows |= policy.shadow;
            for pattern in &policy.clients {
                if let ClientPattern::Vouched(vouched) = pattern {
                    out.claims.extend(vouched.claims.keys().cloned());
                }
                match place(pattern) {
                    Place::Client(client) => out.by_client.entry(client).or_default().push(at),
                    Place::Claim(issuer, claim, values) => {
                        let claims = out.by_claim.entry(issuer).or_default().entry(claim).or_default();
                        for value in values {
                            claims.entry(value).or_default().push(at);
                        }
                    }
                    Place::Loose => out.loose.push(at),
                }
            }
        }
        out
    }

    /// All policies, by name.
    pub fn all(&self) -> &[Arc<Policy>] {
        &self.policies
    }

    /// The claims that their patterns ask about.
    pub fn claims_named(&self) -> impl Iterator<Item = &str> {
        self.claims.iter().map(String::as_str)
    }

    /// Whether one of them only counts.
    pub fn has_shadows(&self) -> bool {
        self.has_shadows
    }

    /// Those that name the caller, by name.
    pub fn naming<'s, 'p>(&'s self, principal: &'p Principal) -> impl Iterator<Item = &'s Arc<Policy>> + use<'s, 'p> {
        let mut found: Vec<usize> = Vec::new();
        found.extend(self.by_client.get(&principal.client).into_iter().flatten());
        if let Some(vouched) = &principal.vouched
            && let Some(claims) = self.by_claim.get(&vouched.issuer.name)
        {
            for (claim, by_value) in claims {
                if claim == "sub" {
                    found.extend(by_value.get(&vouched.subject).into_iter().flatten());
                }
                for value in vouched.claims.values(claim) {
                    found.extend(by_value.get(value).into_iter().flatten());
                }
            }
        }
        found.extend(&self.loose);
        found.sort_unstable();
        found.dedup();
        // INVARIANT (INV-INDEX-1): what was found is asked again, all of it.
        found.into_iter().filter_map(|at| self.policies.get(at)).filter(|policy| policy.names(principal))
    }
}

enum Place {
    Client(ClientId),
    Claim(IssuerName, String, Vec<String>),
    Loose,
}

fn place(pattern: &ClientPattern) -> Place {
    let ClientPattern::Vouched(vouched) = pattern else {
        return pattern.exact().map_or(Place::Loose, Place::Client);
    };
    if let Some(subject) = vouched.subject.as_ref().filter(|glob| glob.is_exact()) {
        return Place::Claim(vouched.issuer.clone(), "sub".to_owned(), vec![subject.to_string()]);
    }
    let exact = vouched.claims.iter().filter(|(_, globs)| globs.iter().all(|glob| glob.is_exact()));
    // Ids tell more apart than names do.
    match exact.max_by_key(|(name, _)| (name.ends_with("_id"), name.starts_with("repo"), name.starts_with("project"))) {
        Some((name, globs)) => {
            Place::Claim(vouched.issuer.clone(), name.clone(), globs.iter().map(ToString::to_string).collect())
        }
        None => Place::Loose,
    }
}

impl Index {
    pub(super) fn of(data: &Snapshot) -> Self {
        let mut out = Self::default();
        out.group_all(data);
        out.compile(data);
        out
    }

    fn group_all(&mut self, data: &Snapshot) {
        let mut by_group: HashMap<AppGroupName, Vec<Arc<Policy>>> = HashMap::new();
        for policy in data.policies.values() {
            by_group.entry(policy.app_group.clone()).or_default().push(Arc::clone(policy));
        }
        let groups = by_group.into_iter().map(|(name, policies)| (name, Arc::new(GroupPolicies::of(policies))));
        self.groups = Arc::new(groups.collect());
    }

    fn compile(&mut self, data: &Snapshot) {
        let counting = || data.ceilings.values().filter(|it| !it.shadow);
        self.everywhere = Arc::new(Bounds::of(counting().filter(|it| it.app_groups.is_none())));
        let mut lists: BTreeMap<&AppGroupName, Vec<&Arc<Ceiling>>> = BTreeMap::new();
        for ceiling in counting() {
            for group in ceiling.app_groups.iter().flatten() {
                lists.entry(group).or_default().push(ceiling);
            }
        }
        let by_group = lists.into_iter().map(|(group, ceilings)| (group.clone(), Bounds::of(ceilings)));
        self.bounds = Arc::new(by_group.collect());
        let mut everywhere = Vec::new();
        let mut by_group: HashMap<AppGroupName, Vec<Alone>> = HashMap::new();
        for ceiling in data.ceilings.values().filter(|it| it.shadow) {
            let alone = (ceiling.name.clone(), Bounds::of([ceiling]));
            match &ceiling.app_groups {
                None => everywhere.push(alone),
                Some(groups) => {
                    for group in groups {
                        by_group.entry(group.clone()).or_default().push(alone.clone());
                    }
                }
            }
        }
        self.shadows_everywhere = Arc::new(everywhere);
        self.shadows = Arc::new(by_group);
    }

    /// Takes a change of documents in, of which `before` are the policies that it replaces or removes.
    pub(super) fn apply(&mut self, data: &Snapshot, put: &[Object], removed: &[ObjectName], before: &[Arc<Policy>]) {
        let mut groups: BTreeSet<&AppGroupName> = before.iter().map(|policy| &policy.app_group).collect();
        let mut ceilings = removed.iter().any(|name| matches!(name, ObjectName::Ceiling(_)));
        for object in put {
            match object {
                Object::Policy(policy) => drop(groups.insert(&policy.app_group)),
                Object::Ceiling(_) => ceilings = true,
                Object::Account(_) | Object::AppGroup(_) | Object::Operator(_) | Object::Issuer(_) => {}
            }
        }
        // Walking all policies once is cheaper than once for each of many groups.
        if groups.len() > 1 {
            self.group_all(data);
        } else if let Some(group) = groups.into_iter().next() {
            let policies: Vec<_> = data.policies.values().filter(|it| it.app_group == *group).cloned().collect();
            let all = Arc::make_mut(&mut self.groups);
            if policies.is_empty() {
                all.remove(group);
            } else {
                all.insert(group.clone(), Arc::new(GroupPolicies::of(policies)));
            }
        }
        if ceilings {
            self.compile(data);
        }
    }

    pub(super) fn policies_of(&self, group: &AppGroupName) -> Option<&GroupPolicies> {
        self.groups.get(group).map(Arc::as_ref)
    }

    /// The ceilings over a group: those that hold everywhere, and its own.
    pub(super) fn bounds_of(&self, group: &AppGroupName) -> [Option<&Bounds>; 2] {
        [Some(self.everywhere.as_ref()), self.bounds.get(group)]
    }

    /// The ceilings over a group that only count, each for itself: those that hold everywhere, and its own.
    pub(super) fn shadows_of(&self, group: &AppGroupName) -> impl Iterator<Item = (&CeilingName, &Bounds)> + Clone {
        let own = self.shadows.get(group).map_or(&[][..], Vec::as_slice);
        self.shadows_everywhere.iter().chain(own).map(|(name, bounds)| (name, bounds))
    }
}
