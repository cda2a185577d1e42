//! A broker as tests use it: bound to a free port, filled with a sample, stopped as an assertion.
//!
//! Over 400 lines, as a test finds here all that it may ask of a broker.

pub mod fleet;
pub mod tables;

use std::num::NonZeroU32;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use data_encoding::{BASE64URL_NOPAD, HEXLOWER};
use p8broker::client::{Target, Wire};
use p8broker::clock::{Clock, ManualClock, SystemClock};
use p8broker::config::{
    AnchorConfig, Bootstrap, CanaryConfig, ClientCas, Config, Drain, LimitsConfig, Listen, Log, ReplicaConfig, StoreAt,
    StoreConfig, Tls, TracesConfig, Unseal,
};
use p8broker::grpc::proto;
use p8broker::grpc::proto::audit_service_client::AuditServiceClient;
use p8broker::grpc::proto::key_service_client::KeyServiceClient;
use p8broker::grpc::proto::policy_service_client::PolicyServiceClient;
use p8broker::grpc::proto::revocation_service_client::RevocationServiceClient;
use p8broker::grpc::proto::system_service_client::SystemServiceClient;
use p8broker::grpc::proto::token_service_client::TokenServiceClient;
use p8broker::identity::oidc::OidcConfig;
use p8broker::metrics::Metrics;
use p8broker::server::{Server, ServerError, open_store};
use p8broker::store::Store;
use p256::SecretKey;
use p256::ecdsa::signature::Verifier;
use p256::ecdsa::{Signature, VerifyingKey};
use p256::elliptic_curve::Generate;
use p256::pkcs8::{EncodePrivateKey, LineEnding};
use rcgen::{BasicConstraints, CertificateParams, CertifiedIssuer, ExtendedKeyUsagePurpose, IsCa, KeyPair, SanType};
use serde_json::Value;
use tempfile::TempDir;
use tokio::task::JoinHandle;
use tokio_util::sync::CancellationToken;
use tonic::{Code, Status};
use tonic_types::StatusExt;

pub const OPERATOR: &str = "spiffe://acme.internal/ns/ops/sa/admin";
pub const CLIENT: &str = "spiffe://acme.internal/ns/ci/sa/release-bot";
pub const STRANGER: &str = "spiffe://acme.internal/ns/lab/sa/stranger";
pub const KEY_ID: &str = "2X9R4HXF34";
pub const ISSUER: &str = "57246542-96fe-1a63-e053-0824d011072a";

/// A CA with the certificates it signed, in a folder.
pub struct Pki {
    pub dir: PathBuf,
    ca: CertifiedIssuer<'static, KeyPair>,
}

impl Pki {
    pub fn new(dir: &Path) -> Self {
        std::fs::create_dir_all(dir).unwrap();
        let mut params = CertificateParams::new(Vec::new()).unwrap();
        params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
        params.distinguished_name.push(rcgen::DnType::CommonName, format!("CA in {}", dir.display()));
        params.key_usages = vec![rcgen::KeyUsagePurpose::KeyCertSign, rcgen::KeyUsagePurpose::CrlSign];
        let ca = CertifiedIssuer::self_signed(params, KeyPair::generate().unwrap()).unwrap();
        std::fs::write(dir.join("ca.pem"), ca.pem()).unwrap();
        let pki = Self { dir: dir.to_owned(), ca };
        pki.server();
        pki
    }

    /// Signs a new server certificate over the old one.
    pub fn server(&self) {
        let names = vec![SanType::IpAddress([127, 0, 0, 1].into())];
        self.issue("server", names, ExtendedKeyUsagePurpose::ServerAuth, |_| ());
    }

