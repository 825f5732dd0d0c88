//! Shortens a record that is too long for a line.

use std::collections::BTreeMap;

use super::{Body, PolicyChange, Record, Status};
use crate::model::{Part, Str};

/// Steps of shortening, each shorter than the one before.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd)]
pub(super) enum ShortenStep {
    Labels,
    Policies,
    Texts,
    /// Bounded for any content: about 40 texts of 40 bytes, each of which takes at most six in JSON.
    Least,
}

impl ShortenStep {
    pub(super) const ALL: [ShortenStep; 4] =
        [ShortenStep::Labels, ShortenStep::Policies, ShortenStep::Texts, ShortenStep::Least];

    /// Number of policies, misses and notes that are kept.
    fn kept(self) -> usize {
        match self {
            ShortenStep::Labels => usize::MAX,
            ShortenStep::Policies => 8,
            ShortenStep::Texts | ShortenStep::Least => 1,
        }
    }

    /// Bytes of a text that are kept.
    fn text(self) -> usize {
        match self {
            ShortenStep::Labels => usize::MAX,
            ShortenStep::Policies => 300,
            ShortenStep::Texts => 100,
            ShortenStep::Least => 40,
        }
    }
}

pub(super) fn shortened(mut record: Record, step: ShortenStep) -> Record {
    let clip = |text: &mut String| text.truncate(text.floor_char_boundary(step.text()));
    let clip_shared = |text: &mut Str| *text = text[..text.floor_char_boundary(step.text())].into();
    [&mut record.cluster, &mut record.node].into_iter().flatten().for_each(clip_shared);
    let (truncated, ends, verdict, hint) = match &mut record.body {
        Body::Drop(drop) => {
            (&mut drop.truncated, [&mut drop.source, &mut drop.destination], &mut drop.verdict, &mut drop.hint)
        }
        Body::Unanswered(unanswered) => (
            &mut unanswered.truncated,
            [&mut unanswered.source, &mut unanswered.destination],
            &mut unanswered.verdict,
            &mut unanswered.hint,
        ),
        Body::Loss(_) => return record,
        Body::Status(status) => {
            short_status(status, step);
            return record;
        }
        Body::PolicyChange(change) => {
            change.truncated = true;
            short_change(change, step);
            return record;
        }
    };
    *truncated = true;
    for end in ends {
        end.names.truncate(step.kept());
        end.names.iter_mut().for_each(clip);
        let mut texts: Vec<&mut String> = Vec::new();
        if let Some(pod) = end.pod.as_mut().map(Part::to_mut) {
            pod.labels.clear();
            texts.extend([&mut pod.namespace, &mut pod.name]);
            texts.extend(pod.uid.iter_mut().chain(&mut pod.node));
            texts.extend(pod.owner.iter_mut().flat_map(|owner| [&mut owner.kind, &mut owner.name]));
        }
        // Names are cut in the last step only: a cut name can be the name of another object.
        if step == ShortenStep::Least {
            texts.into_iter().for_each(clip);
            let service = end.service.iter_mut().flat_map(|service| [&mut service.namespace, &mut service.name]);
            end.node.iter_mut().chain(service).for_each(clip_shared);
        }
    }
    if let Some(hint) = hint.as_mut().map(Part::to_mut) {
        clip(&mut hint.message);
    }
    if step == ShortenStep::Least {
        *verdict = None;
    }
    if let Some(verdict) = verdict.as_mut().map(Part::to_mut) {
        for side in [&mut verdict.egress, &mut verdict.ingress] {
            side.isolated_by.truncate(step.kept());
            side.changed.truncate(step.kept());
            side.why.iter_mut().for_each(clip);
            if let Some(nearest) = &mut side.nearest {
                nearest.misses.truncate(step.kept());
                nearest
                    .misses
                    .iter_mut()
                    .flat_map(|miss| [&mut miss.field, &mut miss.want, &mut miss.have])
                    .for_each(clip);
            }
        }
        verdict.notes.truncate(step.kept());
        verdict.notes.iter_mut().for_each(clip);
    }
    record
}

fn short_status(status: &mut Status, step: ShortenStep) {
    let clip = |text: &mut String| text.truncate(text.floor_char_boundary(step.text().min(200)));
    let kept = step.kept().min(20);
    status.hooks.truncate(kept);
    status.hooks.iter_mut().filter_map(|hook| hook.detail.as_mut()).for_each(clip);
    status.sources.truncate(kept);
    for source in &mut status.sources {
        clip(&mut source.name);
        source.error.iter_mut().for_each(clip);
        for counts in [&mut source.objects, &mut source.skipped] {
            *counts = std::mem::take(counts).into_iter().take(kept).collect();
        }
    }
    status.sinks.truncate(kept);
    for sink in &mut status.sinks {
        clip(&mut sink.name);
        sink.error.iter_mut().for_each(clip);
    }
    status.not_recorded = std::mem::take(&mut status.not_recorded).into_iter().take(kept).collect();
    if step == ShortenStep::Least {
        // A manifest can have any kind, so kinds are untrusted and can be long.
        status.not_recorded.clear();
        status
            .sources
            .iter_mut()
            .flat_map(|source| [&mut source.objects, &mut source.skipped])
            .for_each(BTreeMap::clear);
    }
}

fn short_change(change: &mut PolicyChange, step: ShortenStep) {
    let clip = |text: &mut String| text.truncate(text.floor_char_boundary(step.text()));
    let kept = step.kept().min(20);
    for rules in [&mut change.rules_removed, &mut change.rules_added] {
        rules.truncate(kept);
        rules.iter_mut().flat_map(|rule| [&mut rule.rule, &mut rule.allows]).for_each(clip);
    }
    change.fields.truncate(kept);
    change.fields.iter_mut().flat_map(|field| [&mut field.before, &mut field.after]).flatten().for_each(clip);
    for isolation in change.newly_isolates.iter_mut().chain(&mut change.no_longer_isolates) {
        isolation.workloads.truncate(kept);
        isolation.workloads.iter_mut().for_each(clip);
    }
    if step == ShortenStep::Least {
        clip(&mut change.namespace);
        [&mut change.policy, &mut change.uid].into_iter().flatten().for_each(clip);
    }
}
