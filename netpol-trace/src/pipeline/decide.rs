//! Decides about a named drop: cause, direction, action, verdict and hint.
//!
//! [`decide`] finds cause and direction without any text. [`Decision::render`] puts the evidence into words, for drops that get a
//! record.

mod action;
mod cause;
mod context;

use std::borrow::Cow;

use jiff::{SignedDuration, Timestamp};

use super::enrich::{self, Flow};
use super::verdict_cache::{CacheKey, RenderedVerdict, VerdictCache};
use crate::cluster::Index;
use crate::model::{Action, Basis, Cause, Direction, Enrichment, Hint, Part, Verdict, VerdictResult};
use crate::policy::{self, ClientRequest, Connection, PolicyEvaluation, PolicyResult};

pub(super) use context::{DropContext, NodeContext};

/// A policy that changed less than this before a drop may not be enforced everywhere yet.
const GRACE: SignedDuration = SignedDuration::from_secs(10);

/// What a policy evaluation depends on besides the flow.
#[derive(Clone, Copy)]
pub(super) struct EvalContext<'a> {
    pub index: &'a Index,
    pub options: &'a policy::CniOptions,
    pub time: Timestamp,
}

/// What was decided about a drop, before anything is put into words.
pub(super) struct Decision<'a> {
    pub cause: Cause,
    pub direction: Option<Direction>,
    /// Nothing shows who opened the connection, and the decision is about one that the packet's destination opened.
    reversed: bool,
    /// `None` where no policy can have made the drop.
    evidence: Option<Evidence<'a>>,
}

/// The verdict behind a decision.
#[expect(clippy::large_enum_variant, reason = "it is on the stack: a drop over the budget makes no allocation")]
enum Evidence<'a> {
    Cached(RenderedVerdict),
    Evaluated(Evaluation<'a>),
}

/// A verdict that is not yet in words.
struct Evaluation<'a> {
    connection: Connection<'a>,
    evaluation: PolicyEvaluation<'a>,
    /// The verdict if the other side opened the connection; `None` where the opener is known.
    other_way: Option<VerdictResult>,
    /// The policies allow the connection, but changed just now.
    changing: bool,
}

/// A decision in the words of the record.
#[derive(Debug)]
pub(super) struct RenderedDecision {
    pub cause: Cause,
    pub action: Action,
    pub direction: Option<Direction>,
    pub verdict: Option<Part<Verdict>>,
    pub hint: Option<Part<Hint>>,
    pub enrichment: Enrichment,
}

/// Decides about a drop. `cached` is the cached verdict of its connection.
pub(super) fn decide<'a>(
    flow: &Flow<'a>,
    context: &DropContext<'_>,
    eval: EvalContext<'_>,
    cached: Option<RenderedVerdict>,
) -> Decision<'a> {
    if let Some(cause) = cause::without_verdict(flow, context) {
        return Decision { cause, direction: None, reversed: false, evidence: None };
    }
    let changing = || policy_changing(flow, eval.index, eval.time);
    if let Some(rendered) = cached {
        let sides = [&rendered.verdict.egress, &rendered.verdict.ingress];
        let denied = sides.map(|side| side.result == VerdictResult::Denied);
        let (cause, _) = cause::with_verdict(rendered.verdict.result, context, changing);
        let direction = cause::direction(flow, denied, context.node);
        return Decision { cause, direction, reversed: false, evidence: Some(Evidence::Cached(rendered)) };
    }
    if !flow.opener_known {
        return decide_both_ways(flow, context, eval, changing);
    }
    let connection = flow.connection(eval.time);
    let evaluation = policy::evaluate(eval.index, &connection, eval.options);
    let (cause, changing) = cause::with_verdict(policy::verdict_result(evaluation.result()), context, changing);
    let direction = cause::direction(flow, evaluation.denied(), context.node);
    let evaluation = Evaluation { connection, evaluation, other_way: None, changing };
    Decision { cause, direction, reversed: false, evidence: Some(Evidence::Evaluated(evaluation)) }
}

/// Decides about a packet of a connection whose opener is unknown: evaluates the policies for both directions.
///
/// A drop is the policies' if they deny both. If they deny only one, the packet may be part of an allowed connection.
fn decide_both_ways<'a>(
    flow: &Flow<'a>,
    context: &DropContext<'_>,
    eval: EvalContext<'_>,
    changing: impl FnOnce() -> bool,
) -> Decision<'a> {
    let reversed = flow.reversed();
    let connections = [flow.connection(eval.time), reversed.connection(eval.time)];
    let [forward, backward] =
        connections.each_ref().map(|connection| policy::evaluate(eval.index, connection, eval.options));
    let results = [&forward, &backward].map(|evaluation| policy::verdict_result(evaluation.result()));
    let denied = results.map(|result| result == VerdictResult::Denied);
    let result = match results {
        [VerdictResult::Allowed, VerdictResult::Allowed] => VerdictResult::Allowed,
        _ if denied != [false, false] => VerdictResult::Denied,
        _ => VerdictResult::Undetermined,
    };
    let (mut cause, changing) = cause::with_verdict(result, context, changing);
    let one_way = denied != [true, true] && (denied != [false, false] || results.contains(&VerdictResult::Allowed));
    if cause == Cause::Policy && !changing && one_way {
        cause = Cause::ConnectionUnknown;
    }
    let is_reply = cause == Cause::Policy && denied == [true, true] && flow.ports_suggest_reply();
    let [connection, other] = connections;
    let (flow, connection, evaluation, other_way) =
        if is_reply { (&reversed, other, backward, results[0]) } else { (flow, connection, forward, results[1]) };
    let direction = match cause {
        Cause::ConnectionUnknown => None,
        _ => cause::direction(flow, evaluation.denied(), context.node),
    };
    let evaluation = Evaluation { connection, evaluation, other_way: Some(other_way), changing };
    Decision { cause, direction, reversed: is_reply, evidence: Some(Evidence::Evaluated(evaluation)) }
}

