use jiff::{SignedDuration, Timestamp};

use super::super::super::index::AddressOwner;
use super::super::super::kinds::Kind;
use super::*;
use crate::model::cluster::Pod;

fn pod(name: &str, created: Timestamp) -> WireObject<Pod> {
    let created = created.round(jiff::Unit::Second).unwrap();
    let json = format!(
        r#"{{"metadata":{{"name":"{name}","namespace":"x","uid":"{name}","creationTimestamp":"{created}"}},
            "status":{{"phase":"Running","podIP":"10.0.0.1"}}}}"#
    );
    serde_json::from_str(&json).unwrap()
}

fn owner(cluster: &Cluster, time: Timestamp) -> String {
    let ip = "10.0.0.1".parse().unwrap();
    match cluster.read().at(time, &[ip]).owner_of(ip) {
        AddressOwner::Pod(view) => view.pod.name.to_string(),
        other => format!("{other:?}"),
    }
}

/// A pod that comes after the first list owns its address from then on: an earlier drop belongs to the earlier owner.
#[test]
fn an_address_of_a_list_in_parts_that_changes_hands() {
    let cluster = Cluster::live();
    let mut reflector = Reflector::new(cluster.clone(), "pods", Kind::Pod.into(), ListMode::Parts);
    let start = Timestamp::now();
    reflector.begin();
    reflector.listed([pod("first", start - SignedDuration::from_hours(1))]);
    reflector.complete();
    let before = Timestamp::now();
    assert_eq!((owner(&cluster, start), owner(&cluster, before)), ("first".into(), "first".into()));
    let second = || pod("second", before + SignedDuration::from_secs(5));
    reflector.changed([WatchUpdate::Delete(pod("first", start)), WatchUpdate::Upsert { object: second(), new: true }]);
    assert_eq!((owner(&cluster, before), owner(&cluster, Timestamp::now())), ("first".into(), "second".into()));
    // A list after a broken watch has the same effect.
    reflector.begin();
    reflector.listed([second()]);
    reflector.complete();
    assert_eq!((owner(&cluster, before), owner(&cluster, Timestamp::now())), ("first".into(), "second".into()));
}