    pub fn issue(
        &self,
        name: &str,
        names: Vec<SanType>,
        usage: ExtendedKeyUsagePurpose,
        change: impl FnOnce(&mut CertificateParams),
    ) {
        let mut params = CertificateParams::new(Vec::new()).unwrap();
        params.subject_alt_names = names;
        params.extended_key_usages = vec![usage];
        change(&mut params);
        let key = KeyPair::generate().unwrap();
        std::fs::write(self.dir.join(format!("{name}.pem")), params.signed_by(&key, &self.ca).unwrap().pem()).unwrap();
        std::fs::write(self.dir.join(format!("{name}-key.pem")), key.serialize_pem()).unwrap();
    }

    /// Files of a client with this identity.
    pub fn client(&self, identity: &str) -> (PathBuf, PathBuf) {
        let name: String = identity.chars().map(|c| if c.is_ascii_alphanumeric() { c } else { '_' }).collect();
        if !self.dir.join(format!("{name}.pem")).exists() {
            let san = match identity.strip_prefix("dns:") {
                Some(host) => SanType::DnsName(host.try_into().unwrap()),
                None => SanType::URI(identity.try_into().unwrap()),
            };
            self.issue(&name, vec![san], ExtendedKeyUsagePurpose::ClientAuth, |_| ());
        }
        self.files(&name)
    }

    pub fn files(&self, name: &str) -> (PathBuf, PathBuf) {
        (self.dir.join(format!("{name}.pem")), self.dir.join(format!("{name}-key.pem")))
    }

    pub fn ca(&self) -> &CertifiedIssuer<'static, KeyPair> {
        &self.ca
    }
}

/// Puts something between a broker and its store.
pub type Wrap = Box<dyn FnOnce(Arc<dyn Store>) -> Arc<dyn Store>>;

/// How a broker of a test differs from the usual one.
pub struct Options {
    pub by_shares: bool,
    pub anchor: bool,
    pub tokens_per_second: u32,
    pub admin_per_second: u32,
    pub requests_per_connection: u32,
    pub signatures_per_second: u32,
    pub wrap: Option<Wrap>,
    /// A database on PostgreSQL; an SQLite file in the folder where absent.
    pub url: Option<String>,
    pub traces: TracesConfig,
}

impl Default for Options {
    fn default() -> Self {
        Self {
            by_shares: false,
            anchor: false,
            tokens_per_second: 1_000_000,
            admin_per_second: 1_000_000,
            requests_per_connection: 1_000_000,
            signatures_per_second: 1_000_000,
            wrap: None,
            url: None,
            traces: TracesConfig::default(),
        }
    }
}

/// A folder with certificates and a vault, with or without a broker that serves it.
pub struct Broker {
    pub dir: Arc<TempDir>,
    pub pki: Arc<Pki>,
    pub clock: Arc<ManualClock>,
    pub config: Config,
    running: Option<Running>,
}

struct Running {
    server: Arc<p8broker::broker::Broker>,
    grpc: String,
    ops: String,
    stop: CancellationToken,
    task: JoinHandle<Result<(), ServerError>>,
}

impl Broker {
    /// A folder and a configuration, and nothing that runs.
    pub fn prepare(options: &Options) -> Self {
        let dir = Arc::new(TempDir::new().unwrap());
        let pki = Arc::new(Pki::new(&dir.path().join("pki")));
        std::fs::write(dir.path().join("unseal.key"), "5a".repeat(32)).unwrap();
        let loopback = "127.0.0.1:0".parse().unwrap();
        let config = Config {
            listen: Listen { grpc: loopback, ops: loopback },
            tls: Tls {
                certificate: pki.dir.join("server.pem"),
                key: pki.dir.join("server-key.pem"),
                client_cas: vec![ClientCas {
                    file: pki.dir.join("ca.pem"),
                    trust_domains: vec!["acme.internal".to_owned()],
                    dns_suffixes: vec!["acme.internal".to_owned()],
                }],
                crls: Vec::new(),
                reload_s: 1,
                max_connections: 10_000,
            },
            store: match &options.url {
                Some(url) => StoreConfig::url(url),
                None => StoreConfig::sqlite(dir.path().join("vault.db")),
            },
            replica: ReplicaConfig { name: Some("replica-1".to_owned()) },
            unseal: Unseal {
                key_file: (!options.by_shares).then(|| dir.path().join("unseal.key")),
                ..Unseal::default()
            },
            bootstrap: Bootstrap { operators: vec![OPERATOR.to_owned()] },
            anchor: AnchorConfig { file: options.anchor.then(|| dir.path().join("anchor.json")) },
            log: Log::default(),
            limits: LimitsConfig {
                tokens_per_second: NonZeroU32::new(options.tokens_per_second).unwrap(),
                admin_per_second: NonZeroU32::new(options.admin_per_second).unwrap(),
                requests_per_connection_per_second: NonZeroU32::new(options.requests_per_connection).unwrap(),
                signatures_per_second: NonZeroU32::new(options.signatures_per_second).unwrap(),
                ..LimitsConfig::default()
            },
            drain: Drain { timeout_s: 5 },
            oidc: OidcConfig::default(),
            canary: CanaryConfig { every_s: 0 },
            traces: options.traces.clone(),
        };
        let clock = Arc::new(ManualClock::at(SystemClock.now()));
        Self { dir, pki, clock, config, running: None }
    }

