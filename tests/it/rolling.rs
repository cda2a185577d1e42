//! A rolling update: three replicas as processes on one PostgreSQL, each taken away and brought back as Kubernetes does it,
//! while clients ask without pause. No request fails.
//!
//! Of each replica, one after the other: its endpoint goes some time after it was told to end, as nobody waits for that;
//! `preStop` sleeps over it; SIGTERM; it ends by itself; the next one starts on its address; once it is ready, its endpoint
//! is there again. Clients reach the replicas in the two ways there are: by a list of addresses (a headless Service), and
//! through a Service, which leads each connection to one endpoint. Connections are asked to go all the time, too, so that
//! every client meets the end of a connection many times.

use std::net::Ipv4Addr;
use std::path::PathBuf;
use std::process::{Child, Command, Stdio};
use std::sync::atomic::{AtomicU64, AtomicUsize, Ordering};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use p8broker::client::{Ask, Target, TokenSource};
use p8broker::grpc::proto;
use rustix::process::{Pid, Signal, kill_process};
use tempfile::TempDir;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpListener, TcpStream};
use tokio::task::JoinSet;
use tokio::time::{Instant, sleep};
use tokio_util::sync::CancellationToken;

use crate::chaos::{Random, free_port, settings};
use crate::cli::BINARY;
use crate::harness::fleet::new_database;
use crate::harness::*;

/// `preStop`, and how long it takes until nobody is led to the replica any more.
const PRE_STOP: Duration = Duration::from_millis(300);
const ENDPOINT_GOES: Duration = Duration::from_millis(100);

/// Of each kind four: two by a list of addresses, two through the Service.
const CLIENTS: usize = 3 * 4;

/// Requests that each client has answered between two steps.
const BETWEEN: u64 = 10;

struct Replica {
    config: PathBuf,
    log: PathBuf,
    grpc: u16,
    ops: u16,
    process: Option<Child>,
}

impl Replica {
    fn prepare(dir: &TempDir, name: &str, url: &str, random: &mut Random) -> Self {
        let (grpc, ops) = (free_port(random), free_port(random));
        let (config, log) = (dir.path().join(format!("{name}.toml")), dir.path().join(format!("{name}.log")));
        let text = settings(dir.path(), name, (grpc, ops), url, "connection_age_s = 1");
        std::fs::write(&config, text).unwrap();
        Self { config, log, grpc, ops, process: None }
    }

    fn start(&mut self) {
        assert!(self.process.is_none(), "it runs already");
        let log = std::fs::File::options().create(true).append(true).open(&self.log).unwrap();
        let mut command = Command::new(BINARY);
        command.args(["serve", "--config"]).arg(&self.config).stdin(Stdio::null()).stdout(Stdio::null()).stderr(log);
        self.process = Some(command.spawn().unwrap());
    }

    /// The readiness probe.
    async fn is_ready(&mut self) -> bool {
        let ended = self.process.as_mut().expect("it runs").try_wait().unwrap();
        assert!(ended.is_none(), "{ended:?}: {}", std::fs::read_to_string(&self.log).unwrap_or_default());
        let asked = async {
            let mut stream = TcpStream::connect((Ipv4Addr::LOCALHOST, self.ops)).await?;
            stream.write_all(b"GET /readyz HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n").await?;
            let mut answer = String::new();
            stream.read_to_string(&mut answer).await?;
            std::io::Result::Ok(answer)
        };
        asked.await.is_ok_and(|answer| answer.starts_with("HTTP/1.1 200"))
    }

    /// SIGTERM, and waits for the end.
    async fn end(&mut self) {
        let mut process = self.process.take().expect("it runs");
        kill_process(Pid::from_child(&process), Signal::TERM).unwrap();
        let mut ended = None;
        eventually("the replica ends by itself", async || {
            ended = process.try_wait().unwrap();
            ended.is_some()
        })
        .await;
        let log = std::fs::read_to_string(&self.log).unwrap_or_default();
        assert!(ended.unwrap().success(), "{log}");
        assert!(!log.contains("still on their way"), "it ended what it should have finished: {log}");
    }
}

impl Drop for Replica {
    /// Ends what a failed test left behind.
    fn drop(&mut self) {
        if let Some(mut process) = self.process.take() {
            let _ = process.kill();
            let _ = process.wait();
        }
    }
}

