//! The agent's listener (`--listen`): /metrics for Prometheus, /healthz and /readyz for the kubelet. Off by default.
//!
//! Clients are untrusted: connections, headers and time are bounded, and /metrics can require a token. The listener of
//! `--tail-listen` uses the same server.

mod guard;
mod idle;
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
pub use guard::{MetricsGuard, TOKEN_NEEDED, TokenFile, bearer};
use idle::IdleConnections;
pub use write_timeout::Stalled;
use write_timeout::WriteTimeout;

/// Connections served at once; more wait in the backlog.
const MAX_CONNECTIONS: usize = 64;
/// Time for a client to send the head of its request.
const HEADER_TIMEOUT: Duration = Duration::from_secs(10);
/// Time in which a client must read some of its response: else 64 clients that read nothing would hold all connections forever.
pub const WRITE_TIMEOUT: Duration = Duration::from_secs(30);

/// Binds the address of an option. The agent does this before it attaches anything, so that a used port fails the start.
pub async fn bind(option: &str, address: SocketAddr) -> anyhow::Result<TcpListener> {
    let bound = TcpListener::bind(address).await;
    bound.with_context(|| {
        format!("{option} {address}: choose another address or port, or find its user with `ss -ltnp`")
    })
}

/// /metrics, behind a guard where there is one, and the probes.
pub fn router(metrics: Arc<Metrics>, guard: Option<MetricsGuard>) -> Router {
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

/// A probe's response: the first line is for the kubelet, further lines are notes for people.
fn probe(result: Result<String, String>) -> Response {
    match result {
        Ok(notes) => format!("ok\n{notes}").into_response(),
        Err(why) => (StatusCode::SERVICE_UNAVAILABLE, why + "\n").into_response(),
    }
}

/// Serves until dropped. Disconnects and counts a client that reads nothing of its response for `write_timeout`.
pub async fn serve(listener: TcpListener, router: Router, metrics: Arc<Metrics>, write_timeout: Duration) {
    let slots = Arc::new(Semaphore::new(MAX_CONNECTIONS));
    let idle = IdleConnections::default();
    loop {
        let (stream, client) = match listener.accept().await {
            Ok(accepted) => accepted,
            Err(error) => {
                // Most likely no file descriptor is free: an immediate retry would only burn CPU time.
                tracing::warn!(%error, "a listener could not accept a connection");
                tokio::time::sleep(Duration::from_secs(1)).await;
                continue;
            }
        };
        // Clients that open connections and send nothing must not lock out the kubelet's probes: it would restart the agent.
        if slots.available_permits() == 0 && idle.close_oldest() {
            metrics.error("listen", "client_asks_nothing");
            tracing::debug!("closed the oldest connection without a request to accept a newer one");
        }
        // The semaphore is never closed.
        let Ok(slot) = slots.clone().acquire_owned().await else { return };
        let stalled = Stalled::default();
        let stream = WriteTimeout::new(stream, write_timeout, stalled.clone());
        let metrics = metrics.clone();
        let router = router.clone().layer(Extension(stalled.clone()));
        idle.spawn(router, move |router| async move {
            // One request for each connection: a connection that has sent a request is never idle again.
            let served = http1::Builder::new()
                .keep_alive(false)
                .timer(TokioTimer::new())
                .header_read_timeout(HEADER_TIMEOUT)
                .serve_connection(TokioIo::new(stream), TowerToHyperService::new(router));
            if let Err(error) = served.await {
                tracing::debug!(%error, "a connection to a listener failed");
            }
            if stalled.is_stalled() {
                metrics.error("listen", "client_does_not_read");
                tracing::warn!(%client, "disconnected: the client read nothing for {write_timeout:?}");
            }
            drop(slot);
        });
    }
}
