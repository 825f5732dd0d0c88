//! Looks up the pod of an address within a budget of requests, and adds it to the cluster's state.

use std::net::IpAddr;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard};
use std::time::Duration;

use futures::StreamExt;
use futures::stream::unfold;
use jiff::{SignedDuration, Timestamp};
use kube::api::{GetParams, ListParams};
use kube::core::{ObjectList, Request};
use tokio::sync::Notify;
use tokio::sync::mpsc::Receiver;

use super::super::super::change::{Change, Key};
use super::super::super::decode::wire::WireObject;
use super::super::super::index::AddressOwner;
use super::super::super::kinds::pod::wire::LookedUpPodWire;
use super::super::super::kinds::{Kind, Object, pod};
use super::super::super::source::{Cluster, SourceStatus};
use super::super::connect::{ApiConnection, Current};
use super::super::error::{ApiError, ApiErrorKind};
use super::super::watch::Collection;
use super::{CONFIRMATION_INTERVAL, LookupQueues, LookupResult, Lookups, MAX_CONFIRMS, SWEEP};
use crate::cluster::budget::RequestBudget;
use crate::lock::IgnorePoison;
use crate::model::Str;
use crate::model::cluster::Pod;

/// Rate and burst of lists by node or address. For an address the server compares every pod.
const LISTS: (Duration, u32) = (Duration::from_secs(1), 10);
/// Rate and burst of GETs of one pod by its name, which cost the server little.
const GETS: (Duration, u32) = (Duration::from_millis(200), 20);
/// A drop waits three seconds for its endpoints' identities: a later result is too late for it.
const PATIENCE: Duration = Duration::from_secs(3);
/// Pause before the second look-up of an address without owner: a pod can send before the API has its address.
const RETRY_AFTER: Duration = Duration::from_millis(700);
const AT_ONCE: usize = 8;
/// Shortest interval between lists of the nodes after look-ups without result.
const NODES_INTERVAL: Duration = Duration::from_secs(60);

/// Serves the queues until dropped.
pub async fn run(
    connection: ApiConnection,
    cluster: Cluster,
    lookups: Lookups,
    queues: LookupQueues,
    nodes: Arc<Notify>,
) {
    let finder = Arc::new(Finder {
        connection,
        cluster,
        lookups,
        lists: RequestBudget::new(LISTS.0, LISTS.1),
        gets: RequestBudget::new(GETS.0, GETS.1),
        nodes_again: RequestBudget::new(NODES_INTERVAL, 1),
        nodes,
        pods: Collection::of(&pod::INFO),
        ranges_hold: AtomicBool::new(true),
        found_by: LookupCounts::default(),
        forbidden: Mutex::default(),
    });
    finder.lookups.begin();
    let LookupQueues { finds, confirms } = queues;
    let find = |ip| {
        let finder = finder.clone();
        async move { finder.find(ip).await }
    };
    let confirm = |ip| {
        let finder = finder.clone();
        async move { finder.confirm(ip).await }
    };
    let finds = addresses(finds).for_each_concurrent(AT_ONCE, find);
    let confirms = addresses(confirms).for_each_concurrent(MAX_CONFIRMS, confirm);
    let sweeps = async {
        loop {
            finder.publish_status();
            tokio::time::sleep(SWEEP).await;
            finder.forget(finder.lookups.sweep());
        }
    };
    futures::join!(finds, confirms, sweeps);
}

fn addresses(queue: Receiver<IpAddr>) -> impl futures::Stream<Item = IpAddr> {
    unfold(queue, |mut queue| async { Some((queue.recv().await?, queue)) })
}

struct Finder {
    connection: ApiConnection,
    cluster: Cluster,
    lookups: Lookups,
    lists: RequestBudget,
    gets: RequestBudget,
    nodes_again: RequestBudget,
    /// Notified, the nodes are listed again.
    nodes: Arc<Notify>,
    pods: Collection,
    /// The pods found so far have addresses of their nodes' pod CIDRs.
    ranges_hold: AtomicBool,
    found_by: LookupCounts,
    /// The missing right, until a look-up succeeds.
    forbidden: Mutex<Option<String>>,
}