/// A Service: leads each connection to one of its endpoints, and leaves those that are open where they are.
pub struct Service {
    pub port: u16,
    /// Connections so far.
    pub accepted: Arc<AtomicUsize>,
    endpoints: Arc<Mutex<Vec<u16>>>,
    _accepting: JoinSet<()>,
}

impl Service {
    pub async fn start() -> Self {
        let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).await.unwrap();
        let port = listener.local_addr().unwrap().port();
        let endpoints = Arc::new(Mutex::new(Vec::<u16>::new()));
        let (mut accepting, known) = (JoinSet::new(), Arc::clone(&endpoints));
        let accepted = Arc::new(AtomicUsize::new(0));
        let next = Arc::clone(&accepted);
        accepting.spawn(async move {
            let mut open = JoinSet::new();
            while let Ok((mut client, _)) = listener.accept().await {
                let endpoint = {
                    let known = known.lock().unwrap();
                    known.get(next.fetch_add(1, Ordering::SeqCst) % known.len().max(1)).copied()
                };
                open.spawn(async move {
                    let Some(endpoint) = endpoint else { return };
                    if let Ok(mut server) = TcpStream::connect((Ipv4Addr::LOCALHOST, endpoint)).await {
                        // However it ends: the two ends see it.
                        let _ = tokio::io::copy_bidirectional(&mut client, &mut server).await;
                    }
                });
            }
        });
        Self { port, accepted, endpoints, _accepting: accepting }
    }

    pub fn add(&self, endpoint: u16) {
        self.endpoints.lock().unwrap().push(endpoint);
    }

    fn remove(&self, endpoint: u16) {
        self.endpoints.lock().unwrap().retain(|known| *known != endpoint);
    }
}

/// What clients saw.
#[derive(Default)]
struct Seen {
    failures: Mutex<Vec<String>>,
    answers: Vec<AtomicU64>,
}

impl Seen {
    /// Waits until every client has had so many more answers.
    async fn more(&self, count: u64) {
        let now = || self.answers.iter().map(|it| it.load(Ordering::SeqCst));
        let wanted: Vec<u64> = now().map(|it| it + count).collect();
        eventually("every client has answers", async || {
            let failed = self.failures.lock().unwrap().clone();
            assert!(failed.is_empty(), "{failed:#?}");
            now().zip(&wanted).all(|(now, wanted)| now >= *wanted)
        })
        .await;
    }

    fn take<E: std::fmt::Debug>(&self, who: usize, what: &str, answer: Result<(), E>) {
        match answer {
            Ok(()) => drop(self.answers[who].fetch_add(1, Ordering::SeqCst)),
            Err(error) => self.failures.lock().unwrap().push(format!("{what} {who}: {error:?}")),
        }
    }
}

/// Asks the broker with every request.
async fn ask_all_the_time(who: usize, target: Target, seen: Arc<Seen>, stop: CancellationToken) {
    let mut client = Client::new(target.connect().await.unwrap());
    let scope = vec![format!("GET /v1/builds/{who}")];
    for nth in 0_u64.. {
        if stop.is_cancelled() {
            return;
        }
        let request = proto::IssueTokenRequest { fresh: nth % 2 == 0, scope: scope.clone(), ..ask() };
        seen.take(who, "client", client.issue(request).await.map(drop));
    }
}

/// Makes a connection for every request, as commands do.
async fn connect_all_the_time(who: usize, target: Target, seen: Arc<Seen>, stop: CancellationToken) {
    while !stop.is_cancelled() {
        match target.connect().await {
            Ok(wire) => seen.take(who, "command", Client::new(wire).issue(ask()).await.map(drop)),
            Err(error) => seen.take(who, "command without a connection", Err(error)),
        }
    }
}

