//! Each enforcer with policies from the API server: every packet that it drops is recorded once, with the right policy, and no record is
//! about an allowed connection.

use anyhow::Result;
use netpol_trace_tests::cluster::kube_router::{self, Backend, KubeRouter};
use netpol_trace_tests::cluster::node::{Node, PodSpec};
use netpol_trace_tests::cluster::probe::{self, Probe, Protocol};
use netpol_trace_tests::cluster::{programs, shared};
use netpol_trace_tests::record::{Record, drops};
use netpol_trace_tests::server::Server;
use netpol_trace_tests::traffic::Outcome;
use netpol_trace_tests::{cluster, eventually, require};
use serde_json::{Value, json};

use crate::exclusive;

#[test]
fn kube_router_by_iptables_legacy() -> Result<()> {
    require!(kube_router(Backend::Legacy, 211));
    Ok(())
}

#[test]
fn kube_router_by_nftables() -> Result<()> {
    require!(kube_router(Backend::Nft, 212));
    Ok(())
}

fn kube_router(backend: Backend, number: u8) -> Result<()> {
    cluster::can_run(&[programs::KUBE_ROUTER])?;
    kube_router::has_backend(backend)?;
    let _exclusive = exclusive();
    let shop = Shop::build(number)?;
    let node = &shop.node;
    let mut router = KubeRouter::start(node, backend)?;

    // Without a policy all connections pass, and there is no record.
    let open = shop.probes(&|_| true);
    assert_agree(shop.send_and_compare(&mut router, &open)?);

    let ingress = shop.policy(
        "db-ingress",
        json!({
            "podSelector": { "matchLabels": { "app": "db" } },
            "policyTypes": ["Ingress"],
            "ingress": [{
                "from": [{ "podSelector": { "matchLabels": { "app": "api" } } }],
                "ports": [{ "protocol": "TCP", "port": 80 }],
            }],
        }),
    );
    let egress = shop.policy(
        "web-egress",
        json!({
            "podSelector": { "matchLabels": { "app": "web" } },
            "policyTypes": ["Egress"],
            "egress": [{ "to": [{ "podSelector": { "matchLabels": { "app": "api" } } }] }],
        }),
    );
    node.plane().api().apply(&ingress)?;
    node.plane().api().apply(&egress)?;
    router.sync(node)?;
    let (ns, db, web) = (&shop.namespace, shop.pod("db"), shop.pod("web"));
    let allowed = |probe: &Probe| {
        let to_db =
            probe.to == db && (probe.from != shop.pod("api") || probe.protocol != Protocol::Tcp || probe.port != 80);
        let from_web = probe.from == web && probe.to != shop.pod("api");
        !to_db && !from_web
    };
    let probes = shop.probes(&allowed);
    let (records, wrong) = shop.send_and_compare(&mut router, &probes)?;
    for record in &records {
        // web's egress is denied to all others; db's ingress is denied from others.
        let denied = |direction: &str| record.text(&format!("/verdict/{direction}/result")) == "denied";
        let from_web = record.pod("source") == web;
        assert_eq!(denied("egress"), from_web, "{record}");
        assert_eq!(denied("ingress"), record.pod("destination") == db, "{record}");
        if from_web {
            assert_eq!(record.isolated_by("egress"), [format!("{ns}/web-egress")], "{record}");
        }
        if record.pod("destination") == db {
            assert_eq!(record.isolated_by("ingress"), [format!("{ns}/db-ingress")], "{record}");
        }
        assert_eq!(record.text("/kernel/mechanism"), backend.mechanism(), "{record}");
        // kube-router also has a rule that drops what conntrack finds invalid. Only a kernel that shows rejects tells which rule it
        // was.
        assert!(["reject", "unknown"].contains(&record.text("/action")), "{record}");
    }
    assert_agree((records, wrong));

    // Without the policies all connections pass again.
    node.plane().api().delete(&ingress)?;
    node.plane().api().delete(&egress)?;
    router.sync(node)?;
    assert_agree(shop.send_and_compare(&mut router, &open)?);
    router.remove(node)
}

