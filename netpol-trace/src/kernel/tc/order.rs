//! Finds programs that see an interface's packets before ours.

use aya::programs::{ProgramInfo, SchedClassifier, TcAttachType};

use super::mode::{SIDES, TcMode};
use crate::netlink::route::{self, Link};

/// Names of the programs and filters that see packets of `link` before our program, whose id is `own`.
pub(super) fn before_ours(link: &Link, mode: TcMode, side: TcAttachType, own: u32) -> Vec<String> {
    match mode {
        TcMode::Tcx => {
            let Ok((_, programs)) = SchedClassifier::query_tcx(&link.name, side) else { return Vec::new() };
            let Some(at) = programs.iter().position(|program| program.id() == own) else { return Vec::new() };
            let name = |program: &ProgramInfo| program.name_as_str().unwrap_or_default().to_owned();
            programs.iter().take(at).map(name).collect()
        }
        TcMode::Clsact => {
            let (_, own, parent) = SIDES[usize::from(side == TcAttachType::Egress)];
            let filters = route::filters(link.index, parent).unwrap_or_default();
            let at = filters.iter().position(|filter| filter.name == own).unwrap_or(0);
            filters.iter().take(at).map(|f| if f.name.is_empty() { f.kind.clone() } else { f.name.clone() }).collect()
        }
    }
}
