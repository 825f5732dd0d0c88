//! Unusual objects that the API server accepts.

use std::net::IpAddr;

use anyhow::Result;
use netpol_trace_tests::pair::{CLIENT, SERVER};
use netpol_trace_tests::{cluster, require};
use serde_json::{Map, Value, json};

use super::{ApiLab, in_sync, pod, policy, source};

#[test]
fn surprising_objects_are_taken() -> Result<()> {
    require!(cluster::can_run(&[]));
    let api_lab = ApiLab::start()?;
    let labels: Map<String, Value> = (0..1000).map(|i| (format!("example.com/label-{i}"), json!("value"))).collect();
    let mut many = pod("many-labels", "node-a", &["10.244.1.50".parse()?]);
    many["metadata"]["labels"] = Value::Object(labels);
    let mut large = pod("large", "node-a", &["10.244.1.51".parse()?]);
    large["metadata"]["annotations"] = json!({ "example.com/large": "x".repeat(256 * 1024 - 64) });
    let mut bare = pod("client", "node-a", &[CLIENT.into()]);
    bare["metadata"]["labels"] = Value::Null;
    let mut pending = pod("pending", "node-a", &[]);
    pending["status"] = json!({ "phase": "Pending" });
    // The server accepts at most one address per family in a pod's status.
    let both: [IpAddr; 2] = ["10.244.1.52".parse()?, "fd00:10:244:1::52".parse()?];
    let doomed = json!({ "apiVersion": "v1", "kind": "Namespace", "metadata": { "name": "doomed" } });
    api_lab.apply(&doomed)?;
    let mut left = policy("left", "server");
    left["metadata"]["namespace"] = json!("doomed");
    api_lab.apply(&left)?;
    for object in [&many, &large, &pending, &pod("two-addresses", "node-a", &both)] {
        api_lab.apply(object)?;
    }
    api_lab.delete(&pod("client", "node-a", &[]))?;
    api_lab.apply(&bare)?;
    // No controller empties the namespace here, so it stays terminating, with its policy.
    api_lab.delete(&doomed)?;

    let agent = api_lab.agent(&[])?;
    assert!(in_sync(&agent.records()), "{:?}", agent.records());
    let pods = source(&agent.records(), "pods").unwrap_or_default();
    assert_eq!(pods["objects"]["Pod"], 6, "{pods}");
    let record = api_lab.send(&agent)?;
    assert_eq!(
        (record.pod("source"), record.pod("destination")),
        ("lab/client".into(), "lab/server".into()),
        "{record}"
    );
    assert_eq!(record.isolated_by("ingress"), ["lab/deny-server"], "{record}");
    // The pod with 1,000 labels becomes the server: its record is short enough for a line.
    api_lab.delete(&pod("server", "node-a", &[]))?;
    many["metadata"]["name"] = json!("labelled");
    many["metadata"]["labels"]["app"] = json!("server");
    many["status"] = json!({ "phase": "Running", "podIP": SERVER, "podIPs": [{ "ip": SERVER }] });
    api_lab.apply(&many)?;
    let record = netpol_trace_tests::eventually("the labelled pod's name", || {
        let record = api_lab.send(&agent)?;
        Ok((record.pod("destination") == "lab/labelled").then_some(record))
    })?;
    assert_eq!(record.isolated_by("ingress"), ["lab/deny-server"], "{record}");
    assert!(record.to_string().len() < 16 * 1024, "{}", record.to_string().len());
    api_lab.pair.stop_and_compare(agent, "denied").map(drop)
}
