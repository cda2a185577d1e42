//! Whether what would be there after a change can be: every reference, and every rule that needs more than one thing.

use std::collections::{BTreeMap, BTreeSet};

use crate::domain::change::ObjectName;
use crate::domain::document::{Desired, Violation};
use crate::domain::issuer::Issuer;
use crate::domain::pattern::ClientPattern;
use crate::domain::policy::MOST_PER_APP_GROUP;
use crate::domain::state::State;
use crate::id::{AppGroupName, IssuerName};

/// Everything that can't be in `after`, told by the paths of the document that would make it so.
pub(super) fn violations(desired: &Desired, removed: &[ObjectName], state: &State, after: &State) -> Vec<Violation> {
    let mut found = Found(Vec::new());
    found.of_accounts(desired, state, after);
    found.of_issuers(desired, state, after);
    found.of_groups_named(desired, after);
    found.of_policies(desired, after);
    found.of_patterns(desired, after);
    found.of_removals(removed, state, after);
    // INVARIANT (INV-PLAN-2)
    if !after.has_administrator_beside(None) {
        found.refuse(
            "operators".to_owned(),
            "nobody who is not revoked would be left with the power `administer`".to_owned(),
        );
    }
    // INVARIANT (INV-PLAN-3): with one, nobody could approve a change any more, this one's undoing included.
    let stuck = |state: &State| state.asks_for_approval() && !state.has_two_administrators();
    if stuck(after) && !stuck(state) {
        found.refuse(
            "operators".to_owned(),
            "a ceiling with require_approval takes two operators with the power `administer`, under different names and \
             for different clients: nobody could approve a change otherwise"
                .to_owned(),
        );
    }
    found.0
}

struct Found(Vec<Violation>);

impl Found {
    fn refuse(&mut self, path: String, message: String) {
        self.0.push(Violation { path, message });
    }

    fn of_accounts(&mut self, desired: &Desired, state: &State, after: &State) {
        for (at, group) in desired.app_groups.iter().enumerate() {
            if !after.accounts().contains_key(&group.account) {
                self.refuse(format!("app_groups[{at}].account"), unknown("account", group.account.as_str()));
            }
            let moved = state.app_groups().get(&group.name).is_some_and(|before| before.account != group.account);
            if moved && !state.keys_of(&group.name).is_empty() {
                self.refuse(
                    format!("app_groups[{at}].account"),
                    "the group has keys of its present account; make a group of another name".to_owned(),
                );
            }
        }
        for (at, account) in desired.accounts.iter().enumerate() {
            let before = state.accounts().get(&account.name);
            let has_keys = state.keys().values().any(|key| key.account == account.name);
            if has_keys && before.is_some_and(|before| before.issuer_id != account.issuer_id) {
                self.refuse(
                    format!("accounts[{at}].issuer_id"),
                    "the account has keys, which Apple issued under its present Issuer ID; make an account of another name".to_owned(),
                );
            }
        }
    }

    fn of_issuers(&mut self, desired: &Desired, state: &State, after: &State) {
        for (at, issuer) in desired.issuers.iter().enumerate() {
            let twin = after.issuers().values().find(|other| other.url == issuer.url && other.name != issuer.name);
            if let Some(twin) = twin {
                // A token must be one issuer's: its caller has one name.
                let message = format!("is the url of issuer `{}`, too: name its audiences and claims there", twin.name);
                self.refuse(format!("issuers[{at}].url"), message);
            }
            if state.issuers().get(&issuer.name).is_some_and(|before| **before != *issuer) {
                self.of_those_who_rely_on(issuer, &format!("issuers[{at}]"), desired, after);
            }
        }
    }

    /// An issuer that changes may leave patterns too wide that stood on what it said before.
    fn of_those_who_rely_on(&mut self, issuer: &Issuer, path: &str, desired: &Desired, after: &State) {
        let policies = after.policies().values().map(|it| (ObjectName::Policy(it.name.clone()), &it.clients));
        let operators = after.operators().values().map(|it| (ObjectName::Operator(it.name.clone()), &it.clients));
        let ceilings = after.ceilings().values().map(|it| (ObjectName::Ceiling(it.name.clone()), &it.callers.clients));
        // What the document names has been told by its own path.
        let named = |name: &ObjectName| match name {
            ObjectName::Policy(name) => desired.policies.iter().any(|it| it.name == *name),
            ObjectName::Operator(name) => desired.operators.iter().any(|it| it.name == *name),
            ObjectName::Ceiling(name) => desired.ceilings.iter().any(|it| it.name == *name),
            ObjectName::Account(_) | ObjectName::AppGroup(_) | ObjectName::Issuer(_) => false,
        };
        for (name, clients) in policies.chain(operators).chain(ceilings) {
            let mut theirs = clients.iter().filter(|pattern| pattern.issuer() == Some(&issuer.name));
            if theirs.any(|pattern| is_loose(pattern, issuer)) && !named(&name) {
                let advice = issuer.kind.anchor_advice();
                self.refuse(
                    path.to_owned(),
                    format!("{name} would match too much without what this says now: {advice}"),
                );
            }
        }
    }

