//! Features: what a policy may grant in words, without naming reads one by one.
//!
//! A feature is a set of families of Apple's API; the `table` beside this file is what assigns them. A grant is a feature
//! with `:read` or `:write`, and writing includes reading. Apple's `scope` claim takes GET only, so a token can be held
//! to the reads of its grants and never to the writes: a `:write` grant is an agreement with the bearer.
//!
//! Non-goals: a feature does not confine a token to an app, and it does not know whether a path exists at Apple.
//!
//! # Invariants
//! - `INV-FEATURE-1`: a grant never covers a read that answers with, or tells of, what belongs to another feature. What
//!   can't be told with certainty is not covered; a policy names such a read under `operations`.

use std::collections::HashMap;
use std::fmt;
use std::sync::LazyLock;

use serde::{Deserialize, Serialize};

use super::operation::Operation;
use crate::id::shown;

mod table;

macro_rules! features {
    ($($variant:ident = $name:literal: $about:literal),* $(,)?) => {
        /// A part of what Apple's API can do.
        #[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
        pub enum Feature { $(#[doc = $about] $variant),* }

        impl Feature {
            /// Every feature.
            pub const ALL: &[Self] = &[$(Self::$variant),*];

            /// The spelling in policies.
            pub fn as_str(self) -> &'static str {
                match self { $(Self::$variant => $name),* }
            }

            /// What it is about, for a reader who knows nothing of Apple.
            pub fn about(self) -> &'static str {
                match self { $(Self::$variant => $about),* }
            }
        }
    };
}

features! {
    Metadata = "metadata": "What the App Store shows of an app, and what is handed in for Apple's review: texts, pictures, versions, events.",
    Pricing = "pricing": "What an app costs and where it can be had, and what is sold within it: purchases, subscriptions, offers.",
    Reviews = "reviews": "What customers write about an app, and the answers to them.",
    Analytics = "analytics": "How an app is found and used, how fast it runs, and why it crashes.",
    SalesAndFinance = "sales-and-finance": "What was sold and what Apple pays for it: reports on the whole account.",
    TestFlight = "testflight": "Trials of an app before its release: the testers, their groups, and what they are told.",
    Builds = "builds": "The binaries of an app that were uploaded, and their versions.",
    Provisioning = "provisioning": "What software is signed with: identifiers, certificates, profiles, registered devices.",
    XcodeCloud = "xcode-cloud": "Apple's build service: its workflows, runs and results, and the repositories it reads.",
    GameCenter = "game-center": "Achievements, leaderboards and matchmaking of games.",
    Users = "users": "The people who have access to the account, invitations to it, who did what, and accounts for trial purchases.",
}

impl Feature {
    /// Takes the spelling of policies.
    pub fn parse(text: &str) -> Option<Self> {
        Self::ALL.iter().copied().find(|feature| feature.as_str() == text)
    }
}

impl fmt::Display for Feature {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.as_str())
    }
}

/// What may be done with a feature.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Access {
    /// Look.
    Read,
    /// Look, and change.
    Write,
}

impl Access {
    /// The spelling in policies.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Read => "read",
            Self::Write => "write",
        }
    }
}

/// One feature, and what may be done with it: `reviews:read`.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub struct FeatureGrant {
    /// The feature.
    pub feature: Feature,
    /// What may be done with it.
    pub access: Access,
}

/// Why a text is not a grant.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum FeatureError {
    /// It names no feature.
    #[error("`{0}` names no feature; the features are {known}, each with `:read` or `:write`", known = known())]
    Feature(String),
    /// It does not say what may be done.
    #[error("`{0}` must end in `:read` or `:write` after one of the features {known}", known = known())]
    Access(String),
}

impl FeatureGrant {
    /// Takes a grant of a policy, such as `reviews:read`.
    ///
    /// # Errors
    /// With what is wrong and the known features.
    pub fn parse(text: &str) -> Result<Self, FeatureError> {
        let (feature, access) = text.split_once(':').map_or((text, None), |(feature, access)| (feature, Some(access)));
        let feature = Feature::parse(feature).ok_or_else(|| FeatureError::Feature(shown(text)))?;
        let access = match access {
            Some("read") => Access::Read,
            Some("write") => Access::Write,
            _ => return Err(FeatureError::Access(shown(text))),
        };
        Ok(Self { feature, access })
    }
}

