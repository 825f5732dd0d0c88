//! Runs kube-router as a node's enforcer of NetworkPolicy: rules from the API server's objects, and its own counters.

use std::collections::BTreeMap;
use std::os::unix::fs::symlink;
use std::path::Path;

use anyhow::{Context, Result, bail};
use serde_json::json;
use tempfile::TempDir;

use super::daemon::{Daemon, Lifetime};
use super::node::Node;
use super::{built, programs};
use crate::eventually;
use crate::skip::missing;

/// kube-router, running in a node's network namespace.
#[derive(Debug)]
pub struct KubeRouter {
    daemon: Daemon,
    backend: Backend,
    /// How many times it was waited for.
    round: u32,
    dir: TempDir,
}

/// The iptables that it finds: the legacy tables or nftables.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Backend {
    Legacy,
    Nft,
}

impl Backend {
    /// The multi-call program of iptables.
    pub fn program(self) -> &'static str {
        match self {
            Backend::Legacy => "/usr/sbin/xtables-legacy-multi",
            Backend::Nft => "/usr/sbin/xtables-nft-multi",
        }
    }

    /// Its mechanism in records.
    pub fn mechanism(self) -> &'static str {
        match self {
            Backend::Legacy => "iptables-legacy",
            Backend::Nft => "nftables",
        }
    }
}

/// Packets of the rules that reject, by chain and family.
pub type Counters = BTreeMap<(String, String), u64>;

impl KubeRouter {
    /// Starts it and waits until it enforces the API server's policies.
    pub fn start(node: &Node, backend: Backend) -> Result<KubeRouter> {
        let dir = tempfile::tempdir()?;
        for family in ["iptables", "ip6tables"] {
            for verb in ["", "-save", "-restore"] {
                symlink(backend.program(), dir.path().join(format!("{family}{verb}")))?;
            }
        }
        let kubeconfig = node.plane().kubeconfig();
        let arguments = [
            "--run-firewall=true".into(),
            "--run-router=false".into(),
            "--run-service-proxy=false".into(),
            "--enable-ipv4=true".into(),
            "--enable-ipv6=true".into(),
            "--service-cluster-ip-range=10.96.0.0/16,fd00:10:96::/112".into(),
            // Changes come by watches. A periodic sync would reset the counters.
            "--iptables-sync-period=1h".into(),
            "--v=3".into(),
            format!("--hostname-override={}", node.name),
            format!("--kubeconfig={}", kubeconfig.display()),
        ];
        let log = dir.path().join("log");
        let path = format!("{}:/usr/sbin:/usr/bin:/sbin:/bin", dir.path().display());
        let program = built(&programs::KUBE_ROUTER)?;
        let netns = Some(node.lab.node());
        let daemon = Daemon::start_with(&program, &arguments, &log, Lifetime::OfThisProgram, netns, &[("PATH", path)])?;
        let api = node.plane().api();
        api.apply(&json!({ "apiVersion": "v1", "kind": "Namespace", "metadata": { "name": marker(node) } }))?;
        let mut router = KubeRouter { daemon, backend, round: 0, dir };
        router.sync(node)?;
        Ok(router)
    }

    pub fn backend(&self) -> Backend {
        self.backend
    }

    pub fn daemon(&self) -> &Daemon {
        &self.daemon
    }

    /// Waits until it enforces every earlier change. This makes a last change: a policy that allows pods with a new label in namespaces
    /// with a new label. Watches keep the order of changes of one kind, so when the policy's rule has the newly labelled pod, kube-router
    /// has seen every earlier change.
    pub fn sync(&mut self, node: &Node) -> Result<()> {
        let api = node.plane().api();
        let marker = marker(node);
        let policy = |round: u32| format!("round-{round}");
        if self.round > 0 {
            api.delete(&json!({ "apiVersion": "networking.k8s.io/v1", "kind": "NetworkPolicy",
                "metadata": { "namespace": marker, "name": policy(self.round) } }))?;
        }
        self.round += 1;
        let label = json!({ "round": self.round.to_string() });
        // An address for documentation, which no packet has.
        let ip = format!("203.0.113.{}", node.name.trim_start_matches("node-"));
        node.plane().namespace(&marker, &label)?;
        let pod = super::node::PodSpec { namespace: &marker, name: "marker", host: 0 };
        api.apply(&node.pod_object(pod, &label, &json!([]), &[ip.parse()?]))?;
        api.apply(&json!({
            "apiVersion": "networking.k8s.io/v1",
            "kind": "NetworkPolicy",
            "metadata": { "namespace": marker, "name": policy(self.round) },
            "spec": {
                "podSelector": {},
                "policyTypes": ["Ingress"],
                "ingress": [{ "from": [{
                    "namespaceSelector": { "matchLabels": label },
                    "podSelector": { "matchLabels": label },
                }] }],
            },
        }))?;
        let name = policy(self.round);
        let synced = || {
            self.daemon.check()?;
            let Some(set) = self.source_set(node, &name)? else { return Ok(None) };
            // The next sync may have replaced the set.
            let Ok(listing) = node.lab.node().command("ipset", &["list", &set], "") else { return Ok(None) };
            let listing = String::from_utf8_lossy(&listing.stdout).into_owned();
            let known = listing.lines().any(|line| line.split(' ').next() == Some(ip.as_str()));
            Ok((known && self.is_idle()).then_some(()))
        };
        eventually("kube-router's rules for the last policy", synced).with_context(|| self.last_words())
    }

