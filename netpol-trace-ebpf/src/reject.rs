//! Distinguishes netfilter's REJECT from DROP. REJECT sends an ICMP error or a reset before it frees the packet, on the same CPU: these
//! programs mark that packet for the kfree_skb program. They run only when the kernel sends an ICMP error or a reset.

use aya_ebpf::helpers::generated::bpf_ktime_get_ns;
use aya_ebpf::macros::{btf_tracepoint, fentry};
use aya_ebpf::programs::{BtfTracePointContext, FEntryContext};

use crate::emit;

/// Destination unreachable, the ICMP and ICMPv6 types that REJECT sends.
const ICMP_UNREACHABLE: u32 = 3;
const ICMP6_UNREACHABLE: u32 = 1;

/// `__icmp_send(skb, int type, int code, …)`.
#[fentry(function = "__icmp_send")]
pub fn reject_icmp(ctx: FEntryContext) -> u32 {
    if ctx.arg::<u64>(1) as u32 == ICMP_UNREACHABLE {
        mark(ctx.arg::<u64>(0));
    }
    0
}

/// The tracepoint (from 6.10), for kernels that reject trampolines.
#[btf_tracepoint(function = "icmp_send")]
pub fn reject_icmp_tp(ctx: BtfTracePointContext) -> u32 {
    if ctx.arg::<u64>(1) as u32 == ICMP_UNREACHABLE {
        mark(ctx.arg::<u64>(0));
    }
    0
}

/// `icmp6_send(skb, u8 type, u8 code, …)`.
#[fentry(function = "icmp6_send")]
pub fn reject_icmp6(ctx: FEntryContext) -> u32 {
    if ctx.arg::<u64>(1) as u8 as u32 == ICMP6_UNREACHABLE {
        mark(ctx.arg::<u64>(0));
    }
    0
}

/// `nf_ct_attach(new, old)`: called only by REJECT's resets, for both families; `old` is the rejected packet.
#[fentry(function = "nf_ct_attach")]
pub fn reject_reset(ctx: FEntryContext) -> u32 {
    mark(ctx.arg::<u64>(1));
    0
}

#[inline(always)]
fn mark(skb: u64) {
    let Some(cpu) = emit::cpu() else { return };
    // SAFETY: a CPU's own map value, and a helper without arguments.
    unsafe {
        (*cpu).rejected_at = bpf_ktime_get_ns();
        (*cpu).rejected = skb;
    }
}
