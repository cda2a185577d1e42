//! What a trusted issuer that comes, changes or goes means: for each field of it, whose tokens are taken and whose are not.

use std::collections::BTreeSet;
use std::sync::Arc;

use super::bounded;
use crate::domain::claims::ClaimConditions;
use crate::domain::glob::ClaimGlob;
use crate::domain::issuer::Issuer;
use crate::domain::policy::Policy;
use crate::domain::state::State;

/// What a trusted issuer that comes, changes or goes means.
pub(in crate::domain) fn of_issuer(old: Option<&Issuer>, new: Option<&Issuer>, after: &State) -> Vec<String> {
    let Some(name) = old.or(new).map(|issuer| &issuer.name) else { return Vec::new() };
    let uses = |policy: &&Arc<Policy>| policy.clients.iter().any(|pattern| pattern.issuer() == Some(name));
    let policies: Vec<&str> = after.policies().values().filter(uses).map(|policy| policy.name.as_str()).collect();
    let of = match policies.as_slice() {
        [] => "no policy names".to_owned(),
        [one] => format!("policy {one} names"),
        all => format!("policies {} name", all.join(", ")),
    };
    let mut out = Vec::new();
    match (old, new) {
        (None, Some(issuer)) => {
            let known = format!("are known as {}SUBJECT", name.client_prefix());
            out.push(format!("callers with tokens of {} {known}; {of} them", issuer.url));
        }
        (Some(_), None) => out.push(format!("everyone whom it vouches for loses access; {of} them")),
        (Some(old), Some(new)) => {
            out.push(format!("tokens that were verified under the old record are verified anew; {of} its callers"));
            changes(old, new, &mut out);
        }
        (None, None) => {}
    }
    bounded(out)
}

/// Every field by which tokens are taken or refused.
fn changes(old: &Issuer, new: &Issuer, out: &mut Vec<String>) {
    let mut lose = |whose: String| out.push(format!("callers {whose} lose access"));
    if old.url != new.url {
        lose(format!("whose tokens are of {}, and not of {},", old.url, new.url));
    }
    if old.keys != new.keys {
        lose("whose tokens are signed with a key that is not among those it names now".to_owned());
    }
    let audiences = joined(&new.audiences);
    for audience in old.audiences.difference(&new.audiences) {
        lose(format!("whose tokens are for {audience}, and not for {audiences},"));
    }
    for algorithm in old.algorithms.difference(&new.algorithms) {
        lose(format!("whose tokens are signed with {}", algorithm.as_str()));
    }
    if new.max_age_s < old.max_age_s {
        lose(format!("whose tokens are older than {}s (before, {}s)", new.max_age_s, old.max_age_s));
    }
    if new.leeway_s < old.leeway_s {
        lose(format!(
            "whose clocks are more than {}s apart from the broker's (before, {}s)",
            new.leeway_s, old.leeway_s
        ));
    }
    if let Some(subject) = new.subject.as_ref().filter(|_| old.subject != new.subject) {
        lose(format!("whose subject is not {subject}"));
    }
    for (name, globs) in new.claims.iter().filter(|(name, globs)| narrows(name, globs, &old.claims)) {
        lose(format!("whose claim {name} is not {}", either(globs)));
    }
    let mut taken = |whose: String| out.push(format!("tokens {whose} are taken from now on"));
    for audience in new.audiences.difference(&old.audiences) {
        taken(format!("for {audience}"));
    }
    for algorithm in new.algorithms.difference(&old.algorithms) {
        taken(format!("signed with {}", algorithm.as_str()));
    }
    if new.max_age_s > old.max_age_s {
        taken(format!("that are up to {}s old (before, {}s)", new.max_age_s, old.max_age_s));
    }
    if new.leeway_s > old.leeway_s {
        taken(format!("by a clock up to {}s apart (before, {}s)", new.leeway_s, old.leeway_s));
    }
    if let Some(before) = old.subject.as_ref().filter(|_| old.subject != new.subject) {
        let now = new.subject.as_ref().map(|subject| format!("is {subject}"));
        taken(format!("whose subject {}", now.unwrap_or_else(|| format!("is not {before}"))));
    }
    for (name, globs) in old.claims.iter().filter(|(name, globs)| narrows(name, globs, &new.claims)) {
        let now = new.claims.get(name).map(|globs| format!("is {}", either(globs)));
        taken(format!("whose claim {name} {}", now.unwrap_or_else(|| format!("is not {}", either(globs)))));
    }
}

/// Whether a condition refuses something that these take.
fn narrows(name: &str, globs: &[ClaimGlob], others: &ClaimConditions) -> bool {
    others.get(name).is_none_or(|known| known.iter().any(|glob| !globs.contains(glob)))
}

fn either(globs: &[ClaimGlob]) -> String {
    globs.iter().map(ClaimGlob::as_str).collect::<Vec<_>>().join(" or ")
}

fn joined(texts: &BTreeSet<String>) -> String {
    texts.iter().map(String::as_str).collect::<Vec<_>>().join(" or ")
}
