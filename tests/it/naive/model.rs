//! The decision as `docs/policies.md` describes it, section by section, with no eye to speed.

use super::book::Book;
use super::rules::{asks_for_a_scope, end_of_hours, is_among, is_granted, is_named, may_live_long, names};
use super::world::{Apps, Ask, Ceiling, Key, KeyState, Policy, World};

/// The longest life of an ordinary token, in seconds: Apple's 20 minutes, less the backdating and the spare minute.
const LONGEST_S: i64 = 18 * 60;

/// The same of one with long-lived reads alone: 180 days.
const LONGEST_LONG_S: i64 = 180 * 24 * 3600 - 120;

#[derive(Debug, PartialEq, Eq)]
pub enum Answer {
    Allow { policy: String, key: String, expires_at: i64, shadows: Vec<(String, String, String)> },
    Deny { reason: String, policy: Option<String>, ceiling: Option<String> },
}

struct Miss {
    reason: &'static str,
    ceiling: Option<String>,
}

struct Grant<'a> {
    policy: &'a Policy,
    key: &'a Key,
    expires_at: i64,
}

/// "How a request is decided".
pub fn decide(world: &World, ask: &Ask, book: &Book, count: &mut dyn FnMut(&str)) -> Answer {
    let denied = |reason: &str| Answer::Deny { reason: reason.to_owned(), policy: None, ceiling: None };
    let caller = &ask.caller;
    // 1.
    if world.sealed {
        return denied("SEALED");
    }
    if world.is_revoked("client", &caller.name)
        || caller.certificate.as_ref().is_some_and(|name| world.is_revoked("client", name))
    {
        return denied("CLIENT_REVOKED");
    }
    if let Some(issuer) = &caller.issuer {
        if world.is_revoked("issuer", issuer) {
            return denied("ISSUER_REVOKED");
        }
        if !world.issuers.contains(issuer) || caller.stale {
            return denied("ISSUER_NOT_TRUSTED");
        }
    }
    // 2. to 5.
    let ceilings: Vec<&Ceiling> = world.ceilings_over(&ask.group).into_iter().filter(|it| !it.shadow).collect();
    match best(world, ask, &ceilings, book, count) {
        Err((policy, miss)) => Answer::Deny { reason: miss.reason.to_owned(), policy, ceiling: miss.ceiling },
        Ok(granted) => {
            // "Shadow mode".
            let mut shadows = Vec::new();
            for policy in world.policies.iter().filter(|it| it.shadow && it.group == ask.group && names(it, caller)) {
                if let Err(miss) = judge(world, policy, ask, &ceilings, book, count) {
                    shadows.push(("policy".to_owned(), policy.name.clone(), miss.reason.to_owned()));
                }
            }
            for ceiling in world.ceilings_over(&ask.group).into_iter().filter(|it| it.shadow) {
                // As if it counted, in its place among the others.
                let with: Vec<&Ceiling> = world
                    .ceilings_over(&ask.group)
                    .into_iter()
                    .filter(|it| !it.shadow || it.name == ceiling.name)
                    .collect();
                if let Err((_, miss)) = best(world, ask, &with, book, count) {
                    shadows.push(("ceiling".to_owned(), ceiling.name.clone(), miss.reason.to_owned()));
                }
            }
            shadows.sort();
            Answer::Allow {
                policy: granted.policy.name.clone(),
                key: granted.key.id.clone(),
                expires_at: granted.expires_at,
                shadows,
            }
        }
    }
}

fn best<'a>(
    world: &'a World,
    ask: &Ask,
    ceilings: &[&Ceiling],
    book: &Book,
    count: &mut dyn FnMut(&str),
) -> Result<Grant<'a>, (Option<String>, Miss)> {
    let mut grants: Vec<Grant<'a>> = Vec::new();
    let mut misses: Vec<(&str, Miss)> = Vec::new();
    let mut policies: Vec<&Policy> =
        world.policies.iter().filter(|it| !it.shadow && it.group == ask.group && names(it, &ask.caller)).collect();
    policies.sort_by_key(|it| &it.name);
    for policy in policies {
        match judge(world, policy, ask, ceilings, book, count) {
            Ok(grant) => grants.push(grant),
            Err(miss) => misses.push((&policy.name, miss)),
        }
    }
    if grants.len() > 1 {
        count("several policies");
    }
    let apps = &world.group(&ask.group).map(|it| it.apps.clone()).unwrap_or_default();
    // The weakest key, then the longest life, then the first by name.
    grants.sort_by_key(|it| (strength(it.key, apps), -it.expires_at, it.policy.name.clone()));
    if let Some(first) = grants.into_iter().next() {
        return Ok(first);
    }
    // The last reason; of equal ones the first policy by name.
    let mut nearest: Option<(&str, Miss)> = None;
    for (policy, miss) in misses {
        if nearest.as_ref().is_none_or(|(_, known)| book.rank(miss.reason) > book.rank(known.reason)) {
            nearest = Some((policy, miss));
        }
    }
    Err(match nearest {
        None => (None, Miss { reason: "NO_POLICY", ceiling: None }),
        Some((policy, miss)) => (Some(policy.to_owned()), miss),
    })
}

