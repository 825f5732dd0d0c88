//! Sends records as OTLP logs over HTTP (protobuf), in batches, and retries while that can help.

mod trust;

use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::{Duration, Instant};
use std::{fmt, fs};

use http_body_util::{BodyExt, Full, Limited};
use hyper::body::Bytes;
use hyper::header::HeaderValue;
use hyper::{Request, StatusCode, Uri, header};
use hyper_rustls::{HttpsConnector, HttpsConnectorBuilder};
use hyper_util::client::legacy::Client;
use hyper_util::client::legacy::connect::HttpConnector;
use hyper_util::rt::TokioExecutor;
use opentelemetry_proto::tonic::collector::logs::v1::{ExportLogsServiceRequest, ExportLogsServiceResponse};
use opentelemetry_proto::tonic::common::v1::any_value::Value as Any;
use opentelemetry_proto::tonic::common::v1::{AnyValue, ArrayValue, InstrumentationScope, KeyValue, KeyValueList};
use opentelemetry_proto::tonic::logs::v1::{LogRecord, ResourceLogs, ScopeLogs};
use opentelemetry_proto::tonic::resource::v1::Resource;
use prost::Message;
use rustls::{ClientConfig, RootCertStore};
use serde_json::{Map, Value};
use tokio::runtime::Runtime;

use super::queue::Patience;
use super::{Delivery, Sink, SinkError};
use crate::backoff::Backoff;
use crate::model::LossReason;
use crate::record::Record;
use crate::record::format::otel;

/// The time limit of one attempt.
const ATTEMPT: Duration = Duration::from_secs(10);
/// The time after which a batch is given up.
const GIVE_UP: Duration = Duration::from_secs(300);
/// The most bytes of a response that are read.
const MAX_ANSWER: usize = 64 * 1024;

/// The collector of an output, with credentials and trust.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct OtlpEndpoint {
    pub uri: Uri,
    /// A file with the token for `Authorization: Bearer`, read for each batch.
    pub token: Option<PathBuf>,
    /// A PEM file with the certificate authorities to trust, instead of the system's.
    pub ca: Option<PathBuf>,
}

impl OtlpEndpoint {
    /// Parses `http://collector:4318`. A URL without a path gets OTLP's default path.
    ///
    /// # Errors
    /// What is wrong with the URL, and an example.
    pub fn parse(text: &str) -> Result<OtlpEndpoint, String> {
        let example = "such as otlp:http://collector.observability:4318";
        let uri: Uri = text.parse().map_err(|error| format!("otlp:{text}: {error}; expected a URL {example}"))?;
        let (Some("http" | "https"), Some(authority)) = (uri.scheme_str(), uri.authority()) else {
            return Err(format!("otlp:{text}: expected http:// or https:// and a host, {example}"));
        };
        if authority.as_str().contains('@') {
            return Err(format!("otlp:…@{}: put credentials in a file: token-file=PATH", authority.host()));
        }
        let port = authority.as_str().strip_prefix(authority.host()).unwrap_or_default();
        if authority.host().is_empty() {
            return Err(format!("otlp:{text}: the host is missing, {example}"));
        }
        if !port.is_empty() && authority.port_u16().is_none_or(|port| port == 0) {
            return Err(format!("otlp:{text}: the port must be a number from 1 to 65535, {example}"));
        }
        if uri.path() != "/" {
            return Ok(OtlpEndpoint { uri, token: None, ca: None });
        }
        let query = uri.query().map(|query| format!("?{query}")).unwrap_or_default();
        let uri = format!("{}://{authority}/v1/logs{query}", uri.scheme_str().unwrap_or_default());
        Ok(OtlpEndpoint { uri: uri.parse().map_err(|error| format!("otlp:{text}: {error}"))?, token: None, ca: None })
    }

    pub fn is_https(&self) -> bool {
        self.uri.scheme_str() == Some("https")
    }
}

type HttpClient = Client<HttpsConnector<HttpConnector>, Full<Bytes>>;

/// The name of the encoding in records.
pub const FORMAT: &str = "otel";

#[derive(Debug)]
pub struct OtlpSink {
    endpoint: OtlpEndpoint,
    client: HttpClient,
    runtime: Runtime,
    /// The log has a line about failed attempts, and none yet about a later success.
    failing: bool,
}

