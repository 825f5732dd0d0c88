use super::*;
use crate::record::read::{self, looks_like_a_record};

const LINE: &str = r#"{"schema":"netpol-trace/v1","id":"a/1","run":"a","seq":1,"time":"2026-11-21T04:30:11.5Z","kind":"drop","count":1,"cause":"policy","source":{"kind":"pod","ip":"10.0.0.1","port":1000,"pod":{"namespace":"qa","name":"web-0","labels":{"app":"web"}}},"destination":{"kind":"pod","ip":"10.0.0.2","port":80,"pod":{"namespace":"prod","name":"db-0","labels":{"app":"db","tier":"data"}}}}"#;
const LOSS: &str = r#"{"schema":"netpol-trace/v1","id":"a/2","run":"a","seq":2,"time":"2026-11-21T04:30:11.5Z","kind":"loss","stage":"kernel_ring","reason":"ring_full","count":3}"#;

/// Both answers, which may differ in one way only: the prefilter lets through what the parser then refuses.
fn wants(wanted: &Selection, line: &str) -> bool {
    let wants = wanted.wants(&read::read(line.as_bytes()).unwrap());
    let may = Prefilter::new(wanted).may_match(line.as_bytes());
    assert!(may || !wants, "the prefilter keeps back what is wanted: {wanted:?} {line}");
    wants
}

fn with(change: impl FnOnce(&mut Selection)) -> bool {
    let mut wanted = Selection::default();
    change(&mut wanted);
    assert!(wants(&wanted, LOSS) || wanted.since.is_some(), "losses always show: {wanted:?}");
    wants(&wanted, LINE)
}

#[test]
fn a_pod_is_wanted_as_either_end() {
    assert!(with(|_| {}));
    assert!(with(|w| w.pods = vec![("qa".into(), "web-0".into())]));
    assert!(with(|w| w.pods = vec![("prod".into(), "db-0".into())]));
    assert!(!with(|w| w.pods = vec![("qa".into(), "db-0".into())]));
    assert!(!with(|w| w.pods = vec![("qa".into(), "web".into())]));
}

#[test]
fn namespaces_labels_and_causes() {
    assert!(with(|w| w.namespace = Some("prod".into())));
    assert!(!with(|w| w.namespace = Some("kube-system".into())));
    for (text, expected) in [
        ("app=web", true),
        ("app==db,tier=data", true),
        ("app=web,tier=data", false),
        ("tier", true),
        ("!tier,app!=x", true),
        ("app in (a, db)", true),
        ("app notin (web,db)", false),
    ] {
        assert_eq!(with(|w| w.labels = Some(selector(text).unwrap())), expected, "{text}");
    }
    assert!(!with(|w| {
        w.labels = Some(selector("app=web").unwrap());
        w.namespace = Some("prod".into());
    }));
    assert!(with(|w| w.causes = vec!["policy".into()]));
    assert!(!with(|w| w.causes = vec!["disagrees".into()]));
}

#[test]
fn time_is_looked_at_before_the_rest() {
    let at = |text: &str| Selection { since: Some(text.parse().unwrap()), ..Selection::default() };
    assert!(wants(&at("2026-11-21T04:30:11Z"), LINE));
    assert!(!wants(&at("2026-11-21T04:30:11.9Z"), LINE));
    let later = at("2026-11-21T04:30:12Z");
    assert!(!wants(&later, LINE));
    assert!(!Prefilter::new(&later).may_match(LINE.as_bytes()));
    // A folded drop whose last packet is newer.
    let folded = LINE.replace("\"count\":1", "\"last_time\":\"2026-11-21T04:31:00Z\",\"count\":9");
    assert!(wants(&later, &folded));
}

#[test]
fn what_is_no_record_is_told_from_one() {
    assert!(looks_like_a_record(LINE.as_bytes()));
    for line in ["", "2026-11-21T04:30:11Z INFO started", "{\"level\":\"info\"}", "null", "{\"x\":\"netpol-trace/v1\"}"]
    {
        assert!(!looks_like_a_record(line.as_bytes()), "{line}");
    }
}

#[test]
fn mistakes_are_named_with_what_to_type() {
    assert!(pod("web-0", None).unwrap_err().contains("NAMESPACE/NAME"));
    assert_eq!(pod("web-0", Some("qa")).unwrap(), ("qa".into(), "web-0".into()));
    for (text, namespace) in
        [("pod/web-0", Some("qa")), ("pods/web-0", Some("qa")), ("po web-0", Some("qa")), ("qa/pod/web-0", None)]
    {
        assert_eq!(pod(text, namespace).unwrap(), ("qa".into(), "web-0".into()), "{text}");
    }
    for (text, tip) in [
        ("pod/web-0", "-n NAMESPACE"),
        ("pod", "name is missing"),
        ("qa/deploy/web", "-n qa -l"),
        ("qa/web-*", "patterns"),
        ("a/b/c/d", "NAMESPACE/NAME"),
    ] {
        let error = pod(text, None).unwrap_err();
        assert!(error.contains(tip), "{text}: {error}");
    }
    for text in ["", "a=b=c d", "x in (a", "x)", "x of (a)", "a=\u{1b}"] {
        let error = selector(text).unwrap_err();
        assert!(!error.contains('\u{1b}') && error.contains("-l"), "{error}");
    }
}

#[test]
fn what_was_found_is_said_in_the_right_number() {
    let found = |drops, packets, unanswered| DropCounts { drops, packets, unanswered };
    let wanted = Selection { pods: vec![("staging".into(), "db-0".into())], ..Selection::default() };
    let say = |wanted: &Selection, found: DropCounts| wanted.describe(Some(&found));
    assert_eq!(say(&wanted, found(0, 0, 0)), "no drops to or from staging/db-0");
    assert_eq!(say(&wanted, found(1, 1, 0)), "1 drop to or from staging/db-0");
    assert_eq!(
        say(&wanted, found(2, 1500, 1)),
        "2 drops (1,500 packets) and 1 connection without an answer to or from staging/db-0"
    );
    let labels =
        Selection { labels: Some(selector("app=db").unwrap()), namespace: Some("x".into()), ..Selection::default() };
    assert_eq!(say(&labels, found(0, 0, 0)), "no drops to or from pods with app=db in namespace x");
    let cause = Selection { causes: vec!["policy".into(), "disagrees".into()], ..Selection::default() };
    assert_eq!(say(&cause, found(0, 0, 0)), "no drops with cause policy or disagrees");
    let unanswered = Selection { causes: vec!["unanswered".into()], ..Selection::default() };
    assert_eq!(say(&unanswered, found(0, 0, 2)), "2 connections without an answer");
    assert_eq!(Selection::default().describe(None), "drops");
}
