//! NFQUEUE: verdicts, and queues without anybody to give one.

use std::os::fd::AsRawFd;

use anyhow::{Context, Result};
use netpol_trace_tests::iptables;
use netpol_trace_tests::row::{DATAGRAMS, Row, other, policy};
use nfq::{Queue, Verdict};

const NUMBER: u16 = 9;
const RULE: &str = "-A FORWARD -p udp --dport 9 -m comment --comment row -j NFQUEUE --queue-num 9";

/// The lab with the rule, and a listener where wanted.
fn prepared(name: &'static str, listener: bool) -> Result<Option<(Row, Option<Queue>)>> {
    let Some(row) = Row::new(name)? else { return Ok(None) };
    if let Err(error) = iptables::load(row.pair.lab.node(), "legacy", RULE) {
        row.cannot(format!("no iptables-legacy with NFQUEUE here: {error:#}").replace('\n', "; "));
        return Ok(None);
    }
    let queue = listener.then(|| {
        row.pair.lab.node().run(|| -> std::io::Result<Queue> {
            let mut queue = Queue::open()?;
            // Or the agent, a child of this process, would hold the queue open too.
            // SAFETY: the queue is open.
            let fd = unsafe { std::os::fd::BorrowedFd::borrow_raw(queue.as_raw_fd()) };
            nix::fcntl::fcntl(fd, nix::fcntl::FcntlArg::F_SETFD(nix::fcntl::FdFlag::FD_CLOEXEC))?;
            queue.bind(NUMBER)?;
            queue.set_nonblocking(true);
            Ok(queue)
        })
    });
    Ok(Some((row, queue.transpose().context("listen to the queue")?)))
}

/// Takes `count` packets from the queue and drops each.
fn drop_all(queue: &mut Queue, count: u64) -> Result<()> {
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
    let Some((mut row, Some(mut queue))) = prepared("rows::queues::verdict_drop", true)? else { return Ok(()) };
    row.watch()?;
    row.to_server()?;
    drop_all(&mut queue, 2 * DATAGRAMS)?;
    let counted = iptables::counted(row.pair.lab.node(), "legacy", "row")?;
    row.check(policy("nfqueue", "forward", "drop"), counted).map(drop)
}

#[test]
fn no_listener() -> Result<()> {
    let Some((mut row, _)) = prepared("rows::queues::no_listener", false)? else { return Ok(()) };
    row.watch()?;
    row.to_server()?;
    let counted = iptables::counted(row.pair.lab.node(), "legacy", "row")?;
    row.check(other("nfqueue", "forward", "enforcer_unavailable"), counted).map(drop)
}

/// Packets wait in the queue, and the listener ends without a verdict.
#[test]
fn listener_dies() -> Result<()> {
    let Some((mut row, Some(queue))) = prepared("rows::queues::listener_dies", true)? else { return Ok(()) };
    row.watch()?;
    row.to_server()?;
    let counted = iptables::counted(row.pair.lab.node(), "legacy", "row")?;
    // Closing the socket ends the queue.
    drop(queue);
    row.seen(counted)?;
    row.check(other("nfqueue", "forward", "enforcer_unavailable"), counted).map(drop)
}