/// The result of one attempt.
enum SendResult {
    /// The receiver has the records, except this many that it rejected.
    Accepted(u64),
    /// The attempt failed for this reason and may be repeated, after the time that the receiver asked for.
    Retry(String, Option<Duration>),
    Refused(String),
}

impl OtlpSink {
    /// # Errors
    /// The token can't be read or, for `https:`, there are no certificate authorities to trust.
    pub fn new(endpoint: OtlpEndpoint) -> anyhow::Result<OtlpSink> {
        if let Some(path) = &endpoint.token {
            authorization(path).map_err(anyhow::Error::msg)?;
        }
        let client = client(&endpoint)?;
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
        Ok(OtlpSink { endpoint, client, runtime, failing: false })
    }

    /// Reads `ca-file=` again, after a failed attempt: certificate managers replace authorities while the agent runs. Keeps the old
    /// authorities if the file can't be read.
    fn reload_authorities(&mut self) {
        if self.endpoint.ca.is_none() {
            return;
        }
        match client(&self.endpoint) {
            Ok(client) => self.client = client,
            Err(error) => {
                tracing::debug!(%error, "OTLP: ca-file= can't be read again: the old authorities stay in use")
            }
        }
    }

    fn attempt(&self, body: &Bytes, limit: Duration) -> SendResult {
        let sent = self.runtime.block_on(async { tokio::time::timeout(limit, self.send(body.clone())).await });
        sent.unwrap_or_else(|_| SendResult::Retry(format!("no answer in {} s", limit.as_secs()), None))
    }

    async fn send(&self, body: Bytes) -> SendResult {
        let mut request = Request::post(&self.endpoint.uri)
            .header(header::CONTENT_TYPE, "application/x-protobuf")
            .header(header::USER_AGENT, concat!("netpol-trace/", env!("CARGO_PKG_VERSION")));
        if let Some(path) = &self.endpoint.token {
            match authorization(path) {
                Ok(value) => request = request.header(header::AUTHORIZATION, value),
                Err(message) => return SendResult::Retry(message, None),
            }
        }
        let request = match request.body(Full::new(body)) {
            Ok(request) => request,
            Err(error) => return SendResult::Refused(error.to_string()),
        };
        let response = match self.client.request(request).await {
            Ok(response) => response,
            Err(error) => return SendResult::Retry(causes(&error), None),
        };
        let (head, body) = response.into_parts();
        match head.status {
            StatusCode::OK => match Limited::new(body, MAX_ANSWER).collect().await {
                Ok(answer) => {
                    let answer = ExportLogsServiceResponse::decode(answer.to_bytes()).unwrap_or_default();
                    let rejected = answer.partial_success.map_or(0, |partial| partial.rejected_log_records);
                    SendResult::Accepted(u64::try_from(rejected).unwrap_or_default())
                }
                // The status shows that the receiver has the records.
                Err(_) => SendResult::Accepted(0),
            },
            status if status.is_success() => SendResult::Accepted(0),
            StatusCode::TOO_MANY_REQUESTS
            | StatusCode::BAD_GATEWAY
            | StatusCode::SERVICE_UNAVAILABLE
            | StatusCode::GATEWAY_TIMEOUT => {
                let after = head.headers.get(header::RETRY_AFTER).and_then(|value| value.to_str().ok());
                SendResult::Retry(format!("the receiver answered {}", head.status), after.and_then(retry_after))
            }
            status => SendResult::Refused(format!("the receiver answered {status}")),
        }
    }
}

impl Sink for OtlpSink {
    fn name(&self) -> String {
        format!("otlp:{}", self.endpoint.uri)
    }

