//! A replica that is behind by a hundred thousand control records, and catches up.

use std::sync::Arc;

use p8broker::clock::Stopwatch;
use p8broker::domain::target::Target;
use tokio::task::JoinSet;

use crate::harness::fleet::Cluster;
use crate::harness::*;

const RECORDS: u64 = 100_000;

pub async fn run() {
    let mut cluster = Cluster::start(1).await;
    let inner = Arc::clone(cluster.replicas[0].inner());
    let revision = |inner: &Arc<p8broker::broker::Broker>| inner.open().unwrap().state().head().revision.0;
    // The replica that will be behind: opened now, and kept from following by a state that is copied before it grows.
    let behind = inner.open().unwrap().state();
    let watch = Stopwatch::start();
    let mut changes = JoinSet::new();
    for worker in 0..64 {
        let inner = Arc::clone(&inner);
        changes.spawn(async move {
            let caller = p8broker::broker::Caller { principal: principal(OPERATOR), identity: String::new() };
            let name = p8broker::id::PolicyName::parse(&format!("churn-{worker}")).unwrap();
            while inner.open().unwrap().state().head().revision.0 < RECORDS {
                inner.revoke(&caller, Target::Policy(name.clone()), "churn".to_owned()).await.unwrap();
                inner.reinstate(&caller, Target::Policy(name.clone()), "churn".to_owned()).await.unwrap();
            }
        });
    }
    while let Some(done) = changes.join_next().await {
        done.unwrap();
    }
    let made = revision(&inner) - behind.head().revision.0;
    println!("\n{made} control records, made by 64 changes in flight: {:.0}/s", made as f64 / watch.seconds());
    let watch = Stopwatch::start();
    let caught_up = inner.replay((*behind).clone()).await.unwrap();
    let took = watch.seconds();
    assert_eq!(caught_up.head(), inner.open().unwrap().state().head());
    println!("a replica behind by all of them catches up in {took:.2} s ({:.0} records/s)", made as f64 / took);
    let mut new = cluster.replicas[0].sibling(2);
    let watch = Stopwatch::start();
    new.run(None).await;
    println!("a new replica starts from the newest checkpoint, and is open in {:.0} ms", watch.seconds() * 1e3);
    new.stop().await;
    cluster.stop().await;
}
