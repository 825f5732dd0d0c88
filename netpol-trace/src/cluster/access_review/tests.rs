//! The reviewer with a mock API server, which counts its requests.

use std::collections::HashMap;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::sync::{Arc, Mutex};

use axum::extract::State;
use axum::http::StatusCode;
use axum::routing::post;
use axum::{Json, Router};
use serde_json::{Value, json};

use super::*;

/// The mock API server.
#[derive(Debug, Default)]
pub(crate) struct Server {
    /// User name and groups by token.
    tokens: Mutex<HashMap<String, (String, Vec<String>)>>,
    /// What a group may read: the namespace, or `RESOURCE NAMESPACE` for something else than drops.
    rights: Mutex<Vec<(String, String)>>,
    token_reviews: AtomicUsize,
    access_reviews: AtomicUsize,
    pub away: AtomicBool,
}

impl Server {
    pub fn knows(&self, token: &str, user: &str, groups: &[&str]) {
        let groups = groups.iter().map(|group| (*group).to_owned()).collect();
        self.tokens.lock().unwrap().insert(token.to_owned(), (user.to_owned(), groups));
    }

    pub fn allows(&self, group: &str, right: &str) {
        self.rights.lock().unwrap().push((group.to_owned(), right.to_owned()));
    }

    /// TokenReviews and SubjectAccessReviews so far.
    fn asked(&self) -> (usize, usize) {
        (self.token_reviews.load(Ordering::Relaxed), self.access_reviews.load(Ordering::Relaxed))
    }

    fn token_review(&self, asked: &Value) -> Value {
        self.token_reviews.fetch_add(1, Ordering::Relaxed);
        let token = asked.pointer("/spec/token").and_then(Value::as_str).unwrap_or_default();
        let status = match self.tokens.lock().unwrap().get(token) {
            Some((name, groups)) => json!({
                "authenticated": true, "user": { "username": name, "groups": groups }, "audiences": [AUDIENCE],
            }),
            None => json!({ "authenticated": false }),
        };
        json!({ "apiVersion": "authentication.k8s.io/v1", "kind": "TokenReview", "spec": {}, "status": status })
    }

    fn access_review(&self, asked: &Value) -> Value {
        self.access_reviews.fetch_add(1, Ordering::Relaxed);
        let spec = &asked["spec"];
        let attributes = &spec["resourceAttributes"];
        let namespace = attributes["namespace"].as_str().unwrap_or_default();
        let right = match (attributes["resource"].as_str(), spec["nonResourceAttributes"]["path"].as_str()) {
            (_, Some(path)) => path.to_owned(),
            (Some(RESOURCE), _) => namespace.to_owned(),
            (resource, _) => format!("{} {namespace}", resource.unwrap_or_default()),
        };
        let groups = spec["groups"].as_array().cloned().unwrap_or_default();
        let rights = self.rights.lock().unwrap();
        let allowed = rights.iter().any(|(group, other)| *other == right && groups.iter().any(|known| known == group));
        json!({
            "apiVersion": "authorization.k8s.io/v1", "kind": "SubjectAccessReview",
            "spec": {}, "status": { "allowed": allowed },
        })
    }

    fn answer(&self, answer: impl FnOnce() -> Value) -> (StatusCode, Json<Value>) {
        match self.away.load(Ordering::Relaxed) {
            false => (StatusCode::CREATED, Json(answer())),
            true => {
                let status = json!({ "kind": "Status", "status": "Failure", "message": "away", "code": 503 });
                (StatusCode::SERVICE_UNAVAILABLE, Json(status))
            }
        }
    }
}

/// A reviewer that asks this server.
pub(crate) fn reviewer(server: &Arc<Server>) -> Reviewer {
    let tokens = post(async |State(server): State<Arc<Server>>, Json(asked): Json<Value>| {
        server.answer(|| server.token_review(&asked))
    });
    let rights = post(async |State(server): State<Arc<Server>>, Json(asked): Json<Value>| {
        server.answer(|| server.access_review(&asked))
    });
    let router = Router::new()
        .route("/apis/authentication.k8s.io/v1/tokenreviews", tokens)
        .route("/apis/authorization.k8s.io/v1/subjectaccessreviews", rights)
        .with_state(server.clone());
    let reviewer = Reviewer::new(Access::default(), "netpol-trace".to_owned(), "nobody is let in");
    let client = OnceCell::new_with(Some(Client::new(router, "default")));
    Reviewer { client, ..reviewer }
}

