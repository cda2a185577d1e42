//! The client side: a channel to a broker over TLS, with a certificate, a trusted issuer's token or both, and what keeps a
//! token at hand on top of it.
//!
//! Steps of a connection, the first and every later one: read the files, since certificates are replaced while a process
//! runs; resolve every name to all of its addresses, since replicas come and go; shuffle them, so that clients spread over
//! the replicas; shake hands with one after the other, each for a short time, until one answers.
//!
//! [`Watcher`] hears what was revoked; [`TokenSource`] holds a token that is always fresh.
//!
//! Over 400 lines, as what a caller may set and what becomes of it stand beside each other.

mod held;
mod resend;
mod token_source;
mod watch;

use std::net::SocketAddr;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use hyper_util::rt::TokioIo;
use rustls::crypto::aws_lc_rs::default_provider;
use rustls::pki_types::pem::PemObject;
use rustls::pki_types::{CertificateDer, PrivateKeyDer, ServerName};
use rustls::{ClientConfig, RootCertStore};
use tokio::io::AsyncReadExt;
use tokio::net::TcpStream;
use tokio::task::JoinSet;
use tokio::time::timeout;
use tokio_rustls::TlsConnector;
use tokio_rustls::client::TlsStream;
use tonic::metadata::MetadataValue;
use tonic::service::Interceptor;
use tonic::service::interceptor::InterceptedService;
use tonic::transport::Endpoint;
use tonic::{Request, Status};
use zeroize::Zeroizing;

use crate::clock::Stopwatch;

pub use held::Token;
pub use resend::Resending;
pub use token_source::{Ask, Event, TokenSource, TokenSourceError};
pub use watch::{Pace, WatchEvent, Watcher};

/// How long a connection to the only address may take, and how long a name may take to resolve.
const CONNECT: Duration = Duration::from_secs(5);

/// How long each address gets where there are several.
const TRY: Duration = Duration::from_secs(2);

/// After this long no further address is tried.
const WHOLE: Duration = Duration::from_secs(15);

/// A connection on which nothing came for this long is asked for a sign of life, …
const KEEPALIVE: Duration = Duration::from_secs(20);

/// … and given up where none comes.
const KEEPALIVE_ANSWER: Duration = Duration::from_secs(10);

/// Addresses that a message names; the rest are counted.
const MOST_NAMED: usize = 4;

/// Where a broker is, and who is asking.
#[derive(Debug, Clone)]
pub struct Target {
    /// `host:port`, or several of them with commas between: replicas of one broker.
    pub addr: String,
    /// The CA of the broker's certificate, PEM.
    pub cacert: PathBuf,
    /// The caller's certificate chain and its private key, PEM; `None` for one that is named by a bearer token alone.
    pub certificate: Option<CertificateFiles>,
    /// A file with a trusted issuer's JWT, which then names the caller. Read for every request, as such tokens are renewed.
    pub bearer_file: Option<PathBuf>,
    /// The name to expect in the broker's certificate; the host of `addr` where absent.
    pub server_name: Option<String>,
}

/// The files of a certificate.
#[derive(Debug, Clone)]
pub struct CertificateFiles {
    /// The certificate chain, PEM.
    pub cert: PathBuf,
    /// Its private key, PEM.
    pub key: PathBuf,
}

/// What requests go through: a channel that connects by itself, and the bearer token where there is one.
pub type Wire = InterceptedService<Resending, Credentials>;

/// Gives each request the bearer token of a file, where there is one.
#[derive(Debug, Clone, Default)]
pub struct Credentials(Option<PathBuf>);

impl Interceptor for Credentials {
    fn call(&mut self, mut request: Request<()>) -> Result<Request<()>, Status> {
        let Some(file) = &self.0 else { return Ok(request) };
        let unusable = |why: String| Status::unauthenticated(format!("the bearer token {}: {why}", file.display()));
        let token = Zeroizing::new(std::fs::read_to_string(file).map_err(|error| unusable(error.to_string()))?);
        let header = Zeroizing::new(format!("Bearer {}", token.trim()));
        let mut value = MetadataValue::try_from(header.as_str())
            .map_err(|_| unusable("holds what no header can: a JWT has one line of ASCII".to_owned()))?;
        value.set_sensitive(true);
        request.metadata_mut().insert("authorization", value);
        Ok(request)
    }
}

