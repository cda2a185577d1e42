//! What simulations found, each told as shortly as it can be.

use std::sync::{Arc, Mutex};

use p8broker::broker::{Broker, BrokerError, Phase};
use p8broker::domain::target::Target;
use tokio::task::JoinSet;

use super::cluster::{End, Fleet, caller};
use super::faulty::{Fate, Held};
use super::world;
use crate::chaos::Random;
use crate::harness::eventually;

async fn issue(broker: &Broker) -> Result<(), BrokerError> {
    let ask = world::ask(&mut Random::new(1), None);
    let client = ask.request.principal.client.clone();
    broker.issue(&caller(client.as_str()), ask).await.map(drop)
}

/// Reads of the head by which a start that begins anew whenever it moves would have given up.
const HEADS: usize = 100;

/// A replica whose last commit is in doubt starts a new writer with the next one: not on a log that ends with a seal.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn p7_no_writer_starts_on_a_sealed_log() {
    let fleet = Fleet::start(Random::new(1)).await;
    let (here, there) = (fleet.replicas[0].broker(), fleet.replicas[1].broker());
    fleet.replicas[0].store().deafen();
    fleet.replicas[0].store().next_write(Fate::Lost);
    assert!(matches!(issue(&here).await, Err(BrokerError::Unavailable(_))));
    let sealed = there.seal(&fleet.operator, "a test".to_owned()).await.unwrap();
    assert!(issue(&here).await.is_err());
    assert_eq!(fleet.truth.head().await.unwrap().revision, sealed, "the log ends with the seal");
    fleet.stop().await;
}

/// An unseal that loses the head to another one, and then to a new seal, neither lifts that nor serves.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn p7_a_seal_that_comes_while_the_one_before_it_is_lifted_stands() {
    let fleet = Fleet::start(Random::new(1)).await;
    let (here, there) = (fleet.replicas[0].broker(), fleet.replicas[1].broker());
    let seal = async || there.seal(&fleet.operator, "a test".to_owned()).await.unwrap();
    seal().await;
    eventually("the other replica is sealed", async || here.open().is_err()).await;
    let gate = fleet.replicas[0].store().hold(Held::Writes);
    let (unsealing, operator) = (Arc::clone(&here), fleet.operator.clone());
    let mut lifting = JoinSet::new();
    lifting.spawn(async move { unsealing.unseal(&operator, None).await });
    gate.arrival().await;
    there.unseal(&fleet.operator, None).await.unwrap();
    gate.pass(1);
    gate.arrival().await;
    let sealed = seal().await;
    gate.pass(HEADS);
    let lifted = lifting.join_next().await.unwrap().unwrap();
    assert!(lifted.is_err(), "{lifted:?}");
    assert_eq!(fleet.truth.head().await.unwrap().revision, sealed, "the log ends with the newer seal");
    assert!(here.open().is_err(), "nothing serves that has ended");
    assert_eq!(fleet.make_whole().await, [""; 0]);
    issue(&here).await.unwrap();
    fleet.stop().await;
}

/// A log that grows while a replica reads it is not one that was changed.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_replica_that_starts_while_others_change_everything_all_the_time_is_not_alarmed() {
    let fleet = Fleet::start(Random::new(1)).await;
    let there = fleet.replicas[1].broker();
    let gate = Mutex::new(None);
    let moving = async {
        eventually("the new process has its store", async || gate.lock().unwrap().is_some()).await;
        let gate: Arc<super::faulty::Gate> = gate.lock().unwrap().clone().unwrap();
        for nth in 0..HEADS {
            gate.arrival().await;
            let target = Target::Client(world::client(0, 1));
            let reason = "a test".to_owned();
            match nth % 2 {
                0 => drop(there.revoke(&fleet.operator, target, reason).await.unwrap()),
                _ => drop(there.reinstate(&fleet.operator, target, reason).await.unwrap()),
            }
            gate.pass(1);
        }
        gate.pass(1_000_000);
    };
    let starting = fleet.restart_with(0, End::Stop, |store| *gate.lock().unwrap() = Some(store.hold(Held::Heads)));
    tokio::select! {
        () = starting => {}
        () = moving => {}
    }
    let phase = fleet.replicas[0].broker().phase();
    assert!(matches!(&*phase, Phase::Open(_)), "{phase:?}");
    fleet.stop().await;
}
