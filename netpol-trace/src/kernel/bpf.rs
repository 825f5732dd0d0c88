//! Calls of bpf(2) for which aya has no function.

use std::io;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, FromRawFd, OwnedFd};

const BPF_MAP_CREATE: libc::c_long = 0;
const BPF_MAP_LOOKUP_ELEM: libc::c_long = 1;
const BPF_MAP_UPDATE_ELEM: libc::c_long = 2;
const BPF_PROG_GET_FD_BY_ID: libc::c_long = 13;
const BPF_OBJ_GET_INFO_BY_FD: libc::c_long = 15;
const BPF_PROG_QUERY: libc::c_long = 16;
const BPF_MAP_LOOKUP_AND_DELETE_BATCH: libc::c_long = 25;
const BPF_MAP_TYPE_ARRAY_OF_MAPS: u32 = 12;
const BPF_NETKIT_PRIMARY: u32 = 54;
const BPF_NETKIT_PEER: u32 = 55;

/// SAFETY: `attr` must be the member of union bpf_attr for `command`, and its pointers must be valid for its lengths.
unsafe fn bpf<A>(command: libc::c_long, attr: &mut A) -> io::Result<libc::c_long> {
    // SAFETY: the caller's promise.
    let result = unsafe { libc::syscall(libc::SYS_bpf, command, std::ptr::from_mut(attr), size_of::<A>()) };
    if result < 0 { Err(io::Error::last_os_error()) } else { Ok(result) }
}

/// Takes every entry out of a hash map that no program uses meanwhile, in batches (from 5.6).
///
/// # Errors
/// The kernel's error. Entries of earlier batches have been taken.
pub fn take_all<K: Copy + Default, V: Copy + Default>(
    map: BorrowedFd<'_>,
    mut take: impl FnMut(&K, &V),
) -> io::Result<()> {
    /// More than a bucket of a hash map ever holds: otherwise the call fails.
    const BATCH: usize = 1024;
    #[repr(C)]
    struct Attr {
        in_batch: u64,
        out_batch: u64,
        keys: u64,
        values: u64,
        count: u32,
        map: u32,
        element_flags: u64,
        flags: u64,
    }
    let (mut keys, mut values) = (vec![K::default(); BATCH], vec![V::default(); BATCH]);
    let (mut from, mut to) = (0u32, 0u32);
    let mut begun = false;
    loop {
        let mut attr = Attr {
            in_batch: if begun { &raw mut from as u64 } else { 0 },
            out_batch: &raw mut to as u64,
            keys: keys.as_mut_ptr() as u64,
            values: values.as_mut_ptr() as u64,
            count: BATCH as u32,
            map: map.as_raw_fd() as u32,
            element_flags: 0,
            flags: 0,
        };
        // SAFETY: the batch member; both arrays hold `count` entries of plain words, and the tokens of a hash map are u32.
        let result = unsafe { bpf(BPF_MAP_LOOKUP_AND_DELETE_BATCH, &mut attr) };
        // ENOENT marks the last batch.
        let end = result.as_ref().is_err_and(|error| error.raw_os_error() == Some(libc::ENOENT));
        if result.is_ok() || end {
            let count = attr.count as usize;
            keys.iter().zip(&values).take(count).for_each(|(key, value)| take(key, value));
        }
        match result {
            Ok(_) => (begun, from) = (true, to),
            Err(_) if end => return Ok(()),
            Err(error) => return Err(error),
        }
    }
}

/// The element member of union bpf_attr.
#[repr(C)]
struct Element {
    map: u32,
    pad: u32,
    key: u64,
    value: u64,
    flags: u64,
}

/// Writes an entry of an array map with values of type `V`.
pub fn set<V: Copy>(map: BorrowedFd<'_>, at: u32, value: &V) -> io::Result<()> {
    let (key, value) = (&raw const at as u64, std::ptr::from_ref(value) as u64);
    let mut attr = Element { map: map.as_raw_fd() as u32, pad: 0, key, value, flags: 0 };
    // SAFETY: callers pass a map with keys and values of these types.
    unsafe { bpf(BPF_MAP_UPDATE_ELEM, &mut attr) }.map(drop)
}

/// Reads an entry of an array map with values of type `V`.
pub fn get<V: Copy + Default>(map: BorrowedFd<'_>, at: u32) -> io::Result<V> {
    let mut found = V::default();
    let (key, value) = (&raw const at as u64, &raw mut found as u64);
    let mut attr = Element { map: map.as_raw_fd() as u32, pad: 0, key, value, flags: 0 };
    // SAFETY: as above; the kernel fills `found`.
    unsafe { bpf(BPF_MAP_LOOKUP_ELEM, &mut attr) }.map(|_| found)
}