impl fmt::Display for FeatureGrant {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}:{}", self.feature, self.access.as_str())
    }
}

impl TryFrom<String> for FeatureGrant {
    type Error = FeatureError;

    fn try_from(text: String) -> Result<Self, Self::Error> {
        Self::parse(&text)
    }
}

impl From<FeatureGrant> for String {
    fn from(grant: FeatureGrant) -> Self {
        grant.to_string()
    }
}

/// The feature of what a read answers with; `None` where it belongs to none, or is not known to.
pub fn feature_of(operation: &Operation) -> Option<Feature> {
    place(operation.path()).map(|place| place.answer)
}

/// Whether the grants cover a read: its answer is of a granted feature, so is what it hangs off unless that owns nearly
/// everything (an app, a version, a build), and its query brings nothing else into the answer. So an entry with
/// `include` is never covered, whatever is granted: a policy names it under `operations`.
pub fn is_granted(grants: &[FeatureGrant], entry: &Operation) -> bool {
    // Both kinds of access include reading.
    let granted = |feature| grants.iter().any(|grant| grant.feature == feature);
    // INVARIANT (INV-FEATURE-1): the answer, its owner and the query, each by what is known to be harmless.
    place(entry.path()).is_some_and(|place| granted(place.answer) && granted(place.owner))
        && entry.parameter_names().all(narrows)
}

/// Every family with its feature, or with the reason why it has none; there, `owner/related` is one thing that hangs
/// off a family's resources.
pub fn families() -> impl Iterator<Item = (&'static str, Result<Feature, &'static str>)> {
    let placed = words(table::FAMILIES).map(|(family, feature)| (family, Ok(feature)));
    placed.chain(table::NONE.iter().map(|(name, reason)| (*name, Err(*reason))))
}

/// Whose a read is.
struct Place {
    /// Of what it answers with.
    answer: Feature,
    /// Of what that hangs off, where this is told as well; else the same.
    owner: Feature,
}

fn place(path: &str) -> Option<Place> {
    let path = ["/v1/", "/v2/", "/v3/"].iter().find_map(|version| path.strip_prefix(version))?;
    let mut parts = path.splitn(3, '/');
    let family = parts.next()?;
    let owner = *INDEX.get(&(family, ""))?;
    let Some(related) = parts.nth(1) else { return Some(Place { answer: owner, owner }) };
    let related = related.strip_prefix("relationships/").unwrap_or(related);
    let answer = *INDEX.get(&(family, related)).or_else(|| INDEX.get(&("", related)))?;
    Some(Place { answer, owner: if table::COMMON_OWNERS.contains(&family) { answer } else { owner } })
}

/// Whether a parameter leaves the answer with nothing but resources that the path names. `filter` and `exists` leave
/// some out; `fields` picks what is shown of them; `limit[...]` bounds what `include` would add, and alone does nothing;
/// the last three are of Apple's usage metrics, which are counted and not listed.
fn narrows(parameter: &str) -> bool {
    match parameter.split_once('[') {
        Some((name, of)) => {
            let of = of.strip_suffix(']').unwrap_or_default();
            matches!(name, "filter" | "exists" | "fields" | "limit") && !of.is_empty() && !of.contains(['[', ']'])
        }
        None => matches!(parameter, "period" | "granularity" | "groupBy"),
    }
}

/// Families under `(family, "")`, their names as something that hangs off any owner under `("", name)`, and what hangs
/// off one owner under `(owner, related)`.
static INDEX: LazyLock<HashMap<(&str, &str), Feature>> = LazyLock::new(|| {
    let mut index = HashMap::new();
    for (family, feature) in words(table::FAMILIES) {
        let singular = family.strip_suffix('s').unwrap_or(family);
        index.extend([((family, ""), feature), (("", family), feature), (("", singular), feature)]);
    }
    let related = words(table::RELATED).filter_map(|(pair, feature)| Some((pair.split_once('/')?, feature)));
    index.extend(related);
    index
});

fn words(table: &'static [(Feature, &'static str)]) -> impl Iterator<Item = (&'static str, Feature)> {
    table.iter().flat_map(|(feature, names)| names.split_whitespace().map(|name| (name, *feature)))
}

fn known() -> String {
    Feature::ALL.iter().map(|feature| feature.as_str()).collect::<Vec<_>>().join(", ")
}

#[cfg(test)]
mod tests;
