//! `LISTEN`: one connection that hears of changes, for ever reconnecting. What it misses meanwhile is why a new connection
//! is a hint, too; and why nothing is correct because of it.

use std::sync::Arc;
use std::time::Duration;

use prometheus::IntGauge;
use sqlx::postgres::{PgListener, PgPoolOptions};
use tokio::sync::Notify;
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;

use super::session;
use super::settings::Settings;
use crate::store::StoreError;

/// The channel that `p8broker_append_v1` notifies.
const CHANNEL: &str = "p8broker";

/// Between two tries to connect: the first pause, and the longest.
const FIRST_PAUSE: Duration = Duration::from_millis(100);
const LONGEST_PAUSE: Duration = Duration::from_secs(5);

/// The listening connection.
pub(super) struct Listener {
    heard: Arc<Notify>,
    stop: CancellationToken,
    tasks: TaskTracker,
}

impl Listener {
    pub(super) fn start(settings: Settings, up: IntGauge) -> Self {
        let listener =
            Self { heard: Arc::new(Notify::new()), stop: CancellationToken::new(), tasks: TaskTracker::new() };
        let (heard, stop) = (Arc::clone(&listener.heard), listener.stop.clone());
        listener.tasks.spawn(async move {
            let _ = stop.run_until_cancelled(listen(&settings, &heard, &up)).await;
            up.set(0);
        });
        listener.tasks.close();
        listener
    }

    /// Waits for a notification, or for a new connection that may have missed one. One that came before is kept.
    pub(super) async fn hint(&self) {
        self.heard.notified().await;
    }

    pub(super) async fn stop(&self) {
        self.stop.cancel();
        self.tasks.wait().await;
    }
}

async fn listen(settings: &Settings, heard: &Notify, up: &IntGauge) {
    let mut pause = FIRST_PAUSE;
    loop {
        match open(settings).await {
            Ok(mut listener) => {
                up.set(1);
                pause = FIRST_PAUSE;
                heard.notify_one();
                // `None` is a connection that was lost; the next one starts over.
                while let Ok(Some(_)) = listener.try_recv().await {
                    heard.notify_one();
                }
                up.set(0);
                tracing::warn!("the connection that listens for changes was lost; the poll goes on");
            }
            Err(error) => tracing::debug!(%error, "no connection that listens"),
        }
        tokio::time::sleep(pause).await;
        pause = pause.saturating_mul(2).min(LONGEST_PAUSE);
    }
}

async fn open(settings: &Settings) -> Result<PgListener, StoreError> {
    let pool = PgPoolOptions::new()
        .max_connections(1)
        .acquire_timeout(session::CONNECT)
        .after_connect(|connection, _| Box::pin(async move { session::pin(connection).await.map(drop) }))
        .connect_lazy_with(settings.options()?);
    let listening = async {
        let mut listener = PgListener::connect_with(&pool).await?;
        listener.eager_reconnect(false);
        listener.listen(CHANNEL).await?;
        Ok(listener)
    };
    match tokio::time::timeout(session::CONNECT, listening).await {
        Ok(done) => done.map_err(session::classify),
        Err(_) => Err(StoreError::Unavailable("no connection to listen on".to_owned())),
    }
}
