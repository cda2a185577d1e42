//! Traces: what a collector gets of an RPC, what it never gets, and that nobody waits for it.

use std::net::Ipv4Addr;
use std::num::NonZeroU32;
use std::sync::{Arc, Mutex};
use std::time::Duration;

use opentelemetry_proto::tonic::collector::trace::v1::trace_service_server::{TraceService, TraceServiceServer};
use opentelemetry_proto::tonic::collector::trace::v1::{ExportTraceServiceRequest, ExportTraceServiceResponse};
use opentelemetry_proto::tonic::common::v1::any_value::Value;
use opentelemetry_proto::tonic::trace::v1::Span;
use p8broker::clock::SystemClock;
use p8broker::config::TracesConfig;
use p8broker::grpc::proto;
use p8broker::metrics::Metrics;
use p8broker::tls::{ClientCaFile, Limits, Tls, TlsFiles};
use prost::Message;
use tokio::io::{AsyncRead, AsyncWrite};
use tokio::net::TcpListener;
use tokio_stream::Stream;
use tokio_stream::wrappers::{ReceiverStream, TcpListenerStream};
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;
use tonic::metadata::MetadataMap;
use tonic::transport::server::Connected;
use tonic::{Code, Request, Response, Status};

use crate::bearer::{Vouching, bearing, vouched_policy};
use crate::harness::*;

const TRACE: &str = "4bf92f3577b34da6a3ce929d0e0e4736";
const PARENT: &str = "00f067aa0ba902b7";
const ISSUE: &str = "p8broker.v1.TokenService/IssueToken";

/// What a collector was sent.
#[derive(Clone, Default)]
struct Kept {
    requests: Arc<Mutex<Vec<(MetadataMap, ExportTraceServiceRequest)>>>,
    /// Whether it takes requests and never answers.
    hangs: bool,
}

#[tonic::async_trait]
impl TraceService for Kept {
    async fn export(
        &self,
        request: Request<ExportTraceServiceRequest>,
    ) -> Result<Response<ExportTraceServiceResponse>, Status> {
        let (metadata, _, message) = request.into_parts();
        self.requests.lock().unwrap().push((metadata, message));
        if self.hangs {
            std::future::pending::<()>().await;
        }
        Ok(Response::new(ExportTraceServiceResponse::default()))
    }
}

/// A collector on a free port.
struct Collector {
    endpoint: String,
    kept: Kept,
    stop: CancellationToken,
    tasks: TaskTracker,
}

impl Collector {
    async fn start(hangs: bool) -> Self {
        let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).await.unwrap();
        let endpoint = format!("http://{}", listener.local_addr().unwrap());
        Self::serve(endpoint, TcpListenerStream::new(listener), hangs, CancellationToken::new(), TaskTracker::new())
    }

    /// One with a certificate of its own.
    async fn over_tls(pki: &Pki) -> Self {
        let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).await.unwrap();
        let endpoint = format!("https://{}", listener.local_addr().unwrap());
        let ca = ClientCaFile {
            file: pki.dir.join("ca.pem"),
            trust_domains: vec!["acme.internal".to_owned()],
            dns_suffixes: Vec::new(),
        };
        let (certificate, key) = pki.files("server");
        let files = TlsFiles { certificate, key, client_cas: vec![ca], crls: Vec::new() };
        let tls = Tls::load(files, Arc::new(SystemClock), Metrics::new().unwrap(), Arc::new(|| true)).unwrap();
        let limits = Limits { connections: 10, requests_per_second: NonZeroU32::MAX };
        let (stop, tasks) = (CancellationToken::new(), TaskTracker::new());
        let connections = ReceiverStream::new(Arc::new(tls).accept(listener, limits, &tasks, stop.clone()));
        Self::serve(endpoint, connections, false, stop, tasks)
    }

    fn serve<C, E>(
        endpoint: String,
        connections: impl Stream<Item = Result<C, E>> + Send + 'static,
        hangs: bool,
        stop: CancellationToken,
        tasks: TaskTracker,
    ) -> Self
    where
        C: AsyncRead + AsyncWrite + Connected<ConnectInfo: Clone + Send + Sync> + Unpin + Send + 'static,
        E: Into<Box<dyn std::error::Error + Send + Sync>> + 'static,
    {
        let kept = Kept { hangs, ..Kept::default() };
        let serving = tonic::transport::Server::builder()
            .add_service(TraceServiceServer::new(kept.clone()))
            .serve_with_incoming(connections);
        let stopped = stop.clone();
        tasks.spawn(async move {
            let _ = stopped.run_until_cancelled(serving).await;
        });
        Self { endpoint, kept, stop, tasks }
    }

    fn traces(&self, sample_ratio: f64) -> TracesConfig {
        TracesConfig { endpoint: Some(self.endpoint.clone()), sample_ratio, ..TracesConfig::default() }
    }

    fn spans(&self) -> Vec<Span> {
        let kept = self.kept.requests.lock().unwrap();
        let scopes = kept.iter().flat_map(|(_, it)| &it.resource_spans).flat_map(|it| &it.scope_spans);
        scopes.flat_map(|it| it.spans.clone()).collect()
    }

    fn bytes(&self) -> Vec<u8> {
        self.kept.requests.lock().unwrap().iter().flat_map(|(_, it)| it.encode_to_vec()).collect()
    }

    async fn stop(self) {
        self.stop.cancel();
        self.tasks.close();
        self.tasks.wait().await;
    }
}