    /// A broker without a vault.
    pub async fn bare(options: Options) -> Self {
        let mut broker = Self::prepare(&options);
        broker.run(options.wrap).await;
        broker
    }

    /// A broker with a vault, the sample document and the sample team key.
    pub async fn start() -> Self {
        Self::with(Options::default()).await
    }

    pub async fn with(options: Options) -> Self {
        let broker = Self::bare(options).await;
        broker.as_(OPERATOR).await.system.init(proto::InitRequest::default()).await.unwrap();
        broker.fill().await;
        broker
    }

    /// Applies the sample document and imports the sample key.
    pub async fn fill(&self) {
        let mut operator = self.as_(OPERATOR).await;
        operator.apply(sample()).await.unwrap();
        operator.import(&import(KEY_ID, &new_p8())).await.unwrap();
    }

    /// Serves the vault, as it is on the disk.
    pub async fn run(&mut self, wrap: Option<Wrap>) {
        assert!(self.running.is_none(), "it runs already");
        let store = open_store(&self.config, &Metrics::new().unwrap()).await.unwrap();
        let store = match wrap {
            Some(wrap) => wrap(store),
            None => store,
        };
        let clock: Arc<dyn Clock> = Arc::<ManualClock>::clone(&self.clock);
        let server = Server::bind_with(self.config.clone(), store, clock).await.unwrap();
        let (grpc, ops) = (server.grpc_addr().unwrap().to_string(), server.ops_addr().unwrap().to_string());
        let stop = CancellationToken::new();
        let broker = Arc::clone(server.broker());
        #[expect(clippy::disallowed_methods, reason = "the server under test; `stop` waits for it")]
        let task = tokio::spawn(server.run(stop.clone()));
        self.running = Some(Running { server: broker, grpc, ops, stop, task });
    }

    /// Drains, and fails the test if the server failed, panicked or hung.
    pub async fn stop(&mut self) {
        let running = self.running.take().expect("it runs");
        running.stop.cancel();
        let ended = tokio::time::timeout(Duration::from_secs(20), running.task).await.expect("drained in time");
        ended.expect("no panic").expect("no error");
        // The store goes with the last request that held it.
        drop(running.server);
    }

    pub async fn restart(&mut self) {
        self.stop().await;
        self.run(None).await;
    }

    pub fn inner(&self) -> &Arc<p8broker::broker::Broker> {
        &self.running.as_ref().expect("it runs").server
    }

    pub fn is_open(&self) -> bool {
        self.inner().open().is_ok()
    }

    pub fn grpc(&self) -> &str {
        &self.running.as_ref().expect("it runs").grpc
    }

