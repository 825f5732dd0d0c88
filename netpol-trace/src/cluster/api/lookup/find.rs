//! Asks the server whose an address is, within a budget, and puts the answer into the cluster's state.

use std::net::IpAddr;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use futures::StreamExt;
use futures::stream::unfold;
use jiff::{SignedDuration, Timestamp};
use kube::api::{GetParams, ListParams};
use kube::core::{ObjectList, Request};
use tokio::sync::Notify;
use tokio::sync::mpsc::Receiver;

use super::super::super::change::{Change, Key, Kind};
use super::super::super::index::AddressOwner;
use super::super::super::source::{Cluster, SourceStatus};
use super::super::connect::{Connection, Current};
use super::super::error::{ApiError, ApiErrorKind};
use super::super::items::{self, Item};
use super::super::watch::Collection;
use super::{LookupQueues, LookupResult, Lookups, MAX_CONFIRMS, MOMENT, SWEEP};
use crate::cluster::budget::Budget;
use crate::model::Str;
use crate::model::cluster::{Object, Pod};

/// Lists by a node or an address: for the latter the server looks at every pod.
const LISTS: (Duration, u32) = (Duration::from_secs(1), 10);
/// GETs of one pod by its name, which cost the server little.
const GETS: (Duration, u32) = (Duration::from_millis(200), 20);
/// A drop waits three seconds for its names: what takes longer comes too late for it.
const PATIENCE: Duration = Duration::from_secs(3);
/// Before nobody is said to have an address it is asked once more: pods can send before the API knows their address.
const ONCE_MORE: Duration = Duration::from_millis(700);
const AT_ONCE: usize = 8;
/// Nodes are listed again on a miss, but not more often than this.
const NODES_AGAIN: Duration = Duration::from_secs(60);

/// Answers until dropped.
pub async fn run(connection: Connection, cluster: Cluster, lookups: Lookups, asked: LookupQueues, nodes: Arc<Notify>) {
    let finder = Arc::new(Finder {
        connection,
        cluster,
        lookups,
        lists: Budget::new(LISTS.0, LISTS.1),
        gets: Budget::new(GETS.0, GETS.1),
        nodes_again: Budget::new(NODES_AGAIN, 1),
        nodes,
        pods: Collection { verbs: &["get", "list", "watch"], ..Collection::of("", "v1", "pods") },
        ranges_hold: AtomicBool::new(true),
        found_by: LookupCounts::default(),
        forbidden: Mutex::default(),
    });
    finder.lookups.begin();
    let LookupQueues { finds, confirms } = asked;
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
            finder.tell();
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
    connection: Connection,
    cluster: Cluster,
    lookups: Lookups,
    lists: Budget,
    gets: Budget,
    nodes_again: Budget,
    /// Has the nodes listed again.
    nodes: Arc<Notify>,
    pods: Collection,
    /// Pods have addresses of their nodes' pod CIDRs, as far as was seen.
    ranges_hold: AtomicBool,
    found_by: LookupCounts,
    /// The right that is missing, since the last pod that was found.
    forbidden: Mutex<Option<String>>,
}

/// A pod that has the address, and a time before which it was not asked.
type Found = Option<(Pod, Timestamp)>;

