//! What only counts: what a policy or ceiling in shadow mode would have refused of what was granted.
//!
//! A policy would have refused what it does not grant to a caller that it names. A ceiling would have refused a request that
//! is denied under it, whatever policy and key are left: the request is decided once more with each, so that a report says
//! what will be refused once it counts. A shorter life is no refusal.

use super::{DenyReason, Ground, TokenRequest};
use crate::clock::UnixMillis;
use crate::domain::state::{GroupPolicies, State};

/// What something that only counts would have refused.
#[derive(Debug, Clone, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct Shadow {
    /// `policy` or `ceiling`.
    pub kind: &'static str,
    /// Its name.
    pub name: String,
    /// Why it would have refused.
    pub reason: DenyReason,
}

impl<'a> Ground<'a> {
    /// What would have been refused of a request that is granted.
    pub(super) fn shadows(
        &self,
        request: &TokenRequest,
        policies: &'a GroupPolicies,
        state: &'a State,
        now: UnixMillis,
    ) -> Vec<Shadow> {
        let mut out = Vec::new();
        for (name, bounds) in state.shadows_of(&request.app_group) {
            let bounds = self.bounds.iter().copied().chain([bounds]).collect();
            let under = Ground::under(&request.app_group, bounds, state);
            if let Err(Some((miss, _))) = under.best(request, policies, state, now) {
                out.push(Shadow { kind: "ceiling", name: name.to_string(), reason: miss.reason });
            }
        }
        if policies.has_shadows() {
            let caller = self.caller(&request.principal);
            for policy in policies.naming(&request.principal).filter(|policy| policy.shadow) {
                if let Err(miss) = self.grant(request, &caller, policy, state, now) {
                    out.push(Shadow { kind: "policy", name: policy.name.to_string(), reason: miss.reason });
                }
            }
        }
        out
    }
}
