//! How the broker proves itself to PostgreSQL, and PostgreSQL to the broker.

use std::path::{Path, PathBuf};
use std::process::Command;

use p8broker::config::{StoreAt, StoreConfig};
use p8broker::metrics::Metrics;
use p8broker::store::postgres::PostgresStore;
use p8broker::store::{Store, StoreError};
use rcgen::{DnType, ExtendedKeyUsagePurpose, SanType};
use tempfile::TempDir;

use crate::chaos::{Random, free_port};
use crate::harness::Pki;

/// A PostgreSQL that lets nobody in but over TLS.
struct Server {
    dir: TempDir,
    pki: Pki,
    port: u16,
}

impl Server {
    fn start(method: &str) -> Self {
        let dir = TempDir::new().unwrap();
        let pki = Pki::new(&dir.path().join("pki"));
        pki.issue("p8broker", vec![], ExtendedKeyUsagePurpose::ClientAuth, |params| {
            params.distinguished_name.push(DnType::CommonName, "p8broker");
        });
        let (certificate, key) = pki.files("server");
        let server = Self {
            port: free_port(&mut Random::new(u64::from(std::process::id()) * 7 + method.len() as u64)),
            dir,
            pki,
        };
        let cluster = server.folder();
        script(&["init", &cluster]);
        let ca = server.file("ca.pem");
        script(&["tls", &cluster, &text(&certificate), &text(&key), &text(&ca), method]);
        script(&["start", &cluster, &server.port.to_string()]);
        server
    }

    fn folder(&self) -> String {
        text(&self.dir.path().join("cluster"))
    }

    fn file(&self, name: &str) -> PathBuf {
        self.pki.dir.join(name)
    }

    fn config(&self, host: &str) -> StoreConfig {
        let url = format!("postgres://p8broker@{host}:{}/postgres?sslmode=verify-full", self.port);
        StoreConfig { ca_file: Some(self.file("ca.pem")), ..StoreConfig::url(&url) }
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        script(&["stop", &self.folder(), "immediate"]);
    }
}

fn text(path: &Path) -> String {
    path.display().to_string()
}

fn script(arguments: &[&str]) {
    let file = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/postgres.sh");
    let output = Command::new(file).args(arguments).output().unwrap();
    assert!(output.status.success(), "{arguments:?}: {}", String::from_utf8_lossy(&output.stderr));
}

async fn open(config: StoreConfig) -> Result<(), StoreError> {
    let StoreAt::Postgres(settings) = config.at().unwrap() else { panic!("not this one") };
    let store = PostgresStore::open(settings, &Metrics::new().unwrap()).await?;
    store.head().await?;
    store.close().await;
    Ok(())
}

#[tokio::test]
async fn the_server_must_prove_its_name_by_the_ca_that_is_named() {
    let server = Server::start("trust");
    open(server.config("127.0.0.1")).await.unwrap();
    // Another CA, another name, no TLS at all.
    let other = Pki::new(&server.dir.path().join("other"));
    let foreign = StoreConfig { ca_file: Some(other.dir.join("ca.pem")), ..server.config("127.0.0.1") };
    assert!(matches!(open(foreign).await, Err(StoreError::Unavailable(_) | StoreError::Unfit(_))));
    assert!(open(server.config("localhost")).await.is_err(), "the certificate is for 127.0.0.1 alone");
    let plain = format!("postgres://p8broker@127.0.0.1:{}/postgres?sslmode=disable", server.port);
    assert!(open(StoreConfig::url(&plain)).await.is_err(), "the server lets nobody in without");
}

#[tokio::test]
async fn the_broker_proves_itself_by_a_client_certificate_from_files() {
    let server = Server::start("cert");
    let (certificate, key) = server.pki.files("p8broker");
    let with = |certificate: &Path, key: &Path| StoreConfig {
        client_certificate_file: Some(certificate.to_owned()),
        client_key_file: Some(key.to_owned()),
        ..server.config("127.0.0.1")
    };
    open(with(&certificate, &key)).await.unwrap();
    assert!(open(server.config("127.0.0.1")).await.is_err(), "without one nobody is let in");
    let stranger = Pki::new(&server.dir.path().join("other"));
    stranger.issue("p8broker", vec![], ExtendedKeyUsagePurpose::ClientAuth, |params| {
        params.distinguished_name.push(DnType::CommonName, "p8broker");
        params.subject_alt_names = vec![SanType::DnsName("p8broker".try_into().unwrap())];
    });
    let (certificate, key) = stranger.files("p8broker");
    assert!(open(with(&certificate, &key)).await.is_err(), "another CA's certificate");
    let missing = with(Path::new("/no/such/file"), &key);
    assert!(matches!(open(missing).await, Err(StoreError::Unfit(why)) if why.contains("/no/such/file")));
}

#[tokio::test]
async fn the_broker_proves_itself_by_a_password_from_a_file() {
    let server = Server::start("scram-sha-256");
    script(&["query", &server.folder(), "alter role p8broker password 'correct horse'"]);
    let file = server.file("password");
    let with = |password: &str| {
        std::fs::write(&file, password).unwrap();
        StoreConfig { password_file: Some(file.clone()), ..server.config("127.0.0.1") }
    };
    // The line's end is not part of it.
    open(with("correct horse\n")).await.unwrap();
    let wrong = open(with("battery staple")).await.unwrap_err();
    assert!(matches!(&wrong, StoreError::Unfit(why) if why.contains("credentials")), "{wrong}");
    assert!(!wrong.to_string().contains("battery"), "{wrong}");
    let unset = StoreConfig { password_env: Some("P8BROKER_TEST_NOT_SET".to_owned()), ..server.config("127.0.0.1") };
    assert!(matches!(open(unset).await, Err(StoreError::Unfit(why)) if why.contains("P8BROKER_TEST_NOT_SET")));
}
