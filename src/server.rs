//! One process: binds, opens the vault, serves, and stops in order.
//!
//! Steps of a start: TLS files, store, broker, ports; then the vault is opened, so that a sealed one can be reached.
//! Steps of a stop: no new connections, but those whose handshake is under way; requests on their way end, within the drain
//! timeout; what is queued is committed; the database is closed.

use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use tokio::net::TcpListener;
use tokio::sync::mpsc;
use tokio::task::JoinSet;
use tokio_stream::wrappers::ReceiverStream;
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;
use tonic::service::Routes;

use crate::broker::{Broker, Parts, Phase};
use crate::clock::Clock;
use crate::config::{Config, StoreAt};
use crate::grpc::{self, DESCRIPTORS, layer::Gate};
use crate::identity::oidc::Verifier;
use crate::metrics::Metrics;
use crate::ops;
use crate::store::Store;
use crate::store::anchor::Anchor;
use crate::store::postgres::PostgresStore;
use crate::store::sqlite::SqliteStore;
use crate::telemetry::{self, Export, TracesError};
use crate::tls::{Connection, Tls};
use crate::trace::Tracer;

/// The age of a connection that is asked to go as soon as it is there.
const AT_ONCE: Duration = Duration::from_millis(1);

/// How often a replica describes itself, reads the gauges that are in the database, and looks at the database's settings and
/// forgets what is over, in seconds.
const REPORT_EVERY: u32 = 5;
const READ_EVERY: u32 = 15;
const LOOK_EVERY: u32 = 60;