    /// The set of sources in the rule of the policy `name`.
    fn source_set(&self, node: &Node, name: &str) -> Result<Option<String>> {
        let rules = self.save(node, "iptables-save")?;
        let rule = rules.lines().find(|line| line.contains(&format!("policy name {name} ")));
        let set = rule.and_then(|rule| rule.split("--match-set ").find_map(|part| part.split_once(" src")));
        Ok(set.map(|(set, _)| set.to_owned()))
    }

    /// True if it has finished all the syncs that it requested.
    fn is_idle(&self) -> bool {
        let log = self.daemon.log();
        let asked = log.matches("a full sync request was successfully sent").count();
        asked == log.matches("sync iptables took").count()
    }

    /// The packets that its rules rejected.
    pub fn counters(&self, node: &Node) -> Result<Counters> {
        let mut counters = Counters::new();
        for program in ["iptables-save", "ip6tables-save"] {
            for line in self.save(node, program)?.lines().filter(|line| line.contains("-j REJECT")) {
                // `[packets:bytes] -A CHAIN …`
                let packets = line.strip_prefix('[').and_then(|line| line.split(':').next());
                let packets: u64 = packets.and_then(|packets| packets.parse().ok()).with_context(|| line.to_owned())?;
                let chain = line.split("-A ").nth(1).and_then(|rule| rule.split(' ').next());
                let chain = chain.with_context(|| line.to_owned())?;
                *counters.entry((program.to_owned(), chain.to_owned())).or_default() += packets;
            }
        }
        Ok(counters)
    }

    /// Stops it and removes its rules, as an administrator does.
    pub fn remove(self, node: &Node) -> Result<()> {
        self.daemon.stop()?;
        let path = format!("{}:/usr/sbin:/usr/bin:/sbin:/bin", self.dir.path().display());
        let program = built(&programs::KUBE_ROUTER)?;
        node.lab.node().command(
            "env",
            &[&format!("PATH={path}"), &program.to_string_lossy(), "--cleanup-config"],
            "",
        )?;
        let left = self.counters(node)?;
        if !left.is_empty() {
            bail!("kube-router left rules behind: {left:?}");
        }
        Ok(())
    }

    fn save(&self, node: &Node, program: &str) -> Result<String> {
        let program = self.dir.path().join(program);
        let save = || match node.lab.node().command(&program.to_string_lossy(), &["-c", "-t", "filter"], "") {
            Ok(output) => Ok(Some(String::from_utf8_lossy(&output.stdout).into_owned())),
            // A set was removed between the kernel's answer about a rule and the one about its set.
            Err(error) if format!("{error:#}").contains("doesn't exist") => Ok(None),
            Err(error) => Err(error),
        };
        eventually("a listing of kube-router's rules", save)
    }

    fn last_words(&self) -> String {
        let log = self.daemon.log();
        let last: Vec<&str> = log.lines().rev().take(15).collect();
        format!("kube-router's last words:\n{}", last.into_iter().rev().collect::<Vec<_>>().join("\n"))
    }
}

/// The namespace of a node's last change, one per node, so that nodes don't wait for each other.
fn marker(node: &Node) -> String {
    format!("marker-{}", node.name)
}

/// Requires the iptables program where the enforcer looks for it.
pub fn has_backend(backend: Backend) -> Result<()> {
    let program = backend.program();
    if Path::new(program).exists() {
        Ok(())
    } else {
        Err(missing(format!("no {program} here: apt-get install iptables")))
    }
}
