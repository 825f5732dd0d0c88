//! Identity check: with an API server as source, pods on other nodes may not be watched, and not all is known yet.

use jiff::Timestamp;

use crate::cluster::Index;
use crate::cluster::api::Lookups;
use crate::pipeline::enrich::{Flow, Identity};

/// Downgrades pod identities that the watch cannot confirm for the packet's time and, if `look_up`, requests a look-up.
pub(super) fn confirm(lookups: Option<&Lookups>, flow: &mut Flow<'_>, index: &Index, time: Timestamp, look_up: bool) {
    let Some(lookups) = lookups else { return };
    for end in [&mut flow.source, &mut flow.destination] {
        let unconfirmed = match end.identity {
            Identity::Pod(view) => !lookups.confirms(view.pod, end.ip, time),
            Identity::External => lookups.may_be_pod_address(end.ip, index),
            Identity::Unknown | Identity::Unconfirmed | Identity::Former(_) => true,
            Identity::Node(_) | Identity::Service | Identity::Ambiguous(_) | Identity::Reused(..) => false,
        };
        if unconfirmed && look_up {
            lookups.request(end.ip);
        }
        if unconfirmed && matches!(end.identity, Identity::Pod(_) | Identity::External) {
            end.identity = Identity::Unconfirmed;
        }
    }
}
