//! Fetches the keys of issuers: one GET a connection over HTTPS (RFC 9110, RFC 9112), within limits.
//!
//! Refuses to know: caches, retries and who asked. A fetch ends within its time limit, whatever the other side does.
//!
//! # Invariants
//! - `INV-FETCH-1`: a connection is made only to an address that was judged ([`allowed`]); a name is resolved once.
//! - `INV-FETCH-2`: a redirect is never followed, and a document of a host of the web never leads to a host of the
//!   settings, whose network or bearer token it would use.

use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use http::header::{ACCEPT, AUTHORIZATION, CONTENT_ENCODING, CONTENT_TYPE, HOST, USER_AGENT};
use http::{HeaderValue, Request, Response};
use http_body_util::{BodyExt, Empty, LengthLimitError, Limited};
use hyper::body::{Bytes, Incoming};
use hyper::client::conn::http1;
use hyper_util::rt::TokioIo;
use rustls::crypto::aws_lc_rs::default_provider;
use rustls::pki_types::pem::PemObject;
use rustls::pki_types::{CertificateDer, ServerName, UnixTime};
use rustls::time_provider::TimeProvider;
use rustls::{ClientConfig, RootCertStore};
use serde_json::{Map, Value};
use tokio::net::{TcpStream, lookup_host};
use tokio::time::timeout;
use tokio_rustls::TlsConnector;
use zeroize::Zeroizing;

use super::address::{HttpsUrl, Reach, UrlError, allowed};
use super::config::OidcConfig;
use super::json;
use super::keys::{KeySet, KeySetError};
use crate::clock::Clock;
use crate::domain::issuer::IssuerKeys;
use crate::id::shown;

/// Longest document, in bytes.
const MOST_BODY: usize = 256 * 1024;

/// Longest head of an answer, in bytes, and most headers in it.
const MOST_HEAD: usize = 32 * 1024;
const MOST_HEADERS: usize = 64;

/// Why the keys of an issuer were not fetched. For the log: a caller is told none of it.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub(super) enum FetchError {
    #[error(transparent)]
    Url(#[from] UrlError),
    #[error("`{0}` has the address {1}, which is {2}")]
    Address(String, std::net::IpAddr, Reach),
    #[error(
        "the discovery document names `{0}`, a host of [[oidc.hosts]], but the issuer's own host is not one of them"
    )]
    Inward(String),
    #[error("the discovery document is of the issuer `{0}`, which is not the one that is trusted")]
    OtherIssuer(String),
    #[error("`{0}` is not resolved: {1}")]
    Resolve(String, String),
    #[error("`{0}` can't be asked: {1}")]
    Ask(String, String),
    #[error("`{0}` answered with a redirect, and none is followed")]
    Redirect(String),
    #[error("`{0}` answered with the status {1}")]
    Status(String, u16),
    #[error("`{0}` sent more than {MOST_BODY} bytes")]
    TooLarge(String),
    #[error("`{0}` sent no JSON object: {1}")]
    Content(String, &'static str),
    #[error("`{0}` sent no key set: {1}")]
    Keys(String, KeySetError),
    #[error("the pinned keys are no key set: {0}")]
    Pinned(KeySetError),
    #[error("it took longer than {0} s")]
    Timeout(u64),
    #[error("{}: {why}", .file.display())]
    File { file: PathBuf, why: String },
    #[error("TLS can't be set up: {0}")]
    Tls(String),
}

/// Fetches key sets.
pub(super) struct Fetcher {
    rules: Vec<Rule>,
    web: Arc<ClientConfig>,
    time: Arc<Time>,
    limit_s: u64,
}

/// One of [`OidcConfig::hosts`].
struct Rule {
    host: HttpsUrl,
    private: bool,
    ca_file: Option<PathBuf>,
    bearer_file: Option<PathBuf>,
}

#[derive(Debug)]
struct Time(Arc<dyn Clock>);

impl TimeProvider for Time {
    fn current_time(&self) -> Option<UnixTime> {
        let seconds = u64::try_from(self.0.now().seconds()).ok()?;
        Some(UnixTime::since_unix_epoch(Duration::from_secs(seconds)))
    }
}

