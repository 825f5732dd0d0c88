//! The agent's listener (`--listen`): /metrics for Prometheus, /healthz and /readyz for the kubelet. Off by default.
//!
//! Whoever reaches the port may be anybody: connections, headers and time are bounded, and /metrics can ask for a token.

mod guard;
mod waiting;
mod write_timeout;

use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use anyhow::Context;
use axum::extract::State;
use axum::http::{StatusCode, header};
use axum::middleware;
use axum::response::{IntoResponse, Response};
use axum::routing::get;
use axum::{Extension, Router};
use hyper::server::conn::http1;
use hyper_util::rt::{TokioIo, TokioTimer};
use hyper_util::service::TowerToHyperService;
use tokio::net::TcpListener;
use tokio::sync::Semaphore;

use crate::metrics::{Metrics, text};
pub use guard::{Guard, TOKEN_NEEDED, TokenFile, bearer};
use waiting::Waiting;
pub use write_timeout::Stalled;
use write_timeout::WriteTimeout;

/// Connections served at once; more wait.
const MAX_CONNECTIONS: usize = 64;
/// How long a client may take over a request's head.
const PATIENCE: Duration = Duration::from_secs(10);
/// How long a client may take nothing of an answer: else 64 of them would hold all connections for ever.
pub const MUST_READ_WITHIN: Duration = Duration::from_secs(30);

/// Takes the address now, so that one that can't be had is told before anything is attached.
pub async fn bind(address: SocketAddr) -> anyhow::Result<TcpListener> {
    let bound = TcpListener::bind(address).await;
    bound.with_context(|| {
        format!("--listen {address}: choose another address or port, or see who has it with `ss -ltnp`")
    })
}

/// /metrics, behind a guard where there is one, and the probes.
pub fn router(metrics: Arc<Metrics>, guard: Option<Guard>) -> Router {
    let mut page =
        get(async |State(metrics): State<Arc<Metrics>>| ([(header::CONTENT_TYPE, text::CONTENT_TYPE)], metrics.page()));
    if let Some(guard) = guard {
        page = page.layer(middleware::from_fn_with_state(Arc::new(guard), guard::authorize));
    }
    Router::new()
        .route("/metrics", page)
        .route(
            "/healthz",
            get(async |State(metrics): State<Arc<Metrics>>| probe(metrics.healthy().map(|()| String::new()))),
        )
        .route("/readyz", get(async |State(metrics): State<Arc<Metrics>>| probe(metrics.ready())))
        .with_state(metrics)
}

/// The answer for a kubelet, and on further lines what a person may want to know.
fn probe(result: Result<String, String>) -> Response {
    match result {
        Ok(notes) => format!("ok\n{notes}").into_response(),
        Err(why) => (StatusCode::SERVICE_UNAVAILABLE, why + "\n").into_response(),
    }
}

/// Serves until dropped. A client that takes nothing of its answer for `must_read_within` is disconnected and counted.
pub async fn serve(listener: TcpListener, router: Router, metrics: Arc<Metrics>, must_read_within: Duration) {
    let places = Arc::new(Semaphore::new(MAX_CONNECTIONS));
    let waiting = Waiting::default();
    loop {
        let (stream, client) = match listener.accept().await {
            Ok(accepted) => accepted,
            Err(error) => {
                // Out of file descriptors, most likely: at once again would only burn time.
                tracing::warn!(%error, "a connection to a listener could not be taken");
                tokio::time::sleep(Duration::from_secs(1)).await;
                continue;
            }
        };
        // Whoever opens connections and asks nothing must not keep the kubelet's probes out: it would restart the agent.
        if places.available_permits() == 0 && waiting.close_oldest() {
            metrics.error("listen", "client_asks_nothing");
            tracing::debug!("a connection to a listener that asked nothing is closed for a newer one");
        }
        // The semaphore is never closed.
        let Ok(place) = places.clone().acquire_owned().await else { return };
        let stalled = Stalled::default();
        let stream = WriteTimeout::new(stream, must_read_within, stalled.clone());
        let metrics = metrics.clone();
        let router = router.clone().layer(Extension(stalled.clone()));
        waiting.spawn(router, move |router| async move {
            // One request each: a connection that has asked is then never one that waits.
            let served = http1::Builder::new()
                .keep_alive(false)
                .timer(TokioTimer::new())
                .header_read_timeout(PATIENCE)
                .serve_connection(TokioIo::new(stream), TowerToHyperService::new(router));
            if let Err(error) = served.await {
                tracing::debug!(%error, "a connection to a listener");
            }
            if stalled.is_so() {
                metrics.error("listen", "client_does_not_read");
                tracing::warn!(%client, "disconnected: the client read nothing for {must_read_within:?}");
            }
            drop(place);
        });
    }
}
