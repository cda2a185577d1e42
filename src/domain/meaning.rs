//! What a change of documents means for those who get tokens: who gains, and who loses what. One sentence a line.
//!
//! Compared are the things themselves and, for policies, what they grant under the ceilings before and after: so a ceiling
//! that comes, changes or goes says which policies it touches.

mod issuers;

use std::collections::BTreeSet;
use std::sync::Arc;

use super::access::longest_by_apple;
use super::apple;
use super::ceiling::Ceiling;
use super::operator::Operator;
use super::pattern::ClientPattern;
use super::policy::Policy;
use super::role::RoleSet;
use super::state::State;
use crate::clock::UnixMillis;
use crate::id::CeilingName;
pub(super) use issuers::of_issuer;

/// Most lines about one thing; the rest are counted.
const MOST_LINES: usize = 50;

/// Of a policy or ceiling in shadow mode, whatever it says.
const ONLY_COUNTS: &str = "nobody gains or loses: it only counts what it would refuse";

/// What a policy grants under the ceilings of a state, as far as it can be said without a caller. Where they leave no role
/// there are no clients either: nobody gets anything.
#[derive(Debug, Clone, PartialEq, Eq)]
struct Granted {
    roles: RoleSet,
    max_ttl_s: i64,
    needs_scope: bool,
    clients: BTreeSet<String>,
    team_keys: bool,
}

impl Granted {
    fn of(policy: &Policy, state: &State) -> Self {
        let mut out = Self {
            roles: policy.roles,
            max_ttl_s: longest_alone(policy, state),
            needs_scope: policy.needs_scope(),
            clients: policy.clients.iter().map(ToString::to_string).collect(),
            team_keys: true,
        };
        for bounds in state.bounds_of(&policy.app_group) {
            out.roles = out.roles.without(bounds.never_roles());
            out.max_ttl_s = bounds.max_ttl().map_or(out.max_ttl_s, |(most, _)| most.min(out.max_ttl_s));
            out.needs_scope |= bounds.requires_scope().is_some();
            out.team_keys &= bounds.forbids_team_keys().is_none();
            for (callers, _) in bounds.callers() {
                let out_of = policy.clients.iter().filter(|pattern| !callers.may_include(pattern));
                for pattern in out_of {
                    out.clients.remove(&pattern.to_string());
                }
            }
        }
        if out.roles.is_empty() {
            out.clients.clear();
        }
        out
    }
}

/// The longest life of a token under the policy without any ceiling, in seconds: what it says, or what Apple takes.
fn longest_alone(policy: &Policy, state: &State) -> i64 {
    // Apple takes that for every scope: there is no need to look at each read.
    let group = state.app_groups().get(&policy.app_group).filter(|_| policy.max_ttl_s > apple::LONGEST_TTL_S);
    group.map_or(policy.max_ttl_s, |group| longest_by_apple(policy, group).min(policy.max_ttl_s))
}

/// What a policy that is new means.
pub(super) fn of_new_policy(policy: &Policy, after: &State) -> Vec<String> {
    if policy.shadow {
        return vec![ONLY_COUNTS.to_owned()];
    }
    let granted = Granted::of(policy, after);
    let mut out: Vec<String> =
        granted.clients.iter().map(|client| format!("{client} gains {}", grants(policy, &granted))).collect();
    out.extend(narrowed(policy, after));
    bounded(out)
}

/// What a policy that goes means.
pub(super) fn of_removed_policy(policy: &Policy, before: &State) -> Vec<String> {
    if policy.shadow {
        return vec!["nobody gains or loses: it only counted".to_owned()];
    }
    let granted = Granted::of(policy, before);
    if granted.clients.is_empty() {
        return vec!["nobody loses anything: ceilings left nothing of it".to_owned()];
    }
    bounded(granted.clients.iter().map(|client| format!("{client} loses {}", grants(policy, &granted))).collect())
}

