//! Lists the tc programs on a device that are attached by TCX or netkit: netlink does not show them.

use std::ffi::CString;

use aya::programs::{SchedClassifier, TcAttachType};

use super::bpf;

/// Names of the programs on a device of this network namespace. Empty if the kernel has no TCX (before 6.6) and no netkit (before 6.7), or
/// refuses the query.
pub fn linked(device: &str) -> Vec<String> {
    let programs = [TcAttachType::Ingress, TcAttachType::Egress]
        .into_iter()
        .filter_map(|direction| SchedClassifier::query_tcx(device, direction).ok())
        .flat_map(|(_, programs)| programs);
    let mut names: Vec<String> = programs.filter_map(|program| program.name_as_str().map(str::to_owned)).collect();
    // The query of the host's end lists the programs of both ends; other devices refuse it.
    names.extend(index(device).and_then(|index| bpf::netkit_programs(index).ok()).unwrap_or_default());
    names
}

fn index(device: &str) -> Option<u32> {
    let name = CString::new(device).ok()?;
    // SAFETY: a NUL-terminated string.
    let index = unsafe { libc::if_nametoindex(name.as_ptr()) };
    (index != 0).then_some(index)
}
