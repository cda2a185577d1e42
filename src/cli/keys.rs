//! `key`: Apple's keys.

use std::io::Read;
use std::path::PathBuf;

use clap::{Args, Subcommand, ValueEnum};
use serde_json::{Value, json};
use zeroize::Zeroizing;

use super::Connection;
use super::error::CliError;
use super::output::{Printer, bare, table, time};
use super::revoke::{Confirmation, revoke_target};
use super::token::role;
use crate::client::Wire;
use crate::grpc::proto;
use crate::grpc::proto::key_service_client::KeyServiceClient;
use crate::id::{KeyId, shown};
use crate::vault::p8::MOST_BYTES;

/// Apple's keys.
#[derive(Debug, Subcommand)]
pub(super) enum KeyCommand {
    /// Import a .p8 file as Apple ships it.
    Import(Import),
    /// All keys.
    List,
    /// One key.
    Show {
        /// The Key ID.
        key_id: String,
    },
    /// Stop a key for now.
    Suspend(WithReason),
    /// Let a suspended key sign again.
    Resume(WithReason),
    /// Stop a key for good and destroy its bytes; the same as `revoke key`.
    Revoke {
        #[command(flatten)]
        key: WithReason,
        #[command(flatten)]
        confirmation: Confirmation,
    },
    /// Record that you saw a revoked key revoked in App Store Connect, too.
    ConfirmRevokedAtApple {
        /// The Key ID.
        key_id: String,
    },
}

