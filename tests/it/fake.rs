//! A token service that does what a test says, over mutual TLS with the harness's certificates.

use std::collections::VecDeque;
use std::net::{Ipv4Addr, SocketAddr};
use std::num::NonZeroU32;
use std::sync::{Arc, Mutex};
use std::time::Duration;

use p8broker::client::{Pace, Target};
use p8broker::clock::{Stopwatch, SystemClock};
use p8broker::grpc::proto;
use p8broker::grpc::proto::token_service_server::{TokenService, TokenServiceServer};
use p8broker::grpc::proto::watch_response::Event as Said;
use p8broker::id::TokenId;
use p8broker::metrics::Metrics;
use p8broker::tls::{Limits, Tls};
use tokio::net::TcpListener;
use tokio::sync::{Semaphore, mpsc};
use tokio_stream::wrappers::ReceiverStream;
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;
use tonic::{Request, Response, Status};

use crate::harness::{Broker, CLIENT, ISSUER, KEY_ID, Options};

/// How the service answers one request for a token, beyond issuing.
pub enum Turn {
    /// Not at all.
    Fail(Status),
    /// With this number, once the test says so.
    Late(u64, Arc<Semaphore>),
}

/// What the service does, and what was asked of it.
pub struct Script {
    /// Turns for the next requests; after them every request gets a token.
    pub turns: VecDeque<Turn>,
    /// The answer to every request while it is there.
    pub refuse: Option<Status>,
    pub life: Duration,
    pub revision: u64,
    /// Whether each request asked for a fresh token, and when.
    pub asked: Vec<(bool, f64)>,
    pub introspected: Vec<String>,
    /// What introspection answers: alive, revoked, or not found.
    pub alive: Option<bool>,
    pub watched_from: Vec<u64>,
    pub watchers: Vec<mpsc::Sender<Result<proto::WatchResponse, Status>>>,
    pub watch_refused: Option<Status>,
    /// Whether the next watch is never opened.
    pub watch_hangs: bool,
    /// What a watch says first.
    pub hello: Said,
}

#[derive(Clone)]
pub struct Fake {
    script: Arc<Mutex<Script>>,
    started: Stopwatch,
    /// What ends the server that this is served by.
    stop: CancellationToken,
}

/// The id of the nth token.
pub fn id(nth: u64) -> TokenId {
    TokenId::parse(&format!("{nth:064x}")).unwrap()
}

#[tonic::async_trait]
impl TokenService for Fake {
    type WatchStream = ReceiverStream<Result<proto::WatchResponse, Status>>;

    async fn issue_token(
        &self,
        request: Request<proto::IssueTokenRequest>,
    ) -> Result<Response<proto::IssueTokenResponse>, Status> {
        self.here()?;
        let fresh = request.get_ref().fresh;
        let (nth, turn) = self.with(|it| {
            it.asked.push((fresh, self.started.seconds()));
            (it.asked.len() as u64, it.turns.pop_front())
        });
        let nth = match turn {
            Some(Turn::Fail(status)) => return Err(status),
            Some(Turn::Late(nth, go)) => {
                go.acquire().await.unwrap().forget();
                nth
            }
            None => nth,
        };
        let (refuse, life, revision) = self.with(|it| (it.refuse.clone(), it.life, it.revision));
        if let Some(status) = refuse {
            return Err(status);
        }
        Ok(Response::new(proto::IssueTokenResponse {
            token: format!("header.payload-{nth}.signature"),
            token_id: id(nth).to_string(),
            expires_at: Some(prost_types::Timestamp { seconds: 1_800_000_000, nanos: 0 }),
            expires_in: Some(life.try_into().unwrap()),
            key_id: KEY_ID.to_owned(),
            issuer_id: ISSUER.to_owned(),
            policy: "games-release-ci".to_owned(),
            revision,
            ..proto::IssueTokenResponse::default()
        }))
    }

    async fn watch(&self, request: Request<proto::WatchRequest>) -> Result<Response<Self::WatchStream>, Status> {
        self.here()?;
        if self.with(|it| std::mem::replace(&mut it.watch_hangs, false)) {
            std::future::pending::<()>().await;
        }
        let (sender, receiver) = mpsc::channel(16);
        self.with(|it| {
            it.watched_from.push(request.get_ref().from_revision);
            if let Some(status) = it.watch_refused.clone() {
                return Err(status);
            }
            sender.try_send(Ok(message(it.revision, it.hello.clone()))).unwrap();
            it.watchers.push(sender);
            Ok(Response::new(ReceiverStream::new(receiver)))
        })
    }

