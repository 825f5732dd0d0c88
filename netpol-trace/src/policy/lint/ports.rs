//! Ports: the service's for the pod's, names that nobody has, protocols left out, protocols with more ports.

use crate::cluster::index::PodView;
use crate::model::cluster::{Direction, PortMatch, PortSpec, Protocol, Rule, TargetPort};
use crate::policy::lint::Finding;
use crate::policy::lint::context::{Context, PolicyContext, list};

pub fn check(context: &Context<'_>, at: &PolicyContext<'_>, findings: &mut Vec<Finding>) {
    for direction in [Direction::Ingress, Direction::Egress] {
        for (path, rule) in at.rules(direction) {
            let Some(targets) = destinations(context, at, direction, rule) else { continue };
            for (i, port) in rule.ports.iter().flatten().enumerate() {
                let path = format!("{path}.ports[{i}]");
                named_port(at, &path, port, &targets, findings);
                if !protocol_default(at, &path, port, rule, &targets, findings) {
                    service_port(at, &path, port, rule, &targets, findings);
                }
                dynamic_ports(at, &path, port, rule, findings);
            }
        }
    }
}

/// The pods whose ports a rule names: the subjects of ingress, the peers of egress. `None` when anything else may be
/// meant; empty when the input doesn't show them.
fn destinations<'c>(
    context: &'c Context<'_>,
    at: &PolicyContext<'_>,
    direction: Direction,
    rule: &Rule,
) -> Option<Vec<PodView<'c>>> {
    if direction == Direction::Ingress {
        return Some(context.subjects(at.policy));
    }
    let mut pods = Vec::new();
    for peer in rule.peers.as_deref().unwrap_or_default() {
        match context.peers(at.policy, peer) {
            Some(peers) if peers.known => pods.extend(peers.pods.into_iter().filter(|view| !view.pod.host_network)),
            _ => return Some(Vec::new()),
        }
    }
    Some(pods)
}

fn number(port: &PortMatch) -> Option<u16> {
    match port.port {
        PortSpec::Range(first, last) if first == last => Some(first),
        _ => None,
    }
}

