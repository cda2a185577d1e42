//! The client side: a channel to a broker over mutual TLS, as the command line and the tests use it.

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
use tokio_rustls::TlsConnector;
use tonic::transport::{Channel, Endpoint};

/// How long a connection may take.
const CONNECT: Duration = Duration::from_secs(5);

/// Where a broker is, and who is asking.
#[derive(Debug, Clone)]
pub struct Target {
    /// `host:port`.
    pub addr: String,
    /// The CA of the broker's certificate, PEM.
    pub cacert: PathBuf,
    /// The caller's certificate chain, PEM.
    pub cert: PathBuf,
    /// Its private key, PEM.
    pub key: PathBuf,
    /// The name to expect in the broker's certificate; the host of `addr` where absent.
    pub server_name: Option<String>,
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

impl Target {
    /// Connects.
    ///
    /// # Errors
    /// With what is in the way.
    pub async fn connect(&self) -> Result<Channel, ConnectError> {
        let address = || ConnectError::Address(self.addr.clone());
        let name = self.name().ok_or_else(address)?;
        let connector = TlsConnector::from(Arc::new(self.tls()?));
        let addr = self.addr.clone();
        let connect = tower::service_fn(move |_: http::Uri| {
            let (connector, name, addr) = (connector.clone(), name.clone(), addr.clone());
            async move {
                let stream = TcpStream::connect(&addr).await?;
                stream.set_nodelay(true)?;
                connector.connect(name, stream).await.map(TokioIo::new)
            }
        });
        // The connector speaks TLS itself; the scheme only satisfies the URI.
        let endpoint = Endpoint::from_shared(format!("http://{}", self.addr)).map_err(|_| address())?;
        endpoint
            .connect_timeout(CONNECT)
            .connect_with_connector(connect)
            .await
            .map_err(|error| ConnectError::Unreachable { addr: self.addr.clone(), why: innermost(&error) })
    }

    /// Finds out whether the broker accepts the certificate. In TLS 1.3 a client's handshake is over before the server has
    /// looked at the certificate (RFC 8446, section 4.4.2.4), so that a refusal meets the first request, if anything: this
    /// waits for the first byte of HTTP/2, which a server sends at once.
    ///
    /// # Errors
    /// With what is in the way.
    pub async fn probe(&self) -> Result<(), ConnectError> {
        let address = || ConnectError::Address(self.addr.clone());
        let unreachable =
            |error: std::io::Error| ConnectError::Unreachable { addr: self.addr.clone(), why: error.to_string() };
        let name = self.name().ok_or_else(address)?;
        let connector = TlsConnector::from(Arc::new(self.tls()?));
        let stream = tokio::time::timeout(CONNECT, TcpStream::connect(&self.addr));
        let stream =
            stream.await.map_err(|_| unreachable(std::io::ErrorKind::TimedOut.into()))?.map_err(unreachable)?;
        let mut stream = connector.connect(name, stream).await.map_err(unreachable)?;
        match tokio::time::timeout(CONNECT, stream.read_u8()).await {
            Ok(Ok(_)) | Err(_) => Ok(()),
            Ok(Err(error)) => Err(ConnectError::Refused(error.to_string())),
        }
    }

    /// The name to expect in the broker's certificate; `None` where the address is none.
    fn name(&self) -> Option<ServerName<'static>> {
        let (host, port) = self.addr.rsplit_once(':')?;
        port.parse::<u16>().ok()?;
        let host = host.trim_start_matches('[').trim_end_matches(']');
        ServerName::try_from(self.server_name.clone().unwrap_or_else(|| host.to_owned())).ok()
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
        let key = PrivateKeyDer::from_pem_file(&self.key).map_err(|error| fail(&self.key, error.to_string()))?;
        let mut config = ClientConfig::builder_with_provider(Arc::new(default_provider()))
            .with_protocol_versions(&[&rustls::version::TLS13])
            .map_err(|error| fail(&self.cert, error.to_string()))?
            .with_root_certificates(roots)
            .with_client_auth_cert(read(&self.cert)?, key)
            .map_err(|error| fail(&self.cert, error.to_string()))?;
        config.alpn_protocols = vec![b"h2".to_vec()];
        Ok(config)
    }
}

/// The cause at the bottom of a chain of errors: what a person can act on.
fn innermost(error: &dyn std::error::Error) -> String {
    let mut at = error;
    while let Some(source) = at.source() {
        at = source;
    }
    at.to_string()
}