/// A pod that has the address, and the time just before the request.
type ConfirmedPod = Option<(Pod, Timestamp)>;

impl Finder {
    /// Confirms the known owner of `ip`, or looks up the new one.
    async fn confirm(&self, ip: IpAddr) {
        let Some(LookupResult::Pod { namespace, name, uid, at, .. }) = self.lookups.result(ip) else {
            return self.find(ip).await;
        };
        // Confirms all packets that arrive until then.
        let wait = Timestamp::now()
            .duration_until(at + CONFIRMATION_INTERVAL)
            .clamp(SignedDuration::ZERO, CONFIRMATION_INTERVAL);
        tokio::time::sleep(wait.unsigned_abs()).await;
        if !self.gets.take(PATIENCE).await {
            return self.lookups.give_up(ip);
        }
        match self.get(&namespace, &name, ip).await {
            Ok(Some((pod, at))) if pod.uid == Some(uid) => self.found(ip, pod, at),
            Ok(_) => self.find(ip).await,
            Err(error) => self.failed(ip, &error),
        }
    }

    async fn find(&self, ip: IpAddr) {
        for again in [false, true] {
            if again {
                if self.nodes_again.take(Duration::ZERO).await {
                    self.nodes.notify_one();
                }
                tokio::time::sleep(RETRY_AFTER).await;
            }
            match self.look_up(ip).await {
                Ok(LookupOutcome::Pod(pod, at)) => return self.found(ip, *pod, at),
                Ok(LookupOutcome::NotNow) => return self.lookups.give_up(ip),
                Ok(LookupOutcome::NoOwner) => {}
                Err(error) => return self.failed(ip, &error),
            }
        }
        self.forget(self.lookups.keep(ip, Some(LookupResult::NoOwner { at: Timestamp::now() })));
    }

    /// Looks in the endpoint slices, then in the lists, the cheapest first.
    async fn look_up(&self, ip: IpAddr) -> Result<LookupOutcome, ApiError> {
        // Nodes and local pods are watched.
        if self.is_watched(ip) {
            return Ok(LookupOutcome::NotNow);
        }
        if let Some((namespace, name)) = self.in_slices(ip) {
            if !self.gets.take(PATIENCE).await {
                return Ok(LookupOutcome::NotNow);
            }
            if let Some((pod, at)) = self.get(&namespace, &name, ip).await? {
                self.found_by.slice.fetch_add(1, Ordering::Relaxed);
                return Ok(LookupOutcome::Pod(Box::new(pod), at));
            }
        }
        for list in self.lists_for(ip) {
            if !self.lists.take(PATIENCE).await {
                return Ok(LookupOutcome::NotNow);
            }
            let mut claims = self.list(list.fields(ip)).await?.into_iter().filter(|pod| has(pod, ip));
            let Some(one) = claims.next() else { continue };
            // Two pods have the address: naming either could be wrong.
            if claims.next().is_some() {
                return Ok(LookupOutcome::NoOwner);
            }
            // The list is from the server's cache, which may be old.
            if !self.gets.take(PATIENCE).await {
                return Ok(LookupOutcome::NotNow);
            }
            let now = self.get(&one.namespace, &one.name, ip).await?.filter(|(pod, _)| pod.uid == one.uid);
            let Some((pod, at)) = now else { return Ok(LookupOutcome::NoOwner) };
            self.learn(&list, ip, &pod);
            return Ok(LookupOutcome::Pod(Box::new(pod), at));
        }
        Ok(LookupOutcome::NoOwner)
    }

    /// The lists to read, in order: by node first, if a pod CIDR names the node, because the server indexes pods by node but
    /// compares every pod with an address. No field selector has a pod's second address: only its node's list has it.
    fn lists_for(&self, ip: IpAddr) -> Vec<PodList> {
        let node = self.node_of(ip).map(PodList::Node);
        let mut lists: Vec<PodList> = node.into_iter().chain([PodList::Address]).collect();
        if !self.ranges_hold.load(Ordering::Relaxed) {
            lists.reverse();
        }
        lists
    }

