//! Each ceiling over the app group: whether it alone stands in the way of the request. One that only counts is asked of what
//! it counted, where the request is granted: that is decided with it beside those in force.

use std::sync::Arc;

use super::{Considered, listed};
use crate::domain::ceiling::{Bounds, Ceiling};
use crate::domain::decide::{Denial, DenyReason, Permit, Shadow, TokenRequest, has_individual_keys, passed_over};
use crate::domain::role::{Role, RoleSet};
use crate::domain::state::State;

/// Each ceiling over the group, by name.
pub(super) fn considered(request: &TokenRequest, decision: &Result<Permit, Denial>, state: &State) -> Vec<Considered> {
    let ceilings = state.ceilings().values().filter(|ceiling| ceiling.holds_for(&request.app_group));
    ceilings.map(|ceiling| one(ceiling, request, decision, state)).collect()
}

fn one(ceiling: &Arc<Ceiling>, request: &TokenRequest, decision: &Result<Permit, Denial>, state: &State) -> Considered {
    let alone = forbids(ceiling, request, state);
    let forbids = match decision {
        Ok(permit) if ceiling.shadow => {
            let counted = |it: &&Shadow| it.kind == "ceiling" && it.name == ceiling.name.as_str();
            permit.shadows().iter().find(counted).map(|it| it.reason)
        }
        Ok(_) => alone,
        // What it keeps from the policy that came nearest it may not keep from every policy, and is in the way all the same.
        Err(denial) => alone.or_else(|| (denial.ceiling.as_ref() == Some(&ceiling.name)).then_some(denial.reason)),
    };
    let what = forbids.map(|reason| match reason {
        // By itself it would leave other keys, and other policies that grant them.
        DenyReason::TeamKeyOverCeiling | DenyReason::KeyExceedsPolicy if ceiling.shadow && alone != forbids => {
            "beside what policies grant and other ceilings leave, it would leave no key".to_owned()
        }
        reason => words(reason, ceiling, request),
    });
    let (reason, explanation) = match (ceiling.shadow, forbids.zip(what)) {
        (true, Some((reason, what))) => {
            (None, format!("it only counts: it would refuse this ({reason}), as {what}", reason = reason.as_str()))
        }
        (true, None) => (None, "it only counts, and would refuse nothing here".to_owned()),
        (false, Some((reason, what))) => (Some(reason), what),
        (false, None) => (None, narrows(ceiling)),
    };
    Considered {
        kind: "ceiling",
        name: ceiling.name.to_string(),
        passes: reason.is_none(),
        reason: reason.map(DenyReason::as_str).unwrap_or_default(),
        explanation,
    }
}

/// What the ceiling alone forbids every policy, in the order in which a decision looks at it.
fn forbids(ceiling: &Arc<Ceiling>, request: &TokenRequest, state: &State) -> Option<DenyReason> {
    let bounds = Bounds::of([ceiling]);
    if bounds.forbids_caller(&request.principal).is_some() {
        return Some(DenyReason::CallerOverCeiling);
    }
    if bounds.forbids_role(request.role).is_some() {
        return Some(DenyReason::RoleOverCeiling);
    }
    if bounds.requires_scope().is_some() && request.scope.is_empty() {
        return Some(DenyReason::ScopeRequired);
    }
    // Under a policy that grants every role: are there keys, and does the ceiling leave none of them?
    let group = state.app_groups().get(&request.app_group)?;
    let keys = state.keys_of(&group.name);
    let some = |roles: RoleSet, team_keys: bool| {
        keys.iter().any(|key| passed_over(key, request.role, roles, team_keys, group).is_none())
    };
    let every: RoleSet = Role::ALL.iter().copied().collect();
    let left = every.without(bounds.never_roles());
    let team_keys = bounds.forbids_team_keys().is_none() || !has_individual_keys(keys);
    if !some(every, true) || some(left, team_keys) {
        return None;
    }
    Some(if some(left, true) { DenyReason::TeamKeyOverCeiling } else { DenyReason::KeyExceedsPolicy })
}

fn words(reason: DenyReason, ceiling: &Ceiling, request: &TokenRequest) -> String {
    match reason {
        DenyReason::CallerOverCeiling => {
            let callers = &ceiling.callers;
            let clients = callers.clients.iter().map(ToString::to_string);
            let issuers = callers.issuers.iter().map(|name| format!("all of issuer {name}"));
            let domains = callers.trust_domains.iter().map(|domain| format!("all of trust domain {domain}"));
            format!("it allows only {}", listed(clients.chain(issuers).chain(domains)))
        }
        DenyReason::RoleOverCeiling => format!("it allows nobody {}", request.role),
        DenyReason::ScopeRequired => "it asks for a scope in every token".to_owned(),
        DenyReason::TeamKeyOverCeiling => {
            "it allows no team key where there are individual ones, and none of those will do".to_owned()
        }
        _ => format!("it allows nobody {}, and every key with the role {} has that", ceiling.never_roles, request.role),
    }
}

/// What it says beside that.
fn narrows(ceiling: &Ceiling) -> String {
    let mut out = vec!["it forbids nothing of this".to_owned()];
    out.extend(ceiling.max_ttl_s.map(|most| format!("tokens live {most}s at most")));
    if !ceiling.never_roles.is_empty() {
        out.push(format!("no key with {} signs", ceiling.never_roles));
    }
    out.join("; ")
}
