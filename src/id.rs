//! The identifiers of the domain, each parsed once and never a bare string after that.
//!
//! Non-goal: whether the thing named exists. That is a question to the state.

use std::fmt;

use serde::{Deserialize, Deserializer, Serialize, Serializer, de::Error as _};

/// Why a text is not the identifier it was taken for.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("`{shown}` is not {expected}")]
pub struct IdError {
    shown: String,
    expected: &'static str,
}

impl IdError {
    fn new(text: &str, expected: &'static str) -> Self {
        Self { shown: shown(text), expected }
    }
}

/// User input as it may stand in a message: at most 64 characters, with everything that could forge a line escaped.
pub fn shown(text: &str) -> String {
    let mut out: String = text.chars().take(64).flat_map(char::escape_default).collect();
    if text.chars().nth(64).is_some() {
        out.push('…');
    }
    out
}

/// Whether a character shows as nothing, breaks a line or turns it around (Unicode Standard Annex 9, section 2).
pub fn is_deceptive(c: char) -> bool {
    matches!(c,
        '\u{ad}' | '\u{61c}' | '\u{180e}' | '\u{200b}'..='\u{200f}' | '\u{2028}'..='\u{202e}'
        | '\u{2060}'..='\u{206f}' | '\u{feff}' | '\u{fff9}'..='\u{fffb}' | '\u{e0000}'..='\u{e007f}')
}

macro_rules! text_id {
    ($(#[$doc:meta])* $name:ident, $check:expr, $expected:literal) => {
        $(#[$doc])*
        #[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash)]
        pub struct $name(String);

        impl $name {
            /// Takes a text apart.
            ///
            /// # Errors
            /// With the rule that the text breaks.
            pub fn parse(text: &str) -> Result<Self, IdError> {
                let check: fn(&str) -> bool = $check;
                if check(text) { Ok(Self(text.to_owned())) } else { Err(IdError::new(text, $expected)) }
            }

            /// The identifier as text.
            pub fn as_str(&self) -> &str {
                &self.0
            }
        }

        impl fmt::Display for $name {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str(&self.0)
            }
        }

        impl Serialize for $name {
            fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
                serializer.serialize_str(&self.0)
            }
        }

        impl<'de> Deserialize<'de> for $name {
            fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
                let text = String::deserialize(deserializer)?;
                Self::parse(&text).map_err(D::Error::custom)
            }
        }
    };
}

text_id!(
    /// Apple's name of a key, for example `2X9R4HXF34`.
    KeyId, is_key_id, "a Key ID: 10 characters, each A-Z or 0-9, as in the file name AuthKey_<ID>.p8"
);
text_id!(
    /// Apple's name of an account's API issuer: a UUID in lower case.
    IssuerId, is_uuid, "an Issuer ID: a UUID such as 57246542-96fe-1a63-e053-0824d011072a, in lower case"
);
text_id!(
    /// Apple's number of one app ("Apple ID" in App Store Connect).
    AppId, is_app_id, "an app id: 1 to 20 digits, as App Store Connect shows under App Information"
);
text_id!(
    /// The broker's name of an App Store Connect account.
    AccountName, is_name, "a name: 1 to 63 characters a-z, 0-9, `-`, `_` or `.`, the first and last a letter or digit"
);
text_id!(
    /// The name of a group of apps.
    AppGroupName, is_name, "a name: 1 to 63 characters a-z, 0-9, `-`, `_` or `.`, the first and last a letter or digit"
);
text_id!(
    /// The name of a policy.
    PolicyName, is_name, "a name: 1 to 63 characters a-z, 0-9, `-`, `_` or `.`, the first and last a letter or digit"
);
text_id!(
    /// The name of an operator.
    OperatorName, is_name, "a name: 1 to 63 characters a-z, 0-9, `-`, `_` or `.`, the first and last a letter or digit"
);
text_id!(
    /// The name of a ceiling.
    CeilingName, is_name, "a name: 1 to 63 characters a-z, 0-9, `-`, `_` or `.`, the first and last a letter or digit"
);
text_id!(
    /// The name of a trusted issuer of identities.
    IssuerName, is_name, "a name: 1 to 63 characters a-z, 0-9, `-`, `_` or `.`, the first and last a letter or digit"
);
text_id!(
    /// The user whose individual key it is: an e-mail address or a name, printable ASCII.
    AppleUser, is_user, "a user: 1 to 254 printable ASCII characters without spaces"
);
text_id!(
    /// Who is asking, as authenticated: `spiffe://trust-domain/path` or `dns:host.name` by a certificate,
    /// `oidc:ISSUER:SUBJECT` by a trusted issuer.
    ClientId, |text| is_spiffe_id(text) || text.strip_prefix("dns:").is_some_and(is_dns_name) || is_vouched_for(text),
    "a client: a SPIFFE ID (spiffe://trust-domain/path), dns: and a lower-case host name, or oidc:ISSUER:SUBJECT"
);
text_id!(
    /// One vault, named at random when it is initialised: 32 hex digits.
    VaultId, is_hex_128, "a vault id: 32 hex digits"
);
text_id!(
    /// One process start, as the author of audit rows: 32 hex digits.
    WriterId, is_hex_128, "a writer id: 32 hex digits"
);
text_id!(
    /// One decision, told to the caller and written in the audit: 32 hex digits.
    DecisionId, is_hex_128, "a decision id: 32 hex digits"
);
text_id!(
    /// One proposed change: 32 hex digits.
    ProposalId, is_hex_128, "a proposal id: 32 hex digits"
);
text_id!(
    /// One token: SHA-256 of `header.payload`, 64 hex digits. The signature is left out, as ES256 signatures are malleable.
    TokenId, |text| text.len() == 64 && text.bytes().all(is_lower_hex), "a token id: 64 hex digits"
);