#[tokio::test]
async fn a_known_token_costs_one_request_of_each_kind() {
    let server = Arc::<Server>::default();
    server.knows("good", "dev", &["staging"]);
    server.allows("staging", "staging");
    let reviewer = reviewer(&server);
    for _ in 0..200 {
        let user = reviewer.user("good").await.expect("known");
        assert!(reviewer.may_read(&user, "staging").await.expect("an answer"));
        assert!(!reviewer.may_read(&user, "qa-test").await.expect("an answer"));
    }
    assert_eq!(server.asked(), (1, 2));
}

#[tokio::test]
async fn unknown_tokens_have_a_budget_and_known_ones_are_not_starved() {
    let server = Arc::<Server>::default();
    server.knows("good", "dev", &["staging"]);
    let reviewer = reviewer(&server);
    reviewer.user("good").await.expect("known");
    let guesses: Vec<String> = (0..500).map(|number| format!("guess-{number}")).collect();
    let answers = futures::future::join_all(guesses.iter().map(|guess| reviewer.user(guess))).await;
    let busy = answers.iter().filter(|answer| matches!(answer, Err(ReviewError::Busy))).count();
    let refused = answers.iter().filter(|answer| matches!(answer, Err(ReviewError::Token(_)))).count();
    assert_eq!(busy + refused, 500);
    // The burst, and the requests of the second that a caller waits for its budget.
    assert!((20..=30).contains(&refused), "{refused}");
    assert_eq!(server.asked().0, 1 + refused);
    reviewer.user("good").await.expect("known still");
    // A refused token is not reviewed again.
    let guess = answers.iter().position(|answer| matches!(answer, Err(ReviewError::Token(_)))).expect("a guess");
    assert!(matches!(reviewer.user(&guesses[guess]).await, Err(ReviewError::Token(_))));
    assert_eq!(server.asked().0, 1 + refused);
}

#[tokio::test]
async fn requests_about_one_user_have_a_budget() {
    let server = Arc::<Server>::default();
    server.knows("good", "dev", &[]);
    server.knows("other", "other", &["staging"]);
    server.allows("staging", "staging");
    let reviewer = Arc::new(reviewer(&server));
    let user = reviewer.user("good").await.expect("known");
    let many = tokio::spawn({
        let reviewer = reviewer.clone();
        async move {
            let namespaces: Vec<String> = (0..1000).map(|number| format!("namespace-{number}")).collect();
            let asked = namespaces.iter().map(|namespace| reviewer.may_read(&user, namespace));
            let answers = futures::future::join_all(asked).await;
            answers.iter().filter(|answer| matches!(answer, Err(ReviewError::Busy))).count()
        }
    });
    // Other users are not delayed.
    tokio::task::yield_now().await;
    let other = reviewer.user("other").await.expect("known");
    assert!(reviewer.may_read(&other, "staging").await.expect("an answer"));
    many.abort();
    let before = server.asked().1;
    assert!((1..=120).contains(&before), "{before}");
}

#[tokio::test]
async fn groups_matter() {
    let server = Arc::<Server>::default();
    server.knows("monday", "dev", &["staging"]);
    server.knows("tuesday", "dev", &["qa-test"]);
    server.allows("staging", "staging");
    server.allows("qa-test", "qa-test");
    let reviewer = reviewer(&server);
    let monday = reviewer.user("monday").await.expect("known");
    assert!(reviewer.may_read(&monday, "staging").await.expect("an answer"));
    assert!(!reviewer.may_read(&monday, "qa-test").await.expect("an answer"));
    // The same user has a new token with another group: the old answers do not apply.
    let tuesday = reviewer.user("tuesday").await.expect("known");
    assert!(!reviewer.may_read(&tuesday, "staging").await.expect("an answer"));
    assert!(reviewer.may_read(&tuesday, "qa-test").await.expect("an answer"));
    assert!(!monday.is_same(&tuesday));
}

