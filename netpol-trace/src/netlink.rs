//! Requests to the kernel over netlink in the calling thread's network namespace, and the attributes of its responses.
//!
//! Reads only the attributes in use. netlink-packet-route decodes every attribute of a message and rejects the message if one has an
//! unexpected length, so that a newer kernel could hide an interface.

pub mod route;

use std::io;
use std::os::fd::AsRawFd;

use netlink_packet_core::{NLM_F_ACK, NLM_F_DUMP, NLM_F_REQUEST, NetlinkBuffer};
use netlink_sys::protocols::NETLINK_ROUTE;
use netlink_sys::{Socket, SocketAddr};

const ERROR: u16 = 2;
const DONE: u16 = 3;
/// A change interrupted the dump; it may mix two states.
const INTERRUPTED: u16 = 0x10;

/// The receive buffer. The kernel sends up to 32 KiB at once if the reader has room. It walks a chain from its start for each part of a
/// dump, so that small parts make the dump of a long chain slow: seconds for 50,000 rules.
const DATAGRAM: usize = 64 << 10;
/// How often an interrupted dump is repeated; then it is used as it is. The change that interrupted it causes another dump.
const TRIES: usize = 3;

/// Requests all objects of a kind and calls `take` with the type and body of each response.
pub fn dump(protocol: isize, request: u16, body: &[u8], take: impl FnMut(u16, &[u8])) -> io::Result<Complete> {
    exchange(protocol, request, NLM_F_DUMP, body, take)
}

/// Requests a change and waits for the acknowledgement.
pub fn request(protocol: isize, request: u16, body: &[u8]) -> io::Result<()> {
    exchange(protocol, request, NLM_F_ACK, body, |_, _| ()).map(drop)
}

fn exchange(
    protocol: isize,
    request: u16,
    flags: u16,
    body: &[u8],
    mut take: impl FnMut(u16, &[u8]),
) -> io::Result<Complete> {
    let mut socket = Socket::new(protocol)?;
    if protocol == NETLINK_ROUTE {
        // Otherwise the kernel ignores most filters of a dump. Since 4.20.
        socket.set_netlink_get_strict_chk(true)?;
    }
    socket.bind_auto()?;
    socket.connect(&SocketAddr::new(0, 0))?;
    timeout(&socket, 5)?;
    socket.send(&message(request, flags, body), 0)?;
    let mut complete = Complete(true);
    let mut datagram = Vec::with_capacity(DATAGRAM);
    loop {
        receive(&socket, &mut datagram)?;
        if read(&datagram, &mut complete, &mut take)? {
            return Ok(complete);
        }
    }
}

/// Receives the next datagram into `datagram`, which has room for [`DATAGRAM`].
fn receive(socket: &Socket, datagram: &mut Vec<u8>) -> io::Result<()> {
    datagram.clear();
    if socket.recv(datagram, libc::MSG_TRUNC)? > DATAGRAM {
        return Err(io::ErrorKind::InvalidData.into());
    }
    Ok(())
}

/// True if a dump shows one consistent state.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Complete(pub bool);

/// Repeats `dump` until it shows one consistent state, at most [`TRIES`] times.
pub fn consistent<T>(mut dump: impl FnMut() -> io::Result<(T, Complete)>) -> io::Result<T> {
    let mut tries = 0;
    loop {
        tries += 1;
        let (response, complete) = dump()?;
        if complete.0 || tries == TRIES {
            return Ok(response);
        }
    }
}

fn message(request: u16, flags: u16, body: &[u8]) -> Vec<u8> {
    let mut message = vec![0; 16 + body.len()];
    let mut buffer = NetlinkBuffer::new(&mut message);
    buffer.set_length(16 + body.len() as u32);
    buffer.set_message_type(request);
    buffer.set_flags(NLM_F_REQUEST | flags);
    buffer.set_sequence_number(1);
    message[16..].copy_from_slice(body);
    message
}

/// Reads the messages of a datagram. Returns true at the end of a dump or at an acknowledgement.
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

