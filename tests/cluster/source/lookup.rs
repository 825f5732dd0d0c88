//! `--peers=lookup`: pods of other nodes are asked for, and never named wrongly.

use anyhow::Result;
use netpol_trace_tests::eventually;
use netpol_trace_tests::pair::SERVER;

use super::{Site, node, pod, skip, source};

/// The server is a pod of another node: looked up, confirmed, and when its address is another's, named no more.
#[test]
fn a_remote_peer_is_looked_up_and_a_reused_address_never_has_the_old_name() -> Result<()> {
    if skip("source::lookup::a_remote_peer_is_looked_up_and_a_reused_address_never_has_the_old_name") {
        return Ok(());
    }
    let site = Site::start()?;
    site.apply(&node("node-b", "172.18.0.3", "10.244.2.0/24"))?;
    site.delete(&pod("server", "node-a", &[]))?;
    site.apply(&pod("first", "node-b", &[SERVER.into()]))?;
    let agent = site.agent(&["--peers", "lookup"])?;
    let pods = source(&agent.records(), "pods").unwrap_or_default();
    assert_eq!(pods["objects"]["Pod"], 1, "only this node's are watched: {pods}");
    assert!(pods["detail"].to_string().contains("looked up"), "{pods}");
    let record = site.send(&agent)?;
    assert_eq!(
        (record.pod("source"), record.pod("destination")),
        ("lab/client".into(), "lab/first".into()),
        "{record}"
    );
    // By a confirmed answer, again and again.
    for _ in 0..3 {
        let record = site.send(&agent)?;
        assert_eq!(record.pod("destination"), "lab/first", "{record}");
    }
    site.delete(&pod("first", "node-b", &[]))?;
    site.apply(&pod("second", "node-b", &[SERVER.into()]))?;
    eventually("the new owner's name", || {
        let record = site.send(&agent)?;
        let name = record.pod("destination");
        assert_ne!(name, "lab/first", "the old name: {record}");
        assert!(name == "lab/second" || record.text("/destination/kind") == "unknown", "{record}");
        Ok((name == "lab/second").then_some(()))
    })?;
    site.delete(&pod("second", "node-b", &[]))?;
    let record = site.send(&agent)?;
    assert_eq!(record.text("/destination/kind"), "unknown", "nobody's: {record}");
    site.pair.settle(agent, "denied").map(drop)
}