/// Why there is no connection.
#[derive(Debug, thiserror::Error)]
pub enum ConnectError {
    /// A file can't be used.
    #[error("{file}: {why}")]
    File {
        /// The file.
        file: String,
        /// Why.
        why: String,
    },
    /// The address is none.
    #[error("`{0}` is not host:port, such as 127.0.0.1:8443")]
    Address(String),
    /// The broker does not accept the certificate.
    #[error("the broker does not accept this client certificate: {0}")]
    Refused(String),
    /// The broker can't be reached, or is not the one that the CA vouches for.
    #[error("no connection to {addr}: {why}")]
    Unreachable {
        /// The address.
        addr: String,
        /// Why.
        why: String,
    },
}

/// One `host:port` of a target.
#[derive(Debug, Clone)]
struct Place {
    addr: String,
    name: ServerName<'static>,
}

impl Target {
    /// A broker, for a caller that is named by its certificate.
    pub fn certified(addr: impl Into<String>, cacert: PathBuf, cert: PathBuf, key: PathBuf) -> Self {
        let certificate = Some(CertificateFiles { cert, key });
        Self { addr: addr.into(), cacert, certificate, bearer_file: None, server_name: None }
    }

    /// Connects. The channel connects anew by itself where the connection is lost, to any of the addresses.
    ///
    /// # Errors
    /// With what is in the way.
    pub async fn connect(&self) -> Result<Wire, ConnectError> {
        let places = self.places()?;
        self.tls()?;
        let connecting = self.endpoint(&places)?.connect_with_connector(self.dialler(places)).await;
        let channel = connecting
            .map_err(|error| ConnectError::Unreachable { addr: self.addr.clone(), why: innermost(&error) })?;
        Ok(InterceptedService::new(Resending(channel), Credentials(self.bearer_file.clone())))
    }

    /// A channel that connects with its first request.
    ///
    /// # Errors
    /// Where an address is none or a file can't be used: trying again would not help.
    fn connect_lazily(&self) -> Result<Wire, ConnectError> {
        let places = self.places()?;
        self.tls()?;
        let channel = self.endpoint(&places)?.connect_with_connector_lazy(self.dialler(places));
        Ok(InterceptedService::new(Resending(channel), Credentials(self.bearer_file.clone())))
    }

    /// Finds out whether the broker accepts the certificate. In TLS 1.3 a client's handshake is over before the server has
    /// looked at the certificate (RFC 8446, section 4.4.2.4), so that a refusal meets the first request, if anything: this
    /// waits for the first byte of HTTP/2, which a server sends at once.
    ///
    /// # Errors
    /// With what is in the way.
    pub async fn probe(&self) -> Result<(), ConnectError> {
        let places = self.places()?;
        let connector = TlsConnector::from(Arc::new(self.tls()?));
        let dialled = dial(&places, &connector).await;
        let mut stream =
            dialled.map_err(|error| ConnectError::Unreachable { addr: self.addr.clone(), why: error.to_string() })?;
        match timeout(CONNECT, stream.read_u8()).await {
            Ok(Ok(_)) | Err(_) => Ok(()),
            Ok(Err(error)) => Err(ConnectError::Refused(error.to_string())),
        }
    }

    fn endpoint(&self, places: &[Place]) -> Result<Endpoint, ConnectError> {
        let first = places.first().map_or(self.addr.as_str(), |place| place.addr.as_str());
        // The connector finds the address and speaks TLS itself; the URI only names the authority.
        let endpoint = Endpoint::from_shared(format!("http://{first}"));
        let endpoint = endpoint.map_err(|_| ConnectError::Address(first.to_owned()))?;
        Ok(endpoint
            .http2_keep_alive_interval(KEEPALIVE)
            .keep_alive_timeout(KEEPALIVE_ANSWER)
            .keep_alive_while_idle(true))
    }

