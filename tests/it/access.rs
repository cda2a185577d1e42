//! The access table: every RPC has a row, and every kind of caller gets what the golden matrix says.

use std::collections::BTreeMap;

use p8broker::client::Target;
use p8broker::grpc::{DESCRIPTORS, access, proto};
use prost::Message;
use tonic::{Code, Status};

use crate::bearer::{Vouching, vouched_policy};
use crate::harness::*;

const GOLDEN: &str = include_str!("access_matrix.txt");

/// Every method of every service of ours, from the descriptors.
fn methods() -> Vec<String> {
    let set = prost_types::FileDescriptorSet::decode(DESCRIPTORS).unwrap();
    let mut out = Vec::new();
    for file in set.file.iter().filter(|file| file.package() == "p8broker.v1") {
        for service in &file.service {
            out.extend(
                service.method.iter().map(|method| format!("/p8broker.v1.{}/{}", service.name(), method.name())),
            );
        }
    }
    out.sort();
    out
}

#[test]
fn every_rpc_has_one_row_and_every_row_an_rpc() {
    let rows: Vec<&str> = access::TABLE.iter().map(|row| row.path).collect();
    assert!(rows.is_sorted(), "the table is searched by bisection");
    let ours: Vec<&str> = rows.iter().copied().filter(|path| path.starts_with("/p8broker.")).collect();
    assert_eq!(ours, methods());
    assert!(methods().iter().all(|path| access::find(path).is_some()));
    assert!(access::find("/p8broker.v1.TokenService/Sign").is_none());
}

/// Calls any unary RPC with an empty message: past the gate, it is refused for what it lacks or it is harmless.
async fn call(client: &Client, path: &str) -> Code {
    let mut grpc = tonic::client::Grpc::new(client.channel.clone());
    grpc.ready().await.unwrap();
    let codec = tonic_prost::ProstCodec::<proto::StatusRequest, proto::StatusRequest>::default();
    let path = path.parse::<http::uri::PathAndQuery>().unwrap();
    let request = tonic::Request::new(proto::StatusRequest {});
    let answer: Result<_, Status> = grpc.server_streaming(request, path, codec).await;
    match answer {
        // What answers with a stream or not at all (`Follow`) was let through.
        Ok(mut stream) => {
            let first = tokio::time::timeout(std::time::Duration::from_millis(300), stream.get_mut().message()).await;
            match first {
                Ok(Err(status)) => status.code(),
                Ok(Ok(_)) | Err(_) => Code::Ok,
            }
        }
        Err(status) => status.code(),
    }
}

/// Every kind of caller, by name: each power alone, one of them confined to an app group; clients and strangers; without a
/// certificate, with a token that has expired, and with a token alone, as a client and as an operator.
async fn callers(broker: &Broker, vouching: &Vouching) -> Vec<(String, Client)> {
    let powers = [
        ("custody", proto::Power::Custody),
        ("author", proto::Power::AuthorPolicies),
        ("revoke", proto::Power::Revoke),
        ("audit", proto::Power::Audit),
        ("unseal", proto::Power::Unseal),
        ("administer", proto::Power::Administer),
    ];
    let identity = |name: &str| format!("spiffe://acme.internal/ns/ops/sa/{name}");
    let operator = |name: &str, power: proto::Power, groups: &[&str]| proto::Operator {
        name: name.to_owned(),
        clients: vec![spiffe(&identity(name))],
        powers: vec![power.into()],
        app_groups: groups.iter().map(|group| (*group).to_owned()).collect(),
    };
    let mut operators: Vec<_> = powers.iter().map(|(name, power)| operator(name, *power, &[])).collect();
    operators.push(operator("confined", proto::Power::AuthorPolicies, &["games"]));
    let robot = proto::Operator { clients: vouched_policy().clients, ..operator("robot", proto::Power::Audit, &[]) };
    operators.push(robot);
    let document = proto::Document { operators, issuers: vec![vouching.issuer()], ..proto::Document::default() };
    broker.as_(OPERATOR).await.apply(document).await.unwrap();
    let mut out =
        vec![("client".to_owned(), broker.as_(CLIENT).await), ("stranger".to_owned(), broker.as_(STRANGER).await)];
    for name in powers.map(|(name, _)| name).into_iter().chain(["confined"]) {
        out.push((name.to_owned(), broker.as_(&identity(name)).await));
    }
    let nobody = Target { certificate: None, ..broker.target(CLIENT) };
    out.push(("no-certificate".to_owned(), Client::new(nobody.connect().await.unwrap())));
    let expired = vouching.token(&vouching.claims(broker, -100));
    out.push(("expired-token".to_owned(), vouching.client(broker, &expired, Some(OPERATOR)).await));
    let mut claims = vouching.claims(broker, 300);
    out.push(("token-operator".to_owned(), vouching.client(broker, &vouching.token(&claims), None).await));
    claims["repository_id"] = serde_json::json!("1");
    out.push(("token-client".to_owned(), vouching.client(broker, &vouching.token(&claims), None).await));
    out
}

