//! One row of the table of enforcement mechanisms: an enforcer, packets, and what the records must say.
//!
//! A row has a lab and an agent of its own. The agent runs in the node's network namespace, as a DaemonSet with
//! hostNetwork does, so that it sees the node's rulesets.

use std::collections::BTreeMap;
use std::io::Write;
use std::net::{IpAddr, SocketAddr};
use std::process::Command;
use std::time::Duration;

use anyhow::{Context, Result, ensure};
use serde_json::json;

use crate::agent::{self, Agent, Run};
use crate::can_run_lab;
use crate::pair::{CLIENT, CLIENT6, NODE, NODE6, Pair, SERVER, SERVER6};
use crate::record::{Record, drops, packets};
use crate::skip::missing;
use crate::topology::Wire;
use crate::traffic::{self, TcpOptions};

/// The UDP port that rows send to unless they need another.
pub const PORT: u16 = 9;
/// Datagrams to each address.
pub const DATAGRAMS: u64 = 3;

/// What a record must say. An empty text matches anything; `-` means absent.
#[derive(Debug, Clone, Copy, Default)]
pub struct Expect {
    pub mechanism: &'static str,
    pub hook: &'static str,
    pub action: &'static str,
    pub cause: &'static str,
    pub reason: &'static str,
}

/// A policy's drop.
pub const fn policy(mechanism: &'static str, hook: &'static str, action: &'static str) -> Expect {
    Expect { mechanism, hook, action, cause: "policy", reason: "" }
}

/// A drop that is not a policy's.
pub const fn other(mechanism: &'static str, hook: &'static str, cause: &'static str) -> Expect {
    Expect { mechanism, hook, action: "", cause, reason: "" }
}

/// A lab with the row's enforcer at work, and the agent watching.
#[derive(Debug)]
pub struct Row {
    name: &'static str,
    pub pair: Pair,
    agent: Option<Agent>,
    /// The packets sent: source, and destination before NAT.
    sent: Vec<(SocketAddr, SocketAddr)>,
    /// The row's packets are replies.
    replies: bool,
}

impl Row {
    /// Starts the lab without rules. `test` is the test's name, from `test_name!`.
    pub fn new(test: &'static str) -> Result<Row> {
        can_run_lab()?;
        Ok(Row::on(test, Pair::start("")?))
    }

    /// Does the same with netkit devices, which newer kernels are built with or not.
    pub fn with_netkit(test: &'static str) -> Result<Row> {
        can_run_lab()?;
        if !since(6, 7) {
            return Err(missing("before Linux 6.7 there is no netkit"));
        }
        let pair = Pair::start_on(Wire::Netkit, "");
        Ok(Row::on(test, pair.map_err(|error| missing(format!("no netkit here: {}", error.root_cause())))?))
    }

    fn on(name: &'static str, pair: Pair) -> Row {
        Row { name, pair, agent: None, sent: Vec::new(), replies: false }
    }

    /// Starts the agent in the node's network namespace. The rules must be in place.
    pub fn watch(&mut self) -> Result<()> {
        self.watch_with(&["--all-drops"])
    }

    pub fn watch_with(&mut self, arguments: &[&str]) -> Result<()> {
        let mut command = Command::new(agent::binary()?);
        command
            .arg("agent")
            .args(agent::SOON)
            .args(["--node-name", "node-a", "--manifests"])
            .arg(self.pair.manifests())
            .args(arguments);
        // A child has the network namespace of the thread that starts it.
        let agent = self.pair.lab.node().run(|| Agent::spawn(command))?;
        agent.wait_for("its status `started`", |records| records.iter().any(|r| r.text("/phase") == "started"))?;
        self.agent = Some(agent);
        Ok(())
    }

    /// The findings of one of doctor's checks in the node's network namespace.
    pub fn doctor(&self, check: &str) -> Result<Vec<serde_json::Value>> {
        let mut command = Command::new(agent::binary()?);
        let output = self.pair.lab.node().run(|| command.args(["doctor", "--output", "json"]).output())?;
        let findings: Vec<serde_json::Value> = serde_json::from_slice(&output.stdout)
            .with_context(|| format!("doctor: {}", String::from_utf8_lossy(&output.stderr)))?;
        Ok(findings.into_iter().filter(|finding| finding["check"] == check).collect())
    }

