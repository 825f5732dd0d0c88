//! Pods that no policy selects, one finding for each namespace.

use std::collections::BTreeMap;

use crate::cluster::Object;
use crate::cluster::manifests::Located;
use crate::model::cluster::Pod;
use crate::policy::lint::catalogue::Lint;
use crate::policy::lint::context::{DIRECTIONS, LintContext};
use crate::policy::lint::text::list;
use crate::policy::lint::{LintFinding, Severity};

pub static LINT: Lint = Lint {
    id: "open-pods",
    severity: Severity::Info,
    title: "No policy selects these pods",
    what: "A pod that no policy selects is open to everybody and may connect everywhere.",
    fix: "Add a default deny to the namespace, and policies that allow what is needed.",
    check: |context, findings| {
        let mut open: BTreeMap<&str, Vec<&Located>> = BTreeMap::new();
        for located in &context.loaded.objects {
            let Object::Pod(pod) = &located.object else { continue };
            if !is_selected(context, pod) && !pod.host_network && !pod.is_over() {
                open.entry(&pod.namespace).or_default().push(located);
            }
        }
        for (namespace, located) in open {
            let Some(first) = located.first() else { continue };
            let pods: Vec<String> =
                located.iter().map(|l| l.object.identity()).map(|(kind, _, name)| format!("{kind} {name}")).collect();
            findings.push(LintFinding {
                id: LINT.id,
                severity: LINT.severity,
                place: first.place.clone(),
                object: format!("Namespace {namespace}"),
                message: format!("no policy selects {}: open to everybody", list(&pods, 5)),
                fix: format!("add a default deny to namespace {namespace}, and policies that allow what is needed"),
            });
        }
    },
};

/// A policy that selects a pod isolates it in one direction at least.
fn is_selected(context: &LintContext<'_>, pod: &Pod) -> bool {
    let view = match &pod.owner {
        Some(owner) if pod.template => context.index.workload(&pod.namespace, &owner.kind, &pod.name),
        _ => context.index.pod(&pod.namespace, &pod.name),
    };
    view.is_some_and(|view| DIRECTIONS.into_iter().any(|d| !view.isolated_by(d).is_empty()))
}

#[cfg(test)]
mod tests {
    use expect_test::expect;

    use crate::policy::lint::tests::check;

    #[test]
    fn hosts_and_finished_pods_are_left_out() {
        check(
            "apiVersion: v1
kind: List
items:
- {apiVersion: v1, kind: Pod, metadata: {name: web, namespace: shop}}
- {apiVersion: v1, kind: Pod, metadata: {name: host, namespace: shop}, spec: {hostNetwork: true}}
- {apiVersion: v1, kind: Pod, metadata: {name: done, namespace: shop}, status: {phase: Succeeded}}
",
            expect![[r#"
                netpol.yaml:4: info[open-pods]: no policy selects Pod web: open to everybody
                    in:  Namespace shop
                    fix: add a default deny to namespace shop, and policies that allow what is needed

                1 info (0 policies, 3 pods and workloads, 1 file)
            "#]],
        );
    }
}
