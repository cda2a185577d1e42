//! An OpenID provider on loopback: HTTPS with a certificate of its own CA, that answers what it is told to, and counts.

use std::collections::HashMap;
use std::net::Ipv4Addr;
use std::path::PathBuf;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex};

use rustls::ServerConfig;
use rustls::pki_types::pem::PemObject;
use rustls::pki_types::{CertificateDer, PrivateKeyDer};
use serde_json::{Value, json};
use tempfile::TempDir;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::watch;
use tokio::task::JoinSet;
use tokio_rustls::TlsAcceptor;

use super::forge::{IssuerKey, jwks_of};
use crate::harness::Pki;

pub const DISCOVERY: &str = "/.well-known/openid-configuration";
pub const JWKS: &str = "/jwks";

/// What is answered to a request.
#[derive(Clone)]
pub enum Answer {
    /// These bytes, and the end of the connection.
    Bytes(Vec<u8>),
    /// The same, once this is true.
    Held(watch::Receiver<bool>, Vec<u8>),
    /// One byte of these headers after another, for ever.
    Drip,
    /// Nothing, for ever.
    Never,
    /// The end of the connection.
    Close,
}

pub fn json_answer(body: &Value) -> Answer {
    answer("200 OK", &[("content-type", "application/json")], body.to_string())
}

pub fn answer(status: &str, headers: &[(&str, &str)], body: impl AsRef<[u8]>) -> Answer {
    let body = body.as_ref();
    let headers: String = headers.iter().map(|(name, value)| format!("{name}: {value}\r\n")).collect();
    let head = format!("HTTP/1.1 {status}\r\n{headers}content-length: {}\r\nconnection: close\r\n\r\n", body.len());
    Answer::Bytes([head.as_bytes(), body].concat())
}

/// Ends with it: its connections belong to its task.
pub struct Provider {
    /// Its `iss`.
    pub url: String,
    pub port: u16,
    pub dir: TempDir,
    shared: Arc<Shared>,
    _accepting: JoinSet<()>,
}

#[derive(Default)]
struct Shared {
    answers: Mutex<HashMap<String, Answer>>,
    /// Heads of all requests.
    heads: Mutex<Vec<String>>,
    connections: AtomicUsize,
}

impl Provider {
    /// A provider of these keys.
    pub async fn start(keys: &[&IssuerKey]) -> Self {
        let dir = TempDir::new().unwrap();
        let pki = Pki::new(dir.path());
        let chain = CertificateDer::pem_file_iter(pki.dir.join("server.pem")).unwrap().map(Result::unwrap).collect();
        let key = PrivateKeyDer::from_pem_file(pki.dir.join("server-key.pem")).unwrap();
        let config = ServerConfig::builder_with_provider(Arc::new(rustls::crypto::aws_lc_rs::default_provider()))
            .with_safe_default_protocol_versions()
            .unwrap()
            .with_no_client_auth()
            .with_single_cert(chain, key)
            .unwrap();
        let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).await.unwrap();
        let port = listener.local_addr().unwrap().port();
        let shared = Arc::new(Shared::default());
        let mut accepting = JoinSet::new();
        accepting.spawn(accept(listener, TlsAcceptor::from(Arc::new(config)), Arc::clone(&shared)));
        let provider = Self { url: format!("https://127.0.0.1:{port}"), port, dir, shared, _accepting: accepting };
        provider.set(DISCOVERY, json_answer(&provider.discovery()));
        provider.publish(keys);
        provider
    }

    pub fn discovery(&self) -> Value {
        json!({
            "issuer": self.url,
            "jwks_uri": self.jwks_url(),
            "response_types_supported": ["id_token"],
            "subject_types_supported": ["public"],
            "id_token_signing_alg_values_supported": ["RS256", "ES256"],
        })
    }

    pub fn jwks_url(&self) -> String {
        format!("{}{JWKS}", self.url)
    }

    pub fn ca(&self) -> PathBuf {
        self.dir.path().join("ca.pem")
    }

    /// Signs with these keys from now on.
    pub fn publish(&self, keys: &[&IssuerKey]) {
        self.set(JWKS, json_answer(&jwks_of(keys)));
    }

    pub fn set(&self, path: &str, answer: Answer) {
        self.shared.answers.lock().unwrap().insert(path.to_owned(), answer);
    }

    /// Nothing is answered any more, on any path.
    pub fn go_away(&self) {
        self.shared.answers.lock().unwrap().values_mut().for_each(|answer| *answer = Answer::Close);
    }

    /// Back, with these keys.
    pub fn come_back(&self, keys: &[&IssuerKey]) {
        self.set(DISCOVERY, json_answer(&self.discovery()));
        self.publish(keys);
    }

    /// How often this path was asked for.
    pub fn requests(&self, path: &str) -> usize {
        self.heads().iter().filter(|head| head.starts_with(&format!("GET {path} "))).count()
    }

    pub fn heads(&self) -> Vec<String> {
        self.shared.heads.lock().unwrap().clone()
    }

    /// How many connections were opened, whatever came of them.
    pub fn connections(&self) -> usize {
        self.shared.connections.load(Ordering::SeqCst)
    }
}

async fn accept(listener: TcpListener, acceptor: TlsAcceptor, shared: Arc<Shared>) {
    let mut connections = JoinSet::new();
    while let Ok((stream, _)) = listener.accept().await {
        shared.connections.fetch_add(1, Ordering::SeqCst);
        connections.spawn(serve(stream, acceptor.clone(), Arc::clone(&shared)));
    }
}

/// One request. Whoever asks may go away at any time, so that no error here is one.
async fn serve(stream: TcpStream, acceptor: TlsAcceptor, shared: Arc<Shared>) {
    let Ok(mut stream) = acceptor.accept(stream).await else { return };
    let mut head = Vec::new();
    while !head.ends_with(b"\r\n\r\n") && head.len() < 16_384 {
        let Ok(byte) = stream.read_u8().await else { return };
        head.push(byte);
    }
    let head = String::from_utf8_lossy(&head).into_owned();
    let path = head.split(' ').nth(1).unwrap_or_default().to_owned();
    shared.heads.lock().unwrap().push(head);
    let told = shared.answers.lock().unwrap().get(&path).cloned();
    let bytes = match told.unwrap_or_else(|| answer("404 Not Found", &[], "")) {
        Answer::Bytes(bytes) => bytes,
        Answer::Held(mut released, bytes) => {
            if released.wait_for(|released| *released).await.is_err() {
                return;
            }
            bytes
        }
        Answer::Drip => {
            let _ = stream.write_all(b"HTTP/1.1 200 OK\r\nx-drip: ").await;
            while stream.write_all(b"x").await.is_ok() && stream.flush().await.is_ok() {
                tokio::time::sleep(std::time::Duration::from_millis(50)).await;
            }
            return;
        }
        Answer::Never => return std::future::pending().await,
        Answer::Close => return,
    };
    let _ = stream.write_all(&bytes).await;
    let _ = stream.shutdown().await;
}
