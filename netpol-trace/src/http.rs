//! The agent's listener (`--listen`): /metrics for Prometheus, /healthz and /readyz for the kubelet. Off by default.
//!
//! Whoever reaches the port may be anybody: connections, headers and time are bounded, and /metrics can ask for a token.

use std::fs::File;
use std::io::Read;
use std::net::SocketAddr;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use anyhow::{Context, bail};
use axum::Router;
use axum::extract::{Request, State};
use axum::http::{HeaderMap, StatusCode, header};
use axum::middleware::{self, Next};
use axum::response::{IntoResponse, Response};
use axum::routing::get;
use hyper::server::conn::http1;
use hyper_util::rt::{TokioIo, TokioTimer};
use hyper_util::service::TowerToHyperService;
use tokio::net::TcpListener;
use tokio::sync::Semaphore;

use crate::metrics::{Metrics, text};

/// Connections served at once; more wait.
const MAX_CONNECTIONS: usize = 64;
/// How long a client may take over a request's head.
const PATIENCE: Duration = Duration::from_secs(10);
/// A longer token is a mistake.
const MAX_TOKEN: u64 = 16 * 1024;

/// Takes the address now, so that one that can't be had is told before anything is attached.
pub async fn bind(address: SocketAddr) -> anyhow::Result<TcpListener> {
    let bound = TcpListener::bind(address).await;
    bound.with_context(|| {
        format!("--listen {address}: choose another address or port, or see who has it with `ss -ltnp`")
    })
}

/// /metrics, behind a token where there is one, and the probes.
pub fn router(metrics: Arc<Metrics>, token: Option<Token>) -> Router {
    let mut page =
        get(async |State(metrics): State<Arc<Metrics>>| ([(header::CONTENT_TYPE, text::CONTENT_TYPE)], metrics.page()));
    if let Some(token) = token {
        page = page.layer(middleware::from_fn_with_state(Arc::new(token), authorize));
    }
    Router::new()
        .route("/metrics", page)
        .route("/healthz", get(async |State(metrics): State<Arc<Metrics>>| probe(metrics.healthy())))
        .route("/readyz", get(async |State(metrics): State<Arc<Metrics>>| probe(metrics.ready())))
        .with_state(metrics)
}

fn probe(result: Result<(), String>) -> Response {
    match result {
        Ok(()) => "ok\n".into_response(),
        Err(why) => (StatusCode::SERVICE_UNAVAILABLE, why + "\n").into_response(),
    }
}

/// Serves until dropped.
pub async fn serve(listener: TcpListener, router: Router) {
    let places = Arc::new(Semaphore::new(MAX_CONNECTIONS));
    loop {
        // The semaphore is never closed.
        let Ok(place) = places.clone().acquire_owned().await else { return };
        let stream = match listener.accept().await {
            Ok((stream, _)) => stream,
            Err(error) => {
                // Out of file descriptors, most likely: at once again would only burn time.
                tracing::warn!(%error, "a connection to --listen could not be taken");
                tokio::time::sleep(Duration::from_secs(1)).await;
                continue;
            }
        };
        let service = TowerToHyperService::new(router.clone());
        let served = http1::Builder::new()
            .timer(TokioTimer::new())
            .header_read_timeout(PATIENCE)
            .serve_connection(TokioIo::new(stream), service);
        tokio::spawn(async move {
            if let Err(error) = served.await {
                tracing::debug!(%error, "a connection to --listen");
            }
            drop(place);
        });
    }
}

/// The token that /metrics asks for, in a file that may change (a mounted Secret).
#[derive(Debug, Clone)]
pub struct Token(PathBuf);

impl Token {
    /// # Errors
    /// The file can't be read, or has no token.
    pub fn in_file(path: PathBuf) -> anyhow::Result<Token> {
        let token = Token(path);
        token.read().with_context(|| format!("--metrics-token-file {}", token.0.display()))?;
        Ok(token)
    }

    fn read(&self) -> anyhow::Result<String> {
        let mut text = String::new();
        File::open(&self.0)?.take(MAX_TOKEN).read_to_string(&mut text)?;
        match text.trim() {
            "" => bail!("the file is empty: put the token in it"),
            token => Ok(token.to_owned()),
        }
    }

    fn is_in(&self, headers: &HeaderMap) -> bool {
        let given = headers.get(header::AUTHORIZATION).and_then(|value| value.to_str().ok());
        let Some(given) = given.and_then(|value| value.strip_prefix("Bearer ")) else { return false };
        match self.read() {
            Ok(token) => same(given.trim().as_bytes(), token.as_bytes()),
            Err(error) => {
                tracing::warn!("--metrics-token-file {}: {error:#}; nobody is let in", self.0.display());
                false
            }
        }
    }
}

/// Compares in a time that does not tell how much of it is right.
fn same(given: &[u8], token: &[u8]) -> bool {
    given.len() == token.len() && given.iter().zip(token).fold(0, |seen, (a, b)| seen | (a ^ b)) == 0
}

async fn authorize(State(token): State<Arc<Token>>, request: Request, next: Next) -> Response {
    if token.is_in(request.headers()) {
        return next.run(request).await;
    }
    let challenge = [(header::WWW_AUTHENTICATE, "Bearer")];
    (StatusCode::UNAUTHORIZED, challenge, "a token is needed: Authorization: Bearer TOKEN\n").into_response()
}
