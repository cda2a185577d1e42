//! Replicas on one PostgreSQL database.

use super::{Broker, Options, eventually};

/// Replicas on one PostgreSQL database, which is made for them.
pub struct Cluster {
    pub replicas: Vec<Broker>,
}

impl Cluster {
    /// Initialised and filled, all of them open.
    pub async fn start(count: usize) -> Self {
        Self::with(count, Options::default()).await
    }

    pub async fn with(count: usize, options: Options) -> Self {
        let options = Options { url: Some(new_database().await), ..options };
        let mut replicas = vec![Broker::with(options).await];
        for nth in 2..=count {
            let mut replica = replicas[0].sibling(nth);
            replica.run(None).await;
            replicas.push(replica);
        }
        for replica in &replicas {
            eventually("every replica is open", async || replica.is_open()).await;
        }
        Self { replicas }
    }

    pub async fn stop(&mut self) {
        for replica in &mut self.replicas {
            if replica.is_running() {
                replica.stop().await;
            }
        }
    }
}

/// Waits until every replica has what the first one has.
pub async fn in_step(replicas: &[Broker]) {
    let revision = |broker: &Broker| broker.inner().open().map(|open| open.state().head().revision).ok();
    eventually("the replicas are in step", async || {
        let first = revision(&replicas[0]);
        replicas.iter().all(|replica| revision(replica) == first)
    })
    .await;
}

/// A new database on the PostgreSQL that `make test` starts; its URL.
pub async fn new_database() -> String {
    use std::sync::atomic::{AtomicU32, Ordering};
    static COUNT: AtomicU32 = AtomicU32::new(0);
    let server = std::env::var("P8BROKER_TEST_POSTGRES").expect("run the tests with `make test`: it starts PostgreSQL");
    let name = format!("test_{}_{}", std::process::id(), COUNT.fetch_add(1, Ordering::SeqCst));
    let mut connection = <sqlx::PgConnection as sqlx::Connection>::connect(&server).await.unwrap();
    sqlx::query(sqlx::AssertSqlSafe(format!("create database {name}"))).execute(&mut connection).await.unwrap();
    server.replace("/postgres?", &format!("/{name}?"))
}
