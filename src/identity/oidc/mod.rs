//! Who is asking, by a JWT of a trusted issuer (RFC 7519; RFC 6750, `authorization: Bearer`; RFC 8725 for what goes wrong).
//!
//! Refuses to know: which issuers are trusted (it is told), what the caller may do, and transports: whoever calls makes
//! sure that the token came over TLS. A token is never written anywhere: neither logs nor errors nor audit facts hold any
//! part of it, but for claims that name something for ever. Who has a token can use it until it expires: a token that is
//! bound to a certificate (`cnf`) only with that.
//!
//! # Steps
//! Size, form and header; the issuer by its `iss`; algorithm; key; signature; and only then, as everything before is what
//! anybody can write: times, audience, subject, confirmation, and what the issuer is trusted for. A verdict is kept until
//! the token expires. What may change meanwhile is asked again at every use: the issuer's record, whether its key is still
//! published, the time, and the certificate of the connection.
//!
//! # Invariants
//! - `INV-BEARER-1`: only asymmetric signatures, by a key of the issuer's own set that fits the algorithm.
//! - `INV-BEARER-2`: a verdict that is kept says what a new one would say.
//! - `INV-KEYS-1`, `INV-KEYS-2`: how old keys may be and how often they are fetched, in `source.rs`.
//! - `INV-FETCH-1`, `INV-FETCH-2`: where a fetch may lead, in `fetch.rs`.

mod address;
mod claims;
mod config;
mod error;
mod fetch;
mod json;
mod keys;
mod source;
mod token;

use std::collections::HashMap;
use std::fmt::Write as _;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use aws_lc_rs::digest::{SHA256, digest};
use data_encoding::HEXLOWER;
use moka::sync::Cache;

use crate::clock::{Clock, UnixMillis};
use crate::domain::claims::Claims;
use crate::domain::issuer::{Issuer, IssuerKeys};
use crate::domain::principal::Vouched;
use crate::id::{ClientId, IssuerName, shown};
use crate::metrics::Metrics;
use address::HttpsUrl;
use claims::{Confirmation, Times};
pub use config::{OidcConfig, OidcHost};
pub use error::BearerError;
use fetch::{Fetcher, pinned};
use keys::Key;
use source::{Fetching, Source};
use token::{MOST_BYTES, Presented};

/// Bytes of tokens whose verdicts are kept: some ten thousand tokens of the usual length.
const VERDICTS: u64 = 16 * 1024 * 1024;

/// Longest facts for the audit, in bytes.
const MOST_IDENTITY: usize = 800;

/// Why bearer tokens can't be verified at all.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("oidc.hosts: {0}")]
pub struct OidcError(String);

/// A caller that a trusted issuer vouches for.
#[derive(Debug, Clone)]
pub struct Bearer {
    /// What the issuer says.
    pub vouched: Arc<Vouched>,
    /// Its name: `oidc:ISSUER:SUBJECT`.
    pub client: ClientId,
    /// Facts for the audit: digest and expiry of the token, and the claims that name something for ever.
    pub identity: String,
}

/// Verifies bearer tokens. Dropping it ends its fetches.
pub struct Verifier {
    shared: Arc<Fetching>,
    /// By the SHA-256 of the whole token.
    verdicts: Cache<[u8; 32], Arc<Verdict>>,
    sources: Mutex<HashMap<IssuerName, Arc<Source>>>,
}

/// What a token is worth, for as long as everything it rests on stays as it is.
struct Verdict {
    bearer: Bearer,
    times: Times,
    confirmation: Confirmation,
    key: Arc<Key>,
    source: Arc<Source>,
    weight: u32,
}

