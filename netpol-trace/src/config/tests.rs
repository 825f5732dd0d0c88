//! Valid config files, problems with their messages, and the tables of docs/configuration.md.

use std::fmt::Write;
use std::path::Path;

use expect_test::{Expect, expect};
use proptest::prelude::*;

use super::{ConfigFile, flags, read};
use crate::cli::agent::command;
use crate::model::Cause;
use crate::pipeline::filter::{EndpointPair, Pattern};
use crate::sink::spec;

fn problems(text: &str) -> String {
    let file = match read::read(text.as_bytes(), Path::new("config.yaml")) {
        Ok(file) => file,
        Err(problems) => return problems.to_string(),
    };
    let problems = flags::problems(&file, &command());
    problems.iter().map(|problem| format!("config.yaml:{}: {}\n", problem.line, problem.message)).collect()
}

fn good(text: &str) -> ConfigFile {
    assert_eq!(problems(text), "");
    read::read(text.as_bytes(), Path::new("config.yaml")).unwrap()
}

fn check(text: &str, expected: Expect) {
    expected.assert_eq(problems(text).trim_end());
}

#[test]
fn an_empty_file_sets_nothing() {
    for text in ["", "\n", "# nothing\n", "---\n", "{}", "include:\nexclude:\nlabels:\n"] {
        assert_eq!(good(text), ConfigFile::default(), "{text:?}");
    }
}

#[test]
fn options_by_their_long_names() {
    let file = good(
        "manifests: [one.yaml, two.yaml]\nnode-name: no\ncluster-name: 007\nall-drops: true\nsurvive-restart: false\nring-kib: 8192\n\
         hooks: [kfree_skb, tc]\nduration: 5m\n",
    );
    let given = command().try_get_matches_from(["agent", "--config=c", "--ring-kib=64"]).unwrap();
    // The command line overrides ring-kib.
    let arguments = flags::not_overridden(&file, &command(), &given);
    let expected = [
        "--manifests=one.yaml",
        "--manifests=two.yaml",
        "--node-name=no",
        "--cluster-name=007",
        "--all-drops",
        "--hooks=kfree_skb",
        "--hooks=tc",
        "--duration=5m",
    ];
    assert_eq!(arguments, expected);
}

/// Options that are rarely needed: a key of the file, not a line of `--help`.
#[test]
fn some_options_are_for_the_file_only() {
    let help = command().render_long_help().to_string();
    for name in ["agents-namespace", "pin-dir", "ring-kib"] {
        assert!(flags::settable(&command()).any(|(key, _)| key == name), "{name}");
        assert!(!help.contains(&format!("--{name}")), "{name} in:\n{help}");
    }
    assert!(help.contains("--survive-restart"));
}

/// What an option needs (--history-dir, --listen) may be on the command line.
#[test]
fn options_that_need_another() {
    for text in [
        "history-mib: 1\n",
        "history-group: 4\n",
        "metrics-rbac: true\n",
        "tail-listen: 127.0.0.1:1\nhistory-dir: /h\n",
    ] {
        good(text);
    }
    check(
        "history-group: adm\n",
        expect![[
            r#"config.yaml:1: invalid value 'adm' for '--history-group <GID>': "adm": expected the number of a group, such as 4: `getent group NAME` shows it"#
        ]],
    );
}

