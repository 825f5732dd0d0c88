//! Writes objects straight into the API server's database: a large cluster takes a minute instead of half an hour.

use std::net::SocketAddr;

use anyhow::{Context, Result, ensure};
use base64::Engine;
use base64::prelude::BASE64_STANDARD;
use futures::stream::{self, StreamExt, TryStreamExt};
use kube::{Client, Config};
use serde_json::{Value, json};
use tokio::runtime::Runtime;

/// Objects per transaction: etcd accepts at most 128 operations and 1.5 MiB.
const TOGETHER: usize = 100;

/// A connection to etcd's own HTTP interface.
pub struct Etcd {
    runtime: Runtime,
    client: Client,
}

impl std::fmt::Debug for Etcd {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Etcd").finish_non_exhaustive()
    }
}

impl Etcd {
    /// Makes a client without TLS. Sends nothing yet.
    pub fn connect(address: SocketAddr) -> Result<Etcd> {
        let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(1).enable_all().build()?;
        let config = Config::new(format!("http://{address}").parse().context("etcd's address")?);
        let client = runtime.block_on(async { Client::try_from(config) })?;
        Ok(Etcd { runtime, client })
    }

    /// Writes pods as the API server would store them, `parallel` transactions at a time. The API server reads JSON as well as its own
    /// encoding, and sends the pods to its watches.
    pub fn put_pods(&self, pods: &[Value], parallel: usize) -> Result<()> {
        let put = |pods: &[Value]| {
            let body = transaction(pods);
            let client = self.client.clone();
            async move {
                let request = http::Request::post("/v3/kv/txn").header("content-type", "application/json");
                let answer: Value = client.request(request.body(body?.to_string().into())?).await?;
                ensure!(answer["succeeded"] == true, "etcd: {answer}");
                Ok(())
            }
        };
        let all = async { stream::iter(pods.chunks(TOGETHER).map(put)).buffer_unordered(parallel).try_collect().await };
        self.runtime.block_on(all).context("write into etcd")
    }
}

fn transaction(pods: &[Value]) -> Result<Value> {
    let operations = pods.iter().map(|pod| {
        let field = |name: &str| pod["metadata"][name].as_str().with_context(|| format!("no {name} in {pod}"));
        let key = format!("/registry/pods/{}/{}", field("namespace")?, field("name")?);
        let put = json!({ "key": BASE64_STANDARD.encode(key), "value": BASE64_STANDARD.encode(pod.to_string()) });
        Ok(json!({ "request_put": put }))
    });
    Ok(json!({ "success": operations.collect::<Result<Vec<_>>>()? }))
}
