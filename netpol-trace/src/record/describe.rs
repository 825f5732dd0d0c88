//! Describes records in words. Cuts and escapes all untrusted text, before it is laid out.

use std::fmt::Write as _;
use std::hash::{DefaultHasher, Hash, Hasher};

use crate::record::read::{EndpointView, MissView, ObjectRefView, RecordView, SideView, VerdictView};
use unicode_width::UnicodeWidthStr as _;

use crate::text::escape;

/// Longest name and longest sentence, in characters.
const NAME: usize = 253;
const SENTENCE: usize = 1500;
/// Policies that one line names.
const POLICIES: usize = 3;
/// Stands for the policies of a pod that the reader may not see.
const NOT_SHOWN: &str = "policies that are not shown";
/// A policy that changed less than this many seconds before is marked.
const LATELY: u64 = 600;

/// Cuts and escapes an untrusted name.
pub fn name(text: &str) -> String {
    clipped(text, NAME)
}

/// Cuts and escapes a sentence with untrusted text in it, such as a hint.
pub fn sentence(text: &str) -> String {
    clipped(text, SENTENCE)
}

fn clipped(text: &str, most: usize) -> String {
    match text.char_indices().nth(most) {
        None => escape(text).into_owned(),
        Some((end, _)) => escape(text.get(..end).unwrap_or_default()).into_owned() + "…",
    }
}

/// Names an endpoint: `staging/api-84d6c9b7f-h5k2n`, `example.com (93.184.216.34)`, `node worker-7`.
pub fn endpoint(end: &EndpointView<'_>) -> String {
    if let Some(pod) = &end.pod {
        return format!("{}/{}", name(&pod.namespace), name(&pod.name));
    }
    let ip = name(&end.ip);
    match (&*end.kind, &end.service, end.names.first()) {
        ("service", Some(service), _) => format!("svc {}/{}", name(&service.namespace), name(&service.name)),
        ("node", ..) if !end.node.is_empty() => format!("node {}", name(&end.node)),
        (_, _, Some(dns)) => format!("{} ({ip})", name(dns)),
        ("unknown", ..) => format!("{ip}?"),
        _ => ip,
    }
}

/// Names an endpoint by its workload, which all replicas share.
pub fn workload(end: &EndpointView<'_>) -> String {
    match &end.pod {
        Some(pod) => match &pod.owner {
            Some(owner) => format!("{}/{}", name(&pod.namespace), name(&owner.name)),
            None => format!("{}/{}", name(&pod.namespace), name(&pod.name)),
        },
        None => endpoint(end),
    }
}

/// Names an endpoint in fewer characters, still with its workload: `staging/api-…h5k2n`, and without the replica `staging/api-…`.
pub fn short_endpoint(end: &EndpointView<'_>, replica: bool) -> String {
    let full = endpoint(end);
    let Some(pod) = &end.pod else {
        // The name, without its address.
        return end.names.first().map_or(full, |dns| name(dns));
    };
    let short = pod.owner.as_ref().and_then(|owner| {
        // Not for a StatefulSet: `db-0` is short enough.
        let (_, last) = pod.name.strip_prefix(&*owner.name)?.strip_prefix('-')?.rsplit_once('-')?;
        let last = if replica { name(last) } else { String::new() };
        Some(format!("{}/{}-…{last}", name(&pod.namespace), name(&owner.name)))
    });
    short.filter(|short| short.width() < full.width()).unwrap_or(full)
}

/// Names the destination port and protocol: `3306/TCP`, `ICMP`.
pub fn port(record: &RecordView<'_>) -> String {
    let transport = name(&record.network.transport).to_uppercase();
    match record.destination.as_ref().and_then(|end| end.port) {
        Some(port) => format!("{port}/{transport}"),
        None => transport,
    }
}

/// Describes in full why the packet was dropped: the policies, and what the nearest rule misses.
pub fn why(record: &RecordView<'_>) -> String {
    match &record.verdict {
        Some(verdict) if &*verdict.result == "denied" => {
            let (direction, side) = verdict.deciding(&record.direction);
            let mut why = format!("{direction} by {}{}", policies(&side.isolated_by), missed(side, direction));
            if &*verdict.egress.result == "denied" && &*verdict.ingress.result == "denied" {
                let (other, side) = match direction {
                    "egress" => ("ingress", &verdict.ingress),
                    _ => ("egress", &verdict.egress),
                };
                let _ = write!(why, "; {other} too, by {}", policies(&side.isolated_by));
            }
            why
        }
        verdict => other_cause(record, verdict.as_ref()),
    }
}

