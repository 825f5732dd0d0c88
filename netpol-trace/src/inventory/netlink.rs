//! Questions to the kernel over netlink, in the network namespace of the calling thread.

use std::io;
use std::os::fd::AsRawFd;

use netlink_packet_core::{NLM_F_DUMP, NLM_F_REQUEST, NetlinkBuffer};
use netlink_sys::{Socket, SocketAddr};

const ERROR: u16 = 2;
const DONE: u16 = 3;
/// The dump was overtaken by a change; what came may be mixed.
const INTERRUPTED: u16 = 0x10;

/// The kernel fills up to 32 KiB when the reader has room. It walks a chain from its start for each part of a dump, so
/// small parts make a long chain's dump slow: seconds for 50,000 rules.
const DATAGRAM: usize = 64 << 10;
/// A dump that was mixed of two states even after another try is taken as it is; the change itself asks again.
const TRIES: usize = 3;

/// Asks for all objects of a kind and hands `take` the type and the body of each answer.
pub fn dump(protocol: isize, request: u16, body: &[u8], mut take: impl FnMut(u16, &[u8])) -> io::Result<Complete> {
    let mut socket = Socket::new(protocol)?;
    socket.bind_auto()?;
    socket.connect(&SocketAddr::new(0, 0))?;
    timeout(&socket, 5)?;
    socket.send(&message(request, body), 0)?;
    let mut complete = Complete(true);
    let mut datagram = Vec::with_capacity(DATAGRAM);
    loop {
        datagram.clear();
        if socket.recv(&mut datagram, libc::MSG_TRUNC)? > DATAGRAM {
            return Err(io::ErrorKind::InvalidData.into());
        }
        if read(&datagram, &mut complete, &mut take)? {
            return Ok(complete);
        }
    }
}

/// Whether a dump shows one state.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Complete(pub bool);

/// Runs `ask` until its dumps show one state, a few times at most.
pub fn consistent<T>(mut ask: impl FnMut() -> io::Result<(T, Complete)>) -> io::Result<T> {
    let mut tries = 0;
    loop {
        tries += 1;
        let (answer, complete) = ask()?;
        if complete.0 || tries == TRIES {
            return Ok(answer);
        }
    }
}

fn message(request: u16, body: &[u8]) -> Vec<u8> {
    let mut message = vec![0; 16 + body.len()];
    let mut buffer = NetlinkBuffer::new(&mut message);
    buffer.set_length(16 + body.len() as u32);
    buffer.set_message_type(request);
    buffer.set_flags(NLM_F_REQUEST | NLM_F_DUMP);
    buffer.set_sequence_number(1);
    message[16..].copy_from_slice(body);
    message
}

/// Takes the messages of one datagram; true at the end of the dump.
fn read(mut datagram: &[u8], complete: &mut Complete, take: &mut impl FnMut(u16, &[u8])) -> io::Result<bool> {
    while !datagram.is_empty() {
        let message = NetlinkBuffer::new_checked(datagram).map_err(|_| io::ErrorKind::InvalidData)?;
        complete.0 &= message.flags() & INTERRUPTED == 0;
        let body = message.payload();
        match message.message_type() {
            DONE => return Ok(true),
            ERROR => {
                let code = body.first_chunk().map_or(0, |code| i32::from_ne_bytes(*code));
                return if code == 0 { Ok(true) } else { Err(io::Error::from_raw_os_error(code.saturating_neg())) };
            }
            kind => take(kind, body),
        }
        let length = (message.length() as usize).next_multiple_of(4).max(16);
        datagram = datagram.get(length..).unwrap_or_default();
    }
    Ok(false)
}

/// A socket that hears of changes, of `groups`.
pub fn listen(protocol: isize, groups: &[u32]) -> io::Result<Socket> {
    let mut socket = Socket::new(protocol)?;
    socket.bind_auto()?;
    for group in groups {
        socket.add_membership(*group)?;
    }
    socket.set_non_blocking(true)?;
    Ok(socket)
}

/// Forgets what has come; whether anything had. A socket whose buffer overflowed (ENOBUFS) has heard something too.
pub fn drain(socket: &Socket) -> bool {
    let mut heard = false;
    // Bounded: a ruleset that never stops changing must not hold the caller.
    for _ in 0..10_000 {
        match socket.recv(&mut &mut [0u8; 64][..], libc::MSG_TRUNC) {
            Ok(_) => heard = true,
            Err(error) if error.raw_os_error() == Some(libc::ENOBUFS) => heard = true,
            Err(_) => break,
        }
    }
    heard
}

/// A kernel that does not answer must not hold the caller for ever.
fn timeout(socket: &Socket, seconds: i64) -> io::Result<()> {
    let time = libc::timeval { tv_sec: seconds, tv_usec: 0 };
    let size = size_of::<libc::timeval>() as libc::socklen_t;
    // SAFETY: the option's value is a timeval, whose address and size are given.
    let done = unsafe {
        libc::setsockopt(socket.as_raw_fd(), libc::SOL_SOCKET, libc::SO_RCVTIMEO, (&raw const time).cast(), size)
    };
    if done < 0 { Err(io::Error::last_os_error()) } else { Ok(()) }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    /// Type and body.
    type Taken = Vec<(u16, Vec<u8>)>;

    fn all(datagram: &[u8]) -> io::Result<(bool, Taken)> {
        let mut taken = Vec::new();
        let done = read(datagram, &mut Complete(true), &mut |kind, body: &[u8]| taken.push((kind, body.to_vec())))?;
        Ok((done, taken))
    }

    #[test]
    fn a_dump_is_read_to_its_end() {
        let datagram = [message(2560, &[1, 0, 0, 0]), message(DONE, &[0; 4])].concat();
        assert_eq!(all(&datagram).unwrap(), (true, vec![(2560, vec![1, 0, 0, 0])]));
    }

    #[test]
    fn a_refusal_is_an_error() {
        let refused = all(&message(ERROR, &(-libc::EPERM).to_ne_bytes())).unwrap_err();
        assert_eq!(refused.raw_os_error(), Some(libc::EPERM));
    }

    proptest! {
        #[test]
        fn arbitrary_datagrams_never_panic(datagram in proptest::collection::vec(any::<u8>(), 0..300)) {
            let _ = all(&datagram);
        }
    }
}
