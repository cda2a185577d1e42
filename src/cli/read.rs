//! `get` and `list`: things that documents describe, as they are in force.

use crate::client::Wire;
use clap::{Args, ValueEnum};
use serde_json::{Map, Value, json};

use super::Connection;
use super::apply::client;
use super::error::CliError;
use super::export::fields;
use super::output::{Printer, bare, enforcement_json, table, time, time_text};
use super::yaml_writer::{spelled, yaml};
use crate::domain::document::shape::{DOCUMENT, Shape};
use crate::grpc::proto;
use crate::grpc::proto::policy_service_client::PolicyServiceClient;

/// Most items of a list that one cell of a table shows.
const MOST_SHOWN: usize = 4;

#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
enum Kind {
    #[value(alias = "accounts")]
    Account,
    #[value(aliases = ["app-groups", "app_group", "app_groups"])]
    AppGroup,
    #[value(alias = "issuers")]
    Issuer,
    #[value(alias = "ceilings")]
    Ceiling,
    #[value(alias = "policies")]
    Policy,
    #[value(alias = "operators")]
    Operator,
}

/// Print one account, app group, issuer, ceiling, policy or operator; a policy with who enforces each of its limits.
#[derive(Debug, Args)]
pub(super) struct Get {
    /// What kind of thing.
    #[arg(value_enum)]
    kind: Kind,
    /// Its name.
    name: String,
}

/// Print all accounts, app groups, issuers, ceilings, policies or operators.
#[derive(Debug, Args)]
pub(super) struct List {
    /// What kind of thing.
    #[arg(value_enum)]
    kind: Kind,
}

impl Kind {
    /// What one is called, and the list of a document that has it.
    fn names(self) -> (&'static str, &'static str) {
        match self {
            Self::Account => ("account", "accounts"),
            Self::AppGroup => ("app_group", "app_groups"),
            Self::Issuer => ("issuer", "issuers"),
            Self::Ceiling => ("ceiling", "ceilings"),
            Self::Policy => ("policy", "policies"),
            Self::Operator => ("operator", "operators"),
        }
    }

    /// The fields that a table has room for.
    fn columns(self) -> [&'static str; 4] {
        match self {
            Self::Account => ["name", "issuer_id", "", ""],
            Self::AppGroup => ["name", "account", "apps", ""],
            Self::Issuer => ["name", "kind", "url", "audiences"],
            Self::Ceiling => ["name", "app_groups", "max_ttl", "never_roles"],
            Self::Policy => ["name", "app_group", "roles", "max_ttl"],
            Self::Operator => ["name", "powers", "app_groups", ""],
        }
    }
}

/// One thing, and what else is known of it: for a program, and as comments for a person.
#[derive(Default)]
struct Found {
    document: proto::Document,
    known: Map<String, Value>,
    comments: Vec<String>,
}

impl Get {
    pub(super) async fn run(self, connection: &Connection, print: &Printer) -> Result<(), CliError> {
        let found = get(&mut client(connection).await?, self.kind, self.name).await?;
        let value = fields(found.document)?;
        let (one, list) = self.kind.names();
        let spelled = spelled(&value, &Shape::Fields(DOCUMENT));
        let thing = spelled.get(list).and_then(Value::as_array).and_then(|list| list.first());
        let mut object = found.known;
        object.insert(one.to_owned(), thing.cloned().unwrap_or_default());
        let text = || {
            let comments = found.comments.iter().map(|line| format!("# {line}\n"));
            format!("{}{}", yaml(&value, DOCUMENT), comments.collect::<String>())
        };
        print.answer(&Value::Object(object), text)
    }
}

impl List {
    pub(super) async fn run(self, connection: &Connection, print: &Printer) -> Result<(), CliError> {
        let (document, revision) = everything(&mut client(connection).await?, self.kind).await?;
        let spelled = spelled(&fields(document)?, &Shape::Fields(DOCUMENT));
        let (_, list) = self.kind.names();
        let all = spelled.get(list).and_then(Value::as_array).cloned().unwrap_or_default();
        let columns = self.kind.columns();
        print.answer(&json!({ list: all, "revision": revision }), || {
            let rows: Vec<_> = all.iter().map(|thing| columns.map(|name| cell(thing, name))).collect();
            let heads = columns.map(|name| name.to_ascii_uppercase().replace('_', " "));
            table(heads.each_ref().map(String::as_str), &rows)
        })
    }
}

