//! `serve`, `config check`, `migrate` and `doctor`: what looks at a configuration on the machine itself.

use std::path::PathBuf;
use std::sync::Arc;

use clap::{Args, Subcommand};
use rustix::process::{DumpableBehavior, Resource, Rlimit, set_dumpable_behavior, setrlimit};
use serde_json::json;
use tokio::signal::unix::{SignalKind, signal};
use tokio_util::sync::CancellationToken;

use super::error::{CliError, Exit};
use super::output::Printer;
use crate::clock::{Clock, SystemClock};
use crate::config::{Config, ConfigError, StoreAt};
use crate::identity::oidc::Verifier;
use crate::metrics::Metrics;
use crate::server::{Server, ServerError};
use crate::store::postgres::{PostgresStore, Settings};
use crate::store::sqlite::SqliteStore;
use crate::store::{Hazard, Store, StoreError};
use crate::telemetry;
use crate::tls::Tls;

/// Run the broker.
#[derive(Debug, Args)]
pub(super) struct Serve {
    /// The configuration file.
    #[arg(long, value_name = "FILE")]
    config: PathBuf,
}

/// Look at the configuration.
#[derive(Debug, Subcommand)]
pub(super) enum ConfigCommand {
    /// Read the configuration and the TLS files it names, and say everything that is wrong.
    Check {
        /// The configuration file.
        #[arg(long, value_name = "FILE")]
        config: PathBuf,
    },
}

impl Serve {
    pub(super) async fn run(self) -> Result<(), CliError> {
        let config = Config::load(&self.config)?;
        telemetry::start(&config.log);
        let server = Server::bind(config, Arc::new(SystemClock)).await?;
        tracing::info!(grpc = %server.grpc_addr()?, ops = %server.ops_addr()?, version = env!("CARGO_PKG_VERSION"), "serving");
        Ok(server.run(stop_on_signal()?).await?)
    }
}

impl ConfigCommand {
    pub(super) fn run(self, print: &Printer) -> Result<(), CliError> {
        let Self::Check { config: path } = self;
        let config = Config::load(&path)?;
        let metrics = Metrics::new().map_err(|error| CliError::failed(error.to_string()))?;
        let mut wrong: Vec<(String, String)> = Vec::new();
        if let Err(error) = Tls::load(config.tls_files(), Arc::new(SystemClock), metrics, Arc::new(|| false)) {
            wrong.push(("tls".to_owned(), error.to_string()));
        }
        let metrics = Metrics::new().map_err(|error| CliError::failed(error.to_string()))?;
        if let Err(error) = Verifier::new(&config.oidc, Arc::new(SystemClock), metrics) {
            wrong.push(("oidc".to_owned(), error.to_string()));
        }
        let metrics = Metrics::new().map_err(|error| CliError::failed(error.to_string()))?;
        if let Err(error) = telemetry::traces(&config.traces, "", &metrics) {
            wrong.push(("traces".to_owned(), error.to_string()));
        }
        if let Ok(StoreAt::Sqlite(file)) = config.store.at()
            && let Some(folder) = file.parent().filter(|folder| !folder.as_os_str().is_empty() && !folder.is_dir())
        {
            wrong.push(("store".to_owned(), format!("the folder {} does not exist", folder.display())));
        }
        if let Some(file) = config.unseal.key_file.as_ref().filter(|file| !file.is_file()) {
            wrong.push(("unseal.key_file".to_owned(), format!("{} does not exist", file.display())));
        }
        if !wrong.is_empty() {
            return Err(CliError::invalid(format!("{} can't be used", path.display()), wrong));
        }
        print.answer(&json!({ "ok": true }), || format!("{} can be used", path.display()))
    }
}

/// Bring the schema of the database up to date, and nothing else.
#[derive(Debug, Args)]
pub(super) struct Migrate {
    /// The configuration file.
    #[arg(long, value_name = "FILE")]
    config: PathBuf,
}

impl Migrate {
    pub(super) async fn run(self, print: &Printer) -> Result<(), CliError> {
        let config = Config::load(&self.config)?;
        let newest = match config.store.at().map_err(CliError::usage)? {
            StoreAt::Postgres(settings) => PostgresStore::migrate(&settings).await.map_err(ServerError::from)?,
            StoreAt::Sqlite(file) => {
                let store = SqliteStore::open(&file).await.map_err(ServerError::from)?;
                store.close().await;
                SqliteStore::newest_migration()
            }
        };
        print.answer(&json!({ "migration": newest }), || format!("the schema is at migration {newest}"))
    }
}