/// Policies without an enforcer: connections pass, and there is no record.
#[test]
fn policies_without_an_enforcer_drop_nothing() -> Result<()> {
    require!(cluster::can_run(&[]));
    let _exclusive = exclusive();
    let shop = Shop::build(213)?;
    let deny = shop.policy("deny-all", json!({ "podSelector": {}, "policyTypes": ["Ingress", "Egress"] }));
    shop.node.plane().api().apply(&deny)?;
    let probes = shop.probes(&|_| true);
    let agent = shop.node.watch()?;
    let attempts = probe::send(&shop.node, &probes)?;
    let run = agent.stop()?;
    run.balance()?;
    assert_agree((Vec::new(), probe::compare(&shop.node, &probes, &attempts, &run.records, 0)));
    Ok(())
}

/// An enforcer runs, but its rules were removed: connections that the policies deny pass, and there is no record.
#[test]
fn an_enforcer_without_its_rules_drops_nothing() -> Result<()> {
    require!(cluster::can_run(&[programs::KUBE_ROUTER]));
    require!(kube_router::has_backend(Backend::Nft));
    let _exclusive = exclusive();
    let shop = Shop::build(215)?;
    let node = &shop.node;
    let deny = shop.policy("deny-all", json!({ "podSelector": {}, "policyTypes": ["Ingress"] }));
    node.plane().api().apply(&deny)?;
    let mut router = KubeRouter::start(node, Backend::Nft)?;
    let closed = shop.probes(&|_| false);
    assert_agree(shop.send_and_compare(&mut router, &closed)?);
    for family in ["iptables", "ip6tables"] {
        node.lab.node().command(Backend::Nft.program(), &[family, "-F"], "")?;
    }
    assert!(router.daemon().is_alive());
    assert_agree(shop.send_and_compare(&mut router, &shop.probes(&|_| true))?);
    Ok(())
}

/// A policy is applied and deleted while packets flow: every dropped packet is recorded once, also at the moments of change.
#[test]
fn a_policy_that_comes_and_goes_in_traffic() -> Result<()> {
    require!(cluster::can_run(&[programs::KUBE_ROUTER]));
    require!(kube_router::has_backend(Backend::Legacy));
    let _exclusive = exclusive();
    let shop = Shop::build(214)?;
    let node = &shop.node;
    let deny = shop
        .policy("deny-db", json!({ "podSelector": { "matchLabels": { "app": "db" } }, "policyTypes": ["Ingress"] }));
    let router = KubeRouter::start(node, Backend::Legacy)?;
    node.plane().api().apply(&deny)?;
    let agent = node.watch()?;
    let mut attempts = Vec::new();
    let mut until = |wanted: Outcome| {
        eventually("the policy's effect", || {
            let (from, to) = (shop.pod("api"), shop.pod("db"));
            let probe = Probe { from, to, port: 80, protocol: Protocol::Tcp, ipv6: false, allowed: true };
            let attempt = probe::send(node, &[probe])?.remove(0);
            let done = attempt.outcome == wanted;
            attempts.push(attempt);
            Ok(done.then_some(()))
        })
    };
    until(Outcome::Refused)?;
    node.plane().api().delete(&deny)?;
    until(Outcome::Passed)?;
    let run = agent.stop()?;
    run.balance()?;
    let own: Vec<&Record> = drops(&run.records).filter(|r| node.lab.owns(r) && r.cause() == "policy").collect();
    for record in &own {
        let attempt = attempts.iter().find(|attempt| record.address("source") == Some(attempt.source));
        assert!(attempt.is_some(), "nobody sent this: {record}");
        // The agent may see a change before the enforcer has applied it; then the basis is `policy_changing`.
        let named = record.isolated_by("ingress") == [format!("{}/deny-db", shop.namespace)];
        assert!(named || record.text("/verdict/basis") == "policy_changing", "{record}");
    }
    for attempt in &attempts {
        // A connection that passed may have sent a second SYN after the first was rejected, just before the policy was deleted.
        let found = own.iter().filter(|record| record.address("source") == Some(attempt.source)).count();
        assert!(found > 0 || attempt.outcome == Outcome::Passed, "not recorded: {attempt:?}");
    }
    router.remove(node)
}

