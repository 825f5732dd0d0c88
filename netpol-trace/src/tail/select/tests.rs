use super::*;
use crate::record::read;

const LINE: &str = r#"{"schema":"netpol-trace/v1","id":"a/1","run":"a","seq":1,"time":"2026-11-21T04:30:11.5Z","kind":"drop","count":1,"cause":"policy","source":{"kind":"pod","ip":"10.0.0.1","port":1000,"pod":{"namespace":"qa","name":"web-0","labels":{"app":"web"}}},"destination":{"kind":"pod","ip":"10.0.0.2","port":80,"pod":{"namespace":"prod","name":"db-0","labels":{"app":"db","tier":"data"}}}}"#;
const LOSS: &str = r#"{"schema":"netpol-trace/v1","id":"a/2","run":"a","seq":2,"time":"2026-11-21T04:30:11.5Z","kind":"loss","stage":"kernel_ring","reason":"ring_full","count":3}"#;

/// Returns what the selection says. The prefilter may pass a line that the selection does not select, never the other way round.
fn selects(selection: &Selection, line: &str) -> bool {
    let selects = selection.selects(&read::read(line.as_bytes()).unwrap());
    let may = Prefilter::new(selection).may_match(line.as_bytes());
    assert!(may || !selects, "the prefilter stops a selected line: {selection:?} {line}");
    selects
}

fn with(change: impl FnOnce(&mut Selection)) -> bool {
    let mut selection = Selection::default();
    change(&mut selection);
    assert!(selects(&selection, LOSS) || selection.since.is_some(), "losses always show: {selection:?}");
    selects(&selection, LINE)
}

#[test]
fn a_pod_is_selected_as_source_and_as_destination() {
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
    assert!(selects(&at("2026-11-21T04:30:11Z"), LINE));
    assert!(!selects(&at("2026-11-21T04:30:11.9Z"), LINE));
    let later = at("2026-11-21T04:30:12Z");
    assert!(!selects(&later, LINE));
    assert!(!Prefilter::new(&later).may_match(LINE.as_bytes()));
    // A drop of several packets, the last of which is newer.
    let several = LINE.replace("\"count\":1", "\"last_time\":\"2026-11-21T04:31:00Z\",\"count\":9");
    assert!(selects(&later, &several));
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
        ("qa/web-*", "not a pattern"),
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
fn counts_have_their_singular_and_plural() {
    let counts = |drops, packets, unanswered| DropCounts { drops, packets, unanswered };
    let selection = Selection { pods: vec![("staging".into(), "db-0".into())], ..Selection::default() };
    let describe = |selection: &Selection, counts: DropCounts| selection.describe(Some(&counts));
    assert_eq!(describe(&selection, counts(0, 0, 0)), "no drops to or from staging/db-0");
    assert_eq!(describe(&selection, counts(1, 1, 0)), "1 drop to or from staging/db-0");
    assert_eq!(
        describe(&selection, counts(2, 1500, 1)),
        "2 drops (1,500 packets) and 1 connection without an answer to or from staging/db-0"
    );
    let labels =
        Selection { labels: Some(selector("app=db").unwrap()), namespace: Some("x".into()), ..Selection::default() };
    assert_eq!(describe(&labels, counts(0, 0, 0)), "no drops to or from pods with app=db in namespace x");
    let cause = Selection { causes: vec!["policy".into(), "disagrees".into()], ..Selection::default() };
    assert_eq!(describe(&cause, counts(0, 0, 0)), "no drops with cause policy or disagrees");
    let unanswered = Selection { causes: vec!["unanswered".into()], ..Selection::default() };
    assert_eq!(describe(&unanswered, counts(0, 0, 2)), "2 connections without an answer");
    assert_eq!(Selection::default().describe(None), "drops");
}
