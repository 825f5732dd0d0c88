//! Whom /metrics answers: who has the token of a file, or a token of the API server and the right to get `/metrics`.

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

/// A longer token is a mistake.
const MAX_TOKEN: u64 = 16 * 1024;

/// Who is let in.
#[derive(Debug)]
pub enum Guard {
    TokenFile(TokenFile),
    /// As the API server says; `true` while it can't be asked, which is said once in the log.
    Review(Box<Reviewer>),
}

impl Guard {
    pub fn review(reviewer: Reviewer) -> Guard {
        Guard::Review(Box::new(reviewer))
    }

    async fn admits(&self, token: &str) -> Result<(), (StatusCode, &'static str)> {
        const UNKNOWN: (StatusCode, &str) = (StatusCode::UNAUTHORIZED, "this token is not good here\n");
        let reviewer = match self {
            Guard::TokenFile(known) => return if known.is(token) { Ok(()) } else { Err(UNKNOWN) },
            Guard::Review(reviewer) => reviewer,
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
            Err(ReviewError::Server(_)) => {
                Err((StatusCode::SERVICE_UNAVAILABLE, "the agent can't ask the API server about this token\n"))
            }
        }
    }
}

/// The token that /metrics asks for, in a file that may change (a mounted Secret).
#[derive(Debug, Clone)]
pub struct TokenFile(PathBuf);

impl TokenFile {
    /// # Errors
    /// The file can't be read, or has no token.
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
            Ok(token) => same(given.as_bytes(), token.as_bytes()),
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

/// Answers a request without a token.
pub const TOKEN_NEEDED: &str = "one token is needed: Authorization: Bearer TOKEN\n";

/// The token of a request: of its only `Authorization` header, whose scheme may be written in any case (RFC 9110). Of two
/// headers a proxy may have checked the other one.
pub fn bearer(headers: &HeaderMap) -> Option<&str> {
    let mut values = headers.get_all(header::AUTHORIZATION).iter();
    let (value, None) = (values.next()?, values.next()) else { return None };
    let (scheme, token) = value.to_str().ok()?.split_once(' ')?;
    let token = token.trim();
    let is_token = !token.is_empty() && token.len() as u64 <= MAX_TOKEN && !token.contains([' ', '\t']);
    (scheme.eq_ignore_ascii_case("Bearer") && is_token).then_some(token)
}

pub(super) async fn authorize(State(guard): State<Arc<Guard>>, request: Request, next: Next) -> Response {
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
