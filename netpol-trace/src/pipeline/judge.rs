//! Cause and direction of a named drop, and, only where there is a record to make, the evidence for them.

use jiff::{SignedDuration, Timestamp};

use crate::cause::{self, Circumstances};
use crate::cluster::Index;
use crate::enrich::{self, Flow};
use crate::record::build::Decision;
use crate::record::{Cause, Direction, Enrichment};
use crate::verdict::{self, Asked, Connection, Judgement};

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
pub(super) struct By<'a> {
    connection: Connection<'a>,
    judgement: Judgement<'a>,
    /// They allow it, but changed just now.
    changing: bool,
}

pub(super) fn judge<'a>(
    flow: &Flow<'a>,
    about: &Circumstances<'_>,
    index: &Index,
    options: &verdict::Options,
    time: Timestamp,
) -> Judged<'a> {
    if let Some(cause) = cause::without_verdict(flow, about) {
        return Judged { cause, direction: None, by: None };
    }
    let connection = flow.connection(time);
    let judgement = verdict::evaluate(index, &connection, options);
    let (cause, changing) =
        cause::with_verdict(verdict::result(judgement.finding()), about, || policy_changing(flow, index, time));
    let direction = cause::direction(flow, &judgement, about.node);
    Judged { cause, direction, by: Some(By { connection, judgement, changing }) }
}

impl Judged<'_> {
    /// What the record says of it; `stale`: the sources that are not in sync.
    pub fn evidence(
        self,
        flow: &Flow<'_>,
        about: &Circumstances<'_>,
        index: &Index,
        options: &verdict::Options,
        stale: &[String],
    ) -> Decision {
        let Judged { cause, direction, by } = self;
        let (mut verdict, mut hint) = (None, None);
        if let Some(By { connection, judgement, changing }) = by {
            let mut said = verdict::report(index, &connection, options, &judgement);
            if changing {
                said.basis = "policy_changing".into();
                verdict::name_changes(&mut said, index, &connection, GRACE);
            }
            enrich::qualify(&mut said, flow, stale);
            verdict = Some(said);
            // The usual mistake behind a denied connection.
            if cause == Cause::Policy {
                let asked = Asked {
                    service: flow.destination.service.as_ref(),
                    original: flow.destination.original.as_ref(),
                    source_port: flow.source.port,
                };
                hint = verdict::hint_of(index, &connection, options, &judgement, asked);
            }
        }
        let enrichment = enrichment(flow, stale);
        Decision { cause, action: cause::action(cause, about), direction, verdict, hint, enrichment }
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