    /// What the channel calls at each connect.
    fn dialler(
        &self,
        places: Vec<Place>,
    ) -> impl tower::Service<
        http::Uri,
        Response = TokioIo<TlsStream<TcpStream>>,
        Error = std::io::Error,
        Future = impl Future<Output = std::io::Result<TokioIo<TlsStream<TcpStream>>>> + Send,
    > + Send
    + 'static {
        let shared = Arc::new((self.clone(), places));
        tower::service_fn(move |_: http::Uri| {
            let shared = Arc::clone(&shared);
            async move {
                let (target, places) = &*shared;
                let connector = TlsConnector::from(Arc::new(target.tls().map_err(std::io::Error::other)?));
                dial(places, &connector).await.map(TokioIo::new)
            }
        })
    }

    fn places(&self) -> Result<Vec<Place>, ConnectError> {
        let place = |addr: &str| self.place(addr).ok_or_else(|| ConnectError::Address(addr.to_owned()));
        self.addr.split(',').map(str::trim).map(place).collect()
    }

    /// One address with the name to expect there; `None` where the address is none.
    fn place(&self, addr: &str) -> Option<Place> {
        let (host, port) = addr.rsplit_once(':')?;
        port.parse::<u16>().ok()?;
        let host = host.trim_start_matches('[').trim_end_matches(']');
        let name = ServerName::try_from(self.server_name.clone().unwrap_or_else(|| host.to_owned())).ok()?;
        Some(Place { addr: addr.to_owned(), name })
    }

    fn tls(&self) -> Result<ClientConfig, ConnectError> {
        let fail = |file: &PathBuf, why: String| ConnectError::File { file: file.display().to_string(), why };
        let read = |file: &PathBuf| {
            let chain: Result<Vec<_>, _> =
                CertificateDer::pem_file_iter(file).map_err(|error| fail(file, error.to_string()))?.collect();
            chain.map_err(|error| fail(file, error.to_string()))
        };
        let mut roots = RootCertStore::empty();
        for root in read(&self.cacert)? {
            roots.add(root).map_err(|error| fail(&self.cacert, error.to_string()))?;
        }
        let builder = ClientConfig::builder_with_provider(Arc::new(default_provider()))
            .with_protocol_versions(&[&rustls::version::TLS13])
            .map_err(|error| fail(&self.cacert, error.to_string()))?
            .with_root_certificates(roots);
        let mut config = match &self.certificate {
            None => builder.with_no_client_auth(),
            Some(CertificateFiles { cert, key }) => {
                let parsed = PrivateKeyDer::from_pem_file(key).map_err(|error| fail(key, error.to_string()))?;
                let config = builder.with_client_auth_cert(read(cert)?, parsed);
                config.map_err(|error| fail(cert, error.to_string()))?
            }
        };
        config.alpn_protocols = vec![b"h2".to_vec()];
        Ok(config)
    }
}

/// Shakes hands with the first address that answers, in random order.
async fn dial(places: &[Place], connector: &TlsConnector) -> std::io::Result<TlsStream<TcpStream>> {
    let (mut found, mut failures) = resolve(places).await;
    found.sort_by_cached_key(|_| random_bits());
    let patience = if found.len() > 1 { TRY } else { CONNECT };
    match first_that_answers(found, connector, patience).await {
        Ok(stream) => Ok(stream),
        Err(more) => {
            failures.extend(more);
            Err(summary(failures))
        }
    }
}

type Failures = Vec<(String, std::io::Error)>;