    fn format(&self) -> &'static str {
        FORMAT
    }

    fn deliver(&mut self, records: &[Arc<Record>], patience: Patience<'_>) -> Delivery {
        let body = Bytes::from(request(records).encode_to_vec());
        let name = self.name();
        let refused = |reason, message| {
            let error = SinkError::Refused { name: name.clone(), reason, message };
            Delivery { error: Some(error), ..Delivery::default() }
        };
        let (start, mut backoff, mut attempts) = (Instant::now(), Backoff::default(), 0);
        loop {
            match self.attempt(&body, patience.left(ATTEMPT)) {
                SendResult::Accepted(rejected) => {
                    if std::mem::take(&mut self.failing) {
                        tracing::info!(sink = name, "the receiver takes records again");
                    }
                    return Delivery { rejected, ..Delivery::all(records) };
                }
                SendResult::Refused(message) => return refused(LossReason::Refused, message),
                SendResult::Retry(message, after) => {
                    attempts += 1;
                    patience.failing(format!("{name}: {message}"));
                    // A busy receiver refuses single requests now and then: only two failures in a row are logged.
                    if attempts >= 2 && !std::mem::replace(&mut self.failing, true) {
                        tracing::warn!(
                            sink = name,
                            message,
                            "the receiver takes no records: the agent holds them and retries"
                        );
                    }
                    self.reload_authorities();
                    let wait = after.unwrap_or_default().max(backoff.pause());
                    // `wait` may be any time that the receiver asked for.
                    if start.elapsed().saturating_add(wait) > GIVE_UP || !patience.pause(wait) {
                        return refused(LossReason::Unreachable, message);
                    }
                }
            }
        }
    }
}

fn client(endpoint: &OtlpEndpoint) -> Result<HttpClient, trust::TrustError> {
    let authorities =
        if endpoint.is_https() { trust::authorities(endpoint.ca.as_deref())? } else { RootCertStore::empty() };
    let tls = ClientConfig::builder_with_provider(Arc::new(rustls::crypto::ring::default_provider()))
        .with_safe_default_protocol_versions()
        .map_err(trust::TrustError::Tls)?
        .with_root_certificates(authorities)
        .with_no_client_auth();
    let connector = HttpsConnectorBuilder::new().with_tls_config(tls).https_or_http().enable_http1().build();
    Ok(Client::builder(TokioExecutor::new()).build(connector))
}

/// The value of the Authorization header, with the token from a file.
fn authorization(path: &Path) -> Result<HeaderValue, String> {
    let named = |error: &dyn fmt::Display| format!("token-file={}: {error}", path.display());
    let token = fs::read_to_string(path).map_err(|error| named(&error))?;
    let token = token.trim();
    if token.is_empty() || !token.bytes().all(|byte| byte.is_ascii_graphic()) {
        return Err(named(
            &"no token: the file must contain one token of printable ASCII without blanks, and nothing else",
        ));
    }
    let mut value = HeaderValue::try_from(format!("Bearer {token}")).map_err(|error| named(&error))?;
    value.set_sensitive(true);
    Ok(value)
}

/// Parses a Retry-After header: seconds or a date.
fn retry_after(value: &str) -> Option<Duration> {
    if let Ok(seconds) = value.trim().parse() {
        return Some(Duration::from_secs(seconds));
    }
    let date = jiff::fmt::rfc2822::parse(value).ok()?.timestamp();
    Duration::try_from(date.duration_since(jiff::Timestamp::now())).ok()
}

/// An error with its causes: the client's own message alone is "client error (Connect)".
fn causes(error: &dyn std::error::Error) -> String {
    let mut text = error.to_string();
    let mut source = error.source();
    while let Some(error) = source {
        text = format!("{text}: {error}");
        source = error.source();
    }
    text
}

/// The request for records of one run.
fn request(records: &[Arc<Record>]) -> ExportLogsServiceRequest {
    let resource = records.first().map(|record| otel::resource(record)).unwrap_or_default();
    let log_records = records.iter().map(|record| proto(otel::log(record))).collect();
    let scope = InstrumentationScope {
        name: otel::SCOPE.into(),
        version: env!("CARGO_PKG_VERSION").into(),
        ..InstrumentationScope::default()
    };
    let scope_logs = vec![ScopeLogs { scope: Some(scope), log_records, ..ScopeLogs::default() }];
    let resource = Some(Resource { attributes: pairs(resource), ..Resource::default() });
    ExportLogsServiceRequest { resource_logs: vec![ResourceLogs { resource, scope_logs, ..ResourceLogs::default() }] }
}

fn proto(log: otel::Log) -> LogRecord {
    LogRecord {
        time_unix_nano: log.time_unix_nano,
        observed_time_unix_nano: log.time_unix_nano,
        severity_number: i32::from(log.severity_number),
        severity_text: log.severity_text.into(),
        event_name: log.event_name.into(),
        body: Some(AnyValue { value: Some(Any::StringValue(log.body)) }),
        attributes: pairs(log.attributes),
        ..LogRecord::default()
    }
}

