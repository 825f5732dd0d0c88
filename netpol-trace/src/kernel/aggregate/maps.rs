//! Empties a set of counting maps that no program uses any more.

use std::io;
use std::os::fd::AsFd;
use std::sync::Arc;
use std::sync::atomic::Ordering;

use aya::maps::MapData;
use netpol_trace_common::PerCpu;
use netpol_trace_common::aggregate::{
    AggregateCount, AggregateKey, BITMAP_WORDS, FastSlot, FlowBitmap, INDEX_WORDS_PER_SLOT,
};

use crate::kernel::bpf;
use crate::kernel::mapping::Mapping;

/// One of the two sets of maps. See [`netpol_trace_common::aggregate`].
pub struct MapSet {
    pub slots: CpuSlots,
    /// A bit for each flow that may be in the first of the shared maps.
    pub bitmap: MapData,
    /// The maps that all CPUs share, from fine to coarse.
    pub shared: [MapData; 3],
}

impl MapSet {
    /// Clears the bitmap. A bit that stays set costs the programs a look-up.
    pub fn clear_bitmap(&self) -> io::Result<()> {
        const CLEAR: FlowBitmap = FlowBitmap { words: [0; BITMAP_WORDS] };
        bpf::set(self.bitmap.fd().as_fd(), 0, &CLEAR)
    }
}

/// The slots in which each CPU counts flows of its own. Mapped only while they are emptied: they are megabytes that would count as the
/// agent's memory.
pub struct CpuSlots {
    /// [`FastSlot`]s of all CPUs, one CPU after the other.
    pub slots: MapData,
    pub slots_of_each: usize,
    /// The CPUs' hash indexes, from a flow's hash to its slot.
    pub index: MapData,
    /// The number of slots that each CPU uses.
    pub per_cpu: Arc<Mapping<PerCpu>>,
    /// The number of the set: 0 or 1.
    pub set: usize,
}

impl CpuSlots {
    /// Empties the slots. Calls `each` for every slot in use; the same flow may be in slots of several CPUs.
    pub fn take(&self, mut each: impl FnMut(&AggregateKey, &AggregateCount)) -> io::Result<()> {
        // SAFETY: only the address is taken.
        let flows = |entry: *mut PerCpu| unsafe { (&raw mut (*entry).flows).cast::<u64>().add(self.set & 1) };
        let in_use: Vec<_> = self.per_cpu.words(flows).collect();
        if in_use.iter().all(|flows| flows.load(Ordering::Acquire) == 0) {
            return Ok(());
        }
        let slots = Mapping::<FastSlot>::new(&self.slots, in_use.len() * self.slots_of_each)?;
        let words_of_each = self.slots_of_each * INDEX_WORDS_PER_SLOT as usize;
        let index = Mapping::<u64>::new(&self.index, in_use.len() * words_of_each)?;
        for (cpu, flows) in in_use.iter().enumerate() {
            let used = usize::try_from(flows.load(Ordering::Acquire)).unwrap_or(usize::MAX).min(self.slots_of_each);
            for at in 0..used {
                let FastSlot { key, count } = read_slot(&slots, cpu * self.slots_of_each + at);
                each(&key, &count);
            }
            if used > 0 {
                let of_this_cpu = cpu * words_of_each..(cpu + 1) * words_of_each;
                of_this_cpu.flat_map(|at| index.value(at)).for_each(|word| word.store(0, Ordering::Release));
                flows.store(0, Ordering::Release);
            }
        }
        Ok(())
    }
}

fn read_slot(slots: &Mapping<FastSlot>, at: usize) -> FastSlot {
    let mut words = slots.value(at).map(|word| word.load(Ordering::Acquire));
    let mut next = || words.next().unwrap_or_default();
    let mut slot = FastSlot::default();
    slot.key.words.fill_with(&mut next);
    let AggregateCount { count, bytes, more_segments, first, last } = &mut slot.count;
    for word in [count, bytes, more_segments, first, last] {
        *word = next();
    }
    slot
}
