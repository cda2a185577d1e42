//! TLS 1.3 with client certificates (RFC 8446), from files that may change while serving.
//!
//! The files are read again every few seconds and compared by content, which works for files, symbolic links and the
//! folders that Kubernetes swaps. A change that can't be loaded is logged and counted, and what was loaded before stays.
//! Connections that are open stay open; what they may do is decided anew before their next request.

use std::collections::hash_map::DefaultHasher;
use std::hash::{Hash, Hasher};
use std::num::NonZeroU32;
use std::path::PathBuf;
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll};
use std::time::Duration;

use arc_swap::ArcSwap;
use rustls::crypto::aws_lc_rs::default_provider;
use rustls::pki_types::pem::PemObject;
use rustls::pki_types::{CertificateDer, CertificateRevocationListDer, PrivateKeyDer, UnixTime};
use rustls::server::WebPkiClientVerifier;
use rustls::time_provider::TimeProvider;
use rustls::{RootCertStore, ServerConfig};
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::{OwnedSemaphorePermit, Semaphore, mpsc};
use tokio_rustls::TlsAcceptor;
use tokio_rustls::server::TlsStream;
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;
use tonic::transport::server::Connected;

use crate::clock::Clock;
use crate::identity::mtls::{ClientCa, HandshakeVerifier, Peer, Trust, WithoutCertificate, expiry};
use crate::metrics::Metrics;

/// How long a handshake may take.
const HANDSHAKE: Duration = Duration::from_secs(10);

/// How long one may still take once the server stops, which waits for it.
const LATE_HANDSHAKE: Duration = Duration::from_secs(2);

/// Handshakes at a time; further peers wait in the system's queue.
const HANDSHAKES: usize = 256;

/// Connections that have finished their handshake and wait for the server.
const WAITING: usize = 64;

/// The files.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct TlsFiles {
    /// The server's certificate chain, PEM.
    pub certificate: PathBuf,
    /// Its private key, PEM.
    pub key: PathBuf,
    /// The client CAs.
    pub client_cas: Vec<ClientCaFile>,
    /// Certificate revocation lists, PEM.
    pub crls: Vec<PathBuf>,
}

/// One file of client CAs, and what they may vouch for.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ClientCaFile {
    /// The CAs, PEM.
    pub file: PathBuf,
    /// Trust domains of SPIFFE IDs.
    pub trust_domains: Vec<String>,
    /// Suffixes of DNS names.
    pub dns_suffixes: Vec<String>,
}

/// How much is taken from peers.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Limits {
    /// Most connections at a time.
    pub connections: usize,
    /// Most requests a second over one of them, whoever sends them.
    pub requests_per_second: NonZeroU32,
}

/// Why the files can't be used.
#[derive(Debug, thiserror::Error)]
#[error("{}: {why}", .file.display())]
pub struct TlsError {
    file: PathBuf,
    why: String,
}

/// What the files say, kept up to date.
pub struct Tls {
    files: TlsFiles,
    config: ArcSwap<ServerConfig>,
    trust: Arc<ArcSwap<Trust>>,
    clock: Arc<dyn Clock>,
    metrics: Metrics,
    without: WithoutCertificate,
    seen: std::sync::atomic::AtomicU64,
}

#[derive(Debug)]
struct Time(Arc<dyn Clock>);

impl std::fmt::Debug for dyn Clock {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("Clock")
    }
}

impl TimeProvider for Time {
    fn current_time(&self) -> Option<UnixTime> {
        let seconds = self.0.now().seconds();
        u64::try_from(seconds).ok().map(|seconds| UnixTime::since_unix_epoch(Duration::from_secs(seconds)))
    }
}

impl Tls {
    /// Loads the files. `without` is asked in each handshake whether it may go without a client certificate.
    ///
    /// # Errors
    /// With the first file that can't be used.
    pub fn load(
        files: TlsFiles,
        clock: Arc<dyn Clock>,
        metrics: Metrics,
        without: WithoutCertificate,
    ) -> Result<Self, TlsError> {
        let seen = fingerprint(&files);
        let (config, trust) = read(&files, 1, &clock, &metrics, &without)?;
        Ok(Self {
            files,
            config: ArcSwap::from(config),
            trust: Arc::new(ArcSwap::from(trust)),
            clock,
            metrics,
            without,
            seen: std::sync::atomic::AtomicU64::new(seen),
        })
    }

    /// Loads the files again where they have changed; answers whether they had.
    ///
    /// # Errors
    /// With the first file that can't be used; what was loaded before stays.
    pub fn reload(&self) -> Result<bool, TlsError> {
        use std::sync::atomic::Ordering;
        let now = fingerprint(&self.files);
        if now == self.seen.load(Ordering::Relaxed) {
            return Ok(false);
        }
        let generation = self.trust.load().generation.saturating_add(1);
        let (config, trust) = read(&self.files, generation, &self.clock, &self.metrics, &self.without)?;
        // Trust first: a connection that is made in between is verified by the newer of the two.
        self.trust.store(trust);
        self.config.store(config);
        self.seen.store(now, Ordering::Relaxed);
        Ok(true)
    }

