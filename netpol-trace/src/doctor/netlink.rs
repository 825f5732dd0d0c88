//! Two read-only questions to the kernel over netlink: the nftables tables, and the devices with a clsact qdisc.

use std::io;

use netlink_sys::{Socket, protocols};

const NLM_F_REQUEST_DUMP: u16 = 0x301;
const NLMSG_ERROR: u16 = 2;
const NLMSG_DONE: u16 = 3;
/// NFNL_SUBSYS_NFTABLES << 8 | NFT_MSG_GETTABLE, and its answer NFT_MSG_NEWTABLE.
const GET_TABLE: u16 = 10 << 8 | 1;
const NEW_TABLE: u16 = 10 << 8;
const NFTA_TABLE_NAME: u16 = 1;
const NEW_QDISC: u16 = 36;
const GET_QDISC: u16 = 38;
const TCA_KIND: u16 = 1;
/// Answers kept; a node has some dozens of tables and some hundreds of devices.
const MAX_MESSAGES: usize = 65536;

/// Family and name of the tables in this network namespace.
///
/// # Errors
/// Without CAP_NET_ADMIN the kernel does not say.
pub(super) fn nft_tables() -> io::Result<Vec<(String, String)>> {
    // struct nfgenmsg: any family, version 0.
    let messages = dump(protocols::NETLINK_NETFILTER, GET_TABLE, &[0; 4], NEW_TABLE)?;
    Ok(messages.iter().filter_map(|body| table(body)).collect())
}

fn table(body: &[u8]) -> Option<(String, String)> {
    let (header, attributes) = body.split_at_checked(4)?;
    let family = match header[0] {
        1 => "inet",
        2 => "ip",
        3 => "arp",
        5 => "netdev",
        7 => "bridge",
        10 => "ip6",
        _ => "other",
    };
    Some((family.to_owned(), string(attributes, NFTA_TABLE_NAME)?))
}

/// Interface indexes of the devices with a clsact qdisc in this network namespace.
pub(super) fn clsact_devices() -> io::Result<Vec<u32>> {
    // struct tcmsg, all zero: every device.
    let messages = dump(protocols::NETLINK_ROUTE, GET_QDISC, &[0; 20], NEW_QDISC)?;
    Ok(messages.iter().filter_map(|body| clsact(body)).collect())
}

fn clsact(body: &[u8]) -> Option<u32> {
    let (header, attributes) = body.split_at_checked(20)?;
    let index = u32::from_ne_bytes(header.get(4..8)?.try_into().ok()?);
    (string(attributes, TCA_KIND)? == "clsact").then_some(index)
}

/// Asks for all objects of a kind and returns the bodies of the answers.
fn dump(protocol: isize, request: u16, header: &[u8], answer: u16) -> io::Result<Vec<Vec<u8>>> {
    let mut socket = Socket::new(protocol)?;
    socket.bind_auto()?;
    socket.connect(&netlink_sys::SocketAddr::new(0, 0))?;
    let mut message = Vec::with_capacity(16 + header.len());
    message.extend((16 + header.len() as u32).to_ne_bytes());
    message.extend(request.to_ne_bytes());
    message.extend(NLM_F_REQUEST_DUMP.to_ne_bytes());
    message.extend([1, 0, 0, 0, 0, 0, 0, 0]);
    message.extend(header);
    socket.send(&message, 0)?;
    let mut bodies = Vec::new();
    loop {
        let (datagram, _) = socket.recv_from_full()?;
        if read(&datagram, answer, &mut bodies)? || bodies.len() > MAX_MESSAGES {
            return Ok(bodies);
        }
    }
}

/// Takes the messages of one datagram; true at the end of the dump.
fn read(mut datagram: &[u8], answer: u16, bodies: &mut Vec<Vec<u8>>) -> io::Result<bool> {
    loop {
        let Some((header, rest)) = datagram.split_at_checked(16) else { return Ok(false) };
        let length = u32::from_ne_bytes([header[0], header[1], header[2], header[3]]) as usize;
        let kind = u16::from_ne_bytes([header[4], header[5]]);
        let body = length.checked_sub(16).and_then(|length| rest.get(..length));
        let Some(body) = body else { return Err(io::ErrorKind::InvalidData.into()) };
        match kind {
            NLMSG_DONE => return Ok(true),
            NLMSG_ERROR => {
                let code = body.first_chunk().map_or(0, |code| i32::from_ne_bytes(*code));
                return if code == 0 { Ok(true) } else { Err(io::Error::from_raw_os_error(code.saturating_neg())) };
            }
            kind if kind == answer => bodies.push(body.to_vec()),
            _ => {}
        }
        datagram = rest.get(body.len().next_multiple_of(4)..).unwrap_or_default();
    }
}

/// A string attribute: length and type, then the text with its zero, padded to four octets.
fn string(mut attributes: &[u8], wanted: u16) -> Option<String> {
    loop {
        let (header, _) = attributes.split_at_checked(4)?;
        let length = usize::from(u16::from_ne_bytes([header[0], header[1]]));
        let kind = u16::from_ne_bytes([header[2], header[3]]) & 0x3fff;
        let value = attributes.get(4..length)?;
        if kind == wanted {
            let text = value.split(|byte| *byte == 0).next().unwrap_or_default();
            return Some(String::from_utf8_lossy(text).into_owned());
        }
        attributes = attributes.get(length.next_multiple_of(4)..)?;
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn message(kind: u16, body: &[u8]) -> Vec<u8> {
        let mut message = (16 + body.len() as u32).to_ne_bytes().to_vec();
        message.extend(kind.to_ne_bytes());
        message.extend([0; 10]);
        message.extend(body);
        message.resize(message.len().next_multiple_of(4), 0);
        message
    }

    #[test]
    fn a_table_dump_is_read_to_its_end() {
        let table_body = [[1, 0, 0, 0].as_slice(), &8u16.to_ne_bytes(), &1u16.to_ne_bytes(), b"fw\0\0"].concat();
        let datagram = [message(NEW_TABLE, &table_body), message(NLMSG_DONE, &[0; 4])].concat();
        let mut bodies = Vec::new();
        assert!(read(&datagram, NEW_TABLE, &mut bodies).unwrap());
        assert_eq!(bodies.iter().filter_map(|b| table(b)).collect::<Vec<_>>(), [("inet".into(), "fw".into())]);
    }

    #[test]
    fn a_refusal_is_an_error() {
        let datagram = message(NLMSG_ERROR, &(-1i32).to_ne_bytes());
        let error = read(&datagram, NEW_TABLE, &mut Vec::new()).unwrap_err();
        assert_eq!(error.kind(), io::ErrorKind::PermissionDenied);
    }

    proptest! {
        #[test]
        fn any_bytes_are_survived(bytes in prop::collection::vec(any::<u8>(), 0..200)) {
            let _ = read(&bytes, NEW_TABLE, &mut Vec::new());
            let _ = (table(&bytes), clsact(&bytes), string(&bytes, 1));
        }
    }
}
