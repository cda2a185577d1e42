//! The configuration: a TOML file, and `P8BROKER_*` environment variables over it.
//!
//! `P8BROKER_LISTEN__GRPC=0.0.0.0:8443` sets `listen.grpc`: two underscores go one level down. Unknown keys are refused
//! with the nearest known one. Everything that is wrong is said at once where it can be. `P8BROKER_STORE_URL` is short for
//! `P8BROKER_STORE__URL`.
//!
//! Over 400 lines, as a setting, its default and what may be wrong with it are read together.

#[cfg(test)]
mod reference;
mod store;
mod traces;

use std::net::SocketAddr;
use std::num::NonZeroU32;
use std::path::{Path, PathBuf};

use figment::Figment;
use figment::providers::{Env, Format, Toml};
use serde::Deserialize;

use crate::broker::KeySource;
use crate::grpc::layer::Limits;
use crate::id::{ClientId, is_dns_name, is_trust_domain};
use crate::identity::oidc::OidcConfig;
use crate::tls::{ClientCaFile, Limits as ConnectionLimits, TlsFiles};
pub use store::{StoreAt, StoreConfig, StoreUrl};
pub use traces::TracesConfig;

/// The prefix of environment variables. Only those with two underscores are settings: the command line has some of its own,
/// and Kubernetes sets `P8BROKER_PORT` and its like for a Service of this name.
const PREFIX: &str = "P8BROKER_";

/// Why a configuration can't be used: every reason, one a line.
#[derive(Debug, thiserror::Error)]
#[error("{}", .0.join("\n"))]
pub struct ConfigError(pub Vec<String>);

/// The whole configuration.
#[derive(Debug, Clone, Deserialize)]
#[cfg_attr(test, derive(serde::Serialize, schemars::JsonSchema))]
#[serde(deny_unknown_fields)]
pub struct Config {
    /// Where to listen.
    pub listen: Listen,
    /// Certificates: the server's own, and who may vouch for clients.
    pub tls: Tls,
    /// Where the vault is.
    pub store: StoreConfig,
    /// Where the unseal key comes from.
    #[serde(default)]
    pub unseal: Unseal,
    /// Who may initialise and unseal before there is a policy.
    #[serde(default)]
    pub bootstrap: Bootstrap,
    /// The anchor, which notices a database that went back in time.
    #[serde(default)]
    pub anchor: AnchorConfig,
    /// Logs.
    #[serde(default)]
    pub log: Log,
    /// What one caller may send.
    #[serde(default)]
    pub limits: LimitsConfig,
    /// How it stops.
    #[serde(default)]
    pub drain: Drain,
    /// What this replica is called.
    #[serde(default)]
    pub replica: ReplicaConfig,
    /// The trial of the fleet's own revocation.
    #[serde(default)]
    pub canary: CanaryConfig,
    /// How the keys of trusted issuers are fetched.
    #[serde(default)]
    pub oidc: OidcConfig,
    /// Where traces go.
    #[serde(default)]
    pub traces: TracesConfig,
}

/// `[canary]`
#[derive(Debug, Clone, Copy, Deserialize)]
#[cfg_attr(test, derive(serde::Serialize, schemars::JsonSchema))]
#[serde(deny_unknown_fields, default)]
pub struct CanaryConfig {
    /// How often the fleet tries it, in seconds, at least 60; 0 for never.
    pub every_s: u32,
}

impl Default for CanaryConfig {
    fn default() -> Self {
        Self { every_s: 300 }
    }
}

/// `[listen]`
#[derive(Debug, Clone, Deserialize)]
#[cfg_attr(test, derive(serde::Serialize, schemars::JsonSchema))]
#[serde(deny_unknown_fields)]
pub struct Listen {
    /// gRPC with mutual TLS.
    pub grpc: SocketAddr,
    /// `/metrics`, `/livez`, `/readyz`: plain HTTP, without secrets.
    pub ops: SocketAddr,
}

