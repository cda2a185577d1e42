//! What a change of documents makes of a state.

use std::sync::Arc;

use super::State;
use crate::domain::change::{Object, ObjectName};
use crate::domain::policy::Policy;
use crate::id::Revision;

impl State {
    /// What the state would hold if this were applied, for a plan to look at.
    pub(in crate::domain) fn preview(&mut self, put: &[Object], removed: &[ObjectName]) {
        self.apply_document(put, removed, self.head.revision.next());
    }

    pub(super) fn apply_document(&mut self, put: &[Object], removed: &[ObjectName], at: Revision) {
        let names = put.iter().map(Object::name).chain(removed.iter().cloned());
        if names.into_iter().any(|name| matches!(name, ObjectName::Operator(_) | ObjectName::Issuer(_))) {
            self.data.authority_moved = at;
        }
        let replaced = self.replaced_policies(put, removed);
        for object in put {
            match object {
                Object::Account(account) => {
                    self.data.accounts.insert(account.name.clone(), account.clone());
                }
                Object::AppGroup(group) => {
                    Arc::make_mut(&mut self.data.app_groups).insert(group.name.clone(), Arc::new(group.clone()));
                }
                Object::Policy(policy) => {
                    // A policy that says something else was not opened by anybody.
                    self.data.break_glass.remove(&policy.name);
                    Arc::make_mut(&mut self.data.policies).insert(policy.name.clone(), Arc::clone(policy));
                }
                Object::Operator(operator) => {
                    self.data.operators.insert(operator.name.clone(), Arc::new(operator.clone()));
                }
                Object::Issuer(issuer) => {
                    self.data.issuers.insert(issuer.name.clone(), Arc::clone(issuer));
                }
                Object::Ceiling(ceiling) => {
                    self.data.ceilings.insert(ceiling.name.clone(), Arc::clone(ceiling));
                }
            }
        }
        for name in removed {
            match name {
                ObjectName::Account(name) => drop(self.data.accounts.remove(name)),
                ObjectName::AppGroup(name) => drop(Arc::make_mut(&mut self.data.app_groups).remove(name)),
                ObjectName::Policy(name) => {
                    self.data.break_glass.remove(name);
                    Arc::make_mut(&mut self.data.policies).remove(name);
                }
                ObjectName::Operator(name) => drop(self.data.operators.remove(name)),
                ObjectName::Issuer(name) => drop(self.data.issuers.remove(name)),
                ObjectName::Ceiling(name) => drop(self.data.ceilings.remove(name)),
            }
        }
        self.index.apply(&self.data, put, removed, &replaced);
    }

    /// Policies as they were before a change of documents.
    fn replaced_policies(&self, put: &[Object], removed: &[ObjectName]) -> Vec<Arc<Policy>> {
        let put =
            put.iter().filter_map(|object| if let Object::Policy(policy) = object { Some(&policy.name) } else { None });
        let removed =
            removed.iter().filter_map(|name| if let ObjectName::Policy(name) = name { Some(name) } else { None });
        put.chain(removed).filter_map(|name| self.data.policies.get(name)).cloned().collect()
    }
}
