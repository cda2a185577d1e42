//! The command line. A contract: names, JSON fields and exit codes do not change without a new major version.

mod access;
mod apply;
mod audit;
mod backup;
mod break_glass;
mod dev;
mod document;
mod error;
mod explain;
mod export;
mod keys;
mod operator;
mod output;
mod panic;
mod policy_test;
mod proposal;
mod read;
#[cfg(test)]
mod reference;
mod restore;
mod revoke;
mod schema;
mod serve;
mod shadow;
mod shares;
mod token;
mod watch;
mod whois;
mod yaml;
mod yaml_writer;

use std::path::PathBuf;
use std::process::ExitCode;

use clap::{Args, Parser, Subcommand, ValueEnum};

use crate::client::{CertificateFiles, Target, Wire};
use error::CliError;
use output::Printer;

/// A broker for Apple's .p8 keys: hands out short-lived App Store Connect tokens by policy.
#[derive(Debug, Parser)]
#[command(name = "p8broker", version, max_term_width = 110)]
struct Cli {
    /// How to print: tables for a person, or JSON (one object a line for streams).
    #[arg(long, global = true, value_enum, default_value_t = Format::Human)]
    output: Format,
    #[command(flatten)]
    connection: Connection,
    #[command(subcommand)]
    command: Command,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
enum Format {
    Human,
    Json,
}

/// Where the broker is, and who is asking.
#[derive(Debug, Args)]
#[command(next_help_heading = "Connection")]
struct Connection {
    /// The broker, as host:port; several with commas between them, of which one that answers is taken.
    #[arg(long, global = true, env = "P8BROKER_ADDR", default_value = "127.0.0.1:8443")]
    addr: String,
    /// The CA of the broker's certificate, PEM.
    #[arg(long, global = true, env = "P8BROKER_CACERT")]
    cacert: Option<PathBuf>,
    /// Your certificate, PEM.
    #[arg(long, global = true, env = "P8BROKER_CERT")]
    cert: Option<PathBuf>,
    /// Your private key, PEM.
    #[arg(long, global = true, env = "P8BROKER_KEY")]
    key: Option<PathBuf>,
    /// A file with a JWT of a trusted issuer, which then says who you are; a certificate beside it is not needed.
    #[arg(long, global = true, env = "P8BROKER_BEARER_FILE", value_name = "FILE")]
    bearer_file: Option<PathBuf>,
    /// The name to expect in the broker's certificate, where it is not the host.
    #[arg(long, global = true, env = "P8BROKER_SERVER_NAME")]
    server_name: Option<String>,
}

#[derive(Debug, Subcommand)]
enum Command {
    /// Run a playground in one process: vault, certificates, sample key and policy in one folder.
    Dev(dev::Dev),
    /// Run the broker.
    Serve(serve::Serve),
    /// Bring the schema of the database up to date.
    Migrate(serve::Migrate),
    /// Say where acknowledged commits could be lost.
    Doctor(serve::Doctor),
    /// Restore a backup into an empty database, with no broker running on it.
    Restore(restore::Restore),
    /// Look at the configuration.
    #[command(subcommand)]
    Config(serve::ConfigCommand),
    /// Initialise, unseal, seal; rotate and replace the keys that seal; back up.
    #[command(subcommand)]
    Operator(operator::OperatorCommand),
    /// Apple's keys.
    #[command(subcommand)]
    Key(keys::KeyCommand),
    /// Apply accounts, app groups, issuers, ceilings, policies and operators from YAML documents.
    Apply(apply::Apply),
    /// Say why a request would be granted or refused now, or why it was, and what would change that.
    Explain(explain::Explain),
    /// Print the whole desired state as a document that can be applied again.
    Export(export::Export),
    /// Print the JSON Schema of documents, for editors.
    Schema(schema::Schema),
    /// Print one account, app group, issuer, ceiling, policy or operator.
    Get(read::Get),
    /// Print all accounts, app groups, issuers, ceilings, policies or operators.
    List(read::List),
    /// Changes that wait for a second operator.
    #[command(subcommand)]
    Proposal(proposal::ProposalCommand),
    /// Open policies that are for emergencies, and close them.
    #[command(subcommand)]
    BreakGlass(break_glass::BreakGlassCommand),
    /// What policies and ceilings that only count would have refused.
    #[command(subcommand)]
    Shadow(shadow::ShadowCommand),
    /// Policies offline: decide a table of expected allows and denials.
    #[command(subcommand)]
    Policy(policy_test::PolicyCommand),
    /// Who can get what, computed from the policies.
    #[command(subcommand)]
    Access(access::AccessCommand),
    /// Tokens.
    #[command(subcommand)]
    Token(token::TokenCommand),
    /// Revoke a token, client, policy, app group, key, account or issuer; shows what is still alive.
    Revoke(revoke::RevokeArgs),
    /// Show what is alive under a token, client, policy, app group, key, account or issuer.
    Exposure(revoke::ExposureArgs),
    /// Lift a revocation of a client, policy, app group, account or issuer.
    Reinstate(revoke::ReinstateArgs),
    /// Something leaked: revoke it step by step, from narrow to wide; each step shows what it does before it asks.
    Panic(panic::Panic),
    /// Whose a leaked token is: reads a JWT from standard input, and answers from the audit.
    Whois(whois::WhoisArgs),
    /// What happened.
    #[command(subcommand)]
    Audit(audit::AuditCommand),
}

impl Connection {
    /// Where to connect to, and as whom.
    fn target(&self) -> Result<Target, CliError> {
        let missing = |flag: &str, variable: &str| {
            CliError::usage(format!(
                "--{flag} is missing: give it, or set {variable} (`p8broker dev` writes a file to source)"
            ))
        };
        let cacert = self.cacert.clone().ok_or_else(|| missing("cacert", "P8BROKER_CACERT"))?;
        let certificate = match (&self.cert, &self.key) {
            (None, None) if self.bearer_file.is_some() => None,
            (cert, key) => Some(CertificateFiles {
                cert: cert.clone().ok_or_else(|| missing("cert", "P8BROKER_CERT"))?,
                key: key.clone().ok_or_else(|| missing("key", "P8BROKER_KEY"))?,
            }),
        };
        Ok(Target {
            addr: self.addr.clone(),
            cacert,
            certificate,
            bearer_file: self.bearer_file.clone(),
            server_name: self.server_name.clone(),
        })
    }