#[derive(Debug, Args)]
pub(super) struct WithReason {
    /// The Key ID.
    key_id: String,
    /// Why, for whoever reads the audit.
    #[arg(long)]
    reason: String,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
enum Kind {
    Team,
    Individual,
}

#[derive(Debug, Args)]
pub(super) struct Import {
    /// The file; `-` for standard input.
    file: PathBuf,
    /// The account, by name.
    #[arg(long)]
    account: String,
    /// The Key ID; taken from a file name AuthKey_<ID>.p8 where absent.
    #[arg(long)]
    key_id: Option<String>,
    /// Whose key it is.
    #[arg(long, value_enum)]
    kind: Kind,
    /// The user of an individual key.
    #[arg(long)]
    user: Option<String>,
    /// The apps that user reaches at Apple: `all`, or app ids joined by commas.
    #[arg(long, value_name = "all|APPID,…")]
    app_access: Option<String>,
    /// A role the key has at Apple; may be repeated.
    #[arg(long = "role", required = true)]
    roles: Vec<String>,
    /// An app group it may be used for; may be repeated.
    #[arg(long = "app-group", required = true)]
    app_groups: Vec<String>,
}

impl KeyCommand {
    pub(super) async fn run(self, connection: &Connection, print: &Printer) -> Result<(), CliError> {
        match self {
            Self::Import(import) => import.run(connection, *print).await,
            Self::List => list(connection, *print).await,
            Self::Show { key_id } => {
                let answer = client(connection).await?.get_key(proto::GetKeyRequest { key_id }).await?;
                show(*print, answer.into_inner().key)
            }
            Self::Suspend(WithReason { key_id, reason }) => {
                let answer = client(connection).await?.suspend_key(proto::SuspendKeyRequest { key_id, reason }).await?;
                show(*print, answer.into_inner().key)
            }
            Self::Resume(WithReason { key_id, reason }) => {
                let answer = client(connection).await?.resume_key(proto::ResumeKeyRequest { key_id, reason }).await?;
                show(*print, answer.into_inner().key)
            }
            Self::Revoke { key: WithReason { key_id, reason }, confirmation } => {
                let target = proto::Target { kind: proto::TargetKind::Key.into(), name: key_id };
                revoke_target(connection, *print, target, reason, confirmation).await
            }
            Self::ConfirmRevokedAtApple { key_id } => {
                let request = proto::ConfirmRevokedAtAppleRequest { key_id };
                show(*print, client(connection).await?.confirm_revoked_at_apple(request).await?.into_inner().key)
            }
        }
    }
}

impl Import {
    async fn run(self, connection: &Connection, print: Printer) -> Result<(), CliError> {
        let key_id = match self.key_id {
            Some(id) => id,
            None => id_of(&self.file)?,
        };
        let app_access = match (&self.app_access, self.kind) {
            (None, _) => None,
            (Some(text), _) if text == "all" => Some(proto::AppAccess { all: true, app_ids: Vec::new() }),
            (Some(text), _) => {
                let app_ids = text.split(',').map(|id| id.trim().to_owned()).collect();
                Some(proto::AppAccess { all: false, app_ids })
            }
        };
        if self.kind == Kind::Individual && (self.user.is_none() || app_access.is_none()) {
            return Err(CliError::usage(
                "an individual key needs --user and --app-access, as they are at Apple".to_owned(),
            ));
        }
        let roles = self.roles.iter().map(|name| role(name)).collect::<Result<Vec<_>, _>>()?;
        let kind = match self.kind {
            Kind::Team => proto::KeyKind::Team,
            Kind::Individual => proto::KeyKind::Individual,
        };
        let mut p8 = read_p8(&self.file)?;
        let request = proto::ImportKeyRequest {
            key_id,
            account: self.account,
            kind: kind.into(),
            user: self.user.unwrap_or_default(),
            app_access,
            roles,
            app_groups: self.app_groups,
            p8: std::mem::take(&mut *p8),
        };
        let answer = client(connection).await?.import_key(request).await?.into_inner();
        show(print, answer.key)?;
        print
            .note("the key is sealed in the vault; store or destroy the .p8 file, which Apple will not give out again");
        Ok(())
    }
}

/// Apple names the file after the key.
fn id_of(file: &std::path::Path) -> Result<String, CliError> {
    let name = file.file_name().and_then(|name| name.to_str()).unwrap_or_default();
    let id =
        name.strip_prefix("AuthKey_").and_then(|rest| rest.strip_suffix(".p8")).filter(|id| KeyId::parse(id).is_ok());
    id.map(ToOwned::to_owned).ok_or_else(|| {
        CliError::usage(format!(
            "`{}` is not named AuthKey_<ID>.p8, so the Key ID is unknown; give --key-id",
            shown(name)
        ))
    })
}

fn read_p8(file: &std::path::Path) -> Result<Zeroizing<Vec<u8>>, CliError> {
    let unreadable = |error: std::io::Error| CliError::usage(format!("{}: {error}", file.display()));
    // Allocated once, so that no copy is left behind by growing; one byte more tells a file that is too long.
    let limit = MOST_BYTES.saturating_add(1);
    let mut content = Zeroizing::new(Vec::with_capacity(limit.saturating_add(1)));
    let most = u64::try_from(limit).unwrap_or(u64::MAX);
    if file.as_os_str() == "-" {
        std::io::stdin().lock().take(most).read_to_end(&mut content).map_err(unreadable)?;
    } else {
        std::fs::File::open(file).map_err(unreadable)?.take(most).read_to_end(&mut content).map_err(unreadable)?;
    }
    Ok(content)
}

async fn client(connection: &Connection) -> Result<KeyServiceClient<Wire>, CliError> {
    Ok(KeyServiceClient::new(connection.open().await?))
}

async fn list(connection: &Connection, print: Printer) -> Result<(), CliError> {
    let mut client = client(connection).await?;
    let (mut keys, mut page_token) = (Vec::new(), String::new());
    loop {
        let answer = client.list_keys(proto::ListKeysRequest { page_size: 1000, page_token }).await?.into_inner();
        keys.extend(answer.keys);
        page_token = answer.next_page_token;
        if page_token.is_empty() {
            break;
        }
    }
    let objects: Vec<Value> = keys.iter().map(key_json).collect();
    print.answer(&Value::Array(objects), || {
        let row = |key: &proto::Key| {
            [
                key.key_id.clone(),
                bare(key.state().as_str_name(), "KEY_STATE_").to_owned(),
                bare(key.kind().as_str_name(), "KEY_KIND_").to_owned(),
                key.account.clone(),
                roles_text(key),
                key.app_groups.join(","),
                key.imported
                    .as_ref()
                    .and_then(|stamp| stamp.at.as_ref())
                    .map(super::output::time_text)
                    .unwrap_or_default(),
            ]
        };
        let rows: Vec<_> = keys.iter().map(row).collect();
        table(["KEY ID", "STATE", "KIND", "ACCOUNT", "ROLES", "APP GROUPS", "IMPORTED"], &rows)
    })
}

fn show(print: Printer, key: Option<proto::Key>) -> Result<(), CliError> {
    let key = key.ok_or_else(|| CliError::failed("the broker answered without a key".to_owned()))?;
    print.answer(&key_json(&key), || {
        let stamp = |stamp: Option<&proto::Stamp>| match stamp {
            Some(stamp) => {
                format!("{} by {}", stamp.at.as_ref().map(super::output::time_text).unwrap_or_default(), stamp.by)
            }
            None => "-".to_owned(),
        };
        let kind = match (&key.app_access, key.user.as_str()) {
            (Some(access), user) => {
                let apps = if access.all { "all apps".to_owned() } else { access.app_ids.join(",") };
                let since = key.app_access_declared_at.as_ref().map(super::output::time_text).unwrap_or_default();
                format!("INDIVIDUAL, {user}, {apps} (declared {since})")
            }
            (None, _) => "TEAM (reaches every app of the account)".to_owned(),
        };
        format!(
            "key          {}\nstate        {}\nkind         {kind}\naccount      {}\nroles        {}\napp groups   {}\n\
             fingerprint  {}\nimported     {}\nrevoked      {}\nat Apple     {}",
            key.key_id,
            bare(key.state().as_str_name(), "KEY_STATE_"),
            key.account,
            roles_text(&key),
            key.app_groups.join(", "),
            key.public_key_fingerprint,
            stamp(key.imported.as_ref()),
            stamp(key.revoked.as_ref()),
            match (&key.confirmed_at_apple, &key.revoked) {
                (Some(confirmed), _) => format!("confirmed as revoked {}", stamp(Some(confirmed))),
                (None, Some(_)) => "not confirmed as revoked: do it in App Store Connect".to_owned(),
                (None, None) => "-".to_owned(),
            },
        )
    })
}

fn roles_text(key: &proto::Key) -> String {
    key.roles().map(|role| bare(role.as_str_name(), "ROLE_").to_owned()).collect::<Vec<_>>().join(",")
}

fn key_json(key: &proto::Key) -> Value {
    let stamp = |stamp: Option<&proto::Stamp>| match stamp {
        Some(stamp) => json!({ "by": stamp.by, "at": time(stamp.at.as_ref()) }),
        None => Value::Null,
    };
    json!({
        "key_id": key.key_id,
        "account": key.account,
        "kind": bare(key.kind().as_str_name(), "KEY_KIND_").to_ascii_lowercase(),
        "user": if key.user.is_empty() { Value::Null } else { Value::String(key.user.clone()) },
        "app_access": key.app_access.as_ref().map(|access| if access.all { json!("all") } else { json!(access.app_ids) }),
        "app_access_declared_at": time(key.app_access_declared_at.as_ref()),
        "roles": key.roles().map(|role| bare(role.as_str_name(), "ROLE_").to_owned()).collect::<Vec<_>>(),
        "app_groups": key.app_groups,
        "state": bare(key.state().as_str_name(), "KEY_STATE_"),
        "public_key_fingerprint": key.public_key_fingerprint,
        "imported": stamp(key.imported.as_ref()),
        "revoked": stamp(key.revoked.as_ref()),
        "confirmed_at_apple": stamp(key.confirmed_at_apple.as_ref()),
    })
}