/// Whether any pod says that it listens on `port`.
fn declared(pods: &[PodView<'_>], protocol: Protocol, port: u16) -> bool {
    pods.iter().any(|view| view.pod.ports.iter().any(|p| p.protocol == protocol && p.port == port))
}

fn declared_ports(pods: &[PodView<'_>]) -> String {
    let mut shown: Vec<String> = Vec::new();
    for port in pods.iter().flat_map(|view| view.pod.ports.iter()) {
        let name = port.name.as_ref().map(|name| format!("{name}=")).unwrap_or_default();
        let text = format!("{name}{}/{}", port.port, port.protocol);
        if !shown.contains(&text) {
            shown.push(text);
        }
    }
    if shown.is_empty() { "no ports".to_owned() } else { list(&shown, 5) }
}

fn named_port(at: &PolicyContext<'_>, path: &str, port: &PortMatch, pods: &[PodView<'_>], findings: &mut Vec<Finding>) {
    let PortSpec::Named(name) = &port.port else { return };
    let mut all = pods.iter().flat_map(|view| view.pod.ports.iter());
    if pods.is_empty() || all.any(|p| p.name.as_ref() == Some(name) && p.protocol == port.protocol && !p.sidecar) {
        return;
    }
    let mut all = pods.iter().flat_map(|view| view.pod.ports.iter());
    let (message, fix) = if let Some(sidecar) =
        all.find(|p| p.name.as_ref() == Some(name) && p.protocol == port.protocol)
    {
        (
            format!(
                "only a sidecar (an init container with restartPolicy Always) declares port {name}: older plugins don't look there"
            ),
            format!("write the number: {}", sidecar.port),
        )
    } else {
        let mut all = pods.iter().flat_map(|view| view.pod.ports.iter());
        let other = all.find(|p| p.name.as_ref() == Some(name));
        let fix = match other {
            Some(other) => {
                format!("{name} is {}/{} there: write `protocol: {}`", other.port, other.protocol, other.protocol)
            }
            None => "write a name that the pods declare, or the number".to_owned(),
        };
        (format!("no destination pod has a port {name}/{}: it has {}", port.protocol, declared_ports(pods)), fix)
    };
    findings.push(at.finding("named-port", &format!("{path}.port"), message, fix));
}

/// proto-default: no protocol, so TCP, where the port is another protocol's.
fn protocol_default(
    at: &PolicyContext<'_>,
    path: &str,
    port: &PortMatch,
    rule: &Rule,
    pods: &[PodView<'_>],
    findings: &mut Vec<Finding>,
) -> bool {
    let Some(number) = number(port).filter(|_| port.protocol_defaulted) else { return false };
    let listed = |protocol| rule.ports.iter().flatten().any(|p| p.protocol == protocol && covers(p, number));
    let other = [Protocol::Udp, Protocol::Sctp].into_iter().find(|p| declared(pods, *p, number));
    let dns = number == 53 && !listed(Protocol::Udp);
    let protocol = match other {
        Some(protocol) if !declared(pods, Protocol::Tcp, number) && !listed(protocol) => protocol,
        _ if dns => Protocol::Udp,
        _ => return false,
    };
    let why =
        if dns { "DNS asks over UDP first".to_owned() } else { format!("the pods listen on {number}/{protocol}") };
    let message = format!("port {number} without protocol is {number}/TCP, and {why}");
    let fix = if dns {
        "list both:\n- {port: 53, protocol: UDP}\n- {port: 53, protocol: TCP}".to_owned()
    } else {
        format!("write `protocol: {protocol}`")
    };
    findings.push(at.finding("proto-default", path, message, fix));
    true
}

pub fn covers(port: &PortMatch, number: u16) -> bool {
    match port.port {
        PortSpec::Any => true,
        PortSpec::Range(first, last) => (first..=last).contains(&number),
        PortSpec::Named(_) => false,
    }
}

/// svc-port and dns-pod-port: the rule's number is a service's port, and the pods behind it listen on another.
fn service_port(
    at: &PolicyContext<'_>,
    path: &str,
    port: &PortMatch,
    rule: &Rule,
    pods: &[PodView<'_>],
    findings: &mut Vec<Finding>,
) {
    let Some(number) = number(port).filter(|number| !declared(pods, port.protocol, *number)) else { return };
    for view in pods {
        for service in view.namespace.services() {
            let selected =
                service.selector.as_ref().is_some_and(|s| s.iter().all(|(k, v)| view.pod.labels.get(k) == Some(v)));
            let Some(of) = service.ports.iter().find(|p| p.port == number && p.protocol == port.protocol) else {
                continue;
            };
            let target = match &of.target {
                TargetPort::Number(target) => Some(*target),
                TargetPort::Name(name) => {
                    let mut ports = view.pod.ports.iter().filter(|p| p.protocol == port.protocol);
                    ports.find(|p| p.name.as_ref() == Some(name)).map(|p| p.port)
                }
            };
            // Another service may forward this very number, and another rule item may list the target.
            let direct = view.namespace.services().any(|s| {
                let targets = |p: &crate::model::cluster::ServicePort| p.target == TargetPort::Number(number);
                s.ports.iter().any(targets)
            });
            let Some(target) = target.filter(|target| selected && *target != number && !direct) else { continue };
            if rule.ports.iter().flatten().any(|p| p.protocol == port.protocol && covers(p, target)) {
                continue;
            }
            let id = if number == 53 { "dns-pod-port" } else { "svc-port" };
            let message = format!(
                "{number} is the port of service {}/{}; its pods ({}/{}) listen on {target}, and policy sees the pod's port",
                service.namespace, service.name, view.pod.namespace, view.pod.name
            );
            findings.push(at.finding(id, &format!("{path}.port"), message, format!("write `port: {target}`")));
            return;
        }
    }
}

/// FTP and portmapper: a first port, then others.
fn dynamic_ports(at: &PolicyContext<'_>, path: &str, port: &PortMatch, rule: &Rule, findings: &mut Vec<Finding>) {
    let (protocol, data) = match number(port) {
        Some(21) if port.protocol == Protocol::Tcp => (
            "FTP",
            "passive mode's data ports (in active mode the server connects back: an ingress rule from its port 20)",
        ),
        Some(111) => ("the RPC portmapper (NFSv3)", "the ports that it hands out (mountd, nlockmgr, statd)"),
        _ => return,
    };
    let range =
        |p: &PortMatch| matches!(p.port, PortSpec::Range(first, last) if last > first) || p.port == PortSpec::Any;
    if rule.ports.iter().flatten().any(range) {
        return;
    }
    let message = format!("{protocol} opens further connections, to {data}: this rule allows only the first");
    let fix = "fix the data ports on the server and list them: `{port: 30000, endPort: 30100}`; or use SFTP, NFSv4"
        .to_owned();
    findings.push(at.finding("dynamic-ports", &format!("{path}.port"), message, fix));
}