#[tokio::test]
async fn a_scraper_that_was_let_in_stays_in_while_the_server_is_away() {
    let server = Arc::<Server>::default();
    server.knows("prometheus", "prometheus", &["monitoring"]);
    server.knows("nobody", "nobody", &[]);
    server.allows("monitoring", "/metrics");
    let reviewer = reviewer(&server);
    assert!(reviewer.may_get("prometheus", "/metrics").await.expect("an answer"));
    assert!(!reviewer.may_get("nobody", "/metrics").await.expect("an answer"));
    server.away.store(true, Ordering::Relaxed);
    // While its answers are valid, no request is sent.
    reviewer.sessions.age(Duration::from_secs(301));
    assert!(reviewer.may_get("prometheus", "/metrics").await.expect("let in before"));
    let error = reviewer.may_get("nobody", "/metrics").await.expect_err("was never let in");
    assert!(matches!(error, ReviewError::Server(_)), "{error}");
    reviewer.sessions.age(Duration::from_secs(600));
    let error = reviewer.may_get("prometheus", "/metrics").await.expect_err("not for ever");
    assert!(matches!(error, ReviewError::Server(_)), "{error}");
    // When the server responds again, its response decides.
    server.away.store(false, Ordering::Relaxed);
    server.tokens.lock().unwrap().clear();
    let error = reviewer.may_get("prometheus", "/metrics").await.expect_err("revoked");
    assert!(matches!(error, ReviewError::Token(_)), "{error}");
}

/// A cached answer or an empty budget does not end an outage: only a response of the server does.
#[tokio::test]
async fn only_the_servers_own_answers_end_an_outage() {
    let server = Arc::<Server>::default();
    server.knows("prometheus", "prometheus", &["monitoring"]);
    server.allows("monitoring", "/metrics");
    let reviewer = reviewer(&server);
    assert!(reviewer.may_get("prometheus", "/metrics").await.expect("an answer"));
    server.away.store(true, Ordering::Relaxed);
    let guesses: Vec<String> = (0..100).map(|number| format!("guess-{number}")).collect();
    let answers = futures::future::join_all(guesses.iter().map(|guess| reviewer.user(guess))).await;
    assert!(answers.iter().any(|answer| matches!(answer, Err(ReviewError::Busy))));
    assert!(reviewer.failing.load(Ordering::Relaxed));
    assert!(reviewer.may_get("prometheus", "/metrics").await.expect("an answer of before"));
    reviewer.sessions.age(Duration::from_secs(301));
    assert!(reviewer.may_get("prometheus", "/metrics").await.expect("let in before"));
    assert!(reviewer.failing.load(Ordering::Relaxed));
    server.away.store(false, Ordering::Relaxed);
    assert!(reviewer.may_get("prometheus", "/metrics").await.expect("an answer"));
    assert!(!reviewer.failing.load(Ordering::Relaxed));
}

#[tokio::test]
async fn a_reader_account_with_rights_is_found_out() {
    let server = Arc::<Server>::default();
    let name = "system:serviceaccount:staging:netpol-trace-reader";
    server.knows("plain", name, &["plain"]);
    server.knows("risky", name, &["operators"]);
    server.knows("deployer", "system:serviceaccount:staging:deployer", &["operators"]);
    server.allows("operators", "secrets staging");
    let reviewer = reviewer(&server);
    let user = |token: &'static str| async { reviewer.user(token).await.expect("known") };
    assert_eq!(reviewer.risk(&user("plain").await).await.expect("an answer"), None);
    assert_eq!(reviewer.risk(&user("risky").await).await.expect("an answer").as_deref(), Some("get secrets"));
    // Only the account whose tokens developers may request is checked.
    assert_eq!(reviewer.risk(&user("deployer").await).await.expect("an answer"), None);
}
