//! Reads records from the connections' ring.

use std::os::fd::{AsRawFd, RawFd};

use aya::maps::{MapData, RingBuf};
use netpol_trace_common::tc::{DnsEvent, FlowEvent, event};

/// One record of the tc programs.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum TcEvent {
    Flow(FlowEvent),
    /// A DNS answer to a pod: at most [`netpol_trace_common::tc::DNS_BYTES`] bytes of the message.
    Dns(FlowEvent, Box<[u8]>),
}

pub struct FlowRing(RingBuf<MapData>);

impl FlowRing {
    pub(super) fn new(ring: RingBuf<MapData>) -> FlowRing {
        FlowRing(ring)
    }

    /// The next record, if there is one.
    pub fn pop(&mut self) -> Option<TcEvent> {
        loop {
            let item = self.0.next()?;
            if let Some(event) = parse(&item) {
                return Some(event);
            }
        }
    }
}

impl AsRawFd for FlowRing {
    fn as_raw_fd(&self) -> RawFd {
        self.0.as_raw_fd()
    }
}

fn parse(bytes: &[u8]) -> Option<TcEvent> {
    const LENGTH: usize = std::mem::offset_of!(DnsEvent, length);
    const PAYLOAD: usize = std::mem::offset_of!(DnsEvent, payload);
    if bytes.len() < size_of::<FlowEvent>() {
        return None;
    }
    // SAFETY: plain words, valid for every bit pattern; the length was checked, and an unaligned read needs no alignment.
    let head = unsafe { bytes.as_ptr().cast::<FlowEvent>().read_unaligned() };
    if head.event != event::DNS {
        return Some(TcEvent::Flow(head));
    }
    let length = u32::from_ne_bytes(bytes.get(LENGTH..LENGTH + 4)?.try_into().ok()?) as usize;
    // Bytes after `length` were never written.
    Some(TcEvent::Dns(head, bytes.get(PAYLOAD..PAYLOAD.checked_add(length)?)?.into()))
}
