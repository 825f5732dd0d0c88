//! Reads the kernel's type information: offsets of fields, values of enumerators, argument counts of tracepoints. The types of aya's own
//! parser are private.
//!
//! Format: Documentation/bpf/btf.rst. The blob comes from the kernel, yet every access is checked.

use std::collections::HashMap;

/// The kernel's types, of /sys/kernel/btf/vmlinux.
#[derive(Debug)]
pub struct Btf<'a> {
    strings: &'a [u8],
    /// Offset of each type's 12-byte header in `types`; id 1 first.
    starts: Vec<u32>,
    types: &'a [u8],
    /// Structs, unions, enums and typedefs by (kind, name); the first of a name wins, as in the kernel.
    names: HashMap<(u32, &'a [u8]), u32>,
}

#[derive(Debug, thiserror::Error)]
pub enum BtfError {
    #[error("the kernel's BTF is damaged at byte {0}")]
    Damaged(usize),
    #[error("the kernel's BTF has no {0}")]
    Missing(String),
}

const INT: u32 = 1;
const ARRAY: u32 = 3;
const STRUCT: u32 = 4;
const UNION: u32 = 5;
const ENUM: u32 = 6;
const TYPEDEF: u32 = 8;
const VOLATILE: u32 = 9;
const CONST: u32 = 10;
const RESTRICT: u32 = 11;
const FUNC_PROTO: u32 = 13;
const VAR: u32 = 14;
const DATASEC: u32 = 15;
const DECL_TAG: u32 = 17;
const TYPE_TAG: u32 = 18;
const ENUM64: u32 = 19;
const PTR: u32 = 2;

const FWD: u32 = 7;
const FUNC: u32 = 12;

/// The deepest nesting of unnamed unions and structs; a deeper one is damage.
const MAX_DEPTH: u32 = 8;

struct Type {
    kind: u32,
    /// The kind_flag: member offsets have a bitfield size.
    flag: bool,
    count: u32,
    /// `size` or `type`, by kind.
    size_or_type: u32,
    body: usize,
}

impl<'a> Btf<'a> {
    pub fn parse(blob: &'a [u8]) -> Result<Btf<'a>, BtfError> {
        let word = |at: usize| -> Result<u32, BtfError> { read_u32(blob, at).ok_or(BtfError::Damaged(at)) };
        if word(0)? & 0xffff != 0xeb9f {
            return Err(BtfError::Damaged(0));
        }
        let header = word(4)? as usize;
        let section = |offset: usize, len: usize| -> Result<&'a [u8], BtfError> {
            let start = header.checked_add(offset).ok_or(BtfError::Damaged(offset))?;
            blob.get(start..).and_then(|b| b.get(..len)).ok_or(BtfError::Damaged(start))
        };
        let types = section(word(8)? as usize, word(12)? as usize)?;
        let strings = section(word(16)? as usize, word(20)? as usize)?;
        let mut btf = Btf { strings, starts: Vec::new(), types, names: HashMap::new() };
        btf.index()?;
        Ok(btf)
    }

    fn index(&mut self) -> Result<(), BtfError> {
        let mut at = 0;
        while at < self.types.len() {
            self.starts.push(at as u32);
            let id = self.starts.len() as u32;
            let name = read_u32(self.types, at).ok_or(BtfError::Damaged(at))?;
            let info = self.read(at)?;
            let body = match info.kind {
                INT | VAR | DECL_TAG => 4,
                ARRAY => 12,
                STRUCT | UNION | DATASEC | ENUM64 => info.count as usize * 12,
                ENUM | FUNC_PROTO => info.count as usize * 8,
                _ => 0,
            };
            if matches!(info.kind, STRUCT | UNION | ENUM | ENUM64 | TYPEDEF) && name != 0 {
                let kind = if info.kind == ENUM64 { ENUM } else { info.kind };
                let name = self.string(name);
                self.names.entry((kind, name)).or_insert(id);
            }
            at = info.body + body;
        }
        if at != self.types.len() {
            return Err(BtfError::Damaged(at));
        }
        Ok(())
    }

    fn read(&self, at: usize) -> Result<Type, BtfError> {
        let word = |offset| read_u32(self.types, at + offset).ok_or(BtfError::Damaged(at));
        let info = word(4)?;
        Ok(Type {
            kind: info >> 24 & 0x1f,
            flag: info >> 31 == 1,
            count: info & 0xffff,
            size_or_type: word(8)?,
            body: at + 12,
        })
    }

