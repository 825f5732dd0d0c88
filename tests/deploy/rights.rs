//! No shipped role has a right that leads to more rights, no shipped account is bound to anything else, and /metrics is never
//! open: in every overlay, component and variant of the chart, and in the documentation's commands and examples.
//!
//! The rights are those of <https://kubernetes.io/docs/concepts/security/rbac-good-practices/#privilege-escalation-risks>.

use std::collections::BTreeSet;
use std::fs;
use std::path::{Path, PathBuf};
use std::sync::OnceLock;

use anyhow::{Context, Result};
use netpol_trace_tests::cluster::programs::{HELM, KUBECTL};
use netpol_trace_tests::{cluster::built, require};
use serde_json::{Value, json};

use super::render::{self, deploy, documents};

/// The ServiceAccount whose tokens developers use.
const READER: &str = "netpol-trace-reader";
const READS: [&str; 3] = ["get", "list", "watch"];
/// Resources that must not even be readable: a GET of most of these has an effect.
const NOT_READ: [&str; 7] =
    ["secrets", "nodes/proxy", "pods/proxy", "services/proxy", "pods/exec", "pods/attach", "serviceaccounts/token"];
/// Group, resource and verb of the rights other than reading that are allowed.
const WRITES: [(&str, &str, &str); 5] = [
    ("authentication.k8s.io", "tokenreviews", "create"),
    ("authorization.k8s.io", "subjectaccessreviews", "create"),
    ("events.k8s.io", "events", "create"),
    ("events.k8s.io", "events", "patch"),
    ("", "pods/portforward", "create"),
];

fn strings<'a>(rule: &'a Value, field: &str) -> Vec<&'a str> {
    rule[field].as_array().into_iter().flatten().filter_map(Value::as_str).collect()
}

/// The part of a rule that leads to more rights.
fn escalation(rule: &Value) -> Option<String> {
    let (groups, resources, verbs) = (strings(rule, "apiGroups"), strings(rule, "resources"), strings(rule, "verbs"));
    let urls = strings(rule, "nonResourceURLs");
    if let Some(wildcard) = [&groups, &resources, &verbs, &urls].into_iter().flatten().find(|word| word.contains('*')) {
        return Some(format!("wildcard {wildcard}"));
    }
    if verbs.is_empty() || (urls.is_empty() && (groups.is_empty() || resources.is_empty())) {
        return Some("an incomplete rule".to_owned());
    }
    if !urls.is_empty() {
        return verbs.iter().find(|verb| **verb != "get").map(|verb| format!("{verb} {urls:?}"));
    }
    let named = strings(rule, "resourceNames") == [READER];
    for (group, resource) in groups.iter().flat_map(|group| resources.iter().map(move |resource| (*group, *resource))) {
        for verb in &verbs {
            let allowed = match *verb {
                "create" if resource == "serviceaccounts/token" => group.is_empty() && named,
                verb if READS.contains(&verb) => !NOT_READ.contains(&resource),
                verb => WRITES.contains(&(group, resource, verb)),
            };
            if !allowed {
                return Some(format!("{verb} {resource}"));
            }
        }
    }
    None
}

