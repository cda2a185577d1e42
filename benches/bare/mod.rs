//! What ours is compared with, in the same run: a tonic service with the same TLS that signs a fixed claim set and pushes a
//! message, and does nothing else. And the load that both are given.

use std::net::Ipv4Addr;
use std::num::NonZeroU32;
use std::sync::Arc;

use aws_lc_rs::rand::SystemRandom;
use aws_lc_rs::signature::{ECDSA_P256_SHA256_FIXED_SIGNING, EcdsaKeyPair};
use data_encoding::BASE64URL_NOPAD;
use p8broker::clock::{Stopwatch, SystemClock};
use p8broker::grpc::proto;
use p8broker::grpc::proto::token_service_server::{TokenService, TokenServiceServer};
use p8broker::metrics::Metrics;
use p8broker::tls::{Limits, Tls};
use tokio::net::TcpListener;
use tokio::sync::broadcast;
use tokio::task::JoinSet;
use tokio_stream::StreamExt;
use tokio_stream::wrappers::{BroadcastStream, ReceiverStream};
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;
use tonic::{Request, Response, Status};

use crate::harness::{Broker, Client, ask, ask_fresh};

/// Signs a claim set, and does nothing else.
pub struct Bare {
    key: EcdsaKeyPair,
    push: broadcast::Sender<u64>,
}

#[tonic::async_trait]
impl TokenService for Bare {
    type WatchStream = std::pin::Pin<Box<dyn tokio_stream::Stream<Item = Result<proto::WatchResponse, Status>> + Send>>;

    async fn watch(&self, _: Request<proto::WatchRequest>) -> Result<Response<Self::WatchStream>, Status> {
        let told = BroadcastStream::new(self.push.subscribe());
        let answer = |revision: u64| {
            let event = proto::watch_response::Event::Heartbeat(proto::Heartbeat {});
            Ok(proto::WatchResponse { revision, event: Some(event) })
        };
        let first = tokio_stream::once(answer(0));
        Ok(Response::new(Box::pin(first.chain(told.filter_map(Result::ok).map(answer)))))
    }

    async fn introspect_token(
        &self,
        _: Request<proto::IntrospectTokenRequest>,
    ) -> Result<Response<proto::IntrospectTokenResponse>, Status> {
        Err(Status::unimplemented("a benchmark"))
    }

    async fn issue_token(
        &self,
        _: Request<proto::IssueTokenRequest>,
    ) -> Result<Response<proto::IssueTokenResponse>, Status> {
        let claims = r#"{"iss":"57246542-96fe-1a63-e053-0824d011072a","iat":1,"exp":2,"aud":"appstoreconnect-v1"}"#;
        let mut token = "eyJhbGciOiJFUzI1NiIsImtpZCI6IjJYOVI0SFhGMzQiLCJ0eXAiOiJKV1QifQ.".to_owned();
        BASE64URL_NOPAD.encode_append(claims.as_bytes(), &mut token);
        let signature = self.key.sign(&SystemRandom::new(), token.as_bytes()).map_err(|_| Status::internal("sign"))?;
        token.push('.');
        BASE64URL_NOPAD.encode_append(signature.as_ref(), &mut token);
        Ok(Response::new(proto::IssueTokenResponse { token, ..proto::IssueTokenResponse::default() }))
    }
}

/// Requests a second, and seconds at the 50th and 99th percentile.
#[derive(Clone, Copy)]
pub struct Figures {
    pub rate: f64,
    pub p50: f64,
    pub p99: f64,
}

pub async fn load(clients: &[Client], in_flight: usize, request: &proto::IssueTokenRequest, seconds: f64) -> Figures {
    let mut tasks = JoinSet::new();
    let whole = Stopwatch::start();
    for nth in 0..in_flight {
        let (mut client, request) = (clients[nth % clients.len()].clone(), request.clone());
        tasks.spawn(async move {
            let mut times = Vec::with_capacity(100_000);
            while whole.seconds() < seconds {
                let one = Stopwatch::start();
                client.token.issue_token(request.clone()).await.unwrap();
                times.push(one.seconds());
            }
            times
        });
    }
    let mut times: Vec<f64> = tasks.join_all().await.into_iter().flatten().collect();
    let took = whole.seconds();
    times.sort_by(f64::total_cmp);
    let at = |part: f64| times[((times.len() - 1) as f64 * part) as usize];
    Figures { rate: times.len() as f64 / took, p50: at(0.5), p99: at(0.99) }
}

