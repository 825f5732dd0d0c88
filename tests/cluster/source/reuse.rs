//! An address passes from one pod to the next while packets are dropped: each record names the owner at its packet's time.

use anyhow::{Context, Result};
use jiff::Timestamp;
use netpol_trace_tests::pair::{CLIENT, SERVER};
use netpol_trace_tests::record::Record;
use netpol_trace_tests::{cluster, eventually, require, traffic};
use nix::sys::signal::Signal;

use super::{ApiLab, NODE, pod};

/// The agent is stopped while the packet is dropped and the address gets a new owner, so it sees all of this at once.
#[test]
fn a_local_pod_takes_over_an_address_at_once() -> Result<()> {
    require!(cluster::can_run(&[]));
    let api_lab = ApiLab::start()?;
    let agent = api_lab.agent(&["--peers", "watch"])?;
    assert_eq!(api_lab.send(&agent)?.pod("destination"), "lab/server");
    let client = &api_lab.pair.client()?.netns;
    let mut holder = "server".to_owned();
    for round in 0..3 {
        agent.signal(Signal::SIGSTOP)?;
        let from = traffic::udp(client, CLIENT.into(), [(SERVER, 5000).into()], 32)?;
        let sent = Timestamp::now();
        // Creation times have whole seconds: within one second either pod could have sent.
        eventually("the next second", || Ok((Timestamp::now().as_second() > sent.as_second()).then_some(())))?;
        api_lab.delete(&pod(&holder, NODE, &[]))?;
        let next = format!("next-{round}");
        api_lab.apply(&pod(&next, NODE, &[SERVER.into()]))?;
        agent.signal(Signal::SIGCONT)?;
        let mine = |r: &Record| r.is_drop() && api_lab.pair.lab.owns(r) && r.address("source") == Some(from);
        agent.wait_for("the record of the packet sent", |records| records.iter().any(mine))?;
        let record = agent.records().into_iter().find(mine).context("it was there")?;
        assert_eq!(record.pod("destination"), format!("lab/{holder}"), "round {round}: {record}");
        eventually("the new holder", || {
            let name = api_lab.send(&agent)?.pod("destination");
            Ok((name == format!("lab/{next}")).then_some(()))
        })?;
        holder = next;
    }
    api_lab.pair.stop_and_compare(agent, "denied").map(drop)
}
