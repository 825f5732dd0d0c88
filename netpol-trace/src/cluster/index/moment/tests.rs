use std::collections::BTreeMap;

use proptest::prelude::*;

use super::super::super::change::{Change, Key};
use super::super::super::kinds::{Kind, Object};
use super::super::super::manifests;
use super::super::history::MAX_KEPT;
use super::*;
use crate::model::Str;
use crate::model::cluster::{Direction, Labels, Namespace, Pod, Policy};

/// A time, in milliseconds from the start of the test.
fn at(millis: i64) -> Timestamp {
    Timestamp::from_millisecond(1_000_000_000 + millis).unwrap()
}

fn ip(last: u8) -> IpAddr {
    IpAddr::from([10, 0, 0, last])
}

fn pod(name: &str, uid: &str, last: u8, created: Option<i64>) -> Pod {
    let yaml = format!(
        "{{apiVersion: v1, kind: Pod, metadata: {{name: {name}, namespace: x, uid: \"{uid}\", labels: {{app: {name}}}}}, status: {{podIP: 10.0.0.{last}}}}}"
    );
    let Some(Object::Pod(pod)) = manifests::load_bytes("pod", yaml.as_bytes()).objects.pop().map(|o| o.object) else {
        panic!("no pod");
    };
    // The API server's times are whole seconds.
    Pod { created: created.map(|millis| at(millis - millis.rem_euclid(1000))), ..pod }
}

fn policy(name: &str, subject: Option<&str>, egress: bool, generation: i64) -> Policy {
    let subject = subject.map_or_else(String::new, |app| format!("matchLabels: {{app: {app}}}"));
    let types = if egress { "Egress" } else { "Ingress" };
    let yaml = format!(
        "{{apiVersion: networking.k8s.io/v1, kind: NetworkPolicy, metadata: {{name: {name}, namespace: x, generation: {generation}}}, spec: {{podSelector: {{{subject}}}, policyTypes: [{types}], ingress: [{{ports: [{{port: {generation}}}]}}]}}}}"
    );
    match manifests::load_bytes("policy", yaml.as_bytes()).objects.pop().map(|o| o.object) {
        Some(Object::Policy(policy)) => policy,
        other => panic!("no policy: {other:?}"),
    }
}

/// An index whose first lists held `objects`.
fn listed(objects: Vec<Object>) -> Index {
    let mut index = Index::default();
    for kind in [Kind::Namespace, Kind::Policy, Kind::Pod] {
        let of_kind = objects.iter().filter(|object| object.kind() == kind).cloned().collect();
        index.apply(vec![Change::Replace(kind.into(), of_kind)], at(0));
    }
    index
}

fn delete(kind: Kind, name: &str) -> Change {
    Change::Delete(Key { kind, namespace: Some("x".into()), name: name.into() })
}

/// The owner of `10.0.0.last` as of a time, in one word.
fn owner(index: &Index, millis: i64, last: u8) -> String {
    let moment = index.at(at(millis), &[ip(last)]);

    match moment.owner_of(ip(last)) {
        AddressOwner::Pod(view) => view.pod.name.to_string(),
        AddressOwner::Either(one, other) => format!("{} or {}", one.name, other.name),
        AddressOwner::Former(pod) => format!("formerly {}", pod.name),
        AddressOwner::Ambiguous(count) => format!("{count} pods"),
        AddressOwner::Node(node) => format!("node {}", node.name),
        AddressOwner::None => "nobody".to_owned(),
    }
}

#[test]
fn an_address_that_was_reused_belongs_to_whoever_had_it_at_that_time() {
    let mut index = listed(vec![Object::Pod(pod("a", "1", 1, Some(0)))]);
    index.apply(vec![delete(Kind::Pod, "a")], at(100_200));
    index.apply(vec![Change::Upsert(Object::Pod(pod("b", "2", 1, Some(100_100))))], at(100_600));
    assert_eq!(owner(&index, 99_900, 1), "a", "b was not yet made");
    assert_eq!(owner(&index, 100_150, 1), "a or b", "a was there, and b can have been");
    assert_eq!(owner(&index, 100_400, 1), "b", "it sends before the API tells its address");
    assert_eq!(owner(&index, 100_700, 1), "b");

    index.apply(vec![delete(Kind::Pod, "b")], at(200_000));
    index.apply(vec![Change::Upsert(Object::Pod(pod("c", "3", 1, Some(202_000))))], at(204_000));
    assert_eq!(owner(&index, 199_000, 1), "b");
    assert_eq!(owner(&index, 201_000, 1), "formerly b", "whoever sent this, it was not c, which began later");
    assert_eq!(owner(&index, 205_000, 1), "c");
    assert_eq!(owner(&index, 100_100, 1), "a or b", "still");
}

