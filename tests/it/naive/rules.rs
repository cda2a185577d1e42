//! Scopes, patterns and hours, as `docs/policies.md` describes them.

use super::book::Book;
use super::world::{Caller, Ceiling, Hours, Pattern, Policy};

/// "Operations and features": whether every token must have a scope.
pub fn asks_for_a_scope(policy: &Policy) -> bool {
    let only_reads = !policy.features.is_empty() && policy.features.iter().all(|it| it.ends_with(":read"));
    policy.require_scope || !policy.operations.is_empty() || only_reads
}

pub fn is_granted(policy: &Policy, entry: &str, apps: &[String], book: &Book) -> bool {
    if policy.operations.is_empty() && policy.features.is_empty() {
        return true;
    }
    let wanted = canonical(entry);
    for operation in &policy.operations {
        if !operation.contains("{app}") && canonical(operation) == wanted {
            return true;
        }
        if operation.contains("{app}") && apps.iter().any(|app| canonical(&operation.replace("{app}", app)) == wanted) {
            return true;
        }
    }
    is_of_features(policy, &wanted, apps, book)
}

/// The path, and the query without its order and what Apple ignores.
fn canonical(entry: &str) -> (String, Vec<String>) {
    let rest = entry.strip_prefix("GET ").expect("scopes are reads");
    let (path, query) = rest.split_once('?').unwrap_or((rest, ""));
    let ignored = |pair: &&str| !["limit=", "cursor=", "sort="].iter().any(|name| pair.starts_with(name));
    let mut query: Vec<String> =
        query.split('&').filter(|pair| !pair.is_empty()).filter(ignored).map(ToOwned::to_owned).collect();
    query.sort();
    (path.to_owned(), query)
}

/// `docs/features.md`.
fn is_of_features(policy: &Policy, (path, query): &(String, Vec<String>), apps: &[String], book: &Book) -> bool {
    let granted = |feature: &String| policy.features.iter().any(|it| it.split(':').next() == Some(feature));
    // "", version, family, id, and what hangs off it.
    let parts: Vec<&str> = path.split('/').collect();
    let Some(owner) = book.families.get(parts[2]) else { return false };
    if parts.len() <= 4 {
        if !granted(owner) {
            return false;
        }
    } else {
        let related = parts[if parts[4] == "relationships" { 5 } else { 4 }];
        // What it answers with, where its name does not say that: by Apple's documentation of the read.
        let related = match related {
            "visibleApps" => "apps",
            "actions" => "ciBuildActions",
            named => named,
        };
        // One of a family, where there is but one: `/v1/apps/5/ciProduct`.
        let one = format!("{related}s");
        let Some(answer) = book.families.get(related).or(book.families.get(&one)) else { return false };
        let owns_everything = ["apps", "appStoreVersions", "builds"].contains(&parts[2]);
        if !granted(answer) || (!owns_everything && !granted(owner)) {
            return false;
        }
    }
    for pair in query {
        let name = pair.split('=').next().unwrap();
        let narrows = ["filter[", "exists[", "fields[", "limit["].iter().any(|it| name.starts_with(it));
        if !narrows && !["period", "granularity", "groupBy"].contains(&name) {
            return false;
        }
    }
    // An entry that names an app names one of the group's.
    let named_in_path = (parts[2] == "apps").then(|| parts.get(3)).flatten().map(|app| (*app).to_owned());
    let of_apps = |pair: &&String| {
        let name = pair.split(']').next().unwrap();
        let related = [".app", ".apps", ".visibleApps"].iter().any(|it| name.ends_with(it));
        related
            || ["filter[app", "filter[apps", "filter[visibleApps"].contains(&name)
            || (name == "filter[id" && parts.len() == 3 && parts[2] == "apps")
    };
    let named_in_query = query.iter().filter(of_apps).flat_map(|pair| pair.split_once('=').unwrap().1.split(','));
    named_in_path.into_iter().chain(named_in_query.map(ToOwned::to_owned)).all(|app| apps.contains(&app))
}

