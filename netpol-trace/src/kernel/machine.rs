//! Facts about the running machine: kernel version, CPUs and loaded modules.

/// Major and minor version of the running kernel; (0, 0) if it is unknown.
pub fn release() -> (u32, u32) {
    let text = std::fs::read_to_string("/proc/sys/kernel/osrelease").unwrap_or_default();
    let mut numbers = text.split(|c: char| !c.is_ascii_digit()).map(|n| n.parse().unwrap_or(0));
    (numbers.next().unwrap_or(0), numbers.next().unwrap_or(0))
}

/// The number of possible CPUs, in use now or not.
pub(super) fn cpus() -> Result<u32, String> {
    let cpus = aya::util::nr_cpus().map_err(|(what, error)| format!("{what}: {error}"))?;
    u32::try_from(cpus).map_err(|_| format!("{cpus} processors"))
}

/// Names and addresses of the loaded modules, without sizes and use counts.
pub(super) fn modules() -> String {
    let text = std::fs::read_to_string("/proc/modules").unwrap_or_default();
    text.lines().filter_map(|line| Some([line.split(' ').next()?, line.split(' ').nth(5)?].join(" "))).collect()
}