    /// Reloads until told to stop.
    pub async fn watch(&self, every: Duration, stop: CancellationToken) {
        while stop.run_until_cancelled(tokio::time::sleep(every)).await.is_some() {
            match self.reload() {
                Ok(false) => {}
                Ok(true) => {
                    self.metrics.tls_reloads.with_label_values(&["ok"]).inc();
                    tracing::info!("TLS files were loaded anew");
                }
                Err(error) => {
                    self.metrics.tls_reloads.with_label_values(&["failed"]).inc();
                    tracing::error!(%error, "changed TLS files can't be used; those loaded before stay in force");
                }
            }
        }
    }

    /// Accepts connections until told to stop; those whose handshake succeeds come out of the receiver.
    pub fn accept(
        self: &Arc<Self>,
        listener: TcpListener,
        limits: Limits,
        tasks: &TaskTracker,
        stop: CancellationToken,
    ) -> mpsc::Receiver<std::io::Result<Connection>> {
        let (sender, receiver) = mpsc::channel(WAITING);
        let (tls, tasks_of_handshakes) = (Arc::clone(self), tasks.clone());
        let (slots, handshakes) = (Arc::new(Semaphore::new(limits.connections)), Arc::new(Semaphore::new(HANDSHAKES)));
        // Whoever has no certificate has not said who it is: such connections leave half of the places to the others.
        let nameless = Arc::new(Semaphore::new(limits.connections.div_ceil(2)));
        tasks.spawn(async move {
            loop {
                let free = Arc::clone(&handshakes).acquire_owned();
                let Some(Ok(shaking)) = stop.run_until_cancelled(free).await else { return };
                let Some(accepted) = stop.run_until_cancelled(listener.accept()).await else { return };
                match accepted {
                    Ok((stream, _)) => {
                        let (tls, sender) = (Arc::clone(&tls), sender.clone());
                        let (slots, nameless) = (Arc::clone(&slots), Arc::clone(&nameless));
                        let stop = stop.clone();
                        tasks_of_handshakes.spawn(async move {
                            let late = async {
                                stop.cancelled().await;
                                tokio::time::sleep(LATE_HANDSHAKE).await;
                            };
                            let shaken = tokio::select! {
                                shaken = tls.handshake(stream, limits.requests_per_second) => shaken,
                                () = late => None,
                            };
                            drop(shaking);
                            // A peer without an accepted certificate never takes a connection's place.
                            let connection = shaken.and_then(|(stream, peer)| {
                                let slot = slots.try_acquire_owned().ok()?;
                                let nameless = match peer.certificate() {
                                    Some(_) => None,
                                    None => Some(nameless.try_acquire_owned().ok()?),
                                };
                                Some(Connection { stream, peer, _slots: (slot, nameless) })
                            });
                            if let Some(connection) = connection {
                                // A server that is stopping has closed the receiver.
                                let _ = sender.send(Ok(connection)).await;
                            }
                        });
                    }
                    Err(error) => {
                        tracing::warn!(%error, "a connection could not be accepted");
                        // Out of descriptors, most likely: without a pause this would spin.
                        tokio::time::sleep(Duration::from_millis(100)).await;
                    }
                }
            }
        });
        receiver
    }

    async fn handshake(
        &self,
        stream: TcpStream,
        requests_per_second: NonZeroU32,
    ) -> Option<(TlsStream<TcpStream>, Peer)> {
        if let Err(error) = stream.set_nodelay(true) {
            tracing::debug!(%error, "no TCP_NODELAY");
        }
        let acceptor = TlsAcceptor::from(self.config.load_full());
        let stream = match tokio::time::timeout(HANDSHAKE, acceptor.accept(stream)).await {
            Ok(Ok(stream)) => stream,
            Ok(Err(error)) => {
                tracing::debug!(%error, "a TLS handshake failed");
                return None;
            }
            Err(_) => return None,
        };
        let chain = stream.get_ref().1.peer_certificates().unwrap_or_default();
        let chain = chain.iter().map(|certificate| certificate.clone().into_owned()).collect();
        let peer = Peer::new(chain, Arc::clone(&self.trust), Arc::clone(&self.clock), requests_per_second);
        Some((stream, peer))
    }
}

/// One connection, with an accepted certificate or, where callers can be named by bearer tokens, with none.
pub struct Connection {
    stream: TlsStream<TcpStream>,
    peer: Peer,
    /// Counts against the most connections, for as long as this one lives.
    _slots: (OwnedSemaphorePermit, Option<OwnedSemaphorePermit>),
}

impl Connected for Connection {
    type ConnectInfo = Peer;

    fn connect_info(&self) -> Peer {
        self.peer.clone()
    }
}

impl AsyncRead for Connection {
    fn poll_read(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
        buffer: &mut ReadBuf<'_>,
    ) -> Poll<std::io::Result<()>> {
        Pin::new(&mut self.stream).poll_read(context, buffer)
    }
}