/// `[tls]`
#[derive(Debug, Clone, Deserialize)]
#[cfg_attr(test, derive(serde::Serialize, schemars::JsonSchema))]
#[serde(deny_unknown_fields)]
pub struct Tls {
    /// The server's certificate chain, PEM.
    pub certificate: PathBuf,
    /// Its private key, PEM.
    pub key: PathBuf,
    /// `[[tls.client_cas]]`
    pub client_cas: Vec<ClientCas>,
    /// Certificate revocation lists, PEM.
    #[serde(default)]
    pub crls: Vec<PathBuf>,
    /// How often the files are compared, in seconds.
    #[serde(default = "five")]
    pub reload_s: u64,
    /// Most connections at a time.
    #[serde(default = "ten_thousand")]
    pub max_connections: usize,
}

/// One file of client CAs.
#[derive(Debug, Clone, Deserialize)]
#[cfg_attr(test, derive(serde::Serialize, schemars::JsonSchema))]
#[serde(deny_unknown_fields)]
pub struct ClientCas {
    /// The CAs, PEM.
    pub file: PathBuf,
    /// Trust domains of SPIFFE IDs that they may vouch for.
    #[serde(default)]
    pub trust_domains: Vec<String>,
    /// DNS suffixes that they may vouch for.
    #[serde(default)]
    pub dns_suffixes: Vec<String>,
}

/// `[unseal]`: nothing for shares, a file, or an environment variable.
#[derive(Debug, Clone, Default, Deserialize)]
#[cfg_attr(test, derive(serde::Serialize, schemars::JsonSchema))]
#[serde(deny_unknown_fields)]
pub struct Unseal {
    /// A file with the unseal key.
    pub key_file: Option<PathBuf>,
    /// A file with the unseal key before it, while a rekey is on its way.
    pub previous_key_file: Option<PathBuf>,
    /// An environment variable with the unseal key. A file is better: an environment stays in memory.
    pub key_env: Option<String>,
    /// An environment variable with the unseal key before it, while a rekey is on its way.
    pub previous_key_env: Option<String>,
}

/// `[bootstrap]`
#[derive(Debug, Clone, Default, Deserialize)]
#[cfg_attr(test, derive(serde::Serialize, schemars::JsonSchema))]
#[serde(deny_unknown_fields)]
pub struct Bootstrap {
    /// Exact identities: `spiffe://…` or `dns:…`.
    #[serde(default)]
    pub operators: Vec<String>,
}

/// `[anchor]`
#[derive(Debug, Clone, Default, Deserialize)]
#[cfg_attr(test, derive(serde::Serialize, schemars::JsonSchema))]
#[serde(deny_unknown_fields)]
pub struct AnchorConfig {
    /// A file on another volume than the database.
    pub file: Option<PathBuf>,
}

/// `[log]`
#[derive(Debug, Clone, Deserialize)]
#[cfg_attr(test, derive(serde::Serialize, schemars::JsonSchema))]
#[serde(deny_unknown_fields)]
pub struct Log {
    /// `json` or `human`.
    #[serde(default)]
    pub format: LogFormat,
    /// `error`, `warn`, `info` or `debug`.
    #[serde(default)]
    pub level: LogLevel,
}

impl Default for Log {
    fn default() -> Self {
        Self { format: LogFormat::Json, level: LogLevel::Info }
    }
}

/// How logs look.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Deserialize)]
#[cfg_attr(test, derive(serde::Serialize, schemars::JsonSchema))]
#[serde(rename_all = "lowercase")]
pub enum LogFormat {
    /// One JSON object a line.
    #[default]
    Json,
    /// For a person at a terminal.
    Human,
}

/// How much is logged.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Deserialize)]
#[cfg_attr(test, derive(serde::Serialize, schemars::JsonSchema))]
#[serde(rename_all = "lowercase")]
pub enum LogLevel {
    /// What needs somebody.
    Error,
    /// What may need somebody.
    Warn,
    /// What happened.
    #[default]
    Info,
    /// Why.
    Debug,
}

/// `[limits]`
#[derive(Debug, Clone, Copy, Deserialize)]
#[cfg_attr(test, derive(serde::Serialize, schemars::JsonSchema))]
#[serde(deny_unknown_fields, default)]
pub struct LimitsConfig {
    /// IssueToken, for one caller.
    pub tokens_per_second: NonZeroU32,
    /// Everything but IssueToken, for one caller.
    pub admin_per_second: NonZeroU32,
    /// All requests over one connection, before anybody looks at who sends them.
    pub requests_per_connection_per_second: NonZeroU32,
    /// Tokens signed, for all callers together.
    pub signatures_per_second: NonZeroU32,
    /// After how many seconds, give or take a tenth, a connection is asked to go, so that clients spread over the replicas
    /// that there are now; 0 for never. Requests on their way finish.
    pub connection_age_s: u64,
}

