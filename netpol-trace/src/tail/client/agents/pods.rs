//! What the API server knows of the selected pods: whether they exist, and on which nodes they run.

use std::collections::BTreeSet;

use crate::cluster::agents::{Agent, Agents, RecordedPod};
use crate::tail::client::NODES_NAMED;
use crate::tail::known_names::KnownNames;
use crate::tail::select::Selection;

#[derive(Debug, Default)]
pub(super) struct SelectedPods {
    /// Where the pods run.
    pub nodes: BTreeSet<String>,
    /// There are too many pods to know all their nodes.
    pub on_every_node: bool,
    /// Selected names that do not exist. That is no error: they may have been deleted since.
    pub notes: Vec<String>,
}

/// Looks up the selected pods. What the caller's account may not read is passed over.
pub(super) async fn look_up(
    agents: &Agents,
    selection: &Selection,
    selector: Option<&str>,
    all: &[Agent],
) -> SelectedPods {
    let (mut selected, mut names) = (SelectedPods::default(), KnownNames::default());
    let absent = if selection.pods.is_empty() {
        selected.look_up_namespace(agents, selection, selector, &mut names).await
    } else {
        selected.look_up_names(agents, selection, &mut names).await
    };
    selected.notes.extend(names.missing(&absent));
    let with_agent: BTreeSet<&str> = all.iter().map(|agent| &*agent.node).collect();
    let nodes = selected.nodes.iter().map(String::as_str);
    let without: Vec<&str> = nodes.filter(|node| !with_agent.contains(node)).collect();
    if let Some(first) = without.first() {
        let nodes = match without.len() {
            1 => format!("node {first}"),
            count if count <= NODES_NAMED => format!("nodes {}", without.join(", ")),
            count => format!("nodes {} and {} more", without[..NODES_NAMED].join(", "), count - NODES_NAMED),
        };
        selected
            .notes
            .push(format!("no agent runs on {nodes}, where selected pods run: their drops are not recorded there"));
    }
    selected
}

impl SelectedPods {
    fn add(&mut self, pod: &RecordedPod) {
        self.nodes.extend(pod.node.clone());
    }

    /// Returns a selection of the pods that do not exist.
    async fn look_up_names(&mut self, agents: &Agents, selection: &Selection, names: &mut KnownNames) -> Selection {
        let mut absent = Vec::new();
        for (namespace, name) in &selection.pods {
            match agents.pod(namespace, name).await {
                Ok(Some(pod)) => self.add(&pod),
                Ok(None) if list(agents, names, Some(namespace)).await => {
                    absent.push((namespace.clone(), name.clone()));
                }
                Ok(None) => self.notes.push(format!("there is no pod {namespace}/{name}")),
                Err(_) => {}
            }
        }
        if absent.is_empty() { Selection::default() } else { Selection { pods: absent, ..selection.clone() } }
    }

    /// Returns the selection if no pod matches it, else an empty one.
    async fn look_up_namespace(
        &mut self,
        agents: &Agents,
        selection: &Selection,
        selector: Option<&str>,
        names: &mut KnownNames,
    ) -> Selection {
        if !selection.is_about_pods() {
            return Selection::default();
        }
        let namespace = selection.namespace.as_deref();
        if let Ok((pods, more)) = agents.pods_with(namespace, selector).await {
            pods.iter().for_each(|pod| self.add(pod));
            self.on_every_node = more;
            if pods.is_empty() && list(agents, names, namespace).await {
                return selection.clone();
            }
        }
        Selection::default()
    }
}

/// Adds the pods of a namespace, or of all. If the namespace has none, adds the namespaces. Returns false if the API server does not
/// list them.
async fn list(agents: &Agents, names: &mut KnownNames, namespace: Option<&str>) -> bool {
    let Ok((pods, _)) = agents.pods_with(namespace, None).await else { return false };
    for pod in &pods {
        names.add_pod(&pod.namespace, &pod.name, pod.labels.clone().into_iter());
    }
    if !pods.is_empty() {
        return true;
    }
    let Ok(namespaces) = agents.namespaces().await else { return false };
    namespaces.iter().for_each(|name| names.add_namespace(name));
    true
}
