//! Cause and direction of a named drop, and, only where there is a record to make, the evidence for them.

pub(super) mod cause;

use cause::Circumstances;
use jiff::{SignedDuration, Timestamp};

use crate::cluster::Index;
use crate::model::{Cause, Direction, Enrichment, Part, VerdictResult};
use crate::pipeline::build::Decision;
use crate::pipeline::enrich;
use crate::pipeline::enrich::Flow;
use crate::pipeline::verdict_cache::{Memo, Said, Subject};
use crate::policy;
use crate::policy::{Asked, Connection, Finding, Judgement};

/// A policy younger than this may not be enforced everywhere yet.
const GRACE: SignedDuration = SignedDuration::from_secs(10);

/// What is decided of a drop without anything that has to be put into words.
pub(super) struct Judged<'a> {
    pub cause: Cause,
    pub direction: Option<Direction>,
    /// `None`: no policy can be behind it.
    pub by: Option<By<'a>>,
}

/// What the policies say.
#[expect(clippy::large_enum_variant, reason = "it is on the stack: a drop over the budget makes no allocation")]
pub(super) enum By<'a> {
    /// In words already.
    Said(Said),
    Found(Found<'a>),
}

/// What was found anew.
pub(super) struct Found<'a> {
    connection: Connection<'a>,
    judgement: Judgement<'a>,
    /// They allow it, but changed just now.
    changing: bool,
}

/// What the judgement depends on, besides flow and circumstances.
#[derive(Clone, Copy)]
pub(super) struct Law<'a> {
    pub index: &'a Index,
    pub options: &'a policy::Options,
    pub time: Timestamp,
}

/// `said`: what was said of such a connection already.
pub(super) fn judge<'a>(flow: &Flow<'a>, about: &Circumstances<'_>, law: Law<'_>, said: Option<Said>) -> Judged<'a> {
    if let Some(cause) = cause::without_verdict(flow, about) {
        return Judged { cause, direction: None, by: None };
    }
    let changing = || policy_changing(flow, law.index, law.time);
    if let Some(said) = said {
        let denied = [&said.verdict.egress, &said.verdict.ingress].map(|side| side.result == VerdictResult::Denied);
        let (cause, _) = cause::with_verdict(said.verdict.result, about, changing);
        let direction = cause::direction(flow, denied, about.node);
        return Judged { cause, direction, by: Some(By::Said(said)) };
    }
    let connection = flow.connection(law.time);
    let judgement = policy::evaluate(law.index, &connection, law.options);
    let (cause, changing) = cause::with_verdict(policy::result(judgement.finding()), about, changing);
    let direction = cause::direction(flow, judgement.denied(), about.node);
    Judged { cause, direction, by: Some(By::Found(Found { connection, judgement, changing })) }
}

impl Judged<'_> {
    /// What the record says of it. `stale`: the sources that are not in sync; `memo`: where to keep it for the next packet.
    pub fn evidence(
        self,
        flow: &Flow<'_>,
        about: &Circumstances<'_>,
        law: Law<'_>,
        stale: &[String],
        memo: Option<(&mut Memo, Subject)>,
    ) -> Decision {
        let Judged { cause, direction, by } = self;
        let said = by.map(|by| match by {
            By::Said(said) => said,
            By::Found(found) => {
                let said = found.said(flow, cause, law);
                let holds = found.holds(cause).zip(memo);
                if let Some((times, (memo, subject))) = holds {
                    memo.put(subject, law.index, times, &said);
                }
                said
            }
        });
        let (mut verdict, hint) = said.map(|said| (said.verdict, said.hint)).unzip();
        if let Some(verdict) = &mut verdict {
            enrich::qualify(verdict, flow, stale);
        }
        Decision {
            cause,
            action: cause::action(cause, about),
            direction,
            verdict,
            hint: hint.flatten().filter(|_| cause == Cause::Policy),
            enrichment: enrichment(flow, stale),
        }
    }
}

impl Found<'_> {
    fn said(&self, flow: &Flow<'_>, cause: Cause, Law { index, options, .. }: Law<'_>) -> Said {
        let Found { connection, judgement, changing } = self;
        let mut report = policy::report(index, connection, options, judgement);
        if *changing {
            let verdict = &mut report.verdict;
            verdict.basis = "policy_changing".into();
            policy::name_changes(verdict, index, connection, GRACE);
        }
        // The usual mistake behind a denied connection.
        let hint = (cause == Cause::Policy).then(|| {
            let asked = Asked {
                service: flow.destination.service.as_ref(),
                original: flow.destination.original.as_ref(),
                source_port: flow.source.port,
            };
            policy::hint_of(index, connection, options, judgement, &report, asked)
        });
        Said { verdict: Part::new(report.verdict), hint: hint.flatten().map(Part::new) }
    }

    /// When the same would be said of the same connection while the index stays as it is; `None`: that is not known.
    fn holds(&self, cause: Cause) -> Option<(Timestamp, Timestamp)> {
        let plain = cause == Cause::Policy && matches!(self.judgement.finding(), Finding::Denied);
        plain.then(|| self.judgement.holds_at(self.connection.at?)).flatten()
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

/// Whether what decides about either end changed within [`GRACE`] of `time`, by what the agent saw or the server tells.
fn policy_changing(flow: &Flow<'_>, index: &Index, time: Timestamp) -> bool {
    let near = |changed: Timestamp| time.duration_since(changed).abs() <= GRACE;
    [flow.source.pod(), flow.destination.pod()].into_iter().flatten().any(|view| {
        index.changed_near(view.pod, time, GRACE)
            || view.namespace.policies().filter_map(|policy| policy.changed).any(near)
    })
}
