//! A blocking client of the API server, with objects as JSON values.

use std::collections::HashMap;
use std::path::Path;
use std::sync::Mutex;

use anyhow::{Context, Result};
use futures::stream::{self, StreamExt, TryStreamExt};
use kube::api::{Api as KubeApi, DeleteParams, DynamicObject, Patch, PatchParams};
use kube::config::{KubeConfigOptions, Kubeconfig};
use kube::core::{ApiResource, GroupVersionKind, TypeMeta};
use kube::discovery::{Scope, pinned_kind};
use kube::{Client, Config};
use serde_json::{Value, json};
use tokio::runtime::Runtime;

/// The field manager.
const MANAGER: &str = "netpol-trace-tests";

/// A client with one user's rights.
pub struct Api {
    runtime: Runtime,
    client: Client,
    /// The resource of each apiVersion and kind that was used.
    resources: Mutex<HashMap<TypeMeta, (ApiResource, Scope)>>,
}

impl std::fmt::Debug for Api {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Api").finish_non_exhaustive()
    }
}

impl Api {
    /// Makes a client from a kubeconfig. Sends nothing yet.
    pub fn connect(kubeconfig: &Path) -> Result<Api> {
        let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(1).enable_all().build()?;
        let kubeconfig = Kubeconfig::read_from(kubeconfig)?;
        let client = runtime.block_on(async {
            let config = Config::from_custom_kubeconfig(kubeconfig, &KubeConfigOptions::default()).await?;
            anyhow::Ok(Client::try_from(config)?)
        })?;
        Ok(Api { runtime, client, resources: Mutex::default() })
    }

    /// Sends a GET and returns the answer as text.
    pub fn text(&self, path: &str) -> Result<String> {
        let request = http::Request::get(path).body(Vec::new())?;
        self.runtime.block_on(self.client.request_text(request)).with_context(|| format!("GET {path}"))
    }

    /// Sends a GET and returns the answer.
    pub fn get(&self, path: &str) -> Result<Value> {
        serde_json::from_str(&self.text(path)?).with_context(|| format!("GET {path}"))
    }

    /// Posts an object to a path such as `…/serviceaccounts/NAME/token` and returns the answer.
    pub fn post(&self, path: &str, body: &Value) -> Result<Value> {
        let request =
            http::Request::post(path).header("content-type", "application/json").body(body.to_string().into())?;
        self.runtime.block_on(self.client.request(request)).with_context(|| format!("POST {path}"))
    }

    /// Creates an object below the path of its kind, with the manifest as it is. An existing object stays as it is.
    pub fn create_yaml(&self, path: &str, manifest: &str) -> Result<()> {
        let request = http::Request::post(path).header("content-type", "application/yaml").body(manifest.into())?;
        match self.runtime.block_on(self.client.request::<Value>(request)) {
            Err(kube::Error::Api(status)) if status.code == 409 => Ok(()),
            answer => answer.map(drop).with_context(|| format!("POST {path}: {manifest}")),
        }
    }

    /// Creates or changes an object as `kubectl apply --server-side --force-conflicts` does, then sets its status if it has one.
    /// Returns the server's object.
    pub fn apply(&self, object: &Value) -> Result<Value> {
        let name = name(object)?;
        let api = self.of(object)?;
        let apply = PatchParams::apply(MANAGER).force();
        let (mut spec, mut status) = (object.clone(), object.clone());
        spec.as_object_mut().map(|spec| spec.remove("status"));
        status.as_object_mut().map(|status| status.remove("spec"));
        let applied = self.runtime.block_on(async {
            let applied = api.patch(name, &apply, &Patch::Apply(&spec)).await?;
            match object.get("status") {
                Some(_) => api.patch_status(name, &PatchParams::default(), &Patch::Merge(&status)).await,
                None => Ok(applied),
            }
        });
        let applied = applied.with_context(|| format!("apply {object}"))?;
        Ok(serde_json::to_value(applied)?)
    }

    /// Changes an object's status by a merge patch.
    pub fn patch_status(&self, path: &str, patch: &Value) -> Result<()> {
        self.runtime.block_on(merge_status(&self.client, path, patch)).with_context(|| format!("change {path}"))
    }

    /// Creates many objects, `parallel` at a time, each with its status. `{namespace}` in the path stands for the object's
    /// own.
    pub fn create_all(&self, path: &str, objects: &[Value], parallel: usize) -> Result<()> {
        let create = |object: &Value| {
            let client = self.client.clone();
            let namespace = object.pointer("/metadata/namespace").and_then(Value::as_str).unwrap_or_default();
            let (path, object) = (path.replace("{namespace}", namespace), object.clone());
            async move {
                let request = http::Request::post(&path).header("content-type", "application/json");
                let created: Value = client.request(request.body(object.to_string().into())?).await?;
                if let Some(status) = object.get("status") {
                    let path = format!("{path}/{}", name(&created)?);
                    merge_status(&client, &path, &json!({ "status": status })).await?;
                }
                anyhow::Ok(())
            }
        };
        let all = async { stream::iter(objects.iter().map(create)).buffer_unordered(parallel).try_collect().await };
        self.runtime.block_on(all).with_context(|| format!("create at {path}"))
    }

    /// Deletes an object, named by its apiVersion, kind and metadata, without a grace period.
    pub fn delete(&self, object: &Value) -> Result<()> {
        let api = self.of(object)?;
        let at_once = DeleteParams::default().grace_period(0);
        self.runtime.block_on(api.delete(name(object)?, &at_once)).map(drop).with_context(|| format!("delete {object}"))
    }

    fn of(&self, object: &Value) -> Result<KubeApi<DynamicObject>> {
        let types: TypeMeta = serde_json::from_value(object.clone()).context("an object has apiVersion and kind")?;
        let known = self.resources.lock().expect("nobody panics with it").get(&types).cloned();
        let (resource, scope) = match known {
            Some(known) => known,
            None => {
                let kind = GroupVersionKind::try_from(&types)?;
                let (resource, capabilities) = self.runtime.block_on(pinned_kind(&self.client, &kind))?;
                let found = (resource, capabilities.scope);
                self.resources.lock().expect("nobody panics with it").insert(types, found.clone());
                found
            }
        };
        let namespace = object.pointer("/metadata/namespace").and_then(Value::as_str).unwrap_or("default");
        Ok(match scope {
            Scope::Cluster => KubeApi::all_with(self.client.clone(), &resource),
            Scope::Namespaced => KubeApi::namespaced_with(self.client.clone(), namespace, &resource),
        })
    }
}

async fn merge_status(client: &Client, path: &str, patch: &Value) -> Result<()> {
    let request = http::Request::patch(format!("{path}/status")).header("content-type", "application/merge-patch+json");
    client.request::<Value>(request.body(patch.to_string().into())?).await?;
    Ok(())
}

fn name(object: &Value) -> Result<&str> {
    object.pointer("/metadata/name").and_then(Value::as_str).with_context(|| format!("no name in {object}"))
}
