//! The demo's hosts and flows as data: who sends what to whom, and the outcome that a reader of the policies expects.

use std::fmt;
use std::net::{Ipv4Addr, Ipv6Addr};

use super::HostSpec;
use crate::traffic::Outcome;

pub const NODE: HostSpec = HostSpec {
    name: "worker-1",
    pod: "",
    ipv4: Ipv4Addr::new(172, 18, 0, 2),
    ipv6: Ipv6Addr::new(0xfc00, 0xf853, 0xccd, 0xe793, 0, 0, 0, 2),
};

const fn pod(name: &'static str, pod: &'static str, last: u8, last6: u16) -> HostSpec {
    let ipv6 = Ipv6Addr::new(0xfd00, 0x10, 0x244, 1, 0, 0, 0, last6);
    HostSpec { name, pod, ipv4: Ipv4Addr::new(10, 244, 1, last), ipv6 }
}

pub const HOSTS: &[HostSpec] = &[
    pod("qa-test/frontend", "qa-test/frontend-7d9c8bf9d-x2lkp", 11, 0x11),
    pod("qa-test/api", "qa-test/api-5f6b8d7c9-qw8rt", 12, 0x12),
    pod("qa-test/db", "qa-test/db-0", 13, 0x13),
    pod("staging/frontend", "staging/frontend-6c8f7d5b4-m9ztv", 21, 0x21),
    pod("staging/api", "staging/api-84d6c9b7f-h5k2n", 22, 0x22),
    pod("staging/db", "staging/db-0", 23, 0x23),
    pod("kube-system/coredns", "kube-system/coredns-76f75df574-4kzqh", 53, 0x53),
    HostSpec {
        name: "web",
        pod: "",
        ipv4: Ipv4Addr::new(93, 184, 216, 34),
        ipv6: Ipv6Addr::new(0x2606, 0x2800, 0x220, 1, 0x248, 0x1893, 0x25c8, 0x1946),
    },
    HostSpec {
        name: "ftp",
        pod: "",
        ipv4: Ipv4Addr::new(203, 0, 113, 21),
        ipv6: Ipv6Addr::new(0x2001, 0xdb8, 0, 0, 0, 0, 0, 0x21),
    },
];

/// One connection attempt.
#[derive(Debug)]
pub struct Flow {
    /// A host's name.
    pub from: &'static str,
    pub to: Target,
    pub traffic: Traffic,
    pub expect: ExpectedOutcome,
    /// What the flow teaches, for the reader of the demo.
    pub because: &'static str,
}

#[derive(Debug)]
pub struct Target {
    /// Its name for people: `staging/db-svc:3306`.
    pub name: &'static str,
    /// The address and port that the client connects to, of a service or a host.
    pub address: &'static str,
    /// The host that receives it, after the service's DNAT; `""` if none does.
    pub host: &'static str,
    /// The service that the address belongs to; `""` for none.
    pub service: &'static str,
    /// The host's port, after DNAT.
    pub port: u16,
}

#[derive(Debug, Clone, Copy)]
pub enum Traffic {
    /// Connect, and read the server's greeting.
    Tcp,
    /// Connect with a hop limit.
    TcpTtl(u32),
    /// A question to a name server.
    Dns(&'static str),
    /// FTP's LIST in active mode: the flow is the server's connection back to the client.
    FtpActive,
    /// A SYN-ACK without a SYN before it, from this port.
    SynAck(u16),
}

#[derive(Debug)]
pub enum ExpectedOutcome {
    Passes,
    /// Dropped by a policy: the side, every policy that isolates that side's pod, and the nft counter of the rule.
    Dropped {
        direction: &'static str,
        isolated_by: &'static [&'static str],
        counter: &'static str,
    },
    /// Dropped for another reason: the record's cause, the client's outcome, and the nft counter if a rule dropped it.
    Fails {
        cause: &'static str,
        outcome: Outcome,
        counter: Option<&'static str>,
    },
}

impl Flow {
    /// True if the client gets no answer at all.
    pub fn vanishes(&self) -> bool {
        matches!(
            self.expect,
            ExpectedOutcome::Dropped { .. } | ExpectedOutcome::Fails { outcome: Outcome::TimedOut, .. }
        )
    }

