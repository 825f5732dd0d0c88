//! Errors of loading and attaching the programs.

use std::io;

use aya::EbpfError;
use aya::programs::ProgramError;

use super::btf::BtfError;

/// Where the kernel publishes its types.
pub const BTF_PATH: &str = "/sys/kernel/btf/vmlinux";

/// Why drops can't be recorded on this node. Each message says what to do.
#[derive(Debug, thiserror::Error)]
pub enum KernelError {
    #[error(
        "this kernel has no BTF ({BTF_PATH}: {0}): netpol-trace needs Linux 5.10 or later built with CONFIG_DEBUG_INFO_BTF=y"
    )]
    NoBtf(std::io::Error),
    #[error("this kernel's BTF does not fit: {0}; `netpol-trace doctor` shows what is missing")]
    Btf(#[from] BtfError),
    #[error(
        "not permitted to load BPF programs ({0}): run as root, or grant CAP_BPF and CAP_PERFMON (before Linux 5.8: CAP_SYS_ADMIN)"
    )]
    NotPermitted(String),
    #[error("the kernel is locked down (confidentiality) and refuses BPF programs that read its memory: {0}")]
    LockedDown(String),
    #[error("the kernel refuses the kfree_skb programs: {0}")]
    Refused(String),
    #[error("the eBPF object is damaged or from another build: {0}")]
    Object(String),
}

pub(super) fn unmapped(error: io::Error) -> KernelError {
    KernelError::Refused(format!("the maps that count repeated packets can't be used: {error}"))
}

pub(super) fn cant_pin(error: io::Error) -> KernelError {
    KernelError::Refused(format!("maps and hooks can't be pinned: {error}"))
}

pub(super) fn load_error(error: EbpfError) -> KernelError {
    permission(&error).unwrap_or_else(|| KernelError::Object(chain(&error)))
}

pub(super) fn program_error(error: ProgramError) -> KernelError {
    if let ProgramError::LoadError { verifier_log, .. } = &error {
        let log = verifier_log.to_string();
        tracing::debug!("verifier: {log}");
        // A rejection by the verifier has the same error number as a missing permission, but also a log.
        let sums = ["processed ", "stack depth ", "verification time "];
        let mut lines = log.lines().rev().filter(|line| !sums.iter().any(|sum| line.starts_with(sum)));
        if let Some(why) = lines.find(|line| !line.is_empty()) {
            return KernelError::Refused(format!("its verifier reports: {}", short(why)));
        }
    }
    permission(&error).unwrap_or_else(|| KernelError::Refused(short(&chain(&error))))
}

/// The error for EPERM or EACCES anywhere in the chain of causes: a missing capability, or lockdown.
pub(super) fn permission(error: &(dyn std::error::Error + 'static)) -> Option<KernelError> {
    let mut next = Some(error);
    while let Some(error) = next {
        if let Some(io) = error.downcast_ref::<std::io::Error>()
            && matches!(io.raw_os_error(), Some(libc::EPERM | libc::EACCES))
        {
            let confidential = std::fs::read_to_string("/sys/kernel/security/lockdown")
                .is_ok_and(|text| text.contains("[confidentiality]"));
            let text = io.to_string();
            return Some(if confidential { KernelError::LockedDown(text) } else { KernelError::NotPermitted(text) });
        }
        next = error.source();
    }
    None
}

/// The error with its causes.
pub(super) fn chain(error: &(dyn std::error::Error + 'static)) -> String {
    let mut text = error.to_string();
    let mut next = error.source();
    while let Some(error) = next {
        let more = error.to_string();
        if !text.contains(&more) {
            text = format!("{text}: {more}");
        }
        next = error.source();
    }
    text
}

/// The first line, at most 300 characters: a verifier log has thousands of lines.
pub(super) fn short(text: &str) -> String {
    text.lines().next().unwrap_or_default().chars().take(300).collect()
}