impl Default for LimitsConfig {
    fn default() -> Self {
        let number = |n| NonZeroU32::new(n).unwrap_or(NonZeroU32::MIN);
        Self {
            tokens_per_second: number(1000),
            admin_per_second: number(100),
            requests_per_connection_per_second: number(5000),
            signatures_per_second: number(20_000),
            connection_age_s: 1800,
        }
    }
}

/// `[replica]`
#[derive(Debug, Clone, Default, Deserialize)]
#[cfg_attr(test, derive(serde::Serialize, schemars::JsonSchema))]
#[serde(deny_unknown_fields)]
pub struct ReplicaConfig {
    /// What it is called in `operator status` and in the audit; the machine's name and the port where absent.
    pub name: Option<String>,
}

/// `[drain]`
#[derive(Debug, Clone, Copy, Deserialize)]
#[cfg_attr(test, derive(serde::Serialize, schemars::JsonSchema))]
#[serde(deny_unknown_fields)]
pub struct Drain {
    /// How long requests on their way may take after SIGTERM, in seconds.
    #[serde(default = "thirty")]
    pub timeout_s: u64,
}

impl Default for Drain {
    fn default() -> Self {
        Self { timeout_s: thirty() }
    }
}

fn five() -> u64 {
    5
}

fn thirty() -> u64 {
    30
}

fn ten_thousand() -> usize {
    10_000
}

impl Config {
    /// Reads a file and the environment, and checks all of it.
    ///
    /// # Errors
    /// With everything that is wrong.
    pub fn load(path: &Path) -> Result<Self, ConfigError> {
        if !path.is_file() {
            return Err(ConfigError(vec![format!("there is no configuration file {}", path.display())]));
        }
        let url = Env::raw().only(&["P8BROKER_STORE_URL"]).map(|_| "store.url".into()).split(".");
        let figment = Figment::from(Toml::file_exact(path)).merge(url).merge(environment());
        let config: Self = figment.extract().map_err(|errors| ConfigError(errors.into_iter().map(say).collect()))?;
        let wrong = config.wrong();
        if wrong.is_empty() { Ok(config) } else { Err(ConfigError(wrong)) }
    }

    fn wrong(&self) -> Vec<String> {
        let mut out = Vec::new();
        if self.tls.client_cas.is_empty() {
            out.push("tls.client_cas: name at least one file, or no client could ever connect".to_owned());
        }
        for (at, ca) in self.tls.client_cas.iter().enumerate() {
            if ca.trust_domains.is_empty() && ca.dns_suffixes.is_empty() {
                out.push(format!(
                    "tls.client_cas[{at}]: name the trust_domains or dns_suffixes that {} may vouch for",
                    ca.file.display()
                ));
            }
            out.extend(ca.trust_domains.iter().filter(|domain| !is_trust_domain(domain)).map(|domain| {
                format!("tls.client_cas[{at}].trust_domains: `{domain}` is not a trust domain, such as acme.internal")
            }));
            out.extend(ca.dns_suffixes.iter().filter(|suffix| !is_dns_name(suffix)).map(|suffix| {
                format!(
                    "tls.client_cas[{at}].dns_suffixes: `{suffix}` is not a domain in lower case, such as acme.internal"
                )
            }));
        }
        out.extend(self.store.wrong());
        out.extend(self.oidc.wrong());
        out.extend(self.traces.wrong());
        if self.replica.name.as_deref().is_some_and(|name| !is_replica_name(name)) {
            out.push("replica.name: 1 to 100 printable ASCII characters without spaces".to_owned());
        }
        if self.unseal.key_file.is_some() && self.unseal.key_env.is_some() {
            out.push("unseal: key_file and key_env exclude each other".to_owned());
        }
        if self.unseal.previous_key_file.is_some() && self.unseal.key_file.is_none() {
            out.push("unseal.previous_key_file: needs key_file".to_owned());
        }
        if self.unseal.previous_key_env.is_some() && self.unseal.key_env.is_none() {
            out.push("unseal.previous_key_env: needs key_env".to_owned());
        }
        out.extend(self.bootstrap.operators.iter().enumerate().filter_map(|(at, text)| {
            let wrong = match ClientId::parse(text) {
                Err(error) => error.to_string(),
                Ok(client) if client.issuer().is_some() => {
                    format!(
                        "`{client}` comes by token, and a sealed broker trusts no issuer; name who comes by certificate"
                    )
                }
                Ok(_) => return None,
            };
            Some(format!("bootstrap.operators[{at}]: {wrong}"))
        }));
        if (1..60).contains(&self.canary.every_s) {
            out.push("canary.every_s: at least 60 seconds, or 0 for never".to_owned());
        }
        if self.tls.reload_s == 0 || self.tls.max_connections == 0 {
            out.push("tls: reload_s and max_connections must be at least 1".to_owned());
        }
        if self.listen.grpc == self.listen.ops && self.listen.grpc.port() != 0 {
            out.push("listen: grpc and ops must differ".to_owned());
        }
        out
    }