    /// The nft counter that must count this flow's packets.
    pub fn counter(&self) -> Option<&'static str> {
        match self.expect {
            ExpectedOutcome::Passes => None,
            ExpectedOutcome::Dropped { counter, .. } => Some(counter),
            ExpectedOutcome::Fails { counter, .. } => counter,
        }
    }

    /// The record's source and destination hosts: FTP's data connection goes from the server to the client.
    pub fn ends(&self) -> (&'static str, &'static str) {
        match self.traffic {
            Traffic::FtpActive => (self.to.host, self.from),
            _ => (self.from, self.to.host),
        }
    }
}

impl fmt::Display for Flow {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let note = match self.traffic {
            Traffic::FtpActive => " FTP data",
            Traffic::TcpTtl(_) => " TTL 1",
            Traffic::SynAck(_) => " lone SYN-ACK",
            Traffic::Tcp | Traffic::Dns(_) if self.to.address.starts_with('[') => " IPv6",
            Traffic::Tcp | Traffic::Dns(_) => "",
        };
        match self.traffic {
            // The flow is the server's connection, from port 20.
            Traffic::FtpActive => write!(f, "{} -> {}{note}", self.to.name.trim_end_matches(":21"), self.from),
            _ => write!(f, "{} -> {}{note}", self.from, self.to.name),
        }
    }
}

const fn service(
    name: &'static str,
    address: &'static str,
    service: &'static str,
    host: &'static str,
    port: u16,
) -> Target {
    Target { name, address, host, service, port }
}

const fn direct(name: &'static str, address: &'static str, host: &'static str, port: u16) -> Target {
    Target { name, address, host, service: "", port }
}

const DB_QA: Target = service("qa-test/db-svc:3306", "10.96.11.36:3306", "qa-test/db-svc", "qa-test/db", 3306);
const DB_STAGING: Target = service("staging/db-svc:3306", "10.99.57.125:3306", "staging/db-svc", "staging/db", 3306);
const DNS: Target =
    service("kube-system/kube-dns:53", "10.96.0.10:53", "kube-system/kube-dns", "kube-system/coredns", 53);
const NAME: &str = "db-svc.staging.svc.cluster.local";