    async fn open(&self) -> Result<Wire, CliError> {
        let target = self.target()?;
        target.probe().await?;
        Ok(target.connect().await?)
    }
}

/// Runs a command line to its end.
pub fn run() -> ExitCode {
    // First of all: keys and shares pass through the memory of most commands.
    if let Err(error) = serve::harden() {
        return output::report(&error, Format::Human);
    }
    let cli = match Cli::try_parse() {
        Ok(cli) => cli,
        Err(error) if error.use_stderr() && wants_json() => {
            let text = error.to_string();
            let message = text.strip_prefix("error: ").unwrap_or(&text).trim();
            return output::report(&CliError::usage(message.to_owned()), Format::Json);
        }
        Err(error) => {
            let code = u8::try_from(error.exit_code()).unwrap_or(2);
            // Nothing is left to do where even this can't be printed.
            let _ = error.print();
            return ExitCode::from(code);
        }
    };
    let format = cli.output;
    let runtime = match tokio::runtime::Builder::new_multi_thread().enable_all().build() {
        Ok(runtime) => runtime,
        Err(error) => return output::report(&CliError::failed(error.to_string()), format),
    };
    match runtime.block_on(dispatch(cli)) {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => output::report(&error, format),
    }
}

/// Whether a command line that could not be parsed asks for JSON.
fn wants_json() -> bool {
    let arguments: Vec<_> = std::env::args_os().collect();
    arguments.iter().any(|argument| argument == "--output=json")
        || arguments.windows(2).any(|pair| matches!(pair, [flag, value] if flag == "--output" && value == "json"))
}

async fn dispatch(cli: Cli) -> Result<(), CliError> {
    let Cli { output, connection, command } = cli;
    let print = Printer::new(output);
    match command {
        Command::Dev(dev) => dev.run(&print).await,
        Command::Serve(serve) => serve.run().await,
        Command::Migrate(migrate) => migrate.run(&print).await,
        Command::Doctor(doctor) => doctor.run(&print).await,
        Command::Restore(restore) => restore.run(print).await,
        Command::Panic(panic) => panic.run(&connection, &print).await,
        Command::Whois(whois) => whois.run(&connection, &print).await,
        Command::Config(command) => command.run(&print),
        Command::Operator(command) => command.run(&connection, &print).await,
        Command::Key(command) => command.run(&connection, &print).await,
        Command::Apply(apply) => apply.run(&connection, &print).await,
        Command::Policy(command) => command.run(&print),
        Command::Explain(explain) => explain.run(&connection, &print).await,
        Command::Export(export) => export.run(&connection, &print).await,
        Command::Schema(schema) => schema.run(&print),
        Command::Get(get) => get.run(&connection, &print).await,
        Command::List(list) => list.run(&connection, &print).await,
        Command::Proposal(command) => command.run(&connection, &print).await,
        Command::BreakGlass(command) => command.run(&connection, &print).await,
        Command::Shadow(command) => command.run(&connection, &print).await,
        Command::Access(command) => command.run(&connection, &print).await,
        Command::Token(command) => command.run(&connection, &print).await,
        Command::Revoke(revoke) => revoke.run(&connection, &print).await,
        Command::Exposure(exposure) => exposure.run(&connection, &print).await,
        Command::Reinstate(reinstate) => reinstate.run(&connection, &print).await,
        Command::Audit(command) => command.run(&connection, &print).await,
    }
}