impl Finder {
    /// Whether the pod that had `ip` still has it; else who does.
    async fn confirm(&self, ip: IpAddr) {
        let Some(LookupResult::Pod { namespace, name, uid, at, .. }) = self.lookups.known(ip) else {
            return self.find(ip).await;
        };
        // What arrives until then is answered with it.
        let wait = Timestamp::now().duration_until(at + MOMENT).clamp(SignedDuration::ZERO, MOMENT);
        tokio::time::sleep(wait.unsigned_abs()).await;
        if !self.gets.take(PATIENCE).await {
            return self.lookups.leave(ip);
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
                tokio::time::sleep(ONCE_MORE).await;
            }
            match self.look(ip).await {
                Ok(LookupOutcome::Pod(pod, at)) => return self.found(ip, *pod, at),
                Ok(LookupOutcome::Later) => return self.lookups.leave(ip),
                Ok(LookupOutcome::Nobody) => {}
                Err(error) => return self.failed(ip, &error),
            }
        }
        self.forget(self.lookups.answer(ip, Some(LookupResult::Nobody { at: Timestamp::now() })));
    }

    /// Where the address may be found, the cheapest place first.
    async fn look(&self, ip: IpAddr) -> Result<LookupOutcome, ApiError> {
        // Whatever a watch has: nodes and local pods need no answer of ours.
        if self.is_watched(ip) {
            return Ok(LookupOutcome::Later);
        }
        if let Some((namespace, name)) = self.in_slices(ip) {
            if !self.gets.take(PATIENCE).await {
                return Ok(LookupOutcome::Later);
            }
            if let Some((pod, at)) = self.get(&namespace, &name, ip).await? {
                self.found_by.slice.fetch_add(1, Ordering::Relaxed);
                return Ok(LookupOutcome::Pod(Box::new(pod), at));
            }
        }
        for way in self.ways(ip) {
            if !self.lists.take(PATIENCE).await {
                return Ok(LookupOutcome::Later);
            }
            let mut claims = self.list(way.fields(ip)).await?.into_iter().filter(|pod| has(pod, ip));
            let Some(one) = claims.next() else { continue };
            // Two pods claim it: naming either could be wrong.
            if claims.next().is_some() {
                return Ok(LookupOutcome::Nobody);
            }
            // The list came out of a cache, which may be behind.
            if !self.gets.take(PATIENCE).await {
                return Ok(LookupOutcome::Later);
            }
            let now = self.get(&one.namespace, &one.name, ip).await?.filter(|(pod, _)| pod.uid == one.uid);
            let Some((pod, at)) = now else { return Ok(LookupOutcome::Nobody) };
            self.learn(&way, ip, &pod);
            return Ok(LookupOutcome::Pod(Box::new(pod), at));
        }
        Ok(LookupOutcome::Nobody)
    }

    /// By its node first where the nodes' pod CIDRs tell it: the server has an index of pods by node, and looks at every
    /// pod for an address. A second address of a pod is in no field selector, so its node is the only way to it.
    fn ways(&self, ip: IpAddr) -> Vec<Way> {
        let node = self.node_of(ip).map(Way::Node);
        let mut ways: Vec<Way> = node.into_iter().chain([Way::Address]).collect();
        if !self.ranges_hold.load(Ordering::Relaxed) {
            ways.reverse();
        }
        ways
    }

    /// Some networks hand out addresses without regard to the nodes' pod CIDRs: then a node's pods are asked for last.
    fn learn(&self, way: &Way, ip: IpAddr, pod: &Pod) {
        let counted = match way {
            Way::Node(_) => {
                self.ranges_hold.store(true, Ordering::Relaxed);
                &self.found_by.node
            }
            Way::Address => {
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

    /// The pod of that name as it is now, if it has the address now. Not out of a cache.
    async fn get(&self, namespace: &str, name: &str, ip: IpAddr) -> Result<Found, ApiError> {
        let api_error = |error: &kube::Error| ApiError::of(error, self.pods.request("get"));
        let request = Request::new(self.pods.url(Some(namespace))).get(name, &GetParams::default());
        let request = request.map_err(kube::Error::BuildRequest).map_err(|error| api_error(&error))?;
        let current = self.current().await?;
        let at = Timestamp::now();
        match current.client.request_text(request).await {
            Ok(text) => {
                let item: Item<items::Peer> =
                    serde_json::from_str(&text).map_err(|error| api_error(&kube::Error::SerdeError(error)))?;
                Ok(pod_of(item).filter(|pod| has(pod, ip)).map(|pod| (pod, at)))
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
        // Any version: out of the server's cache, never through to etcd.
        let params =
            ListParams { field_selector: Some(fields), resource_version: Some("0".into()), ..Default::default() };
        let current = self.current().await?;
        let list: Result<ObjectList<Item<items::Peer>>, ApiError> = self.pods.page(&current.client, &params).await;
        if let Err(error) = &list {
            self.renew(&current, error).await;
        }
        Ok(list?.items.into_iter().filter_map(pod_of).collect())
    }

    async fn renew(&self, current: &Current, error: &ApiError) {
        if error.kind == ApiErrorKind::Unauthorized {
            self.connection.renew(current).await;
        }
    }

    fn found(&self, ip: IpAddr, pod: Pod, at: Timestamp) {
        let (namespace, name) = (pod.namespace.clone(), pod.name.clone());
        // This node's pods come by their watch, in their order.
        let (true, Some(uid)) = (pod.node != self.lookups.shared.node, pod.uid.clone()) else {
            return self.lookups.leave(ip);
        };
        // Into the state first: whoever sees the answer finds the pod.
        self.cluster.apply(vec![Change::Upsert(Object::Pod(pod))], Timestamp::now());
        let answer = LookupResult::Pod { namespace, name, uid, at, used: at };
        self.forget(self.lookups.answer(ip, Some(answer)));
        *self.forbidden() = None;
        self.tell();
    }

    /// How it goes, among the sources.
    fn tell(&self) {
        let (asked, unasked) = self.lookups.counts();
        let LookupCounts { slice, node, address } = &self.found_by;
        let [slice, node, address] = [slice, node, address].map(|count| count.load(Ordering::Relaxed));
        let detail = format!(
            "{asked} addresses were looked up or confirmed, {unasked} more were too many at once; pods found by \
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
        // Rights that only lookups use nobody else misses; the rest the watches say louder, once.
        if error.kind == ApiErrorKind::Forbidden && self.forbidden().replace(message).is_none() {
            tracing::warn!("{line}");
        } else {
            tracing::debug!("{line}");
        }
        self.tell();
        self.lookups.leave(ip);
    }

    fn forbidden(&self) -> MutexGuard<'_, Option<String>> {
        self.forbidden.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Takes pods elsewhere out of the state: nobody vouches for them any more.
    fn forget(&self, answers: Vec<LookupResult>) {
        let mut changes = Vec::new();
        for answer in answers {
            let LookupResult::Pod { namespace, name, uid, .. } = answer else { continue };
            let other_address = self
                .lookups
                .lock()
                .answers
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

/// A list in which an address may be found.
enum Way {
    Node(Str),
    Address,
}

impl Way {
    fn fields(&self, ip: IpAddr) -> String {
        match self {
            Way::Node(node) => format!("spec.nodeName={node}"),
            // Finished pods keep their address in status.
            Way::Address => format!("status.podIP={ip},status.phase!=Succeeded,status.phase!=Failed"),
        }
    }
}

/// How many pods were found in which way.
#[derive(Debug, Default)]
struct LookupCounts {
    slice: AtomicU64,
    node: AtomicU64,
    address: AtomicU64,
}

enum LookupOutcome {
    Pod(Box<Pod>, Timestamp),
    Nobody,
    /// No turn within the time that a drop waits, or a watch's affair.
    Later,
}

fn pod_of(item: Item<items::Peer>) -> Option<Pod> {
    match item.object {
        Ok(Object::Pod(pod)) => Some(pod),
        _ => None,
    }
}

/// Whether `pod` is the owner of `ip`.
fn has(pod: &Pod, ip: IpAddr) -> bool {
    !pod.host_network && !pod.is_over() && pod.ips.contains(&ip)
}