    /// Some networks assign addresses independent of the nodes' pod CIDRs: then the node's list comes last.
    fn learn(&self, list: &PodList, ip: IpAddr, pod: &Pod) {
        let counted = match list {
            PodList::Node(_) => {
                self.ranges_hold.store(true, Ordering::Relaxed);
                &self.found_by.node
            }
            PodList::Address => {
                if self.node_of(ip).is_some_and(|node| pod.node.as_ref() != Some(&node)) {
                    self.ranges_hold.store(false, Ordering::Relaxed);
                }
                &self.found_by.address
            }
        };
        counted.fetch_add(1, Ordering::Relaxed);
    }

    fn is_watched(&self, ip: IpAddr) -> bool {
        match self.cluster.read().owner_of(ip) {
            AddressOwner::Pod(view) => view.pod.node == self.lookups.shared.node,
            AddressOwner::Node(_) => true,
            _ => false,
        }
    }

    /// The pod that an endpoint slice names for the address.
    fn in_slices(&self, ip: IpAddr) -> Option<(Str, Str)> {
        let index = self.cluster.read();
        let mut slices = index.namespaces().flat_map(|(_, entry)| entry.slices());
        slices.find_map(|slice| {
            let endpoint = slice.endpoints.iter().find(|endpoint| endpoint.ips.contains(&ip))?;
            Some((slice.namespace.clone(), endpoint.pod.clone()?))
        })
    }

    fn node_of(&self, ip: IpAddr) -> Option<Str> {
        let index = self.cluster.read();
        index.nodes().find(|node| node.pod_cidrs.iter().any(|cidr| cidr.contains(&ip))).map(|node| node.name.clone())
    }

    async fn current(&self) -> Result<Current, ApiError> {
        self.connection.current().await.map_err(ApiError::from)
    }

    /// Reads the pod from etcd, not from the server's cache. `None` if it does not have the address.
    async fn get(&self, namespace: &str, name: &str, ip: IpAddr) -> Result<ConfirmedPod, ApiError> {
        let api_error = |error: &kube::Error| ApiError::of(error, self.pods.request("get"));
        let request = Request::new(self.pods.url(Some(namespace))).get(name, &GetParams::default());
        let request = request.map_err(kube::Error::BuildRequest).map_err(|error| api_error(&error))?;
        let current = self.current().await?;
        let at = Timestamp::now();
        match current.client.request_text(request).await {
            Ok(text) => {
                let object: WireObject<Pod, LookedUpPodWire> =
                    serde_json::from_str(&text).map_err(|error| api_error(&kube::Error::SerdeError(error)))?;
                Ok(object.decoded.ok().filter(|pod| has(pod, ip)).map(|pod| (pod, at)))
            }
            Err(kube::Error::Api(status)) if status.code == 404 => Ok(None),
            Err(error) => {
                let error = api_error(&error);
                self.renew(&current, &error).await;
                Err(error)
            }
        }
    }

    async fn list(&self, fields: String) -> Result<Vec<Pod>, ApiError> {
        // Version 0: from the server's cache, without a read of etcd.
        let params =
            ListParams { field_selector: Some(fields), resource_version: Some("0".into()), ..Default::default() };
        let current = self.current().await?;
        let list: Result<ObjectList<WireObject<Pod, LookedUpPodWire>>, ApiError> =
            self.pods.page(&current.client, &params).await;
        if let Err(error) = &list {
            self.renew(&current, error).await;
        }
        Ok(list?.items.into_iter().filter_map(|listed| listed.decoded.ok()).collect())
    }

    async fn renew(&self, current: &Current, error: &ApiError) {
        if error.kind == ApiErrorKind::Unauthorized {
            self.connection.renew(current).await;
        }
    }