    /// The detail of a hook in the agent's first status.
    pub fn hook_detail(&self, name: &str) -> Result<String> {
        Ok(self.hook(name)?["detail"].as_str().unwrap_or_default().to_owned())
    }

    /// Starts the agent in another network namespace, from which it can't read the node's rules.
    pub fn watch_elsewhere(&mut self) -> Result<()> {
        self.agent = Some(self.pair.watch()?);
        Ok(())
    }

    /// True if this kernel shows every rejected packet, so that other packets are known to be dropped.
    pub fn shows_rejects(&self) -> Result<bool> {
        Ok(self.reject_hook()? == "fentry")
    }

    /// True if this kernel shows the IPv4 ICMP errors that it sends.
    pub fn shows_icmp_errors(&self) -> Result<bool> {
        Ok(["fentry", "tracepoint"].contains(&self.reject_hook()?.as_str()))
    }

    /// The state of the hook `reject` in the agent's status.
    fn reject_hook(&self) -> Result<String> {
        Ok(self.hook("reject")?["state"].as_str().context("no state of the hook `reject`")?.to_owned())
    }

    fn hook(&self, name: &str) -> Result<serde_json::Value> {
        let agent = self.agent.as_ref().context("the agent is not started")?;
        let records = agent.records();
        let mut hooks = records.iter().flat_map(|record| record.list("/hooks"));
        hooks.find(|hook| hook["name"] == name).cloned().with_context(|| format!("no hook {name}"))
    }

    /// Sends UDP from the client to the server's [`PORT`], over each family.
    pub fn to_server(&mut self) -> Result<()> {
        self.send("client", &[(SERVER, PORT).into(), (SERVER6, PORT).into()])
    }

    /// Sends [`DATAGRAMS`] from a host to each of these addresses. A datagram refused with EPERM counts as sent.
    pub fn send(&mut self, host: &str, to: &[SocketAddr]) -> Result<()> {
        for address in to {
            let host = self.pair.lab.host(host)?;
            let from = host.ip_like(address.ip());
            let source = datagrams(&host.netns, from, *address)?;
            self.sent.push((source, *address));
        }
        Ok(())
    }

    /// Does the same to another port.
    pub fn to_server_at(&mut self, port: u16) -> Result<()> {
        self.send("client", &[(SERVER, port).into(), (SERVER6, port).into()])
    }

    /// Does the same over one family.
    pub fn to_server_of(&mut self, ipv4: bool) -> Result<()> {
        self.send("client", &[if ipv4 { (SERVER, PORT).into() } else { (SERVER6, PORT).into() }])
    }

    /// Sends UDP from the node's own addresses to the server's.
    pub fn from_node(&mut self) -> Result<()> {
        self.from_node_to(&[(SERVER, PORT).into(), (SERVER6, PORT).into()])
    }

    /// Sends UDP from the node's own addresses.
    pub fn from_node_to(&mut self, to: &[SocketAddr]) -> Result<()> {
        for to in to {
            let from: IpAddr = if to.is_ipv4() { NODE.into() } else { NODE6.into() };
            let source = datagrams(self.pair.lab.node(), from, *to)?;
            self.sent.push((source, *to));
        }
        Ok(())
    }

    /// Notes a SYN-ACK or another packet that can only be a reply: its record has the connection's source and destination.
    pub fn note_reply(&mut self, from: SocketAddr, to: SocketAddr) {
        self.replies = true;
        self.sent.push((to, from));
    }

    /// Adds packets that the test sent itself.
    pub fn note(&mut self, source: SocketAddr, destination: SocketAddr) {
        self.sent.push((source, destination));
    }