#[test]
fn a_pod_with_another_uid_is_another_pod() {
    let mut index = listed(vec![Object::Pod(pod("db-0", "1", 1, Some(0)))]);
    let again = Pod { labels: [("app", "new")].into_iter().collect(), ..pod("db-0", "2", 1, Some(100_000)) };
    index.apply(vec![Change::Upsert(Object::Pod(again))], at(101_000));
    let uid_and_app = |millis| match index.at(at(millis), &[ip(1)]).owner_of(ip(1)) {
        AddressOwner::Pod(view) => {
            format!("{:?} {:?}", view.pod.uid.as_deref(), view.pod.labels.get("app").map(|s| &**s))
        }
        other => format!("{other:?}"),
    };
    assert_eq!(uid_and_app(99_000), r#"Some("1") Some("db-0")"#);
    assert_eq!(uid_and_app(101_000), r#"Some("2") Some("new")"#);
}

#[test]
fn where_nothing_says_when_a_pod_began_it_is_named_unless_another_comes_into_question() {
    let mut index = listed(vec![Object::Pod(pod("a", "1", 1, None))]);
    index.apply(vec![Change::Upsert(Object::Pod(pod("late", "2", 2, None)))], at(10_000));
    assert_eq!(owner(&index, 9_500, 2), "late");
    index.apply(vec![delete(Kind::Pod, "a")], at(20_000));
    index.apply(vec![Change::Upsert(Object::Pod(pod("b", "3", 1, None)))], at(21_000));
    assert_eq!(owner(&index, 19_999, 1), "a");
    assert_eq!(owner(&index, 20_500, 1), "formerly a");
    assert_eq!(owner(&index, 21_000, 1), "b");
}

#[test]
fn a_finished_pod_and_one_that_lost_its_address_had_it_before() {
    let a = pod("a", "1", 1, Some(0));
    let mut index = listed(vec![Object::Pod(a.clone())]);
    let over = Pod { phase: crate::model::cluster::PodPhase::Succeeded, ..a.clone() };
    index.apply(vec![Change::Upsert(Object::Pod(over))], at(10_000));
    assert_eq!((owner(&index, 9_000, 1), owner(&index, 10_000, 1)), ("a".to_owned(), "formerly a".to_owned()));

    let b = pod("b", "2", 3, Some(0));
    index.apply(vec![Change::Upsert(Object::Pod(b.clone()))], at(20_000));
    index.apply(vec![Change::Upsert(Object::Pod(Pod { ips: [ip(4)].into(), ..b }))], at(30_000));
    assert_eq!((owner(&index, 25_000, 3), owner(&index, 31_000, 3)), ("b".to_owned(), "formerly b".to_owned()));
    assert_eq!(owner(&index, 31_000, 4), "b");
}

#[test]
fn a_packet_is_evaluated_with_the_policy_version_of_its_time() {
    let mut index = listed(vec![Object::Pod(pod("a", "1", 1, Some(0)))]);
    index.apply(vec![Change::Upsert(Object::Policy(policy("p", Some("a"), false, 1)))], at(10_000));
    let server = Policy { changed: Some(at(19_000)), ..policy("p", None, true, 2) };
    index.apply(vec![Change::Upsert(Object::Policy(server))], at(20_000));
    index.apply(vec![delete(Kind::Policy, "p")], at(30_000));
    let isolated = |millis| {
        let moment = index.at(at(millis), &[ip(1)]);
        let AddressOwner::Pod(view) = moment.owner_of(ip(1)) else { panic!("not a pod") };
        [Direction::Ingress, Direction::Egress].map(|direction| {
            let policy = view.isolated_by(direction).first()?;
            Some((policy.generation?, at(millis).duration_since(policy.changed?).as_millis()))
        })
    };
    assert_eq!(isolated(9_999), [None, None]);
    assert_eq!(isolated(12_000), [Some((1, 2_000)), None], "without a time of the server's: since it was learned");
    assert_eq!(isolated(21_000), [None, Some((2, 2_000))], "the server's time");
    assert_eq!(isolated(30_000), [None, None]);
    let a = pod("a", "1", 1, None);
    let near = |millis| index.changed_near(&a, at(millis), SignedDuration::from_secs(5));
    assert_eq!([near(4_000), near(5_000), near(35_000), near(35_001)], [false, true, true, false]);
}

#[test]
fn what_is_kept_is_bounded_by_number_and_age() {
    let mut index = listed(vec![Object::Pod(pod("a", "1", 1, Some(0)))]);
    for i in 0..MAX_KEPT as i64 + 100 {
        let labels = [("app", format!("{i}"))].into_iter().collect();
        let pod = Pod { labels, ..pod("a", "1", 1, Some(0)) };
        index.apply(vec![Change::Upsert(Object::Pod(pod))], at(1_000 + i));
    }
    assert_eq!(index.history(), (MAX_KEPT, 100));
    index.apply(vec![delete(Kind::Pod, "a")], at(1_000_000));
    assert_eq!(index.history(), (1, 100), "ten minutes later the rest is forgotten");
    assert_eq!(owner(&index, 999_000, 1), "a");
    index.apply(Vec::new(), at(2_000_000));
    assert_eq!((index.history(), owner(&index, 2_000_000, 1)), ((0, 100), "nobody".to_owned()));
}

#[test]
fn a_clock_that_was_set_back_ends_what_is_kept() {
    let mut index = listed(vec![Object::Pod(pod("a", "1", 1, Some(0)))]);
    index.apply(vec![delete(Kind::Pod, "a")], at(5_000_000));
    index.apply(vec![Change::Upsert(Object::Pod(pod("b", "2", 1, Some(0))))], at(1_000));
    assert_eq!((index.history(), owner(&index, 2_000, 1)), ((0, 0), "b".to_owned()));
}

/// One change of a random sequence.
#[derive(Debug, Clone)]
enum Step {
    /// A pod of that number has that address and that app: a label changes, or another pod takes the name.
    Pod(u8, u8, u8),
    Finish(u8),
    DeletePod(u8),
    Policy(u8, Option<u8>, bool),
    DeletePolicy(u8),
    Labels(u8),
}

fn step() -> impl Strategy<Value = Step> {
    prop_oneof![
        4 => (0..4u8, 1..4u8, 0..3u8).prop_map(|(n, ip, app)| Step::Pod(n, ip, app)),
        1 => (0..4u8).prop_map(Step::Finish),
        2 => (0..4u8).prop_map(Step::DeletePod),
        3 => (0..3u8, proptest::option::of(0..3u8), any::<bool>()).prop_map(|(n, app, egress)| Step::Policy(n, app, egress)),
        1 => (0..3u8).prop_map(Step::DeletePolicy),
        1 => (0..3u8).prop_map(Step::Labels),
    ]
}

/// Applies a step to the full set of objects, and returns it as a change.
fn make(step: &Step, i: i64, millis: i64, all: &mut BTreeMap<(u8, Str), Object>) -> Option<Change> {
    let object = match step {
        Step::Pod(n, last, app) => {
            let name = format!("pod{n}");
            let labels: Labels = [("app", format!("app{app}"))].into_iter().collect();
            let known = match all.get(&(0, name.as_str().into())) {
                Some(Object::Pod(pod)) if *pod.ips == [ip(*last)] && !pod.is_over() => Some(pod.clone()),
                _ => None,
            };
            // Made just now: the sub-second part makes it certain whether the pod had begun.
            let new = || Pod { created: Some(at(millis)), ..pod(&name, &format!("u{i}"), *last, None) };
            Object::Pod(Pod { labels, ..known.unwrap_or_else(new) })
        }
        Step::Finish(n) => match all.get(&(0, format!("pod{n}").into())) {
            Some(Object::Pod(pod)) => {
                Object::Pod(Pod { phase: crate::model::cluster::PodPhase::Failed, ..pod.clone() })
            }
            _ => return None,
        },
        Step::Policy(n, app, egress) => {
            let app = app.map(|app| format!("app{app}"));
            Object::Policy(policy(&format!("p{n}"), app.as_deref(), *egress, i + 1))
        }
        Step::Labels(n) => {
            let labels = [("team", format!("{n}"))].into_iter().collect();
            Object::Namespace(Namespace { name: "x".into(), labels })
        }
        Step::DeletePod(n) => {
            let name = format!("pod{n}");
            all.remove(&(0, name.as_str().into()))?;
            return Some(delete(Kind::Pod, &name));
        }
        Step::DeletePolicy(n) => {
            let name = format!("p{n}");
            all.remove(&(1, name.as_str().into()))?;
            return Some(delete(Kind::Policy, &name));
        }
    };
    let kind = match object {
        Object::Pod(_) => 0,
        Object::Policy(_) => 1,
        _ => 2,
    };
    all.insert((kind, object.key().name), object.clone());
    Some(Change::Upsert(object))
}

/// All that a verdict reads of an address's owner.
fn shown(owner: AddressOwner<'_>) -> String {
    let AddressOwner::Pod(view) = owner else {
        return match owner {
            AddressOwner::Ambiguous(count) => format!("{count} pods"),
            AddressOwner::Former(_) | AddressOwner::None => "nobody".to_owned(),
            other => format!("{other:?}"),
        };
    };
    let policies = |direction| {
        let list = view.isolated_by(direction).iter().map(|p| format!("{}:{:?}", p.name, p.ingress));
        list.collect::<Vec<_>>()
    };
    format!(
        "{} {:?} {:?} {:?} in {:?} out {:?}",
        view.pod.name,
        view.pod.uid,
        view.pod.labels,
        view.namespace.labels(),
        policies(Direction::Ingress),
        policies(Direction::Egress)
    )
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(200))]

    #[test]
    fn the_index_as_of_a_time_is_the_snapshot_of_that_time(
        steps in proptest::collection::vec((0..3_000i64, step()), 1..40),
    ) {
        let first = vec![Object::Namespace(Namespace { name: "x".into(), labels: [("team", "0")].into_iter().collect() })];
        let mut index = listed(first.clone());
        let mut all: BTreeMap<_, _> = first.into_iter().map(|o| ((2, o.key().name), o)).collect();
        let mut snapshots = vec![(0, all.clone())];
        let mut millis = 0;
        for (i, (wait, step)) in steps.iter().enumerate() {
            millis += wait + 1;
            if let Some(change) = make(step, i as i64, millis, &mut all) {
                index.apply(vec![change], at(millis));
                snapshots.push((millis, all.clone()));
            }
        }
        for (i, (millis, objects)) in snapshots.iter().enumerate() {
            let then = Index::from_objects(objects.values().cloned());
            let last_moment = snapshots.get(i + 1).map_or(millis + 5_000, |(next, _)| next - 1);
            for time in [*millis, last_moment] {
                let addresses = [ip(1), ip(2), ip(3)];
                let moment = index.at(at(time), &addresses);
                for address in addresses {
                    prop_assert_eq!(shown(moment.owner_of(address)), shown(then.owner_of(address)), "at {}", time);
                }
            }
        }
    }
}