    /// `GET` on the port for operations: status and body.
    pub async fn ops(&self, path: &str) -> (u16, String) {
        use tokio::io::{AsyncReadExt, AsyncWriteExt};
        let address = &self.running.as_ref().expect("it runs").ops;
        let mut stream = tokio::net::TcpStream::connect(address).await.unwrap();
        let request = format!("GET {path} HTTP/1.1\r\nHost: {address}\r\nConnection: close\r\n\r\n");
        stream.write_all(request.as_bytes()).await.unwrap();
        let mut answer = String::new();
        stream.read_to_string(&mut answer).await.unwrap();
        let status = answer.split(' ').nth(1).unwrap().parse().unwrap();
        (status, answer.split_once("\r\n\r\n").unwrap().1.to_owned())
    }

    pub fn target(&self, identity: &str) -> Target {
        let (cert, key) = self.pki.client(identity);
        Target::certified(self.grpc().to_owned(), self.pki.dir.join("ca.pem"), cert, key)
    }

    /// A client with this identity.
    pub async fn as_(&self, identity: &str) -> Client {
        Client::new(self.target(identity).connect().await.unwrap())
    }

    /// Environment variables for the command line.
    pub fn env(&self, identity: &str) -> Vec<(&'static str, String)> {
        let target = self.target(identity);
        let text = |path: &Path| path.display().to_string();
        vec![
            ("P8BROKER_ADDR", target.addr.clone()),
            ("P8BROKER_CACERT", text(&target.cacert)),
            ("P8BROKER_CERT", text(&target.certificate.as_ref().unwrap().cert)),
            ("P8BROKER_KEY", text(&target.certificate.as_ref().unwrap().key)),
        ]
    }

    pub fn database(&self) -> PathBuf {
        match self.config.store.at().unwrap() {
            StoreAt::Sqlite(file) => file,
            StoreAt::Postgres(_) => panic!("this one is on PostgreSQL"),
        }
    }

    /// Another replica of the same vault, which does not run yet.
    pub fn sibling(&self, nth: usize) -> Self {
        let mut config = self.config.clone();
        config.replica.name = Some(format!("replica-{nth}"));
        config.anchor.file = config.anchor.file.map(|file| file.with_extension(nth.to_string()));
        if let Some(file) = &config.anchor.file {
            // An empty file starts an anchor from the present history.
            std::fs::write(file, b"").unwrap();
        }
        let (dir, pki, clock) = (Arc::clone(&self.dir), Arc::clone(&self.pki), Arc::clone(&self.clock));
        Self { dir, pki, clock, config, running: None }
    }

    pub fn is_running(&self) -> bool {
        self.running.is_some()
    }
}

impl Drop for Broker {
    fn drop(&mut self) {
        if let Some(running) = &self.running {
            // A failed test leaves it running; the runtime ends it.
            running.stop.cancel();
            assert!(std::thread::panicking(), "a test must stop its broker: `stop` is an assertion");
        }
    }
}

/// Every service, over one connection.
#[derive(Clone)]
pub struct Client {
    pub channel: Wire,
    pub token: TokenServiceClient<Wire>,
    pub key: KeyServiceClient<Wire>,
    pub policy: PolicyServiceClient<Wire>,
    pub revocation: RevocationServiceClient<Wire>,
    pub system: SystemServiceClient<Wire>,
    pub audit: AuditServiceClient<Wire>,
}

impl Client {
    pub fn new(channel: Wire) -> Self {
        Self {
            token: TokenServiceClient::new(channel.clone()),
            key: KeyServiceClient::new(channel.clone()),
            policy: PolicyServiceClient::new(channel.clone()),
            revocation: RevocationServiceClient::new(channel.clone()),
            system: SystemServiceClient::new(channel.clone()),
            audit: AuditServiceClient::new(channel.clone()),
            channel,
        }
    }

    pub async fn apply(&mut self, document: proto::Document) -> Result<proto::ApplyResponse, Status> {
        let request = proto::ApplyRequest { document: Some(document), ..proto::ApplyRequest::default() };
        self.policy.apply(request).await.map(tonic::Response::into_inner)
    }

