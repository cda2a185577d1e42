//! Certificates: which are accepted, and what they are called.
//!
//! A certificate gives exactly one identity: its only URI SAN if that is a SPIFFE ID, else its only DNS SAN. Each client
//! CA file vouches only for its own trust domains and DNS suffixes. The verdict on a connection is kept for one
//! generation of the trust files and until the first certificate of its chain expires, and is checked before every
//! request, on resumed sessions too (RFC 5280, section 6; SPIFFE X.509-SVID, section 2).

use std::fmt;
use std::num::NonZeroU32;
use std::sync::Arc;

use arc_swap::ArcSwap;
use aws_lc_rs::digest::{SHA256, digest};
use data_encoding::HEXLOWER;
use governor::{DefaultDirectRateLimiter, Quota, RateLimiter};
use rustls::client::danger::HandshakeSignatureValid;
use rustls::pki_types::{CertificateDer, UnixTime};
use rustls::server::danger::{ClientCertVerified, ClientCertVerifier};
use rustls::{DigitallySignedStruct, DistinguishedName, SignatureScheme};
use x509_parser::extensions::GeneralName;
use x509_parser::prelude::{FromDer, X509Certificate};

use super::IdentityError;
use crate::broker::Caller;
use crate::clock::{Clock, UnixMillis};
use crate::domain::principal::Principal;
use crate::id::{ClientId, shown};

/// One CA file, and what it may vouch for.
#[derive(Debug, Clone)]
pub struct ClientCa {
    /// Verifies chains up to the file's CAs, with the configured CRLs.
    pub verifier: Arc<dyn ClientCertVerifier>,
    /// Trust domains of SPIFFE IDs, exact.
    pub trust_domains: Vec<String>,
    /// A DNS name is one of these, or ends with `.` and one of these.
    pub dns_suffixes: Vec<String>,
}

/// Everything that decides which certificates are accepted, of one generation of the files.
#[derive(Debug)]
pub struct Trust {
    /// Counts the times that the files were loaded.
    pub generation: u64,
    /// The CA files.
    pub cas: Vec<ClientCa>,
    /// The names of all CAs, for clients that have several certificates.
    pub hints: Vec<DistinguishedName>,
}

/// What a chain of certificates is worth.
#[derive(Debug, Clone)]
struct Verdict {
    generation: u64,
    not_after: i64,
    /// When the last fifth of the certificate's life begins.
    renew_by: i64,
    caller: Caller,
}

impl Trust {
    fn verify(&self, chain: &[CertificateDer<'static>], now: UnixMillis) -> Result<Verdict, IdentityError> {
        let (leaf, intermediates) = chain.split_first().ok_or(IdentityError::NoName)?;
        let client = name_of(leaf)?;
        let at = UnixTime::since_unix_epoch(std::time::Duration::from_secs(now.seconds().max(0).unsigned_abs()));
        let mut why = IdentityError::NotAccepted("no client CA is configured".to_owned());
        for ca in &self.cas {
            match ca.verifier.verify_client_cert(leaf, intermediates, at) {
                Ok(_) if ca.may_vouch_for(&client) => {
                    let not_after = chain.iter().map(not_after).try_fold(i64::MAX, |least, end| Ok(least.min(end?)))?;
                    let digest = HEXLOWER.encode(digest(&SHA256, leaf).as_ref());
                    let identity =
                        format!("certificate sha256:{digest}, not after {}", UnixMillis::from_seconds(not_after));
                    return Ok(Verdict {
                        generation: self.generation,
                        not_after,
                        renew_by: renew_by(leaf)?,
                        caller: Caller { principal: Principal::of_certificate(client), identity },
                    });
                }
                Ok(_) => why = IdentityError::OutsideCa(client.to_string()),
                Err(error) => {
                    if !matches!(why, IdentityError::OutsideCa(_)) {
                        why = IdentityError::NotAccepted(error.to_string());
                    }
                }
            }
        }
        Err(why)
    }
}

impl ClientCa {
    fn may_vouch_for(&self, client: &ClientId) -> bool {
        if let Some(domain) = client.trust_domain() {
            return self.trust_domains.iter().any(|ours| ours == domain);
        }
        client.dns_name().is_some_and(|name| {
            self.dns_suffixes.iter().any(|suffix| {
                name.strip_suffix(suffix.as_str()).is_some_and(|rest| rest.is_empty() || rest.ends_with('.'))
            })
        })
    }
}

fn name_of(leaf: &CertificateDer<'_>) -> Result<ClientId, IdentityError> {
    let (_, certificate) = X509Certificate::from_der(leaf).map_err(|_| IdentityError::NoName)?;
    let names =
        certificate.subject_alternative_name().map_err(|_| IdentityError::NoName)?.ok_or(IdentityError::NoName)?;
    let (mut uris, mut hosts) = (Vec::new(), Vec::new());
    for name in &names.value.general_names {
        match name {
            GeneralName::URI(uri) => uris.push(*uri),
            GeneralName::DNSName(host) => hosts.push(host.to_ascii_lowercase()),
            _ => {}
        }
    }
    match (uris.as_slice(), hosts.as_slice()) {
        ([uri], _) if uri.starts_with("spiffe://") => ClientId::parse(uri).map_err(|_| IdentityError::NoName),
        // Two URIs are two names; a certificate with two names has none.
        ([] | [_], [host]) => ClientId::parse(&format!("dns:{host}")).map_err(|_| IdentityError::NoName),
        _ => Err(IdentityError::NoName),
    }
}

fn not_after(certificate: &CertificateDer<'static>) -> Result<i64, IdentityError> {
    let (_, parsed) = X509Certificate::from_der(certificate).map_err(|_| IdentityError::NoName)?;
    Ok(parsed.validity().not_after.timestamp())
}

fn renew_by(certificate: &CertificateDer<'static>) -> Result<i64, IdentityError> {
    let (_, parsed) = X509Certificate::from_der(certificate).map_err(|_| IdentityError::NoName)?;
    let (from, end) = (parsed.validity().not_before.timestamp(), parsed.validity().not_after.timestamp());
    Ok(end.saturating_sub(end.saturating_sub(from) / 5))
}

/// When a certificate expires, in Unix seconds; `None` where it can't be read.
pub fn expiry(certificate: &CertificateDer<'static>) -> Option<i64> {
    not_after(certificate).ok()
}

/// The other end of one connection: its certificates, and the last verdict on them.
#[derive(Clone)]
pub struct Peer(Arc<PeerInner>);

struct PeerInner {
    chain: Vec<CertificateDer<'static>>,
    trust: Arc<ArcSwap<Trust>>,
    clock: Arc<dyn Clock>,
    verdict: ArcSwap<Option<Verdict>>,
    requests: DefaultDirectRateLimiter,
}

impl Peer {
    /// The peer of a handshake that has ended, and how many requests a second its connection may send.
    pub fn new(
        chain: Vec<CertificateDer<'static>>,
        trust: Arc<ArcSwap<Trust>>,
        clock: Arc<dyn Clock>,
        requests_per_second: NonZeroU32,
    ) -> Self {
        let requests = RateLimiter::direct(Quota::per_second(requests_per_second));
        Self(Arc::new(PeerInner { chain, trust, clock, verdict: ArcSwap::default(), requests }))
    }