/// A namespace with three pods on a node, servers on their ports.
struct Shop {
    node: Node,
    namespace: String,
    _servers: Vec<Server>,
}

const APPS: [&str; 3] = ["web", "api", "db"];
const PORTS: [u16; 2] = [80, 81];

impl Shop {
    fn build(number: u8) -> Result<Shop> {
        let plane = shared()?;
        let namespace = format!("shop-{number}");
        plane.namespace(&namespace, &json!({}))?;
        let mut node = Node::start(plane, number)?;
        let mut servers = Vec::new();
        for (name, host) in APPS.into_iter().zip(10..) {
            let ports = json!([{ "name": "http", "containerPort": 80, "protocol": "TCP" }]);
            node.pod(PodSpec { namespace: &namespace, name, host }, &json!({ "app": name }), &ports)?;
            servers.extend(probe::serve(&node, &format!("{namespace}/{name}"), &PORTS)?);
        }
        Ok(Shop { node, namespace, _servers: servers })
    }

    fn pod(&self, app: &str) -> String {
        format!("{}/{app}", self.namespace)
    }

    fn policy(&self, name: &str, spec: Value) -> Value {
        json!({
            "apiVersion": "networking.k8s.io/v1",
            "kind": "NetworkPolicy",
            "metadata": { "namespace": self.namespace, "name": name },
            "spec": spec,
        })
    }

    /// Probes from each pod to each other, over both protocols and families, to both ports.
    fn probes(&self, allowed: &dyn Fn(&Probe) -> bool) -> Vec<Probe> {
        let mut probes = Vec::new();
        for from in APPS {
            for to in APPS.into_iter().filter(|to| *to != from) {
                for (protocol, ipv6, port) in [Protocol::Tcp, Protocol::Udp]
                    .into_iter()
                    .flat_map(|protocol| [false, true].map(|ipv6| (protocol, ipv6)))
                    .flat_map(|(protocol, ipv6)| PORTS.map(|port| (protocol, ipv6, port)))
                {
                    let probe = Probe { from: self.pod(from), to: self.pod(to), port, protocol, ipv6, allowed: true };
                    probes.push(Probe { allowed: allowed(&probe), ..probe });
                }
            }
        }
        probes
    }

    /// Sends probes while the agent runs. Returns the policies' drops and what disagrees.
    fn send_and_compare(&self, router: &mut KubeRouter, probes: &[Probe]) -> Result<(Vec<Record>, Vec<String>)> {
        for _ in 0..5 {
            let before = router.counters(&self.node)?;
            let agent = self.node.watch()?;
            let attempts = probe::send(&self.node, probes)?;
            let run = agent.stop()?;
            let after = router.counters(&self.node)?;
            // A late sync reset kube-router's counters: send again.
            if before.keys().ne(after.keys()) {
                continue;
            }
            run.balance()?;
            let counted = after.values().sum::<u64>() - before.values().sum::<u64>();
            let wrong = probe::compare(&self.node, probes, &attempts, &run.records, counted);
            let own = drops(&run.records).filter(|r| self.node.lab.owns(r) && r.cause() == "policy");
            return Ok((own.cloned().collect(), wrong));
        }
        anyhow::bail!("kube-router makes its rules anew all the time")
    }
}

fn assert_agree((_, wrong): (Vec<Record>, Vec<String>)) {
    assert!(wrong.is_empty(), "{} disagree:\n{}", wrong.len(), wrong.join("\n"));
}