pub const FLOWS: &[Flow] = &[
    Flow {
        from: "qa-test/frontend",
        to: DB_QA,
        traffic: Traffic::Tcp,
        expect: ExpectedOutcome::Passes,
        because: "db-np's two list items are alternatives: any pod of an env=qa namespace",
    },
    Flow {
        from: "qa-test/frontend",
        to: service("qa-test/db-svc:3306", "[fd00:10:96::b:36]:3306", "qa-test/db-svc", "qa-test/db", 3306),
        traffic: Traffic::Tcp,
        expect: ExpectedOutcome::Passes,
        because: "the same over IPv6",
    },
    Flow {
        from: "qa-test/frontend",
        to: service("qa-test/api-svc:80", "10.96.11.80:80", "qa-test/api-svc", "qa-test/api", 8080),
        traffic: Traffic::Tcp,
        expect: ExpectedOutcome::Passes,
        because: "frontend-api-np allows 8080, the pod's port, not the service's 80",
    },
    Flow {
        from: "qa-test/api",
        to: DB_STAGING,
        traffic: Traffic::Tcp,
        expect: ExpectedOutcome::Passes,
        because: "staging's db-np lets any namespace's api pods in",
    },
    Flow {
        from: "qa-test/frontend",
        to: DNS,
        traffic: Traffic::Dns(NAME),
        expect: ExpectedOutcome::Passes,
        because: "no policy isolates qa-test's egress",
    },
    Flow {
        from: "qa-test/frontend",
        to: direct("93.184.216.34:80", "93.184.216.34:80", "web", 80),
        traffic: Traffic::Tcp,
        expect: ExpectedOutcome::Passes,
        because: "no policy isolates qa-test's egress",
    },
    Flow {
        from: "staging/api",
        to: DB_STAGING,
        traffic: Traffic::Tcp,
        expect: ExpectedOutcome::Dropped {
            direction: "egress",
            isolated_by: &["staging/test-np"],
            counter: "staging-api-egress",
        },
        because: "db-np would let it in, test-np does not let it out",
    },
    Flow {
        from: "staging/api",
        to: DNS,
        traffic: Traffic::Dns(NAME),
        expect: ExpectedOutcome::Dropped {
            direction: "egress",
            isolated_by: &["staging/test-np"],
            counter: "staging-api-egress",
        },
        because: "egress isolation without a rule for DNS",
    },
    Flow {
        from: "qa-test/frontend",
        to: DB_STAGING,
        traffic: Traffic::Tcp,
        expect: ExpectedOutcome::Dropped {
            direction: "ingress",
            isolated_by: &["staging/db-np", "staging/test-np"],
            counter: "staging-db-ingress",
        },
        because: "db-np wants app=api",
    },
    Flow {
        from: "qa-test/frontend",
        to: service("staging/db-svc:3306", "[fd00:10:96::15:36]:3306", "staging/db-svc", "staging/db", 3306),
        traffic: Traffic::Tcp,
        expect: ExpectedOutcome::Dropped {
            direction: "ingress",
            isolated_by: &["staging/db-np", "staging/test-np"],
            counter: "staging-db-ingress",
        },
        because: "the same over IPv6",
    },
    Flow {
        from: "staging/frontend",
        to: direct("93.184.216.34:80", "93.184.216.34:80", "web", 80),
        traffic: Traffic::Tcp,
        expect: ExpectedOutcome::Dropped {
            direction: "egress",
            isolated_by: &["staging/test-np"],
            counter: "staging-frontend-egress",
        },
        because: "test-np allows no egress",
    },
    Flow {
        from: "staging/frontend",
        to: service("qa-test/api-svc:80", "10.96.11.80:80", "qa-test/api-svc", "qa-test/api", 8080),
        traffic: Traffic::Tcp,
        expect: ExpectedOutcome::Dropped {
            direction: "egress",
            isolated_by: &["staging/test-np"],
            counter: "staging-frontend-egress",
        },
        because: "denied on both sides; the sender's comes first",
    },
    Flow {
        from: "qa-test/frontend",
        to: direct("203.0.113.21:21", "203.0.113.21:21", "ftp", 21),
        traffic: Traffic::FtpActive,
        expect: ExpectedOutcome::Dropped {
            direction: "ingress",
            isolated_by: &["qa-test/default-deny-ingress"],
            counter: "qa-frontend-ingress",
        },
        because: "in active mode the server connects to the client",
    },
    Flow {
        from: "qa-test/frontend",
        to: direct("qa-test/db:5432", "10.244.1.13:5432", "qa-test/db", 5432),
        traffic: Traffic::Tcp,
        expect: ExpectedOutcome::Fails { cause: "not_policy", outcome: Outcome::Refused, counter: None },
        because: "nothing listens on that port",
    },
    Flow {
        from: "qa-test/frontend",
        to: direct("192.0.2.99:443", "192.0.2.99:443", "", 443),
        traffic: Traffic::Tcp,
        expect: ExpectedOutcome::Fails { cause: "not_policy", outcome: Outcome::Unreachable, counter: None },
        because: "the node has no route",
    },
    Flow {
        from: "qa-test/frontend",
        to: direct("qa-test/db:3306", "10.244.1.13:3306", "qa-test/db", 3306),
        traffic: Traffic::TcpTtl(1),
        expect: ExpectedOutcome::Fails { cause: "not_policy", outcome: Outcome::Unreachable, counter: None },
        because: "its hop limit ends on the node",
    },
    Flow {
        from: "qa-test/frontend",
        to: direct("qa-test/db:3306", "10.244.1.13:3306", "qa-test/db", 3306),
        traffic: Traffic::SynAck(61001),
        expect: ExpectedOutcome::Fails {
            cause: "conntrack_invalid",
            outcome: Outcome::TimedOut,
            counter: Some("invalid"),
        },
        because: "conntrack knows no connection it answers",
    },
    Flow {
        from: "qa-test/frontend",
        to: direct("staging/db:3306", "10.244.1.23:3306", "staging/db", 3306),
        traffic: Traffic::SynAck(61002),
        expect: ExpectedOutcome::Fails {
            cause: "conntrack_invalid",
            outcome: Outcome::TimedOut,
            counter: Some("invalid"),
        },
        because: "the same, where a policy would deny a connection: still not the policy",
    },
    Flow {
        from: "qa-test/frontend",
        to: service("qa-test/metrics-svc:9090", "10.96.11.90:9090", "qa-test/metrics-svc", "", 9090),
        traffic: Traffic::Tcp,
        expect: ExpectedOutcome::Fails {
            cause: "service_without_endpoints",
            outcome: Outcome::Refused,
            counter: Some("no-endpoints"),
        },
        because: "the service's selector matches no pod",
    },
];
