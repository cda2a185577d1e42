//! Stands between one replica and PostgreSQL, and does what networks do: stops passing bytes on, in the middle of a
//! statement if need be, closes connections, and leads to another server.
//!
//! It knows two things about PostgreSQL's protocol: a connection that says `LISTEN` is the one for notifications, and what
//! a client writes at once is one group of messages that ends with `Sync`. All but the last byte of such a group is a
//! statement that the server has run in a transaction that it can't end: with every lock that it took.

use std::net::Ipv4Addr;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU16, Ordering};

use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::tcp::{OwnedReadHalf, OwnedWriteHalf};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::watch;
use tokio::task::JoinSet;

/// Ends with it: its connections belong to its task.
pub struct Proxy {
    pub port: u16,
    upstream: Arc<AtomicU16>,
    weather: watch::Sender<Weather>,
    _accepting: JoinSet<()>,
}

/// What is wrong with the network.
#[derive(Debug, Clone, Copy, Default)]
struct Weather {
    /// Nothing passes, in either direction.
    stalled: bool,
    /// The next large enough group of messages from the replica is passed on in part, and then nothing more.
    cut: Option<Cut>,
    /// Connections from before the last change of it are closed.
    era: u64,
    /// The same, for those that listen for notifications.
    listener_era: u64,
    /// Whoever listens for notifications is closed.
    deaf: bool,
    /// Connections that listen for notifications now.
    listeners: u32,
}

/// Where to stop in the middle of a statement.
#[derive(Debug, Clone, Copy)]
pub struct Cut {
    /// Only in a group of at least so many bytes.
    pub at_least: usize,
    pub keep: Keep,
}

/// How much still passes.
#[derive(Debug, Clone, Copy)]
pub enum Keep {
    /// The server waits for the rest of a message.
    Half,
    /// The server has run the statement, and waits for the end of the group with its transaction open.
    AllButTheLastByte,
}

impl Proxy {
    pub async fn start(upstream: u16) -> Self {
        let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).await.unwrap();
        let port = listener.local_addr().unwrap().port();
        let (upstream, weather) = (Arc::new(AtomicU16::new(upstream)), watch::Sender::default());
        let mut accepting = JoinSet::new();
        accepting.spawn(accept(listener, Arc::clone(&upstream), weather.clone()));
        Self { port, upstream, weather, _accepting: accepting }
    }

    /// Where connections lead from now on; those that are open are closed.
    pub fn lead_to(&self, upstream: u16) {
        self.upstream.store(upstream, Ordering::SeqCst);
        self.weather.send_modify(|weather| weather.era += 1);
    }

    pub fn stall(&self) {
        self.weather.send_modify(|weather| weather.stalled = true);
    }

    /// Stalls in the middle of the next statement, see [`Cut`].
    pub fn stall_within(&self, cut: Cut) {
        self.weather.send_modify(|weather| weather.cut = Some(cut));
    }

    pub fn is_stalled(&self) -> bool {
        self.weather.borrow().stalled
    }

    /// Passes everything on again, from where it stopped.
    pub fn resume(&self) {
        self.weather.send_modify(|weather| (weather.stalled, weather.cut) = (false, None));
    }

    /// Closes the connections that listen for notifications.
    pub fn cut_listeners(&self) {
        self.weather.send_modify(|weather| weather.listener_era += 1);
    }

    /// Closes them, and every new one, until told otherwise.
    pub fn set_deaf(&self, deaf: bool) {
        self.weather.send_modify(|weather| {
            weather.deaf = deaf;
            weather.listener_era += 1;
        });
    }

    pub fn listeners(&self) -> u32 {
        self.weather.borrow().listeners
    }
}

async fn accept(listener: TcpListener, upstream: Arc<AtomicU16>, weather: watch::Sender<Weather>) {
    let mut connections = JoinSet::new();
    loop {
        tokio::select! {
            accepted = listener.accept() => {
                let (client, _) = accepted.unwrap();
                connections.spawn(connection(client, upstream.load(Ordering::SeqCst), weather.clone()));
            }
            Some(_) = connections.join_next() => {}
        }
    }
}

/// One connection, until either side or the weather ends it.
async fn connection(client: TcpStream, upstream: u16, weather: watch::Sender<Weather>) {
    // A server that is away closes the connection of the client, too.
    let Ok(server) = TcpStream::connect((Ipv4Addr::LOCALHOST, upstream)).await else { return };
    if client.set_nodelay(true).and(server.set_nodelay(true)).is_err() {
        return;
    }
    let ((from_client, to_client), (from_server, to_server)) = (client.into_split(), server.into_split());
    let listens = Listens { weather: weather.clone(), yes: AtomicBool::new(false) };
    tokio::select! {
        _ = requests(from_client, to_server, &listens) => {}
        _ = answers(from_server, to_client, &weather) => {}
        () = closed(&listens) => {}
    }
}

/// Whether a connection listens for notifications.
struct Listens {
    weather: watch::Sender<Weather>,
    yes: AtomicBool,
}

impl Listens {
    fn note(&self, chunk: &[u8]) {
        let says = chunk.windows(7).any(|window| window.eq_ignore_ascii_case(b"listen "));
        if says && !self.yes.swap(true, Ordering::SeqCst) {
            self.weather.send_modify(|weather| weather.listeners += 1);
        }
    }
}

