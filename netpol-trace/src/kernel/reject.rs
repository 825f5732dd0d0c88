//! Hooks that distinguish REJECT from DROP, at the functions that send an ICMP error or a reset. A hook that the kernel refuses costs only
//! this distinction.

use aya::programs::fentry::FEntryLink;
use aya::programs::tp_btf::BtfTracePointLink;
use aya::programs::{BtfTracePoint, FEntry, ProgramError};
use aya::{Btf, Ebpf};

use super::errors::{chain, short};
use super::object::program;
use crate::model::{HookMode, HookState, RejectVisibility};

/// The attached hooks. Dropping them detaches.
#[derive(Debug, Default)]
pub struct Rejects {
    links: Vec<RejectLink>,
    answers: RejectVisibility,
    /// IPv4's ICMP errors are seen by the tracepoint, which shows only those that are sent.
    tracepoint: bool,
    /// The kernel's error for the first hook that it refused.
    refused: Option<String>,
}

#[derive(Debug)]
#[allow(dead_code, reason = "the links detach when dropped")]
enum RejectLink {
    Entry(FEntryLink),
    Tracepoint(BtfTracePointLink),
}

impl Rejects {
    pub(super) fn attach(ebpf: &mut Ebpf, btf: &Btf) -> Rejects {
        let mut rejects = Rejects::default();
        rejects.answers = RejectVisibility {
            icmp: rejects.entry(ebpf, btf, "reject_icmp", "__icmp_send"),
            icmp6: rejects.entry(ebpf, btf, "reject_icmp6", "icmp6_send"),
            reset: rejects.entry(ebpf, btf, "reject_reset", "nf_ct_attach"),
        };
        if !rejects.answers.icmp
            && let Ok(link) = tracepoint(ebpf, btf)
        {
            // The kernel limits the rate of ICMP errors before this tracepoint: a packet without an error may have been rejected too.
            rejects.links.push(RejectLink::Tracepoint(link));
            rejects.tracepoint = true;
        }
        rejects
    }

    fn entry(&mut self, ebpf: &mut Ebpf, btf: &Btf, name: &str, function: &str) -> bool {
        let attach = |ebpf: &mut Ebpf| -> Result<FEntryLink, String> {
            let program: &mut FEntry = program(ebpf, name).map_err(|error| error.to_string())?;
            let attach = |program: &mut FEntry| -> Result<_, ProgramError> {
                program.load(function, btf)?;
                let id = program.attach()?;
                program.take_link(id)
            };
            attach(program).map_err(|error| format!("{function}: {}", short(&chain(&error))))
        };
        match attach(ebpf) {
            Ok(link) => self.links.push(RejectLink::Entry(link)),
            Err(why) => {
                tracing::debug!(program = name, why, "not attached");
                self.refused.get_or_insert(why);
                return false;
            }
        }
        true
    }

    pub fn answers(&self) -> RejectVisibility {
        self.answers
    }

    /// What these hooks show, for a status and for `doctor`. `Err`: nothing, and why.
    pub fn describe(&self) -> Result<&'static str, String> {
        let RejectVisibility { icmp, icmp6, reset } = self.answers;
        match (icmp, icmp6, reset) {
            (true, true, true) => Ok("each REJECT is distinguished from DROP"),
            (false, false, false) if self.tracepoint => Ok("only IPv4 ICMP errors show that a packet was rejected"),
            (false, false, false) => Err(self.refused.clone().unwrap_or_default()),
            _ => Ok("the kernel shows only some rejects (of ICMP, ICMPv6 and TCP resets)"),
        }
    }

    pub fn is_complete(&self) -> bool {
        let RejectVisibility { icmp, icmp6, reset } = self.answers;
        icmp && icmp6 && reset
    }

    /// The state of the hooks for a status record.
    pub fn state(&self) -> HookState {
        let state = match (self.links.is_empty(), self.tracepoint) {
            (true, _) => HookMode::Off,
            (_, true) => HookMode::Tracepoint,
            _ => HookMode::Fentry,
        };
        let detail = match self.describe() {
            _ if self.is_complete() => None,
            Ok(what) => Some(format!("{what} ({})", self.refused.as_deref().unwrap_or_default())),
            Err(why) => Some(format!("only the rules distinguish REJECT from DROP: {why}")),
        };
        HookState::new("reject", state, detail)
    }
}

fn tracepoint(ebpf: &mut Ebpf, btf: &Btf) -> Result<BtfTracePointLink, String> {
    let program: &mut BtfTracePoint = program(ebpf, "reject_icmp_tp").map_err(|error| error.to_string())?;
    let attach = |program: &mut BtfTracePoint| -> Result<_, ProgramError> {
        program.load("icmp_send", btf)?;
        let id = program.attach()?;
        program.take_link(id)
    };
    attach(program).map_err(|error| short(&chain(&error)))
}