/// What a policy that changes means.
pub(super) fn of_changed_policy(old: &Policy, new: &Policy, before: &State, after: &State) -> Vec<String> {
    if old.shadow && new.shadow {
        return vec![ONLY_COUNTS.to_owned()];
    }
    if old.app_group != new.app_group || old.shadow != new.shadow {
        let mut out = if old.shadow { Vec::new() } else { of_removed_policy(old, before) };
        out.extend(if new.shadow {
            vec!["from now on it only counts what it would refuse".to_owned()]
        } else {
            of_new_policy(new, after)
        });
        return bounded(out);
    }
    let (was, is) = (Granted::of(old, before), Granted::of(new, after));
    let mut out = Vec::new();
    out.extend(is.clients.difference(&was.clients).map(|client| format!("{client} gains {}", grants(new, &is))));
    out.extend(was.clients.difference(&is.clients).map(|client| format!("{client} loses {}", grants(old, &was))));
    // Of those who had something and have something, more or less.
    if was.clients.is_disjoint(&is.clients) {
        out.extend(narrowed(new, after));
        return bounded(out);
    }
    out.extend(changes("its clients", &was, &is));
    let mut loses = |lost: bool, gain: &str, loss: &str| out.push(if lost { loss } else { gain }.to_owned());
    if old.operations != new.operations || old.features != new.features {
        let (old_reads, new_reads) = (reads(old), reads(new));
        for read in new_reads.difference(&old_reads) {
            loses(false, &format!("its clients gain `{read}`"), "");
        }
        for read in old_reads.difference(&new_reads) {
            loses(true, "", &format!("its clients lose `{read}`"));
        }
        // A feature that writes bounds nothing: it is an agreement.
        let bounds = |policy: &Policy, reads: &BTreeSet<String>| !reads.is_empty() && !policy.writes();
        match (bounds(old, &old_reads), bounds(new, &new_reads)) {
            (false, true) => loses(true, "", "its clients lose all but these operations and features"),
            (true, false) => loses(false, "its clients gain every operation that the key's roles allow", ""),
            _ => {}
        }
    }
    if (old.not_before, old.not_after, &old.hours, old.break_glass)
        != (new.not_before, new.not_after, &new.hours, new.break_glass)
    {
        out.push(format!("its clients get tokens {}; before, {}", when(new), when(old)));
    }
    if old.quota != new.quota {
        out.push("its clients have another quota".to_owned());
    }
    if old.require_mtls != new.require_mtls {
        out.push(if new.require_mtls.is_empty() {
            "its clients need no certificate beside a bearer token any more".to_owned()
        } else {
            "its clients lose access without one of the certificates that it names".to_owned()
        });
    }
    out.extend(narrowed(new, after));
    bounded(out)
}

/// What ceilings that come, change or go mean for policies that stay as they are.
pub(super) fn of_ceiling(old: Option<&Ceiling>, new: Option<&Ceiling>, before: &State, after: &State) -> Vec<String> {
    if [old, new].into_iter().flatten().all(|ceiling| ceiling.shadow) {
        return vec![ONLY_COUNTS.to_owned()];
    }
    let every = [old, new].into_iter().flatten().any(|ceiling| ceiling.app_groups.is_none());
    let named: BTreeSet<_> = [old, new].into_iter().flatten().flat_map(|it| it.app_groups.iter().flatten()).collect();
    let touched: Vec<_> = if every {
        after.policies().values().collect()
    } else {
        named.into_iter().flat_map(|group| after.policies_of(group)).collect()
    };
    let mut out = Vec::new();
    for policy in touched.into_iter().filter(|policy| !policy.shadow) {
        if before.policies().get(&policy.name) != Some(policy) {
            continue;
        }
        let (was, is) = (Granted::of(policy, before), Granted::of(policy, after));
        let whose = format!("clients of policy {}", policy.name);
        if !(was.clients.is_empty() && is.clients.is_empty()) {
            out.extend(changes(&whose, &was, &is));
        }
        let only = |one: &Granted, other: &Granted| one.clients.difference(&other.clients).cloned().collect::<Vec<_>>();
        out.extend(only(&was, &is).iter().map(|client| format!("{whose}: {client} loses everything")));
        out.extend(only(&is, &was).iter().map(|client| format!("{whose}: {client} gains it back")));
    }
    let approval = |ceiling: Option<&Ceiling>| ceiling.is_some_and(|ceiling| ceiling.require_approval);
    match (approval(old), approval(new)) {
        (false, true) => out.push("changes here take two operators from now on".to_owned()),
        (true, false) => out.push("changes here take one operator from now on".to_owned()),
        _ => {}
    }
    if out.is_empty() {
        out.push("no policy is affected".to_owned());
    }
    bounded(out)
}

/// What an app group that changes means.
pub(super) fn of_apps(gained: &BTreeSet<String>, lost: &BTreeSet<String>, policies: &[Arc<Policy>]) -> Vec<String> {
    let granting = policies.iter().filter(|policy| !policy.shadow);
    let names: Vec<&str> = granting.map(|policy| policy.name.as_str()).collect();
    let of = if names.is_empty() { "no policy yet".to_owned() } else { names.join(", ") };
    let gain = gained.iter().map(|app| format!("clients of {of} gain app {app}"));
    bounded(gain.chain(lost.iter().map(|app| format!("clients of {of} lose app {app}"))).collect())
}

