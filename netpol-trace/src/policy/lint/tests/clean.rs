//! Sets of policies as teams run them: no warnings.

use crate::policy::lint::tests::*;

/// A rendered chart: no namespaces, workloads instead of pods, a default deny that the other policies complete.
#[test]
fn a_rendered_chart() {
    check(
        include_str!("chart.yaml"),
        expect![[r#"
            netpol.yaml:94: info[open-pods]: no policy selects Job shop-migrate: open to everybody
                in:  Namespace default
                fix: add a default deny to namespace default, and policies that allow what is needed

            1 info (2 policies, 3 pods and workloads, 1 file)
        "#]],
    );
}

/// A platform team's folder: several namespaces, a monitoring namespace, an ingress controller, DNS for all.
#[test]
fn a_platform_folder() {
    assert_eq!(ids(include_str!("platform.yaml")), [""; 0]);
    check(
        include_str!("platform.yaml"),
        expect![[r#"
            netpol.yaml:9: info[open-pods]: no policy selects Pod coredns-1: open to everybody
                in:  Namespace kube-system
                fix: add a default deny to namespace kube-system, and policies that allow what is needed

            1 info (7 policies, 5 pods and workloads, 1 file)
        "#]],
    );
}
