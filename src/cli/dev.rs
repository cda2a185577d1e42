//! `dev`: a playground in one process. Everything it makes lies in one folder, and a second start goes on with it.

use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use aws_lc_rs::rand;
use aws_lc_rs::signature::{ECDSA_P256_SHA256_FIXED_SIGNING, EcdsaKeyPair};
use clap::Args;
use data_encoding::{BASE64, HEXLOWER};
use rcgen::{BasicConstraints, CertificateParams, CertifiedIssuer, ExtendedKeyUsagePurpose, IsCa, KeyPair, SanType};
use serde_json::json;
use tokio::task::JoinSet;
use zeroize::Zeroizing;

use super::document::Parsed;
use super::error::CliError;
use super::output::{Printer, write_private};
use super::serve::stop_on_signal;
use crate::broker::{Broker, Caller, KeyImport, Phase, Wanted};
use crate::clock::SystemClock;
use crate::config::Config;
use crate::domain::principal::Principal;
use crate::domain::role::{Role, RoleSet};
use crate::id::{AccountName, AppGroupName, ClientId, KeyId};
use crate::secret::P8Text;
use crate::server::Server;
use crate::telemetry;

const OPERATOR: &str = "spiffe://acme.internal/ns/ops/sa/admin";
const CLIENT: &str = "spiffe://acme.internal/ns/ci/sa/release-bot";
const STRANGER: &str = "spiffe://acme.internal/ns/lab/sa/stranger";

/// The sample document; it stands in the folder, too, to be changed and applied.
const DOCUMENT: &str = "\
accounts:
  - { name: acme, issuer_id: 57246542-96fe-1a63-e053-0824d011072a }
