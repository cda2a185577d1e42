//! `[store]`: where the vault is.

use std::fmt;
use std::path::PathBuf;

use serde::Deserialize;
use zeroize::Zeroizing;

use crate::store::postgres::{Settings, Source};

/// `[store]`
#[derive(Debug, Clone, Default, Deserialize)]
#[cfg_attr(test, derive(serde::Serialize, schemars::JsonSchema))]
#[serde(deny_unknown_fields)]
pub struct StoreConfig {
    /// `sqlite://PATH` or `postgres://user@host:port/database`, with `?options` as libpq has them.
    pub url: Option<StoreUrl>,
    /// The SQLite file: short for a URL.
    pub sqlite: Option<PathBuf>,
    /// PostgreSQL: a file with the password, where it is not in the URL.
    pub password_file: Option<PathBuf>,
    /// PostgreSQL: an environment variable with the password.
    pub password_env: Option<String>,
    /// PostgreSQL: the CAs of the server's certificate, PEM; the web's where absent.
    pub ca_file: Option<PathBuf>,
    /// PostgreSQL: a file with a client certificate, PEM.
    pub client_certificate_file: Option<PathBuf>,
    /// PostgreSQL: an environment variable with the client certificate.
    pub client_certificate_env: Option<String>,
    /// PostgreSQL: a file with the private key of the client certificate, PEM.
    pub client_key_file: Option<PathBuf>,
    /// PostgreSQL: an environment variable with that private key.
    pub client_key_env: Option<String>,
    /// Whether to bring the schema up to date at the start, as where absent; `false`: only `p8broker migrate` does.
    pub migrate: Option<bool>,
}

/// A URL that may hold a password, and so is never shown.
#[derive(Clone, Deserialize)]
#[cfg_attr(test, derive(serde::Serialize, schemars::JsonSchema))]
#[serde(transparent)]
pub struct StoreUrl(pub String);

impl fmt::Debug for StoreUrl {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("StoreUrl")
    }
}

/// Where the vault is.
#[derive(Debug, Clone)]
pub enum StoreAt {
    /// In a file.
    Sqlite(PathBuf),
    /// In a database.
    Postgres(Settings),
}

impl StoreConfig {
    /// A vault in an SQLite file.
    pub fn sqlite(file: PathBuf) -> Self {
        Self { sqlite: Some(file), ..Self::default() }
    }

    /// A vault at a URL.
    pub fn url(url: &str) -> Self {
        Self { url: Some(StoreUrl(url.to_owned())), ..Self::default() }
    }

    /// Where the vault is.
    ///
    /// # Errors
    /// With what is wrong with these settings.
    pub fn at(&self) -> Result<StoreAt, String> {
        let url = self.url.as_ref().map(|url| url.0.as_str());
        match (url, &self.sqlite) {
            (Some(_), Some(_)) => Err("store: url and sqlite exclude each other".to_owned()),
            (None, None) => Err("store.url: name a database, such as sqlite:///var/lib/p8broker/vault.db".to_owned()),
            (None, Some(file)) => Ok(StoreAt::Sqlite(file.clone())),
            (Some(url), None) => match url.split_once("://") {
                Some(("sqlite", file)) if !file.is_empty() => Ok(StoreAt::Sqlite(PathBuf::from(file))),
                Some(("postgres" | "postgresql", _)) => self.postgres(url).map(StoreAt::Postgres),
                _ => Err("store.url: must start with sqlite:// and a path, or postgres://".to_owned()),
            },
        }
    }

    fn postgres(&self, url: &str) -> Result<Settings, String> {
        let settings = Settings {
            url: Zeroizing::new(url.to_owned()),
            password: source("password", self.password_file.as_ref(), self.password_env.as_ref())?,
            ca: self.ca_file.clone(),
            certificate: source(
                "client_certificate",
                self.client_certificate_file.as_ref(),
                self.client_certificate_env.as_ref(),
            )?,
            key: source("client_key", self.client_key_file.as_ref(), self.client_key_env.as_ref())?,
            migrate: self.migrate.unwrap_or(true),
        };
        if settings.certificate.is_some() != settings.key.is_some() {
            return Err("store: client_certificate and client_key go together".to_owned());
        }
        match settings.wrong() {
            None => Ok(settings),
            Some(wrong) => Err(wrong),
        }
    }

    pub(super) fn wrong(&self) -> Option<String> {
        self.at().err()
    }
}

fn source(name: &str, file: Option<&PathBuf>, variable: Option<&String>) -> Result<Option<Source>, String> {
    match (file, variable) {
        (Some(_), Some(_)) => Err(format!("store: {name}_file and {name}_env exclude each other")),
        (Some(file), None) => Ok(Some(Source::File(file.clone()))),
        (None, Some(variable)) => Ok(Some(Source::Environment(variable.clone()))),
        (None, None) => Ok(None),
    }
}