impl Drop for Listens {
    fn drop(&mut self) {
        if self.yes.load(Ordering::SeqCst) {
            self.weather.send_modify(|weather| weather.listeners -= 1);
        }
    }
}

async fn closed(listens: &Listens) {
    let mut now = listens.weather.subscribe();
    let began = *now.borrow_and_update();
    let ends = |now: &Weather| {
        let listens = listens.yes.load(Ordering::SeqCst);
        now.era != began.era || (listens && (now.deaf || now.listener_era != began.listener_era))
    };
    // The sender lives in `listens`.
    let _ = now.wait_for(ends).await;
}

async fn flows(weather: &watch::Sender<Weather>) {
    let _ = weather.subscribe().wait_for(|weather| !weather.stalled).await;
}

async fn requests(mut from: OwnedReadHalf, mut to: OwnedWriteHalf, listens: &Listens) -> std::io::Result<()> {
    let mut buffer = vec![0; 256 * 1024];
    loop {
        let count = from.read(&mut buffer).await?;
        let Some(chunk) = buffer.get(..count).filter(|chunk| !chunk.is_empty()) else { return Ok(()) };
        listens.note(chunk);
        // A stall that began meanwhile comes first: only what flows can be cut.
        flows(&listens.weather).await;
        let passed = cut(&listens.weather, count);
        to.write_all(&chunk[..passed]).await?;
        if passed < count {
            flows(&listens.weather).await;
            to.write_all(&chunk[passed..]).await?;
        }
    }
}

/// How much of a group passes. Exactly one connection meets a cut, and stalls them all with it.
fn cut(weather: &watch::Sender<Weather>, count: usize) -> usize {
    let mut passed = count;
    weather.send_if_modified(|weather| {
        let Some(cut) = weather.cut.take_if(|cut| count >= cut.at_least && count > 1) else { return false };
        passed = match cut.keep {
            Keep::Half => count / 2,
            Keep::AllButTheLastByte => count - 1,
        };
        weather.stalled = true;
        true
    });
    passed
}

async fn answers(
    mut from: OwnedReadHalf,
    mut to: OwnedWriteHalf,
    weather: &watch::Sender<Weather>,
) -> std::io::Result<()> {
    let mut buffer = vec![0; 256 * 1024];
    loop {
        let count = from.read(&mut buffer).await?;
        let Some(chunk) = buffer.get(..count).filter(|chunk| !chunk.is_empty()) else { return Ok(()) };
        flows(weather).await;
        to.write_all(chunk).await?;
    }
}

/// That the faults are the faults they are said to be: against a real PostgreSQL, without a broker.
#[tokio::test]
async fn a_statement_cut_before_its_last_byte_keeps_its_locks() {
    use super::postgres::{Postgres, Stop};
    use crate::harness::eventually;
    use sqlx::postgres::{PgConnection, PgListener};
    use sqlx::{Connection, query, query_scalar};

    let dir = tempfile::TempDir::new().unwrap();
    let mut random = super::Random::new(u64::from(std::process::id()));
    let postgres = Postgres::create(&dir.path().join("primary"), super::free_port(&mut random)).await;
    let proxy = Proxy::start(postgres.port).await;
    let url = |port: u16| format!("postgres://p8broker@127.0.0.1:{port}/postgres?sslmode=disable");
    let mut direct = PgConnection::connect(&url(postgres.port)).await.unwrap();
    let mut held = async || -> i64 {
        let text = "select count(*) from pg_locks join pg_stat_activity using (pid) \
                    where locktype = 'advisory' and granted and wait_event_type = 'Client'";
        query_scalar(text).fetch_one(&mut direct).await.unwrap()
    };
    let lock = || query("select pg_advisory_xact_lock(7), $1").bind("x".repeat(500));

    for (keep, locks) in [(Keep::AllButTheLastByte, 1), (Keep::Half, 0)] {
        let mut through = PgConnection::connect(&url(proxy.port)).await.unwrap();
        // Parsed now, so that what is cut is a group that only runs it.
        lock().execute(&mut through).await.unwrap();
        proxy.stall_within(Cut { at_least: 400, keep });
        let mut tasks = JoinSet::new();
        tasks.spawn(async move { lock().execute(&mut through).await.map(|_| ()) });
        eventually("it is cut", async || proxy.is_stalled()).await;
        if locks > 0 {
            eventually("the lock is held, and the server waits for its client", async || held().await == locks).await;
        }
        assert_eq!(held().await, locks);
        proxy.resume();
        assert!(tasks.join_next().await.unwrap().unwrap().is_ok(), "it goes on from where it stopped");
        assert_eq!(held().await, 0);
    }

    let mut listener = PgListener::connect(&url(proxy.port)).await.unwrap();
    listener.listen("it").await.unwrap();
    let mut other = PgConnection::connect(&url(proxy.port)).await.unwrap();
    assert_eq!(proxy.listeners(), 1);
    proxy.cut_listeners();
    eventually("the listener is cut", async || proxy.listeners() == 0).await;
    other.ping().await.unwrap();
    drop(listener);
    proxy.lead_to(postgres.port);
    assert!(other.ping().await.is_err(), "connections to the former server are closed");
    direct.close().await.unwrap();
    postgres.stop(Stop::Fast).await;
}