impl Verifier {
    /// A verifier that knows no key yet: they are fetched when the first token of an issuer arrives.
    ///
    /// # Errors
    /// Where a file of [`OidcConfig::hosts`] can't be used.
    pub fn new(config: &OidcConfig, clock: Arc<dyn Clock>, metrics: Metrics) -> Result<Self, OidcError> {
        let fetcher = Fetcher::new(config, Arc::clone(&clock)).map_err(|error| OidcError(error.to_string()))?;
        let weight = |_: &[u8; 32], verdict: &Arc<Verdict>| verdict.weight;
        Ok(Self {
            shared: Arc::new(Fetching::new(config, fetcher, clock, metrics)),
            verdicts: Cache::builder().max_capacity(VERDICTS).weigher(weight).build(),
            sources: Mutex::default(),
        })
    }

    /// Who has sent this token. `issuer_of` answers the trusted issuer of an `iss`, compared to the letter; `certificate` is
    /// the client certificate of the connection in DER, where there is one. Needs a Tokio runtime.
    ///
    /// # Errors
    /// With the first reason for which the token is refused.
    pub async fn verify(
        &self,
        token: &str,
        issuer_of: impl Fn(&str) -> Option<Arc<Issuer>>,
        certificate: Option<&[u8]>,
    ) -> Result<Bearer, BearerError> {
        let answer = self.judge(token, issuer_of, certificate).await;
        if let Err(refusal) = &answer {
            self.shared.metrics.bearer_refusals.with_label_values(&[refusal.reason()]).inc();
        }
        answer
    }

    async fn judge(
        &self,
        token: &str,
        issuer_of: impl Fn(&str) -> Option<Arc<Issuer>>,
        certificate: Option<&[u8]>,
    ) -> Result<Bearer, BearerError> {
        if token.len() > MOST_BYTES {
            return Err(BearerError::TooLarge);
        }
        let name = sha256(token.as_bytes());
        if let Some(known) = self.verdicts.get(&name) {
            match self.recall(&known, &issuer_of, certificate) {
                Some(answer) => return answer,
                None => self.verdicts.invalidate(&name),
            }
        }
        let presented = Presented::parse(token)?;
        let url = presented.issuer()?;
        let issuer = issuer_of(url).filter(|issuer| issuer.url == url).ok_or(BearerError::IssuerUnknown)?;
        if !issuer.algorithms.contains(&presented.algorithm) {
            return Err(BearerError::Algorithm);
        }
        let source = self.source(&issuer);
        let key = source.verify(&presented).await?;
        // Keys may have been waited for. What was decided about the issuer meanwhile holds for this token, too.
        if issuer_of(url).is_none_or(|now| now != issuer) {
            return Err(BearerError::IssuerChanged);
        }
        let times = Times::of(&presented.payload)?;
        times.check(self.now(), &issuer)?;
        claims::check_audience(&presented.payload, &issuer)?;
        let (subject, client) = claims::subject(&presented.payload, &issuer)?;
        let confirmation = Confirmation::of(&presented.payload)?;
        confirmation.check(certificate)?;
        let claims = Claims::of(&presented.payload);
        if !issuer.covers(subject, &claims) {
            return Err(BearerError::Claims);
        }
        let identity = facts(&issuer, &sha256(presented.signed.as_bytes()), times.expires_at, &claims);
        let subject = subject.to_owned();
        let vouched = Arc::new(Vouched { expires_at: times.ends_at(&issuer), issuer, subject, claims });
        let bearer = Bearer { vouched, client, identity };
        let weight = u32::try_from(token.len()).unwrap_or(u32::MAX);
        let verdict = Verdict { bearer: bearer.clone(), times, confirmation, key, source, weight };
        self.verdicts.insert(name, Arc::new(verdict));
        Ok(bearer)
    }

    /// What a verdict says now; `None` where it rests on something that has changed.
    fn recall(
        &self,
        known: &Verdict,
        issuer_of: impl Fn(&str) -> Option<Arc<Issuer>>,
        certificate: Option<&[u8]>,
    ) -> Option<Result<Bearer, BearerError>> {
        // INVARIANT (INV-BEARER-2): everything that is not in the token itself is asked again.
        let issuer = &known.bearer.vouched.issuer;
        issuer_of(&issuer.url).filter(|now| now == issuer)?;
        known.source.current().filter(|keys| keys.holds(&known.key))?;
        let answer = known.times.check(self.now(), issuer).and_then(|()| known.confirmation.check(certificate));
        Some(answer.map(|()| known.bearer.clone()))
    }

