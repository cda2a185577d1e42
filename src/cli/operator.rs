//! `operator`: the vault as a whole.

use std::path::{Path, PathBuf};
use std::sync::Arc;

use clap::{Args, Subcommand};
use serde_json::json;
use zeroize::Zeroizing;

use super::Connection;
use super::backup::{Backup, VerifyBackup};
use super::error::CliError;
use super::output::{Printer, bare, say, table, time, time_text};
use super::shares::{NewShares, ask_for_share, read_share};
use crate::broker::{Broker, BrokerError, Parts, Shares};
use crate::client::Wire;
use crate::clock::SystemClock;
use crate::config::Config;
use crate::grpc::proto;
use crate::grpc::proto::system_service_client::SystemServiceClient;
use crate::id::ClientId;
use crate::metrics::Metrics;
use crate::server::{ServerError, open_store};
use crate::store::anchor::Anchor;

/// The vault as a whole.
#[derive(Debug, Subcommand)]
pub(super) enum OperatorCommand {
    /// Make the vault: over gRPC as an operator that the configuration names, or with --config on the machine itself.
    Init(Init),
    /// Give one share, or have the key file read; lifts an operator's seal.
    Unseal(Unseal),
    /// Seal the vault until somebody lifts it, also across restarts.
    Seal {
        /// Why, for whoever reads the audit.
        #[arg(long)]
        reason: String,
    },
    /// How this replica is, and how the others last said they were.
    Status,
    /// Add a root key version and seal every key anew, while serving.
    Rotate,
    /// Replace the unseal key, while serving.
    Rekey(Rekey),
    /// Accept a database that went back in time: what was lost stays lost. `operator status` names the revisions.
    AcceptHistory(AcceptHistory),
    /// Write a backup of the whole vault to a file, while the broker serves.
    Backup(Backup),
    /// Read a backup from end to end, and say whether it can be restored; nothing is changed.
    VerifyBackup(VerifyBackup),
}

#[derive(Debug, Args)]
pub(super) struct AcceptHistory {
    /// The newest revision that the database has.
    #[arg(long, value_name = "N")]
    database_revision: u64,
    /// The newest revision that was seen.
    #[arg(long, value_name = "N")]
    seen_revision: u64,
    /// Why, for whoever reads the audit.
    #[arg(long)]
    reason: String,
}

#[derive(Debug, Args)]
pub(super) struct Init {
    /// Initialise on the machine itself, with the broker stopped.
    #[arg(long, value_name = "FILE")]
    config: Option<PathBuf>,
    /// With --config: the first operators, where the configuration names none; may be repeated.
    #[arg(long = "operator", value_name = "IDENTITY", requires = "config")]
    operators: Vec<String>,
    /// Succeed where there is a vault already, and leave it alone: for jobs that run at every deployment.
    #[arg(long)]
    if_needed: bool,
    #[command(flatten)]
    new: NewShares,
}

#[derive(Debug, Args)]
pub(super) struct Unseal {
    /// A file with one share; `-` for standard input. Asked for where absent.
    #[arg(long, value_name = "FILE")]
    share_file: Option<PathBuf>,
}

#[derive(Debug, Args)]
pub(super) struct Rekey {
    /// A file with one current share (with --confirm: a new one); may be repeated.
    #[arg(long = "share-file", value_name = "FILE")]
    share_files: Vec<PathBuf>,
    /// Give new shares back, as proof that they arrived; with enough of them they come into force.
    #[arg(long)]
    confirm: bool,
    #[command(flatten)]
    new: NewShares,
}

impl OperatorCommand {
    pub(super) async fn run(self, connection: &Connection, print: &Printer) -> Result<(), CliError> {
        match self {
            Self::Init(init) => init.run(connection, *print).await,
            Self::Unseal(unseal) => unseal.run(connection, *print).await,
            Self::Rekey(rekey) => rekey.run(connection, *print).await,
            Self::AcceptHistory(accept) => accept.run(connection, *print).await,
            Self::Backup(backup) => backup.run(connection, *print).await,
            Self::VerifyBackup(verify) => verify.run(*print),
            Self::Seal { reason } => {
                client(connection).await?.seal(proto::SealRequest { reason }).await?;
                print.answer(&json!({ "sealed": true }), || {
                    "sealed: nothing is signed from this moment on, also after a restart; tokens that are out live to \
                     their end (`p8broker exposure`)"
                        .to_owned()
                })
            }
            Self::Status => status(connection, *print).await,
            Self::Rotate => {
                let version =
                    client(connection).await?.rotate(proto::RotateRequest {}).await?.into_inner().root_key_version;
                print.answer(&json!({ "root_key_version": version }), || {
                    format!("every key is sealed with root key version {version}")
                })
            }
        }
    }
}