    /// The mechanism of nftables' drops if the agent can't read the rules. Before 6.7 they may look like any netfilter user's. Updates of
    /// older kernels have 6.7's call site, whose name is then in the records.
    pub fn nftables_mechanism_if_unread(&self, counted: u64) -> Result<&'static str> {
        self.seen(counted)?;
        let located = self.records()?.iter().any(|record| record.text("/kernel/location") == "nft_do_chain");
        Ok(if since(6, 7) || located { "nftables" } else { "netfilter" })
    }

    /// Waits until the agent has reported `count` packets of the row.
    pub fn seen(&self, count: u64) -> Result<()> {
        let agent = self.agent.as_ref().context("the agent is not started")?;
        agent.wait_for(&format!("{count} packets of row {}", self.name), |records| {
            packets(records.iter().filter(|record| self.is_mine(record))) >= count
        })
    }

    /// Waits until `enough` holds for the drops of the lab, and returns their records. `what` names them.
    pub fn lab_records(&self, what: &str, enough: impl Fn(&[Record]) -> bool) -> Result<Vec<Record>> {
        let agent = self.agent.as_ref().context("the agent is not started")?;
        let of_lab = |records: &[Record]| -> Vec<Record> {
            records.iter().filter(|record| record.is_drop() && self.pair.lab.owns(record)).cloned().collect()
        };
        agent.wait_for(what, |records| enough(&of_lab(records)))?;
        Ok(of_lab(&agent.records()))
    }

    /// Waits until `enough` holds for all records so far.
    pub fn records_of_all(&self, what: &str, enough: impl Fn(&[Record]) -> bool) -> Result<()> {
        let agent = self.agent.as_ref().context("the agent is not started")?;
        agent.wait_for(what, enough).map(drop)
    }

    /// The row's records so far.
    pub fn records(&self) -> Result<Vec<Record>> {
        let agent = self.agent.as_ref().context("the agent is not started")?;
        Ok(agent.records().into_iter().filter(|record| record.is_drop() && self.is_mine(record)).collect())
    }

    fn is_mine(&self, record: &Record) -> bool {
        self.pair.lab.owns(record)
            && (record.value()["reply"] == true) == self.replies
            && self.sent.iter().any(|(source, _)| record.address("source") == Some(*source))
    }

    /// Stops the agent, compares its records of the row's packets with `expect` and `counted`, and prints the result as one line. `counted`
    /// is the enforcer's own count, or the number of packets sent if it has none.
    pub fn check(self, expect: Expect, counted: u64) -> Result<Run> {
        self.finish(expect, counted).map(|(_, run)| run)
    }

    /// Ends a row whose drops this kernel does not show, as skipped. None of the lab's drops may be called a policy's.
    pub fn unseen(mut self, why: &str) -> Result<()> {
        let run = self.agent.take().context("the agent is not started")?.stop()?;
        run.balance()?;
        let blamed = drops(&run.records).find(|record| self.pair.lab.owns(record) && record.cause() == "policy");
        ensure!(blamed.is_none(), "called a policy's: {blamed:?}");
        Err(missing(why))
    }

    /// Does the same and returns the lab too.
    pub fn finish(mut self, expect: Expect, counted: u64) -> Result<(Pair, Run)> {
        let run = self.agent.take().context("the agent is not started")?.stop()?;
        run.balance()?;
        let mine: Vec<&Record> = drops(&run.records).filter(|record| self.is_mine(record)).collect();
        let is_right = |record: &&Record| wrong(expect, record).is_empty() && self.wrong_tuple(record).is_none();
        let right: Vec<&Record> = mine.iter().copied().filter(is_right).collect();
        let strays: Vec<&Record> = drops(&run.records)
            .filter(|record| self.pair.lab.owns(record) && record.cause() == "policy" && !self.is_mine(record))
            .collect();
        let (recorded, correct) = (packets(mine.iter().copied()), packets(right.iter().copied()));
        // Packets whose record wrongly has the cause `policy`.
        let blamed =
            packets(mine.iter().copied().filter(|_| expect.cause != "policy").filter(|r| r.cause() == "policy"))
                + packets(strays.iter().copied());
        let line = json!({"row": self.name, "mechanism": expect.mechanism, "hook": expect.hook, "action": expect.action,
            "cause": expect.cause, "counted": counted, "recorded": recorded, "right": correct, "wrongly_policy": blamed,
            "kernel": release()});
        let _ = writeln!(std::io::stderr(), "row: {line}");
        // One example of each fault.
        let mut examples: BTreeMap<String, &Record> = BTreeMap::new();
        for record in &mine {
            for fault in wrong(expect, record).into_iter().chain(self.wrong_tuple(record)) {
                examples.entry(fault).or_insert(record);
            }
        }
        examples.extend(strays.first().map(|record| ("called a policy's".to_owned(), *record)));
        let mut faults: Vec<String> = examples.iter().map(|(fault, record)| format!("{fault}: {record}")).collect();
        if recorded > counted || recorded + run.lost()? < counted {
            faults.push(format!("{counted} packets were counted, {recorded} recorded"));
        }
        ensure!(
            faults.is_empty(),
            "row {}:\n{}\nall of the lab: {:?}",
            self.name,
            faults.join("\n"),
            of_lab(&self.pair, &run)
        );
        Ok((self.pair, run))
    }

    /// Checks both tuples: the client's destination is the record's destination or its `original`.
    fn wrong_tuple(&self, record: &Record) -> Option<String> {
        let asked = match (record.text("/destination/original/ip").parse::<IpAddr>(), record.address("destination")) {
            (Ok(ip), _) => {
                let port = record.number("/destination/original/port").unwrap_or_default();
                Some(SocketAddr::new(ip, u16::try_from(port).unwrap_or_default()))
            }
            (Err(_), address) => address,
        };
        let known =
            self.sent.iter().any(|(source, to)| record.address("source") == Some(*source) && asked == Some(*to));
        (!known).then(|| format!("no packet was sent to {asked:?} from there"))
    }
}