    pub async fn import(&mut self, request: &proto::ImportKeyRequest) -> Result<proto::Key, Status> {
        Ok(self.key.import_key(request.clone()).await?.into_inner().key.unwrap())
    }

    pub async fn issue(&mut self, request: proto::IssueTokenRequest) -> Result<proto::IssueTokenResponse, Status> {
        self.token.issue_token(request).await.map(tonic::Response::into_inner)
    }

    pub async fn revoke(&mut self, kind: proto::TargetKind, name: &str) -> Result<proto::Revocation, Status> {
        let target = Some(proto::Target { kind: kind.into(), name: name.to_owned() });
        let request = proto::RevokeRequest { target, reason: "a test".to_owned() };
        Ok(self.revocation.revoke(request).await?.into_inner().revocation.unwrap())
    }

    pub async fn all_events(&mut self) -> Vec<proto::AuditEvent> {
        let (mut out, mut page_token) = (Vec::new(), String::new());
        loop {
            let request = proto::ListRequest { filter: None, page_size: 1000, page_token };
            let page = self.audit.list(request).await.unwrap().into_inner();
            out.extend(page.events);
            page_token = page.next_page_token;
            if page_token.is_empty() {
                return out;
            }
        }
    }

    pub async fn verify(&mut self) -> proto::VerifyResponse {
        self.audit.verify(proto::VerifyRequest {}).await.unwrap().into_inner()
    }
}

pub fn spiffe(id: &str) -> proto::ClientPattern {
    proto::ClientPattern { pattern: Some(proto::client_pattern::Pattern::Spiffe(id.to_owned())) }
}

/// An operator with one certificate, unconfined.
pub fn operator(name: &str, identity: &str, powers: &[proto::Power]) -> proto::Document {
    let operator = proto::Operator {
        name: name.to_owned(),
        clients: vec![spiffe(identity)],
        powers: powers.iter().map(|power| (*power).into()).collect(),
        app_groups: vec![],
    };
    proto::Document { operators: vec![operator], ..proto::Document::default() }
}

pub fn client_id(name: &str) -> p8broker::id::ClientId {
    p8broker::id::ClientId::parse(name).unwrap()
}

/// Whom a certificate with this name names.
pub fn principal(name: &str) -> p8broker::domain::principal::Principal {
    p8broker::domain::principal::Principal::of_certificate(client_id(name))
}