impl Init {
    async fn run(self, connection: &Connection, print: Printer) -> Result<(), CliError> {
        let if_needed = self.if_needed;
        match self.make(connection, print).await {
            Err(error) if if_needed && error.reason == "ALREADY_INITIALISED" => print
                .answer(&json!({ "initialised": false }), || {
                    "there is a vault already; nothing was changed".to_owned()
                }),
            done => done,
        }
    }

    async fn make(self, connection: &Connection, print: Printer) -> Result<(), CliError> {
        self.new.prepare()?;
        let asked = self.new.shares.is_some() || self.new.threshold.is_some();
        let (vault, shares, threshold) = match &self.config {
            None => {
                let request = proto::InitRequest {
                    shares: self.new.shares.unwrap_or_default(),
                    threshold: self.new.threshold.unwrap_or_default(),
                };
                let mut answer = client(connection).await?.init(request).await?.into_inner();
                (answer.vault, Zeroizing::new(std::mem::take(&mut answer.shares)), answer.threshold)
            }
            Some(path) => {
                let numbers =
                    Shares { shares: self.new.shares.unwrap_or(5), threshold: self.new.threshold.unwrap_or(3) };
                init_here(path, &self.operators, asked.then_some(numbers)).await?
            }
        };
        self.new.hand_out(
            print,
            &shares,
            threshold,
            json!({ "vault": vault }),
            &format!("vault {vault} is initialised"),
        )
    }
}

/// Initialises without a server. On SQLite the store's lock keeps a running one out; on PostgreSQL running replicas find the
/// vault within a second.
async fn init_here(
    path: &Path,
    operators: &[String],
    numbers: Option<Shares>,
) -> Result<(String, Zeroizing<Vec<String>>, u32), CliError> {
    let config = Config::load(path).map_err(|error| CliError::usage(error.to_string()))?;
    let mut clients = config.bootstrap();
    for text in operators {
        clients.push(ClientId::parse(text).map_err(|error| CliError::usage(error.to_string()))?);
    }
    let metrics = Metrics::new().map_err(|error| CliError::failed(error.to_string()))?;
    let store = open_store(&config, &metrics).await?;
    // A vault that is there is not opened, which would be on record in it.
    if store.seal_row().await.map_err(ServerError::from)?.is_some() {
        store.close().await;
        return Err(tonic::Status::from(BrokerError::AlreadyInitialised).into());
    }
    let broker = Broker::new(Parts {
        store,
        clock: Arc::new(SystemClock),
        metrics,
        key_source: config.key_source(),
        bootstrap: clients.clone(),
        anchor: config.anchor.file.as_deref().map(Anchor::at),
        replica: format!("{} (operator init)", config.replica()),
        signatures_per_second: config.limits.signatures_per_second,
        canary_every_s: 0,
    });
    let forgotten = operators.iter().any(|text| !config.bootstrap.operators.contains(text));
    if forgotten {
        say(
            "note: name these operators under [bootstrap] operators, too: only those may unseal while the vault is sealed",
        );
    }
    broker.start().await;
    let made = broker.init(None, numbers, &clients).await;
    broker.stop().await;
    let made = made.map_err(tonic::Status::from)?;
    let texts = made.shares.iter().map(|share| share.expose_share().to_owned()).collect();
    Ok((made.vault.to_string(), Zeroizing::new(texts), made.threshold))
}

impl AcceptHistory {
    async fn run(self, connection: &Connection, print: Printer) -> Result<(), CliError> {
        let request = proto::AcceptHistoryRequest {
            database_revision: self.database_revision,
            seen_revision: self.seen_revision,
            reason: self.reason,
        };
        let revision = client(connection).await?.accept_history(request).await?.into_inner().revision;
        print.answer(&json!({ "revision": revision }), || {
            format!(
                "accepted at revision {revision}: what came after revision {} is lost for good; look at what was revoked or \
                 granted in it, and do it again",
                self.database_revision
            )
        })
    }
}

impl Unseal {
    async fn run(self, connection: &Connection, print: Printer) -> Result<(), CliError> {
        let mut client = client(connection).await?;
        let share = match &self.share_file {
            Some(file) => read_share(file)?,
            // Without a share the broker reads its key file, or says that it waits for shares.
            None => Zeroizing::new(String::new()),
        };
        let asked = share.is_empty();
        let mut answer = client.unseal(proto::UnsealRequest { share: share.to_string() }).await?.into_inner();
        if asked && answer.sealed && answer.threshold > 0 {
            let share = ask_for_share(&answer)?;
            answer = client.unseal(proto::UnsealRequest { share: share.to_string() }).await?.into_inner();
        }
        let object =
            json!({ "sealed": answer.sealed, "given": answer.given, "threshold": answer.threshold, "why": answer.why });
        print.answer(&object, || {
            if answer.sealed { format!("still sealed: {}", answer.why) } else { "unsealed".to_owned() }
        })
    }
}