async fn broker_with(traces: TracesConfig) -> Broker {
    Broker::with(Options { traces, ..Options::default() }).await
}

/// A request that is part of a trace.
fn traced<T>(message: T, sampled: bool) -> Request<T> {
    let mut request = Request::new(message);
    let parent = format!("00-{TRACE}-{PARENT}-0{}", u8::from(sampled));
    request.metadata_mut().insert("traceparent", parent.parse().unwrap());
    request.metadata_mut().insert("tracestate", "acme=1".parse().unwrap());
    request
}

fn hex(bytes: &[u8]) -> String {
    data_encoding::HEXLOWER.encode(bytes)
}

/// An attribute as text; `None` where it is not there.
fn attribute(span: &Span, name: &str) -> Option<String> {
    let found = span.attributes.iter().find(|it| it.key == name)?;
    Some(match found.value.as_ref()?.value.as_ref()? {
        Value::StringValue(text) => text.clone(),
        Value::IntValue(number) => number.to_string(),
        other => format!("{other:?}"),
    })
}

fn one<'a>(spans: &'a [Span], name: &str) -> &'a Span {
    let mut all = spans.iter().filter(|span| span.name == name);
    let found = all.next().unwrap_or_else(|| panic!("there is no span {name}"));
    assert!(all.next().is_none(), "{name} is there twice");
    found
}

fn holds(content: &[u8], wanted: &[u8]) -> bool {
    content.windows(wanted.len()).any(|window| window == wanted)
}

