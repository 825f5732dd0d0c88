use super::*;
use crate::tail::view;

const LINE: &str = r#"{"schema":"netpol-trace/v1","id":"a/1","run":"a","seq":1,"time":"2026-11-21T04:30:11.5Z","kind":"drop","count":1,"cause":"policy","source":{"kind":"pod","ip":"10.0.0.1","port":1000,"pod":{"namespace":"qa","name":"web-0","labels":{"app":"web"}}},"destination":{"kind":"pod","ip":"10.0.0.2","port":80,"pod":{"namespace":"prod","name":"db-0","labels":{"app":"db","tier":"data"}}}}"#;
const LOSS: &str = r#"{"schema":"netpol-trace/v1","id":"a/2","run":"a","seq":2,"time":"2026-11-21T04:30:11.5Z","kind":"loss","stage":"kernel_ring","reason":"ring_full","count":3}"#;

/// Both answers, which may differ in one way only: the prefilter lets through what the parser then refuses.
fn wants(wanted: &Wanted, line: &str) -> bool {
    let wants = wanted.wants(&view::read(line.as_bytes()).unwrap());
    let may = Prefilter::new(wanted).may_match(line.as_bytes());
    assert!(may || !wants, "the prefilter keeps back what is wanted: {wanted:?} {line}");
    wants
}

fn with(change: impl FnOnce(&mut Wanted)) -> bool {
    let mut wanted = Wanted::default();
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
    let at = |text: &str| Wanted { since: Some(text.parse().unwrap()), ..Wanted::default() };
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
    for line in ["", "2026-11-21T04:30:11Z INFO started", "{\"level\":\"info\"}", "null"] {
        assert!(!looks_like_a_record(line.as_bytes()), "{line}");
    }
}

#[test]
fn mistakes_are_named_with_what_to_type() {
    assert!(pod("web-0", None).unwrap_err().contains("NAMESPACE/NAME"));
    assert_eq!(pod("web-0", Some("qa")).unwrap(), ("qa".into(), "web-0".into()));
    for text in ["", "a=b=c d", "x in (a", "x)", "x of (a)", "a=\u{1b}"] {
        let error = selector(text).unwrap_err();
        assert!(!error.contains('\u{1b}') && error.contains("-l"), "{error}");
    }
}
