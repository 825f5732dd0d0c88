use super::*;
use crate::model::cluster::{Labels, PodPhase};

fn pod(node: &str, uid: &str, created: &str) -> Pod {
    Pod {
        namespace: "x".into(),
        name: "web".into(),
        uid: Some(uid.into()),
        labels: Labels::default(),
        ips: ["10.1.2.3".parse().unwrap()].into(),
        node: Some(node.into()),
        host_network: false,
        phase: PodPhase::Running,
        terminating: false,
        ports: Box::default(),
        owner: None,
        created: Some(created.parse().unwrap()),
        template: false,
    }
}

fn time(text: &str) -> Timestamp {
    format!("2026-11-21T12:{text}Z").parse().unwrap()
}

fn confirm(lookups: &Lookups, uid: &str, at: &str) {
    let result =
        LookupResult::Pod { namespace: "x".into(), name: "web".into(), uid: uid.into(), at: time(at), used: time(at) };
    lookups.keep("10.1.2.3".parse().unwrap(), Some(result));
}

#[test]
fn an_owner_is_confirmed_by_a_request_after_the_packet() {
    let (lookups, _queues) = Lookups::new(Some("here".into()));
    let ip = "10.1.2.3".parse().unwrap();
    let there = pod("there", "a", "2026-11-21T11:00:00Z");
    assert!(lookups.confirms(&there, ip, time("00:00")), "where all pods are watched");
    lookups.begin();
    assert!(!lookups.confirms(&there, ip, time("00:00")), "no request was made");
    assert!(lookups.confirms(&pod("here", "b", "2026-11-21T11:00:00Z"), ip, time("00:00")), "watched");

    confirm(&lookups, "a", "00:10");
    assert!(lookups.confirms(&there, ip, time("00:05")), "requested after the packet");
    assert!(!lookups.confirms(&there, ip, time("00:10.5")), "requested before the packet");
    let another = pod("there", "b", "2026-11-21T11:00:00Z");
    assert!(!lookups.confirms(&another, ip, time("00:10")), "another pod of that name");
    let late = pod("there", "a", "2026-11-21T12:00:06Z");
    assert!(!lookups.confirms(&late, ip, time("00:05")), "began after the packet");
}

#[test]
fn requests_are_coalesced_and_bounded() {
    let (lookups, mut queues) = Lookups::new(Some("here".into()));
    let ip = |last: u8| IpAddr::from([10, 1, 2, last]);
    lookups.request(ip(1));
    assert!(queues.finds.try_recv().is_err(), "nothing is looked up where all is watched");
    lookups.begin();
    for _ in 0..3 {
        lookups.request(ip(1));
    }
    assert_eq!((queues.finds.try_recv().ok(), queues.finds.try_recv().ok()), (Some(ip(1)), None));
    lookups.keep(ip(1), Some(LookupResult::NoOwner { at: Timestamp::now() }));
    lookups.request(ip(1));
    assert!(queues.finds.try_recv().is_err(), "nobody has it, for a while");

    confirm(&lookups, "a", "00:10");
    lookups.request(ip(3));
    assert_eq!(queues.confirms.try_recv().ok(), Some(ip(3)), "a known owner is confirmed");

    for last in 4..=255 {
        lookups.request(ip(last));
    }
    assert_eq!(std::iter::from_fn(|| queues.finds.try_recv().ok()).count(), MAX_FINDS);
    assert_eq!(lookups.counts(), (MAX_FINDS as u64 + 2, 252 - MAX_FINDS as u64));
}

#[test]
fn results_are_bounded_and_the_least_used_go() {
    let mut results = HashMap::new();
    let now = time("30:00");
    for i in 0..=u32::try_from(MAX_RESULTS).unwrap() {
        let used = now - SignedDuration::from_millis(i.into());
        let uid = format!("{i}").into();
        let result = LookupResult::Pod { namespace: "x".into(), name: "web".into(), uid, at: used, used };
        results.insert(IpAddr::from(i.to_be_bytes()), result);
    }
    let gone = sweep(&mut results, now);
    assert_eq!(gone.len() + results.len(), MAX_RESULTS + 1);
    assert!(results.contains_key(&IpAddr::from([0, 0, 0, 0])), "the newest stays");
    assert!(results.len() <= MAX_RESULTS / 2 + 1, "{}", results.len());
    let later = now + UNUSED + SignedDuration::from_secs(1);
    sweep(&mut results, later);
    assert!(results.is_empty(), "unused for too long");
}
