//! The demo: two namespaces of a small shop, what their policies should do, and what they do.
//!
//! The agent reads `tests/demo/manifests`, the kernel enforces `tests/demo/ruleset.nft`, and [`flows`] has what people expect of both.
//! [`check`] compares all of them with the records.

pub mod check;
pub mod flows;
pub mod text;

use std::net::{Ipv4Addr, Ipv6Addr, SocketAddr};
use std::path::PathBuf;
use std::thread;

use anyhow::{Context, Result};

use crate::PATIENCE;
use crate::server::Server;
use crate::topology::Lab;
use crate::traffic::{self, Attempt, DROPPED, TcpOptions};
use flows::{FLOWS, Flow, HOSTS, NODE, Traffic};

/// The manifests, for the agent.
pub fn manifests() -> PathBuf {
    PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("demo/manifests")
}

/// The enforcing ruleset.
pub const RULESET: &str = include_str!("../demo/ruleset.nft");

/// The lab with the demo's pods and servers running.
#[derive(Debug)]
pub struct Demo {
    pub lab: Lab,
    _servers: Vec<Server>,
}

impl Demo {
    /// Starts everything. The rules are in force when this returns.
    pub fn start() -> Result<Demo> {
        let mut lab = Lab::new(NODE.name, NODE.ipv4, NODE.ipv6)?;
        for host in HOSTS {
            lab.attach(host.name, host.ipv4, host.ipv6)?;
        }
        // A service address without endpoints must get as far as the rule that rejects it, as it does on a real node.
        lab.route_default("web")?;
        // `throw` ends the lookup as if there were no default route.
        lab.node().ip("route add throw 192.0.2.0/24\n")?;
        let servers = servers(&lab)?;
        lab.enforce(RULESET)?;
        Ok(Demo { lab, _servers: servers })
    }

    /// Sends all flows at once. The attempts are in the order of [`FLOWS`].
    pub fn send(&self) -> Result<Vec<Attempt>> {
        thread::scope(|scope| {
            let clients: Vec<_> = FLOWS.iter().map(|flow| scope.spawn(|| self.attempt(flow))).collect();
            let join = |(client, flow): (thread::ScopedJoinHandle<'_, Result<Attempt>>, &Flow)| {
                let attempt = client.join().unwrap_or_else(|panic| std::panic::resume_unwind(panic));
                attempt.with_context(|| format!("{flow}"))
            };
            clients.into_iter().zip(FLOWS).map(join).collect()
        })
    }

    fn attempt(&self, flow: &Flow) -> Result<Attempt> {
        let client = self.lab.host(flow.from)?;
        let to: SocketAddr = flow.to.address.parse()?;
        let from = client.ip_like(to.ip());
        // A connection that must succeed has as much time as a busy machine needs.
        let limit = if flow.vanishes() { DROPPED } else { PATIENCE };
        match flow.traffic {
            Traffic::Tcp => traffic::tcp(&client.netns, from, to, limit, TcpOptions::default()),
            Traffic::TcpTtl(ttl) => traffic::tcp(&client.netns, from, to, limit, TcpOptions { ttl: Some(ttl) }),
            Traffic::Dns(name) => traffic::dns(&client.netns, from, to, name, limit),
            Traffic::FtpActive => traffic::ftp(&client.netns, client.ipv4, to),
            Traffic::SynAck(port) => traffic::syn_ack(&client.netns, SocketAddr::new(from, port), to, limit),
        }
    }
}

fn servers(lab: &Lab) -> Result<Vec<Server>> {
    const NAMES: &[(&str, Ipv4Addr)] = &[
        ("db-svc.staging.svc.cluster.local", Ipv4Addr::new(10, 99, 57, 125)),
        ("db-svc.qa-test.svc.cluster.local", Ipv4Addr::new(10, 96, 11, 36)),
    ];
    let mut servers = Vec::new();
    for (name, port) in
        [("qa-test/api", 8080), ("qa-test/db", 3306), ("staging/api", 8080), ("staging/db", 3306), ("web", 80)]
    {
        let host = lab.host(name)?;
        servers.push(Server::tcp(&host.netns, (host.ipv4, port).into())?);
        servers.push(Server::tcp(&host.netns, (host.ipv6, port).into())?);
    }
    let dns = lab.host("kube-system/coredns")?;
    servers.push(Server::dns(&dns.netns, (dns.ipv4, 53).into(), NAMES)?);
    servers.push(Server::dns(&dns.netns, (dns.ipv6, 53).into(), NAMES)?);
    let ftp = lab.host("ftp")?;
    servers.push(Server::ftp(&ftp.netns, (ftp.ipv4, 21).into())?);
    Ok(servers)
}

/// A host of the demo.
#[derive(Debug)]
pub struct HostSpec {
    /// Its name in the demo's output; a pod's is `namespace/workload`.
    pub name: &'static str,
    /// The pod's full name in the manifests, `namespace/name`; `""` for a server outside the cluster.
    pub pod: &'static str,
    pub ipv4: Ipv4Addr,
    pub ipv6: Ipv6Addr,
}
