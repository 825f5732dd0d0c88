//! NFQUEUE: verdicts of a listener, and queues without a listener.

use anyhow::{Context, Result};
use netpol_trace_tests::row::{DATAGRAMS, Row, other, policy};
use netpol_trace_tests::skip::missing;
use netpol_trace_tests::{iptables, require, test_name};
use nfq::{Queue, Verdict};

const NUMBER: u16 = 9;
const RULE: &str = "-A FORWARD -p udp --dport 9 -m comment --comment row -j NFQUEUE --queue-num 9";

/// The lab with the rule.
fn prepared(test: &'static str) -> Result<Row> {
    let mut row = Row::new(test)?;
    let loaded = iptables::load(row.pair.lab.node(), "legacy", RULE);
    loaded.map_err(|error| missing(format!("no iptables-legacy with NFQUEUE here: {error:#}")))?;
    // The first socket loads the module of queues. `late_modules` tests one that is loaded later.
    listen(&row, NUMBER)?;
    // Before the listener opens: a child of this process would keep the queue open.
    row.watch()?;
    Ok(row)
}

/// A non-blocking listener in the node's network namespace.
pub fn listen(row: &Row, number: u16) -> Result<Queue> {
    let bound = row.pair.lab.node().run(|| -> std::io::Result<Queue> {
        let mut queue = Queue::open()?;
        queue.bind(number)?;
        queue.set_nonblocking(true);
        Ok(queue)
    });
    bound.context("listen to the queue")
}

/// Takes `count` packets from the queue and drops each.
pub fn drop_all(queue: &mut Queue, count: u64) -> Result<()> {
    let mut taken = 0;
    netpol_trace_tests::eventually("the queued packets", || {
        match queue.recv() {
            Ok(mut message) => {
                message.set_verdict(Verdict::Drop);
                queue.verdict(message)?;
                taken += 1;
            }
            Err(error) if error.kind() == std::io::ErrorKind::WouldBlock => {}
            Err(error) => return Err(error.into()),
        }
        Ok((taken >= count).then_some(()))
    })
}

#[test]
fn verdict_drop() -> Result<()> {
    let mut row = require!(prepared(test_name!()));
    let mut queue = listen(&row, NUMBER)?;
    row.to_server()?;
    drop_all(&mut queue, 2 * DATAGRAMS)?;
    let counted = iptables::counted(row.pair.lab.node(), "legacy", "row")?;
    row.check(policy("nfqueue", "forward", "drop"), counted).map(drop)
}

#[test]
fn no_listener() -> Result<()> {
    let mut row = require!(prepared(test_name!()));
    row.to_server()?;
    let counted = iptables::counted(row.pair.lab.node(), "legacy", "row")?;
    row.check(other("nfqueue", "forward", "enforcer_unavailable"), counted).map(drop)
}

/// Packets wait in the queue, and the listener ends without a verdict.
#[test]
fn listener_dies() -> Result<()> {
    let mut row = require!(prepared(test_name!()));
    let queue = listen(&row, NUMBER)?;
    row.to_server()?;
    let counted = iptables::counted(row.pair.lab.node(), "legacy", "row")?;
    // Closing the socket ends the queue.
    drop(queue);
    row.seen(counted)?;
    row.check(other("nfqueue", "forward", "enforcer_unavailable"), counted).map(drop)
}
