//! What netfilter's REJECT sends. It does so before it frees the packet that it rejects, on the same CPU: a note of that
//! packet tells the kfree_skb program that it was a reject. Runs only when an ICMP error or a reset is sent.

use aya_ebpf::helpers::generated::bpf_ktime_get_ns;
use aya_ebpf::macros::{btf_tracepoint, fentry};
use aya_ebpf::programs::{BtfTracePointContext, FEntryContext};

use crate::emit;

/// Destination unreachable, in ICMP and in ICMPv6: what REJECT sends.
const ICMP_UNREACHABLE: u32 = 3;
const ICMP6_UNREACHABLE: u32 = 1;

/// `__icmp_send(skb, int type, int code, …)`.
#[fentry(function = "__icmp_send")]
pub fn reject_icmp(ctx: FEntryContext) -> u32 {
    if ctx.arg::<u64>(1) as u32 == ICMP_UNREACHABLE {
        note(ctx.arg::<u64>(0));
    }
    0
}

/// The same where trampolines are refused and the tracepoint exists (6.10).
#[btf_tracepoint(function = "icmp_send")]
pub fn reject_icmp_tp(ctx: BtfTracePointContext) -> u32 {
    if ctx.arg::<u64>(1) as u32 == ICMP_UNREACHABLE {
        note(ctx.arg::<u64>(0));
    }
    0
}

/// `icmp6_send(skb, u8 type, u8 code, …)`.
#[fentry(function = "icmp6_send")]
pub fn reject_icmp6(ctx: FEntryContext) -> u32 {
    if ctx.arg::<u64>(1) as u8 as u32 == ICMP6_UNREACHABLE {
        note(ctx.arg::<u64>(0));
    }
    0
}

/// `nf_ct_attach(new, old)`: only REJECT's resets call it, of both families, and the old packet is the rejected one.
#[fentry(function = "nf_ct_attach")]
pub fn reject_reset(ctx: FEntryContext) -> u32 {
    note(ctx.arg::<u64>(1));
    0
}

#[inline(always)]
fn note(skb: u64) {
    let Some(cpu) = emit::cpu() else { return };
    // SAFETY: a CPU's own map value, and a helper without arguments.
    unsafe {
        (*cpu).rejected_at = bpf_ktime_get_ns();
        (*cpu).rejected = skb;
    }
}
