//! OTLP over HTTP: log records as protobuf, sent in batches, tried again while that makes sense.

mod trust;

use std::fs;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::{Duration, Instant};

use http_body_util::{BodyExt, Full, Limited};
use hyper::body::Bytes;
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

use super::backoff::Backoff;
use super::queue::Patience;
use super::{Delivery, Sink, SinkError};
use crate::record::Record;
use crate::record::format::otel;

/// One attempt.
const ATTEMPT: Duration = Duration::from_secs(10);
/// After so long a batch is given up.
const GIVE_UP: Duration = Duration::from_secs(300);
/// Octets of an answer that are read.
const MAX_ANSWER: usize = 64 * 1024;

/// Where to, and as whom.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Endpoint {
    pub uri: Uri,
    /// A file with the token for `Authorization: Bearer`, read for each batch.
    pub token: Option<PathBuf>,
    /// A PEM file with the certificate authorities to trust, instead of the system's.
    pub ca: Option<PathBuf>,
}

impl Endpoint {
    /// `http://collector:4318`: without a path, OTLP's own is taken.
    ///
    /// # Errors
    /// What is wrong with the URL.
    pub fn parse(text: &str) -> Result<Endpoint, String> {
        let example = "such as otlp:http://collector.observability:4318";
        let uri: Uri = text.parse().map_err(|error| format!("otlp:{text}: {error}; a URL is needed, {example}"))?;
        let (Some("http" | "https"), Some(authority)) = (uri.scheme_str(), uri.authority()) else {
            return Err(format!("otlp:{text}: http:// or https:// and a host are needed, {example}"));
        };
        if authority.as_str().contains('@') {
            return Err(format!("otlp:…@{}: put credentials in a file: token-file=PATH", authority.host()));
        }
        if uri.path() != "/" {
            return Ok(Endpoint { uri, token: None, ca: None });
        }
        let uri = format!("{}://{authority}/v1/logs", uri.scheme_str().unwrap_or_default());
        Ok(Endpoint { uri: uri.parse().map_err(|error| format!("otlp:{text}: {error}"))?, token: None, ca: None })
    }

    pub fn is_https(&self) -> bool {
        self.uri.scheme_str() == Some("https")
    }
}

type HttpClient = Client<HttpsConnector<HttpConnector>, Full<Bytes>>;

/// The encoding, as records name it.
pub const FORMAT: &str = "otel";

#[derive(Debug)]
pub struct Otlp {
    endpoint: Endpoint,
    client: HttpClient,
    runtime: Runtime,
}

/// What came of one attempt.
enum Outcome {
    /// How many records the receiver did not want.
    Taken(u64),
    /// Again, not before the time that the receiver asked for.
    Again(String, Option<Duration>),
    Never(String),
}

impl Otlp {
    /// Needs no certificates for plain `http:`.
    ///
    /// # Errors
    /// The token can't be read or, for `https:`, there are no certificate authorities to trust.
    pub fn new(endpoint: Endpoint) -> anyhow::Result<Otlp> {
        if let Some(path) = &endpoint.token {
            fs::read_to_string(path).map_err(|error| anyhow::anyhow!("token-file={}: {error}", path.display()))?;
        }
        let client = client(&endpoint)?;
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
        Ok(Otlp { endpoint, client, runtime })
    }

    /// Reads `ca-file=` again after a failed attempt: certificate managers replace authorities while the agent runs. A file that can't be
    /// read changes nothing.
    fn reload_authorities(&mut self) {
        if self.endpoint.ca.is_none() {
            return;
        }
        match client(&self.endpoint) {
            Ok(client) => self.client = client,
            Err(error) => tracing::debug!(%error, "OTLP: the authorities stay as they were"),
        }
    }

    fn attempt(&self, body: &Bytes, limit: Duration) -> Outcome {
        let sent = self.runtime.block_on(async { tokio::time::timeout(limit, self.send(body.clone())).await });
        sent.unwrap_or_else(|_| Outcome::Again(format!("no answer in {} s", limit.as_secs()), None))
    }