/// What somebody with a copy of a `.p8` makes of it.
pub fn sign_elsewhere(p8: &str, claims: &str) -> String {
    use p256::ecdsa::SigningKey;
    use p256::ecdsa::signature::Signer;
    use p256::pkcs8::DecodePrivateKey;
    let key = SigningKey::from(SecretKey::from_pkcs8_pem(p8).unwrap());
    let header = format!(r#"{{"alg":"ES256","kid":"{KEY_ID}","typ":"JWT"}}"#);
    let signed = format!("{}.{}", BASE64URL_NOPAD.encode(header.as_bytes()), BASE64URL_NOPAD.encode(claims.as_bytes()));
    let signature: Signature = key.sign(signed.as_bytes());
    format!("{signed}.{}", BASE64URL_NOPAD.encode(&signature.to_bytes()))
}

pub fn target(kind: proto::TargetKind, name: &str) -> proto::Target {
    proto::Target { kind: kind.into(), name: name.to_owned() }
}

pub fn duration(seconds: i64) -> Option<prost_types::Duration> {
    Some(prost_types::Duration { seconds, nanos: 0 })
}

/// One account, one group, one policy.
pub fn sample() -> proto::Document {
    proto::Document {
        accounts: vec![proto::Account { name: "acme".to_owned(), issuer_id: ISSUER.to_owned() }],
        app_groups: vec![proto::AppGroup {
            name: "games".to_owned(),
            account: "acme".to_owned(),
            apps: vec!["1234567890".to_owned(), "2345678901".to_owned()],
        }],
        policies: vec![release_policy()],
        ..proto::Document::default()
    }
}

pub fn release_policy() -> proto::Policy {
    proto::Policy {
        name: "games-release-ci".to_owned(),
        clients: vec![spiffe("spiffe://acme.internal/ns/ci/sa/release-*")],
        app_group: "games".to_owned(),
        roles: vec![proto::Role::AppManager.into()],
        max_ttl: duration(600),
        ..proto::Policy::default()
    }
}

pub fn policies(policies: Vec<proto::Policy>) -> proto::Document {
    proto::Document { policies, ..proto::Document::default() }
}

/// A `.p8` in Apple's form, made by a library that is not the broker's.
pub fn new_p8() -> String {
    SecretKey::generate().to_pkcs8_pem(LineEnding::LF).unwrap().to_string()
}

pub fn import(key_id: &str, p8: &str) -> proto::ImportKeyRequest {
    proto::ImportKeyRequest {
        key_id: key_id.to_owned(),
        account: "acme".to_owned(),
        kind: proto::KeyKind::Team.into(),
        user: String::new(),
        app_access: None,
        roles: vec![proto::Role::AppManager.into()],
        app_groups: vec!["games".to_owned()],
        p8: p8.as_bytes().to_vec(),
    }
}

pub fn ask() -> proto::IssueTokenRequest {
    proto::IssueTokenRequest {
        app_group: "games".to_owned(),
        role: proto::Role::AppManager.into(),
        ttl: None,
        scope: Vec::new(),
        fresh: false,
    }
}

pub fn ask_fresh() -> proto::IssueTokenRequest {
    proto::IssueTokenRequest { fresh: true, ..ask() }
}

/// The header and claims of a token whose signature holds, by a verifier that is not the broker's.
pub fn verified(jwt: &str, p8: &str) -> (Value, Value) {
    use p256::pkcs8::DecodePrivateKey;
    let key = SecretKey::from_pkcs8_pem(p8).unwrap();
    let (signed, signature) = jwt.rsplit_once('.').unwrap();
    let signature = Signature::from_slice(&BASE64URL_NOPAD.decode(signature.as_bytes()).unwrap()).unwrap();
    VerifyingKey::from(key.public_key()).verify(signed.as_bytes(), &signature).expect("the signature holds");
    let part = |text: &str| serde_json::from_slice(&BASE64URL_NOPAD.decode(text.as_bytes()).unwrap()).unwrap();
    let (header, claims) = signed.split_once('.').unwrap();
    (part(header), part(claims))
}

/// The id that a token must have.
pub fn token_id(jwt: &str) -> String {
    let signed = jwt.rsplit_once('.').unwrap().0;
    HEXLOWER.encode(aws_lc_rs::digest::digest(&aws_lc_rs::digest::SHA256, signed.as_bytes()).as_ref())
}

/// Code and stable reason of a refusal.
#[track_caller]
pub fn refused<T: std::fmt::Debug>(answer: Result<T, Status>) -> (Code, String) {
    let status = answer.expect_err("it must be refused");
    let reason = status.get_error_details().error_info().map(|info| info.reason.clone());
    (status.code(), reason.unwrap_or_default())
}

/// Fields that a refusal names.
#[track_caller]
pub fn wrong_fields<T: std::fmt::Debug>(answer: Result<T, Status>) -> Vec<String> {
    let status = answer.expect_err("it must be refused");
    assert_eq!(status.code(), Code::InvalidArgument, "{status:?}");
    let details = status.get_error_details();
    details.bad_request().expect("violations").field_violations.iter().map(|it| it.field.clone()).collect()
}

/// Waits for a condition, at most ten seconds.
pub async fn eventually(what: &str, mut holds: impl AsyncFnMut() -> bool) {
    for _ in 0..500 {
        if holds().await {
            return;
        }
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
    panic!("never: {what}");
}

/// Whether the bytes stand anywhere in a file.
pub fn file_holds(path: &Path, wanted: &[u8]) -> bool {
    let content = std::fs::read(path).unwrap_or_default();
    content.windows(wanted.len()).any(|window| window == wanted)
}
