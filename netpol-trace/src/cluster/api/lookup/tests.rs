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

fn answered(lookups: &Lookups, uid: &str, at: &str) {
    let answer =
        LookupResult::Pod { namespace: "x".into(), name: "web".into(), uid: uid.into(), at: time(at), used: time(at) };
    lookups.answer("10.1.2.3".parse().unwrap(), Some(answer));
}

#[test]
fn a_name_needs_an_answer_to_a_question_after_the_packet() {
    let (lookups, _asked) = Lookups::new(Some("here".into()));
    let ip = "10.1.2.3".parse().unwrap();
    let there = pod("there", "a", "2026-11-21T11:00:00Z");
    assert!(lookups.vouches(&there, ip, time("00:00")), "where all pods are watched");
    lookups.begin();
    assert!(!lookups.vouches(&there, ip, time("00:00")), "nobody asked");
    assert!(lookups.vouches(&pod("here", "b", "2026-11-21T11:00:00Z"), ip, time("00:00")), "watched");

    answered(&lookups, "a", "00:10");
    assert!(lookups.vouches(&there, ip, time("00:05")), "asked after the packet");
    assert!(!lookups.vouches(&there, ip, time("00:10.5")), "asked before the packet");
    let another = pod("there", "b", "2026-11-21T11:00:00Z");
    assert!(!lookups.vouches(&another, ip, time("00:10")), "another pod of that name");
    let late = pod("there", "a", "2026-11-21T12:00:06Z");
    assert!(!lookups.vouches(&late, ip, time("00:05")), "began after the packet");
}

#[test]
fn asks_are_coalesced_and_bounded() {
    let (lookups, mut asked) = Lookups::new(Some("here".into()));
    let ip = |last: u8| IpAddr::from([10, 1, 2, last]);
    lookups.ask(ip(1));
    assert!(asked.finds.try_recv().is_err(), "nothing is looked up where all is watched");
    lookups.begin();
    for _ in 0..3 {
        lookups.ask(ip(1));
    }
    assert_eq!((asked.finds.try_recv().ok(), asked.finds.try_recv().ok()), (Some(ip(1)), None));
    lookups.answer(ip(1), Some(LookupResult::Nobody { at: Timestamp::now() }));
    lookups.ask(ip(1));
    assert!(asked.finds.try_recv().is_err(), "nobody has it, for a while");

    answered(&lookups, "a", "00:10");
    lookups.ask(ip(3));
    assert_eq!(asked.confirms.try_recv().ok(), Some(ip(3)), "a known owner is confirmed");

    for last in 4..=255 {
        lookups.ask(ip(last));
    }
    assert_eq!(std::iter::from_fn(|| asked.finds.try_recv().ok()).count(), MAX_FINDS);
    assert_eq!(lookups.counts(), (MAX_FINDS as u64 + 2, 252 - MAX_FINDS as u64));
}

#[test]
fn answers_are_bounded_and_the_least_used_go() {
    let mut answers = HashMap::new();
    let now = time("30:00");
    for i in 0..=u32::try_from(MAX_ANSWERS).unwrap() {
        let used = now - SignedDuration::from_millis(i.into());
        let uid = format!("{i}").into();
        let answer = LookupResult::Pod { namespace: "x".into(), name: "web".into(), uid, at: used, used };
        answers.insert(IpAddr::from(i.to_be_bytes()), answer);
    }
    let gone = sweep(&mut answers, now);
    assert_eq!(gone.len() + answers.len(), MAX_ANSWERS + 1);
    assert!(answers.contains_key(&IpAddr::from([0, 0, 0, 0])), "the newest stays");
    assert!(answers.len() <= MAX_ANSWERS / 2 + 1, "{}", answers.len());
    let later = now + UNUSED + SignedDuration::from_secs(1);
    sweep(&mut answers, later);
    assert!(answers.is_empty(), "unused for too long");
}
