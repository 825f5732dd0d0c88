//! The pipeline's state and how it is put together.

use std::collections::{HashSet, VecDeque};
use std::sync::Arc;
use std::time::Instant;

use super::accounting::{Accounting, Intake};
use super::aggregate::RecordBudget;
use super::connections::Flows;
use super::fingerprints::Fingerprints;
use super::pending::PendingDrop;
use super::unanswered::PendingConnection;
use super::verdict_cache::VerdictCache;
use crate::cluster::Cluster;
use crate::cluster::api::Lookups;
use crate::inventory::{Inventory, InventoryWatcher};
use crate::kernel::clock::Clock;
use crate::kernel::tc::TcView;
use crate::policy;
use crate::sink::fan_out::FanOut;

/// Turns the kernel's events into records.
pub struct Pipeline {
    pub(super) cluster: Cluster,
    pub(super) node: Option<String>,
    pub(super) all_drops: bool,
    pub(super) options: policy::CniOptions,
    pub(super) verdicts: VerdictCache,
    pub clock: Clock,
    /// The time of the last batch: one clock read serves many drops.
    pub(super) now: Instant,
    pub accounting: Accounting,
    pub intake: Arc<Intake>,
    /// Drops that wait for the name of an endpoint or for news of a policy change.
    pub(super) pending: VecDeque<PendingDrop>,
    /// Unanswered connections that wait for the name of an endpoint.
    pub(super) pending_connections: VecDeque<PendingConnection>,
    /// Network namespaces in which conntrack is active.
    pub(super) tracked_netns: HashSet<u32>,
    /// The tc hook's connections; `None` without that hook.
    pub flows: Option<Flows<TcView>>,
    pub(super) inventory: Option<InventoryWatcher>,
    /// Look-ups of single pods, with the API server as source.
    pub lookups: Option<Lookups>,
    /// The record budget; `None` means no limit.
    pub budget: Option<RecordBudget>,
    pub(super) config: Option<tokio::sync::watch::Receiver<crate::pipeline::filter::SettingsState>>,
    /// The re-readable part of the config file, as of the last look.
    pub configured: crate::pipeline::filter::SettingsState,
    pub(super) fingerprints: Fingerprints,
    pub output: FanOut,
}

impl Pipeline {
    pub fn new(
        cluster: Cluster,
        node: Option<String>,
        all_drops: bool,
        intake: Arc<Intake>,
        output: FanOut,
    ) -> Pipeline {
        Pipeline {
            cluster,
            node,
            all_drops,
            options: policy::CniOptions::default(),
            verdicts: VerdictCache::default(),
            clock: Clock::now(),
            now: Instant::now(),
            accounting: Accounting::default(),
            intake,
            pending: VecDeque::new(),
            pending_connections: VecDeque::new(),
            tracked_netns: HashSet::new(),
            flows: None,
            inventory: None,
            lookups: None,
            budget: None,
            config: None,
            configured: crate::pipeline::filter::SettingsState::default(),
            fingerprints: Fingerprints::new(output.cluster(), output.run()),
            output,
        }
    }

    /// Adds the inventory of the agent's own network namespace.
    pub fn with_inventory(mut self, inventory: InventoryWatcher) -> Pipeline {
        self.inventory = Some(inventory);
        self
    }

    /// Returns the inventory as it was last read.
    pub fn inventory(&self) -> Option<Arc<Inventory>> {
        self.inventory.as_ref().map(InventoryWatcher::latest)
    }

    /// Hands the node's own addresses, as the inventory lists them, to the index: kubelet and hostNetwork pods reach pods from bridges and
    /// tunnels that no Node object names.
    pub fn update_local_addresses(&self) {
        // An empty list could not be read: the addresses read before still hold.
        if let Some(inventory) = self.inventory().filter(|inventory| !inventory.addresses.is_empty()) {
            self.cluster.set_local_addresses(&inventory.addresses);
        }
    }

    /// Follows the config file.
    pub fn with_config(
        mut self,
        config: tokio::sync::watch::Receiver<crate::pipeline::filter::SettingsState>,
    ) -> Pipeline {
        self.configured = config.borrow().clone();
        self.config = Some(config);
        self
    }

    /// Applies the config file's current content. Returns true if it changed.
    pub fn reconfigured(&mut self) -> bool {
        let Some(config) = self.config.as_mut().filter(|config| config.has_changed().unwrap_or(false)) else {
            return false;
        };
        self.configured = config.borrow_and_update().clone();
        true
    }

    pub fn cluster(&self) -> &Cluster {
        &self.cluster
    }
}
