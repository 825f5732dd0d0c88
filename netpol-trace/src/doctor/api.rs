//! Whether the API server can be read, as the agent reads it.

use super::Finding;
use crate::cluster::api::ApiError;
use crate::cluster::api::review::Review;

const CHECK: &str = "api_server";

/// `review`: `None` where no server is configured.
pub fn api(review: Option<Result<Review, ApiError>>) -> Vec<Finding> {
    let review = match review {
        None => {
            return vec![Finding::warn(
                CHECK,
                "no kubeconfig (KUBECONFIG, ~/.kube/config), and this is no pod of a cluster",
                "without an API server the agent knows pods and policies from manifests only",
                "give the agent --manifests PATH, or --kubeconfig PATH",
            )];
        }
        Some(Err(error)) => {
            return vec![Finding::warn(
                CHECK,
                error.to_string(),
                "until it answers, drops are recorded with addresses only",
                "see whether `kubectl get pods` works from here with the same kubeconfig or service account",
            )];
        }
        Some(Ok(review)) => review,
    };
    let user = review.user.as_deref().unwrap_or("an account that the server does not name");
    let found = format!("{}, version {}, as {user}", review.server, review.version);
    let mut findings = vec![Finding::ok(CHECK, found, "the API server answers")];
    for missing in &review.missing {
        let found = format!("{user} may not {} {}", missing.verbs.join(", "), missing.resource);
        let remedy = format!("add to the account's ClusterRole: {}", missing.rule());
        findings.push(Finding::warn(CHECK, found, without(&missing.resource), remedy));
    }
    findings
}

/// What is lost without a resource.
fn without(resource: &str) -> &'static str {
    match resource {
        "networkpolicies" => "no verdict: drops are recorded without the policies that explain them",
        "pods" => "no pod has a name: drops are recorded with addresses only",
        "namespaces" => "rules with a namespaceSelector can't be told to match or not",
        "nodes" => "nodes have no name, and the pod network is not known: new pods' drops don't wait for their names",
        "services" => "connections to a service are recorded without its name",
        "endpointslices" => "a service without endpoints is not told from one with",
        _ => "verdicts don't say that policies of this API may be the cause",
    }
}

#[cfg(test)]
mod tests {
    use super::super::Status;
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
        assert_eq!(findings[0].status, Status::Ok);
        assert_eq!(findings[1].found, "system:serviceaccount:a:b may not list, watch nodes");
        let rule = r#"add to the account's ClusterRole: {apiGroups: [""], resources: [nodes], verbs: [list, watch]}"#;
        assert_eq!(findings[1].remedy.as_deref(), Some(rule));
        assert!(findings[1].meaning.contains("pod network"));
    }
}
