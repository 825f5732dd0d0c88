//! The fingerprint of a record: equal in two agents' records of the same packet, connection or policy change.
//!
//! `pipeline/fingerprints.rs` decides what goes into it; docs/records.md has the rule.

use std::fmt;
use std::net::IpAddr;

use serde::de::{Deserialize, Deserializer};
use serde::{Serialize, Serializer};
use sha1::{Digest, Sha1};

const BYTES: usize = 16;

/// 128 bits of a hash; in records 32 hexadecimal digits.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub struct Fingerprint([u8; BYTES]);

impl Fingerprint {
    /// Returns the fingerprint of a record that no other agent can have: a hash of its id.
    pub fn of_id(id: &str) -> Fingerprint {
        FingerprintHasher::new("record").text(id).finish()
    }

    /// Returns the fingerprint of an event that is the same as `earlier` events before it.
    #[must_use]
    pub fn repeated(self, earlier: u64) -> Fingerprint {
        let mut hasher = FingerprintHasher::new("repeat").number(earlier);
        hasher.0.update(self.0);
        hasher.finish()
    }

    /// Deserializes the fingerprint of a record. Returns `None` if it is missing or has another form.
    pub fn lenient<'de, D: Deserializer<'de>>(deserializer: D) -> Result<Option<Fingerprint>, D::Error> {
        let text = Option::<String>::deserialize(deserializer)?.unwrap_or_default();
        let mut bytes = [0; BYTES];
        let digits = text.as_bytes();
        if digits.len() != 2 * BYTES {
            return Ok(None);
        }
        for (byte, pair) in bytes.iter_mut().zip(digits.chunks_exact(2)) {
            let pair = std::str::from_utf8(pair).ok().and_then(|pair| u8::from_str_radix(pair, 16).ok());
            let Some(pair) = pair else { return Ok(None) };
            *byte = pair;
        }
        Ok(Some(Fingerprint(bytes)))
    }
}

impl fmt::Display for Fingerprint {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.iter().try_for_each(|byte| write!(f, "{byte:02x}"))
    }
}

impl Serialize for Fingerprint {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.collect_str(self)
    }
}

/// Hashes the parts of a fingerprint. SHA-1 cut to 128 bits, as in a UUID, is enough: an attacker cannot choose both of two inputs.
#[derive(Debug, Clone)]
pub struct FingerprintHasher(Sha1);

impl FingerprintHasher {
    /// `what` is the kind of event. Fingerprints of different kinds differ.
    pub fn new(what: &str) -> FingerprintHasher {
        FingerprintHasher(Sha1::new()).text(what)
    }

    /// Adds a text with its length in front, so that `ab`, `c` differs from `a`, `bc`.
    #[must_use]
    pub fn text(self, text: &str) -> FingerprintHasher {
        let mut this = self.number(text.len() as u64);
        this.0.update(text);
        this
    }

    /// Adds a text that may be missing.
    #[must_use]
    pub fn maybe(self, text: Option<&str>) -> FingerprintHasher {
        match text {
            Some(text) => self.number(1).text(text),
            None => self.number(0),
        }
    }

    #[must_use]
    pub fn number(mut self, number: u64) -> FingerprintHasher {
        self.0.update(number.to_be_bytes());
        self
    }

    #[must_use]
    pub fn address(mut self, address: IpAddr) -> FingerprintHasher {
        match address {
            IpAddr::V4(address) => self.0.update(address.to_ipv6_mapped().octets()),
            IpAddr::V6(address) => self.0.update(address.octets()),
        }
        self
    }

    pub fn finish(self) -> Fingerprint {
        let mut bytes = [0; BYTES];
        bytes.copy_from_slice(&self.0.finalize()[..BYTES]);
        Fingerprint(bytes)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn parts_do_not_run_into_each_other() {
        let of = |one: &str, two: &str| FingerprintHasher::new("test").text(one).text(two).finish();
        assert_eq!(of("ab", "c"), of("ab", "c"));
        assert_ne!(of("ab", "c"), of("a", "bc"));
        assert_ne!(
            FingerprintHasher::new("test").maybe(None).finish(),
            FingerprintHasher::new("test").maybe(Some("")).finish()
        );
        assert_ne!(FingerprintHasher::new("a").finish(), FingerprintHasher::new("b").finish());
        let text = Fingerprint::of_id("a/1").to_string();
        assert!(text.len() == 32 && text.bytes().all(|byte| matches!(byte, b'0'..=b'9' | b'a'..=b'f')), "{text}");
    }

    #[test]
    fn another_form_is_no_fingerprint() {
        let read = |json: &str| Fingerprint::lenient(&mut serde_json::Deserializer::from_str(json)).unwrap();
        let own = Fingerprint::of_id("a/1");
        assert_eq!(read(&serde_json::to_string(&own).unwrap()), Some(own));
        for other in [r#""""#, r#""abc""#, r#""ééééééééééééééé!x""#, r#""0000000000000000000000000000000g""#, "null"]
        {
            assert_eq!(read(other), None, "{other}");
        }
    }
}
