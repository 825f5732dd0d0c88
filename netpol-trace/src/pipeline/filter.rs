//! The re-readable settings of the config file: which drops get a record, and what of pods and DNS names goes into it.

use std::net::IpAddr;
use std::sync::Arc;

use ipnet::IpNet;
use jiff::Timestamp;

use crate::model::{Cause, ConfigState};
use crate::pipeline::enrich::Flow;
use crate::record::{Body, Endpoint};

/// A pattern in which `*` stands for any run of characters.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Pattern(String);

impl Pattern {
    pub fn new(text: &str) -> Pattern {
        Pattern(text.to_owned())
    }

    pub fn matches(&self, text: &str) -> bool {
        let Some((first, rest)) = self.0.split_once('*') else { return self.0 == text };
        let Some(mut text) = text.strip_prefix(first) else { return false };
        let (middle, last) = rest.rsplit_once('*').unwrap_or(("", rest));
        // Matching each piece as early as possible leaves the most text for the pieces after it.
        for piece in middle.split('*').filter(|piece| !piece.is_empty()) {
            let Some(at) = text.find(piece) else { return false };
            text = &text[at + piece.len()..];
        }
        text.ends_with(last)
    }
}

/// Criteria for drops; `None` where a list is absent.
#[derive(Debug, Clone, Default, PartialEq)]
pub struct DropCriteria {
    /// Namespaces of either endpoint's pod or of the service that the client addressed.
    pub namespaces: Option<Vec<Pattern>>,
    pub causes: Option<Vec<Cause>>,
    /// Ranges of either endpoint's address or of the address that the client used.
    pub cidrs: Option<Vec<IpNet>>,
}

/// The parts of a connection that selections compare.
#[derive(Debug, Default)]
pub struct EndpointPair<'a> {
    namespaces: [Option<&'a str>; 3],
    addresses: [Option<IpAddr>; 3],
}

impl<'a> EndpointPair<'a> {
    pub fn of_flow(flow: &'a Flow<'_>) -> EndpointPair<'a> {
        let namespace = |end: &'a crate::pipeline::enrich::FlowEndpoint<'_>| end.pod().map(|view| &*view.pod.namespace);
        EndpointPair {
            namespaces: [
                namespace(&flow.source),
                namespace(&flow.destination),
                flow.destination.service.as_ref().map(|service| &*service.namespace),
            ],
            addresses: [
                Some(flow.source.ip),
                Some(flow.destination.ip),
                flow.destination.original.as_ref().map(|original| original.ip),
            ],
        }
    }

    pub fn of_record(source: &'a Endpoint, destination: &'a Endpoint) -> EndpointPair<'a> {
        let namespace = |end: &'a Endpoint| end.pod.as_ref().map(|pod| pod.namespace.as_str());
        EndpointPair {
            namespaces: [
                namespace(source),
                namespace(destination),
                destination.service.as_ref().map(|service| &*service.namespace),
            ],
            addresses: [
                Some(source.ip),
                Some(destination.ip),
                destination.original.as_ref().map(|original| original.ip),
            ],
        }
    }
}

impl DropCriteria {
    /// Returns true if every list that is present matches. A record without a cause matches any list of causes.
    pub fn fits_all(&self, cause: Option<Cause>, ends: &EndpointPair<'_>) -> bool {
        self.namespace(ends).unwrap_or(true) && self.cause(cause).unwrap_or(true) && self.cidr(ends).unwrap_or(true)
    }

    /// Returns true if any list that is present matches.
    pub fn fits_any(&self, cause: Option<Cause>, ends: &EndpointPair<'_>) -> bool {
        self.namespace(ends).unwrap_or(false) || self.cause(cause).unwrap_or(false) || self.cidr(ends).unwrap_or(false)
    }

    fn namespace(&self, ends: &EndpointPair<'_>) -> Option<bool> {
        let patterns = self.namespaces.as_ref()?;
        Some(ends.namespaces.iter().flatten().any(|name| patterns.iter().any(|pattern| pattern.matches(name))))
    }

    fn cause(&self, cause: Option<Cause>) -> Option<bool> {
        let (causes, cause) = (self.causes.as_ref()?, cause?);
        Some(causes.contains(&cause))
    }

    fn cidr(&self, ends: &EndpointPair<'_>) -> Option<bool> {
        let ranges = self.cidrs.as_ref()?;
        Some(ends.addresses.iter().flatten().any(|ip| ranges.iter().any(|range| range.contains(ip))))
    }
}

/// Settings that can change while the agent runs: which drops get a record, and which labels and DNS names go into it.
#[derive(Debug, Clone, Default, PartialEq)]
pub struct Settings {
    /// A drop must match every list given here; an absent list matches all.
    pub include: DropCriteria,
    /// A drop that matches any list given here gets no record.
    pub exclude: DropCriteria,
    /// The pod labels that go into records; `None` for all.
    pub labels: Option<Vec<Pattern>>,
    /// The DNS names that go into records; `None` for all.
    pub dns_names: Option<Vec<Pattern>>,
}

/// Replaces a DNS name that must not be written.
pub const REDACTED: &str = "redacted";

impl Settings {
    /// Returns true if a drop or connection gets a record. Without one it is still counted.
    pub fn admits(&self, cause: Option<crate::model::Cause>, ends: &EndpointPair<'_>) -> bool {
        self.include.fits_all(cause, ends) && !self.exclude.fits_any(cause, ends)
    }

    /// Removes from a record what must not be written.
    pub fn redact(&self, body: &mut Body) {
        let ends = match body {
            Body::Drop(drop) => [&mut drop.source, &mut drop.destination],
            Body::Unanswered(unanswered) => [&mut unanswered.source, &mut unanswered.destination],
            Body::PolicyChange(_) | Body::Loss(_) | Body::Status(_) => return,
        };
        for end in ends {
            self.redact_end(end);
        }
    }

    pub(crate) fn redact_end(&self, end: &mut Endpoint) {
        if let (Some(allowed), Some(pod)) = (&self.labels, &mut end.pod) {
            let fits = |key: &str| allowed.iter().any(|pattern| pattern.matches(key));
            if !pod.labels.keys().all(|key| fits(key)) {
                pod.to_mut().labels.retain(|key, _| fits(key));
            }
        }
        if let Some(allowed) = &self.dns_names {
            for name in &mut end.names {
                if !allowed.iter().any(|pattern| pattern.matches(name)) {
                    REDACTED.clone_into(name);
                }
            }
            end.names.dedup();
        }
    }
}

/// The re-readable settings in force, and the state of the config file.
#[derive(Debug, Clone, Default)]
pub struct SettingsState {
    pub settings: Arc<Settings>,
    /// `None` without a file.
    pub file: Option<ConfigFileState>,
}

/// The state of the config file.
#[derive(Debug, Clone, PartialEq)]
pub struct ConfigFileState {
    pub path: String,
    pub read_at: Timestamp,
    pub error: Option<String>,
    /// Options that changed in the file and take effect at the next start.
    pub pending: Vec<String>,
}

impl ConfigFileState {
    pub fn state(&self, now: Timestamp) -> ConfigState {
        ConfigState {
            path: self.path.clone(),
            age_seconds: u64::try_from(now.duration_since(self.read_at).as_secs()).unwrap_or(0),
            error: self.error.clone(),
            pending: self.pending.clone(),
        }
    }
}
