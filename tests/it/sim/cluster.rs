//! Three replicas on one database, each behind a faulty store and with a clock of its own.

use std::num::NonZeroU32;
use std::path::PathBuf;
use std::sync::atomic::{AtomicI64, Ordering};
use std::sync::{Arc, Mutex};

use p8broker::broker::{Broker, BrokerError, Caller, KeySource, Parts, Phase, Wanted};
use p8broker::clock::{Clock, UnixMillis};
use p8broker::config::{StoreAt, StoreConfig};
use p8broker::metrics::Metrics;
use p8broker::store::Store;
use p8broker::store::postgres::PostgresStore;
use p8broker::store::sqlite::SqliteStore;
use tempfile::TempDir;
use tokio::sync::Mutex as AsyncMutex;
use tokio_util::task::TaskTracker;

use super::faulty::{Engine, Faulty, Weather};
use super::world::{self, OPERATOR};
use crate::chaos::Random;
use crate::harness::fleet::new_database;

pub const REPLICAS: usize = 3;

/// The unseal key of every fleet.
pub const UNSEAL_KEY: &str = "5a5a5a5a5a5a5a5a5a5a5a5a5a5a5a5a5a5a5a5a5a5a5a5a5a5a5a5a5a5a5a5a";

/// How often a fleet is asked to be whole before that is a failure; each time takes a second at most.
const PATIENCE: u32 = 30;

/// A clock beside the common one, which all of them follow.
pub struct SkewedClock {
    common: Arc<AtomicI64>,
    /// How far it was off, newest last.
    offsets: Mutex<Vec<i64>>,
}

/// A moment of one clock, to learn later what it showed since.
pub struct Mark {
    common: i64,
    offsets: usize,
}

impl SkewedClock {
    pub fn jump(&self, offset_ms: i64) {
        self.offsets.lock().unwrap().push(offset_ms);
    }

    pub fn mark(&self) -> Mark {
        Mark { common: self.common.load(Ordering::SeqCst), offsets: self.offsets.lock().unwrap().len() - 1 }
    }

    /// The earliest and the latest second that it can have shown since.
    pub fn since(&self, mark: &Mark) -> (i64, i64) {
        let offsets = self.offsets.lock().unwrap();
        let recent = &offsets[mark.offsets..];
        let (least, most) = (recent.iter().min().unwrap(), recent.iter().max().unwrap());
        let now = self.common.load(Ordering::SeqCst);
        (UnixMillis(mark.common + least).seconds(), UnixMillis(now + most).seconds())
    }
}

impl Clock for SkewedClock {
    fn now(&self) -> UnixMillis {
        let offset = *self.offsets.lock().unwrap().last().unwrap();
        UnixMillis(self.common.load(Ordering::SeqCst) + offset)
    }
}

/// One process, until the next restart.
#[derive(Clone)]
struct Process {
    broker: Arc<Broker>,
    store: Arc<Faulty>,
}

pub struct Replica {
    process: Mutex<Process>,
    /// One restart at a time.
    restarting: AsyncMutex<()>,
    pub clock: Arc<SkewedClock>,
}

impl Replica {
    pub fn broker(&self) -> Arc<Broker> {
        Arc::clone(&self.process.lock().unwrap().broker)
    }

    pub fn store(&self) -> Arc<Faulty> {
        Arc::clone(&self.process.lock().unwrap().store)
    }
}

/// How a process ends.
#[derive(Clone, Copy, PartialEq, Eq)]
pub enum End {
    Stop,
    Kill,
}

pub struct Fleet {
    pub replicas: Vec<Replica>,
    pub weather: Arc<Weather>,
    pub operator: Caller,
    /// The way to the database on which nothing goes wrong.
    pub truth: Arc<dyn Store>,
    common: Arc<AtomicI64>,
    url: Option<String>,
    key_file: PathBuf,
    random: Mutex<Random>,
    ending: TaskTracker,
    _dir: TempDir,
}

impl Fleet {
    /// Initialised and filled, all replicas open, and nothing goes wrong yet.
    pub async fn start(random: Random) -> Arc<Self> {
        let dir = TempDir::new().unwrap();
        let key_file = dir.path().join("unseal.key");
        std::fs::write(&key_file, UNSEAL_KEY).unwrap();
        let url = match std::env::var("SIM_STORE").as_deref() {
            Ok("postgres") => Some(new_database().await),
            Ok("sqlite") | Err(_) => None,
            Ok(other) => panic!("SIM_STORE={other} is neither sqlite nor postgres"),
        };
        let truth: Arc<dyn Store> = match &url {
            Some(url) => postgres(url).await,
            None => Arc::new(SqliteStore::open(&dir.path().join("vault.db")).await.unwrap()),
        };
        let common = Arc::new(AtomicI64::new(world::BEGIN.0));
        let mut fleet = Self {
            replicas: Vec::new(),
            weather: Arc::new(Weather::calm(REPLICAS)),
            operator: caller(OPERATOR),
            truth,
            common,
            url,
            key_file,
            random: Mutex::new(random),
            ending: TaskTracker::new(),
            _dir: dir,
        };
        for nth in 0..REPLICAS {
            let clock = Arc::new(SkewedClock { common: Arc::clone(&fleet.common), offsets: Mutex::new(vec![0]) });
            let process = fleet.process(nth, &clock).await;
            if nth == 0 {
                process.broker.start().await;
                process.broker.init(None, None, std::slice::from_ref(&fleet.operator.principal.client)).await.unwrap();
                let document = world::document().check().unwrap();
                process.broker.apply(&fleet.operator, Wanted::new(document)).await.unwrap();
                for key in world::first_keys() {
                    process.broker.import_key(&fleet.operator, key).await.unwrap();
                }
            } else {
                process.broker.start().await;
            }
            fleet.replicas.push(Replica { process: Mutex::new(process), restarting: AsyncMutex::default(), clock });
        }
        Arc::new(fleet)
    }

