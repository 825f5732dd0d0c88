//! Why a packet was dropped, on whose side, and how.

use super::closed_set::closed_set;

closed_set! {
    /// The reason for the drop, from the kernel's evidence, the policies and the inventory of the node's rulesets.
    pub enum Cause {
        /// The policies deny the connection, or they changed within 10 seconds of the drop.
        Policy = "policy",
        /// A policy enforcer dropped the packet although the policies allow the connection.
        Disagrees = "disagrees",
        /// The enforcer's NFQUEUE has no listener, so the kernel drops whatever is sent to it.
        EnforcerUnavailable = "enforcer_unavailable",
        /// The packet was for a service's address, and the service has no ready endpoint.
        ServiceWithoutEndpoints = "service_without_endpoints",
        /// The packet belongs to a connection that was opened earlier. Nothing shows by whom, and the policies deny one direction only.
        ConnectionUnknown = "connection_unknown",
        /// A program that anybody may have attached (tc, XDP, cgroup) dropped the packet, and the policies do not explain it.
        Unknown = "unknown",
        /// A rule that belongs to no policy enforcer dropped the packet, or neither endpoint is a pod.
        HostFirewall = "host_firewall",
        /// A rule or program inside a pod's own network namespace dropped the packet.
        PodLocal = "pod_local",
        /// Conntrack found no connection for the packet, such as a late packet of a closed one.
        ConntrackInvalid = "conntrack_invalid",
        /// The kernel dropped the packet for a reason that no policy can have.
        NotPolicy = "not_policy",
    }
}

closed_set! {
    /// What the enforcer did with the packet.
    pub enum Action {
        /// Nothing was sent back.
        Drop = "drop",
        /// The sender got an ICMP error or a TCP reset.
        Reject = "reject",
        /// Neither the kernel's reply to the sender nor the rules show which it was.
        Unknown = "unknown",
    }
}

closed_set! {
    /// How complete the names of both endpoints are.
    pub enum Enrichment {
        /// Both addresses were looked up in an index that was in sync.
        Complete = "complete",
        /// An address inside the pod network had no known owner within the waiting time.
        Timeout = "timeout",
        /// A source of the index was not in sync.
        Stale = "stale",
    }
}

impl Cause {
    /// Returns true if drops of this cause get a record without `--all-drops`.
    pub fn is_default(self) -> bool {
        matches!(
            self,
            Cause::Policy
                | Cause::Disagrees
                | Cause::EnforcerUnavailable
                | Cause::ServiceWithoutEndpoints
                | Cause::ConnectionUnknown
                | Cause::Unknown
        )
    }
}