#[tokio::test]
async fn a_token_is_a_trace_under_the_callers_span_with_its_four_steps_in_order() {
    let collector = Collector::start(false).await;
    // Whoever sends no span is not sampled: all that arrives is of the one request.
    let mut broker = broker_with(collector.traces(0.0)).await;
    let mut client = broker.as_(CLIENT).await;
    let issued = client.token.issue_token(traced(ask(), true)).await.unwrap().into_inner();
    // Stopping sends what is left.
    broker.stop().await;
    let spans = collector.spans();
    let rpc = one(&spans, ISSUE);
    assert_eq!((hex(&rpc.trace_id), hex(&rpc.parent_span_id)), (TRACE.to_owned(), PARENT.to_owned()));
    assert_eq!(rpc.trace_state, "acme=1");
    let said = |name: &str| attribute(rpc, name).unwrap_or_default();
    assert_eq!(said("p8broker.client"), CLIENT);
    assert_eq!(said("p8broker.app_group"), "games");
    assert_eq!(said("p8broker.role"), "APP_MANAGER");
    assert_eq!(said("p8broker.policy"), "games-release-ci");
    assert_eq!(said("p8broker.outcome"), "SIGNED");
    assert_eq!(said("p8broker.decision_id"), issued.decision_id);
    assert_eq!(said("p8broker.revision"), issued.revision.to_string());
    assert_eq!((said("rpc.system"), said("rpc.grpc.status_code")), ("grpc".to_owned(), "0".to_owned()));
    assert_eq!(attribute(rpc, "p8broker.reason"), None);
    let mut last = rpc.start_time_unix_nano;
    for name in ["authenticate", "decide", "sign", "commit"] {
        let step = one(&spans, name);
        assert_eq!((&step.trace_id, &step.parent_span_id), (&rpc.trace_id, &rpc.span_id), "{name}");
        assert!(last <= step.start_time_unix_nano, "{name} begins after the step before it has ended");
        assert!(step.start_time_unix_nano <= step.end_time_unix_nano, "{name}");
        last = step.end_time_unix_nano;
    }
    assert!(last <= rpc.end_time_unix_nano);
    let (commit, group) = (one(&spans, "commit"), one(&spans, "group_commit"));
    assert_eq!(group.parent_span_id, commit.span_id);
    assert!(commit.start_time_unix_nano <= group.start_time_unix_nano);
    assert!(group.end_time_unix_nano <= commit.end_time_unix_nano);
    assert_eq!(attribute(group, "p8broker.rows").as_deref(), Some("1"));
    assert_eq!(spans.len(), 6);
    collector.stop().await;
}

#[tokio::test]
async fn a_denial_has_its_reason_and_a_change_its_commit() {
    let collector = Collector::start(false).await;
    let mut broker = broker_with(collector.traces(0.0)).await;
    let mut stranger = broker.as_(STRANGER).await;
    let denied = stranger.token.issue_token(traced(ask(), true)).await;
    assert_eq!(refused(denied).0, Code::PermissionDenied);
    let target = Some(target(proto::TargetKind::Client, STRANGER));
    let revoke = proto::RevokeRequest { target, reason: "a test".to_owned() };
    let mut operator = broker.as_(OPERATOR).await;
    operator.revocation.revoke(traced(revoke, true)).await.unwrap();
    let no_power = stranger.audit.list(traced(proto::ListRequest::default(), true)).await;
    assert_eq!(refused(no_power).0, Code::PermissionDenied);
    operator.system.seal(proto::SealRequest { reason: "a test".to_owned() }).await.unwrap();
    operator.system.unseal(traced(proto::UnsealRequest::default(), true)).await.unwrap();
    broker.stop().await;
    let spans = collector.spans();
    let denial = one(&spans, ISSUE);
    assert_eq!(attribute(denial, "p8broker.reason").as_deref(), Some("NO_POLICY"));
    assert_eq!(attribute(denial, "p8broker.outcome").as_deref(), Some("DENIED"));
    assert_eq!(attribute(denial, "rpc.grpc.status_code").as_deref(), Some("7"));
    assert!(attribute(denial, "p8broker.decision_id").is_some());
    let decide = one(&spans, "decide");
    assert_eq!(attribute(decide, "p8broker.reason").as_deref(), Some("NO_POLICY"));
    assert_eq!(denial.status.clone().unwrap_or_default().code, 0, "a refusal is no fault of the server");
    let revoke = one(&spans, "p8broker.v1.RevocationService/Revoke");
    let commits_of =
        |rpc: &Span| spans.iter().filter(|it| it.name == "commit" && it.parent_span_id == rpc.span_id).count();
    assert_eq!(commits_of(revoke), 1);
    // What goes on where its caller has hung up is a part of its trace, too.
    assert_eq!(commits_of(one(&spans, "p8broker.v1.SystemService/Unseal")), 1);
    assert_eq!(attribute(revoke, "p8broker.client").as_deref(), Some(OPERATOR));
    let list = one(&spans, "p8broker.v1.AuditService/List");
    assert!(attribute(list, "p8broker.reason").is_some());
    collector.stop().await;
}

