//! The bounded queue from the reader to the worker. When it is full, the reader counts packets as lost and does not wait.

use std::sync::mpsc::{Receiver, SyncSender, sync_channel};

use crate::kernel::KernelDrop;
use crate::kernel::tc::TcEvent;

/// Drops in one message.
pub const BATCH: usize = 128;
/// Messages in the queue.
const MESSAGES: usize = 256;
/// Packets for which the queue has room when no message is for connections.
pub const ROOM: u64 = (MESSAGES * BATCH) as u64;

/// What the reader hands to the worker.
#[derive(Debug)]
pub enum Message {
    Drops(Vec<KernelDrop>),
    Connections(Vec<TcEvent>),
}

pub fn channel() -> (SyncSender<Message>, Receiver<Message>) {
    sync_channel(MESSAGES)
}
