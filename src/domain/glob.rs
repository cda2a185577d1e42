//! Texts in which a `*` stands for any characters but separators.
//!
//! Which characters separate depends on what the text names: `/` in the path of a SPIFFE ID, `.` in a host name, and all
//! of `/ : @ #` in a claim. A `*` never crosses one, so a pattern has as many parts as what it matches.

use std::fmt;

use serde::{Deserialize, Serialize};

use crate::id::shown;

/// What separates the parts of a claim.
pub const CLAIM_SEPARATORS: &[u8] = b"/:@#";

/// Longest value of a claim, in bytes.
const MOST_BYTES: usize = 1024;

/// A pattern over the value of a claim.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub struct ClaimGlob(String);

/// Why a text is not a pattern over a claim.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum GlobError {
    /// It is empty, too long, or not printable.
    #[error("`{0}` is not a claim's value: 1 to {MOST_BYTES} printable ASCII characters without spaces at its ends")]
    Text(String),
    /// It matches whatever is there.
    #[error("`{0}` matches everything: write out at least one part of it")]
    Everything(String),
}

impl ClaimGlob {
    /// Takes a value in which `*` may stand for any characters but `/ : @ #`.
    ///
    /// # Errors
    /// With the rule that the text breaks.
    pub fn parse(text: &str) -> Result<Self, GlobError> {
        let printable = text.bytes().all(|b| b.is_ascii_graphic() || b == b' ') && text.trim() == text;
        if !(1..=MOST_BYTES).contains(&text.len()) || !printable {
            return Err(GlobError::Text(shown(text)));
        }
        if text.contains('*') && parts(text).all(is_wild) {
            return Err(GlobError::Everything(shown(text)));
        }
        Ok(Self(text.to_owned()))
    }

    /// Whether a claim has this value.
    pub fn matches(&self, value: &str) -> bool {
        glob_matches(self.0.as_bytes(), value.as_bytes(), CLAIM_SEPARATORS)
    }

    /// Whether it has no `*`.
    pub fn is_exact(&self) -> bool {
        !self.0.contains('*')
    }

    /// Whether a part after the first begins with what is written out, or all of a text without parts does: so `repo:*`
    /// says nothing of whose repository it is, and `release-*` says something. What lies between two separators and is
    /// empty is no part, and a flag is the same for many.
    pub fn is_anchored(&self) -> bool {
        let mut rest = parts(&self.0);
        let first = rest.next().unwrap_or_default();
        let mut rest = rest.peekable();
        if rest.peek().is_none() { says_something(first) && !is_flag(first) } else { rest.any(says_something) }
    }

    /// Whether the first parts are these, written out, and the one after them is written out, too.
    pub fn names_after(&self, prefix: &[&str]) -> bool {
        let mut rest = parts(&self.0);
        prefix.iter().all(|wanted| rest.next() == Some(*wanted))
            && rest.next().is_some_and(|part| !part.is_empty() && !part.contains('*'))
    }

    /// Whether some value is what both say.
    pub fn overlaps(&self, other: &Self) -> bool {
        globs_overlap(self.0.as_bytes(), other.0.as_bytes(), CLAIM_SEPARATORS)
    }

    /// The text.
    pub fn as_str(&self) -> &str {
        &self.0
    }
}

impl fmt::Display for ClaimGlob {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

impl TryFrom<String> for ClaimGlob {
    type Error = GlobError;