app_groups:
  - { name: games, account: acme, apps: [\"1234567890\", \"2345678901\"] }
policies:
  - name: games-release-ci
    clients: [{ spiffe: \"spiffe://acme.internal/ns/ci/sa/release-*\" }]
    app_group: games
    roles: [APP_MANAGER]
    max_ttl: 10m
    default_ttl: 5m
";

/// Run a playground.
#[derive(Debug, Args)]
pub(super) struct Dev {
    /// The folder; made where it is missing.
    #[arg(long, value_name = "DIR")]
    dir: PathBuf,
    /// Where to listen for gRPC; port 0 picks a free one.
    #[arg(long, default_value = "127.0.0.1:0")]
    grpc: SocketAddr,
    /// Where to listen for operations.
    #[arg(long, default_value = "127.0.0.1:0")]
    ops: SocketAddr,
    /// The database, as sqlite://PATH or postgres://…; an SQLite file in the folder where absent.
    #[arg(long, value_name = "URL", env = "P8BROKER_STORE_URL", hide_env_values = true)]
    store_url: Option<String>,
    /// How many replicas to run, on PostgreSQL; all but the first listen on free ports.
    #[arg(long, default_value_t = 1, value_parser = clap::value_parser!(u16).range(1..=16))]
    replicas: u16,
}

impl Dev {
    pub(super) async fn run(self, print: &Printer) -> Result<(), CliError> {
        std::fs::create_dir_all(&self.dir)?;
        let dir = self.dir.canonicalize()?;
        // A second start in the same folder must not disturb the one that runs.
        let lock = std::fs::File::create(dir.join("dev.lock"))?;
        if lock.try_lock().is_err() {
            return Err(CliError::failed(format!("a playground runs in {} already", dir.display())));
        }
        // A file of an earlier start would tell a script that this one is ready.
        if let Err(error) = std::fs::remove_file(dir.join("ready.json"))
            && error.kind() != std::io::ErrorKind::NotFound
        {
            return Err(error.into());
        }
        certificates(&dir)?;
        unseal_key(&dir)?;
        if !dir.join("policies.yaml").exists() {
            write_private(&dir.join("policies.yaml"), DOCUMENT.as_bytes())?;
        }
        let store = self.store_url.clone().unwrap_or_else(|| format!("sqlite://{}", dir.join("vault.db").display()));
        if self.replicas > 1 && store.starts_with("sqlite:") {
            return Err(CliError::usage(
                "--replicas: one database on SQLite has one broker; give --store-url".to_owned(),
            ));
        }
        let mut servers = Vec::new();
        for nth in 1..=self.replicas {
            let name = if nth == 1 { "p8broker.toml".to_owned() } else { format!("p8broker-{nth}.toml") };
            let any = |address: SocketAddr| if nth == 1 { address } else { SocketAddr::new(address.ip(), 0) };
            let text = configuration(&dir, any(self.grpc), any(self.ops), &store, nth);
            write_private(&dir.join(&name), text.as_bytes())?;
            let config = Config::load(&dir.join(&name))?;
            if let Some(file) = config.anchor.file.as_ref().filter(|file| nth > 1 && !file.exists()) {
                // A replica that joins starts its anchor from the history that is there.
                write_private(file, b"")?;
            }
            if nth == 1 {
                telemetry::start(&config.log);
            }
            let server = Server::bind(config, Arc::new(SystemClock)).await?;
            if matches!(&*server.broker().phase(), Phase::NotInitialised) {
                fill(server.broker(), &dir).await?;
            }
            servers.push(server);
        }
        let addresses = |of: fn(&Server) -> std::io::Result<SocketAddr>| {
            servers.iter().map(of).collect::<std::io::Result<Vec<SocketAddr>>>()
        };
        let (grpc, ops) = (addresses(Server::grpc_addr)?, addresses(Server::ops_addr)?);
        let (Some(first), Some(first_ops)) = (grpc.first().copied(), ops.first().copied()) else {
            return Err(CliError::failed("no replica was started".to_owned()));
        };
        for name in ["operator", "client", "stranger"] {
            write_private(&dir.join(format!("{name}.env")), environment(&dir, name, first).as_bytes())?;
        }
        let path = |name: &str| dir.join(name).display().to_string();
        let texts = |all: &[SocketAddr]| all.iter().map(ToString::to_string).collect::<Vec<_>>();
        let ready = json!({
            "grpc_addr": first.to_string(),
            "ops_addr": first_ops.to_string(),
            "grpc_addrs": texts(&grpc),
            "ops_addrs": texts(&ops),
            "ca": path("ca.pem"),
            "operator_env": path("operator.env"),
            "client_env": path("client.env"),
            "stranger_env": path("stranger.env"),
        });
        let stop = stop_on_signal()?;
        // Ports are bound already: whoever reads this file can connect.
        write_private(&dir.join("ready.json"), ready.to_string().as_bytes())?;
        print.answer(&ready, || introduction(&dir, &texts(&grpc).join(", "), first_ops))?;
        let mut running = JoinSet::new();
        for server in servers {
            running.spawn(server.run(stop.clone()));
        }
        while let Some(ended) = running.join_next().await {
            // One that ends takes the others with it.
            stop.cancel();
            ended.map_err(|error| CliError::failed(error.to_string()))??;
        }
        Ok(())
    }
}

fn introduction(dir: &Path, grpc: &str, ops: SocketAddr) -> String {
    let dir = dir.display();
    format!(
        "the playground runs: gRPC on {grpc}, operations on http://{ops}, everything in {dir}\n\n\
         in another terminal, as a client:\n\
         \x20   . {dir}/client.env\n\
         \x20   p8broker token issue --app-group games --role APP_MANAGER --output json\n\
         as somebody without a policy:\n\
         \x20   ( . {dir}/stranger.env; p8broker token issue --app-group games --role APP_MANAGER )\n\
         as an operator:\n\
         \x20   . {dir}/operator.env\n\
         \x20   p8broker key list\n\
         \x20   p8broker apply -f {dir}/policies.yaml --plan\n\
         \x20   p8broker revoke client {CLIENT} --reason \"trying it out\"\n\
         \x20   p8broker audit list\n\n\
         Ctrl-C stops it; the same command goes on with the same vault."
    )
}

/// Initialises the vault, applies the sample document and imports a sample key.
async fn fill(broker: &Arc<Broker>, dir: &Path) -> Result<(), CliError> {
    let failed = |error: crate::broker::BrokerError| CliError::from(tonic::Status::from(error));
    let operator = ClientId::parse(OPERATOR).map_err(|error| CliError::failed(error.to_string()))?;
    broker.init(None, None, std::slice::from_ref(&operator)).await.map_err(failed)?;
    let caller = Caller { principal: Principal::of_certificate(operator), identity: "p8broker dev".to_owned() };
    let desired = Parsed::read_all(&[("sample.yaml".into(), DOCUMENT.to_owned())])?.document.check();
    let desired =
        desired.map_err(|violations| CliError::failed(format!("the sample document is wrong: {violations:?}")))?;
    broker.apply(&caller, Wanted::new(desired)).await.map_err(failed)?;
    let (id, p8) = sample_key()?;
    write_private(&dir.join(format!("AuthKey_{id}.p8")), &p8)?;
    let wrong = |error: crate::id::IdError| CliError::failed(error.to_string());
    let import = KeyImport {
        id,
        account: AccountName::parse("acme").map_err(wrong)?,
        individual: None,
        roles: [Role::AppManager].into_iter().collect::<RoleSet>(),
        app_groups: [AppGroupName::parse("games").map_err(wrong)?].into_iter().collect(),
        p8: P8Text::new(p8.to_vec()),
    };
    broker.import_key(&caller, import).await.map_err(failed)?;
    Ok(())
}

/// A key in the form in which Apple ships them, with an id of Apple's form.
fn sample_key() -> Result<(KeyId, Zeroizing<Vec<u8>>), CliError> {
    const LETTERS: &[u8; 32] = b"ABCDEFGHJKLMNPQRSTUVWXYZ23456789";
    let failed = |_| CliError::failed("no randomness".to_owned());
    let mut bytes = [0; 10];
    rand::fill(&mut bytes).map_err(failed)?;
    let id: String =
        bytes.iter().filter_map(|byte| LETTERS.get(usize::from(byte % 32))).map(|b| char::from(*b)).collect();
    let id = KeyId::parse(&id).map_err(|error| CliError::failed(error.to_string()))?;
    let pair = EcdsaKeyPair::generate(&ECDSA_P256_SHA256_FIXED_SIGNING).map_err(failed)?;
    let der = pair.to_pkcs8v1().map_err(failed)?;
    let body = Zeroizing::new(BASE64.encode(der.as_ref()));
    let mut pem = Zeroizing::new(Vec::with_capacity(300));
    pem.extend_from_slice(b"-----BEGIN PRIVATE KEY-----\n");
    for line in body.as_bytes().chunks(64) {
        pem.extend_from_slice(line);
        pem.push(b'\n');
    }
    pem.extend_from_slice(b"-----END PRIVATE KEY-----\n");
    Ok((id, pem))
}

/// A CA, a server certificate for loopback, and three clients; made once.
fn certificates(dir: &Path) -> Result<(), CliError> {
    if dir.join("stranger.pem").exists() {
        return Ok(());
    }
    let failed = |error: rcgen::Error| CliError::failed(format!("making certificates: {error}"));
    let mut ca = CertificateParams::new(Vec::new()).map_err(failed)?;
    ca.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
    ca.distinguished_name.push(rcgen::DnType::CommonName, "p8broker dev CA");
    let ca = CertifiedIssuer::self_signed(ca, KeyPair::generate().map_err(failed)?).map_err(failed)?;
    write_private(&dir.join("ca.pem"), ca.pem().as_bytes())?;
    let issue = |name: &str, names: Vec<SanType>, usage: ExtendedKeyUsagePurpose| -> Result<(), CliError> {
        let mut params = CertificateParams::new(Vec::new()).map_err(failed)?;
        params.subject_alt_names = names;
        params.extended_key_usages = vec![usage];
        let key = KeyPair::generate().map_err(failed)?;
        let certificate = params.signed_by(&key, &ca).map_err(failed)?;
        write_private(&dir.join(format!("{name}-key.pem")), Zeroizing::new(key.serialize_pem()).as_bytes())?;
        write_private(&dir.join(format!("{name}.pem")), certificate.pem().as_bytes())
    };
    let dns = |name: &str| name.try_into().map(SanType::DnsName).map_err(failed);
    let server = vec![
        dns("localhost")?,
        SanType::IpAddress([127, 0, 0, 1].into()),
        SanType::IpAddress(std::net::Ipv6Addr::LOCALHOST.into()),
    ];
    issue("server", server, ExtendedKeyUsagePurpose::ServerAuth)?;
    for (name, id) in [("operator", OPERATOR), ("client", CLIENT), ("stranger", STRANGER)] {
        let uri = id.try_into().map(SanType::URI).map_err(failed)?;
        issue(name, vec![uri], ExtendedKeyUsagePurpose::ClientAuth)?;
    }
    Ok(())
}

fn unseal_key(dir: &Path) -> Result<(), CliError> {
    let file = dir.join("unseal.key");
    if file.exists() {
        return Ok(());
    }
    let mut key = Zeroizing::new([0; 32]);
    rand::fill(key.as_mut_slice()).map_err(|_| CliError::failed("no randomness".to_owned()))?;
    write_private(&file, Zeroizing::new(HEXLOWER.encode(key.as_slice())).as_bytes())
}

fn configuration(dir: &Path, grpc: SocketAddr, ops: SocketAddr, store: &str, nth: u16) -> String {
    let path = |name: &str| toml_text(&dir.join(name).display().to_string());
    format!(
        "# A playground: `p8broker serve --config` takes this file, too.\n\
         [listen]\ngrpc = \"{grpc}\"\nops = \"{ops}\"\n\n\
         [tls]\ncertificate = {}\nkey = {}\nreload_s = 1\n\n\
         [[tls.client_cas]]\nfile = {}\ntrust_domains = [\"acme.internal\"]\n\n\
         [store]\nurl = {}\n\n[unseal]\nkey_file = {}\n\n[anchor]\nfile = {}\n\n[replica]\nname = \"dev-{nth}\"\n\n\
         [bootstrap]\noperators = [\"{OPERATOR}\"]\n\n[log]\nformat = \"human\"\nlevel = \"warn\"\n",
        path("server.pem"),
        path("server-key.pem"),
        path("ca.pem"),
        toml_text(store),
        path("unseal.key"),
        path(&if nth == 1 { "anchor.json".to_owned() } else { format!("anchor-{nth}.json") }),
    )
}

/// A TOML basic string.
fn toml_text(text: &str) -> String {
    format!("\"{}\"", text.replace('\\', "\\\\").replace('"', "\\\""))
}

fn environment(dir: &Path, name: &str, grpc: SocketAddr) -> String {
    let path = |name: String| dir.join(name).display().to_string().replace('\'', "'\\''");
    format!(
        "export P8BROKER_ADDR='{grpc}'\nexport P8BROKER_CACERT='{}'\nexport P8BROKER_CERT='{}'\nexport P8BROKER_KEY='{}'\n",
        path("ca.pem".to_owned()),
        path(format!("{name}.pem")),
        path(format!("{name}-key.pem")),
    )
}