macro_rules! random_id {
    ($($name:ident),*) => {$(
        impl $name {
            /// Names something by 128 random bits.
            pub fn from_random(bits: u128) -> Self {
                Self(format!("{bits:032x}"))
            }
        }
    )*};
}
random_id!(VaultId, WriterId, DecisionId, ProposalId);

impl TokenId {
    /// Names a token by the digest of its `header.payload`.
    pub fn from_digest(digest: &[u8; 32]) -> Self {
        Self(data_encoding::HEXLOWER.encode(digest))
    }
}

impl IssuerName {
    /// What the names of all clients of this issuer start with.
    pub fn client_prefix(&self) -> String {
        format!("oidc:{}:", self.0)
    }
}

impl ClientId {
    /// The trust domain, where the client is named by a SPIFFE ID.
    pub fn trust_domain(&self) -> Option<&str> {
        self.0.strip_prefix("spiffe://")?.split('/').next()
    }

    /// The trusted issuer that vouches for the client, where it is named by one: `oidc:ISSUER:SUBJECT`.
    pub fn issuer(&self) -> Option<IssuerName> {
        let (issuer, _) = self.0.strip_prefix("oidc:")?.split_once(':')?;
        IssuerName::parse(issuer).ok()
    }

    /// The host name, where the client is named by DNS.
    pub fn dns_name(&self) -> Option<&str> {
        self.0.strip_prefix("dns:")
    }
}

/// A position in the control log. The first record is revision 1; 0 is the empty log.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Default, Serialize, Deserialize)]
pub struct Revision(pub u64);

impl Revision {
    /// The position after this one.
    #[must_use]
    pub fn next(self) -> Self {
        Self(self.0.saturating_add(1))
    }
}

impl fmt::Display for Revision {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.fmt(f)
    }
}

/// Running SHA-256 over the control log, or running HMAC over one writer's audit rows.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Default)]
pub struct Chain(pub [u8; 32]);

impl fmt::Display for Chain {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&data_encoding::HEXLOWER.encode(&self.0))
    }
}

impl fmt::Debug for Chain {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(self, f)
    }
}

impl Serialize for Chain {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.collect_str(self)
    }
}

impl<'de> Deserialize<'de> for Chain {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        let text = String::deserialize(deserializer)?;
        let bytes = data_encoding::HEXLOWER.decode(text.as_bytes()).map_err(D::Error::custom)?;
        bytes.try_into().map(Self).map_err(|_| D::Error::custom("a chain value has 64 hex digits"))
    }
}

/// The newest position of the control log and the chain value there: what a decision was made on.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
pub struct Head {
    /// The newest revision.
    pub revision: Revision,
    /// The chain value at that revision.
    pub chain: Chain,
}

/// Whether this is a trust domain as the SPIFFE ID standard, section 2.1, spells it.
pub fn is_trust_domain(text: &str) -> bool {
    (1..=255).contains(&text.len())
        && text.bytes().all(|b| b.is_ascii_lowercase() || b.is_ascii_digit() || matches!(b, b'.' | b'-' | b'_'))
}

/// Whether this is one segment of a SPIFFE ID's path (SPIFFE ID standard, section 2.2).
pub fn is_spiffe_segment(text: &str) -> bool {
    !text.is_empty()
        && text != "."
        && text != ".."
        && text.bytes().all(|b| b.is_ascii_alphanumeric() || matches!(b, b'.' | b'-' | b'_'))
}

