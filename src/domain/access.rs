//! Who can get what: everything that some request could be granted, computed and not sampled.
//!
//! Built of the same conditions that a decision looks at ([`super::decide`]). They are of two kinds here: those that
//! changes of the control plane alone can turn (revocations, roles, keys, ceilings) leave an entry out; those that time, an
//! operator who opens a break-glass policy or a certificate can turn leave it in, with the reason why not now. An entry
//! stands for some request: which reads its scope may hold is the policy's to say, and for how long is the longest life of
//! all of them.
//!
//! # Invariants
//! - `INV-ACCESS-1`: a caller of whom nothing is left open has an entry that holds now just where a decision permits some
//!   request, with the key that signs and the longest life.

use std::collections::BTreeSet;
use std::sync::Arc;

use super::app_group::AppGroup;
use super::apple;
use super::ceiling::Callers;
use super::decide::{DenyReason, Ground, Terms, has_certificate, in_force};
use super::feature;
use super::glob::ClaimGlob;
use super::issuer::Issuer;
use super::key::Key;
use super::operation::Operation;
use super::pattern::ClientPattern;
use super::policy::Policy;
use super::principal::Principal;
use super::role::Role;
use super::state::State;
use super::target::Target;
use crate::clock::UnixMillis;
use crate::id::{AppGroupName, CeilingName};

/// One role that can be had under one policy.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Access {
    /// The client, or the pattern of clients.
    pub client: String,
    /// The policy; its group is the one that is meant.
    pub policy: Arc<Policy>,
    /// The role.
    pub role: Role,
    /// The key that signs.
    pub key: Arc<Key>,
    /// The longest time to live of a token, in seconds: up to the end of the present hours, where it can be had now.
    pub max_ttl_s: i64,
    /// Whether the token must have a scope.
    pub needs_scope: bool,
    /// Why it can't be had at this moment.
    pub closed: Option<DenyReason>,
    /// What else must hold of the caller, a sentence each.
    pub conditions: Vec<String>,
}

/// What one caller can get. Claims that an issuer is not said to make of it are left open, one by one; of one that it is
/// said to make there are no other values.
pub fn of_client(principal: &Principal, state: &State, now: UnixMillis) -> Vec<Access> {
    let trusted = principal.vouched.as_ref().is_none_or(|vouched| {
        let of_subject = vouched.issuer.subject.as_ref().is_none_or(|glob| glob.matches(&vouched.subject));
        of_subject && vouched.claims.lacking(&vouched.issuer.claims).is_some()
    });
    if !trusted || state.sealed().is_some() || state.refuses(principal).is_some() {
        return Vec::new();
    }
    let mut out = Vec::new();
    for group in state.app_groups().keys() {
        let ground = Ground::of(group, state);
        for policy in state.policies_of(group).iter().filter(|policy| !policy.shadow) {
            let Some(mut conditions) = lacking(&policy.clients, principal, "") else { continue };
            let ceilings = ground.callers().filter(|(callers, _)| !callers.include(principal));
            let ceilings: Option<Vec<_>> = ceilings
                .map(|(callers, name)| lacking(&callers.clients, principal, &format!(", by ceiling {name}")))
                .collect();
            let Some(ceilings) = ceilings else { continue };
            conditions.extend(ceilings.into_iter().flatten());
            if !can_present(principal, policy, state) {
                continue;
            }
            let ends_at = in_force(policy, state, now).and_then(|ends_at| {
                if has_certificate(principal, policy) { Ok(ends_at) } else { Err(DenyReason::CertificateRequired) }
            });
            let who = Who { client: principal.client.to_string(), conditions };
            out.extend(entries(who, policy, ends_at, &ground, state, now));
        }
    }
    sorted(out)
}

