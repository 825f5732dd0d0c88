//! Describes a record in one line, for formats that have a message.

use crate::model::{Action, Cause, ChangeKind, LossStage, RunPhase, Side, VerdictResult};
use crate::record::{Body, Drop, Endpoint, PolicyChange, Record, Unanswered};

/// Longest message in bytes.
const MAX: usize = 1000;

pub fn message(record: &Record) -> String {
    let mut text = match &record.body {
        Body::Drop(drop) => of_drop(drop),
        Body::Unanswered(unanswered) => of_unanswered(unanswered),
        Body::PolicyChange(change) => of_change(change),
        Body::Loss(loss) => {
            let count = loss.count.map_or_else(|| "an unknown number of".into(), |count| count.to_string());
            let of = loss.of.as_deref().unwrap_or("packets");
            format!("{count} {of} lost at {}: {}", stage(loss.stage), loss.reason)
        }
        Body::Status(status) => {
            let phase = match status.phase {
                RunPhase::Started => "started",
                RunPhase::Running => "running",
                RunPhase::Stopped => "stopped",
            };
            let agent = &status.totals.agent;
            format!("{phase}: {} packets read, {} written, {} lost", agent.read, agent.written, agent.lost)
        }
    };
    text.truncate(text.floor_char_boundary(MAX));
    text
}

fn of_drop(drop: &Drop) -> String {
    let action = match drop.action {
        Action::Drop => "dropped",
        Action::Reject => "rejected",
        Action::Unknown => "dropped or rejected",
    };
    let flow = flow(&drop.source, &drop.destination, &drop.network.transport);
    let why = drop.verdict.as_ref().and_then(|verdict| denied([&verdict.egress, &verdict.ingress]));
    let hint = drop.hint.as_ref().map(|hint| format!("; {}", hint.message)).unwrap_or_default();
    match why {
        Some(why) if drop.cause == Cause::Policy => format!("{flow} {action}: {why}{hint}"),
        _ => format!("{flow} {action}: {}{hint}", drop.cause.as_str().replace('_', " ")),
    }
}

fn of_unanswered(unanswered: &Unanswered) -> String {
    let flow = flow(&unanswered.source, &unanswered.destination, &unanswered.network.transport);
    format!("{flow} unanswered for {} s", unanswered.waited_seconds)
}

fn of_change(change: &PolicyChange) -> String {
    let what = match change.change {
        ChangeKind::Created => "created",
        ChangeKind::Edited => "edited",
        ChangeKind::Deleted => "deleted",
        ChangeKind::NamespaceLabels => return format!("labels of namespace {} edited", change.namespace),
    };
    let policy = change.policy.as_deref().unwrap_or_default();
    let isolations = [(&change.newly_isolates, "newly isolates"), (&change.no_longer_isolates, "no longer isolates")];
    let mut text = format!("policy {}/{policy} {what}", change.namespace);
    for (isolations, what) in isolations {
        for isolation in isolations {
            text += &format!("; {what} {} pods for {}", isolation.pods, isolation.direction.as_str());
        }
    }
    text
}

fn flow(source: &Endpoint, destination: &Endpoint, transport: &str) -> String {
    let port = destination.port.map(|port| format!(":{port}")).unwrap_or_default();
    format!("{} -> {}{port} {transport}", end(source), end(destination))
}

fn end(end: &Endpoint) -> String {
    match (&end.pod, &end.node, end.names.first()) {
        (Some(pod), ..) => format!("{}/{}", pod.namespace, pod.name),
        (None, Some(node), _) => format!("node {node}"),
        (None, None, Some(name)) => format!("{name} ({})", end.ip),
        (None, None, None) => end.ip.to_string(),
    }
}

/// `ingress denied by staging/db-np and 2 more`
fn denied(sides: [&Side; 2]) -> Option<String> {
    let (direction, side) =
        ["egress", "ingress"].into_iter().zip(sides).find(|(_, side)| side.result == VerdictResult::Denied)?;
    let first = side.isolated_by.first()?;
    let more = match side.isolated_by.len() - 1 {
        0 => String::new(),
        more => format!(" and {more} more"),
    };
    Some(format!("{direction} denied by {}/{}{more}", first.namespace, first.name))
}

fn stage(stage: LossStage) -> &'static str {
    match stage {
        LossStage::KernelMap => "the kernel's map",
        LossStage::KernelRing => "the kernel's ring",
        LossStage::KernelRecursion => "BPF's recursion protection",
        LossStage::AgentQueue => "the agent's queue",
        LossStage::Sink => "a sink",
        LossStage::NotAttached => "a time without hooks",
    }
}