/// Why a server did not start, or did not run to its end.
#[derive(Debug, thiserror::Error)]
pub enum ServerError {
    /// The TLS files can't be used.
    #[error("TLS: {0}")]
    Tls(#[from] crate::tls::TlsError),
    /// Issuers' keys can't be fetched as the configuration says.
    #[error("{0}")]
    Oidc(String),
    /// Traces can't be exported as the configuration says.
    #[error("{0}")]
    Traces(#[from] TracesError),
    /// The database can't be opened.
    #[error("{0}")]
    Store(#[from] crate::store::StoreError),
    /// A port can't be had.
    #[error("listening on {address}: {source}")]
    Listen {
        /// The address.
        address: SocketAddr,
        /// Why.
        source: std::io::Error,
    },
    /// Serving failed.
    #[error("serving: {0}")]
    Serve(String),
}

/// A server whose ports are bound and whose broker has started.
pub struct Server {
    broker: Arc<Broker>,
    tls: Arc<Tls>,
    verifier: Arc<Verifier>,
    grpc: TcpListener,
    ops: TcpListener,
    tracer: Tracer,
    export: Option<Export>,
    config: Config,
}

impl Server {
    /// Binds both ports and opens the store that the configuration names.
    ///
    /// # Errors
    /// With what is in the way.
    pub async fn bind(config: Config, clock: Arc<dyn Clock>) -> Result<Self, ServerError> {
        let metrics = metrics()?;
        let store = open_store(&config, &metrics).await?;
        Self::assemble(config, store, clock, metrics).await
    }

    /// Binds both ports over a store that is open already.
    ///
    /// # Errors
    /// With what is in the way.
    pub async fn bind_with(config: Config, store: Arc<dyn Store>, clock: Arc<dyn Clock>) -> Result<Self, ServerError> {
        let metrics = metrics()?;
        Self::assemble(config, store, clock, metrics).await
    }

    async fn assemble(
        config: Config,
        store: Arc<dyn Store>,
        clock: Arc<dyn Clock>,
        metrics: Metrics,
    ) -> Result<Self, ServerError> {
        let broker = Broker::new(Parts {
            store,
            clock: Arc::clone(&clock),
            metrics: metrics.clone(),
            key_source: config.key_source(),
            bootstrap: config.bootstrap(),
            anchor: config.anchor.file.as_deref().map(Anchor::at),
            replica: config.replica(),
            signatures_per_second: config.limits.signatures_per_second,
            canary_every_s: config.canary.every_s,
        });
        let (tracer, export) = telemetry::traces(&config.traces, &config.replica(), &metrics)?.unzip();
        let asked = Arc::downgrade(&broker);
        let without = Arc::new(move || asked.upgrade().is_some_and(|broker| broker.trusts_issuers()));
        let tls = Tls::load(config.tls_files(), Arc::clone(&clock), metrics.clone(), without)?;
        let verifier = Verifier::new(&config.oidc, clock, metrics);
        let verifier = Arc::new(verifier.map_err(|error| ServerError::Oidc(error.to_string()))?);
        let (grpc, ops) = (listen(config.listen.grpc).await?, listen(config.listen.ops).await?);
        broker.start().await;
        let tracer = tracer.unwrap_or_default();
        Ok(Self { broker, tls: Arc::new(tls), verifier, grpc, ops, tracer, export, config })
    }

    /// The broker.
    pub fn broker(&self) -> &Arc<Broker> {
        &self.broker
    }

    /// Where gRPC is served.
    ///
    /// # Errors
    /// Where the system does not say.
    pub fn grpc_addr(&self) -> std::io::Result<SocketAddr> {
        self.grpc.local_addr()
    }

    /// Where operations are served.
    ///
    /// # Errors
    /// Where the system does not say.
    pub fn ops_addr(&self) -> std::io::Result<SocketAddr> {
        self.ops.local_addr()
    }

    /// Serves until told to stop, then drains.
    ///
    /// # Errors
    /// Where serving failed.
    pub async fn run(self, stop: CancellationToken) -> Result<(), ServerError> {
        let Self { broker, tls, verifier, grpc, ops, tracer, export, config } = self;
        let tasks = TaskTracker::new();
        let gate = Gate::new(Arc::clone(&broker), Arc::clone(&verifier), config.limits(), tracer);
        // Ends after everything that has spans.
        let (exported, exports) = (CancellationToken::new(), TaskTracker::new());
        if let Some(export) = export {
            exports.spawn(export.run(exported.clone()));
        }
        let (reporter, health) = tonic_health::server::health_reporter();
        tasks.spawn(keep_house(Arc::clone(&broker), gate.clone(), Arc::clone(&verifier), reporter, stop.clone()));
        let (watched, every) = (Arc::clone(&tls), Duration::from_secs(config.tls.reload_s));
        let stop_watching = stop.clone();
        tasks.spawn(async move { watched.watch(every, stop_watching).await });
        let ops_stop = stop.clone();
        let ops_router = ops::router(Arc::clone(&broker));
        tasks.spawn(async move {
            let serving = axum::serve(ops, ops_router).with_graceful_shutdown(ops_stop.cancelled_owned());
            if let Err(error) = serving.await {
                tracing::error!(%error, "the port for operations failed");
            }
        });
        let reflection = tonic_reflection::server::Builder::configure()
            .register_encoded_file_descriptor_set(DESCRIPTORS)
            .build_v1()
            .map_err(|error| ServerError::Serve(error.to_string()))?;
        let mut routes = Routes::builder();
        grpc::add_services(&mut routes, &broker);
        routes.add_service(health).add_service(reflection);
        let connections = tls.accept(grpc, config.connection_limits(), &tasks, stop.clone());
        let serving = serve(routes.routes(), &gate, connections, config.limits.connection_age_s, &stop);
        let drained = async {
            stop.cancelled().await;
            // Followers end by themselves once the broker stops; requests on their way finish first.
            broker.begin_stop();
            tokio::time::sleep(Duration::from_secs(config.drain.timeout_s)).await;
        };
        let outcome = tokio::select! {
            outcome = serving => outcome,
            () = drained => {
                tracing::warn!(timeout_s = config.drain.timeout_s, "requests were still on their way when the drain timeout ended");
                Ok(())
            }
        };
        broker.stop().await;
        verifier.stop().await;
        stop.cancel();
        tasks.close();
        tasks.wait().await;
        exported.cancel();
        exports.close();
        exports.wait().await;
        tracing::info!("stopped");
        outcome
    }
}

/// Serves connections in lanes, each with an age of its own at which its connections are asked to go: all around the one
/// that is configured, so that clients that came together do not leave together (as gRPC's `MAX_CONNECTION_AGE` has it).
async fn serve(
    routes: Routes,
    gate: &Gate,
    mut connections: mpsc::Receiver<std::io::Result<Connection>>,
    age_s: u64,
    stop: &CancellationToken,
) -> Result<(), ServerError> {
    const PARTS_OF_AGE: [f64; 5] = [0.9, 0.95, 1.0, 1.05, 1.1];
    let mut serving = JoinSet::new();
    let mut lane_of = |age: Duration, end: &CancellationToken| {
        let (lane, accepted) = mpsc::channel(1);
        let mut server = tonic::transport::Server::builder()
            .http2_keepalive_interval(Some(Duration::from_secs(30)))
            .http2_keepalive_timeout(Some(Duration::from_secs(20)))
            .max_concurrent_streams(1024);
        if !age.is_zero() {
            // No grace: with one, connections would be cut at its end instead of asked to go (tonic 0.14). So what is on its
            // way, a watch or a long backup too, ends as it would have, and new requests go over another connection.
            server = server.max_connection_age(age);
        }
        let served = server.layer(gate.clone()).add_routes(routes.clone());
        let end = end.clone().cancelled_owned();
        serving.spawn(served.serve_with_incoming_shutdown(ReceiverStream::new(accepted), end));
        lane
    };
    let (end, late_end) = (CancellationToken::new(), CancellationToken::new());
    let age_s = f64::from(u32::try_from(age_s).unwrap_or(u32::MAX));
    let age_of = |part: f64| Duration::try_from_secs_f64(part * age_s).unwrap_or_default();
    let lanes = PARTS_OF_AGE.map(|part| lane_of(age_of(part), &end));
    let mut next = lanes.iter().cycle();
    while let Some(Some(connection)) = stop.run_until_cancelled(connections.recv()).await {
        let Some(lane) = next.next() else { break };
        if lane.send(connection).await.is_err() {
            break;
        }
    }
    close(lanes, &end).await;
    // A client whose handshake was under way may have sent its request with it. It is answered, and asked to go.
    let late = lane_of(AT_ONCE, &late_end);
    while let Some(connection) = connections.recv().await {
        if late.send(connection).await.is_err() {
            break;
        }
    }
    close([late], &late_end).await;
    while let Some(ended) = serving.join_next().await {
        let failed = |error: String| ServerError::Serve(error);
        ended.map_err(|error| failed(error.to_string()))?.map_err(|error| failed(error.to_string()))?;
    }
    Ok(())
}

/// Ends lanes, each once it has taken what it was sent: a connection that it does not take would be dropped.
async fn close<const N: usize>(lanes: [mpsc::Sender<std::io::Result<Connection>>; N], end: &CancellationToken) {
    for lane in &lanes {
        // One that has ended takes nothing any more.
        let _ = lane.reserve().await;
    }
    end.cancel();
}

fn metrics() -> Result<Metrics, ServerError> {
    Metrics::new().map_err(|error| ServerError::Serve(error.to_string()))
}

/// Opens the database that the configuration names.
///
/// # Errors
/// Where it can't be reached or used.
pub async fn open_store(config: &Config, metrics: &Metrics) -> Result<Arc<dyn Store>, ServerError> {
    Ok(match config.store.at().map_err(crate::store::StoreError::Unfit)? {
        StoreAt::Sqlite(file) => {
            metrics.listener_up.set(1);
            Arc::new(SqliteStore::open(&file).await?)
        }
        StoreAt::Postgres(settings) => Arc::new(PostgresStore::open(settings, metrics).await?),
    })
}

async fn listen(address: SocketAddr) -> Result<TcpListener, ServerError> {
    TcpListener::bind(address).await.map_err(|source| ServerError::Listen { address, source })
}

/// What asks the database now and then.
#[derive(Default)]
struct Chores {
    opening: Chore,
    reporting: Chore,
    reading: Chore,
    looking: Chore,
}

/// One of them; it is on its way once at a time, and ends with this.
#[derive(Default)]
struct Chore(JoinSet<()>);

impl Chore {
    /// Starts it, unless it is on its way.
    fn start<F: Future<Output = ()> + Send + 'static>(
        &mut self,
        broker: &Arc<Broker>,
        work: impl FnOnce(Arc<Broker>) -> F,
    ) {
        while let Some(ended) = self.0.try_join_next() {
            if let Err(error) = ended {
                tracing::error!(%error, "a chore ended badly; it is tried again when it is due");
            }
        }
        if self.0.is_empty() {
            self.0.spawn(work(Arc::clone(broker)));
        }
    }
}

/// Every second: summaries of refusals, the health service, and whether a vault that is not open can be. Every few: what this
/// replica says of itself, and gauges. Every minute: callers that have been quiet and quotas that are over are forgotten, and
/// the database's settings.
async fn keep_house(
    broker: Arc<Broker>,
    gate: Gate,
    verifier: Arc<Verifier>,
    reporter: tonic_health::server::HealthReporter,
    stop: CancellationToken,
) {
    let mut seconds = 0_u32;
    let mut serving = None;
    let mut chores = Chores::default();
    loop {
        let open = matches!(&*broker.phase(), Phase::Open(_));
        if serving != Some(open) {
            serving = Some(open);
            let status =
                if open { tonic_health::ServingStatus::Serving } else { tonic_health::ServingStatus::NotServing };
            reporter.set_service_status("", status).await;
        }
        if stop.run_until_cancelled(tokio::time::sleep(Duration::from_secs(1))).await.is_none() {
            return;
        }
        broker.flush_denials();
        broker.show_present();
        // What waits for the database holds up neither the rest nor each other, and is asked once at a time.
        chores.opening.start(&broker, |broker| async move { broker.open_again().await });
        if seconds.is_multiple_of(REPORT_EVERY) {
            chores.reporting.start(&broker, |broker| async move {
                broker.report().await;
                broker.flush_shadows().await;
            });
        }
        if seconds.is_multiple_of(READ_EVERY) {
            chores.reading.start(&broker, |broker| async move {
                broker.run_canary().await;
                broker.read_gauges().await;
            });
        }
        if seconds.is_multiple_of(LOOK_EVERY) {
            chores.looking.start(&broker, |broker| async move {
                broker.forget_quotas().await;
                for hazard in broker.hazards().await.unwrap_or_default() {
                    tracing::warn!(hazard = hazard.name, "{}", hazard.what);
                }
            });
        }
        seconds = seconds.wrapping_add(1);
        if seconds.is_multiple_of(60) {
            gate.forget_quiet_callers();
            if let Phase::Open(open) = &*broker.phase() {
                verifier.tend(open.state().issuers().values().map(AsRef::as_ref));
            }
        }
    }
}