/// Who can get something for one group: every pattern of clients of its policies. What a pattern leaves open, such as the
/// certificate that comes with a bearer token, is among the conditions.
pub fn of_group(group: &AppGroupName, state: &State, now: UnixMillis) -> Vec<Access> {
    if state.sealed().is_some() {
        return Vec::new();
    }
    let ground = Ground::of(group, state);
    let mut out = Vec::new();
    for policy in state.policies_of(group).iter().filter(|policy| !policy.shadow) {
        for pattern in policy.clients.iter().collect::<BTreeSet<_>>() {
            let may_be_among = |callers: &Callers| callers.may_include_of(pattern, |it| may_call(it, state));
            if !may_call(pattern, state) || !ground.callers().all(|(callers, _)| may_be_among(callers)) {
                continue;
            }
            let open = ground.callers().filter(|(callers, _)| !callers.surely_include(pattern));
            let mut conditions: Vec<String> = open.map(among).collect();
            match certificate_of(pattern, policy, state) {
                Some(condition) => conditions.extend(condition),
                None => continue,
            }
            let who = Who { client: pattern.to_string(), conditions };
            out.extend(entries(who, policy, in_force(policy, state, now), &ground, state, now));
        }
    }
    sorted(out)
}

struct Who {
    client: String,
    conditions: Vec<String>,
}

/// One entry for each role that can be had.
fn entries<'a>(
    who: Who,
    policy: &'a Arc<Policy>,
    ends_at: Result<i64, DenyReason>,
    ground: &Ground<'a>,
    state: &'a State,
    now: UnixMillis,
) -> Vec<Access> {
    let group = ground.standing(policy, state).ok().filter(|_| ends_at.is_ok() || comes(policy, now));
    let Some(group) = group else { return Vec::new() };
    let offer = |role| {
        let terms = ground.offer(role, policy, group, ends_at.unwrap_or(i64::MAX)).ok()?;
        // As a permit has it: a key of an account that is not there signs nothing.
        let signs = state.accounts().contains_key(&terms.key.account);
        (signs && (!terms.needs_scope || has_reads(policy, group))).then_some((role, terms))
    };
    let entry = |(role, terms): (Role, Terms<'_>)| Access {
        client: who.client.clone(),
        policy: Arc::clone(policy),
        role,
        key: Arc::clone(terms.key),
        max_ttl_s: longest(&terms, now),
        needs_scope: terms.needs_scope,
        closed: ends_at.err(),
        conditions: who.conditions.clone(),
    };
    policy.roles.iter().filter_map(offer).map(entry).collect()
}

fn sorted(mut all: Vec<Access>) -> Vec<Access> {
    let key = |it: &Access| (it.policy.app_group.clone(), it.role, it.policy.name.clone(), it.client.clone());
    all.sort_by_key(key);
    all
}

/// The life that the longest request gets.
fn longest(terms: &Terms<'_>, now: UnixMillis) -> i64 {
    let most = longest_by_apple(terms.policy, terms.group);
    terms.max_ttl_s.min(most).min(terms.ends_at.saturating_sub(now.seconds()))
}

/// What Apple's limit leaves of the life of any token under the policy, in seconds.
pub(super) fn longest_by_apple(policy: &Policy, group: &AppGroup) -> i64 {
    // INVARIANT (P8): longer than the ordinary limit only where the policy grants a read that may live so long.
    let long = reads(policy, group).any(|read| apple::may_live_long(&read));
    if long { apple::LONGEST_SCOPED_TTL_S } else { apple::LONGEST_TTL_S }
}

/// Whether there is a time from now on at which the policy is in force, where somebody opens it.
fn comes(policy: &Policy, now: UnixMillis) -> bool {
    let start = policy.not_before.map_or(now, |start| start.max(now));
    let ends = |at: i64| policy.not_after.is_some_and(|end| end.seconds() <= at);
    let hours = policy.hours.as_ref();
    let opens = |hours: &super::hours::Hours| {
        hours.open_until(start).is_some() || hours.next_opening(start).is_some_and(|at| !ends(at))
    };
    !ends(start.seconds()) && hours.is_none_or(opens)
}

