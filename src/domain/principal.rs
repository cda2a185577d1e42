//! Who asks: the name that was authenticated, and the facts that policies may ask about beside it.
//!
//! The facts of a caller that an issuer vouches for are kept in audit rows, so that a decision can be made again: at the
//! end of `identity`, as `; certificate NAME; claims {"name":["value"]}`, with `none` for no certificate. The store takes the
//! certificate from there: what stands before it holds no `;`.

use std::collections::BTreeMap;
use std::sync::Arc;

use super::claims::Claims;
use super::issuer::Issuer;
use crate::id::{ClientId, IssuerName};

/// An authenticated caller.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Principal {
    /// Its one name: the certificate's, or the trusted issuer's name and the `sub`.
    pub client: ClientId,
    /// The name in the certificate of its connection, where there is one.
    pub certificate: Option<ClientId>,
    /// What a trusted issuer says, where it is one that vouches.
    pub vouched: Option<Arc<Vouched>>,
}

/// What a trusted issuer says of a caller.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Vouched {
    /// The issuer, as it was trusted when the token was verified.
    pub issuer: Arc<Issuer>,
    /// The `sub`.
    pub subject: String,
    /// All that the token says.
    pub claims: Claims,
    /// From when on the token is not accepted any more, in Unix seconds: it has expired then, or is too old.
    pub expires_at: i64,
}

/// What policies may ask about a caller beside its name.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Facts {
    /// The name in the certificate of its connection.
    pub certificate: Option<ClientId>,
    /// What the issuer says of it.
    pub claims: Claims,
}

const CERTIFICATE: &str = "; certificate ";
const NO_CERTIFICATE: &str = "none";
const CLAIMS: &str = "; claims ";

impl Principal {
    /// Whom a certificate names.
    pub fn of_certificate(client: ClientId) -> Self {
        Self { certificate: Some(client.clone()), client, vouched: None }
    }

    /// Whom an issuer vouches for, by the name `oidc:ISSUER:SUBJECT`, until a moment in Unix seconds.
    pub fn of_issuer(client: ClientId, issuer: Arc<Issuer>, facts: Facts, expires_at: i64) -> Self {
        let prefix = issuer.name.client_prefix();
        let subject = client.as_str().strip_prefix(&prefix).unwrap_or_default().to_owned();
        let vouched = Vouched { issuer, subject, claims: facts.claims, expires_at };
        Self { client, certificate: facts.certificate, vouched: Some(Arc::new(vouched)) }
    }

    /// Somebody who never called, for whoever asks what would be: an `oidc:` client is vouched for by the issuer of its
    /// name, where there is one, with these facts; anyone else is named by a certificate alone.
    pub fn imagined(client: ClientId, mut facts: Facts, issuers: &BTreeMap<IssuerName, Arc<Issuer>>) -> Self {
        let Some(name) = client.issuer() else { return Self::of_certificate(client) };
        let Some(issuer) = issuers.get(&name) else {
            return Self { client, certificate: facts.certificate, vouched: None };
        };
        // Every token says these two.
        facts.claims.set("sub", client.as_str().strip_prefix(&name.client_prefix()).unwrap_or_default());
        facts.claims.set("iss", &issuer.url);
        Self::of_issuer(client, Arc::clone(issuer), facts, i64::MAX)
    }

    /// The certificate of its connection, where that has another name than the caller itself.
    pub fn certificate_beside(&self) -> Option<&ClientId> {
        self.certificate.as_ref().filter(|certificate| **certificate != self.client)
    }

    /// What the identity in an audit row ends with: the certificate and, of the claims, those named. Nothing for a caller
    /// whom a certificate alone names.
    pub fn facts<'a>(&self, claims_named: impl Iterator<Item = &'a str>) -> String {
        let Some(vouched) = &self.vouched else { return String::new() };
        let certificate = self.certificate.as_ref().map_or(NO_CERTIFICATE, ClientId::as_str);
        let claims = serde_json::to_string(&vouched.claims.only(claims_named)).unwrap_or_default();
        format!("{CERTIFICATE}{certificate}{CLAIMS}{claims}")
    }
}

impl Facts {
    /// Takes the facts from the end of an audit row's identity; `None` where there are none.
    pub fn parse(identity: &str) -> Option<Self> {
        // What stands before, or within a claim's value, may look like the beginning: only one is followed by whole claims.
        identity.match_indices(CERTIFICATE).find_map(|(at, begin)| {
            let (certificate, claims) = identity.get(at.checked_add(begin.len())?..)?.split_once(CLAIMS)?;
            let certificate = match certificate {
                NO_CERTIFICATE => None,
                name => Some(ClientId::parse(name).ok()?),
            };
            Some(Self { certificate, claims: serde_json::from_str(claims).ok()? })
        })
    }
}

#[cfg(test)]
mod tests {
    use std::collections::{BTreeMap, BTreeSet};

    use proptest::prelude::*;

    use super::*;
    use crate::domain::issuer::{IssuerKeys, IssuerKind};
    use crate::id::IssuerName;

    fn issuer() -> Arc<Issuer> {
        Arc::new(Issuer {
            name: IssuerName::parse("github").unwrap(),
            kind: IssuerKind::GithubActions,
            url: "https://issuer.test".to_owned(),
            keys: IssuerKeys::Discovery,
            audiences: BTreeSet::new(),
            algorithms: BTreeSet::new(),
            leeway_s: 0,
            max_age_s: 0,
            subject: None,
            claims: BTreeMap::new(),
        })
    }

    fn vouched(facts: Facts) -> Principal {
        Principal::of_issuer(ClientId::parse("oidc:github:repo:acme/bot").unwrap(), issuer(), facts, 0)
    }

    proptest! {
        /// Whatever the claims say, and whatever stands before them in the row.
        #[test]
        fn facts_read_back_as_they_were_written(
            before in prop_oneof![".{0,40}", Just("; certificate none; claims {\"a\":[\"".to_owned())],
            by_certificate in any::<bool>(),
            claims in prop::collection::btree_map("[a-z/]{1,8}", prop::collection::vec(
                prop_oneof![any::<String>(), Just("; certificate none; claims {}".to_owned())], 1..3), 0..5),
        ) {
            let pairs = claims.iter().flat_map(|(name, values)| values.iter().map(|value| (name.as_str(), value.as_str())));
            let certificate = by_certificate.then(|| ClientId::parse("spiffe://acme/ci").unwrap());
            let facts = Facts { certificate, claims: Claims::from_pairs(pairs) };
            let text = vouched(facts.clone()).facts(claims.keys().map(String::as_str));
            prop_assert_eq!(Facts::parse(&format!("{before}{text}")), Some(facts));
        }
    }

    #[test]
    fn only_named_claims_are_kept_and_a_certificate_alone_has_no_facts() {
        let claims = Claims::from_pairs([("ref", "refs/heads/main"), ("secret", "x")]);
        let text = vouched(Facts { certificate: None, claims }).facts(["ref", "absent", "ref"].into_iter());
        assert_eq!(text, r#"; certificate none; claims {"ref":["refs/heads/main"]}"#);
        let by_certificate = Principal::of_certificate(ClientId::parse("spiffe://acme/ci").unwrap());
        assert_eq!(by_certificate.facts(["ref"].into_iter()), "");
        for other in ["", "certificate sha256:00, not after 2026-01-01T00:00:00Z", "; certificate ?; claims {}"] {
            assert_eq!(Facts::parse(other), None, "{other}");
        }
    }
}
