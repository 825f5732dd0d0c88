//! Checks whether the agent's account can read the API server.

use super::DoctorFinding;
use crate::cluster::api::ApiError;
use crate::cluster::api::review::Review;

const CHECK: &str = "api_server";

/// Turns an access review into findings; `None` where no server is configured.
pub fn api(review: Option<Result<Review, ApiError>>) -> Vec<DoctorFinding> {
    let review = match review {
        None => {
            return vec![DoctorFinding::warn(
                CHECK,
                "no kubeconfig (KUBECONFIG, ~/.kube/config), and this process runs in no pod of a cluster",
                "without an API server the agent knows pods and policies from manifests only",
                "give the agent --manifests PATH, or --kubeconfig PATH",
            )];
        }
        Some(Err(error)) => {
            return vec![DoctorFinding::warn(
                CHECK,
                error.to_string(),
                "until the API server answers, drops are recorded with addresses only",
                "check that `kubectl get pods` works from here with the same kubeconfig or service account",
            )];
        }
        Some(Ok(review)) => review,
    };
    let user = review.user.as_deref().unwrap_or("an account that the server does not name");
    let found = format!("{}, version {}, as {user}", review.server, review.version);
    let mut findings = vec![DoctorFinding::ok(CHECK, found, "the API server answers")];
    for missing in &review.missing {
        let found = format!("{user} may not {} {}", missing.verbs.join(", "), missing.resource);
        let remedy = format!("add to the account's ClusterRole: {}", missing.rule());
        findings.push(DoctorFinding::warn(CHECK, found, without(&missing.resource), remedy));
    }
    findings
}

/// What records lack without a resource.
fn without(resource: &str) -> &'static str {
    match resource {
        "networkpolicies" => "no verdict: drops are recorded without the policies that explain them",
        "pods" => "no pod has a name: drops are recorded with addresses only",
        "namespaces" => "verdicts are undetermined where a rule has a namespaceSelector",
        "nodes" => "nodes have no name, and the pod network is not known: new pods' drops don't wait for their names",
        "services" => "connections to a service are recorded without its name",
        "endpointslices" => "drops to a service without endpoints have no cause of their own",
        _ => "verdicts don't name policies of this API as a possible cause",
    }
}

#[cfg(test)]
mod tests {
    use super::super::FindingStatus;
    use super::*;
    use crate::cluster::api::review::Missing;

    #[test]
    fn a_missing_right_names_the_rule_to_add() {
        let missing =
            Missing { group: String::new(), resource: "nodes".into(), verbs: vec!["list".into(), "watch".into()] };
        let review = Review {
            server: "https://10.0.0.1".into(),
            version: "v1.36.3".into(),
            user: Some("system:serviceaccount:a:b".into()),
            missing: vec![missing],
        };
        let findings = api(Some(Ok(review)));
        assert_eq!(findings[0].status, FindingStatus::Ok);
        assert_eq!(findings[1].found, "system:serviceaccount:a:b may not list, watch nodes");
        let rule = r#"add to the account's ClusterRole: {apiGroups: [""], resources: [nodes], verbs: [list, watch]}"#;
        assert_eq!(findings[1].remedy.as_deref(), Some(rule));
        assert!(findings[1].meaning.contains("pod network"));
    }
}
