//! Hook 1: the `kfree_skb` tracepoint, as BTF tracepoint and, for kernels that refuse that, as raw tracepoint.

use aya_ebpf::EbpfContext;
use aya_ebpf::macros::{btf_tracepoint, raw_tracepoint};
use aya_ebpf::programs::{BtfTracePointContext, RawTracePointContext};
use aya_log_ebpf::debug;
use netpol_trace_common::fold::{FoldKey, NOT_FOLDED};
use netpol_trace_common::{NO_REASON, REASON_OTHER, REASONS, flags};

use crate::drop::{self, Direct, Memory, Probed, Skb, Typed};
use crate::emit::{self, counter, field};
use crate::fold::{self, Measure, Outcome, Place};

#[btf_tracepoint(function = "kfree_skb")]
pub fn kfree_skb(ctx: BtfTracePointContext) -> u32 {
    // An argument that the kernel lacks is behind a constant false: the verifier never looks at the load.
    let reason = if field!(arguments) >= 3 { ctx.arg::<u64>(2) as u32 } else { NO_REASON };
    handle::<_, Direct>(&ctx, ctx.arg(0), ctx.arg(1), reason)
}

/// For kernels before 6.17, whose verifier doesn't let a program load a packet's headers.
#[btf_tracepoint(function = "kfree_skb")]
pub fn kfree_skb_copy(ctx: BtfTracePointContext) -> u32 {
    let reason = if field!(arguments) >= 3 { ctx.arg::<u64>(2) as u32 } else { NO_REASON };
    handle::<_, Typed>(&ctx, ctx.arg(0), ctx.arg(1), reason)
}

#[raw_tracepoint(tracepoint = "kfree_skb")]
pub fn kfree_skb_raw(ctx: RawTracePointContext) -> u32 {
    let reason = if field!(arguments) >= 3 { ctx.arg::<u64>(2) as u32 } else { NO_REASON };
    handle::<_, Probed>(&ctx, ctx.arg(0), ctx.arg(1), reason)
}

#[inline(always)]
fn handle<C: EbpfContext, M: Memory>(ctx: &C, skb: *const u8, location: u64, reason: u32) -> u32 {
    let Some(cpu) = emit::cpu() else { return 0 };
    let slot = if reason < REASONS as u32 { reason } else { REASON_OTHER };
    let rejected = emit::count_seen(cpu, slot, skb as u64);
    let Some(by_location) = interesting(slot, reason, location) else { return 0 };
    emit::add(counter!(cpu.matched));

    let mut extra = if rejected { flags::REJECTED } else { 0 };
    // Who drops tells a queue's verdict from a queue whose listener died. Only places that count by location need it.
    if by_location && drop::kernel_thread() {
        extra |= flags::KERNEL_THREAD;
    }
    let skb = Skb::read::<M>(skb);
    let mut key = FoldKey::default();
    let place = if field!(fold) != 0 { Place::now(cpu) } else { None };
    let mut measure = Measure { bytes: 0, segments: 1 };
    if let Some(place) = &place {
        measure = fold::read::<M>(&mut key, &skb);
        measure.segments = drop::segments::<M>(&skb);
        key.flags = extra;
        if !skb.identify(&mut key, location, reason) {
            key.kind = NOT_FOLDED;
        }
        if key.kind != NOT_FOLDED
            && let Outcome::Counted = place.count(&mut key, &measure)
        {
            emit::add(counter!(cpu.folded));
            return 0;
        }
    }
    let sent = emit::emit(cpu, |event| {
        if let Some(place) = &place
            && key.kind != NOT_FOLDED
            && let Outcome::Counted = place.claim(&mut key, &measure)
        {
            return false;
        }
        drop::fill::<M>(event, &skb, &key, location, reason, extra);
        true
    });
    if sent.is_none() {
        debug!(ctx, "ring full: a drop with reason {} is lost", reason);
    }
    0
}

/// One bitmap test throws out nearly everything. `Some(true)`: it was the location that made it interesting.
#[inline(always)]
fn interesting(slot: u32, reason: u32, location: u64) -> Option<bool> {
    // The slot of a two-argument kernel is REASON_OTHER, whose bit in `by_location` the loader sets there.
    let word = slot / 64;
    let bit = slot % 64;
    let (anywhere, by_location) = match word {
        0 => (field!(filter.anywhere[0]), field!(filter.by_location[0])),
        1 => (field!(filter.anywhere[1]), field!(filter.by_location[1])),
        2 => (field!(filter.anywhere[2]), field!(filter.by_location[2])),
        _ => (field!(filter.anywhere[3]), field!(filter.by_location[3])),
    };
    if anywhere >> bit & 1 == 1 {
        return Some(false);
    }
    if by_location >> bit & 1 == 1 {
        return emit::location_matters(location).then_some(true);
    }
    let subsystem = field!(ovs_subsystem);
    (subsystem != 0 && reason != NO_REASON && reason >> 16 == subsystem).then_some(false)
}