async fn resolve(places: &[Place]) -> (Vec<(SocketAddr, ServerName<'static>)>, Failures) {
    // All at once: one name whose server is away does not hold up the others.
    let mut lookups = JoinSet::new();
    for place in places.iter().cloned() {
        lookups.spawn(async move {
            let found =
                timeout(CONNECT, tokio::net::lookup_host(&place.addr)).await.unwrap_or_else(|_| Err(timed_out()));
            let found = found.map(Iterator::collect::<Vec<_>>);
            (place, found)
        });
    }
    let (mut out, mut failures) = (Vec::new(), Vec::new());
    while let Some(lookup) = lookups.join_next().await {
        match lookup {
            Ok((place, Ok(found))) => out.extend(found.into_iter().map(|address| (address, place.name.clone()))),
            Ok((place, Err(error))) => failures.push((place.addr, error)),
            Err(error) => failures.push(("resolving".to_owned(), error.into())),
        }
    }
    (out, failures)
}

async fn first_that_answers(
    addresses: Vec<(SocketAddr, ServerName<'static>)>,
    connector: &TlsConnector,
    patience: Duration,
) -> Result<TlsStream<TcpStream>, Failures> {
    let (mut failures, started) = (Vec::new(), Stopwatch::start());
    for (address, name) in addresses {
        if since(started) >= WHOLE {
            break;
        }
        let shaking = async {
            let stream = TcpStream::connect(address).await?;
            stream.set_nodelay(true)?;
            connector.connect(name, stream).await
        };
        match timeout(patience, shaking).await.unwrap_or_else(|_| Err(timed_out())) {
            Ok(stream) => return Ok(stream),
            Err(error) => failures.push((address.to_string(), error)),
        }
    }
    Err(failures)
}

/// One error as it is; several as one that says which address fails in which way.
fn summary(mut failures: Failures) -> std::io::Error {
    match failures.pop() {
        None => std::io::Error::other("the name has no address"),
        Some((_, only)) if failures.is_empty() => only,
        Some(last) => {
            failures.push(last);
            let mut text = Vec::with_capacity(MOST_NAMED);
            text.extend(failures.iter().take(MOST_NAMED).map(|(address, error)| format!("{address}: {error}")));
            if let Some(more) = failures.len().checked_sub(MOST_NAMED).filter(|more| *more > 0) {
                text.push(format!("and {more} more"));
            }
            std::io::Error::other(text.join("; "))
        }
    }
}

fn timed_out() -> std::io::Error {
    std::io::Error::new(std::io::ErrorKind::TimedOut, "timed out")
}

fn since(start: Stopwatch) -> Duration {
    Duration::try_from_secs_f64(start.seconds()).unwrap_or_default()
}

fn random_bits() -> u32 {
    let mut bits = [0; 4];
    // Without randomness clients don't spread; everything else holds.
    let _ = aws_lc_rs::rand::fill(&mut bits);
    u32::from_le_bytes(bits)
}

/// A random number from 0 to 1.
fn random_part() -> f64 {
    f64::from(random_bits()) / f64::from(u32::MAX)
}

/// The cause at the bottom of a chain of errors: what a person can act on.
fn innermost(error: &dyn std::error::Error) -> String {
    let mut at = error;
    while let Some(source) = at.source() {
        at = source;
    }
    at.to_string()
}

#[cfg(test)]
mod tests {
    use std::net::{Ipv4Addr, TcpListener};

    use super::*;

    fn target(addr: &str) -> Target {
        let file = PathBuf::from("none.pem");
        Target::certified(addr, file.clone(), file.clone(), file)
    }

    #[test]
    fn one_address_or_several_are_taken_and_the_wrong_one_is_named() {
        let several = target("a.internal:8443, [::1]:8443,10.0.0.1:1").places().unwrap();
        let several: Vec<_> = several.iter().map(|place| place.addr.as_str()).collect();
        assert_eq!(several, ["a.internal:8443", "[::1]:8443", "10.0.0.1:1"]);
        for (text, wrong) in [("", ""), ("a:1,b", "b"), ("a:1,", ""), ("a:1,:2", ":2"), ("a:99999", "a:99999")] {
            let error = target(text).places().unwrap_err();
            assert!(matches!(&error, ConnectError::Address(named) if named == wrong), "{text}: {error}");
        }
    }

    #[tokio::test]
    async fn an_address_that_hangs_is_given_up_for_the_next_and_each_is_named_in_the_error() {
        // One takes connections and never says a word; nobody listens on the other.
        let hangs = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).unwrap();
        let dead = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).unwrap().local_addr().unwrap();
        let hung = hangs.local_addr().unwrap();
        let config = ClientConfig::builder_with_provider(Arc::new(default_provider()))
            .with_protocol_versions(&[&rustls::version::TLS13])
            .unwrap()
            .with_root_certificates(RootCertStore::empty())
            .with_no_client_auth();
        let name = ServerName::try_from("127.0.0.1").unwrap();
        let addresses = vec![(hung, name.clone()), (dead, name)];
        let connector = TlsConnector::from(Arc::new(config));
        let failures = first_that_answers(addresses, &connector, Duration::from_millis(50)).await.unwrap_err();
        let text = summary(failures).to_string();
        assert!(text.starts_with(&format!("{hung}: timed out; {dead}: ")) && text.contains("refused"), "{text}");
    }
}
