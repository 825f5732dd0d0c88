//! Names that the source can't vouch for: with an API server, pods elsewhere may not be watched, and not all is known yet.

use jiff::Timestamp;

use crate::cluster::Index;
use crate::cluster::api::Lookups;
use crate::pipeline::enrich::{Flow, OwnedBy};

/// Takes away names that may not be right at the time of the packet and, if `ask`, has them looked up.
pub(super) fn doubt(lookups: Option<&Lookups>, flow: &mut Flow<'_>, index: &Index, time: Timestamp, ask: bool) {
    let Some(lookups) = lookups else { return };
    for end in [&mut flow.source, &mut flow.destination] {
        let doubtful = match end.owner {
            OwnedBy::Pod(view) => !lookups.vouches(view.pod, end.ip, time),
            OwnedBy::External => lookups.may_be_a_pods(end.ip, index),
            OwnedBy::Unknown | OwnedBy::Unconfirmed | OwnedBy::Former(_) => true,
            OwnedBy::Node(_) | OwnedBy::Service | OwnedBy::Ambiguous(_) | OwnedBy::Reused(..) => false,
        };
        if doubtful && ask {
            lookups.ask(end.ip);
        }
        if doubtful && matches!(end.owner, OwnedBy::Pod(_) | OwnedBy::External) {
            end.owner = OwnedBy::Unconfirmed;
        }
    }
}