    fn try_from(text: String) -> Result<Self, Self::Error> {
        Self::parse(&text)
    }
}

impl From<ClaimGlob> for String {
    fn from(glob: ClaimGlob) -> Self {
        glob.0
    }
}

fn parts(text: &str) -> impl Iterator<Item = &str> {
    text.split(|c: char| u8::try_from(c).is_ok_and(|b| CLAIM_SEPARATORS.contains(&b)))
}

/// Whether a part leaves everything open; an empty one says nothing either.
fn is_wild(part: &str) -> bool {
    part.bytes().all(|b| b == b'*')
}

/// Whether a part begins with letters or digits that are written out.
fn says_something(part: &str) -> bool {
    part.split('*').next().is_some_and(|begin| begin.bytes().any(|b| b.is_ascii_alphanumeric()))
}

fn is_flag(text: &str) -> bool {
    ["true", "false"].iter().any(|flag| text.eq_ignore_ascii_case(flag))
}

/// Whether the text is what the pattern says. At most quadratic in the length of one part: after a mismatch only the last
/// `*` can give way, by one character, and never past a separator.
pub(super) fn glob_matches(pattern: &[u8], text: &[u8], separators: &[u8]) -> bool {
    let (mut at, mut here) = (0, 0);
    // Where the pattern goes on after the last `*`, and how much of the text that has taken.
    let mut star: Option<(usize, usize)> = None;
    while let Some(&found) = text.get(here) {
        match pattern.get(at) {
            Some(b'*') => {
                at = at.saturating_add(1);
                star = Some((at, here));
            }
            Some(&wanted) if wanted == found => {
                at = at.saturating_add(1);
                here = here.saturating_add(1);
            }
            _ => {
                let Some((after, taken)) = star else { return false };
                if text.get(taken).is_none_or(|next| separators.contains(next)) {
                    return false;
                }
                let taken = taken.saturating_add(1);
                (at, here, star) = (after, taken, Some((after, taken)));
            }
        }
    }
    pattern.get(at..).is_none_or(|rest| rest.iter().all(|b| *b == b'*'))
}

/// Whether some text is what both patterns say. As a `*` crosses no separator, both have the same separators in the same
/// order, and each part is asked alone.
pub(super) fn globs_overlap(one: &[u8], other: &[u8], separators: &[u8]) -> bool {
    let is_separator = |b: &u8| separators.contains(b);
    let between = |text: &[u8]| text.iter().copied().filter(|b| is_separator(b)).collect::<Vec<u8>>();
    between(one) == between(other)
        && one.split(is_separator).zip(other.split(is_separator)).all(|(one, other)| parts_overlap(one, other))
}

/// The same of two patterns without separators, in the product of their lengths.
fn parts_overlap(one: &[u8], other: &[u8]) -> bool {
    // Whether some text can be what has been read of `one`, and of `other` up to each place.
    let mut reached = vec![false; other.len().saturating_add(1)];
    if let Some(first) = reached.first_mut() {
        *first = true;
    }
    for (at, wanted) in other.iter().enumerate() {
        let before = reached.get(at).copied().unwrap_or_default();
        if let Some(place) = reached.get_mut(at.saturating_add(1)) {
            *place = before && *wanted == b'*';
        }
    }
    for here in one {
        // A `*` may stand for nothing; nothing else may.
        let mut next = if *here == b'*' { reached.clone() } else { vec![false; reached.len()] };
        for (at, there) in other.iter().enumerate() {
            let reaches = |row: &[bool], at: usize| row.get(at).copied().unwrap_or_default();
            let (left, after) = (reaches(&next, at), at.saturating_add(1));
            let both = (here == there || *here == b'*' || *there == b'*') && reaches(&reached, at);
            // A `*` of either goes on over what the other says next.
            let over = (*here == b'*' || *there == b'*') && left;
            let stays = *there == b'*' && reaches(&reached, after);
            if let Some(place) = next.get_mut(after) {
                *place |= both || over || stays;
            }
        }
        reached = next;
    }
    reached.last().copied().unwrap_or_default()
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn a_star_stays_between_separators() {
        let matches = |glob: &str, value: &str| ClaimGlob::parse(glob).unwrap().matches(value);
        assert!(matches("refs/tags/v*", "refs/tags/v1.2"));
        assert!(!matches("refs/tags/v*", "refs/tags/v1/x"));
        assert!(matches("repo:acme/*:ref:refs/heads/main", "repo:acme/bot:ref:refs/heads/main"));
        assert!(!matches("repo:acme/*:ref:refs/heads/main", "repo:acme/bot:ref:refs/heads/main2"));
        assert!(!matches("repo:acme/*:ref:refs/heads/main", "repo:acme/a:b:ref:refs/heads/main"));
        assert!(!matches("*-bot", "a@b-bot"));
        assert!(matches("x*-ab*b-y", "x1-ab2b-y"));
        assert!(!matches("x*-ab*b-y", "x-ab-y"));
    }

    #[test]
    fn what_says_nothing_is_refused() {
        for bad in ["*", "**", "*:*", "*/*", "*:*@", "*//*", "", " a", "a\n", "ä"] {
            assert!(ClaimGlob::parse(bad).is_err(), "{bad:?}");
        }
        assert!(ClaimGlob::parse("/").unwrap().matches("/"));
        let anchored = |glob: &str| ClaimGlob::parse(glob).unwrap().is_anchored();
        assert!(anchored("main") && anchored("release-*") && anchored("repo:acme/*"));
        assert!(anchored("https://idp.test/u/*") && anchored("*@acme.internal") && anchored("x:true"));
        assert!(!anchored("repo:*") && !anchored("repo:*/*:*") && !anchored("*-x"));
        for empty in ["https://*/*", "spiffe://*/*/*", "user:", "user:*@", "user:-*", "true", "False", "/"] {
            assert!(!anchored(empty), "{empty}");
        }
        assert!(ClaimGlob::parse("repo:acme/*:*").unwrap().names_after(&["repo"]));
        assert!(!ClaimGlob::parse("repo:ac*/x:*").unwrap().names_after(&["repo"]));
    }

    fn naive_over(pattern: &[u8], text: &[u8]) -> bool {
        glob_matches(pattern, text, b"/")
    }

    /// The same by trying every length of every `*`.
    fn naive(pattern: &[u8], text: &[u8]) -> bool {
        match pattern.split_first() {
            None => text.is_empty(),
            Some((b'*', rest)) => {
                let most = text.iter().position(|b| CLAIM_SEPARATORS.contains(b)).unwrap_or(text.len());
                (0..=most).any(|taken| naive(rest, &text[taken..]))
            }
            Some((b, rest)) => text.first() == Some(b) && naive(rest, &text[1..]),
        }
    }

    /// Every text over `a`, `b` and `/` of up to four characters.
    fn texts() -> Vec<Vec<u8>> {
        let mut all = vec![vec![]];
        let mut last = all.clone();
        for _ in 0..4 {
            last = last.iter().flat_map(|text: &Vec<u8>| b"ab/".map(|b| [text.as_slice(), &[b]].concat())).collect();
            all.extend(last.clone());
        }
        all
    }

    proptest! {
        #[test]
        fn two_patterns_overlap_where_some_text_is_what_both_say(one in "[ab*/]{0,4}", other in "[ab*/]{0,4}") {
            let (one, other) = (one.as_bytes(), other.as_bytes());
            // What both say need be no longer than the literals of both; here these are few enough to try all texts.
            prop_assume!([one, other].concat().iter().filter(|b| matches!(b, b'a' | b'b' | b'/')).count() <= 4);
            let found = texts().iter().any(|text| {
                naive_over(one, text) && naive_over(other, text)
            });
            prop_assert_eq!(globs_overlap(one, other, b"/"), found);
        }

        #[test]
        fn the_quick_way_agrees_with_the_naive_one(pattern in "[ab*:/]{0,10}", text in "[ab:/]{0,12}") {
            prop_assert_eq!(
                glob_matches(pattern.as_bytes(), text.as_bytes(), CLAIM_SEPARATORS),
                naive(pattern.as_bytes(), text.as_bytes())
            );
        }
    }
}