/// How short the reason has to be.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Brevity {
    /// One policy by name, the number of others, one miss.
    Short,
    /// The same without the namespace, which is that of the isolated pod.
    Shortest,
}

/// Describes in short why the packet was dropped. The policy with the nearest rule stands for all.
pub fn brief(record: &RecordView<'_>, brevity: Brevity) -> String {
    let denied = record.verdict.as_ref().filter(|verdict| &*verdict.result == "denied");
    let Some(verdict) = denied else { return other_cause(record, record.verdict.as_ref()) };
    let (direction, side) = verdict.deciding(&record.direction);
    let nearest = side.nearest.as_ref();
    let of_nearest = nearest.map(|nearest| name(&nearest.policy)).filter(|policy| !policy.is_empty());
    let first = || side.isolated_by.first().map(|policy| format!("{}/{}", name(&policy.namespace), name(&policy.name)));
    let mut policy = of_nearest.or_else(first).unwrap_or_else(|| NOT_SHOWN.to_owned());
    if brevity == Brevity::Shortest {
        policy = policy.split_once('/').map(|(_, policy)| policy.to_owned()).unwrap_or(policy);
    } else {
        policy = format!("{direction} by {policy}");
    }
    let more = match side.isolated_by.len() {
        0 | 1 => String::new(),
        all => format!(" +{}", all - 1),
    };
    let missed = nearest.and_then(|nearest| {
        let first = nearest.misses.first()?;
        Some(match (nearest.rule.is_empty(), brevity) {
            (true, _) => format!(": no {direction} rule"),
            (_, Brevity::Short) => format!(": {}", miss(first)),
            (_, Brevity::Shortest) => format!(": {} | has {}", name(&first.want), name(&first.have)),
        })
    });
    format!("{policy}{more}{}", missed.unwrap_or_default())
}