fn pairs(map: Map<String, Value>) -> Vec<KeyValue> {
    let pair = |(key, value)| KeyValue { key, value: Some(any(value)), ..KeyValue::default() };
    map.into_iter().map(pair).collect()
}

fn any(value: Value) -> AnyValue {
    let value = match value {
        Value::Null => None,
        Value::Bool(value) => Some(Any::BoolValue(value)),
        Value::Number(number) => Some(match number.as_i64() {
            Some(number) => Any::IntValue(number),
            None => Any::DoubleValue(number.as_f64().unwrap_or_default()),
        }),
        Value::String(text) => Some(Any::StringValue(text)),
        Value::Array(values) => Some(Any::ArrayValue(ArrayValue { values: values.into_iter().map(any).collect() })),
        Value::Object(map) => Some(Any::KvlistValue(KeyValueList { values: pairs(map) })),
    };
    AnyValue { value }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::sink::queue::Queue;
    use crate::sink::tests::{ids, record};

    #[test]
    fn what_is_wrong_with_a_url_is_named() {
        for (url, named) in [
            ("http://c:99999", "the port must be a number from 1 to 65535"),
            ("http://c:0", "the port must be a number from 1 to 65535"),
            ("http://c:/v1/logs", "the port must be a number from 1 to 65535"),
            ("http://[::1]:70000", "the port must be a number from 1 to 65535"),
            ("http://:4318", "the host is missing"),
            ("c:4318", "expected http:// or https:// and a host"),
        ] {
            let error = OtlpEndpoint::parse(url).unwrap_err();
            assert!(error.contains(named), "{url}: {error}");
        }
        for (url, uri) in [
            ("http://[::1]:4318", "http://[::1]:4318/v1/logs"),
            ("https://[fd00::1]", "https://[fd00::1]/v1/logs"),
            ("https://c/?tenant=a", "https://c/v1/logs?tenant=a"),
            ("https://c:65535?tenant=a", "https://c:65535/v1/logs?tenant=a"),
        ] {
            assert_eq!(OtlpEndpoint::parse(url).unwrap().uri, uri, "{url}");
        }
    }

    /// The error is visible minutes before the records are given up.
    #[test]
    fn a_receiver_that_is_not_there_is_an_error_while_it_is_tried_again() {
        let endpoint = OtlpEndpoint::parse("http://127.0.0.1:1").unwrap();
        let mut sink = OtlpSink::new(endpoint).unwrap();
        let queue = Queue::default();
        let record = Arc::new(record(&ids()));
        std::thread::scope(|scope| {
            let delivery = scope.spawn(|| sink.deliver(&[record], Patience(&queue)));
            while queue.error().is_none() && !delivery.is_finished() {
                std::thread::yield_now();
            }
            assert!(!delivery.is_finished());
            assert!(queue.error().is_some_and(|error| error.contains("otlp:http://127.0.0.1:1/v1/logs: ")));
            queue.stop_by(Instant::now());
            assert_eq!(delivery.join().unwrap().error.map(|error| error.reason()), Some(LossReason::Unreachable));
        });
    }

    #[test]
    fn a_token_file_has_a_token() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("token");
        std::fs::write(&path, " abc.def-_=\n").unwrap();
        let value = authorization(&path).unwrap();
        assert_eq!((value.to_str().unwrap(), value.is_sensitive()), ("Bearer abc.def-_=", true));
        for wrong in ["", " \n", "a\nb", "a b", "\u{feff}a", "a\0"] {
            std::fs::write(&path, wrong).unwrap();
            assert!(authorization(&path).unwrap_err().contains("token: no token: "), "{wrong:?}");
        }
    }

    #[test]
    fn retry_after_is_seconds_or_a_date() {
        assert_eq!(retry_after(" 120 "), Some(Duration::from_secs(120)));
        let in_a_minute = jiff::Timestamp::now() + Duration::from_secs(60);
        let date = in_a_minute.strftime("%a, %d %b %Y %H:%M:%S GMT").to_string();
        let wait = retry_after(&date).unwrap_or_default().as_secs();
        assert!((30..=60).contains(&wait), "{date}: {wait}");
        // A past date or no time at all gives the usual pause.
        assert_eq!(retry_after("Sun, 06 Nov 1994 08:49:37 GMT"), None);
        assert_eq!(retry_after("soon"), None);
    }
}