impl Fetcher {
    pub(super) fn new(config: &OidcConfig, clock: Arc<dyn Clock>) -> Result<Self, FetchError> {
        let time = Arc::new(Time(clock));
        let roots = RootCertStore { roots: webpki_roots::TLS_SERVER_ROOTS.to_vec() };
        let mut rules = Vec::new();
        for host in &config.hosts {
            // Both files are read at every fetch; what can't be used is better found at the start.
            if let Some(file) = &host.ca_file {
                roots_of(file, &std::fs::read(file).map_err(|error| at(file, &error))?)?;
            }
            if let Some(file) = &host.bearer_file {
                bearer_of(file, Zeroizing::new(std::fs::read(file).map_err(|error| at(file, &error))?))?;
            }
            rules.push(Rule {
                host: HttpsUrl::parse_host(&host.name)?,
                private: host.private,
                ca_file: host.ca_file.clone(),
                bearer_file: host.bearer_file.clone(),
            });
        }
        Ok(Self { rules, web: tls(roots, &time)?, time, limit_s: config.fetch_timeout_s })
    }

    /// How long a fetch takes at most.
    pub(super) fn limit(&self) -> Duration {
        Duration::from_secs(self.limit_s)
    }

    /// The keys of the issuer with this URL, from where they are.
    pub(super) async fn keys(&self, issuer: &str, keys: &IssuerKeys) -> Result<KeySet, FetchError> {
        let fetched = timeout(self.limit(), async {
            let url = match keys {
                IssuerKeys::Discovery => self.discover(issuer).await?,
                IssuerKeys::JwksUrl(url) => HttpsUrl::parse(url)?,
                IssuerKeys::Pinned(text) => return pinned(text),
            };
            let document = self.get(&url).await?;
            KeySet::of(&document).map_err(|error| FetchError::Keys(url.authority(), error))
        });
        fetched.await.unwrap_or(Err(FetchError::Timeout(self.limit_s)))
    }

    /// Where the keys are (OpenID Connect Discovery 1.0, section 4.3; RFC 8414, section 3.3).
    async fn discover(&self, issuer: &str) -> Result<HttpsUrl, FetchError> {
        let own = HttpsUrl::of_discovery(issuer)?;
        let document = self.get(&own).await?;
        self.named(issuer, &own, &document)
    }

    /// What the discovery document from this address names, if it is the issuer's.
    fn named(&self, issuer: &str, own: &HttpsUrl, document: &Map<String, Value>) -> Result<HttpsUrl, FetchError> {
        let text = |name: &str| document.get(name).and_then(Value::as_str).unwrap_or_default();
        if text("issuer") != issuer {
            return Err(FetchError::OtherIssuer(shown(text("issuer"))));
        }
        let url = HttpsUrl::parse(text("jwks_uri"))?;
        // INVARIANT (INV-FETCH-2)
        if self.rule(&url).is_some() && self.rule(own).is_none() {
            return Err(FetchError::Inward(url.authority()));
        }
        Ok(url)
    }

    fn rule(&self, url: &HttpsUrl) -> Option<&Rule> {
        self.rules.iter().find(|rule| rule.host.same_host(url))
    }

    async fn get(&self, url: &HttpsUrl) -> Result<Map<String, Value>, FetchError> {
        let rule = self.rule(url);
        let (ca, bearer) = rule.map_or((None, None), |rule| (rule.ca_file.as_ref(), rule.bearer_file.as_ref()));
        let tls = match ca {
            Some(file) => {
                tls(roots_of(file, &tokio::fs::read(file).await.map_err(|error| at(file, &error))?)?, &self.time)?
            }
            None => Arc::clone(&self.web),
        };
        let request = Request::get(url.target.as_str())
            .header(HOST, url.authority())
            .header(USER_AGENT, concat!("p8broker/", env!("CARGO_PKG_VERSION")))
            .header(ACCEPT, "application/json, application/jwk-set+json");
        let request = match bearer {
            Some(file) => {
                let token = Zeroizing::new(tokio::fs::read(file).await.map_err(|error| at(file, &error))?);
                request.header(AUTHORIZATION, bearer_of(file, token)?)
            }
            None => request,
        };
        let failed = |error: &dyn std::fmt::Display| FetchError::Ask(url.authority(), shown(&error.to_string()));
        let request = request.body(Empty::<Bytes>::new()).map_err(|error| failed(&error))?;
        let stream = self.connect(url, rule.is_some_and(|rule| rule.private)).await?;
        let name = match url.ip {
            Some(ip) => ServerName::from(ip),
            None => ServerName::try_from(url.host.clone()).map_err(|error| failed(&error))?,
        };
        let stream = TlsConnector::from(tls).connect(name, stream).await.map_err(|error| failed(&error))?;
        let (mut sender, connection) = http1::Builder::new()
            .max_buf_size(MOST_HEAD)
            .max_headers(MOST_HEADERS)
            .handshake(TokioIo::new(stream))
            .await
            .map_err(|error| failed(&error))?;
        let exchange = async {
            let response = sender.send_request(request).await.map_err(|error| failed(&error))?;
            read(&url.authority(), response).await
        };
        // The connection moves the bytes; how it ends is seen by the exchange, which may still have something to read.
        let moving = async {
            let _ = connection.await;
            std::future::pending::<()>().await;
        };
        tokio::select! {
            answer = exchange => answer,
            () = moving => Err(FetchError::Ask(url.authority(), "the connection ended".to_owned())),
        }
    }