    fn get(&self, id: u32) -> Result<Type, BtfError> {
        let index = (id as usize).checked_sub(1).ok_or(BtfError::Damaged(0))?;
        let at = *self.starts.get(index).ok_or(BtfError::Damaged(id as usize))?;
        self.read(at as usize)
    }

    fn string(&self, offset: u32) -> &'a [u8] {
        let tail = self.strings.get(offset as usize..).unwrap_or_default();
        &tail[..tail.iter().position(|b| *b == 0).unwrap_or(tail.len())]
    }

    fn find(&self, kind: u32, name: &str) -> Result<u32, BtfError> {
        self.names.get(&(kind, name.as_bytes())).copied().ok_or_else(|| BtfError::Missing(name.to_owned()))
    }

    /// The struct or union behind typedefs and qualifiers.
    fn resolve(&self, mut id: u32) -> Result<(u32, Type), BtfError> {
        for _ in 0..MAX_DEPTH {
            let found = self.get(id)?;
            match found.kind {
                TYPEDEF | VOLATILE | CONST | RESTRICT | TYPE_TAG => id = found.size_or_type,
                _ => return Ok((id, found)),
            }
        }
        Err(BtfError::Damaged(id as usize))
    }

    /// Offset in bytes of `path` (`nd_net.net`) in `struct name`. Members of unnamed structs and unions count as the outer
    /// one's own. Bit fields have no such offset.
    pub fn offset_of(&self, name: &str, path: &str) -> Result<u32, BtfError> {
        let mut id = self.find(STRUCT, name)?;
        let mut offset = 0;
        for field in path.split('.') {
            let (bits, member) =
                self.member(id, field.as_bytes(), 0)?.ok_or_else(|| BtfError::Missing(format!("{name}.{path}")))?;
            offset += bits;
            id = member;
        }
        if offset % 8 != 0 {
            return Err(BtfError::Missing(format!("byte offset of {name}.{path}")));
        }
        Ok(offset / 8)
    }

    /// Offset in bits and type of a member; an array type counts as its element's type.
    fn member(&self, id: u32, name: &[u8], depth: u32) -> Result<Option<(u32, u32)>, BtfError> {
        let (_, mut found) = self.resolve(id)?;
        if found.kind == ARRAY {
            let element = read_u32(self.types, found.body).ok_or(BtfError::Damaged(found.body))?;
            found = self.resolve(element)?.1;
        }
        if !matches!(found.kind, STRUCT | UNION) || depth > MAX_DEPTH {
            return Ok(None);
        }
        for i in 0..found.count as usize {
            let at = found.body + i * 12;
            let word = |offset| read_u32(self.types, at + offset).ok_or(BtfError::Damaged(at));
            let (member_name, member_type, raw) = (word(0)?, word(4)?, word(8)?);
            let bits = if found.flag { raw & 0x00ff_ffff } else { raw };
            if member_name == 0 {
                if let Some((inner, member)) = self.member(member_type, name, depth + 1)? {
                    return Ok(Some((bits + inner, member)));
                }
            } else if self.string(member_name) == name {
                return Ok(Some((bits, member_type)));
            }
        }
        Ok(None)
    }

    /// Names and values of `enum name`.
    pub fn enumerators(&self, name: &str) -> Result<Vec<(String, u32)>, BtfError> {
        let found = self.get(self.find(ENUM, name)?)?;
        let step = if found.kind == ENUM64 { 12 } else { 8 };
        (0..found.count as usize)
            .map(|i| {
                let at = found.body + i * step;
                let word = |offset| read_u32(self.types, at + offset).ok_or(BtfError::Damaged(at));
                Ok((String::from_utf8_lossy(self.string(word(0)?)).into_owned(), word(4)?))
            })
            .collect()
    }

    /// A smaller blob in which only these tracepoints and functions are left, with their ids; other types are empty. It saves aya the time and
    /// memory for the rest.
    pub fn only(&self, tracepoints: &[&str], functions: &[&str]) -> Result<Vec<u8>, BtfError> {
        let (mut types, mut strings) = (Vec::new(), vec![0]);
        for at in &self.starts {
            let found = self.read(*at as usize)?;
            let name = || self.string(read_u32(self.types, *at as usize).unwrap_or_default());
            let wanted = match found.kind {
                FUNC => functions.iter().any(|function| function.as_bytes() == name()),
                TYPEDEF => {
                    name().strip_prefix(b"btf_trace_").is_some_and(|t| tracepoints.iter().any(|w| w.as_bytes() == t))
                }
                _ => false,
            };
            let words = if wanted {
                let offset = strings.len() as u32;
                strings.extend(name().iter().chain(&[0]));
                [offset, found.kind << 24, found.size_or_type]
            } else {
                [0, FWD << 24, 0]
            };
            types.extend(words.map(u32::to_ne_bytes).as_flattened());
        }
        let header = [0x0001_eb9f, 24, 0, types.len() as u32, types.len() as u32, strings.len() as u32];
        Ok([header.map(u32::to_ne_bytes).as_flattened(), &types, &strings].concat())
    }

    /// The number of arguments of the tracepoint `name`, without the kernel's internal first one.
    pub fn tracepoint_arguments(&self, name: &str) -> Result<u32, BtfError> {
        let typedef = self.get(self.find(TYPEDEF, &format!("btf_trace_{name}"))?)?;
        let (_, pointer) = self.resolve(typedef.size_or_type)?;
        let missing = || BtfError::Missing(format!("prototype of tracepoint {name}"));
        if pointer.kind != PTR {
            return Err(missing());
        }
        let (_, proto) = self.resolve(pointer.size_or_type)?;
        if proto.kind != FUNC_PROTO {
            return Err(missing());
        }
        proto.count.checked_sub(1).ok_or_else(missing)
    }
}