/// Names of the programs on both ends of a netkit pair (from 6.7). `index` is the host's end.
///
/// # Errors
/// The device is not the host's end of a netkit pair; the kernel has no netkit; permission is missing.
pub fn netkit_programs(index: u32) -> io::Result<Vec<String>> {
    /// More programs than a device ever has.
    const MOST: usize = 64;
    #[repr(C)]
    struct Query {
        index: u32,
        attach_type: u32,
        query_flags: u32,
        attach_flags: u32,
        programs: u64,
        count: u32,
        pad: u32,
        program_flags: u64,
        links: u64,
        link_flags: u64,
        revision: u64,
    }
    let mut names = Vec::new();
    for attach_type in [BPF_NETKIT_PRIMARY, BPF_NETKIT_PEER] {
        let mut ids = [0u32; MOST];
        let mut query = Query {
            index,
            attach_type,
            query_flags: 0,
            attach_flags: 0,
            programs: ids.as_mut_ptr() as u64,
            count: MOST as u32,
            pad: 0,
            program_flags: 0,
            links: 0,
            link_flags: 0,
            revision: 0,
        };
        // SAFETY: the query member; `ids` has room for `count`.
        unsafe { bpf(BPF_PROG_QUERY, &mut query) }?;
        // A program that was removed meanwhile has no name.
        names.extend(ids.iter().take(query.count as usize).filter_map(|id| program_name(*id).ok()));
    }
    Ok(names)
}

fn program_name(id: u32) -> io::Result<String> {
    /// The position of the name in `struct bpf_prog_info`.
    const NAME: std::ops::Range<usize> = 64..80;
    #[repr(C)]
    struct Id {
        id: u32,
        next: u32,
        flags: u32,
    }
    #[repr(C)]
    struct Info {
        program: u32,
        length: u32,
        info: u64,
    }
    // SAFETY: the member for ids, without pointers.
    let fd = unsafe { bpf(BPF_PROG_GET_FD_BY_ID, &mut Id { id, next: 0, flags: 0 }) }?;
    // SAFETY: a new descriptor that nothing else owns.
    let fd = unsafe { OwnedFd::from_raw_fd(fd as i32) };
    let mut info = [0u64; NAME.end / 8];
    let mut attr = Info { program: fd.as_raw_fd() as u32, length: NAME.end as u32, info: info.as_mut_ptr() as u64 };
    // SAFETY: the info member; the kernel writes at most `length` bytes.
    unsafe { bpf(BPF_OBJ_GET_INFO_BY_FD, &mut attr) }?;
    let bytes: Vec<u8> = info.iter().flat_map(|word| word.to_ne_bytes()).collect();
    let name = bytes[NAME].split(|byte| *byte == 0).next().unwrap_or_default();
    Ok(String::from_utf8_lossy(name).into_owned())
}

/// Waits for an RCU grace period: until every program that is running now has ended.
///
/// The kernel waits for one whenever a map of maps is updated, so that the old inner map can be read afterwards. membarrier(2) fails on
/// kernels with `nohz_full`.
#[derive(Debug)]
pub struct GracePeriod {
    outer: OwnedFd,
}

impl GracePeriod {
    /// `inner` is any array map.
    pub fn new(inner: BorrowedFd<'_>) -> io::Result<GracePeriod> {
        #[repr(C)]
        struct Attr {
            map_type: u32,
            key_size: u32,
            value_size: u32,
            max_entries: u32,
            map_flags: u32,
            inner_map: u32,
        }
        let inner = inner.as_raw_fd() as u32;
        let mut attr = Attr {
            map_type: BPF_MAP_TYPE_ARRAY_OF_MAPS,
            key_size: 4,
            value_size: 4,
            max_entries: 1,
            map_flags: 0,
            inner_map: inner,
        };
        // SAFETY: the map-create member, up to `inner_map_fd`.
        let fd = unsafe { bpf(BPF_MAP_CREATE, &mut attr) }?;
        // SAFETY: a new descriptor that nothing else owns.
        Ok(GracePeriod { outer: unsafe { OwnedFd::from_raw_fd(fd as i32) } })
    }

    pub fn wait(&self, inner: BorrowedFd<'_>) -> io::Result<()> {
        set(self.outer.as_fd(), 0, &inner.as_raw_fd())
    }
}