/// Sends [`DATAGRAMS`] from one socket, each of 32 bytes.
pub fn datagrams(netns: &crate::netns::Netns, from: IpAddr, to: SocketAddr) -> Result<SocketAddr> {
    netns.run(|| {
        let socket = std::net::UdpSocket::bind((from, 0))?;
        for _ in 0..DATAGRAMS {
            match socket.send_to(&[b'.'; 32], to) {
                Ok(_) => {}
                // A rule on this host refused it, or an earlier datagram's error came back: it counts as sent.
                Err(error) if !matches!(error.kind(), std::io::ErrorKind::InvalidInput) => {}
                Err(error) => return Err(error).with_context(|| format!("send to {to}")),
            }
        }
        Ok(socket.local_addr()?)
    })
}

/// What differs between a record and the expectation.
fn wrong(expect: Expect, record: &Record) -> Vec<String> {
    let mut wrong = Vec::new();
    for (pointer, want) in [
        ("/kernel/mechanism", expect.mechanism),
        ("/kernel/hook", expect.hook),
        ("/action", expect.action),
        ("/cause", expect.cause),
        ("/kernel/reason", expect.reason),
    ] {
        let have = record.text(pointer);
        if !want.is_empty() && have != want.trim_matches('-') {
            wrong.push(format!("{pointer} is {have:?}, expected {want:?}"));
        }
    }
    wrong
}

/// Packets dropped in the lab's namespaces, by call site and cause.
fn of_lab(pair: &Pair, run: &Run) -> BTreeMap<String, u64> {
    let mut all = BTreeMap::new();
    for record in drops(&run.records).filter(|record| pair.lab.owns(record)) {
        let at = |pointer: &str| record.text(pointer).to_owned();
        let key = format!(
            "{} {} {} {} -> {} {}",
            at("/kernel/reason"),
            at("/kernel/location"),
            at("/kernel/device"),
            at("/source/ip"),
            at("/destination/ip"),
            record.cause()
        );
        *all.entry(key).or_default() += record.count();
    }
    all
}

/// Drops of the lab by cause, for rows that expect none.
pub fn by_cause(pair: &Pair, run: &Run) -> BTreeMap<String, u64> {
    let mut causes = BTreeMap::new();
    for record in drops(&run.records).filter(|record| pair.lab.owns(record)) {
        *causes.entry(record.cause().to_owned()).or_default() += record.count();
    }
    causes
}

fn release() -> String {
    std::fs::read_to_string("/proc/sys/kernel/osrelease").unwrap_or_default().trim().to_owned()
}

/// True if the kernel is at least this version.
pub fn since(major: u32, minor: u32) -> bool {
    let release = release();
    let mut numbers = release.split(|c: char| !c.is_ascii_digit()).map(|n| n.parse().unwrap_or(0));
    (numbers.next().unwrap_or(0), numbers.next().unwrap_or(0)) >= (major, minor)
}

/// Both addresses of the pair's client, with a port.
pub fn client(port: u16) -> [SocketAddr; 2] {
    [(CLIENT, port).into(), (CLIENT6, port).into()]
}

/// Sends one SYN to each address and stops before the first retransmission.
pub fn syns_with(row: &mut Row, to: &[SocketAddr], options: TcpOptions) -> Result<()> {
    for address in to {
        let host = row.pair.client()?;
        let from = host.ip_like(address.ip());
        let attempt = traffic::tcp(&host.netns, from, *address, Duration::from_millis(300), options)?;
        row.note(attempt.source, *address);
    }
    Ok(())
}
