//! Small eBPF programs that stand in for an enforcer's: they drop UDP datagrams to one port and count them.

use std::ffi::CString;
use std::io;
use std::os::fd::{AsRawFd, FromRawFd, OwnedFd, RawFd};

use anyhow::{Context, Result};

/// The kind of a program: its type, and its return values for drop and pass.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Kind {
    Tc,
    Xdp,
    CgroupIngress,
    CgroupEgress,
}

/// The packets that a program drops.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Match {
    /// UDP to this port, IPv4 and IPv6 without extension headers, of at least 16 bytes of data.
    UdpPort(u16),
    /// IPv4 without options and with this type of service, of any protocol.
    Tos(u8),
}

/// A loaded program with its counter.
#[derive(Debug)]
pub struct CountingProgram {
    pub fd: OwnedFd,
    map: OwnedFd,
}

// Commands and attach types of linux/bpf.h.
const MAP_CREATE: u32 = 0;
const MAP_LOOKUP: u32 = 1;
const PROG_LOAD: u32 = 5;
const OBJ_PIN: u32 = 6;
const LINK_CREATE: u32 = 28;
const TCX_INGRESS: u32 = 46;
const TCX_EGRESS: u32 = 47;
const XDP: u32 = 37;
const NETKIT_PRIMARY: u32 = 54;
const NETKIT_PEER: u32 = 55;

/// How an XDP program is attached.
#[derive(Debug, Clone, Copy)]
pub enum XdpMode {
    Generic = 2,
    Native = 4,
}

impl CountingProgram {
    /// Loads a program that drops UDP to `port`, over IPv4 and IPv6 without extension headers, with at least 16 bytes of data.
    pub fn load(kind: Kind, port: u16) -> Result<CountingProgram> {
        CountingProgram::load_matching(kind, Match::UdpPort(port))
    }

    pub fn load_matching(kind: Kind, matches: Match) -> Result<CountingProgram> {
        // BPF_MAP_TYPE_ARRAY, keys of 4 bytes, values of 8, one entry.
        let map = bpf(MAP_CREATE, &words(&[2, 4, 8, 1])).context("create the program's map")?;
        let code = code(kind, matches, map.as_raw_fd());
        let license = c"GPL";
        let (prog_type, attach_type) = match kind {
            Kind::Tc => (3, 0),
            Kind::Xdp => (6, 0),
            Kind::CgroupIngress => (8, 0),
            Kind::CgroupEgress => (8, 1),
        };
        let mut attr = words(&[prog_type, (code.len()) as u32]);
        attr.extend((code.as_ptr() as u64).to_ne_bytes());
        attr.extend((license.as_ptr() as u64).to_ne_bytes());
        // No log, any kernel version, no flags.
        attr.extend(words(&[0, 0, 0, 0, 0, 0]));
        // The name, as enforcers give one.
        attr.extend(b"lab_drop\0\0\0\0\0\0\0\0");
        attr.extend(words(&[0, attach_type]));
        Ok(CountingProgram { fd: bpf(PROG_LOAD, &attr).context("load the program")?, map })
    }

    /// The number of packets that it dropped.
    pub fn counted(&self) -> Result<u64> {
        let (key, mut value) = (0u32, 0u64);
        let mut attr = words(&[self.map.as_raw_fd() as u32, 0]);
        attr.extend((&raw const key as u64).to_ne_bytes());
        attr.extend((&raw mut value as u64).to_ne_bytes());
        attr.extend([0; 8]);
        syscall(MAP_LOOKUP, &attr).context("read the program's counter")?;
        Ok(value)
    }

    /// Attaches by TCX in the network namespace of the calling thread, until the link is dropped.
    pub fn attach_tcx(&self, ifindex: u32, ingress: bool) -> Result<OwnedFd> {
        self.link(ifindex, if ingress { TCX_INGRESS } else { TCX_EGRESS }, 0)
    }

    /// Attaches to the packets that leave one end of a netkit pair, given by the host's end.
    pub fn attach_netkit(&self, ifindex: u32, from_pod: bool) -> Result<OwnedFd> {
        self.link(ifindex, if from_pod { NETKIT_PEER } else { NETKIT_PRIMARY }, 0)
    }

    pub fn attach_xdp(&self, ifindex: u32, mode: XdpMode) -> Result<OwnedFd> {
        self.link(ifindex, XDP, mode as u32)
    }

    /// Attaches to a cgroup, given by its open directory.
    pub fn attach_cgroup(&self, cgroup: RawFd, kind: Kind) -> Result<OwnedFd> {
        self.link(cgroup as u32, u32::from(kind == Kind::CgroupEgress), 0)
    }

    fn link(&self, target: u32, attach_type: u32, flags: u32) -> Result<OwnedFd> {
        let mut attr = words(&[self.fd.as_raw_fd() as u32, target, attach_type, flags]);
        attr.extend([0; 32]);
        bpf(LINK_CREATE, &attr).context("attach the program")
    }

    /// Gives the program a path in the BPF file system, for `tc`.
    pub fn pin(&self, path: &str) -> Result<()> {
        let path = CString::new(path)?;
        let mut attr = (path.as_ptr() as u64).to_ne_bytes().to_vec();
        attr.extend(words(&[self.fd.as_raw_fd() as u32, 0]));
        syscall(OBJ_PIN, &attr).map(drop).with_context(|| format!("pin to {path:?}"))
    }
}