impl AsyncWrite for Connection {
    fn poll_write(mut self: Pin<&mut Self>, context: &mut Context<'_>, bytes: &[u8]) -> Poll<std::io::Result<usize>> {
        Pin::new(&mut self.stream).poll_write(context, bytes)
    }

    fn poll_flush(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<std::io::Result<()>> {
        Pin::new(&mut self.stream).poll_flush(context)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<std::io::Result<()>> {
        Pin::new(&mut self.stream).poll_shutdown(context)
    }

    fn poll_write_vectored(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
        buffers: &[std::io::IoSlice<'_>],
    ) -> Poll<std::io::Result<usize>> {
        Pin::new(&mut self.stream).poll_write_vectored(context, buffers)
    }

    fn is_write_vectored(&self) -> bool {
        self.stream.is_write_vectored()
    }
}

/// A digest of all contents; a file that can't be read counts as one that is there and empty.
fn fingerprint(files: &TlsFiles) -> u64 {
    let mut hasher = DefaultHasher::new();
    let cas = files.client_cas.iter().map(|ca| &ca.file);
    for path in [&files.certificate, &files.key].into_iter().chain(cas).chain(&files.crls) {
        zeroize::Zeroizing::new(std::fs::read(path).unwrap_or_default()).hash(&mut hasher);
    }
    hasher.finish()
}

fn read(
    files: &TlsFiles,
    generation: u64,
    clock: &Arc<dyn Clock>,
    metrics: &Metrics,
    without: &WithoutCertificate,
) -> Result<(Arc<ServerConfig>, Arc<Trust>), TlsError> {
    let fail = |file: &PathBuf, why: String| TlsError { file: file.clone(), why };
    let provider = Arc::new(default_provider());
    let mut crls = Vec::new();
    for file in &files.crls {
        for crl in CertificateRevocationListDer::pem_file_iter(file).map_err(|error| fail(file, error.to_string()))? {
            crls.push(crl.map_err(|error| fail(file, error.to_string()))?);
        }
    }
    let (mut cas, mut hints, mut ca_expiry) = (Vec::new(), Vec::new(), None);
    for ca in &files.client_cas {
        let mut roots = RootCertStore::empty();
        for root in certificates(&ca.file)? {
            ca_expiry = ca_expiry.into_iter().chain(expiry(&root)).min();
            roots.add(root).map_err(|error| fail(&ca.file, error.to_string()))?;
        }
        hints.extend(roots.subjects());
        let mut builder = WebPkiClientVerifier::builder_with_provider(Arc::new(roots), Arc::clone(&provider));
        if !crls.is_empty() {
            // A CRL names the certificates it revokes; a CA without one revokes none.
            builder = builder.with_crls(crls.iter().cloned()).allow_unknown_revocation_status();
        }
        let verifier = builder.build().map_err(|error| fail(&ca.file, error.to_string()))?;
        cas.push(ClientCa { verifier, trust_domains: ca.trust_domains.clone(), dns_suffixes: ca.dns_suffixes.clone() });
    }
    let trust = Arc::new(Trust { generation, cas, hints });
    let chain = certificates(&files.certificate)?;
    let end = chain.iter().filter_map(expiry).min();
    let key = PrivateKeyDer::from_pem_file(&files.key).map_err(|error| fail(&files.key, error.to_string()))?;
    let verifier = HandshakeVerifier::new(Arc::clone(&trust), Arc::clone(without))
        .ok_or_else(|| fail(&files.certificate, "no client CA is configured".to_owned()))?;
    let mut config = ServerConfig::builder_with_details(provider, Arc::new(Time(Arc::clone(clock))))
        .with_protocol_versions(&[&rustls::version::TLS13])
        .map_err(|error| fail(&files.certificate, error.to_string()))?
        .with_client_cert_verifier(Arc::new(verifier))
        .with_single_cert(chain, key)
        .map_err(|error| fail(&files.certificate, error.to_string()))?;
    config.alpn_protocols = vec![b"h2".to_vec()];
    // No 0-RTT: early data could be replayed.
    config.max_early_data_size = 0;
    // Of what is accepted alone: what is refused leaves the files of before in force.
    metrics.ca_expiry.set(ca_expiry.unwrap_or_default());
    if let Some(end) = end {
        metrics.certificate_expiry.set(end);
    }
    Ok((Arc::new(config), trust))
}

fn certificates(file: &PathBuf) -> Result<Vec<CertificateDer<'static>>, TlsError> {
    let fail = |why: String| TlsError { file: file.clone(), why };
    let chain: Result<Vec<_>, _> =
        CertificateDer::pem_file_iter(file).map_err(|error| fail(error.to_string()))?.collect();
    let chain = chain.map_err(|error| fail(error.to_string()))?;
    if chain.is_empty() { Err(fail("holds no certificate".to_owned())) } else { Ok(chain) }
}
