//! The watch, the addresses of a target, and `p8broker token watch`, against a token service that does what a test says.
//!
//! Invariants are those of `src/client/watch.rs`.

use std::io::BufRead;
use std::process::{Child, Command, Stdio};
use std::time::Duration;

use p8broker::client::{Pace, Target, WatchEvent, Watcher};
use p8broker::clock::Stopwatch;
use p8broker::grpc::proto;
use p8broker::grpc::proto::watch_response::Event as Said;
use p8broker::id::Revision;
use serde_json::Value;
use tokio::sync::mpsc;
use tonic::Status;

use crate::cli::BINARY;
use crate::fake::{Fake, Place, id, pace};
use crate::harness::eventually;

/// A command line that goes on, and its lines; killed with the test.
struct Process {
    child: Child,
    lines: mpsc::UnboundedReceiver<String>,
}

impl Process {
    fn start(target: &Target, arguments: &[&str]) -> Self {
        let files = target.certificate.as_ref().unwrap();
        let mut child = Command::new(BINARY)
            .args(arguments)
            .env("P8BROKER_ADDR", &target.addr)
            .envs([("P8BROKER_CACERT", &target.cacert), ("P8BROKER_CERT", &files.cert), ("P8BROKER_KEY", &files.key)])
            .stdin(Stdio::null())
            .stdout(Stdio::piped())
            .spawn()
            .unwrap();
        let stdout = std::io::BufReader::new(child.stdout.take().unwrap());
        let (sender, lines) = mpsc::unbounded_channel();
        // A thread: the service that the process talks to runs on this one.
        std::thread::spawn(move || stdout.lines().map_while(Result::ok).try_for_each(|line| sender.send(line)));
        Self { child, lines }
    }

    async fn line(&mut self) -> String {
        let line = tokio::time::timeout(Duration::from_secs(10), self.lines.recv()).await;
        line.expect("a line in time").expect("it goes on")
    }

    fn signal(&self, name: &str) {
        assert!(Command::new("kill").args([name, &self.child.id().to_string()]).status().unwrap().success());
    }
}