/// Each right that must not be in a role is found.
#[test]
fn each_right_that_leads_to_more_rights_is_found() {
    let rule = |group: &str, resource: &str, verb: &str| json!({ "apiGroups": [group], "resources": [resource], "verbs": [verb] });
    let admission = "admissionregistration.k8s.io";
    let certificates = "certificates.k8s.io";
    let roles = "rbac.authorization.k8s.io";
    for (group, resource, verb) in [
        ("", "serviceaccounts/token", "create"),
        ("", "users", "impersonate"),
        ("", "serviceaccounts", "impersonate"),
        (roles, "clusterroles", "bind"),
        (roles, "clusterroles", "escalate"),
        (roles, "rolebindings", "create"),
        ("", "pods/exec", "create"),
        ("", "pods/exec", "get"),
        ("", "pods/attach", "create"),
        ("", "pods/ephemeralcontainers", "patch"),
        ("", "nodes/proxy", "get"),
        ("", "secrets", "list"),
        ("", "pods", "create"),
        ("apps", "deployments", "patch"),
        ("batch", "cronjobs", "update"),
        ("", "persistentvolumes", "create"),
        ("", "namespaces", "patch"),
        (certificates, "certificatesigningrequests/approval", "update"),
        (certificates, "signers", "approve"),
        (admission, "mutatingwebhookconfigurations", "create"),
        ("*", "pods", "get"),
        ("", "*", "get"),
        ("", "pods/*", "get"),
        ("", "pods", "*"),
    ] {
        assert!(escalation(&rule(group, resource, verb)).is_some(), "{verb} {resource}");
    }
    let token = |names: &[&str]| {
        let mut rule = rule("", "serviceaccounts/token", "create");
        rule["resourceNames"] = json!(names);
        escalation(&rule)
    };
    assert_eq!(token(&[READER]), None);
    assert!(token(&[READER, "deployer"]).is_some() && token(&["deployer"]).is_some() && token(&[]).is_some());
    assert_eq!(escalation(&rule("", "pods", "list")), None);
    assert!(escalation(&json!({ "nonResourceURLs": ["*"], "verbs": ["get"] })).is_some());
}

/// Every folder with a kustomization, each component on top of the base.
fn kustomizations(kubectl: &Path) -> Result<Variants> {
    let root = deploy().join("kustomize").canonicalize()?;
    let mut folders = Vec::new();
    for parent in [root.clone(), root.join("overlays"), root.join("components")] {
        for entry in fs::read_dir(parent)? {
            folders.extend(Some(entry?.path()).filter(|path| path.join("kustomization.yaml").is_file()));
        }
    }
    folders.sort();
    let dir = tempfile::tempdir()?;
    let wrapper = dir.path().canonicalize()?;
    // kustomize takes relative paths only.
    let up: String = wrapper.components().skip(1).map(|_| "../").collect();
    let mut rendered = Vec::new();
    for folder in folders {
        let name = folder.strip_prefix(&root)?.display().to_string();
        let target = match name.starts_with("components/") {
            true => {
                let below = format!("{up}{}", root.strip_prefix("/")?.display());
                let text = format!("resources: [{below}/base]\ncomponents: [{below}/{name}]\n");
                fs::write(wrapper.join("kustomization.yaml"), text)?;
                wrapper.clone()
            }
            false => folder,
        };
        let text = render::kustomize_text(kubectl, &target).with_context(|| name.clone())?;
        rendered.push((name, documents(&text)?));
    }
    assert!(rendered.len() >= 10, "{} folders", rendered.len());
    Ok(rendered)
}

/// The chart with every combination of the values that make roles, bindings or listeners.
fn charts(helm: &Path) -> Result<Variants> {
    let group = r#"{"kind":"Group","name":"developers"}"#;
    let namespaces = format!(
        r#"tail.namespaces=[{{"name":"staging","developers":[{group}]}},{{"name":"qa-test","developers":[{group}]}}]"#
    );
    let reachable = format!("tail.reachableBy=[{group}]");
    let account = r#"[{"kind":"ServiceAccount","name":"prometheus","namespace":"monitoring"}]"#;
    let (scrapers, own_secret) = (
        format!("listen.scrapers={account}"),
        r#"podMonitor.authorization={"credentials":{"name":"own","key":"token"}}"#,
    );
    let switches: [&[&[&str]]; 4] = [
        &[&[], &["tail.enabled=true"], &["tail.enabled=true", &reachable], &["tail.enabled=true", &namespaces]],
        &[&[], &["hostNetwork=true", "tail.reachesNodes=true"]],
        &[&[], &["listen.address=\"$(POD_IP)\"", &scrapers]],
        &[&[], &["podMonitor.enabled=true"], &["podMonitor.enabled=true", own_secret]],
    ];
    let mut variants: Vec<Vec<&str>> = vec![Vec::new()];
    for switch in switches {
        variants = variants
            .iter()
            .flat_map(|values| switch.iter().map(move |more| [values.as_slice(), more].concat()))
            .collect();
    }
    let others =
        ["rbac.events=true", "networkPolicy.enabled=true", "history.enabled=true", "fullnameOverride=\"other\""];
    variants.push([&["tail.enabled=true", &namespaces, &scrapers, "podMonitor.enabled=true"], &others[..]].concat());
    let none = ["rbac.create=false", "serviceAccount.create=false", "tail.enabled=true", "podMonitor.enabled=true"];
    variants.push(none.to_vec());
    let render = |values: Vec<&str>| Ok((values.join(" "), documents(&render::helm_text(helm, &values)?)?));
    variants.into_iter().map(render).collect()
}