#[tokio::test]
async fn p1_no_span_holds_a_token_a_bearer_a_claim_or_a_key() {
    let collector = Collector::start(false).await;
    let mut broker = broker_with(collector.traces(1.0)).await;
    let mut operator = broker.as_(OPERATOR).await;
    let vouching = Vouching::new();
    let document = proto::Document {
        issuers: vec![vouching.issuer()],
        policies: vec![vouched_policy()],
        ..proto::Document::default()
    };
    operator.apply(document).await.unwrap();
    let p8 = new_p8();
    operator.import(&import("SECONDKEY2", &p8)).await.unwrap();
    let bearer = vouching.token(&vouching.claims(&broker, 300));
    let vouched = bearing(&broker, &bearer, None).connect().await.unwrap();
    let issued = Client::new(vouched).issue(ask()).await.unwrap();
    let whois = proto::WhoisRequest { token: issued.token.clone() };
    operator.audit.whois(whois).await.unwrap();
    // A forged one is refused, and is in no span either.
    let (head, _) = bearer.rsplit_once('.').unwrap();
    let forged = format!("{head}.{}", "A".repeat(86));
    let forged_wire = bearing(&broker, &forged, None).connect().await.unwrap();
    assert_eq!(refused(Client::new(forged_wire).issue(ask()).await).0, Code::Unauthenticated);
    broker.stop().await;
    let bytes = collector.bytes();
    assert!(holds(&bytes, b"p8broker.v1.KeyService/ImportKey") && holds(&bytes, b"p8broker.v1.AuditService/Whois"));
    assert!(holds(&bytes, issued.decision_id.as_bytes()), "what may be there is found");
    for (what, jwt) in [("the token", &issued.token), ("the bearer token", &bearer), ("a forged token", &forged)] {
        for part in jwt.split('.') {
            assert!(!holds(&bytes, part.as_bytes()), "{what} is in a span");
        }
    }
    for claim in ["583231", "9919", "refs/heads/evil", "token.actions.githubusercontent.com"] {
        assert!(!holds(&bytes, claim.as_bytes()), "the claim {claim} is in a span");
    }
    for wanted in crate::leak::spellings(&p8) {
        assert!(!holds(&bytes, &wanted), "the key is in a span");
    }
    collector.stop().await;
}

#[tokio::test]
async fn what_is_not_sampled_or_not_of_the_broker_is_no_span() {
    let collector = Collector::start(false).await;
    let mut broker = broker_with(collector.traces(0.0)).await;
    let mut client = broker.as_(CLIENT).await;
    client.token.issue_token(traced(ask(), false)).await.unwrap();
    client.issue(ask()).await.unwrap();
    let mut broken = Request::new(ask());
    broken.metadata_mut().insert("traceparent", "00-nonsense-01".parse().unwrap());
    client.token.issue_token(broken).await.unwrap();
    // Two parents are none.
    let mut twice = traced(ask(), true);
    twice.metadata_mut().append("traceparent", format!("00-{TRACE}-{PARENT}-01").parse().unwrap());
    client.token.issue_token(twice).await.unwrap();
    let mut health = tonic_health::pb::health_client::HealthClient::new(client.channel.clone());
    health.check(traced(tonic_health::pb::HealthCheckRequest::default(), true)).await.unwrap();
    broker.stop().await;
    assert_eq!(collector.spans().len(), 0);
    collector.stop().await;
}

#[tokio::test]
async fn whoever_is_not_known_does_not_decide_what_is_traced() {
    let collector = Collector::start(false).await;
    let mut broker = broker_with(collector.traces(0.0)).await;
    let vouching = Vouching::new();
    let issuers = proto::Document { issuers: vec![vouching.issuer()], ..proto::Document::default() };
    broker.as_(OPERATOR).await.apply(issuers).await.unwrap();
    let wire = bearing(&broker, "no.such.token", None).connect().await.unwrap();
    let answer = Client::new(wire).token.issue_token(traced(ask(), true)).await;
    assert_eq!(refused(answer).0, Code::Unauthenticated);
    broker.stop().await;
    assert_eq!(collector.spans().len(), 0);
    collector.stop().await;
}