impl Drop for Process {
    fn drop(&mut self) {
        // It has ended already, unless a test failed.
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

/// INV-WATCH-1.
#[tokio::test]
async fn a_watch_goes_on_where_it_left_off_after_silence_and_after_an_end() {
    let place = Place::new();
    let running = place.serve(Fake::new()).await;
    let pace = Pace { silence: Duration::from_millis(300), ..pace() };
    let mut watcher = Watcher::new(place.target(running.addr), Revision(3), pace).unwrap();
    assert_eq!(watcher.next().await, WatchEvent::Connected { revision: Revision(7) });
    running.fake.say_revoked(12, &[id(5)]);
    let revoked = WatchEvent::Revoked { kind: proto::TargetKind::Key, token_ids: vec![id(5)], revision: Revision(12) };
    assert_eq!(watcher.next().await, revoked);
    // Signs of life are no events, and as long as they come the watch stands.
    let quiet = Stopwatch::start();
    while quiet.seconds() < 0.7 {
        running.fake.say(12, &Said::Heartbeat(proto::Heartbeat {}));
        assert!(tokio::time::timeout(Duration::from_millis(20), watcher.next()).await.is_err());
    }
    // Nothing comes: INV-WATCH-2, looks that are given up must not start the silence anew.
    let mut lost = None;
    eventually("the silence is noticed", async || {
        lost = tokio::time::timeout(Duration::from_millis(10), watcher.next()).await.ok();
        lost.is_some()
    })
    .await;
    assert!(matches!(&lost, Some(WatchEvent::Disconnected { why }) if why.contains("silent")), "{lost:?}");
    // A database that was restored has a lower revision: it is taken as it is.
    running.fake.with(|it| it.revision = 6);
    assert_eq!(watcher.next().await, WatchEvent::Connected { revision: Revision(6) });
    running.fake.with(|it| {
        it.watchers.clear();
        it.hello = Said::Resynchronise(proto::Resynchronise {});
    });
    assert!(matches!(watcher.next().await, WatchEvent::Disconnected { .. }));
    assert_eq!(watcher.next().await, WatchEvent::Connected { revision: Revision(6) });
    assert_eq!(watcher.next().await, WatchEvent::Resynchronise { revision: Revision(6) });
    assert_eq!(running.fake.with(|it| it.watched_from.clone()), [3, 12, 6]);
    // However often it fails, that is one event.
    running.fake.with(|it| {
        it.watchers.clear();
        it.watch_refused = Some(Status::unavailable("the vault is sealed"));
    });
    assert!(matches!(watcher.next().await, WatchEvent::Disconnected { .. }));
    eventually("it has been tried again", async || {
        let told = tokio::time::timeout(Duration::from_millis(10), watcher.next()).await;
        assert!(told.is_err(), "{told:?}");
        running.fake.with(|it| it.watched_from.len() > 5)
    })
    .await;
    running.fake.with(|it| it.watch_refused = None);
    assert_eq!(watcher.next().await, WatchEvent::Connected { revision: Revision(6) });
    drop(watcher);
    running.stop().await;
}

#[tokio::test]
async fn a_watch_that_the_broker_never_opens_is_given_up_and_opened_again() {
    let place = Place::new();
    let running = place.serve(Fake::new()).await;
    running.fake.with(|it| it.watch_hangs = true);
    let pace = Pace { request: Duration::from_millis(500), ..pace() };
    let mut watcher = Watcher::new(place.target(running.addr), Revision(0), pace).unwrap();
    let lost = tokio::time::timeout(Duration::from_secs(10), watcher.next()).await.expect("it is given up");
    assert!(matches!(&lost, WatchEvent::Disconnected { why } if why.contains("no answer")), "{lost:?}");
    assert!(matches!(watcher.next().await, WatchEvent::Connected { .. }));
    drop(watcher);
    running.stop().await;
}

#[tokio::test]
async fn of_two_addresses_one_that_is_dead_is_no_obstacle_to_connect_and_probe() {
    let place = Place::new();
    let dead = place.serve(Fake::new()).await.stop().await;
    let running = place.serve(Fake::new()).await;
    // Each starts at a random address: ten times the living one first would be chance of one in a thousand.
    for _ in 0..10 {
        let target = place.target(format!("{dead}, {}", running.addr));
        target.probe().await.unwrap();
        drop(target.connect().await.unwrap());
    }
    let error = place.target(format!("{dead},{dead}")).connect().await.unwrap_err().to_string();
    assert_eq!(error.matches(&format!("{dead}: Connection refused")).count(), 2, "each failure is named: {error}");
    running.stop().await;
}

/// The command line over both modes; the JWT is never printed.
#[tokio::test]
async fn token_watch_prints_a_line_for_each_event_and_ends_well_on_a_signal() {
    let place = Place::new();
    for keeps in [true, false] {
        let running = place.serve(Fake::new()).await;
        let mut arguments = vec!["token", "watch", "--output", "json", "--from-revision", "5"];
        if keeps {
            arguments.extend(["--app-group", "games", "--role", "APP_MANAGER"]);
        }
        let mut process = Process::start(&place.target(running.addr), &arguments);
        let mut line = async || {
            let line = process.line().await;
            assert!(!line.contains("payload"), "P1: {line}");
            serde_json::from_str::<Value>(&line).unwrap()
        };
        if keeps {
            let token = line().await;
            assert_eq!((&token["event"], &token["token_id"]), (&"TOKEN".into(), &id(1).as_str().into()));
        }
        let connected = line().await;
        assert_eq!((&connected["event"], &connected["revision"]), (&"CONNECTED".into(), &7.into()));
        assert_eq!(running.fake.with(|it| it.watched_from.clone()), [5]);
        running.fake.say_revoked(8, &[id(40)]);
        let revoked = line().await;
        assert_eq!((&revoked["event"], &revoked["kind"]), (&"REVOKED".into(), &"KEY".into()));
        assert_eq!(revoked["token_ids"], serde_json::json!([id(40).as_str()]));
        running.fake.say(9, &Said::Resynchronise(proto::Resynchronise {}));
        assert_eq!(line().await["event"], "RESYNCHRONISE");
        running.fake.with(|it| it.watchers.clear());
        assert_eq!(line().await["event"], "DISCONNECTED");
        assert_eq!(line().await["event"], "CONNECTED");
        process.signal(if keeps { "-TERM" } else { "-INT" });
        eventually("it ends", async || process.child.try_wait().unwrap().is_some()).await;
        assert_eq!(process.child.wait().unwrap().code(), Some(0));
        running.stop().await;
    }
}