fn read_u32(bytes: &[u8], at: usize) -> Option<u32> {
    Some(u32::from_ne_bytes(bytes.get(at..at.checked_add(4)?)?.try_into().ok()?))
}

/// Requires the running kernel's BTF, for tests.
#[cfg(test)]
pub fn vmlinux() -> anyhow::Result<Vec<u8>> {
    let path = "/sys/kernel/btf/vmlinux";
    std::fs::read(path).map_err(|error| crate::skip::missing(format!("this kernel's BTF, {path}: {error}")))
}

#[cfg(test)]
mod tests {
    use super::*;
    use aya_obj::btf::BtfKind;
    use proptest::prelude::*;

    use crate::require;

    #[test]
    fn finds_fields_through_unnamed_unions() {
        let blob = require!(vmlinux());
        let btf = Btf::parse(&blob).unwrap();
        let head = btf.offset_of("sk_buff", "head").unwrap();
        assert_eq!(btf.offset_of("sk_buff", "data").unwrap(), head + 8);
        assert!(btf.offset_of("sk_buff", "dev").unwrap() < head, "dev is in a union before head");
        assert!(btf.offset_of("net_device", "nd_net.net").is_ok());
        assert!(btf.offset_of("sk_buff", "no_such_field").is_err());
    }

    /// aya finds the same ids in the smaller blob.
    #[test]
    fn the_smaller_blob_keeps_ids() {
        let blob = require!(vmlinux());
        let whole = aya::Btf::parse(&blob, Default::default()).unwrap();
        let left = Btf::parse(&blob).unwrap().only(&["kfree_skb"], &["icmp6_send"]).unwrap();
        assert!(left.len() < blob.len() / 2);
        let left = aya::Btf::parse(&left, Default::default()).unwrap();
        for (name, kind) in [("btf_trace_kfree_skb", BtfKind::Typedef), ("icmp6_send", BtfKind::Func)] {
            let number = |btf: &aya::Btf| btf.id_by_type_name_kind(name, kind).ok();
            assert_eq!(number(&left), number(&whole), "{name}");
        }
    }

    #[test]
    fn reads_enumerators_and_prototypes() {
        let blob = require!(vmlinux());
        let btf = Btf::parse(&blob).unwrap();
        assert!((2..=4).contains(&btf.tracepoint_arguments("kfree_skb").unwrap()));
        if let Ok(reasons) = btf.enumerators("skb_drop_reason") {
            assert!(reasons.iter().any(|(name, _)| name == "SKB_DROP_REASON_NETFILTER_DROP"));
        }
    }

    proptest! {
        #[test]
        fn damaged_blobs_are_errors(mut blob in proptest::collection::vec(any::<u8>(), 0..400), valid in any::<bool>()) {
            if valid && blob.len() > 24 {
                blob[..8].copy_from_slice(&[0x9f, 0xeb, 1, 0, 24, 0, 0, 0]);
                let half = ((blob.len() - 24) / 2) as u32;
                for (at, value) in [(8, 0), (12, half), (16, half), (20, half)] {
                    blob[at..at + 4].copy_from_slice(&value.to_ne_bytes());
                }
            }
            if let Ok(btf) = Btf::parse(&blob) {
                let _ = btf.offset_of("a", "b.c");
                for id in 0..=btf.starts.len() as u32 {
                    let _ = btf.member(id, b"x", 0);
                }
            }
        }
    }
}