    fn found(&self, ip: IpAddr, pod: Pod, at: Timestamp) {
        let (namespace, name) = (pod.namespace.clone(), pod.name.clone());
        // This node's pods are watched: the watch adds them, in order.
        let (true, Some(uid)) = (pod.node != self.lookups.shared.node, pod.uid.clone()) else {
            return self.lookups.give_up(ip);
        };
        // The pod first: whoever reads the result then finds the pod in the index.
        self.cluster.apply(vec![Change::Upsert(Object::Pod(pod))], Timestamp::now());
        let result = LookupResult::Pod { namespace, name, uid, at, used: at };
        self.forget(self.lookups.keep(ip, Some(result)));
        *self.forbidden() = None;
        self.publish_status();
    }

    /// Sets the status of the source `lookups`.
    fn publish_status(&self) {
        let (requested, refused) = self.lookups.counts();
        let LookupCounts { slice, node, address } = &self.found_by;
        let [slice, node, address] = [slice, node, address].map(|count| count.load(Ordering::Relaxed));
        let detail = format!(
            "{requested} addresses were looked up or confirmed, {refused} requests found the queue full; pods found by \
             EndpointSlice: {slice}, by node: {node}, by address: {address}"
        );
        let error = self.forbidden().clone();
        let synced = error.is_none();
        self.cluster.set_source(SourceStatus {
            synced,
            error,
            detail: Some(detail),
            ..SourceStatus::expected("lookups")
        });
    }

    fn failed(&self, ip: IpAddr, error: &ApiError) {
        let message = error.to_string();
        let line = format!("looking up {ip}: {}", crate::text::escape(&message));
        // Only look-ups use these rights. The watches report every other failure.
        if error.kind == ApiErrorKind::Forbidden && self.forbidden().replace(message).is_none() {
            tracing::warn!("{line}");
        } else {
            tracing::debug!("{line}");
        }
        self.publish_status();
        self.lookups.give_up(ip);
    }

    fn forbidden(&self) -> MutexGuard<'_, Option<String>> {
        self.forbidden.lock().ignore_poison()
    }

    /// Removes the pods of other nodes whose results are gone.
    fn forget(&self, results: Vec<LookupResult>) {
        let mut changes = Vec::new();
        for result in results {
            let LookupResult::Pod { namespace, name, uid, .. } = result else { continue };
            let other_address = self
                .lookups
                .lock()
                .results
                .values()
                .any(|a| matches!(a, LookupResult::Pod { uid: u, .. } if *u == uid));
            let index = self.cluster.read();
            let same = index
                .pod(&namespace, &name)
                .is_some_and(|view| view.pod.uid.as_ref() == Some(&uid) && view.pod.node != self.lookups.shared.node);
            if same && !other_address {
                changes.push(Change::Delete(Key { kind: Kind::Pod, namespace: Some(namespace), name }));
            }
        }
        if !changes.is_empty() {
            self.cluster.apply(changes, Timestamp::now());
        }
    }
}

/// A list that may have the pod of an address.
enum PodList {
    Node(Str),
    Address,
}

impl PodList {
    fn fields(&self, ip: IpAddr) -> String {
        match self {
            PodList::Node(node) => format!("spec.nodeName={node}"),
            // Finished pods keep their address in status.
            PodList::Address => format!("status.podIP={ip},status.phase!=Succeeded,status.phase!=Failed"),
        }
    }
}

/// Pods found, by the way in which they were found.
#[derive(Debug, Default)]
struct LookupCounts {
    slice: AtomicU64,
    node: AtomicU64,
    address: AtomicU64,
}

enum LookupOutcome {
    Pod(Box<Pod>, Timestamp),
    NoOwner,
    /// The budget is used up, or a watch has the address.
    NotNow,
}

/// Whether `pod` is the owner of `ip`.
fn has(pod: &Pod, ip: IpAddr) -> bool {
    !pod.host_network && !pod.is_over() && pod.ips.contains(&ip)
}