/// More spans than there is room for, while nobody takes any.
async fn issue_beyond_the_queue(broker: &Broker) {
    let client = broker.as_(CLIENT).await;
    let mut tasks = tokio::task::JoinSet::new();
    for _ in 0..16 {
        let mut client = client.clone();
        tasks.spawn(async move {
            for _ in 0..80 {
                client.issue(ask()).await.unwrap();
            }
        });
    }
    tokio::time::timeout(Duration::from_secs(30), tasks.join_all()).await.expect("nobody waits for a collector");
}

async fn dropped(broker: &Broker) -> u64 {
    let (_, text) = broker.ops("/metrics").await;
    let line = text.lines().find_map(|line| line.strip_prefix("p8broker_spans_dropped_total "));
    line.unwrap().parse().unwrap()
}

#[tokio::test]
async fn a_collector_that_is_away_or_hangs_holds_up_nobody_and_what_is_lost_is_counted() {
    let away = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).await.unwrap();
    let endpoint = format!("http://{}", away.local_addr().unwrap());
    drop(away);
    let mut broker =
        broker_with(TracesConfig { endpoint: Some(endpoint), sample_ratio: 1.0, ..TracesConfig::default() }).await;
    issue_beyond_the_queue(&broker).await;
    eventually("what was lost is counted", async || dropped(&broker).await > 0).await;
    broker.stop().await;
    let collector = Collector::start(true).await;
    let mut broker = broker_with(collector.traces(1.0)).await;
    issue_beyond_the_queue(&broker).await;
    eventually("the collector hangs", async || !collector.spans().is_empty()).await;
    assert!(dropped(&broker).await > 0);
    // Stopping gives up on it.
    broker.stop().await;
    collector.stop().await;
}

#[tokio::test]
async fn headers_of_a_file_are_sent_along_and_the_resource_names_the_replica() {
    let collector = Collector::start(false).await;
    let dir = tempfile::TempDir::new().unwrap();
    let file = dir.path().join("headers");
    std::fs::write(&file, "X-Api-Key: first\n").unwrap();
    let mut broker = broker_with(TracesConfig { headers_file: Some(file.clone()), ..collector.traces(1.0) }).await;
    std::fs::write(&file, "X-Api-Key: renewed\n").unwrap();
    broker.as_(CLIENT).await.issue(ask()).await.unwrap();
    broker.stop().await;
    {
        let kept = collector.kept.requests.lock().unwrap();
        let (metadata, request) = kept.last().unwrap();
        assert_eq!(metadata.get("x-api-key").unwrap(), "renewed");
        let resource = request.resource_spans[0].resource.clone().unwrap();
        let of = |name: &str| resource.attributes.iter().find(|it| it.key == name).and_then(|it| it.value.clone());
        let text = |text: &str| Some(Value::StringValue(text.to_owned()));
        assert_eq!(of("service.name").and_then(|it| it.value), text("p8broker"));
        assert_eq!(of("service.instance.id").and_then(|it| it.value), text("replica-1"));
    }
    collector.stop().await;
}

#[tokio::test]
async fn a_collector_with_a_certificate_is_sent_to_where_its_ca_vouches_for_it() {
    let dir = tempfile::TempDir::new().unwrap();
    let (pki, other) = (Pki::new(&dir.path().join("pki")), Pki::new(&dir.path().join("other")));
    let collector = Collector::over_tls(&pki).await;
    for (ca, arrive) in [(other.dir.join("ca.pem"), false), (pki.dir.join("ca.pem"), true)] {
        let mut broker = broker_with(TracesConfig { ca_file: Some(ca), ..collector.traces(0.0) }).await;
        let mut client = broker.as_(CLIENT).await;
        client.token.issue_token(traced(ask(), true)).await.unwrap();
        broker.stop().await;
        assert_eq!(!collector.spans().is_empty(), arrive);
    }
    collector.stop().await;
}