    async fn connect(&self, url: &HttpsUrl, private: bool) -> Result<TcpStream, FetchError> {
        let found: Vec<SocketAddr> = match url.ip {
            Some(ip) => vec![SocketAddr::new(ip, url.port)],
            None => match lookup_host((url.host.as_str(), url.port)).await {
                Ok(found) => found.collect(),
                Err(error) => return Err(FetchError::Resolve(url.authority(), shown(&error.to_string()))),
            },
        };
        // INVARIANT (INV-FETCH-1): what is judged here is what is connected to below; the name is not asked for again.
        let found = allowed(found, private).map_err(|(ip, reach)| FetchError::Address(url.authority(), ip, reach))?;
        let share = self.limit().checked_div(u32::try_from(found.len()).unwrap_or(1).saturating_add(1));
        let mut last = "it has no address".to_owned();
        for address in found {
            match timeout(share.unwrap_or_default(), TcpStream::connect(address)).await {
                Ok(Ok(stream)) => return Ok(stream),
                Ok(Err(error)) => last = error.to_string(),
                Err(_) => last = "no answer".to_owned(),
            }
        }
        Err(FetchError::Ask(url.authority(), last))
    }
}

/// Keys that are given, and so never fetched.
pub(super) fn pinned(text: &str) -> Result<KeySet, FetchError> {
    let document = json::object(text.as_bytes()).ok_or(KeySetError::Shape);
    document.and_then(|document| KeySet::of(&document)).map_err(FetchError::Pinned)
}

/// The document in an answer.
async fn read(host: &str, response: Response<Incoming>) -> Result<Map<String, Value>, FetchError> {
    let status = response.status();
    if status.is_redirection() {
        return Err(FetchError::Redirect(host.to_owned()));
    }
    if status != http::StatusCode::OK {
        return Err(FetchError::Status(host.to_owned(), status.as_u16()));
    }
    let kind = response.headers().get(CONTENT_TYPE).and_then(|kind| kind.to_str().ok()).unwrap_or_default();
    if !is_json(kind) {
        return Err(FetchError::Content(host.to_owned(), "its type is not application/json"));
    }
    if response.headers().contains_key(CONTENT_ENCODING) {
        return Err(FetchError::Content(host.to_owned(), "it is encoded, which was not asked for"));
    }
    let body = Limited::new(response.into_body(), MOST_BODY).collect().await.map_err(|error| {
        if error.is::<LengthLimitError>() {
            FetchError::TooLarge(host.to_owned())
        } else {
            FetchError::Ask(host.to_owned(), shown(&error.to_string()))
        }
    })?;
    json::object(&body.to_bytes()).ok_or(FetchError::Content(host.to_owned(), "it can't be read"))
}

/// `application/json`, or a type that is written in it (RFC 6839, section 3.1): `application/jwk-set+json`.
fn is_json(kind: &str) -> bool {
    let kind = kind.split(';').next().unwrap_or_default().trim().to_ascii_lowercase();
    kind.strip_prefix("application/").is_some_and(|kind| kind == "json" || kind.ends_with("+json"))
}

