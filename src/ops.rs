//! The port for operations: `/metrics`, `/livez`, `/readyz`. Plain HTTP, and nothing secret.

use std::sync::Arc;

use axum::Router;
use axum::extract::State;
use axum::http::StatusCode;
use axum::http::header::CONTENT_TYPE;
use axum::response::{IntoResponse, Response};
use axum::routing::get;

use crate::broker::{Broker, Phase};

/// The routes.
pub fn router(broker: Arc<Broker>) -> Router {
    Router::new()
        .route("/metrics", get(metrics))
        .route("/livez", get(|| async { "ok\n" }))
        .route("/readyz", get(readyz))
        .with_state(broker)
}

async fn metrics(State(broker): State<Arc<Broker>>) -> Response {
    match broker.metrics().text() {
        Ok(text) => ([(CONTENT_TYPE, "text/plain; version=0.0.4")], text).into_response(),
        Err(error) => (StatusCode::INTERNAL_SERVER_ERROR, error.to_string()).into_response(),
    }
}

/// Ready means that tokens can be issued. A sealed broker is alive, and says why it is not ready.
async fn readyz(State(broker): State<Arc<Broker>>) -> (StatusCode, String) {
    match &*broker.phase() {
        Phase::Open(open) if open.hears_the_database() => (StatusCode::OK, "ok\n".to_owned()),
        Phase::Open(_) => unready("DATABASE_UNAVAILABLE: the database has not answered for some seconds"),
        Phase::NotInitialised => unready("NOT_INITIALISED: there is no vault yet; run `p8broker operator init`"),
        Phase::Sealed(why) => unready(&format!("SEALED: {why}")),
        Phase::Refusing(refusal) => unready(&format!("REFUSING_TO_SERVE: {}", refusal.why)),
    }
}

fn unready(why: &str) -> (StatusCode, String) {
    (StatusCode::SERVICE_UNAVAILABLE, format!("{why}\n"))
}
