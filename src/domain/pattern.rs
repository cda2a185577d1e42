//! Which callers a policy, an operator or a ceiling means.
//!
//! Exact by default. A `*` matches any characters within one segment of a SPIFFE path, one label of a DNS name or one part
//! of a claim, and never crosses a separator; a trust domain and an issuer are always exact.

use std::fmt;

use serde::{Deserialize, Serialize};

use super::claims::ClaimConditions;
use super::glob::{ClaimGlob, glob_matches, globs_overlap};
use super::principal::Principal;
use crate::id::{ClientId, IssuerName, is_dns_label, is_spiffe_segment, is_trust_domain, shown};

/// A pattern over callers.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(try_from = "Written", into = "Written")]
pub enum ClientPattern {
    /// Over names in certificates.
    Name(NamePattern),
    /// Over what a trusted issuer says.
    Vouched(VouchedPattern),
}

/// A SPIFFE ID or, after `dns:`, a host name; with globs.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct NamePattern {
    text: String,
    /// How much of it stands before the first `*`.
    literal: usize,
}

/// Whom a trusted issuer vouches for, and what it must say of them.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct VouchedPattern {
    /// The issuer.
    pub issuer: IssuerName,
    /// What the subject must be.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub subject: Option<ClaimGlob>,
    /// What claims must be, all of them.
    #[serde(default, skip_serializing_if = "ClaimConditions::is_empty")]
    pub claims: ClaimConditions,
}

/// How a record has it: a text for a name, as since the first release, or an object.
#[derive(Serialize, Deserialize)]
#[serde(untagged)]
enum Written {
    Name(String),
    Vouched { oidc: VouchedPattern },
}

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

impl NamePattern {
    fn new(text: String) -> Self {
        let literal = text.find('*').unwrap_or(text.len());
        Self { text, literal }
    }

    fn matches(&self, name: &str) -> bool {
        let prefix = self.text.as_bytes().get(..self.literal).unwrap_or_default();
        let Some(rest) = name.as_bytes().strip_prefix(prefix) else { return false };
        let separators: &[u8] = if self.text.starts_with("spiffe://") { b"/" } else { b"." };
        glob_matches(self.text.as_bytes().get(self.literal..).unwrap_or_default(), rest, separators)
    }

    fn overlaps(&self, other: &Self) -> bool {
        let is_spiffe = |pattern: &Self| pattern.text.starts_with("spiffe://");
        let separators: &[u8] = if is_spiffe(self) { b"/" } else { b"." };
        is_spiffe(self) == is_spiffe(other) && globs_overlap(self.text.as_bytes(), other.text.as_bytes(), separators)
    }
}