/// One instruction: opcode, destination and source registers, offset, immediate.
fn op(code: u8, dst: u8, src: u8, off: i16, imm: i32) -> [u8; 8] {
    let mut bytes = [0; 8];
    bytes[0] = code;
    bytes[1] = src << 4 | dst;
    bytes[2..4].copy_from_slice(&off.to_ne_bytes());
    bytes[4..8].copy_from_slice(&imm.to_ne_bytes());
    bytes
}

/// The instructions of a program that drops what `matches` and passes the rest.
fn code(kind: Kind, matches: Match, map: RawFd) -> Vec<[u8; 8]> {
    // (data, data_end) in the context; bytes before the IP header; drop; pass.
    let (data, end, before, drop, pass) = match kind {
        Kind::Tc => (76, 80, 14, 2, -1),
        Kind::Xdp => (0, 4, 14, 1, 2),
        Kind::CgroupIngress | Kind::CgroupEgress => (76, 80, 0, 0, 1),
    };
    /// A jump to the last two instructions, which pass the packet.
    const PASS: i16 = i16::MAX;
    let mut code = vec![
        op(0x61, 2, 1, data, 0),   // r2 = data
        op(0x61, 3, 1, end, 0),    // r3 = data_end
        op(0x07, 2, 0, 0, before), // r2 += before
        op(0xbf, 4, 2, 0, 0),      // r4 = r2
    ];
    match matches {
        Match::UdpPort(port) => code.extend([
            op(0x07, 4, 0, 0, 44),                         // r4 += 44
            op(0x2d, 4, 3, PASS, 0),                       // if r4 > r3 goto pass
            op(0x71, 5, 2, 0, 0),                          // r5 = version and header length
            op(0x77, 5, 0, 0, 4),                          // r5 >>= 4
            op(0x55, 5, 0, 3, 4),                          // if r5 != 4 goto IPv6
            op(0x71, 5, 2, 9, 0),                          // r5 = protocol
            op(0x69, 7, 2, 22, 0),                         // r7 = destination port
            op(0x05, 0, 0, 3, 0),                          // goto compare
            op(0x55, 5, 0, PASS, 6),                       // IPv6: if r5 != 6 goto pass
            op(0x71, 5, 2, 6, 0),                          // r5 = next header
            op(0x69, 7, 2, 42, 0),                         // r7 = destination port
            op(0x55, 5, 0, PASS, 17),                      // compare: if r5 != UDP goto pass
            op(0x55, 7, 0, PASS, i32::from(port.to_be())), // if r7 != port goto pass
        ]),
        Match::Tos(tos) => code.extend([
            op(0x07, 4, 0, 0, 20),                // r4 += 20
            op(0x2d, 4, 3, PASS, 0),              // if r4 > r3 goto pass
            op(0x71, 5, 2, 0, 0),                 // r5 = version and header length
            op(0x55, 5, 0, PASS, 0x45),           // if r5 != 0x45 goto pass
            op(0x71, 5, 2, 1, 0),                 // r5 = type of service
            op(0x55, 5, 0, PASS, i32::from(tos)), // if r5 != tos goto pass
        ]),
    }
    code.extend([
        op(0x62, 10, 0, -4, 0),  // key = 0
        op(0xbf, 2, 10, 0, 0),   // r2 = frame
        op(0x07, 2, 0, 0, -4),   // r2 -= 4
        op(0x18, 1, 1, 0, map),  // r1 = map
        op(0, 0, 0, 0, 0),       // (its second half)
        op(0x85, 0, 0, 0, 1),    // call map_lookup_elem
        op(0x15, 0, 0, 2, 0),    // if r0 == 0 goto drop
        op(0xb7, 1, 0, 0, 1),    // r1 = 1
        op(0xdb, 0, 1, 0, 0),    // *r0 += r1, atomically
        op(0xb7, 0, 0, 0, drop), // r0 = drop
        op(0x95, 0, 0, 0, 0),    // exit
        op(0xb7, 0, 0, 0, pass), // pass: r0 = pass
        op(0x95, 0, 0, 0, 0),    // exit
    ]);
    let pass = code.len() - 2;
    for (at, instruction) in code.iter_mut().enumerate() {
        if instruction[2..4] == PASS.to_ne_bytes() {
            let distance = (pass - at - 1) as i16;
            instruction[2..4].copy_from_slice(&distance.to_ne_bytes());
        }
    }
    code
}

fn words(words: &[u32]) -> Vec<u8> {
    words.iter().flat_map(|word| word.to_ne_bytes()).collect()
}

fn bpf(command: u32, attr: &[u8]) -> io::Result<OwnedFd> {
    let fd = syscall(command, attr)?;
    // SAFETY: these commands return a new descriptor.
    Ok(unsafe { OwnedFd::from_raw_fd(fd as RawFd) })
}

fn syscall(command: u32, attr: &[u8]) -> io::Result<i64> {
    // Attributes with pointers need eight-byte alignment.
    let mut aligned = vec![0u64; attr.len().div_ceil(8)];
    for (word, bytes) in aligned.iter_mut().zip(attr.chunks(8)) {
        let mut whole = [0; 8];
        whole[..bytes.len()].copy_from_slice(bytes);
        *word = u64::from_ne_bytes(whole);
    }
    // SAFETY: `aligned` holds at least `attr.len()` bytes; the pointers inside live in the callers' frames.
    let done = unsafe { libc::syscall(libc::SYS_bpf, command, aligned.as_mut_ptr(), attr.len() as u32) };
    if done < 0 { Err(io::Error::last_os_error()) } else { Ok(done) }
}