pub fn median(mut values: Vec<f64>) -> f64 {
    values.sort_by(f64::total_cmp);
    values[values.len() / 2]
}

pub async fn connect(target: &p8broker::client::Target, count: usize) -> Vec<Client> {
    let mut out = Vec::new();
    for _ in 0..count {
        out.push(Client::new(target.connect().await.unwrap()));
    }
    out
}

/// Ours beside the bare service, in alternating rounds: the columns of one line, medians, and ratios of rounds.
pub async fn beside(ours: &[Client], theirs: &[Client], in_flight: usize, seconds: f64) -> String {
    const ROUNDS: usize = 3;
    // Warm up: caches, connections, and the token that is reused.
    for clients in [ours, theirs] {
        load(clients, in_flight, &ask(), 0.3).await;
    }
    let mut rounds: [Vec<Figures>; 3] = Default::default();
    for _ in 0..ROUNDS {
        rounds[0].push(load(theirs, in_flight, &ask(), seconds).await);
        rounds[1].push(load(ours, in_flight, &ask_fresh(), seconds).await);
        rounds[2].push(load(ours, in_flight, &ask(), seconds).await);
    }
    let figure = |which: usize, part: fn(&Figures) -> f64| median(rounds[which].iter().map(part).collect());
    let ratio = |which: usize| median((0..ROUNDS).map(|nth| rounds[which][nth].rate / rounds[0][nth].rate).collect());
    let row = |which: usize| {
        let (p50, p99) = (figure(which, |it| it.p50) * 1e3, figure(which, |it| it.p99) * 1e3);
        format!("{:>8.0} {p50:>6.2} {p99:>6.2}", figure(which, |it| it.rate))
    };
    format!("{}  {} {:>5.2}  {} {:>5.2}", row(0), row(1), ratio(1), row(2), ratio(2))
}

/// Sorted values at the 50th and the 99th percentile.
pub fn percentiles(mut values: Vec<f64>) -> (f64, f64) {
    values.sort_by(f64::total_cmp);
    let at = |part: f64| values[((values.len() - 1) as f64 * part) as usize];
    (at(0.5), at(0.99))
}

/// The bare service, served with the certificates and the acceptor of a broker.
pub struct Served {
    pub addr: String,
    pub push: broadcast::Sender<u64>,
    stop: CancellationToken,
    tasks: TaskTracker,
}

impl Served {
    pub async fn start(broker: &Broker) -> Self {
        let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).await.unwrap();
        let addr = listener.local_addr().unwrap().to_string();
        let files = broker.config.tls_files();
        let tls =
            Arc::new(Tls::load(files, Arc::new(SystemClock), Metrics::new().unwrap(), Arc::new(|| false)).unwrap());
        let (tasks, stop) = (TaskTracker::new(), CancellationToken::new());
        let limits = Limits { connections: 20_000, requests_per_second: NonZeroU32::new(1_000_000).unwrap() };
        let connections = tls.accept(listener, limits, &tasks, stop.clone());
        let (push, _) = broadcast::channel(16);
        let key = EcdsaKeyPair::generate(&ECDSA_P256_SHA256_FIXED_SIGNING).unwrap();
        let serving = tonic::transport::Server::builder()
            .add_service(TokenServiceServer::new(Bare { key, push: push.clone() }))
            .serve_with_incoming_shutdown(ReceiverStream::new(connections), stop.clone().cancelled_owned());
        tasks.spawn(async move { serving.await.unwrap() });
        Self { addr, push, stop, tasks }
    }

    pub async fn stop(self) {
        self.stop.cancel();
        self.tasks.close();
        self.tasks.wait().await;
    }
}
