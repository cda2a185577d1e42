//! Which callers a policy or an operator means.
//!
//! Exact by default. A `*` matches any characters within one segment of a SPIFFE path or one label of a DNS name, and
//! never crosses a separator; a trust domain is always exact.

use std::fmt;

use serde::{Deserialize, Serialize};

use crate::id::{ClientId, is_dns_label, is_spiffe_segment, is_trust_domain, shown};

/// A pattern over the names of clients.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub struct ClientPattern(String);

/// Why a text is not a pattern.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum PatternError {
    /// It is no SPIFFE ID with globs in its path.
    #[error(
        "`{0}` is not a SPIFFE pattern: spiffe://trust-domain/path, `*` only within a path segment, the trust domain exact"
    )]
    Spiffe(String),
    /// It is no host name with globs.
    #[error(
        "`{0}` is not a DNS pattern: lower-case labels joined by dots, `*` only within a label, the last two labels exact"
    )]
    Dns(String),
    /// It would match everybody of a trust domain.
    #[error("`{0}` matches too much: at least one path segment must be more than `*`")]
    TooWide(String),
}

impl ClientPattern {
    /// Takes a SPIFFE ID, in whose path segments `*` may stand for any characters.
    ///
    /// # Errors
    /// With the rule that the text breaks.
    pub fn spiffe(text: &str) -> Result<Self, PatternError> {
        let wrong = || PatternError::Spiffe(shown(text));
        let (domain, path) = text.strip_prefix("spiffe://").and_then(|rest| rest.split_once('/')).ok_or_else(wrong)?;
        if text.len() > 2048
            || !is_trust_domain(domain)
            || !path.split('/').all(|s| is_spiffe_segment(&s.replace('*', "x")))
        {
            return Err(wrong());
        }
        if path.split('/').all(|segment| segment.bytes().all(|b| b == b'*')) {
            return Err(PatternError::TooWide(shown(text)));
        }
        Ok(Self(text.to_owned()))
    }

    /// Takes a host name, in whose labels `*` may stand for any characters but dots.
    ///
    /// # Errors
    /// With the rule that the text breaks.
    pub fn dns(text: &str) -> Result<Self, PatternError> {
        let labels: Vec<&str> = text.split('.').collect();
        let fits = text.len() <= 253 && labels.iter().all(|label| is_dns_label(&label.replace('*', "x")));
        let anchored = labels.iter().rev().take(2).all(|label| !label.contains('*'));
        if fits && anchored { Ok(Self(format!("dns:{text}"))) } else { Err(PatternError::Dns(shown(text))) }
    }

    /// Whether the client is meant.
    pub fn matches(&self, client: &ClientId) -> bool {
        let (pattern, name) = (self.0.as_str(), client.as_str());
        if pattern == name {
            return true;
        }
        let separator = if pattern.starts_with("spiffe://") { '/' } else { '.' };
        // The scheme and trust domain, or `dns:` with the first label, hold no `/`, so one walk compares all parts.
        pattern.split(separator).count() == name.split(separator).count()
            && pattern.split(separator).zip(name.split(separator)).all(|(glob, part)| glob_matches(glob, part))
    }

    /// The one client that is meant, where there is no `*`.
    pub fn exact(&self) -> Option<ClientId> {
        if self.0.contains('*') { None } else { ClientId::parse(&self.0).ok() }
    }

    /// `spiffe` or `dns`, and the pattern without that prefix for DNS.
    pub fn parts(&self) -> (&'static str, &str) {
        match self.0.strip_prefix("dns:") {
            Some(name) => ("dns", name),
            None => ("spiffe", &self.0),
        }
    }
}

impl fmt::Display for ClientPattern {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

impl TryFrom<String> for ClientPattern {
    type Error = PatternError;

    fn try_from(text: String) -> Result<Self, Self::Error> {
        match text.strip_prefix("dns:") {
            Some(name) => Self::dns(name),
            None => Self::spiffe(&text),
        }
    }
}

impl From<ClientPattern> for String {
    fn from(pattern: ClientPattern) -> Self {
        pattern.0
    }
}

/// Linear in both lengths: the first and last literal are anchored, those between are found from the left.
fn glob_matches(glob: &str, text: &str) -> bool {
    let Some((first, rest)) = glob.split_once('*') else { return glob == text };
    let Some(mut text) = text.strip_prefix(first) else { return false };
    let mut literals: Vec<&str> = rest.split('*').collect();
    let last = literals.pop().unwrap_or_default();
    for literal in literals {
        match text.find(literal) {
            Some(at) => text = text.get(at.saturating_add(literal.len())..).unwrap_or_default(),
            None => return false,
        }
    }
    text.len() >= last.len() && text.ends_with(last)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn client(text: &str) -> ClientId {
        ClientId::parse(text).unwrap()
    }

    #[test]
    fn a_glob_stays_within_its_segment() {
        let pattern = ClientPattern::spiffe("spiffe://acme.internal/ns/ci/sa/release-*").unwrap();
        assert!(pattern.matches(&client("spiffe://acme.internal/ns/ci/sa/release-bot")));
        assert!(pattern.matches(&client("spiffe://acme.internal/ns/ci/sa/release-")));
        assert!(!pattern.matches(&client("spiffe://acme.internal/ns/ci/sa/release-bot/x")));
        assert!(!pattern.matches(&client("spiffe://acme.internal/ns/ci/sa/xrelease-bot")));
        assert!(!pattern.matches(&client("spiffe://evil.internal/ns/ci/sa/release-bot")));
        let pattern = ClientPattern::dns("ci-*.acme.internal").unwrap();
        assert!(pattern.matches(&client("dns:ci-7.acme.internal")));
        assert!(!pattern.matches(&client("dns:ci-7.evil.acme.internal")));
        assert!(!pattern.matches(&client("dns:ci-7.acme.internal.evil.com")));
        assert!(!pattern.matches(&client("spiffe://acme.internal/ci-7")));
    }

    #[test]
    fn several_globs_in_one_segment_find_their_literals_in_order() {
        let pattern = ClientPattern::spiffe("spiffe://a/x*-ab*b-y").unwrap();
        assert!(pattern.matches(&client("spiffe://a/x-ab-b-y")));
        assert!(pattern.matches(&client("spiffe://a/x1-ab2b-y")));
        assert!(!pattern.matches(&client("spiffe://a/x-ab-y")));
        assert!(!pattern.matches(&client("spiffe://a/xab-b-y")));
    }

    #[test]
    fn patterns_that_are_loose_are_refused() {
        for bad in [
            "spiffe://*/a",
            "spiffe://acme.*/a",
            "spiffe://acme",
            "spiffe://acme/",
            "spiffe://acme/a//b",
            "spiffe://acme/%2a",
            "acme/a",
        ] {
            assert!(matches!(ClientPattern::spiffe(bad), Err(PatternError::Spiffe(_))), "{bad}");
        }
        for bad in ["spiffe://acme/*", "spiffe://acme/**/*"] {
            assert!(matches!(ClientPattern::spiffe(bad), Err(PatternError::TooWide(_))), "{bad}");
        }
        for bad in ["*", "*.com", "ci.*", "*.*.com", "CI.acme.internal", "ci..acme", "", "a/b.c.d"] {
            assert!(ClientPattern::dns(bad).is_err(), "{bad}");
        }
    }
}
