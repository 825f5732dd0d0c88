//! Certificate authorities that an `otlp:https://` output trusts: those of `ca-file=`, else the system's, else Mozilla's list, which is part
//! of the program for images and nodes without any.

use std::fs::File;
use std::io::{self, Read};
use std::path::Path;

use rustls::RootCertStore;
use rustls::pki_types::CertificateDer;
use rustls::pki_types::pem::PemObject;

/// The most bytes that are read of a bundle; Mozilla's whole list has 220 KiB.
const MAX_BYTES: u64 = 4 << 20;
/// Environment variables that name the system's authorities, as for OpenSSL.
const VARIABLES: [&str; 2] = ["SSL_CERT_FILE", "SSL_CERT_DIR"];

/// Why the authorities can't be used. Each message says what to do.
#[derive(Debug, thiserror::Error)]
pub enum TrustError {
    #[error("ca-file={path}: {error}")]
    Unreadable { path: String, error: io::Error },
    #[error("ca-file={0}: no certificate in it; expected PEM: -----BEGIN CERTIFICATE-----")]
    NoCertificate(String),
    #[error("ca-file={path}: certificate {number} in it is broken: {error}")]
    Broken { path: String, number: usize, error: String },
    #[error(
        "{variable}={value}: no certificate authority there: {error}; name a PEM file of them, or unset {variable}"
    )]
    Variable { variable: &'static str, value: String, error: String },
    #[error("TLS: {0}")]
    Tls(rustls::Error),
}

/// With `ca-file=` only the authorities in that file.
pub fn authorities(ca: Option<&Path>) -> Result<RootCertStore, TrustError> {
    match ca {
        Some(path) => of_file(path),
        None => of_system(),
    }
}

fn of_file(path: &Path) -> Result<RootCertStore, TrustError> {
    let name = || path.display().to_string();
    let mut pem = Vec::new();
    let read = File::open(path).and_then(|file| file.take(MAX_BYTES).read_to_end(&mut pem));
    read.map_err(|error| TrustError::Unreadable { path: name(), error })?;
    let mut store = RootCertStore::empty();
    for (certificate, number) in CertificateDer::pem_slice_iter(&pem).zip(1..) {
        let added = certificate.map_err(|error| error.to_string());
        let added = added.and_then(|certificate| store.add(certificate).map_err(|error| error.to_string()));
        added.map_err(|error| TrustError::Broken { path: name(), number, error })?;
    }
    if store.is_empty() { Err(TrustError::NoCertificate(name())) } else { Ok(store) }
}

/// If a variable is set but leads to no authorities, that is an error: Mozilla's list does not replace them.
fn of_system() -> Result<RootCertStore, TrustError> {
    let found = rustls_native_certs::load_native_certs();
    let mut store = RootCertStore::empty();
    // Systems have authorities that rustls can't use (old versions, unusual encodings): they are skipped.
    store.add_parsable_certificates(found.certs);
    if !store.is_empty() {
        return Ok(store);
    }
    let set = VARIABLES.iter().find_map(|variable| Some((*variable, std::env::var_os(variable)?)));
    if let Some((variable, value)) = set {
        let value = value.to_string_lossy().into_owned();
        let errors: Vec<String> = found.errors.iter().map(ToString::to_string).collect();
        let error = if errors.is_empty() { "nothing found".to_owned() } else { errors.join("; ") };
        return Err(TrustError::Variable { variable, value, error });
    }
    tracing::debug!("no certificate authorities on this system: using Mozilla's list");
    store.extend(webpki_roots::TLS_SERVER_ROOTS.iter().cloned());
    Ok(store)
}

#[cfg(test)]
mod tests {
    use super::*;

    /// A self-signed authority, made by `openssl req -x509 -newkey ec -pkeyopt ec_paramgen_curve:P-256 -nodes -subj '/CN=netpol-trace
    /// tests' -days 36500`.
    const AUTHORITY: &str = include_str!("trust/authority.pem");

    fn wrong(pem: &str) -> String {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("ca.pem");
        std::fs::write(&path, pem).unwrap();
        of_file(&path).unwrap_err().to_string().replace(&path.display().to_string(), "PATH")
    }

    #[test]
    fn a_ca_file_has_certificates() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("ca.pem");
        // Text between certificates, such as a bundle's comments, is ignored.
        std::fs::write(&path, format!("# one\n{AUTHORITY}\n# again\n{AUTHORITY}")).unwrap();
        assert_eq!(of_file(&path).unwrap().len(), 2);
    }

    #[test]
    fn what_is_wrong_with_a_ca_file_is_named() {
        let none = of_file(Path::new("/nonexistent/ca.pem")).unwrap_err().to_string();
        assert_eq!(none, "ca-file=/nonexistent/ca.pem: No such file or directory (os error 2)");
        for empty in ["", "no PEM at all\n", "-----BEGIN PRIVATE KEY-----\nAAAA\n-----END PRIVATE KEY-----\n"] {
            assert!(wrong(empty).starts_with("ca-file=PATH: no certificate in it"), "{empty:?}: {}", wrong(empty));
        }
        let broken = format!("{AUTHORITY}-----BEGIN CERTIFICATE-----\nAAAA\n-----END CERTIFICATE-----\n");
        assert!(wrong(&broken).starts_with("ca-file=PATH: certificate 2 in it is broken: "), "{}", wrong(&broken));
    }

    /// The list for systems without authorities.
    #[test]
    fn authorities_are_brought_along() {
        assert!(webpki_roots::TLS_SERVER_ROOTS.len() > 100);
    }
}