    async fn introspect_token(
        &self,
        request: Request<proto::IntrospectTokenRequest>,
    ) -> Result<Response<proto::IntrospectTokenResponse>, Status> {
        let token_id = request.into_inner().token_id;
        self.with(|it| {
            it.introspected.push(token_id.clone());
            let revoked = !it.alive.ok_or_else(|| Status::not_found("no such token"))?;
            let revision = it.revision;
            Ok(Response::new(proto::IntrospectTokenResponse {
                token_id,
                revoked,
                revision,
                ..proto::IntrospectTokenResponse::default()
            }))
        })
    }
}

fn message(revision: u64, event: Said) -> proto::WatchResponse {
    proto::WatchResponse { revision, event: Some(event) }
}

impl Fake {
    pub fn new() -> Self {
        let script = Script {
            turns: VecDeque::new(),
            refuse: None,
            life: Duration::from_secs(600),
            revision: 7,
            asked: Vec::new(),
            introspected: Vec::new(),
            alive: Some(true),
            watched_from: Vec::new(),
            watchers: Vec::new(),
            watch_refused: None,
            watch_hangs: false,
            hello: Said::Heartbeat(proto::Heartbeat {}),
        };
        let script = Arc::new(Mutex::new(script));
        Self { script, started: Stopwatch::start(), stop: CancellationToken::new() }
    }

    /// A server that is ending takes nothing on that would keep it from it.
    fn here(&self) -> Result<(), Status> {
        if self.stop.is_cancelled() { Err(Status::unavailable("the server ends")) } else { Ok(()) }
    }

    pub fn with<T>(&self, use_it: impl FnOnce(&mut Script) -> T) -> T {
        use_it(&mut self.script.lock().unwrap())
    }

    pub fn asked(&self) -> usize {
        self.with(|it| it.asked.len())
    }

    /// Says something on every watch.
    pub fn say(&self, revision: u64, event: &Said) {
        self.with(|it| it.watchers.retain(|watcher| watcher.try_send(Ok(message(revision, event.clone()))).is_ok()));
    }

    pub fn say_revoked(&self, revision: u64, ids: &[TokenId]) {
        let token_ids = ids.iter().map(ToString::to_string).collect();
        self.say(revision, &Said::Revoked(proto::TokensRevoked { kind: proto::TargetKind::Key.into(), token_ids }));
    }
}

/// Certificates for services and clients.
pub struct Place(pub Broker);

/// A running service.
pub struct Running {
    pub addr: SocketAddr,
    pub fake: Fake,
    tasks: TaskTracker,
}

impl Place {
    pub fn new() -> Self {
        Self(Broker::prepare(&Options::default()))
    }

    pub async fn serve(&self, fake: Fake) -> Running {
        self.serve_at(fake, (Ipv4Addr::LOCALHOST, 0).into()).await
    }

    pub async fn serve_at(&self, fake: Fake, addr: SocketAddr) -> Running {
        let listener = TcpListener::bind(addr).await.unwrap();
        let addr = listener.local_addr().unwrap();
        let (metrics, clock) = (Metrics::new().unwrap(), Arc::new(SystemClock));
        let tls = Arc::new(Tls::load(self.0.config.tls_files(), clock, metrics, Arc::new(|| false)).unwrap());
        let (tasks, stop) = (TaskTracker::new(), CancellationToken::new());
        let fake = Fake { stop: stop.clone(), ..fake };
        let limits = Limits { connections: 100, requests_per_second: NonZeroU32::new(1_000_000).unwrap() };
        let connections = tls.accept(listener, limits, &tasks, stop.clone());
        let serving = tonic::transport::Server::builder()
            .add_service(TokenServiceServer::new(fake.clone()))
            .serve_with_incoming_shutdown(ReceiverStream::new(connections), stop.clone().cancelled_owned());
        tasks.spawn(async move { serving.await.unwrap() });
        Running { addr, fake, tasks }
    }

    pub fn target(&self, addr: impl ToString) -> Target {
        let (cert, key) = self.0.pki.client(CLIENT);
        let cacert = self.0.pki.dir.join("ca.pem");
        Target::certified(addr.to_string(), cacert, cert, key)
    }
}

impl Running {
    /// Ends it, with its connections.
    pub async fn stop(self) -> SocketAddr {
        self.fake.stop.cancel();
        self.fake.with(|it| it.watchers.clear());
        self.tasks.close();
        tokio::time::timeout(Duration::from_secs(20), self.tasks.wait()).await.expect("ended in time");
        self.addr
    }
}

/// Less patient than the usual one.
pub fn pace() -> Pace {
    Pace {
        patience: Duration::from_secs(10),
        retry_first: Duration::from_millis(20),
        retry_most: Duration::from_millis(100),
        refused: Duration::from_millis(200),
        ..Pace::default()
    }
}