/// "Long-lived reads".
pub fn may_live_long(entry: &str, book: &Book) -> bool {
    let (path, query) = canonical(entry);
    let is = |template: &String| {
        let (one, other): (Vec<_>, Vec<_>) = (template.split('/').collect(), path.split('/').collect());
        one.len() == other.len() && one.iter().zip(&other).all(|(one, other)| *one == "*" || one == other)
    };
    !query.iter().any(|pair| pair.starts_with("include=")) && book.long_lived.iter().any(is)
}

/// Whether the policy names the caller.
pub fn names(policy: &Policy, caller: &Caller) -> bool {
    policy.clients.iter().any(|pattern| is_meant(pattern, caller))
}

pub fn is_among(ceiling: &Ceiling, caller: &Caller) -> bool {
    let domain = caller.name.strip_prefix("spiffe://").and_then(|rest| rest.split('/').next());
    ceiling.clients.iter().any(|pattern| is_meant(pattern, caller))
        || caller.issuer.as_ref().is_some_and(|issuer| ceiling.issuers.contains(issuer))
        || domain.is_some_and(|domain| ceiling.trust_domains.iter().any(|known| known == domain))
}

/// "Patterns".
pub fn is_meant(pattern: &Pattern, caller: &Caller) -> bool {
    let Pattern::Oidc { issuer, subject, claims } = pattern else { return is_named(pattern, &caller.name) };
    caller.issuer.as_ref() == Some(issuer)
        && subject.as_ref().is_none_or(|glob| fits(glob, &caller.subject, "/:@#"))
        && claims.iter().all(|(name, globs)| {
            let values = caller.claims.iter().filter(|(known, _)| known == name).flat_map(|(_, values)| values);
            values.into_iter().any(|value| globs.iter().any(|glob| fits(glob, value, "/:@#")))
        })
}

pub fn is_named(pattern: &Pattern, name: &str) -> bool {
    match pattern {
        Pattern::Spiffe(glob) => name.starts_with("spiffe://") && fits(glob, name, "/"),
        Pattern::Dns(glob) => name.strip_prefix("dns:").is_some_and(|host| fits(glob, host, ".")),
        Pattern::Oidc { .. } => false,
    }
}

/// A `*` stands for any characters but separators: try every length.
fn fits(glob: &str, text: &str, separators: &str) -> bool {
    match glob.chars().next() {
        None => text.is_empty(),
        Some('*') => {
            let rest = &glob[1..];
            let ends = text.find(|c| separators.contains(c)).unwrap_or(text.len());
            (0..=ends).any(|taken| fits(rest, &text[taken..], separators))
        }
        Some(c) => text.starts_with(c) && fits(&glob[1..], &text[1..], separators),
    }
}

/// "Hours": minute by minute, until the clock on the wall shows none that belongs to this start.
pub fn end_of_hours(hours: &Hours, now_s: i64) -> Option<i64> {
    let start = day_of_start(hours, now_s)?;
    let mut at = now_s - now_s.rem_euclid(60) + 60;
    while day_of_start(hours, at) == Some(start) {
        at += 60;
    }
    Some(at)
}

/// The day on which the hours began that this second lies within.
fn day_of_start(hours: &Hours, at: i64) -> Option<i64> {
    let wall = at + hours.zone.offset(at);
    let (day, minute) = (wall.div_euclid(86_400), wall.rem_euclid(86_400) / 60);
    // 1 January 1970 was a Thursday.
    let starts =
        |day: i64| hours.days.contains(&["thu", "fri", "sat", "sun", "mon", "tue", "wed"][day.rem_euclid(7) as usize]);
    if hours.until > hours.from {
        return (starts(day) && hours.from <= minute && minute < hours.until).then_some(day);
    }
    if starts(day) && minute >= hours.from {
        return Some(day);
    }
    (starts(day - 1) && minute < hours.until).then_some(day - 1)
}