    fn now(&self) -> i64 {
        self.shared.clock.now().seconds()
    }

    /// Where this issuer's keys come from: what was known of it before, where that is still the place.
    fn source(&self, issuer: &Issuer) -> Arc<Source> {
        let mut sources = self.sources();
        match sources.get(&issuer.name) {
            Some(source) if source.is_of(issuer) => Arc::clone(source),
            _ => {
                let source = Arc::new(Source::new(issuer, Arc::clone(&self.shared)));
                sources.insert(issuer.name.clone(), Arc::clone(&source));
                source
            }
        }
    }

    /// Forgets what is not needed any more, and fetches again what is due of the rest; called every minute with the issuers
    /// that are trusted. Needs a Tokio runtime.
    pub fn tend<'a>(&self, trusted: impl IntoIterator<Item = &'a Issuer>) {
        let trusted: HashMap<_, _> = trusted.into_iter().map(|issuer| (&issuer.name, issuer)).collect();
        self.sources().retain(|name, source| {
            let kept = trusted.get(name).is_some_and(|issuer| source.is_of(issuer));
            if kept {
                source.current();
            } else if !trusted.contains_key(name) {
                self.shared.metrics.forget_issuer(name.as_str());
            }
            kept
        });
        let now = self.now();
        for (name, verdict) in &self.verdicts {
            let issuer = &verdict.bearer.vouched.issuer;
            let kept = trusted.get(&issuer.name).is_some_and(|now| **now == **issuer);
            if !kept || verdict.times.check(now, issuer).is_err() {
                self.verdicts.invalidate(name.as_ref());
            }
        }
    }

    /// Ends fetches that are on their way. Tokens of issuers whose keys are there are still verified.
    pub async fn stop(&self) {
        self.shared.stop.cancel();
        self.shared.tasks.close();
        self.shared.tasks.wait().await;
    }

    fn sources(&self) -> MutexGuard<'_, HashMap<IssuerName, Arc<Source>>> {
        self.sources.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Drop for Verifier {
    fn drop(&mut self) {
        self.shared.stop.cancel();
    }
}

/// What is wrong with where an issuer's keys come from, so that whoever trusts it is told, and not its callers; `None` where
/// they can be looked for.
pub fn wrong_keys(issuer: &Issuer) -> Option<String> {
    match &issuer.keys {
        IssuerKeys::Discovery => HttpsUrl::of_discovery(&issuer.url).err().map(|error| error.to_string()),
        IssuerKeys::JwksUrl(url) => HttpsUrl::parse(url).err().map(|error| error.to_string()),
        IssuerKeys::Pinned(text) => match pinned(text) {
            Ok(set) if set.is_empty() => Some("none of the pinned keys can verify a signature".to_owned()),
            Ok(_) => None,
            Err(error) => Some(error.to_string()),
        },
    }
}

fn sha256(bytes: &[u8]) -> [u8; 32] {
    let mut out = [0; 32];
    out.copy_from_slice(digest(&SHA256, bytes).as_ref());
    out
}

/// What the audit says of a token. Its signature is left out of the digest, as it can be another one for the same token.
fn facts(issuer: &Issuer, digest: &[u8; 32], expires_at: i64, claims: &Claims) -> String {
    let expires = UnixMillis::from_seconds(expires_at);
    let mut out = format!("token sha256:{} of {}, expires {expires}", HEXLOWER.encode(digest), issuer.name);
    for name in issuer.kind.immutable_claims() {
        // What follows this begins with a `;`: no claim may look like it.
        let value = shown(&claims.values(name).join(" ")).replace(';', "\\u{3b}");
        let fits = out.len().saturating_add(name.len()).saturating_add(value.len()) < MOST_IDENTITY;
        if !value.is_empty() && fits {
            let _ = write!(out, ", {name} {value}");
        }
    }
    out
}