impl VouchedPattern {
    /// What is first found not to hold of a caller: the issuer, the subject, or a claim by its name.
    pub fn first_unmet<'a>(&'a self, principal: &Principal) -> Option<&'a str> {
        let Some(vouched) = principal.vouched.as_ref().filter(|it| it.issuer.name == self.issuer) else {
            return Some("issuer");
        };
        if self.subject.as_ref().is_some_and(|glob| !glob.matches(&vouched.subject)) {
            return Some("subject");
        }
        vouched.claims.first_unmet(&self.claims)
    }

    /// What else the issuer would have to say of the caller: claims that are not there at all. `None` where what is there
    /// says otherwise already.
    pub fn lacking<'a>(&'a self, principal: &Principal) -> Option<Vec<(&'a str, &'a [ClaimGlob])>> {
        let vouched = principal.vouched.as_ref().filter(|it| it.issuer.name == self.issuer)?;
        if self.subject.as_ref().is_some_and(|glob| !glob.matches(&vouched.subject)) {
            return None;
        }
        vouched.claims.lacking(&self.claims)
    }
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
        Ok(Self::Name(NamePattern::new(text.to_owned())))
    }

    /// Takes a host name, in whose labels `*` may stand for any characters but dots.
    ///
    /// # Errors
    /// With the rule that the text breaks.
    pub fn dns(text: &str) -> Result<Self, PatternError> {
        let labels: Vec<&str> = text.split('.').collect();
        let fits = text.len() <= 253 && labels.iter().all(|label| is_dns_label(&label.replace('*', "x")));
        let anchored = labels.iter().rev().take(2).all(|label| !label.contains('*'));
        if fits && anchored {
            Ok(Self::Name(NamePattern::new(format!("dns:{text}"))))
        } else {
            Err(PatternError::Dns(shown(text)))
        }
    }

    /// Takes a name in certificates as a record has it: a SPIFFE ID, or `dns:` and a host name.
    ///
    /// # Errors
    /// With the rule that the text breaks.
    pub fn name(text: &str) -> Result<Self, PatternError> {
        match text.strip_prefix("dns:") {
            Some(name) => Self::dns(name),
            None => Self::spiffe(text),
        }
    }

    /// Whether the caller is meant.
    pub fn matches(&self, principal: &Principal) -> bool {
        match self {
            Self::Name(pattern) => pattern.matches(principal.client.as_str()),
            Self::Vouched(pattern) => pattern.first_unmet(principal).is_none(),
        }
    }

    /// Whether the name in a certificate is meant.
    pub fn names(&self, certificate: &ClientId) -> bool {
        match self {
            Self::Name(pattern) => pattern.matches(certificate.as_str()),
            Self::Vouched(_) => false,
        }
    }

    /// Whether some caller may be one that both mean. An issuer can say several things in one claim, so claims never stand
    /// against each other.
    pub fn overlaps(&self, other: &Self) -> bool {
        match (self, other) {
            (Self::Name(one), Self::Name(other)) => one.overlaps(other),
            (Self::Vouched(one), Self::Vouched(other)) => {
                let subjects = one.subject.as_ref().zip(other.subject.as_ref());
                one.issuer == other.issuer && subjects.is_none_or(|(one, other)| one.overlaps(other))
            }
            _ => false,
        }
    }

    /// The one client that is meant, where there is no `*`.
    pub fn exact(&self) -> Option<ClientId> {
        match self {
            Self::Name(pattern) if pattern.literal == pattern.text.len() => ClientId::parse(&pattern.text).ok(),
            Self::Name(_) => None,
            Self::Vouched(pattern) => {
                let subject = pattern.subject.as_ref().filter(|glob| glob.is_exact())?;
                ClientId::parse(&format!("{}{subject}", pattern.issuer.client_prefix())).ok()
            }
        }
    }

    /// The issuer, where it is one that vouches.
    pub fn issuer(&self) -> Option<&IssuerName> {
        match self {
            Self::Name(_) => None,
            Self::Vouched(pattern) => Some(&pattern.issuer),
        }
    }

    /// The trust domain, where it is one over SPIFFE IDs.
    pub fn trust_domain(&self) -> Option<&str> {
        match self {
            Self::Name(pattern) => pattern.text.strip_prefix("spiffe://")?.split('/').next(),
            Self::Vouched(_) => None,
        }
    }

    /// `spiffe` or `dns` and the pattern, for one over names.
    pub fn name_parts(&self) -> Option<(&'static str, &str)> {
        match self {
            Self::Name(pattern) => Some(match pattern.text.strip_prefix("dns:") {
                Some(name) => ("dns", name),
                None => ("spiffe", pattern.text.as_str()),
            }),
            Self::Vouched(_) => None,
        }
    }
}

impl fmt::Display for ClientPattern {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Name(pattern) => f.write_str(&pattern.text),
            Self::Vouched(pattern) => {
                let any = pattern.subject.as_ref().map_or("(any subject)", ClaimGlob::as_str);
                write!(f, "{}{any}", pattern.issuer.client_prefix())?;
                for (name, globs) in &pattern.claims {
                    let globs: Vec<&str> = globs.iter().map(ClaimGlob::as_str).collect();
                    write!(f, " with {name}={}", globs.join("|"))?;
                }
                Ok(())
            }
        }
    }
}

impl TryFrom<Written> for ClientPattern {
    type Error = PatternError;

    fn try_from(written: Written) -> Result<Self, Self::Error> {
        match written {
            Written::Name(text) => Self::name(&text),
            Written::Vouched { oidc } => Ok(Self::Vouched(oidc)),
        }
    }
}

impl From<ClientPattern> for Written {
    fn from(pattern: ClientPattern) -> Self {
        match pattern {
            ClientPattern::Name(pattern) => Self::Name(pattern.text),
            ClientPattern::Vouched(oidc) => Self::Vouched { oidc },
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn client(text: &str) -> Principal {
        Principal::of_certificate(ClientId::parse(text).unwrap())
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