/// The objects of each folder and each set of values.
type Variants = Vec<(String, Vec<Value>)>;

/// All that is shipped, rendered once.
fn shipped() -> Result<&'static Variants> {
    static RENDERED: OnceLock<Result<Variants, String>> = OnceLock::new();
    let (kubectl, helm) = (built(&KUBECTL)?, built(&HELM)?);
    let render = || Ok([kustomizations(&kubectl)?, charts(&helm)?].concat());
    let rendered = RENDERED.get_or_init(|| render().map_err(|error: anyhow::Error| format!("{error:#}")));
    rendered.as_ref().map_err(|error| anyhow::anyhow!("{error}"))
}

fn kind(object: &Value) -> &str {
    object["kind"].as_str().unwrap_or_default()
}

fn name(object: &Value) -> &str {
    object["metadata"]["name"].as_str().unwrap_or_default()
}

#[test]
fn no_role_leads_to_more_rights() -> Result<()> {
    let all = require!(shipped());
    let mut found = BTreeSet::new();
    let mut rules = 0;
    for (variant, objects) in all {
        for role in objects.iter().filter(|object| ["Role", "ClusterRole"].contains(&kind(object))) {
            assert!(role.get("aggregationRule").is_none(), "{variant}: {role}");
            // This label would add the role's rules to the cluster's own roles.
            assert!(!role["metadata"]["labels"].to_string().contains("aggregate-to"), "{variant}: {role}");
            for rule in role["rules"].as_array().context("rules")? {
                rules += 1;
                found.extend(escalation(rule).map(|why| format!("{variant}: {}: {why}", name(role))));
            }
        }
    }
    assert!(rules > 500 && found.is_empty(), "{rules} rules\n{found:#?}");
    Ok(())
}

/// Bindings bind shipped roles to shipped or given accounts. The readers' account has one binding.
#[test]
fn accounts_are_bound_to_their_role_and_nothing_else() -> Result<()> {
    let all = require!(shipped());
    let mut readers = 0;
    for (variant, objects) in all {
        for binding in objects.iter().filter(|object| kind(object).ends_with("RoleBinding")) {
            let role = &binding["roleRef"];
            let (of_kind, role) =
                (role["kind"].as_str().unwrap_or_default(), role["name"].as_str().unwrap_or_default());
            // A namespace's binding comes with its account only; the role is in the cluster's manifests.
            let shipped = objects.iter().any(|object| kind(object) == of_kind && name(object) == role);
            assert!(shipped || variant == "developer-namespace", "{variant}: {binding}");
            for subject in binding["subjects"].as_array().context("subjects")? {
                let subject = subject["name"].as_str().unwrap_or_default();
                assert!(!subject.starts_with("system:"), "{variant}: {binding}");
                if subject == READER {
                    readers += 1;
                    assert_eq!(kind(binding), "RoleBinding", "{variant}");
                    assert!(role.ends_with("-drops-reader"), "{variant}: {binding}");
                }
            }
        }
        for account in objects.iter().filter(|object| kind(object) == "ServiceAccount" && name(object) == READER) {
            assert_eq!(account["automountServiceAccountToken"], false, "{variant}");
        }
        let reader_role =
            objects.iter().find(|object| name(object).ends_with("-drops-reader") && kind(object) == "ClusterRole");
        let rules = json!([{ "apiGroups": ["netpol-trace.io"], "resources": ["drops"], "verbs": ["get"] }]);
        assert!(reader_role.is_none_or(|role| role["rules"] == rules), "{variant}");
    }
    assert!(readers > 20, "{readers}");
    Ok(())
}

