//! A simulation: random operations on three replicas with faults in the store and the network, against a simple model.
//!
//! Replicas are brokers in this process on one database. Between each and the database stands a faulty store
//! ([`faulty`]); processes are stopped and killed, and clocks jump. Actors ([`actor`]) issue, revoke, seal, apply, rotate,
//! all at once. From time to time they stop, everything settles, and the model ([`model`]) judges what was seen since,
//! from the tables alone. What was found stays as tests of its own ([`finds`]).
//!
//! `SIM_OPS` says how many operations, `SIM_SEED` repeats the choices of a run; which of two that race is first remains the
//! machine's choice. `SIM_STORE=postgres` runs it on PostgreSQL. `SIM_REPORT` names a file for the last line.

mod actor;
mod cluster;
mod faulty;
mod finds;
mod model;
mod record;
mod world;

use std::sync::Arc;
use std::sync::atomic::Ordering;

use p8broker::broker::BrokerError;
use p8broker::clock::{Clock, SystemClock};
use p8broker::store::ExposureCursor;
use tokio::task::JoinSet;

use crate::chaos::{Random, number};
use actor::Actor;
use cluster::{Fleet, REPLICAS, caller};
use model::Model;
use record::{Received, Record};

/// Actors at a time: with them several requests wait at each replica.
const ACTORS: u64 = 12;

/// Operations between two looks of the model, and looks between two verifications of the whole audit.
const WINDOW: u64 = 1000;
const VERIFIED: u64 = 10;

/// What CI has time for.
const CI_OPERATIONS: u64 = 4000;

/// The first say what is wrong; the rest is counted.
const MOST_SHOWN: usize = 20;

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn p5_holds_in_a_simulated_fleet() {
    let seed = number("SIM_SEED").unwrap_or_else(|| u64::try_from(SystemClock.now().0).unwrap());
    let operations = number("SIM_OPS").unwrap_or(CI_OPERATIONS);
    println!("SIM_SEED={seed}");
    let mut random = Random::new(seed);
    let fleet = Fleet::start(random.fork()).await;
    let record = Arc::new(Record::new());
    let mut model = Model::default();
    let mut violations = Vec::new();
    for window in 1.. {
        let until = record.operations.load(Ordering::SeqCst) + WINDOW;
        let until = until.min(operations);
        fleet.weather.turn();
        let mut actors = JoinSet::new();
        for _ in 0..ACTORS {
            actors.spawn(Actor::new(&fleet, &record, random.fork()).run(until));
        }
        actors.join_all().await;
        fleet.weather.settle().await;
        let last = record.operations.load(Ordering::SeqCst) >= operations;
        let before = violations.len();
        violations.extend(look(&fleet, &record, &mut model, &mut random, last || window % VERIFIED == 0).await);
        for violation in violations.iter().skip(before).take(MOST_SHOWN.saturating_sub(before)) {
            println!("{violation}");
        }
        if last {
            break;
        }
    }
    fleet.stop().await;
    let (operations, revokes) = (record.operations.load(Ordering::SeqCst), record.revokes.load(Ordering::SeqCst));
    let last = format!("operations {operations} revokes {revokes} violations {} seed {seed}", violations.len());
    if let Some(file) = std::env::var_os("SIM_REPORT") {
        std::fs::write(file, format!("{last}\n")).unwrap();
    }
    println!("{last}");
    assert!(violations.is_empty(), "{} violations", violations.len());
}

/// Everything has settled: brings all replicas to where they serve, and judges what was seen.
async fn look(fleet: &Fleet, record: &Record, model: &mut Model, random: &mut Random, verify: bool) -> Vec<String> {
    let mut violations = fleet.make_whole().await;
    // What would be signed in the second of a revoked token is that token, and is refused: a later second than any so far.
    fleet.pass(i64::try_from(2 * actor::CLOCKS_APART_MS).unwrap() + 1000);
    for nth in 0..REPLICAS {
        violations.extend(serves(fleet, record, nth, random).await);
    }
    let news = record.take();
    violations.extend(model.judge(fleet.truth.as_ref(), &news, fleet.now().seconds()).await);
    violations.extend(news.complaints);
    for (nth, replica) in fleet.replicas.iter().enumerate() {
        // Who issued a moment ago may have started a writer.
        let _ = replica.broker().exposure(&fleet.operator, None, &ExposureCursor::default()).await;
        let Ok(open) = replica.broker().open() else { continue };
        if open.state().head() != model.state.head() || open.state().snapshot() != model.state.snapshot() {
            violations.push(format!("replica {nth} has another state than the control log"));
        }
    }
    if verify {
        let verified = fleet.replicas[0].broker().verify_audit(&fleet.operator).await;
        match verified {
            Ok(verified) => violations.extend(verified.findings.iter().map(|found| format!("the audit: {found:?}"))),
            Err(error) => violations.push(format!("the audit can't be verified: {error:?}")),
        }
    }
    violations
}

/// A replica that says it is open must be able to issue, or say why not: with every key that it may need.
async fn serves(fleet: &Fleet, record: &Record, nth: usize, random: &mut Random) -> Vec<String> {
    let mut complaints = Vec::new();
    for _ in 0..20 {
        let ask = world::ask(random, None);
        let client = ask.request.principal.client.clone();
        let asked_at = record.heard();
        match fleet.replicas[nth].broker().issue(&caller(client.as_str()), ask).await {
            Ok(issued) => record.receive(Received::of(&client, &issued, asked_at)),
            Err(BrokerError::Denied { .. }) => {}
            Err(error) => complaints.push(format!("replica {nth} does not issue while all is calm: {error:?}")),
        }
    }
    complaints
}