/// Takes its token from a source, which asks for a new one all the time.
async fn use_a_source(who: usize, target: Target, seen: Arc<Seen>, stop: CancellationToken) {
    let scope = vec![format!("GET /v1/builds/{who}")];
    let ask =
        Ask { app_group: "games".to_owned(), role: proto::Role::AppManager, ttl: None, scope, from_revision: None };
    let source = TokenSource::start(target, ask).unwrap();
    while !stop.is_cancelled() {
        let token = source.token().await;
        if let Ok(token) = &token {
            source.report_unauthorized(token.id());
        }
        seen.take(who, "source", token.map(drop));
        sleep(Duration::from_millis(10)).await;
    }
    source.stop().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_rolling_update_of_three_replicas_fails_no_request() {
    let dir = TempDir::new().unwrap();
    let pki = Pki::new(&dir.path().join("pki"));
    std::fs::write(dir.path().join("unseal.key"), "5a".repeat(32)).unwrap();
    let url = new_database().await;
    let mut random = Random::new(u64::from(std::process::id()));
    let mut replicas: Vec<Replica> = ["a", "b", "c"].map(|name| Replica::prepare(&dir, name, &url, &mut random)).into();
    let service = Service::start().await;
    let target = |identity: &str, addr: String| {
        let (cert, key) = pki.client(identity);
        Target::certified(addr, pki.dir.join("ca.pem"), cert, key)
    };
    let list = replicas.iter().map(|it| format!("127.0.0.1:{}", it.grpc)).collect::<Vec<_>>().join(",");
    for (nth, replica) in replicas.iter_mut().enumerate() {
        replica.start();
        if nth == 0 {
            let first = target(OPERATOR, format!("127.0.0.1:{}", replica.grpc));
            eventually("the first replica takes connections", async || first.connect().await.is_ok()).await;
            let mut operator = Client::new(first.connect().await.unwrap());
            operator.system.init(proto::InitRequest::default()).await.unwrap();
            operator.apply(sample()).await.unwrap();
            operator.import(&import(KEY_ID, &new_p8())).await.unwrap();
        }
        eventually("the replica is ready", async || replica.is_ready().await).await;
        service.add(replica.grpc);
    }

    let seen = Arc::new(Seen { answers: (0..CLIENTS).map(|_| AtomicU64::new(0)).collect(), ..Seen::default() });
    let (stop, mut clients) = (CancellationToken::new(), JoinSet::new());
    for who in 0..CLIENTS {
        let addr = if who % 2 == 0 { list.clone() } else { format!("127.0.0.1:{}", service.port) };
        let (target, seen, stop) = (target(CLIENT, addr), Arc::clone(&seen), stop.clone());
        match who / 4 {
            0 => clients.spawn(ask_all_the_time(who, target, seen, stop)),
            1 => clients.spawn(use_a_source(who, target, seen, stop)),
            _ => clients.spawn(connect_all_the_time(who, target, seen, stop)),
        };
    }
    let began = Instant::now();
    seen.more(BETWEEN).await;
    for replica in &mut replicas {
        sleep(ENDPOINT_GOES).await;
        service.remove(replica.grpc);
        sleep(PRE_STOP - ENDPOINT_GOES).await;
        replica.end().await;
        seen.more(BETWEEN).await;
        replica.start();
        eventually("the new replica is ready", async || replica.is_ready().await).await;
        service.add(replica.grpc);
        seen.more(BETWEEN).await;
    }
    stop.cancel();
    clients.join_all().await;
    let answers: u64 = seen.answers.iter().map(|it| it.load(Ordering::SeqCst)).sum();
    println!("{answers} answers in {:?}", began.elapsed());
    assert_eq!(*seen.failures.lock().unwrap(), Vec::<String>::new());
    for replica in &mut replicas {
        replica.end().await;
    }
}

#[tokio::test]
async fn a_connection_of_age_is_asked_to_go_and_what_is_on_its_way_goes_on_over_it() {
    let mut broker = Broker::start().await;
    broker.config.limits.connection_age_s = 1;
    broker.restart().await;
    let service = Service::start().await;
    let port = broker.grpc().rsplit_once(':').unwrap().1.parse().unwrap();
    service.add(port);
    let (cert, key) = broker.pki.client(CLIENT);
    let target = Target::certified(format!("127.0.0.1:{}", service.port), broker.pki.dir.join("ca.pem"), cert, key);
    let mut client = Client::new(target.connect().await.unwrap());
    let mut watch = client.token.watch(proto::WatchRequest::default()).await.unwrap().into_inner();
    watch.message().await.unwrap().expect("a first heartbeat");
    let mut token = None;
    eventually("requests go over the third connection", async || {
        token = Some(client.issue(ask()).await.expect("no request fails").token_id);
        service.accepted.load(Ordering::SeqCst) >= 3
    })
    .await;
    broker.as_(OPERATOR).await.revoke(proto::TargetKind::Token, &token.unwrap()).await.unwrap();
    watch.message().await.unwrap().expect("the watch is on the first one still");
    drop((watch, client));
    broker.stop().await;
}