/// A socket that receives notifications of `groups`.
pub fn listen(protocol: isize, groups: &[u32]) -> io::Result<Socket> {
    let mut socket = Socket::new(protocol)?;
    socket.bind_auto()?;
    for group in groups {
        socket.add_membership(*group)?;
    }
    socket.set_non_blocking(true)?;
    Ok(socket)
}

/// Discards the received notifications and returns whether there were any. An overflow of the buffer (ENOBUFS) counts as one.
pub fn drain(socket: &Socket) -> bool {
    let mut received = false;
    // Bounded, because a ruleset may change all the time.
    for _ in 0..10_000 {
        match socket.recv(&mut &mut [0u8; 64][..], libc::MSG_TRUNC) {
            Ok(_) => received = true,
            Err(error) if error.raw_os_error() == Some(libc::ENOBUFS) => received = true,
            Err(_) => break,
        }
    }
    received
}

/// Sets a timeout for receiving, so that the caller never waits for ever.
fn timeout(socket: &Socket, seconds: i64) -> io::Result<()> {
    let time = libc::timeval { tv_sec: seconds, tv_usec: 0 };
    let size = size_of::<libc::timeval>() as libc::socklen_t;
    // SAFETY: the option's value is a timeval, whose address and size are given.
    let done = unsafe {
        libc::setsockopt(socket.as_raw_fd(), libc::SOL_SOCKET, libc::SO_RCVTIMEO, (&raw const time).cast(), size)
    };
    if done < 0 { Err(io::Error::last_os_error()) } else { Ok(()) }
}

/// The attributes in order, up to a malformed one.
pub fn attributes(mut bytes: &[u8]) -> impl Iterator<Item = (u16, &[u8])> {
    std::iter::from_fn(move || {
        let (header, _) = bytes.split_at_checked(4)?;
        let length = usize::from(u16::from_ne_bytes([header[0], header[1]]));
        // The two upper bits are the flags "nested" and "network order".
        let kind = u16::from_ne_bytes([header[2], header[3]]) & 0x3fff;
        let value = bytes.get(4..length)?;
        bytes = bytes.get(length.next_multiple_of(4)..).unwrap_or_default();
        Some((kind, value))
    })
}

/// The value of the first attribute of type `wanted`; the value may consist of attributes.
pub fn attribute(bytes: &[u8], wanted: u16) -> Option<&[u8]> {
    attributes(bytes).find(|(kind, _)| *kind == wanted).map(|(_, value)| value)
}

pub fn string(bytes: &[u8], wanted: u16) -> Option<String> {
    attribute(bytes, wanted).map(text)
}

/// The text up to the first zero byte.
pub fn text(bytes: &[u8]) -> String {
    String::from_utf8_lossy(bytes.split(|byte| *byte == 0).next().unwrap_or_default()).into_owned()
}

/// A number in the machine's order.
pub fn word(bytes: &[u8], at: usize) -> Option<u32> {
    Some(u32::from_ne_bytes(*bytes.get(at..)?.first_chunk()?))
}

/// Appends an attribute.
pub fn put(to: &mut Vec<u8>, kind: u16, value: &[u8]) {
    // Values are names and numbers, far shorter than the limit.
    to.extend(u16::try_from(4 + value.len()).unwrap_or(4).to_ne_bytes());
    to.extend(kind.to_ne_bytes());
    to.extend(value);
    to.resize(to.len().next_multiple_of(4), 0);
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
        let datagram = [message(2560, 0, &[1, 0, 0, 0]), message(DONE, 0, &[0; 4])].concat();
        assert_eq!(all(&datagram).unwrap(), (true, vec![(2560, vec![1, 0, 0, 0])]));
    }

    #[test]
    fn a_refusal_is_an_error() {
        let refused = all(&message(ERROR, 0, &(-libc::EPERM).to_ne_bytes())).unwrap_err();
        assert_eq!(refused.raw_os_error(), Some(libc::EPERM));
    }

    proptest! {
        #[test]
        fn arbitrary_datagrams_never_panic(datagram in proptest::collection::vec(any::<u8>(), 0..300)) {
            let _ = all(&datagram);
            let _ = attributes(&datagram).count();
        }
    }
}