/// What an issuer would have to say besides for one of the patterns to mean the caller; nothing where one does already.
fn lacking(patterns: &[ClientPattern], principal: &Principal, by: &str) -> Option<Vec<String>> {
    if patterns.iter().any(|pattern| pattern.matches(principal)) {
        return Some(Vec::new());
    }
    let vouched = patterns.iter().filter_map(|pattern| match pattern {
        ClientPattern::Vouched(pattern) => pattern.lacking(principal),
        ClientPattern::Name(_) => None,
    });
    let ways: Vec<Vec<String>> = vouched.map(|claims| claims.into_iter().map(claim).collect()).collect();
    match ways.as_slice() {
        [] => None,
        [way] => Some(way.iter().map(|claim| format!("{claim}{by}")).collect()),
        ways => {
            let ways: BTreeSet<String> = ways.iter().map(|way| way.join(" and ")).collect();
            Some(vec![format!("either {}{by}", ways.into_iter().collect::<Vec<_>>().join(", or "))])
        }
    }
}

fn claim((name, globs): (&str, &[ClaimGlob])) -> String {
    let globs: Vec<&str> = globs.iter().map(ClaimGlob::as_str).collect();
    format!("the claim {name} is {}", globs.join(" or "))
}

fn among((_, name): (&Callers, &CeilingName)) -> String {
    format!("the client is among the callers of ceiling {name}")
}

/// Whether the caller has, or could bring, a certificate that the policy asks for.
fn can_present(principal: &Principal, policy: &Policy, state: &State) -> bool {
    // Who is named by a certificate has that one and no other.
    has_certificate(principal, policy)
        || (principal.vouched.is_some() && policy.require_mtls.iter().any(|pattern| may_call(pattern, state)))
}

/// What a pattern's callers must present, as a condition where some of them may not; `None` where none of them can.
fn certificate_of(pattern: &ClientPattern, policy: &Policy, state: &State) -> Option<Option<String>> {
    let asked = &policy.require_mtls;
    if asked.is_empty() || asked.contains(pattern) {
        return Some(None);
    }
    let mut able = asked.iter().filter(|name| may_call(name, state));
    if pattern.issuer().is_none() {
        match pattern.exact().map(Principal::of_certificate) {
            Some(principal) => return has_certificate(&principal, policy).then_some(None),
            None => able.find(|name| name.overlaps(pattern))?,
        };
    } else {
        able.next()?;
    }
    let names: Vec<String> = asked.iter().map(ToString::to_string).collect();
    Some(Some(format!("its certificate is of {}", names.join(" or "))))
}

/// Whether somebody whom the pattern means can be authenticated, and is not revoked.
fn may_call(pattern: &ClientPattern, state: &State) -> bool {
    let vouches = match pattern {
        ClientPattern::Name(_) => true,
        ClientPattern::Vouched(vouched) => {
            let subject = |issuer: &Issuer| {
                issuer.subject.as_ref().zip(vouched.subject.as_ref()).is_none_or(|(one, other)| one.overlaps(other))
            };
            state.issuers().get(&vouched.issuer).is_some_and(|issuer| subject(issuer))
                && !state.is_revoked(&Target::Issuer(vouched.issuer.clone()))
        }
    };
    vouches && pattern.exact().is_none_or(|client| !state.is_client_revoked(&client))
}

fn has_reads(policy: &Policy, group: &AppGroup) -> bool {
    reads(policy, group).next().is_some()
}

/// Reads that a scope may hold under the policy: all of its operations, and of what else it grants one of each family and
/// each that may live long.
fn reads<'a>(policy: &'a Policy, group: &'a AppGroup) -> impl Iterator<Item = Operation> + 'a {
    let named = policy.operations.iter().flat_map(|template| template.reads(&group.apps));
    let app = group.apps.first().map_or("1", |app| app.as_str());
    let long = apple::LONG_LIVED_READS.iter().map(move |path| format!("GET {}", path.replace('*', app)));
    let families = feature::families().filter(|(_, feature)| feature.is_ok());
    let families = families.map(|(family, _)| format!("GET /v1/{family}"));
    let known = long.chain(families).filter_map(|text| Operation::parse(&text).ok());
    named.chain(known).filter(|read| policy.refused_entry(std::slice::from_ref(read), &group.apps).is_none())
}

#[cfg(test)]
mod tests;
