//! Why a request is granted or refused: the path of the decision, everything that was looked at, and what would change it.
//!
//! Pure, as the decision itself. The outcome is [`decide`]'s own; what each policy says comes from the functions that it
//! rests on, and keys are looked at as it looks at them. The permit that a grant would need is dropped here: explaining
//! never leads to a token. What this tells is for operators; callers are told [`super::decide::DenyReason::safe_message`].
//!
//! Non-goal: what stands beside the decision, such as quotas, is not looked at.
//!
//! # Invariants
//! - `INV-EXPLAIN-1`: an explanation says what `decide` says, and nothing else.
//! - `INV-EXPLAIN-2`: a change that is said to be enough is one with which `decide` was seen to grant.

mod ceilings;
mod keys;
mod path;
mod policies;
mod repair;
mod smallest;

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

use super::decide::{Denial, TokenRequest, decide};
use super::enforcement::Enforcement;
use super::issuer::{Issuer, IssuerKeys, IssuerKind};
use super::principal::{Facts, Principal};
use super::state::State;
use crate::clock::UnixMillis;
use crate::id::{ClientId, IssuerName, KeyId, PolicyName, Revision};
pub use smallest::SmallestChange;

/// Why a request is granted or refused.
#[derive(Debug, Clone)]
pub struct Explanation {
    /// What was decided.
    pub outcome: Result<Granted, Denial>,
    /// The path that the decision took, a sentence each.
    pub path: Vec<String>,
    /// Each policy of the app group and each ceiling over it, by name.
    pub considered: Vec<Considered>,
    /// Each key of the app group, by id.
    pub keys: Vec<ConsideredKey>,
    /// For a denial: what would allow it.
    pub smallest_change: Option<SmallestChange>,
    /// The revision it was decided at.
    pub revision: Revision,
}

/// What would be granted.
#[derive(Debug, Clone)]
pub struct Granted {
    /// The policy that grants it.
    pub policy: PolicyName,
    /// The key that would sign.
    pub key: KeyId,
    /// When the token would die, in Unix seconds.
    pub expires_at: i64,
    /// Who would hold its bearer to each limit.
    pub enforced_by: Vec<Enforcement>,
}

/// A policy or ceiling that was looked at.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Considered {
    /// `policy` or `ceiling`.
    pub kind: &'static str,
    /// Its name.
    pub name: String,
    /// Whether the policy grants the request, or the ceiling forbids nothing of it.
    pub passes: bool,
    /// The first condition that fails, as a stable constant; empty where it passes.
    pub reason: &'static str,
    /// The same in words, with what would be needed.
    pub explanation: String,
}

/// A key of the app group.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ConsideredKey {
    /// Its Key ID.
    pub id: KeyId,
    /// Whether it is the one that signs.
    pub chosen: bool,
    /// Why it was chosen, or passed over.
    pub explanation: String,
}

/// Explains what `decide` says of a request on a state at a time.
pub fn explain(request: &TokenRequest, state: &State, now: UnixMillis) -> Explanation {
    // INVARIANT (INV-EXPLAIN-1): asked once, and everything below goes by this answer.
    let decision = decide(request, state, now);
    let (permit, denial) = (decision.as_ref().ok(), decision.as_ref().err());
    let nearest = permit.map(|permit| &permit.policy().name).or(denial.and_then(|denial| denial.policy.as_ref()));
    let nearest = nearest.and_then(|name| state.policies().get(name));
    let mut considered = policies::considered(request, permit, state, now);
    considered.extend(ceilings::considered(request, &decision, state));
    Explanation {
        path: path::path(request, &decision, state, now),
        considered,
        keys: keys::considered(request, nearest.map(Arc::as_ref), permit, state),
        smallest_change: denial.map(|_| smallest::smallest(request, state, now)),
        revision: state.head().revision,
        outcome: decision.map(|permit| Granted {
            policy: permit.policy().name.clone(),
            key: permit.key().id.clone(),
            expires_at: permit.expires_at(),
            enforced_by: permit.enforcement(),
        }),
    }
}

/// [`Principal::imagined`], but for an issuer that the state does not know: it vouches for the caller all the same, so that
/// what it says is looked at; such a caller is refused.
pub fn imagine(client: ClientId, facts: Facts, state: &State) -> Principal {
    match client.issuer().filter(|name| !state.issuers().contains_key(name)) {
        Some(name) => {
            let stranger = [(name.clone(), Arc::new(unknown(name)))].into();
            Principal::imagined(client, facts, &stranger)
        }
        None => Principal::imagined(client, facts, state.issuers()),
    }
}

/// Why a caller would be refused before anything is decided, as far as that can be imagined.
pub fn at_the_door(principal: &Principal) -> Option<String> {
    let vouched = principal.vouched.as_ref()?;
    (!vouched.issuer.covers(&vouched.subject, &vouched.claims)).then(|| {
        format!(
            "issuer {} is not trusted for this subject with these claims: such a token is refused before anything is \
             decided, and what follows is what would be decided if it were not",
            vouched.issuer.name
        )
    })
}

fn unknown(name: IssuerName) -> Issuer {
    Issuer {
        name,
        kind: IssuerKind::Oidc,
        url: String::new(),
        keys: IssuerKeys::Discovery,
        audiences: BTreeSet::new(),
        algorithms: BTreeSet::new(),
        leeway_s: 0,
        max_age_s: 0,
        subject: None,
        claims: BTreeMap::new(),
    }
}

/// Some names, and how many more there are.
fn listed<T: ToString>(names: impl IntoIterator<Item = T>) -> String {
    const MOST: usize = 10;
    let names: Vec<String> = names.into_iter().map(|name| name.to_string()).collect();
    match names.get(..MOST).filter(|_| names.len() > MOST) {
        Some(first) => format!("{} and {} more", first.join(", "), names.len().saturating_sub(MOST)),
        None => names.join(", "),
    }
}

#[cfg(test)]
mod tests;