/// A listener that is not on loopback asks the API server, and Prometheus has the rights that it needs.
#[test]
fn metrics_are_never_open() -> Result<()> {
    let all = require!(shipped());
    let mut daemons = 0;
    for (variant, objects) in all {
        for daemon in objects.iter().filter(|object| kind(object) == "DaemonSet") {
            daemons += 1;
            let arguments = &daemon["spec"]["template"]["spec"]["containers"][0]["args"];
            let has = |start: &str| {
                arguments.as_array().into_iter().flatten().any(|a| a.as_str().is_some_and(|a| a.starts_with(start)))
            };
            assert!(has("--listen=") && has("--metrics-rbac"), "{variant}: {arguments}");
            let probes = ["startupProbe", "livenessProbe", "readinessProbe"];
            let container = &daemon["spec"]["template"]["spec"]["containers"][0];
            let paths = probes.map(|probe| container[probe]["httpGet"]["path"].as_str().unwrap_or_default());
            assert_eq!(paths, ["/healthz", "/healthz", "/readyz"], "{variant}");
        }
        for file in objects.iter().filter(|object| kind(object) == "ConfigMap") {
            assert!(!file["data"].to_string().contains("metrics-"), "{variant}: {file}");
        }
        for monitor in objects.iter().filter(|object| kind(object) == "PodMonitor") {
            let credentials = &monitor["spec"]["podMetricsEndpoints"][0]["authorization"]["credentials"];
            assert_eq!(credentials["key"], "token", "{variant}: {monitor}");
            if credentials["name"] == "own" {
                continue;
            }
            let secret = objects
                .iter()
                .find(|object| kind(object) == "Secret" && object["metadata"]["name"] == credentials["name"]);
            let secret = secret.with_context(|| format!("{variant}: no Secret {credentials}"))?;
            assert_eq!(secret["type"], "kubernetes.io/service-account-token", "{variant}");
            assert_eq!(secret["metadata"]["namespace"], monitor["metadata"]["namespace"], "{variant}");
            let account = &secret["metadata"]["annotations"]["kubernetes.io/service-account.name"];
            assert!(
                objects.iter().any(|o| kind(o) == "ServiceAccount" && o["metadata"]["name"] == *account),
                "{variant}"
            );
            let bound = objects.iter().any(|object| {
                kind(object) == "ClusterRoleBinding"
                    && object["subjects"][0]["name"] == *account
                    && object["roleRef"]["name"].as_str().is_some_and(|role| role.ends_with("-metrics"))
            });
            assert!(bound || variant.contains("rbac.create=false"), "{variant}: {account} is bound to no role");
        }
    }
    assert!(daemons > 50, "{daemons}");
    Ok(())
}