#[test]
fn unknown_keys() {
    check("ring-kb: 64\n", expect![[r#"config.yaml:1: unknown key "ring-kb": did you mean ring-kib?"#]]);
    check("all-drops: true\nconfig: x\n", expect!["config.yaml:2: config can be given on the command line only"]);
    check(
        "include:\n  namespace: [a]\n",
        expect![[r#"config.yaml:2: unknown key "namespace" in include: it takes namespaces, causes and cidrs"#]],
    );
    let unknown = problems("somethingElse: 1\n");
    assert!(unknown.starts_with("config.yaml:1: unknown key \"somethingElse\": expected one of "), "{unknown}");
    assert!(unknown.contains(" all-drops,") && unknown.contains(" exclude,"), "{unknown}");
}

#[test]
fn bad_values() {
    check(
        "node-name: {}\nstate-dir:\nhooks: [[]]\nexclud:\n",
        expect![[r#"
            config.yaml:1: node-name takes a value or a list of values
            config.yaml:2: state-dir has no value: give one, or remove the key
            config.yaml:3: hooks takes a list of values
            config.yaml:4: unknown key "exclud": did you mean exclude?"#]],
    );
    check(
        "node-name: [a, b]\nring-kib: 100\nall-drops: perhaps\nduration: soon\nhooks: [xdp]\n",
        expect![[r#"
            config.yaml:1: node-name takes one value
            config.yaml:2: invalid value '100' for '--ring-kib <KIB>': must be a power of two from 64 to 1048576
            config.yaml:3: all-drops takes true or false, not "perhaps"
            config.yaml:4: invalid value 'soon' for '--duration <TIME>': "soon" is not a time such as 30s, 5m or 1h
            config.yaml:5: invalid value 'xdp' for '--hooks <HOOK>'"#]],
    );
    check(
        "include:\n  causes: [policy, polisy]\n  cidrs:\n  - 10.0.0.1/8\n  - lan\n  - 10.1.2.3\nexclude: none\nlabels: app\n",
        expect![[r#"
            config.yaml:2: include.causes: unknown cause `polisy`, expected one of `policy`, `disagrees`, `enforcer_unavailable`, `service_without_endpoints`, `connection_unknown`, `unknown`, `host_firewall`, `pod_local`, `conntrack_invalid`, `not_policy`
            config.yaml:4: include.cidrs: 10.0.0.1/8 has bits set beyond its prefix: write 10.0.0.0/8 or 10.0.0.1/32
            config.yaml:5: include.cidrs: "lan" is not an address range such as 10.0.0.0/8 or 2001:db8::/32
            config.yaml:7: exclude takes the lists namespaces, causes and cidrs
            config.yaml:8: labels takes a list: labels: [one, two]"#]],
    );
}

#[test]
fn no_mapping_and_no_yaml() {
    check("- a\n", expect!["config.yaml:1: a config file is a mapping of keys, such as `all-drops: true`"]);
    check("a: 1\n---\nb: 2\n", expect!["config.yaml:3: a second document: a config file has one; remove the `---`"]);
    assert!(problems("labels: [a\nb: }").starts_with("config.yaml:2: not YAML:"), "{}", problems("labels: [a\nb: }"));
    assert!(problems("labels: [a]\nlabels: [b]").starts_with("config.yaml:2: "), "a repeated key");
    assert!(problems(&"#".repeat(2 << 20)).contains("at most 1024"));
}

#[test]
fn patterns() {
    let matches = |pattern: &str, text: &str| Pattern::new(pattern).matches(text);
    assert!(matches("app", "app") && !matches("app", "apps"));
    assert!(matches("*", "") && matches("*", "anything"));
    assert!(matches("app.kubernetes.io/*", "app.kubernetes.io/name") && !matches("app.*", "application"));
    assert!(matches("*.svc.cluster.local", "db.shop.svc.cluster.local") && !matches("*.local", "local"));
    assert!(matches("a*b*c", "a-b-c") && matches("a*b*c", "abbc") && !matches("a*b*c", "acb"));
    assert!(!matches("ab*ba", "aba"), "prefix and suffix don't overlap");
    assert!(matches("**x**", "x") && matches("a**", "a"));
}

#[test]
fn selections() {
    let settings = good(
        "include:\n  namespaces: [team-*]\n  causes: [policy, disagrees]\nexclude:\n  namespaces: [team-load]\n  cidrs: [10.9.0.0/16]\n",
    )
    .settings;
    let (cause, other) = (Some(Cause::Policy), Some(Cause::Unknown));
    let end = |namespace, ip: &str| {
        let pod = crate::model::PodRef {
            namespace,
            name: "pod".into(),
            uid: None,
            labels: [("app", "a"), ("secret", "s")].map(|(k, v)| (k.to_owned(), v.to_owned())).into(),
            owner: None,
            node: None,
        };
        crate::record::Endpoint {
            kind: crate::model::EndpointKind::Pod,
            ip: ip.parse().unwrap(),
            port: None,
            pod: Some(crate::model::Part::new(pod)),
            node: None,
            service: None,
            original: None,
            names: vec!["db.svc".into(), "who.example".into(), "else.example".into()],
            note: None,
        }
    };
    let admits = |cause, source: (&str, &str), destination: (&str, &str)| {
        let (source, destination) = (end(source.0.into(), source.1), end(destination.0.into(), destination.1));
        settings.admits(cause, &EndpointPair::of_record(&source, &destination))
    };
    assert!(admits(cause, ("team-a", "10.1.0.1"), ("other", "10.1.0.2")), "either end");
    assert!(admits(cause, ("other", "10.1.0.1"), ("team-a", "10.1.0.2")), "either end");
    assert!(!admits(cause, ("other", "10.1.0.1"), ("another", "10.1.0.2")));
    assert!(!admits(other, ("team-a", "10.1.0.1"), ("other", "10.1.0.2")), "every list of include");
    assert!(!admits(cause, ("team-a", "10.1.0.1"), ("team-load", "10.1.0.2")), "any list of exclude");
    assert!(!admits(cause, ("team-a", "10.1.0.1"), ("other", "10.9.0.2")), "any list of exclude");
    assert!(admits(None, ("team-a", "10.1.0.1"), ("other", "10.1.0.2")), "an unanswered connection has no cause");

    let redacting = good("labels: [app]\ndns-names: ['*.svc']\n").settings;
    let mut end = end("team-a".into(), "10.1.0.1");
    redacting.redact_end(&mut end);
    assert_eq!(end.pod.unwrap().labels.keys().collect::<Vec<_>>(), ["app"]);
    assert_eq!(end.names, ["db.svc", "redacted"]);
}

proptest! {
    #[test]
    fn any_text_is_valid_or_has_problems(text in "\\PC{0,200}") {
        problems(&text);
    }

    #[test]
    fn any_value_of_any_key_is_valid_or_has_problems(key in 0..40_usize, value in "[\\[\\]{}:a-z0-9, -]{0,20}") {
        let command = command();
        let runtime = ["labels", "dns-names", "include", "exclude"].into_iter();
        let keys: Vec<&str> = flags::settable(&command).map(|(name, _)| name).chain(runtime).collect();
        problems(&format!("{}: {value}\n", keys[key % keys.len()]));
    }
}

/// The tables of docs/configuration.md. `UPDATE_EXPECT=1 cargo test -p netpol-trace --lib the_page_has_every_key` writes them.
#[test]
fn the_page_has_every_key() {
    const BEGIN: &str = "<!-- keys: made from the code -->\n";
    const END: &str = "<!-- end of keys -->\n";
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("../docs/configuration.md");
    let page = std::fs::read_to_string(&path).unwrap();
    let (head, rest) = page.split_once(BEGIN).unwrap();
    let (written, tail) = rest.split_once(END).unwrap();
    let table = table();
    if written == table {
        return;
    }
    assert!(std::env::var_os("UPDATE_EXPECT").is_some(), "docs/configuration.md is not as the code: UPDATE_EXPECT=1");
    std::fs::write(path, [head, BEGIN, &table, END, tail].concat()).unwrap();
}

fn table() -> String {
    let cell = |text: &str| text.replace('|', "\\|").replace('\n', " ");
    let mut table =
        String::from("\n### Read again when the file changes\n\n| key | value | meaning |\n|---|---|---|\n");
    for (key, value, meaning) in read::RUNTIME_KEYS {
        let _ = writeln!(table, "| `{key}` | {} | {} |", cell(value), cell(meaning));
    }
    table.push_str(
        "\n### Options: they count from the next start\n\n| key | value | default | meaning |\n|---|---|---|---|\n",
    );
    let command = command();
    let mut options: Vec<_> = flags::settable(&command).collect();
    options.sort_by_key(|(name, _)| *name);
    for (name, arg) in options {
        let value = match arg.get_action().takes_values() {
            false => "`true` or `false`".to_owned(),
            true => {
                let names = arg.get_value_names().unwrap_or_default();
                let names = names.iter().map(|name| format!("`{name}`")).collect::<Vec<_>>().join(" ");
                let several =
                    arg.get_value_delimiter().is_some() || matches!(arg.get_action(), clap::ArgAction::Append);
                if several { format!("{names}, or a list") } else { names }
            }
        };
        let default: Vec<String> =
            arg.get_default_values().iter().map(|v| format!("`{}`", v.to_string_lossy())).collect();
        let default = match (default.is_empty(), arg.get_action().takes_values()) {
            (false, _) => default.join(" "),
            (true, false) => "`false`".to_owned(),
            (true, true) => "-".to_owned(),
        };
        let help = arg.get_long_help().or(arg.get_help()).map(ToString::to_string).unwrap_or_default();
        let _ = writeln!(table, "| `{name}` | {value} | {default} | {} |", cell(help.trim()));
    }
    table.push_str(
        "\n### Options of an output\n\nAs in `--output file:/var/log/drops.jsonl,format=ecs,max-size=64MiB`.\n\n",
    );
    table.push_str("| option | of | meaning |\n|---|---|---|\n");
    for option in spec::OPTIONS {
        let of = option.of.iter().map(|kind| format!("`{kind}`")).collect::<Vec<_>>().join(", ");
        let _ = writeln!(table, "| `{}={}` | {of} | {} |", option.name, option.value, cell(option.meaning));
    }
    table.push('\n');
    table
}