fn tls(roots: RootCertStore, time: &Arc<Time>) -> Result<Arc<ClientConfig>, FetchError> {
    let time: Arc<dyn TimeProvider> = Arc::<Time>::clone(time);
    let mut config = ClientConfig::builder_with_details(Arc::new(default_provider()), time)
        .with_safe_default_protocol_versions()
        .map_err(|error| FetchError::Tls(error.to_string()))?
        .with_root_certificates(roots)
        .with_no_client_auth();
    config.alpn_protocols = vec![b"http/1.1".to_vec()];
    Ok(Arc::new(config))
}

fn roots_of(file: &Path, pem: &[u8]) -> Result<RootCertStore, FetchError> {
    let mut roots = RootCertStore::empty();
    for certificate in CertificateDer::pem_slice_iter(pem) {
        let certificate = certificate.map_err(|error| at(file, &error))?;
        roots.add(certificate).map_err(|error| at(file, &error))?;
    }
    if roots.is_empty() { Err(at(file, &"holds no certificate")) } else { Ok(roots) }
}

/// The `authorization` of a request to a host that asks for a token.
fn bearer_of(file: &Path, token: Zeroizing<Vec<u8>>) -> Result<HeaderValue, FetchError> {
    let token = token.trim_ascii();
    if token.is_empty() || !token.iter().all(u8::is_ascii_graphic) {
        return Err(at(file, &"holds no bearer token"));
    }
    let value = Zeroizing::new([b"Bearer ", token].concat());
    let mut value = HeaderValue::from_bytes(&value).map_err(|_| at(file, &"holds no bearer token"))?;
    value.set_sensitive(true);
    Ok(value)
}

fn at(file: &Path, why: &dyn std::fmt::Display) -> FetchError {
    FetchError::File { file: file.to_owned(), why: why.to_string() }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;
    use crate::clock::SystemClock;
    use crate::identity::oidc::OidcHost;

    fn fetcher() -> Fetcher {
        let host = OidcHost { name: "idp.svc:6443".to_owned(), private: true, ..OidcHost::default() };
        let other = OidcHost { name: "10.0.0.1:6443".to_owned(), ..host.clone() };
        let config = OidcConfig { hosts: vec![host, other], ..OidcConfig::default() };
        Fetcher::new(&config, Arc::new(SystemClock)).unwrap()
    }

    #[test]
    fn inv_fetch_2_a_document_of_the_web_names_no_host_of_the_settings() {
        let named = |issuer: &str, jwks: &str| {
            let document = json!({ "issuer": issuer, "jwks_uri": jwks });
            let own = HttpsUrl::of_discovery(issuer).unwrap();
            fetcher().named(issuer, &own, document.as_object().unwrap()).map(|url| url.authority())
        };
        let web = "https://accounts.acme.example";
        assert_eq!(named(web, "https://keys.acme.example/jwks").as_deref(), Ok("keys.acme.example"));
        assert_eq!(named(web, "https://idp.svc:6443/x"), Err(FetchError::Inward("idp.svc:6443".to_owned())));
        assert!(named(web, "https://IDP.svc:6443/x").is_err());
        assert!(named("https://idp.svc", "https://idp.svc:6443/x").is_err());
        assert!(named("https://idp.svc:6443", "https://10.0.0.1:6443/openid/v1/jwks").is_ok());
        assert!(named("https://idp.svc:6443", "https://keys.acme.example/jwks").is_ok());
        assert!(named(web, "http://keys.acme.example/jwks").is_err());
    }

    #[test]
    fn only_types_that_are_written_in_json_are_json() {
        for good in ["application/json", "application/json; charset=utf-8", "Application/JWK-Set+JSON"] {
            assert!(is_json(good), "{good}");
        }
        for bad in ["", "text/html", "text/json", "application/jsonp", "application/javascript", "image/svg+json"] {
            assert!(!is_json(bad), "{bad}");
        }
    }

    #[test]
    fn a_bearer_token_of_a_file_is_one_line_and_is_not_shown() {
        let of = |text: &str| bearer_of(Path::new("token"), Zeroizing::new(text.as_bytes().to_vec()));
        let value = of("canary.token\n").unwrap();
        assert_eq!(value.to_str().unwrap(), "Bearer canary.token");
        assert!(!format!("{value:?}").contains("canary"), "{value:?}");
        for bad in ["", " \n", "a\r\nx: y", "a b"] {
            assert!(of(bad).is_err(), "{bad:?}");
        }
    }
}
