//! Hook 1: the `kfree_skb` tracepoint, as BTF tracepoint and, for kernels that refuse that, as raw tracepoint.
//!
//! From 6.1 the kernel does not run a program on a CPU where that program is already running (recursion protection). The program
//! therefore misses a drop in a softirq that interrupts it. The kernel counts such misses for each program, and the agent declares
//! them as an estimated loss.

use aya_ebpf::EbpfContext;
use aya_ebpf::macros::{btf_tracepoint, raw_tracepoint};
use aya_ebpf::programs::{BtfTracePointContext, RawTracePointContext};
use core::mem::MaybeUninit;
use netpol_trace_common::aggregate::{AggregateKey, WORDS};
use netpol_trace_common::{DropEvent, NO_REASON, PerCpu, REASON_OTHER, REASONS, flags};

use crate::aggregate::{ActiveMaps, Outcome};
use crate::drop::{self, Direct, Memory, Probed, Skb, Typed};
use crate::emit::{self, counter, field};
use crate::key::{self, Measure};

/// The arguments of the tracepoint.
trait Arguments: EbpfContext {
    fn word(&self, at: usize) -> u64;
    fn skb(&self) -> *const u8;

    /// On kernels without this argument the condition is a constant false, so that the verifier skips the load.
    #[inline(always)]
    fn reason(&self) -> u32 {
        if field!(arguments) >= 3 { self.word(2) as u32 } else { NO_REASON }
    }
}

macro_rules! arguments {
    ($($context:ident)*) => {$(
        impl Arguments for $context {
            #[inline(always)]
            fn word(&self, at: usize) -> u64 {
                self.arg(at)
            }

            #[inline(always)]
            fn skb(&self) -> *const u8 {
                self.arg(0)
            }
        }
    )*};
}

arguments!(BtfTracePointContext RawTracePointContext);

#[btf_tracepoint(function = "kfree_skb")]
pub fn kfree_skb(ctx: BtfTracePointContext) -> u32 {
    // Kernels that accept this program pass a reason.
    if passes(&ctx, |ctx| ctx.word(2) as u32) { handle::<_, Direct>(&ctx) } else { 0 }
}

/// For kernels before 6.17, whose verifier rejects plain loads of a packet's headers.
#[btf_tracepoint(function = "kfree_skb")]
pub fn kfree_skb_copy(ctx: BtfTracePointContext) -> u32 {
    if passes(&ctx, Arguments::reason) { handle::<_, Typed>(&ctx) } else { 0 }
}

#[raw_tracepoint(tracepoint = "kfree_skb")]
pub fn kfree_skb_raw(ctx: RawTracePointContext) -> u32 {
    if passes(&ctx, Arguments::reason) { handle::<_, Probed>(&ctx) } else { 0 }
}

/// Discards nearly all freed packets by one bitmap test. The rest is handled in a function of its own, so that this one needs little
/// stack and saves only one register.
#[inline(always)]
fn passes<C: Arguments>(ctx: &C, reason: impl FnOnce(&C) -> u32) -> bool {
    let Some(cpu) = emit::cpu() else { return false };
    let (slot, skb) = (slot(reason(ctx)), ctx.skb() as u64);
    emit::count_seen(cpu, slot);
    emit::has_reject_mark(cpu, skb) || emit::bits(|filter| &filter.either, slot) >> (slot % 64) & 1 == 1
}

/// Handles a freed packet that passed the first test.
#[inline(never)]
fn handle<C: Arguments, M: Memory>(ctx: &C) -> u32 {
    let Some(cpu) = emit::cpu() else { return 0 };
    if let Some(drop) = interesting(ctx, cpu) {
        matched::<_, M>(ctx, cpu, drop);
    }
    0
}

/// The index of a reason's bits and count, below [`REASONS`].
#[inline(always)]
fn slot(reason: u32) -> usize {
    let slot = if reason < REASONS as u32 { reason } else { REASON_OTHER };
    let mut slot = slot as u64;
    // SAFETY: one instruction. The compiler knows that the mask is redundant and would drop it; the verifier needs it.
    unsafe { core::arch::asm!("{slot} &= {mask}", slot = inout(reg) slot, mask = const REASONS - 1) };
    slot as usize
}

/// A drop, before its packet is read.
#[derive(Clone, Copy)]
struct FreedPacket {
    location: u64,
    reason: u32,
    rejected: bool,
    by_location: bool,
}

/// Counts a drop that passed the filter with others of its flow, or sends it.
#[inline(always)]
fn matched<C: Arguments, M: Memory>(ctx: &C, cpu: *mut PerCpu, drop: FreedPacket) {
    emit::add(counter!(cpu.matched));
    let mut extra = if drop.rejected { flags::REJECTED } else { 0 };
    // The task distinguishes the verdict of a queue's listener from a queue whose listener died. Only reasons that count by location
    // need it.
    if drop.by_location && drop::kernel_thread() {
        extra |= flags::KERNEL_THREAD;
    }
    let maps = if field!(aggregate) != 0 { ActiveMaps::current(cpu) } else { None };
    let mut key = MaybeUninit::<AggregateKey>::uninit();
    drop::words(key.as_mut_ptr().cast(), [0u64; WORDS]);
    // SAFETY: all its words were written.
    let key = unsafe { key.assume_init_mut() };
    let mut measure = Measure { bytes: 0, segments: 1 };
    if let Some(maps) = &maps {
        measure = key::read::<M>(key, &Skb::read::<M>(ctx.skb()), drop.location, drop.reason, extra);
        if key::is_aggregated(key)
            && let Outcome::Counted = maps.count(key, &measure)
        {
            emit::add(counter!(cpu.aggregated));
            return;
        }
    }
    let Some(mut event) = emit::reserve(cpu) else { return };
    if let Some(maps) = &maps
        && key::is_aggregated(key)
        && let Outcome::Counted = maps.open(key, &measure)
    {
        emit::discard(cpu, event);
        return;
    }
    fill::<C, M>(&mut event, ctx, key, extra);
    emit::submit(cpu, event);
}

/// Not inlined, so that it has a stack of its own. It reads the packet again.
#[inline(never)]
fn fill<C: Arguments, M: Memory>(event: &mut MaybeUninit<DropEvent>, ctx: &C, key: &AggregateKey, extra: u8) {
    drop::fill::<M>(event, &Skb::read::<M>(ctx.skb()), key, ctx.word(1), ctx.reason(), extra);
}

/// Returns a drop that is to be recorded; `None` for others.
#[inline(always)]
fn interesting(ctx: &impl Arguments, cpu: *mut PerCpu) -> Option<FreedPacket> {
    let (reason, location) = (ctx.reason(), ctx.word(1));
    let slot = slot(reason);
    let rejected = emit::take_reject_mark(cpu, ctx.skb() as u64);
    let mut drop = FreedPacket { location, reason, rejected, by_location: false };
    // On a kernel without reasons the slot is REASON_OTHER; there the loader sets that bit in `by_location`.
    let has = |bits: u64| bits >> (slot % 64) & 1 == 1;
    if has(emit::bits(|filter| &filter.anywhere, slot)) {
        return Some(drop);
    }
    if has(emit::bits(|filter| &filter.by_location, slot)) {
        drop.by_location = true;
        return emit::is_interesting_site(location).then_some(drop);
    }
    let subsystem = field!(ovs_subsystem);
    (subsystem != 0 && reason != NO_REASON && reason >> 16 == subsystem).then_some(drop)
}