/// What an operator that comes, changes or goes means.
pub(super) fn of_operator(old: Option<&Operator>, new: Option<&Operator>) -> Vec<String> {
    let held = |operator: Option<&Operator>| -> BTreeSet<(String, String)> {
        let Some(operator) = operator else { return BTreeSet::new() };
        let confined = operator.app_groups.iter().map(ToString::to_string).collect::<Vec<_>>().join(", ");
        let over = if confined.is_empty() { String::new() } else { format!(" over {confined}") };
        let powers = operator.powers.iter().map(|power| format!("{}{over}", power.as_str()));
        let powers: Vec<String> = powers.collect();
        let each = |client: &ClientPattern| {
            let client = client.to_string();
            powers.iter().map(move |power| (client.clone(), power.clone())).collect::<Vec<_>>()
        };
        operator.clients.iter().flat_map(each).collect()
    };
    let (was, is) = (held(old), held(new));
    let gains = is.difference(&was).map(|(client, power)| format!("{client} gains the power {power}"));
    let loses = was.difference(&is).map(|(client, power)| format!("{client} loses the power {power}"));
    bounded(gains.chain(loses).collect())
}

/// What ceilings take from a policy as it is written.
pub fn narrowed(policy: &Policy, state: &State) -> Vec<String> {
    let mut out = Vec::new();
    let by = |name: &CeilingName| format!("ceiling {name} narrows it");
    let longest = longest_alone(policy, state);
    for bounds in state.bounds_of(&policy.app_group) {
        for role in policy.roles.iter() {
            out.extend(bounds.forbids_role(role).map(|name| format!("{}: nobody gets {role}", by(name))));
        }
        if let Some((most, name)) = bounds.max_ttl().filter(|(most, _)| *most < longest) {
            out.push(format!("{}: tokens live {most}s at most", by(name)));
        }
        if let Some(name) = bounds.requires_scope().filter(|_| !policy.needs_scope()) {
            out.push(format!("{}: every token must have a scope", by(name)));
        }
        for (callers, name) in bounds.callers() {
            let others = policy.clients.iter().filter(|pattern| !callers.may_include(pattern));
            out.extend(others.map(|pattern| format!("{}: {pattern} gets nothing", by(name))));
        }
    }
    out.sort();
    out.dedup();
    out
}

fn changes(whose: &str, was: &Granted, is: &Granted) -> Vec<String> {
    let mut out = Vec::new();
    let (gained, lost) = (is.roles.without(was.roles), was.roles.without(is.roles));
    if !gained.is_empty() {
        out.push(format!("{whose} gain {gained}"));
    }
    if !lost.is_empty() {
        out.push(format!("{whose} lose {lost}"));
    }
    if was.max_ttl_s != is.max_ttl_s {
        let verb = if is.max_ttl_s > was.max_ttl_s { "gain longer" } else { "lose longer" };
        out.push(format!("{whose} {verb} tokens: at most {}s, before {}s", is.max_ttl_s, was.max_ttl_s));
    }
    match (was.needs_scope, is.needs_scope) {
        (false, true) => out.push(format!("{whose} lose tokens without a scope")),
        (true, false) => out.push(format!("{whose} gain tokens without a scope")),
        _ => {}
    }
    match (was.team_keys, is.team_keys) {
        (true, false) => out.push(format!("{whose} lose team keys where the group has individual ones")),
        (false, true) => out.push(format!("{whose} gain team keys")),
        _ => {}
    }
    out
}

fn grants(policy: &Policy, granted: &Granted) -> String {
    let reads = reads(policy).into_iter().collect::<Vec<_>>().join(", ");
    // INVARIANT (P9): what nobody holds a bearer to is no limit.
    let what = match (reads.is_empty(), policy.writes()) {
        (true, _) => String::new(),
        (false, false) => format!(", only {reads}"),
        (false, true) => format!(", by agreement for {reads}"),
    };
    let Granted { roles, max_ttl_s, .. } = granted;
    format!("{roles} on {} for at most {max_ttl_s}s{what}, {}", policy.app_group, when(policy))
}

fn reads(policy: &Policy) -> BTreeSet<String> {
    let operations = policy.operations.iter().map(ToString::to_string);
    operations.chain(policy.features.iter().map(ToString::to_string)).collect()
}

fn when(policy: &Policy) -> String {
    let mut parts = Vec::new();
    let at = |label: &str, time: Option<UnixMillis>| time.map(|time| format!("{label} {time}"));
    parts.extend(at("from", policy.not_before));
    parts.extend(at("until", policy.not_after));
    if let Some(hours) = &policy.hours {
        let days: Vec<&str> = hours.days().collect();
        parts.push(format!("{} to {} {} on {}", hours.from(), hours.until(), hours.time_zone(), days.join(" ")));
    }
    if policy.break_glass {
        parts.push("while an operator holds it open".to_owned());
    }
    if parts.is_empty() { "at any time".to_owned() } else { parts.join(", ") }
}

fn bounded(mut lines: Vec<String>) -> Vec<String> {
    if lines.len() > MOST_LINES {
        let more = lines.len().saturating_sub(MOST_LINES);
        lines.truncate(MOST_LINES);
        lines.push(format!("and {more} more"));
    }
    lines
}

#[cfg(test)]
mod tests;