fn policies(policies: &[ObjectRefView<'_>]) -> String {
    if policies.is_empty() {
        return NOT_SHOWN.to_owned();
    }
    let named = policies.iter().take(POLICIES).map(|policy| {
        let changed = policy.changed_ago_seconds.filter(|ago| *ago < LATELY);
        let changed = changed.map(|ago| format!(" (changed {ago} s before)")).unwrap_or_default();
        format!("{}/{}{changed}", name(&policy.namespace), name(&policy.name))
    });
    let mut names: Vec<String> = named.collect();
    if policies.len() > POLICIES {
        names.push(format!("{} more", policies.len() - POLICIES));
    }
    names.join(", ")
}

fn missed(side: &SideView<'_>, direction: &str) -> String {
    let Some(nearest) = &side.nearest else { return String::new() };
    if nearest.rule.is_empty() {
        return format!(": no {direction} rule");
    }
    let whose = if side.isolated_by.len() > 1 { format!("{} ", name(&nearest.policy)) } else { String::new() };
    let misses: Vec<String> = nearest.misses.iter().map(miss).collect();
    format!(": {whose}{}", misses.join("; "))
}

fn miss(miss: &MissView<'_>) -> String {
    let as_written = crate::model::Miss { field: name(&miss.field), want: name(&miss.want), have: name(&miss.have) };
    as_written.to_string()
}

/// Describes the policies that changed about the time of the drop: the enforcer may have used another version.
fn just_changed(verdict: &VerdictView<'_>) -> Option<String> {
    let mut changed = [&verdict.egress, &verdict.ingress].into_iter().flat_map(|side| &side.changed);
    let first = changed.next()?;
    let when = match first.changed_ago_seconds {
        ago @ 0.. => format!("{ago} s before"),
        ago => format!("{} s after", ago.unsigned_abs()),
    };
    let more = match changed.count() {
        0 => String::new(),
        more => format!(", and {more} more"),
    };
    let (namespace, policy, change) = (name(&first.namespace), name(&first.name), name(&first.change));
    Some(format!("policy: {namespace}/{policy} was {change} {when}{more}"))
}

/// Describes a drop that no policy denies.
fn other_cause(record: &RecordView<'_>, verdict: Option<&VerdictView<'_>>) -> String {
    let kernel = || {
        let parts = [&record.kernel.reason, &record.kernel.location].map(|part| name(part));
        parts.into_iter().filter(|part| !part.is_empty()).collect::<Vec<_>>().join(" in ")
    };
    let undetermined = verdict.filter(|verdict| &*verdict.result == "undetermined").map(|verdict| {
        let (direction, side) = verdict.deciding(&record.direction);
        format!("{direction}: {}", sentence(&side.why))
    });
    match &*record.cause {
        "policy" => match undetermined {
            Some(why) => format!("a policy, which one is not known; {why}"),
            None => verdict.and_then(just_changed).unwrap_or_else(|| format!("policy ({})", kernel())),
        },
        "disagrees" => {
            let allowed =
                verdict.into_iter().flat_map(|v| [&v.egress, &v.ingress]).filter_map(|s| s.allowed_by.as_ref());
            let rules: Vec<_> = allowed.map(|by| format!("{} {}", name(&by.policy), name(&by.rule))).collect();
            let by = if rules.is_empty() { "nothing isolates the pods".to_owned() } else { rules.join(", ") };
            format!("the policies allow it ({by}), yet it was dropped: {}", kernel())
        }
        "enforcer_unavailable" => "the enforcer does not read its queue: it has stopped or hangs".to_owned(),
        "service_without_endpoints" => {
            let service = record.destination.as_ref().and_then(|end| end.service.as_ref());
            match service {
                Some(service) => {
                    format!("no ready pod behind service {}/{}", name(&service.namespace), name(&service.name))
                }
                None => "no ready pod behind the service".to_owned(),
            }
        }
        "connection_unknown" => format!(
            "part of a connection whose opener is unknown; policies deny it in one direction only: {}",
            kernel()
        ),
        "host_firewall" => format!("a host firewall, not a policy: {}", kernel()),
        "pod_local" => format!("inside the pod's own network namespace: {}", kernel()),
        "conntrack_invalid" => format!("no connection in conntrack for this packet: {}", kernel()),
        "not_policy" => format!("not policy: {}", kernel()),
        "unknown" => match undetermined {
            Some(why) => format!("cause unknown ({}); {why}", kernel()),
            None => format!("cause unknown: {}", kernel()),
        },
        cause => format!("{}: {}", name(cause), kernel()),
    }
}

/// Describes an unanswered connection.
pub fn unanswered(record: &RecordView<'_>) -> String {
    let mut text = format!("no answer in {} s", record.waited_seconds);
    if record.delivered {
        text += ", though it reached the pod";
    }
    if record.verdict.as_ref().is_some_and(|verdict| &*verdict.result == "denied") {
        let _ = write!(text, "; {}", why(record));
    }
    text
}

/// Describes a loss: `57 packets without a record (kernel_ring: ring_full)`
pub fn loss(record: &RecordView<'_>) -> String {
    let of = if record.of.is_empty() { "packets".to_owned() } else { name(&record.of) };
    let count = match record.count {
        Some(count) if record.estimate => format!("about {count} {of}"),
        Some(count) => format!("{count} {of}"),
        None => format!("an unknown number of {of}"),
    };
    let sink = if record.sink.is_empty() { String::new() } else { format!(" at {}", name(&record.sink)) };
    format!("{count} without a record ({}: {}){sink}", name(&record.stage), name(&record.reason))
}

/// Describes a status: `agent 0.1.0 started; kfree_skb btf_tracepoint`.
pub fn status(record: &RecordView<'_>) -> String {
    let mut text = format!("agent {} {}", name(&record.version), name(&record.phase));
    let hooks: Vec<_> = record.hooks.iter().map(|hook| format!("{} {}", name(&hook.name), name(&hook.state))).collect();
    if !hooks.is_empty() && &*record.phase == "started" {
        let _ = write!(text, "; {}", hooks.join(", "));
    }
    for source in record.sources.iter().filter(|source| source.synced == Some(false)).take(POLICIES) {
        let error = source.error.as_ref().map(|error| format!(": {}", sentence(error))).unwrap_or_default();
        let _ = write!(text, "; {} out of date for {} s{error}", name(&source.name), source.age_seconds);
    }
    text
}

/// Describes a policy change: `staging/db-np edited (generation 3 to 4); newly isolates ingress of 2 pods (StatefulSet/db); removed ingress[0] …`
pub fn policy_change(record: &RecordView<'_>) -> String {
    let mut line = match &*record.policy {
        "" => format!("namespace {}: labels changed", name(&record.namespace)),
        policy => format!("{}/{} {}", name(&record.namespace), name(policy), name(&record.change)),
    };
    if let (Some(before), Some(after)) = (record.generation_before, record.generation) {
        let _ = write!(line, " (generation {before} to {after})");
    }
    for (what, pods) in [("newly isolates", &record.newly_isolates), ("no longer isolates", &record.no_longer_isolates)]
    {
        for change in pods {
            let workloads: Vec<_> = change.workloads.iter().take(POLICIES).map(|workload| name(workload)).collect();
            let more = if change.workloads.len() > POLICIES { ", …" } else { "" };
            let pods = if change.pods == 1 { "pod" } else { "pods" };
            let (direction, count) = (name(&change.direction), change.pods);
            let _ = write!(line, "; {what} {direction} of {count} {pods} ({}{more})", workloads.join(", "));
        }
    }
    for (what, rules) in [("removed", &record.rules_removed), ("added", &record.rules_added)] {
        for rule in rules.iter().take(POLICIES) {
            let _ = write!(line, "; {what} {} {}", name(&rule.rule), name(&rule.allows));
        }
        if rules.len() > POLICIES {
            let _ = write!(line, " and {} more", rules.len() - POLICIES);
        }
    }
    for field in record.fields.iter().take(POLICIES) {
        let of = |text: &Option<crate::record::read::TextView<'_>>| {
            text.as_ref().map_or_else(|| "nothing".to_owned(), |t| name(t))
        };
        let _ = write!(line, "; {} {}, was {}", name(&field.field), of(&field.after), of(&field.before));
    }
    line
}