fn cell(thing: &Value, name: &str) -> String {
    match thing.get(name) {
        Some(Value::String(text)) => text.clone(),
        Some(Value::Array(items)) => {
            let mut texts: Vec<&str> = items.iter().filter_map(Value::as_str).take(MOST_SHOWN).collect();
            let more =
                items.len().checked_sub(MOST_SHOWN).filter(|more| *more > 0).map(|more| format!("and {more} more"));
            texts.extend(more.as_deref());
            texts.join(", ")
        }
        // A ceiling that names no groups holds for all of them.
        None if name == "app_groups" && thing.get("every_app_group").is_some() => "(every one)".to_owned(),
        _ => String::new(),
    }
}

async fn get(client: &mut PolicyServiceClient<Wire>, kind: Kind, name: String) -> Result<Found, CliError> {
    let mut found = Found::default();
    let document = &mut found.document;
    let (revision, revoked) = match kind {
        Kind::Account => {
            let answer = client.get_account(proto::GetAccountRequest { name }).await?.into_inner();
            document.accounts.extend(answer.account);
            (answer.revision, None)
        }
        Kind::AppGroup => {
            let answer = client.get_app_group(proto::GetAppGroupRequest { name }).await?.into_inner();
            document.app_groups.extend(answer.app_group);
            (answer.revision, Some(answer.revoked))
        }
        Kind::Issuer => {
            let answer = client.get_issuer(proto::GetIssuerRequest { name }).await?.into_inner();
            document.issuers.extend(answer.issuer);
            (answer.revision, Some(answer.revoked))
        }
        Kind::Ceiling => {
            let answer = client.get_ceiling(proto::GetCeilingRequest { name }).await?.into_inner();
            document.ceilings.extend(answer.ceiling);
            (answer.revision, None)
        }
        Kind::Policy => {
            let answer = client.get_policy(proto::GetPolicyRequest { name }).await?.into_inner();
            document.policies.extend(answer.policy.clone());
            let (revision, revoked) = (answer.revision, answer.revoked);
            found.know_policy(answer);
            (revision, Some(revoked))
        }
        Kind::Operator => {
            let answer = client.get_operator(proto::GetOperatorRequest { name }).await?.into_inner();
            document.operators.extend(answer.operator);
            (answer.revision, None)
        }
    };
    found.known.insert("revision".to_owned(), Value::from(revision));
    if let Some(revoked) = revoked {
        found.known.insert("revoked".to_owned(), Value::from(revoked));
        if revoked {
            found.comments.insert(0, "revoked, until an administrator reinstates it".to_owned());
        }
    }
    found.comments.insert(0, format!("revision {revision}"));
    Ok(found)
}

impl Found {
    fn know_policy(&mut self, answer: proto::GetPolicyResponse) {
        let enforced: Vec<Value> = answer.enforced_by.iter().map(enforcement_json).collect();
        self.known.insert("enforced_by".to_owned(), Value::from(enforced));
        self.known.insert("narrowed".to_owned(), json!(answer.narrowed));
        self.known.insert("open_until".to_owned(), time(answer.open_until.as_ref()));
        self.comments.extend(answer.open_until.as_ref().map(|until| format!("held open until {}", time_text(until))));
        self.comments.extend(answer.narrowed);
        self.comments.extend(answer.enforced_by.iter().map(|entry| {
            let by = bare(entry.enforced_by().as_str_name(), "ENFORCED_BY_");
            format!("{}: {by}: {}", entry.limit, entry.explanation)
        }));
    }
}

/// All things of one kind, and the revision of the first page.
async fn everything(client: &mut PolicyServiceClient<Wire>, kind: Kind) -> Result<(proto::Document, u64), CliError> {
    let mut document = proto::Document::default();
    let mut first = None;
    macro_rules! pages {
        ($rpc:ident, $request:ident, $list:ident) => {{
            let mut page_token = String::new();
            loop {
                let answer = client.$rpc(proto::$request { page_size: 1000, page_token }).await?.into_inner();
                document.$list.extend(answer.$list);
                first.get_or_insert(answer.revision);
                page_token = answer.next_page_token;
                if page_token.is_empty() {
                    break;
                }
            }
        }};
    }
    match kind {
        Kind::Account => pages!(list_accounts, ListAccountsRequest, accounts),
        Kind::AppGroup => pages!(list_app_groups, ListAppGroupsRequest, app_groups),
        Kind::Issuer => pages!(list_issuers, ListIssuersRequest, issuers),
        Kind::Ceiling => pages!(list_ceilings, ListCeilingsRequest, ceilings),
        Kind::Policy => pages!(list_policies, ListPoliciesRequest, policies),
        Kind::Operator => pages!(list_operators, ListOperatorsRequest, operators),
    }
    Ok((document, first.unwrap_or_default()))
}