/// Whether this is a host name in lower case without a wildcard (RFC 1123, section 2.1).
pub fn is_dns_name(text: &str) -> bool {
    (1..=253).contains(&text.len()) && text.split('.').all(is_dns_label)
}

/// Whether this is one label of a host name.
pub fn is_dns_label(text: &str) -> bool {
    (1..=63).contains(&text.len())
        && text.bytes().all(|b| b.is_ascii_lowercase() || b.is_ascii_digit() || b == b'-')
        && !text.starts_with('-')
        && !text.ends_with('-')
}

fn is_spiffe_id(text: &str) -> bool {
    text.len() <= 2048
        && text
            .strip_prefix("spiffe://")
            .and_then(|rest| rest.split_once('/'))
            .is_some_and(|(domain, path)| is_trust_domain(domain) && path.split('/').all(is_spiffe_segment))
}

/// A trusted issuer's name and the subject it vouches for: printable ASCII, as `sub` is a case-sensitive string (RFC 7519,
/// section 4.1.2).
fn is_vouched_for(text: &str) -> bool {
    text.strip_prefix("oidc:").and_then(|rest| rest.split_once(':')).is_some_and(|(issuer, subject)| {
        is_name(issuer) && (1..=1024).contains(&subject.len()) && subject.bytes().all(|b| b.is_ascii_graphic())
    })
}

fn is_key_id(text: &str) -> bool {
    text.len() == 10 && text.bytes().all(|b| b.is_ascii_uppercase() || b.is_ascii_digit())
}

fn is_app_id(text: &str) -> bool {
    (1..=20).contains(&text.len()) && text.bytes().all(|b| b.is_ascii_digit())
}

fn is_user(text: &str) -> bool {
    (1..=254).contains(&text.len()) && text.bytes().all(|b| b.is_ascii_graphic())
}

fn is_name(text: &str) -> bool {
    let edge = |b: Option<&u8>| b.is_some_and(|b| b.is_ascii_lowercase() || b.is_ascii_digit());
    let bytes = text.as_bytes();
    bytes.len() <= 63
        && edge(bytes.first())
        && edge(bytes.last())
        && bytes.iter().all(|b| b.is_ascii_lowercase() || b.is_ascii_digit() || matches!(b, b'-' | b'_' | b'.'))
}

fn is_uuid(text: &str) -> bool {
    text.len() == 36
        && text.bytes().enumerate().all(|(at, b)| match at {
            8 | 13 | 18 | 23 => b == b'-',
            _ => is_lower_hex(b),
        })
}

fn is_hex_128(text: &str) -> bool {
    text.len() == 32 && text.bytes().all(is_lower_hex)
}

fn is_lower_hex(b: u8) -> bool {
    b.is_ascii_digit() || (b'a'..=b'f').contains(&b)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ids_take_what_apple_and_spiffe_spell_and_nothing_else() {
        for good in ["2X9R4HXF34", "AAAAAAAAAA"] {
            assert!(KeyId::parse(good).is_ok(), "{good}");
        }
        for bad in ["", "2x9r4hxf34", "2X9R4HXF3", "2X9R4HXF345", "2X9R4HXF3\0", "２X9R4HXF34"] {
            assert!(KeyId::parse(bad).is_err(), "{bad}");
        }
        for good in ["spiffe://acme.internal/ns/ci/sa/release-bot", "dns:ci.acme.internal", "oidc:github:repo:a/b"] {
            assert!(ClientId::parse(good).is_ok(), "{good}");
        }
        for bad in [
            "spiffe://acme.internal",
            "spiffe://acme.internal/",
            "spiffe://Acme/x",
            "spiffe://acme/a//b",
            "spiffe://acme/../b",
            "spiffe://acme/a%2fb",
            "dns:*.acme.internal",
            "dns:ACME",
            "dns:",
            "acme",
            "dns:a..b",
            "oidc:github",
            "oidc:github:",
            "oidc:Git hub:x",
            "oidc:github:a b",
        ] {
            assert!(ClientId::parse(bad).is_err(), "{bad}");
        }
        for bad in ["", "-a", "a-", "A", "a b", "a/b", "..", &"a".repeat(64)] {
            assert!(PolicyName::parse(bad).is_err(), "{bad}");
        }
    }

    #[test]
    fn what_a_user_typed_cannot_forge_a_line_of_an_error() {
        let error = PolicyName::parse("x\nlevel=INFO\u{202e}").unwrap_err().to_string();
        assert!(!error.contains('\n') && !error.contains('\u{202e}'), "{error}");
        assert!(KeyId::parse(&"A".repeat(9000)).unwrap_err().to_string().len() < 300);
    }
}
