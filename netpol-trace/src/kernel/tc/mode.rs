//! How the tc programs are attached to an interface.

use aya::programs::tc::TcHandle;
use aya::programs::{SchedClassifier, TcAttachType};

use crate::kernel::errors::{chain, permission, short};
use crate::kernel::machine::release;
use crate::model::HookMode;
use crate::netlink::route;

/// Names of the programs and of their filters, by which `cleanup` finds filters of a killed agent.
pub const FROM_POD_PROGRAM: &str = "netpol_from_pod";
pub const TO_POD_PROGRAM: &str = "netpol_to_pod";
/// Both attach points of an interface: direction, program and parent of its clsact filters.
pub(super) const SIDES: [(TcAttachType, &str, u32); 2] =
    [(TcAttachType::Ingress, FROM_POD_PROGRAM, route::INGRESS), (TcAttachType::Egress, TO_POD_PROGRAM, route::EGRESS)];
/// Priority of our clsact filters.
pub(super) const PRIORITY: u16 = 1;
/// Handles of our clsact filters. The second one shows a later start that the qdisc is ours too.
pub(super) const HANDLE: TcHandle = TcHandle::new(0, 0x6e70);
pub(super) const HANDLE_OWN_QDISC: TcHandle = TcHandle::new(0, 0x6e71);

/// Why connections can't be watched. Each message says what to do.
#[derive(Debug, thiserror::Error)]
pub enum TcError {
    #[error("not permitted to load tc programs ({0}): grant CAP_BPF and CAP_NET_ADMIN")]
    NotPermitted(String),
    #[error("the kernel refuses the tc programs: {0}")]
    Refused(String),
    #[error("this network namespace's interfaces can't be followed: {0}")]
    Netlink(#[from] std::io::Error),
}

impl TcError {
    pub(super) fn refused(error: &(dyn std::error::Error + 'static)) -> TcError {
        match permission(error) {
            Some(_) => TcError::NotPermitted(short(&chain(error))),
            None => TcError::Refused(short(&chain(error))),
        }
    }
}

/// The two ways to attach programs.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum TcMode {
    /// Links that end with the process (Linux 6.6).
    Tcx,
    /// Filters of the clsact qdisc.
    Clsact,
}

impl TcMode {
    pub fn hook_mode(self) -> HookMode {
        match self {
            TcMode::Tcx => HookMode::Tcx,
            TcMode::Clsact => HookMode::Clsact,
        }
    }

    /// The mode that this kernel supports.
    pub fn of_this_kernel() -> TcMode {
        // A query attaches nothing. A kernel without TCX does not know it (EINVAL); without permission only the version is left.
        match SchedClassifier::query_tcx("lo", TcAttachType::Ingress) {
            Ok(_) => TcMode::Tcx,
            Err(error) if permission(&error).is_some() && release() >= (6, 6) => TcMode::Tcx,
            Err(_) => TcMode::Clsact,
        }
    }
}