/// One policy by itself.
fn judge<'a>(
    world: &'a World,
    policy: &'a Policy,
    ask: &Ask,
    ceilings: &[&Ceiling],
    book: &Book,
    count: &mut dyn FnMut(&str),
) -> Result<Grant<'a>, Miss> {
    let miss = |reason| Err(Miss { reason, ceiling: None });
    let by = |reason, ceiling: &Ceiling| Err(Miss { reason, ceiling: Some(ceiling.name.clone()) });
    let group = world.group(&policy.group).expect("policies have groups");
    let now_s = ask.now.0.div_euclid(1000);
    // 1.
    if world.is_revoked("account", &group.account) {
        return miss("ACCOUNT_REVOKED");
    }
    if world.is_revoked("app-group", &group.name) {
        return miss("APP_GROUP_REVOKED");
    }
    if world.is_revoked("policy", &policy.name) {
        return miss("POLICY_REVOKED");
    }
    // 2.
    let mut ends_at = i64::MAX;
    if policy.not_before.is_some_and(|start| ask.now.0 < start) {
        return miss("OUTSIDE_VALIDITY");
    }
    if let Some(end) = policy.not_after {
        // Tokens live whole seconds, and none outlives it.
        ends_at = end.div_euclid(1000);
        if now_s >= ends_at {
            return miss("OUTSIDE_VALIDITY");
        }
    }
    if let Some(hours) = &policy.hours {
        match end_of_hours(hours, now_s) {
            None => return miss("OUTSIDE_HOURS"),
            Some(end) => ends_at = ends_at.min(end),
        }
    }
    if policy.break_glass {
        match world.opened.iter().find(|(name, until)| *name == policy.name && now_s < *until) {
            None => return miss("BREAK_GLASS_CLOSED"),
            Some((_, until)) => ends_at = ends_at.min(*until),
        }
    }
    // 3.
    let presents = |name: &String| policy.require_mtls.iter().any(|pattern| is_named(pattern, name));
    if !policy.require_mtls.is_empty() && !ask.caller.certificate.as_ref().is_some_and(presents) {
        return miss("CERTIFICATE_REQUIRED");
    }
    // 4.
    for ceiling in ceilings {
        let names_callers =
            !ceiling.clients.is_empty() || !ceiling.issuers.is_empty() || !ceiling.trust_domains.is_empty();
        if names_callers && !is_among(ceiling, &ask.caller) {
            return by("CALLER_OVER_CEILING", ceiling);
        }
    }
    // 5.
    if !policy.roles.contains(&ask.role) {
        return miss("ROLE_NOT_GRANTED");
    }
    if let Some(ceiling) = ceilings.iter().find(|it| it.never_roles.contains(&ask.role)) {
        return by("ROLE_OVER_CEILING", ceiling);
    }
    // 6.
    if ask.scope.is_empty() {
        if asks_for_a_scope(policy) {
            return miss("SCOPE_REQUIRED");
        }
        if let Some(ceiling) = ceilings.iter().find(|it| it.require_scope) {
            return by("SCOPE_REQUIRED", ceiling);
        }
    }
    for entry in &ask.scope {
        if !is_granted(policy, entry, &group.apps, book) {
            return miss("SCOPE_NOT_GRANTED");
        }
    }
    // 7.
    let key = route(world, policy, ask, ceilings, count)?;
    // The life.
    let mut ttl = ask.ttl_s.unwrap_or(policy.default_ttl_s).min(policy.max_ttl_s);
    for ceiling in ceilings {
        ttl = ttl.min(ceiling.max_ttl_s.unwrap_or(i64::MAX));
    }
    let long = !ask.scope.is_empty() && ask.scope.iter().all(|entry| may_live_long(entry, book));
    ttl = ttl.min(if long { LONGEST_LONG_S } else { LONGEST_S });
    Ok(Grant { policy, key, expires_at: (now_s + ttl).min(ends_at) })
}

/// "Keys".
fn route<'a>(
    world: &'a World,
    policy: &Policy,
    ask: &Ask,
    ceilings: &[&Ceiling],
    count: &mut dyn FnMut(&str),
) -> Result<&'a Key, Miss> {
    let group = world.group(&policy.group).expect("policies have groups");
    let of_group: Vec<&Key> = world.keys.iter().filter(|it| it.groups.contains(&policy.group)).collect();
    let has_individual = of_group.iter().any(|it| it.individual.is_some());
    let no_team = ceilings.iter().find(|it| it.no_team_keys).filter(|_| has_individual);
    let left =
        |role: &&'static str| policy.roles.contains(role) && !ceilings.iter().any(|it| it.never_roles.contains(role));
    let with_role: Vec<&Key> = of_group
        .into_iter()
        .filter(|it| it.state == KeyState::Active && it.account == group.account && it.roles.contains(&ask.role))
        .collect();
    let within: Vec<&Key> = with_role.iter().copied().filter(|it| it.roles.iter().all(&left)).collect();
    let mut fit: Vec<&Key> = within.iter().copied().filter(|it| no_team.is_none() || it.individual.is_some()).collect();
    if fit.len() > 1 {
        count("several keys");
    }
    fit.sort_by_key(|it| strength(it, &group.apps));
    match (fit.first(), within.is_empty(), with_role.is_empty()) {
        (Some(key), ..) => Ok(key),
        (None, false, _) => Err(Miss { reason: "TEAM_KEY_OVER_CEILING", ceiling: no_team.map(|it| it.name.clone()) }),
        (None, true, false) => Err(Miss { reason: "KEY_EXCEEDS_POLICY", ceiling: None }),
        (None, true, true) => Err(Miss { reason: "NO_ACTIVE_KEY", ceiling: None }),
    }
}

/// Smaller is weaker.
fn strength(key: &Key, apps: &[String]) -> (bool, bool, usize, usize, i64) {
    let confined = match &key.individual {
        Some(Apps::Only(declared)) => declared.iter().all(|app| apps.contains(app)),
        Some(Apps::All) | None => false,
    };
    let administers = key.roles.contains(&"ADMIN") || key.roles.contains(&"ACCOUNT_HOLDER");
    (!confined, administers, key.roles.len(), key.groups.len(), -key.imported)
}