impl Decision<'_> {
    /// Returns the flow that the decision is about: `flow`, or the same seen from the other endpoint.
    pub fn flow<'f, 'a>(&self, flow: &'f Flow<'a>) -> Cow<'f, Flow<'a>> {
        if self.reversed { Cow::Owned(flow.reversed()) } else { Cow::Borrowed(flow) }
    }

    /// Puts the decision into words. `stale` names the sources that are not in sync; `cache` keeps the verdict for the next packet.
    pub fn render(
        self,
        flow: &Flow<'_>,
        context: &DropContext<'_>,
        eval: EvalContext<'_>,
        stale: &[String],
        cache: Option<(&mut VerdictCache, CacheKey)>,
    ) -> RenderedDecision {
        let Decision { cause, direction, evidence, .. } = self;
        let rendered = evidence.map(|evidence| match evidence {
            Evidence::Cached(rendered) => rendered,
            Evidence::Evaluated(evaluation) => {
                let rendered = evaluation.render(flow, cause, eval);
                if let Some((times, (cache, key))) = evaluation.holds(cause).zip(cache) {
                    cache.put(key, eval.index, times, &rendered);
                }
                rendered
            }
        });
        let (mut verdict, hint) = rendered.map(|rendered| (rendered.verdict, rendered.hint)).unzip();
        if let Some(verdict) = &mut verdict {
            enrich::qualify(verdict, flow, stale);
        }
        RenderedDecision {
            cause,
            action: action::action(cause, context),
            direction,
            verdict,
            hint: hint.flatten().filter(|_| cause == Cause::Policy),
            enrichment: enrichment(flow, stale),
        }
    }
}

impl Evaluation<'_> {
    fn render(
        &self,
        flow: &Flow<'_>,
        cause: Cause,
        EvalContext { index, options, .. }: EvalContext<'_>,
    ) -> RenderedVerdict {
        let Evaluation { connection, evaluation, other_way, changing } = self;
        let mut explained = policy::explain(index, connection, options, evaluation);
        if *changing {
            let verdict = &mut explained.verdict;
            verdict.basis = Basis::PolicyChanging.into();
            policy::name_changes(verdict, index, connection, GRACE);
        }
        if let Some(other_way) = other_way {
            name_unknown_opener(&mut explained.verdict, flow, cause, *other_way);
        }
        let hint = (cause == Cause::Policy && flow.opener_is_likely()).then(|| {
            let request = ClientRequest {
                service: flow.destination.service.as_ref(),
                original: flow.destination.original.as_ref(),
                source_port: flow.source.port,
            };
            policy::hint_of(index, connection, options, evaluation, &explained, request)
        });
        RenderedVerdict { verdict: Part::new(explained.verdict), hint: hint.flatten().map(Part::new) }
    }

    /// Returns the times between which the same connection gets the same verdict in this version of the index; `None` if unknown.
    fn holds(&self, cause: Cause) -> Option<(Timestamp, Timestamp)> {
        let plain = cause == Cause::Policy
            && self.other_way.is_none()
            && matches!(self.evaluation.result(), PolicyResult::Denied);
        plain.then(|| self.evaluation.holds_at(self.connection.at?)).flatten()
    }
}

/// States in a verdict that the opener is unknown, and what the policies say if the other side opened the connection.
fn name_unknown_opener(verdict: &mut Verdict, flow: &Flow<'_>, cause: Cause, other_way: VerdictResult) {
    let either = format!("{} or {}", flow.source.address(), flow.destination.address());
    if verdict.result == VerdictResult::Denied && other_way == VerdictResult::Denied {
        verdict
            .notes
            .push(format!("nothing shows whether {either} opened the connection; the policies deny it either way"));
        return;
    }
    verdict.notes.push(format!(
        "nothing shows whether {either} opened the connection: {} if the first did, {} if the second did",
        verdict.result.as_str(),
        other_way.as_str()
    ));
    if cause == Cause::ConnectionUnknown {
        verdict.result = VerdictResult::Undetermined;
        verdict.basis = Basis::OpenerUnknown.into();
        for side in [&mut verdict.egress, &mut verdict.ingress] {
            if side.result == VerdictResult::Denied {
                side.result = VerdictResult::Undetermined;
                side.why = Some("it is not known who opened the connection".into());
            }
        }
    }
}

fn enrichment(flow: &Flow<'_>, stale: &[String]) -> Enrichment {
    if !stale.is_empty() {
        Enrichment::Stale
    } else if flow.may_be_named_later() {
        Enrichment::Timeout
    } else {
        Enrichment::Complete
    }
}

/// Returns true if a policy of either endpoint's namespace, or labels that it selects by, changed within [`GRACE`] of `time`.
fn policy_changing(flow: &Flow<'_>, index: &Index, time: Timestamp) -> bool {
    let near = |changed: Timestamp| time.duration_since(changed).abs() <= GRACE;
    [flow.source.pod(), flow.destination.pod()].into_iter().flatten().any(|view| {
        index.changed_near(view.pod, time, GRACE)
            || view.namespace.policies().filter_map(|policy| policy.changed).any(near)
    })
}