/// The chart refuses values that it can't make safe, and says why.
#[test]
fn the_chart_refuses_what_reaches_further_than_it_looks() -> Result<()> {
    let helm = require!(built(&HELM));
    let group = r#"{"kind":"Group","name":"developers"}"#;
    let namespaces = format!(r#"tail.namespaces=[{{"name":"staging","developers":[{group}]}}]"#);
    let reachable = format!("tail.reachableBy=[{group}]");
    let scrapers = r#"listen.scrapers=[{"kind":"User","name":"prometheus"}]"#;
    let twice = r#"tail.namespaces=[{"name":"staging","developers":[]},{"name":"staging","developers":[]}]"#;
    for (values, why) in [
        (vec!["tail.enabled=true", "hostNetwork=true", &namespaces], "tail.reachesNodes"),
        (vec![namespaces.as_str()], "tail.enabled=true"),
        (vec![reachable.as_str()], "tail.enabled=true"),
        (vec!["tail.enabled=true", "rbac.create=false", &namespaces], "rbac.create=false"),
        (vec!["tail.enabled=true", "rbac.create=false", &reachable], "rbac.create=false"),
        (vec!["rbac.create=false", scrapers], "rbac.create=false"),
        (vec!["tail.enabled=true", twice], "twice"),
        (vec!["tail.enabled=true", "tail.port=9477"], "listen.port"),
    ] {
        let output = render::template(&helm, &values)?;
        let stderr = String::from_utf8_lossy(&output.stderr);
        assert!(!output.status.success() && stderr.contains(why), "{values:?}: {stderr}");
    }
    let output = render::template_in(&helm, "kube-system", &["tail.enabled=true", &namespaces])?;
    let stderr = String::from_utf8_lossy(&output.stderr);
    assert!(!output.status.success() && stderr.contains("namespace of its own"), "{stderr}");
    Ok(())
}

/// Markdown files of the project.
fn pages() -> Result<Vec<PathBuf>> {
    let root = deploy().with_file_name("");
    let mut pages = Vec::new();
    for folder in [root.clone(), root.join("docs"), root.join("deploy"), root.join("deploy/collectors")] {
        for entry in fs::read_dir(folder)? {
            pages.extend(Some(entry?.path()).filter(|path| path.extension().is_some_and(|ending| ending == "md")));
        }
    }
    Ok(pages)
}

/// The code blocks of a page, fenced or indented.
fn blocks(page: &str) -> Vec<String> {
    let (mut blocks, mut block, mut fenced) = (Vec::new(), String::new(), false);
    for line in page.lines() {
        let fence = line.trim_start().starts_with("```");
        fenced ^= fence;
        let code = if fenced { Some(line) } else { line.strip_prefix("    ") };
        match code.filter(|_| !fence) {
            Some(code) => block += &format!("{code}\n"),
            None => blocks.extend(Some(std::mem::take(&mut block)).filter(|block| !block.is_empty())),
        }
    }
    blocks.extend(Some(block).filter(|block| !block.is_empty()));
    blocks
}

/// The value of `--name VALUE` or `--name=VALUE`.
fn option<'a>(words: &[&'a str], name: &str) -> Option<&'a str> {
    let at = words
        .iter()
        .position(|word| word.trim_start_matches("--").split('=').next() == Some(name) && word.starts_with("--"))?;
    words.get(at)?.split_once('=').map(|(_, value)| value).or_else(|| words.get(at + 1).copied())
}

/// The roles that the pages' YAML and commands make, and the roles that their commands bind.
#[test]
fn no_example_leads_to_more_rights() -> Result<()> {
    let sources = [deploy().join("kustomize/base/rbac.yaml"), deploy().join("kustomize/components/tail/roles.yaml")];
    let mut known = BTreeSet::new();
    for source in sources {
        known.extend(documents(&fs::read_to_string(source)?)?.iter().map(|role| name(role).to_owned()));
    }
    let mut bound = 0;
    for path in pages()? {
        let page = fs::read_to_string(&path)?;
        for block in blocks(&page) {
            if block.contains("rules:") || block.contains("apiGroups:") {
                for object in documents(&block).with_context(|| format!("{}: {block}", path.display()))? {
                    for rule in object["rules"].as_array().into_iter().flatten() {
                        assert_eq!(escalation(rule), None, "{}: {block}", path.display());
                    }
                }
            }
        }
        for line in page.lines().filter(|line| line.contains("kubectl create ")) {
            let words: Vec<&str> = line.split_whitespace().collect();
            match words.iter().position(|word| *word == "create").and_then(|at| words.get(at + 1)) {
                Some(&("rolebinding" | "clusterrolebinding")) => {
                    let role = option(&words, "clusterrole").or_else(|| option(&words, "role")).context("a role")?;
                    assert!(known.contains(role), "{}: {line}", path.display());
                    bound += 1;
                }
                Some(&("role" | "clusterrole")) => {
                    let (verbs, resources) = (option(&words, "verb").context("verbs")?, option(&words, "resource"));
                    let list = |text: &str| text.split(',').map(str::to_owned).collect::<Vec<_>>();
                    let rule =
                        json!({ "apiGroups": [""], "resources": list(resources.unwrap_or("*")), "verbs": list(verbs) });
                    assert_eq!(escalation(&rule), None, "{}: {line}", path.display());
                }
                _ => {}
            }
        }
    }
    assert!(bound >= 3, "{bound} bindings");
    Ok(())
}