/// Say where acknowledged commits could be lost, and whether the clocks agree. Ends with 1 where there is anything.
#[derive(Debug, Args)]
pub(super) struct Doctor {
    /// The configuration file.
    #[arg(long, value_name = "FILE")]
    config: PathBuf,
}

impl Doctor {
    pub(super) async fn run(self, print: &Printer) -> Result<(), CliError> {
        let config = Config::load(&self.config)?;
        let (hazards, replicas) = match config.store.at().map_err(CliError::usage)? {
            // The broker that runs holds the file; what there is to find is in how this program opens it.
            StoreAt::Sqlite(_) => (Vec::new(), Vec::new()),
            StoreAt::Postgres(settings) => {
                // Looking changes nothing: a schema that is behind is a finding, not something to mend here.
                let settings = Settings { migrate: false, ..settings };
                let metrics = Metrics::new().map_err(|error| CliError::failed(error.to_string()))?;
                let store = PostgresStore::open(settings, &metrics).await.map_err(ServerError::from)?;
                let found = store.hazards(SystemClock.now()).await.map_err(ServerError::from)?;
                let replicas = store.replicas().await.map_err(ServerError::from)?;
                store.close().await;
                (found, replicas)
            }
        };
        let of = |hazard: &Hazard| json!({ "hazard": hazard.name, "what": hazard.what });
        let object = json!({
            "ok": hazards.is_empty(),
            "hazards": hazards.iter().map(of).collect::<Vec<_>>(),
            "replicas": replicas.len(),
        });
        print.answer(&object, || {
            if hazards.is_empty() {
                return "nothing was found that could lose what was acknowledged".to_owned();
            }
            hazards.iter().map(|it| format!("{}: {}", it.name, it.what)).collect::<Vec<_>>().join("\n")
        })?;
        if hazards.is_empty() {
            return Ok(());
        }
        Err(CliError::because("HAZARDS", format!("{} things to mend", hazards.len())))
    }
}

/// INVARIANT (P1): no core file, and no other process of the same user reads this one's memory.
///
/// # Errors
/// Where the system refuses.
pub(super) fn harden() -> Result<(), CliError> {
    setrlimit(Resource::Core, Rlimit { current: Some(0), maximum: Some(0) }).map_err(std::io::Error::from)?;
    set_dumpable_behavior(DumpableBehavior::NotDumpable).map_err(std::io::Error::from)?;
    Ok(())
}

/// A token that is cancelled by SIGTERM or SIGINT.
pub(super) fn stop_on_signal() -> Result<CancellationToken, CliError> {
    let stop = CancellationToken::new();
    let (mut term, mut int) = (signal(SignalKind::terminate())?, signal(SignalKind::interrupt())?);
    let told = stop.clone();
    #[expect(clippy::disallowed_methods, reason = "lives as long as the process")]
    tokio::spawn(async move {
        tokio::select! {
            _ = term.recv() => {}
            _ = int.recv() => {}
        }
        tracing::info!("stopping");
        told.cancel();
    });
    Ok(stop)
}

impl From<ConfigError> for CliError {
    fn from(error: ConfigError) -> Self {
        let split = |line: &String| match line.split_once(": ") {
            Some((field, what)) => (field.to_owned(), what.to_owned()),
            None => (String::new(), line.clone()),
        };
        let violations = error.0.iter().map(split).collect();
        Self { violations, ..Self::usage("the configuration can't be used".to_owned()) }
    }
}

impl From<ServerError> for CliError {
    fn from(error: ServerError) -> Self {
        match &error {
            ServerError::Store(StoreError::Unavailable(_)) => {
                Self { exit: Exit::Unavailable, ..Self::because("DATABASE_UNAVAILABLE", error.to_string()) }
            }
            ServerError::Store(StoreError::Unfit(_)) => Self::because("DATABASE_UNFIT", error.to_string()),
            _ => Self::failed(error.to_string()),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_hardened_process_is_not_dumpable_and_writes_no_core() {
        harden().unwrap();
        assert_eq!(rustix::process::dumpable_behavior().unwrap(), DumpableBehavior::NotDumpable);
        assert_eq!(rustix::process::getrlimit(Resource::Core), Rlimit { current: Some(0), maximum: Some(0) });
    }
}
