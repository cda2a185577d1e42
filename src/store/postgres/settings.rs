//! Where a PostgreSQL database is, and how it is reached: TLS with the server's name checked, unless it is on this machine.

use std::fmt;
use std::path::PathBuf;
use std::str::FromStr;

use sqlx::ConnectOptions;
use sqlx::postgres::{PgConnectOptions, PgSslMode};
use zeroize::Zeroizing;

use crate::store::StoreError;

/// Where a secret is read from, anew for every connection, so that it can be replaced while serving.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Source {
    /// A file.
    File(PathBuf),
    /// An environment variable.
    Environment(String),
}

/// Where the database is.
#[derive(Clone)]
pub struct Settings {
    /// `postgres://user@host:port/database?…`; it may hold a password.
    pub url: Zeroizing<String>,
    /// The password, where it is not in the URL.
    pub password: Option<Source>,
    /// The CA of the server's certificate, PEM; the web's CAs where absent.
    pub ca: Option<PathBuf>,
    /// The client's certificate chain, PEM.
    pub certificate: Option<Source>,
    /// Its private key, PEM.
    pub key: Option<Source>,
    /// Whether to bring the schema up to date at the start.
    pub migrate: bool,
}

// INVARIANT (P1): a URL may hold a password, so that settings show where they lead and nothing else.
impl fmt::Debug for Settings {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Settings").field("migrate", &self.migrate).finish_non_exhaustive()
    }
}

impl Source {
    fn read(&self) -> Result<Zeroizing<Vec<u8>>, StoreError> {
        let content = match self {
            Self::File(path) => {
                std::fs::read(path).map_err(|error| StoreError::Unfit(format!("{}: {error}", path.display())))
            }
            Self::Environment(name) => std::env::var_os(name)
                .map(std::ffi::OsString::into_encoded_bytes)
                .ok_or_else(|| StoreError::Unfit(format!("the environment variable {name} is not set"))),
        };
        content.map(Zeroizing::new)
    }
}

impl Settings {
    /// Everything that is wrong with the URL; nothing is read or connected.
    pub fn wrong(&self) -> Option<String> {
        self.parsed().err().map(|error| error.to_string())
    }

    /// What sqlx connects with; secrets are read now.
    ///
    /// # Errors
    /// Where a file or variable can't be read, or TLS is weaker than it must be.
    pub(super) fn options(&self) -> Result<PgConnectOptions, StoreError> {
        let mut options = self.parsed()?.application_name("p8broker").disable_statement_logging();
        if let Some(ca) = &self.ca {
            options = options.ssl_root_cert(ca);
        }
        if let Some(password) = &self.password {
            let content = password.read()?;
            let text = std::str::from_utf8(&content)
                .map_err(|_| StoreError::Unfit("the database password is no text".to_owned()))?;
            options = options.password(text.trim_end_matches(['\r', '\n']));
        }
        if let Some(certificate) = &self.certificate {
            options = options.ssl_client_cert_from_pem(certificate.read()?.as_slice());
        }
        if let Some(key) = &self.key {
            options = options.ssl_client_key_from_pem(key.read()?.as_slice());
        }
        Ok(options)
    }

    fn parsed(&self) -> Result<PgConnectOptions, StoreError> {
        let malformed =
            || StoreError::Unfit("store.url is not postgres://user@host:port/database, with ?options".to_owned());
        if !["postgres://", "postgresql://"].iter().any(|scheme| self.url.starts_with(scheme)) {
            return Err(malformed());
        }
        let options = PgConnectOptions::from_str(&self.url).map_err(|_| malformed())?;
        let named = self.url.split_once('?').is_some_and(|(_, query)| query.contains("sslmode="));
        if is_here(&options) {
            return Ok(if named { options } else { options.ssl_mode(PgSslMode::Prefer) });
        }
        // Past this machine, whoever answers must prove the name: the rows that make revocation hold are there.
        match options.get_ssl_mode() {
            PgSslMode::VerifyFull => Ok(options),
            _ if !named => Ok(options.ssl_mode(PgSslMode::VerifyFull)),
            _ => Err(StoreError::Unfit(
                "store.url: past this machine the database is reached with sslmode=verify-full only; leave sslmode out, and \
                 name its CA as store.ca_file"
                    .to_owned(),
            )),
        }
    }
}

/// Whether the database is reached through a socket of this machine or its loopback addresses.
fn is_here(options: &PgConnectOptions) -> bool {
    let host = options.get_host();
    let loopback = host.parse::<std::net::IpAddr>().is_ok_and(|address| address.is_loopback());
    options.get_socket().is_some() || host.starts_with('/') || host == "localhost" || loopback
}

#[cfg(test)]
mod tests {
    use super::*;

    fn at(url: &str) -> Settings {
        let url = Zeroizing::new(url.to_owned());
        Settings { url, password: None, ca: None, certificate: None, key: None, migrate: true }
    }

    #[test]
    fn past_this_machine_the_servers_name_is_always_checked() {
        let mode = |url: &str| at(url).parsed().map(|options| options.get_ssl_mode());
        assert!(matches!(mode("postgres://b@db.acme.internal/vault"), Ok(PgSslMode::VerifyFull)));
        assert!(matches!(mode("postgres://b@db.acme.internal/vault?sslmode=verify-full"), Ok(PgSslMode::VerifyFull)));
        assert!(matches!(mode("postgres://b@127.0.0.1/vault"), Ok(PgSslMode::Prefer)));
        assert!(matches!(mode("postgres://b@localhost/vault?sslmode=disable"), Ok(PgSslMode::Disable)));
        for weak in ["disable", "allow", "prefer", "require", "verify-ca"] {
            let wrong = at(&format!("postgres://b@db.acme.internal/vault?sslmode={weak}")).wrong().unwrap();
            assert!(wrong.contains("verify-full"), "{wrong}");
        }
        assert!(at("mysql://x").wrong().is_some());
    }

    #[test]
    fn p1_settings_do_not_show_a_password() {
        assert!(!format!("{:?}", at("postgres://b:hunter2@127.0.0.1/vault")).contains("hunter2"));
    }
}
