//! Authorizes requests for /metrics: by the token in a file, or by a token that the API server accepts for `get /metrics`.

use std::fs::File;
use std::io::Read;
use std::path::PathBuf;
use std::sync::Arc;

use anyhow::{Context, bail};
use axum::extract::{Request, State};
use axum::http::{HeaderMap, StatusCode, header};
use axum::middleware::Next;
use axum::response::{IntoResponse, Response};

use crate::cluster::access_review::{ReviewError, Reviewer};

/// Longest token in bytes.
const MAX_TOKEN: u64 = 16 * 1024;

/// How a request for /metrics is authorized.
#[derive(Debug)]
pub enum MetricsGuard {
    TokenFile(TokenFile),
    /// By a TokenReview and a SubjectAccessReview of the API server.
    Review(Box<Reviewer>),
}

impl MetricsGuard {
    pub fn review(reviewer: Reviewer) -> MetricsGuard {
        MetricsGuard::Review(Box::new(reviewer))
    }

    async fn admits(&self, token: &str) -> Result<(), (StatusCode, &'static str)> {
        const UNKNOWN: (StatusCode, &str) = (StatusCode::UNAUTHORIZED, "unknown token\n");
        let reviewer = match self {
            MetricsGuard::TokenFile(known) => return if known.is(token) { Ok(()) } else { Err(UNKNOWN) },
            MetricsGuard::Review(reviewer) => reviewer,
        };
        match reviewer.may_get(token, "/metrics").await {
            Ok(true) => Ok(()),
            Ok(false) => {
                Err((StatusCode::FORBIDDEN, "a ClusterRole with nonResourceURLs [/metrics], verbs [get] is needed\n"))
            }
            Err(ReviewError::Token(_)) => Err(UNKNOWN),
            Err(ReviewError::Busy) => {
                Err((StatusCode::TOO_MANY_REQUESTS, "too many unknown tokens: try again later\n"))
            }
            Err(ReviewError::Server(_)) => Err((
                StatusCode::SERVICE_UNAVAILABLE,
                "the API server can't be reached to check this token: try again later\n",
            )),
        }
    }
}

/// The token that /metrics requires, in a file that may change (a mounted Secret).
#[derive(Debug, Clone)]
pub struct TokenFile(PathBuf);

impl TokenFile {
    /// # Errors
    /// The file can't be read, or is empty.
    pub fn in_file(path: PathBuf) -> anyhow::Result<TokenFile> {
        let token = TokenFile(path);
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

    fn is(&self, given: &str) -> bool {
        match self.read() {
            Ok(token) => constant_time_eq(given.as_bytes(), token.as_bytes()),
            Err(error) => {
                tracing::warn!("--metrics-token-file {}: {error:#}; every request is refused", self.0.display());
                false
            }
        }
    }
}

/// Compares in constant time, so that the time does not reveal how much of a token is right.
fn constant_time_eq(given: &[u8], token: &[u8]) -> bool {
    given.len() == token.len() && given.iter().zip(token).fold(0, |seen, (a, b)| seen | (a ^ b)) == 0
}

/// The response to a request without a token.
pub const TOKEN_NEEDED: &str = "a token is required: send one header Authorization: Bearer TOKEN\n";

/// The token of a request, from its only `Authorization` header; the scheme has any case (RFC 9110). Two headers are refused,
/// because a proxy may have checked the other one.
pub fn bearer(headers: &HeaderMap) -> Option<&str> {
    let mut values = headers.get_all(header::AUTHORIZATION).iter();
    let (value, None) = (values.next()?, values.next()) else { return None };
    let (scheme, token) = value.to_str().ok()?.split_once(' ')?;
    let token = token.trim();
    let is_token = !token.is_empty() && token.len() as u64 <= MAX_TOKEN && !token.contains([' ', '\t']);
    (scheme.eq_ignore_ascii_case("Bearer") && is_token).then_some(token)
}

pub(super) async fn authorize(State(guard): State<Arc<MetricsGuard>>, request: Request, next: Next) -> Response {
    let admitted = match bearer(request.headers()) {
        Some(token) => guard.admits(token).await,
        None => Err((StatusCode::UNAUTHORIZED, TOKEN_NEEDED)),
    };
    match admitted {
        Ok(()) => next.run(request).await,
        Err((status, why)) => (status, [(header::WWW_AUTHENTICATE, "Bearer")], why).into_response(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn one_header_has_the_token() {
        let token = |values: &[&str]| {
            let mut headers = HeaderMap::new();
            for value in values {
                headers.append(header::AUTHORIZATION, value.parse().expect("a header"));
            }
            bearer(&headers).map(str::to_owned)
        };
        for value in ["Bearer a.b-c_d", "bearer a.b-c_d", "BEARER  a.b-c_d "] {
            assert_eq!(token(&[value]).as_deref(), Some("a.b-c_d"), "{value}");
        }
        let long = format!("Bearer {}", "a".repeat(16 * 1024 + 1));
        for value in ["", "Bearer", "Bearer ", "Basic a", "a", "Bearer a b", "Bearer a\tb", "Bearera", &long] {
            assert_eq!(token(&[value]), None, "{value}");
        }
        assert_eq!(token(&["Bearer a", "Bearer a"]), None);
        assert_eq!(token(&["Bearer a", "Basic b"]), None);
        assert_eq!(token(&[]), None);
    }
}
