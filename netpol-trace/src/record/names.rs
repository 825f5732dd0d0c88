//! The values' names, as records write them.

use super::{Cause, Direction, Family};

impl Cause {
    pub fn as_str(self) -> &'static str {
        match self {
            Cause::Policy => "policy",
            Cause::Disagrees => "disagrees",
            Cause::EnforcerUnavailable => "enforcer_unavailable",
            Cause::ServiceWithoutEndpoints => "service_without_endpoints",
            Cause::Unknown => "unknown",
            Cause::HostFirewall => "host_firewall",
            Cause::PodLocal => "pod_local",
            Cause::ConntrackInvalid => "conntrack_invalid",
            Cause::NotPolicy => "not_policy",
        }
    }
}

impl Direction {
    pub fn as_str(self) -> &'static str {
        match self {
            Direction::Ingress => "ingress",
            Direction::Egress => "egress",
        }
    }
}

impl Family {
    pub fn as_str(self) -> &'static str {
        match self {
            Family::Ipv4 => "ipv4",
            Family::Ipv6 => "ipv6",
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn as_serialized() {
        let written = |value: &dyn erased::Json| value.json();
        for cause in [Cause::Policy, Cause::EnforcerUnavailable, Cause::ServiceWithoutEndpoints, Cause::NotPolicy] {
            assert_eq!(written(&cause), format!("\"{}\"", cause.as_str()));
        }
        assert_eq!(written(&Direction::Ingress), "\"ingress\"");
        assert_eq!(written(&Family::Ipv6), "\"ipv6\"");
    }

    mod erased {
        pub trait Json {
            fn json(&self) -> String;
        }
        impl<T: serde::Serialize> Json for T {
            fn json(&self) -> String {
                serde_json::to_string(self).unwrap()
            }
        }
    }
}