    fn of_groups_named(&mut self, desired: &Desired, after: &State) {
        let mut named: Vec<(String, &AppGroupName)> = Vec::new();
        for (at, policy) in desired.policies.iter().enumerate() {
            named.push((format!("policies[{at}].app_group"), &policy.app_group));
        }
        for (at, operator) in desired.operators.iter().enumerate() {
            let groups = operator.app_groups.iter().enumerate();
            named.extend(groups.map(|(nth, group)| (format!("operators[{at}].app_groups[{nth}]"), group)));
        }
        for (at, ceiling) in desired.ceilings.iter().enumerate() {
            let groups = ceiling.app_groups.iter().flatten().enumerate();
            named.extend(groups.map(|(nth, group)| (format!("ceilings[{at}].app_groups[{nth}]"), group)));
        }
        for (path, group) in named {
            if !after.app_groups().contains_key(group) {
                self.refuse(path, unknown("app group", group.as_str()));
            }
        }
    }

    fn of_policies(&mut self, desired: &Desired, after: &State) {
        for (at, policy) in desired.policies.iter().enumerate() {
            let count = after.policies_of(&policy.app_group).len();
            if count > MOST_PER_APP_GROUP {
                let message = format!(
                    "`{}` would have {count} policies; at most {MOST_PER_APP_GROUP} for one app group",
                    policy.app_group
                );
                self.refuse(format!("policies[{at}].app_group"), message);
            }
        }
    }

    /// Patterns over what issuers say: the issuer must be there, and the pattern must say whose tokens it means.
    fn of_patterns(&mut self, desired: &Desired, after: &State) {
        let policies = desired.policies.iter().map(|it| &it.clients);
        let operators = desired.operators.iter().map(|it| &it.clients);
        let ceilings = desired.ceilings.iter().map(|it| &it.callers.clients);
        let lists = [
            ("policies", policies.collect::<Vec<_>>()),
            ("operators", operators.collect()),
            ("ceilings", ceilings.collect()),
        ];
        for (list, all) in lists {
            for (at, clients) in all.into_iter().enumerate() {
                for (nth, pattern) in clients.iter().enumerate() {
                    self.of_pattern(&format!("{list}[{at}].clients[{nth}].oidc"), pattern, after);
                }
            }
        }
        for (at, ceiling) in desired.ceilings.iter().enumerate() {
            for (nth, issuer) in ceiling.callers.issuers.iter().enumerate() {
                if !after.issuers().contains_key(issuer) {
                    self.refuse(format!("ceilings[{at}].issuers[{nth}]"), unknown("issuer", issuer.as_str()));
                }
            }
        }
    }

    fn of_pattern(&mut self, path: &str, pattern: &ClientPattern, after: &State) {
        let ClientPattern::Vouched(vouched) = pattern else { return };
        let Some(issuer) = after.issuers().get(&vouched.issuer) else {
            return self.refuse(format!("{path}.issuer"), unknown("issuer", vouched.issuer.as_str()));
        };
        if is_loose(pattern, issuer) {
            let message = format!("matches too much: {}", issuer.kind.anchor_advice());
            self.refuse(path.to_owned(), message);
        }
    }

    /// INVARIANT (INV-PLAN-1): removing asks of what stays.
    fn of_removals(&mut self, removed: &[ObjectName], state: &State, after: &State) {
        if removed.is_empty() {
            return;
        }
        let groups: BTreeMap<_, _> = after.app_groups().values().map(|it| (&it.name, &it.account)).collect();
        let issuers = issuers_named(after);
        let confining: BTreeSet<&AppGroupName> = after.operators().values().flat_map(|it| &it.app_groups).collect();
        for name in removed {
            let used = match name {
                ObjectName::Account(name) => {
                    groups.values().any(|account| *account == name)
                        || state.keys().values().any(|key| key.account == *name)
                }
                ObjectName::AppGroup(name) => {
                    let ceilings = || after.ceilings().values().filter_map(|it| it.app_groups.as_ref());
                    !after.policies_of(name).is_empty()
                        || !state.keys_of(name).is_empty()
                        || confining.contains(name)
                        || ceilings().any(|groups| groups.contains(name))
                }
                ObjectName::Issuer(name) => issuers.contains(name),
                ObjectName::Policy(_) | ObjectName::Operator(_) | ObjectName::Ceiling(_) => false,
            };
            if used {
                let message = "is still used by policies, groups, ceilings, operators or keys; it can't be removed";
                self.refuse(name.to_string(), message.to_owned());
            }
        }
    }
}

/// Whether a pattern over an issuer's callers does not say whose tokens it means, and neither does the issuer.
fn is_loose(pattern: &ClientPattern, issuer: &Issuer) -> bool {
    let ClientPattern::Vouched(vouched) = pattern else { return false };
    !issuer.kind.is_anchored(vouched.subject.as_ref(), &vouched.claims)
        && !issuer.kind.is_anchored(issuer.subject.as_ref(), &issuer.claims)
}

fn issuers_named(state: &State) -> BTreeSet<&IssuerName> {
    let policies = state.policies().values().flat_map(|policy| &policy.clients);
    let operators = state.operators().values().flat_map(|operator| &operator.clients);
    let ceilings = state.ceilings().values();
    let patterns = policies.chain(operators).chain(ceilings.clone().flat_map(|it| &it.callers.clients));
    patterns.filter_map(ClientPattern::issuer).chain(ceilings.flat_map(|it| &it.callers.issuers)).collect()
}

fn unknown(kind: &str, name: &str) -> String {
    format!("there is no {kind} `{name}`, neither in the document nor in the vault")
}