    /// Where the unseal key comes from.
    pub fn key_source(&self) -> KeySource {
        match (&self.unseal.key_file, &self.unseal.key_env) {
            (Some(current), _) => {
                KeySource::Files { current: current.clone(), previous: self.unseal.previous_key_file.clone() }
            }
            (None, Some(current)) => {
                KeySource::Environment { current: current.clone(), previous: self.unseal.previous_key_env.clone() }
            }
            (None, None) => KeySource::Shares,
        }
    }

    /// Who may initialise and unseal.
    pub fn bootstrap(&self) -> Vec<ClientId> {
        self.bootstrap.operators.iter().filter_map(|text| ClientId::parse(text).ok()).collect()
    }

    /// What this replica is called.
    pub fn replica(&self) -> String {
        self.replica.name.clone().unwrap_or_else(|| {
            let machine = rustix::system::uname().nodename().to_string_lossy().into_owned();
            match self.listen.grpc.port() {
                0 => format!("{machine}:{}", std::process::id()),
                port => format!("{machine}:{port}"),
            }
        })
    }

    /// The files of TLS.
    pub fn tls_files(&self) -> TlsFiles {
        let ca = |ca: &ClientCas| ClientCaFile {
            file: ca.file.clone(),
            trust_domains: ca.trust_domains.clone(),
            dns_suffixes: ca.dns_suffixes.clone(),
        };
        TlsFiles {
            certificate: self.tls.certificate.clone(),
            key: self.tls.key.clone(),
            client_cas: self.tls.client_cas.iter().map(ca).collect(),
            crls: self.tls.crls.clone(),
        }
    }

    /// What is taken from peers.
    pub fn connection_limits(&self) -> ConnectionLimits {
        ConnectionLimits {
            connections: self.tls.max_connections,
            requests_per_second: self.limits.requests_per_connection_per_second,
        }
    }

    /// What one caller may send.
    pub fn limits(&self) -> Limits {
        Limits { tokens_per_second: self.limits.tokens_per_second, admin_per_second: self.limits.admin_per_second }
    }
}

fn is_replica_name(name: &str) -> bool {
    (1..=100).contains(&name.len()) && name.bytes().all(|b| b.is_ascii_graphic())
}

fn environment() -> Env {
    Env::prefixed(PREFIX).filter(|key| key.as_str().contains("__")).split("__")
}

/// One error of figment, with a suggestion where a key is unknown.
fn say(error: figment::Error) -> String {
    let source = error.metadata.as_ref().and_then(|metadata| metadata.source.as_ref()).map(ToString::to_string);
    let place = source.map(|source| format!(" (in {source})")).unwrap_or_default();
    let path = error.path.join(".");
    match &error.kind {
        figment::error::Kind::UnknownField(field, known) => {
            let nearest = known.iter().min_by_key(|name| strsim::damerau_levenshtein(name, field));
            let nearest = nearest.filter(|name| strsim::normalized_damerau_levenshtein(name, field) > 0.4);
            let hint = match nearest {
                Some(name) => format!("did you mean `{name}`?"),
                None => format!("known are: {}", known.join(", ")),
            };
            let path = if path.is_empty() { field.clone() } else { path };
            format!("{path}: there is no setting `{field}`; {hint}{place}")
        }
        kind if path.is_empty() => format!("{kind}{place}"),
        kind => format!("{path}: {kind}{place}"),
    }
}
