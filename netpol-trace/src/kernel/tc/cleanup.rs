//! Removes clsact filters that outlived their agent.

use std::io;

use aya::programs::tc;

use super::mode::{HANDLE_OWN_QDISC, SIDES};
use crate::kernel::errors::chain;
use crate::netlink::route::{self, Link};

/// Removes the clsact qdisc of an interface if it has no filters. Returns true if it was removed.
pub(super) fn remove_empty_clsact(link: &Link) -> bool {
    let empty = SIDES.iter().all(|(.., parent)| route::filters(link.index, *parent).is_ok_and(|f| f.is_empty()));
    empty && route::remove_clsact(link.index).is_ok()
}

/// Removes our clsact filters, and qdiscs that we made and that have no other filters, from every pod's interface of this network namespace.
/// Returns a description of what it removed. It also removes the filters of a running agent.
///
/// # Errors
/// The interfaces can't be listed.
pub fn cleanup() -> io::Result<Vec<String>> {
    let mut removed = Vec::new();
    for link in route::links()?.into_iter().filter(Link::is_pods) {
        let mut own_qdisc = false;
        for (side, name, parent) in SIDES {
            let filters = route::filters(link.index, parent).unwrap_or_default();
            let Some(filter) = filters.iter().find(|filter| filter.name == name) else { continue };
            own_qdisc |= filter.handle == u32::from(HANDLE_OWN_QDISC);
            match tc::qdisc_detach_program(&link.name, side, name) {
                Ok(()) => removed.push(format!("tc filter {name} on {}", link.name)),
                Err(error) => tracing::warn!(
                    interface = link.name,
                    error = chain(&error),
                    "the tc filter {name} can't be removed"
                ),
            }
        }
        if own_qdisc && remove_empty_clsact(&link) {
            removed.push(format!("clsact qdisc on {}", link.name));
        }
    }
    Ok(removed)
}
