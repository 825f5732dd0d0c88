//! Untrusted manifests, through reader, decoder, index and lint.
#![no_main]

use libfuzzer_sys::fuzz_target;
use netpol_trace::cluster::{Index, manifests};

fuzz_target!(|bytes: &[u8]| {
    let loaded = manifests::load_bytes("fuzz.yaml", bytes);
    for problem in &loaded.problems {
        assert!(!problem.to_string().is_empty());
    }
    let _ = netpol_trace::policy::lint::lint(&loaded, &[]);
    let _ = Index::from_objects(loaded.objects.into_iter().map(|located| located.object));
});
