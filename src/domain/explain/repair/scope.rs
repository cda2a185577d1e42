//! What mends a scope that is missing, or that a policy does not grant.

use std::collections::BTreeSet;

use super::{Step, World};
use crate::domain::decide::TokenRequest;
use crate::domain::feature::{self, Access, FeatureGrant};
use crate::domain::operation::{Operation, OperationTemplate};
use crate::domain::policy::Policy;
use crate::id::AppId;

/// Asking with a scope: the caller's to do, whoever asks for it.
pub(super) fn ask_with_one(world: &World<'_>, policy: &Policy) -> Option<Step> {
    // Where both ask for one, it is the ceiling that no policy gets around.
    let ceiling = world.state.bounds_of(&policy.app_group).find_map(|bounds| bounds.requires_scope());
    let group = world.state.app_groups().get(&policy.app_group)?;
    let example = examples(policy, &group.apps).find(|entry| grants(policy, entry, &group.apps))?;
    let sentence = match ceiling {
        None => format!("ask with a scope, such as `{example}`, as policy {} wants one", policy.name),
        Some(name) => format!("ask with a scope, such as `{example}`; no policy may do without, by ceiling {name}"),
    };
    let request = TokenRequest { scope: vec![example], ..world.request.clone() };
    Some(Step { beyond_policies: ceiling.is_some(), ..Step::caller(sentence, request) })
}

/// Reads that a policy may grant: its own, those of its features, and any.
fn examples<'a>(policy: &'a Policy, apps: &BTreeSet<AppId>) -> impl Iterator<Item = Operation> + use<'a> {
    let app = apps.first().map_or("1", AppId::as_str).to_owned();
    let any = format!("GET /v1/apps/{app}");
    let own = policy.operations.iter().map(move |template| template.to_string().replace("{app}", &app));
    let families = feature::families().filter(|(_, feature)| feature.is_ok());
    let of_features = families.map(|(family, _)| format!("GET /v1/{family}"));
    own.chain([any]).chain(of_features).filter_map(|text| Operation::parse(&text).ok())
}

fn grants(policy: &Policy, entry: &Operation, apps: &BTreeSet<AppId>) -> bool {
    policy.refused_entry(std::slice::from_ref(entry), apps).is_none()
}

/// Each entry that the policy does not grant, as an operation; where a feature that writes leaves no room for operations,
/// as the feature that it belongs to.
pub(super) fn grant_it(world: &World<'_>, policy: &Policy) -> Option<Step> {
    let group = world.state.app_groups().get(&policy.app_group)?;
    let refused = || world.request.scope.iter().filter(|entry| !grants(policy, entry, &group.apps));
    let mut wider = policy.clone();
    let (what, more): (&str, Vec<String>) = if policy.writes() {
        let read = |feature| FeatureGrant { feature, access: Access::Read };
        let features: BTreeSet<_> = refused().filter_map(feature::feature_of).map(read).collect();
        wider.features.extend(&features);
        wider.features.sort();
        ("feature", features.iter().map(ToString::to_string).collect())
    } else {
        let operations: Vec<_> = refused().filter_map(|it| OperationTemplate::parse(&it.to_string()).ok()).collect();
        let texts = operations.iter().map(ToString::to_string).collect();
        wider.operations.extend(operations);
        ("operation", texts)
    };
    // A read that belongs to no feature, or asks for more than its own: nothing that the policy can say grants it.
    if more.is_empty() || wider.refused_entry(&world.request.scope, &group.apps).is_some() {
        return None;
    }
    let plural = if more.len() == 1 { "" } else { "s" };
    let sentence = format!("add the {what}{plural} `{}` to policy {}", more.join("`, `"), policy.name);
    Some(Step { changes: more.len(), ..Step::policy(sentence, wider) })
}