    async fn process(&self, nth: usize, clock: &Arc<SkewedClock>) -> Process {
        let (inner, engine) = match &self.url {
            Some(url) => (postgres(url).await, Engine::Own),
            None => (Arc::clone(&self.truth), Engine::Shared),
        };
        let random = self.random.lock().unwrap().fork();
        let store = Arc::new(Faulty::new(inner, engine, nth, Arc::clone(&self.weather), random));
        let broker = Broker::new(Parts {
            store: Arc::<Faulty>::clone(&store),
            clock: Arc::<SkewedClock>::clone(clock),
            metrics: Metrics::new().unwrap(),
            key_source: KeySource::Files { current: self.key_file.clone(), previous: None },
            bootstrap: vec![self.operator.client().clone()],
            anchor: None,
            replica: format!("replica-{nth}"),
            signatures_per_second: NonZeroU32::new(1_000_000).unwrap(),
            canary_every_s: 0,
        });
        Process { broker, store }
    }

    /// Ends a process and starts the next one. One that is killed never learns what became of its last writes.
    pub async fn restart(&self, nth: usize, end: End) {
        self.restart_with(nth, end, |_| ()).await;
    }

    /// The same; `prepare` is shown the way to the database before the new process uses it.
    pub async fn restart_with(&self, nth: usize, end: End, prepare: impl FnOnce(&Faulty)) {
        let replica = &self.replicas[nth];
        let _one_at_a_time = replica.restarting.lock().await;
        let old = replica.process.lock().unwrap().clone();
        match end {
            End::Stop => old.broker.stop().await,
            End::Kill => {
                old.store.kill();
                let broker = Arc::clone(&old.broker);
                self.ending.spawn(async move { broker.stop().await });
            }
        }
        let new = self.process(nth, &replica.clock).await;
        prepare(&new.store);
        new.broker.start().await;
        *replica.process.lock().unwrap() = new;
    }

    pub fn now(&self) -> UnixMillis {
        UnixMillis(self.common.load(Ordering::SeqCst))
    }

    pub fn pass(&self, ms: i64) {
        self.common.fetch_add(ms, Ordering::SeqCst);
    }

    /// Brings every replica to where it serves, with what a fleet has for that: its own looking again, and an operator.
    /// Answers what can't be brought there, and starts that one anew.
    pub async fn make_whole(&self) -> Vec<String> {
        let mut complaints = Vec::new();
        for (nth, replica) in self.replicas.iter().enumerate() {
            let mut last = String::new();
            let mut tries = 0;
            loop {
                let broker = replica.broker();
                broker.open_again().await;
                match &*broker.phase() {
                    Phase::Open(_) => match broker.exposure(&self.operator, None, &Default::default()).await {
                        Ok(_) => break,
                        Err(error) => last = format!("{error:?}"),
                    },
                    Phase::Refusing(refusal) => {
                        complaints.push(format!("replica {nth} refuses to serve: {}", refusal.why));
                        self.restart(nth, End::Stop).await;
                    }
                    Phase::Sealed(_) | Phase::NotInitialised => match broker.unseal(&self.operator, None).await {
                        Ok(_) | Err(BrokerError::Refusing(_)) => {}
                        Err(error) => last = format!("{error:?}"),
                    },
                }
                tries += 1;
                if tries > PATIENCE {
                    complaints.push(format!("replica {nth} does not serve: {last}"));
                    break;
                }
            }
        }
        complaints
    }

    pub async fn stop(&self) {
        for replica in &self.replicas {
            replica.broker().stop().await;
        }
        self.ending.close();
        self.ending.wait().await;
        self.truth.close().await;
    }
}

async fn postgres(url: &str) -> Arc<dyn Store> {
    let StoreAt::Postgres(settings) = StoreConfig::url(url).at().unwrap() else { panic!("{url} is not PostgreSQL") };
    Arc::new(PostgresStore::open(settings, &Metrics::new().unwrap()).await.unwrap())
}

pub fn caller(name: &str) -> Caller {
    Caller { principal: crate::harness::principal(name), identity: String::new() }
}
