//! What the API server knows of the pods that are looked for: whether there are any, and on which nodes.

use std::collections::BTreeSet;

use crate::cluster::agents::{Agent, Agents, Recorded};
use crate::tail::names::KnownNames;
use crate::tail::select::Selection;

/// Nodes that a message names.
const NAMED: usize = 8;

#[derive(Debug, Default)]
pub(super) struct Known {
    /// Where the pods run.
    pub nodes: BTreeSet<String>,
    /// The pods are too many to know all their nodes.
    pub everywhere: bool,
    /// What is not there; it may have been deleted since, and is no error.
    pub notes: Vec<String>,
}

/// Looks for what is wanted. What the caller's account may not read is not said.
pub(super) async fn look(agents: &Agents, wanted: &Selection, selector: Option<&str>, all: &[Agent]) -> Known {
    let (mut known, mut names) = (Known::default(), KnownNames::default());
    let mut absent = wanted.clone();
    if wanted.pods.is_empty() {
        known.of_namespace(agents, wanted, selector, &mut names, &mut absent).await;
    } else {
        known.of_pods(agents, wanted, &mut names, &mut absent).await;
    }
    known.notes.extend(names.missing(&absent));
    let with_agent: BTreeSet<&str> = all.iter().map(|agent| &*agent.node).collect();
    let without: Vec<&str> = known.nodes.iter().map(String::as_str).filter(|node| !with_agent.contains(node)).collect();
    if let Some(first) = without.first() {
        let more = match without.len() {
            1 => format!("node {first}"),
            count if count <= NAMED => format!("nodes {}", without.join(", ")),
            count => format!("nodes {} and {} more", without[..NAMED].join(", "), count - NAMED),
        };
        known
            .notes
            .push(format!("no agent on {more}, where pods that are looked for run: drops there are not recorded"));
    }
    known
}

impl Known {
    fn runs(&mut self, pod: &Recorded) {
        self.nodes.extend(pod.node.clone());
    }

    /// `absent` keeps the pods that are not there.
    async fn of_pods(&mut self, agents: &Agents, wanted: &Selection, names: &mut KnownNames, absent: &mut Selection) {
        absent.pods.clear();
        for (namespace, name) in &wanted.pods {
            match agents.pod(namespace, name).await {
                Ok(Some(pod)) => self.runs(&pod),
                Ok(None) if list(agents, names, Some(namespace)).await => {
                    absent.pods.push((namespace.clone(), name.clone()));
                }
                Ok(None) => self.notes.push(format!("no pod {namespace}/{name}")),
                Err(_) => {}
            }
        }
        if absent.pods.is_empty() {
            *absent = Selection::default();
        }
    }

    async fn of_namespace(
        &mut self,
        agents: &Agents,
        wanted: &Selection,
        selector: Option<&str>,
        names: &mut KnownNames,
        absent: &mut Selection,
    ) {
        let namespace = wanted.namespace.as_deref();
        let found = match wanted.names_ends() {
            true => agents.pods_with(namespace, selector).await,
            false => Ok(Default::default()),
        };
        if let Ok((pods, more)) = &found {
            pods.iter().for_each(|pod| self.runs(pod));
            self.everywhere = *more;
            if pods.is_empty() && wanted.names_ends() && list(agents, names, namespace).await {
                return;
            }
        }
        *absent = Selection::default();
    }
}

/// Adds the pods of a namespace or of all; of a namespace without any, the namespaces there are. False when that can't be known.
async fn list(agents: &Agents, names: &mut KnownNames, namespace: Option<&str>) -> bool {
    let Ok((pods, _)) = agents.pods_with(namespace, None).await else { return false };
    for pod in &pods {
        names.pod(&pod.namespace, &pod.name, pod.labels.clone().into_iter());
    }
    if !pods.is_empty() {
        return true;
    }
    let Ok(namespaces) = agents.namespaces().await else { return false };
    namespaces.iter().for_each(|name| names.namespace(name));
    true
}