/// Whom an RPC lets through, in the order of the callers.
async fn let_through(path: &str, callers: &[(String, Client)]) -> String {
    let mut answers: BTreeMap<&str, Vec<&str>> = BTreeMap::new();
    for (name, client) in callers {
        let code = call(client, path).await;
        assert!(!matches!(code, Code::Unimplemented | Code::Unavailable), "{name} {path}: {code:?}");
        // InvalidArgument, FailedPrecondition and the like mean: let through, and refused for what was asked.
        let answer = match code {
            Code::PermissionDenied => "refused",
            Code::Unauthenticated => "unauthenticated",
            _ => "through",
        };
        answers.entry(answer).or_default().push(name);
    }
    // Who has no identity is nobody, whatever is asked for.
    assert_eq!(answers["unauthenticated"], ["no-certificate", "expired-token"], "{path}: {answers:?}");
    answers.get("through").cloned().unwrap_or_default().join(" ")
}

#[tokio::test]
async fn every_kind_of_caller_gets_what_the_golden_matrix_says() {
    let mut broker = Broker::start().await;
    let vouching = Vouching::new();
    let shared = callers(&broker, &vouching).await;
    let mut lines = Vec::new();
    for path in methods() {
        // An empty message is all that these take to change the vault under the others.
        let through = if path.ends_with("/Rotate") || path.ends_with("/Rekey") {
            let mut own = Broker::start().await;
            let through = let_through(&path, &callers(&own, &vouching).await).await;
            own.stop().await;
            through
        } else {
            let_through(&path, &shared).await
        };
        lines.push(format!("{}: {through}", path.trim_start_matches("/p8broker.v1.")));
    }
    let matrix = lines.join("\n") + "\n";
    assert_eq!(matrix, GOLDEN, "the matrix is:\n{matrix}");
    broker.stop().await;
}

#[tokio::test]
async fn an_rpc_without_a_row_is_not_served() {
    let mut broker = Broker::start().await;
    assert_eq!(call(&broker.as_(OPERATOR).await, "/p8broker.v1.TokenService/Sign").await, Code::Unimplemented);
    broker.stop().await;
}

#[tokio::test]
async fn refused_operators_are_in_the_audit_and_revoked_ones_have_no_powers() {
    let mut broker = Broker::start().await;
    let mut client = broker.as_(CLIENT).await;
    assert_eq!(refused(client.key.list_keys(proto::ListKeysRequest::default()).await).1, "NOT_AN_OPERATOR");
    let mut operator = broker.as_(OPERATOR).await;
    eventually("the refusal is in the audit", async || {
        operator.all_events().await.iter().any(|event| {
            event.event == "/p8broker.v1.KeyService/ListKeys"
                && event.reason == "NOT_AN_OPERATOR"
                && event.caller == CLIENT
        })
    })
    .await;
    let second = "spiffe://acme.internal/ns/ops/sa/second";
    let powers = [proto::Power::Administer, proto::Power::Revoke];
    operator.apply(crate::harness::operator("second", second, &powers)).await.unwrap();
    let mut second_client = broker.as_(second).await;
    second_client.revoke(proto::TargetKind::Client, OPERATOR).await.unwrap();
    assert_eq!(refused(operator.apply(sample()).await).1, "POWER_MISSING");
    assert_eq!(refused(operator.key.list_keys(proto::ListKeysRequest::default()).await).1, "NOT_AN_OPERATOR");
    broker.stop().await;
}

#[tokio::test]
async fn health_and_reflection_are_served() {
    let mut broker = Broker::start().await;
    let client = broker.as_(CLIENT).await;
    for path in ["/grpc.health.v1.Health/Check", "/grpc.reflection.v1.ServerReflection/ServerReflectionInfo"] {
        let code = call(&client, path).await;
        assert!(
            !matches!(code, Code::Unimplemented | Code::PermissionDenied | Code::Unauthenticated),
            "{path}: {code:?}"
        );
    }
    broker.stop().await;
}