/// A count of packets over some time names an endpoint only if it had the address all the time.
#[test]
fn a_count_over_a_change_of_hands_is_nobodys() {
    use crate::pipeline::enrich::{Flow, Identity, identify};
    let mut index = listed(vec![Object::Pod(pod("a", "1", 7, Some(-5000)))]);
    index.apply(vec![delete(Kind::Pod, "a")], at(2000));
    index.apply(vec![Change::Upsert(Object::Pod(pod("b", "2", 7, Some(3000))))], at(4000));
    let flow = |moment: &'static Moment<'static>| Flow {
        source: identify(moment, ip(7), None),
        destination: identify(moment, ip(9), None),
        protocol: 17,
        reply: false,
        opener_known: true,
        tracked: false,
        dst_nat: false,
    };
    // Leaked: moments borrow the index, and flows the moments.
    let index: &'static Index = Box::leak(Box::new(index));
    let moment = |millis| -> &'static Moment<'static> { Box::leak(Box::new(index.at(at(millis), &[ip(7), ip(9)]))) };
    let (early, still, late) = (flow(moment(500)), flow(moment(1500)), flow(moment(5000)));
    let mut held = early.clone();
    held.hold_throughout(&still);
    assert!(matches!(held.source.identity, Identity::Pod(view) if &*view.pod.name == "a"), "{held:?}");
    held.hold_throughout(&late);
    assert!(matches!(held.source.identity, Identity::Reused(a, b) if (&*a.name, &*b.name) == ("a", "b")), "{held:?}");
    assert!(matches!(held.destination.identity, Identity::External | Identity::Unknown), "{held:?}");
}
