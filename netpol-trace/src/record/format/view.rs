//! EcsKind drops and unanswered connections have in common, for formats that don't tell them apart.

use std::borrow::Cow;

use jiff::Timestamp;

use crate::model::{Direction, Hint, PodRef, PolicyRef, Side, Verdict, VerdictResult};
use crate::record::{Body, Endpoint, Network};

pub struct FlowView<'a> {
    pub source: &'a Endpoint,
    pub destination: &'a Endpoint,
    pub network: &'a Network,
    pub direction: Option<Direction>,
    pub verdict: Option<&'a Verdict>,
    pub hint: Option<&'a Hint>,
    pub device: Option<&'a str>,
    pub packets: u64,
    pub bytes: Option<u64>,
    pub last_time: Option<Timestamp>,
    /// The cause, or for unanswered connections the basis.
    pub why: Cow<'a, str>,
}

/// Returns the flow of a record; `None` for records about the agent or a policy.
pub fn view(body: &Body) -> Option<FlowView<'_>> {
    match body {
        Body::Drop(drop) => Some(FlowView {
            source: &drop.source,
            destination: &drop.destination,
            network: &drop.network,
            direction: drop.direction,
            verdict: drop.verdict.as_deref(),
            hint: drop.hint.as_deref(),
            device: drop.kernel.device.as_deref(),
            packets: drop.count,
            bytes: Some(drop.bytes),
            last_time: drop.last_time,
            why: drop.cause.as_str().into(),
        }),
        Body::Unanswered(unanswered) => Some(FlowView {
            source: &unanswered.source,
            destination: &unanswered.destination,
            network: &unanswered.network,
            direction: Some(unanswered.direction),
            verdict: unanswered.verdict.as_deref(),
            hint: unanswered.hint.as_deref(),
            device: unanswered.device.as_deref(),
            packets: unanswered.packets,
            bytes: None,
            last_time: None,
            why: unanswered.basis.as_ref().into(),
        }),
        Body::PolicyChange(_) | Body::Loss(_) | Body::Status(_) => None,
    }
}

impl<'a> FlowView<'a> {
    fn side(&self) -> Option<&'a Side> {
        let verdict = self.verdict?;
        let of = |direction| match direction {
            Direction::Egress => &verdict.egress,
            Direction::Ingress => &verdict.ingress,
        };
        match self.direction {
            Some(direction) => Some(of(direction)),
            None => [&verdict.egress, &verdict.ingress].into_iter().find(|side| side.result == VerdictResult::Denied),
        }
    }

    /// Returns the policy for formats that have one: that of the nearest rule, else the first that isolates.
    pub fn policy(&self) -> Option<&'a PolicyRef> {
        let side = self.side().filter(|side| side.result == VerdictResult::Denied)?;
        let nearest = side.nearest.as_ref().and_then(|nearest| nearest.policy.split_once('/'));
        let named = |policy: &&PolicyRef| nearest == Some((&*policy.namespace, &*policy.name));
        side.isolated_by.iter().find(named).or(side.isolated_by.first())
    }

    /// Returns the nearest rule of [`FlowView::policy`].
    pub fn rule(&self) -> Option<&'a str> {
        self.side()?.nearest.as_ref()?.rule.as_deref()
    }

    /// Returns the pod for formats that have one: the pod whose policy denied, else the destination, else the source.
    pub fn subject(&self) -> Option<&'a PodRef> {
        let (source, destination) = (self.source.pod.as_deref(), self.destination.pod.as_deref());
        match self.direction {
            Some(Direction::Egress) => source,
            Some(Direction::Ingress) => destination,
            None => destination.or(source),
        }
    }

    /// Returns the hint's message, else the cause.
    pub fn reason(&self) -> &str {
        self.hint.map_or(&self.why, |hint| &hint.message)
    }
}
