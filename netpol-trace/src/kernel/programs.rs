//! Which tc programs sit on a device by TCX, which netlink does not tell.

use aya::programs::{SchedClassifier, TcAttachType};

/// Names of the programs on a device of this network namespace, without those of this process's own tc hook; none where
/// the kernel has no TCX (before 6.6) or doesn't tell.
pub fn tcx(device: &str) -> Vec<String> {
    let programs = [TcAttachType::Ingress, TcAttachType::Egress]
        .into_iter()
        .filter_map(|direction| SchedClassifier::query_tcx(device, direction).ok())
        .flat_map(|(_, programs)| programs);
    programs.filter_map(|program| program.name_as_str().map(str::to_owned)).collect()
}