    /// Counts one request; answers whether the connection may send it.
    pub fn may_ask(&self) -> bool {
        self.0.requests.check().is_ok()
    }

    /// Who it is, by the trust files and the clock of this moment.
    ///
    /// # Errors
    /// Where the certificate is not accepted, or not any more.
    pub fn caller(&self) -> Result<Caller, IdentityError> {
        let inner = &self.0;
        if inner.chain.is_empty() {
            return Err(IdentityError::NoCertificate);
        }
        let (trust, now) = (inner.trust.load(), inner.clock.now());
        if let Some(known) = inner.verdict.load().as_ref()
            && known.generation == trust.generation
            && now.seconds() < known.not_after
        {
            return Ok(known.caller.clone());
        }
        let verdict = trust.verify(&inner.chain, now)?;
        let caller = verdict.caller.clone();
        inner.verdict.store(Arc::new(Some(verdict)));
        Ok(caller)
    }
}

impl Peer {
    /// The certificate of the other end, in DER, where it has shown one.
    pub fn certificate(&self) -> Option<&[u8]> {
        self.0.chain.first().map(AsRef::as_ref)
    }

    /// Whether its certificate is in the last fifth of its life, in which others have been renewed.
    pub fn is_near_expiry(&self) -> bool {
        let now_s = self.0.clock.now().seconds();
        self.0.verdict.load().as_ref().as_ref().is_some_and(|verdict| now_s >= verdict.renew_by)
    }

    /// When the last verdict lapses, in Unix seconds; `None` before the first.
    pub fn not_after(&self) -> Option<i64> {
        self.0.verdict.load().as_ref().as_ref().map(|verdict| verdict.not_after)
    }
}

/// Whether a connection may come without a certificate now: where callers can be named by a bearer token.
pub type WithoutCertificate = Arc<dyn Fn() -> bool + Send + Sync>;

/// What rustls asks during a handshake: whether any of the CA files vouches for the certificate.
pub struct HandshakeVerifier {
    trust: Arc<Trust>,
    any: Arc<dyn ClientCertVerifier>,
    without: WithoutCertificate,
}

impl HandshakeVerifier {
    /// A verifier over one generation of the files; `None` where there is no CA.
    pub fn new(trust: Arc<Trust>, without: WithoutCertificate) -> Option<Self> {
        let any = Arc::clone(&trust.cas.first()?.verifier);
        Some(Self { trust, any, without })
    }
}

impl fmt::Debug for HandshakeVerifier {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("HandshakeVerifier").field("generation", &self.trust.generation).finish_non_exhaustive()
    }
}

impl ClientCertVerifier for HandshakeVerifier {
    fn client_auth_mandatory(&self) -> bool {
        !(self.without)()
    }

    fn root_hint_subjects(&self) -> &[DistinguishedName] {
        &self.trust.hints
    }

    fn verify_client_cert(
        &self,
        leaf: &CertificateDer<'_>,
        intermediates: &[CertificateDer<'_>],
        now: UnixTime,
    ) -> Result<ClientCertVerified, rustls::Error> {
        let mut last = rustls::Error::General("no client CA is configured".to_owned());
        for ca in &self.trust.cas {
            match ca.verifier.verify_client_cert(leaf, intermediates, now) {
                Ok(verified) => return Ok(verified),
                Err(error) => last = error,
            }
        }
        tracing::debug!(error = %shown(&last.to_string()), "a client certificate was refused");
        Err(last)
    }

    fn verify_tls12_signature(
        &self,
        message: &[u8],
        certificate: &CertificateDer<'_>,
        signature: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, rustls::Error> {
        self.any.verify_tls12_signature(message, certificate, signature)
    }

    fn verify_tls13_signature(
        &self,
        message: &[u8],
        certificate: &CertificateDer<'_>,
        signature: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, rustls::Error> {
        self.any.verify_tls13_signature(message, certificate, signature)
    }

    fn supported_verify_schemes(&self) -> Vec<SignatureScheme> {
        self.any.supported_verify_schemes()
    }
}