/// Returns a hash that is equal for records with the same cause and the same fix. Such records share a hint.
pub fn hint_key(record: &RecordView<'_>) -> u64 {
    let mut hasher = DefaultHasher::new();
    let hint = record.hint.as_ref().map(|hint| &*hint.code);
    (hint, &*record.direction).hash(&mut hasher);
    for side in record.verdict.iter().flat_map(|verdict| [&verdict.egress, &verdict.ingress]) {
        if &*side.result == "denied" {
            side.isolated_by.iter().for_each(|policy| (&*policy.namespace, &*policy.name).hash(&mut hasher));
            for miss in side.nearest.iter().flat_map(|nearest| &nearest.misses) {
                (&*miss.field, &*miss.want).hash(&mut hasher);
            }
        }
    }
    for end in record.endpoints() {
        // External addresses are many, and their fix is the same.
        match &end.pod {
            Some(_) => workload(end).hash(&mut hasher),
            None => (*end.kind).hash(&mut hasher),
        }
    }
    (&*record.network.transport, record.destination.as_ref().and_then(|end| end.port)).hash(&mut hasher);
    hasher.finish()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::record::read;

    #[test]
    fn a_drop_whose_connection_has_no_known_opener_names_no_policy_as_its_cause() {
        let line = br#"{"schema":"netpol-trace/v1","id":"a/1","run":"a","seq":1,"time":"2026-11-21T04:30:11Z","kind":"drop","count":1,"cause":"connection_unknown","kernel":{"reason":"NETFILTER_DROP","location":"nft_do_chain"},"verdict":{"result":"undetermined","basis":"opener_unknown","egress":{"result":"allowed"},"ingress":{"result":"undetermined","isolated_by":[{"namespace":"prod","name":"db"}],"why":"it is not known who opened the connection"}}}"#;
        let record = read::read(line).unwrap();
        let expected = "part of a connection whose opener is unknown; policies deny it in one direction only: \
                        NETFILTER_DROP in nft_do_chain";
        assert_eq!(why(&record), expected);
        assert_eq!(brief(&record, Brevity::Shortest), expected);
    }
}