    async fn send(&self, body: Bytes) -> Outcome {
        let mut request = Request::post(&self.endpoint.uri)
            .header(header::CONTENT_TYPE, "application/x-protobuf")
            .header(header::USER_AGENT, concat!("netpol-trace/", env!("CARGO_PKG_VERSION")));
        if let Some(path) = &self.endpoint.token {
            match fs::read_to_string(path) {
                Ok(token) => request = request.header(header::AUTHORIZATION, format!("Bearer {}", token.trim())),
                Err(error) => return Outcome::Again(format!("token-file={}: {error}", path.display()), None),
            }
        }
        let request = match request.body(Full::new(body)) {
            Ok(request) => request,
            Err(error) => return Outcome::Never(error.to_string()),
        };
        let response = match self.client.request(request).await {
            Ok(response) => response,
            Err(error) => return Outcome::Again(causes(&error), None),
        };
        let (head, body) = response.into_parts();
        match head.status {
            StatusCode::OK => match Limited::new(body, MAX_ANSWER).collect().await {
                Ok(answer) => {
                    let answer = ExportLogsServiceResponse::decode(answer.to_bytes()).unwrap_or_default();
                    let rejected = answer.partial_success.map_or(0, |partial| partial.rejected_log_records);
                    Outcome::Taken(u64::try_from(rejected).unwrap_or_default())
                }
                // It said that it has them.
                Err(_) => Outcome::Taken(0),
            },
            status if status.is_success() => Outcome::Taken(0),
            StatusCode::TOO_MANY_REQUESTS
            | StatusCode::BAD_GATEWAY
            | StatusCode::SERVICE_UNAVAILABLE
            | StatusCode::GATEWAY_TIMEOUT => {
                let after = head.headers.get(header::RETRY_AFTER).and_then(|value| value.to_str().ok());
                Outcome::Again(format!("the receiver said {}", head.status), after.and_then(retry_after))
            }
            status => Outcome::Never(format!("the receiver said {status}")),
        }
    }
}

impl Sink for Otlp {
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
        let (start, mut backoff) = (Instant::now(), Backoff::default());
        loop {
            match self.attempt(&body, patience.left(ATTEMPT)) {
                Outcome::Taken(rejected) => return Delivery { rejected, ..Delivery::all(records) },
                Outcome::Never(message) => return refused("refused", message),
                Outcome::Again(message, after) => {
                    tracing::debug!(message, "OTLP: to be tried again");
                    self.reload_authorities();
                    let wait = after.unwrap_or_default().max(backoff.pause());
                    if start.elapsed() + wait > GIVE_UP || !patience.pause(wait) {
                        return refused("unreachable", message);
                    }
                }
            }
        }
    }
}

fn client(endpoint: &Endpoint) -> Result<HttpClient, trust::TrustError> {
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

/// Seconds, or a date.
fn retry_after(value: &str) -> Option<Duration> {
    if let Ok(seconds) = value.trim().parse() {
        return Some(Duration::from_secs(seconds));
    }
    let date = jiff::fmt::rfc2822::parse(value).ok()?.timestamp();
    Duration::try_from(date.duration_since(jiff::Timestamp::now())).ok()
}

/// An error with what is behind it: the client's own message alone is «client error (Connect)».
fn causes(error: &dyn std::error::Error) -> String {
    let mut text = error.to_string();
    let mut source = error.source();
    while let Some(error) = source {
        text = format!("{text}: {error}");
        source = error.source();
    }
    text
}

/// Records of one run.
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

    #[test]
    fn a_receiver_says_when_to_come_back_in_seconds_or_by_a_date() {
        assert_eq!(retry_after(" 120 "), Some(Duration::from_secs(120)));
        let in_a_minute = jiff::Timestamp::now() + Duration::from_secs(60);
        let date = in_a_minute.strftime("%a, %d %b %Y %H:%M:%S GMT").to_string();
        let wait = retry_after(&date).unwrap_or_default().as_secs();
        assert!((30..=60).contains(&wait), "{date}: {wait}");
        // What is past or no time means: as always.
        assert_eq!(retry_after("Sun, 06 Nov 1994 08:49:37 GMT"), None);
        assert_eq!(retry_after("soon"), None);
    }
}