impl Rekey {
    async fn run(self, connection: &Connection, print: Printer) -> Result<(), CliError> {
        let mut client = client(connection).await?;
        let shares = self.share_files.iter().map(|file| read_share(file)).collect::<Result<Vec<_>, _>>()?;
        let shares: Vec<String> = shares.iter().map(|share| share.to_string()).collect();
        if self.confirm {
            let answer = client.confirm_rekey(proto::ConfirmRekeyRequest { shares }).await?.into_inner();
            let object = json!({
                "done": answer.done, "given": answer.given, "threshold": answer.threshold, "generation": answer.generation,
            });
            return print.answer(&object, || confirmed(&answer));
        }
        self.new.prepare()?;
        let request = proto::RekeyRequest {
            shares,
            new_shares: self.new.shares.unwrap_or_default(),
            new_threshold: self.new.threshold.unwrap_or_default(),
        };
        let mut answer = client.rekey(request).await?.into_inner();
        if answer.done {
            return print
                .answer(&json!({ "done": true }), || "the keyring is sealed with the present key file".to_owned());
        }
        let new = Zeroizing::new(std::mem::take(&mut answer.new_shares));
        if new.is_empty() {
            let object = json!({ "done": false, "given": answer.given, "threshold": answer.threshold });
            return print.answer(&object, || {
                format!("{} of {} current shares are given; go on with the others", answer.given, answer.threshold)
            });
        }
        let threshold = answer.new_threshold;
        if self.new.shares_dir.is_none() {
            let next =
                "new shares are made, and not in force yet: give them back with `p8broker operator rekey --confirm`";
            return self.new.hand_out(print, &new, threshold, json!({ "done": false }), next);
        }
        // Read back from the disk: what comes into force is what was really written.
        let files = self.new.write(&new)?.unwrap_or_default();
        let back = files.iter().map(|file| read_share(Path::new(file))).collect::<Result<Vec<_>, _>>()?;
        let shares = back.iter().map(|share| share.to_string()).collect();
        let answer = client.confirm_rekey(proto::ConfirmRekeyRequest { shares }).await?.into_inner();
        let object = json!({
            "done": answer.done, "generation": answer.generation, "threshold": threshold, "share_files": files,
        });
        print.answer(&object, || format!("{}\n{}", confirmed(&answer), files.join("\n")))
    }
}

fn confirmed(answer: &proto::ConfirmRekeyResponse) -> String {
    if answer.done {
        return format!(
            "the new unseal key (generation {}) is in force; the old shares are worthless",
            answer.generation
        );
    }
    format!("{} of {} new shares are given back; the old ones are in force until then", answer.given, answer.threshold)
}

async fn status(connection: &Connection, print: Printer) -> Result<(), CliError> {
    let status = client(connection).await?.status(proto::StatusRequest {}).await?.into_inner();
    let phase = bare(status.phase().as_str_name(), "PHASE_");
    let replica = |replica: &proto::Replica| {
        json!({
            "name": replica.name,
            "phase": bare(replica.phase().as_str_name(), "PHASE_"),
            "revision": replica.revision,
            "version": replica.version,
            "started_at": time(replica.started_at.as_ref()),
            "seen_at": time(replica.seen_at.as_ref()),
        })
    };
    let lost = status
        .lost_history
        .as_ref()
        .map(|lost| json!({ "seen_revision": lost.seen_revision, "database_revision": lost.database_revision }));
    let object = json!({
        "phase": phase,
        "why": status.why,
        "vault": status.vault,
        "revision": status.revision,
        "unseal_generation": status.unseal_generation,
        "root_key_version": status.root_key_version,
        "version": status.version,
        "replica": status.replica,
        "replicas": status.replicas.iter().map(replica).collect::<Vec<_>>(),
        "lost_history": lost,
    });
    print.answer(&object, || {
        let why = if status.why.is_empty() { String::new() } else { format!(": {}", status.why) };
        let mut out = format!("{phase}{why}\nversion {}\nreplica {}", status.version, status.replica);
        if !status.vault.is_empty() {
            out.push_str(&format!(
                "\nvault {}\nrevision {}\nunseal key generation {}\nroot key version {}",
                status.vault, status.revision, status.unseal_generation, status.root_key_version
            ));
        }
        if !status.replicas.is_empty() {
            out.push_str(&format!("\n\n{}", replicas(&status.replicas)));
        }
        out
    })
}

fn replicas(replicas: &[proto::Replica]) -> String {
    let row = |replica: &proto::Replica| {
        [
            replica.name.clone(),
            bare(replica.phase().as_str_name(), "PHASE_").to_owned(),
            if replica.revision == 0 { String::new() } else { replica.revision.to_string() },
            replica.version.clone(),
            replica.seen_at.as_ref().map(time_text).unwrap_or_default(),
        ]
    };
    let rows: Vec<_> = replicas.iter().map(row).collect();
    table(["REPLICA", "PHASE", "REVISION", "VERSION", "LAST SEEN"], &rows)
}

async fn client(connection: &Connection) -> Result<SystemServiceClient<Wire>, CliError> {
    Ok(SystemServiceClient::new(connection.open().await?))
}
