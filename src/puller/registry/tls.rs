//! Whom to trust: certificates of the system, of `--registry_ca`, and of a host's `hosts.toml`.
//!
//! Reading the system's certificates costs tens of milliseconds, so it is done when TLS is first spoken and never by a
//! command that finds its images in the store or on loopback. Names and chains are checked, unless a host's `hosts.toml` says
//! `skip_verify`: that then holds for this one host.

use std::io;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use rustls::{ClientConfig, RootCertStore};
use rustls_pki_types::CertificateDer;
use rustls_pki_types::pem::PemObject;

use super::identity::Identities;
use super::unverified::Unverified;

/// What sets a certificate authority that holds everywhere.
const FLAG: &str = "--registry_ca";
/// What sets one for a host.
pub(super) const CA: &str = "`ca` of its hosts.toml";
/// What sets who to be at a host.
pub(super) const CLIENT: &str = "`client` of its hosts.toml";

/// Whom to believe at a server, and who to be, besides what holds everywhere (the system's authorities, `--registry_ca`).
/// Servers of equal trust share connections.
#[derive(Clone, Debug, Default, PartialEq, Eq, Hash)]
pub(in crate::puller) struct Trust {
    /// Certificate authorities, PEM files.
    pub(super) ca: Vec<PathBuf>,
    /// Client certificates: PEM files with a certificate chain and its key, which may lie in one file.
    pub(super) client: Vec<(PathBuf, PathBuf)>,
    /// Any certificate will do: `skip_verify` of `hosts.toml`.
    pub(super) skip_verify: bool,
    /// What the files were when they were found: others since then are another trust.
    pub(super) stamp: u64,
}

impl Trust {
    /// What of it holds where a redirect leads: the authorities. No certificate of ours is shown there, and theirs is checked.
    pub(super) fn elsewhere(&self) -> Arc<Self> {
        let stamp = if self.ca.is_empty() { 0 } else { self.stamp };
        Arc::new(Self { ca: self.ca.clone(), stamp, ..Self::default() })
    }
}

/// Why TLS cannot be spoken at all.
#[derive(Debug, thiserror::Error)]
pub enum TlsError {
    /// A file of certificates or keys cannot be read.
    #[error("cannot read {path} ({set_by})")]
    Read {
        /// The file.
        path: PathBuf,
        /// The flag or key that names it.
        set_by: &'static str,
        /// Why.
        #[source]
        source: io::Error,
    },
    /// It is no PEM, or a certificate in it is none.
    #[error("{path} ({set_by}) holds something that is no certificate")]
    NoCertificate {
        /// The file.
        path: PathBuf,
        /// The flag or key that names it.
        set_by: &'static str,
        /// Why.
        #[source]
        source: Box<dyn std::error::Error + Send + Sync>,
    },
    /// It has no certificate.
    #[error("{path} ({set_by}) holds no certificate; it must be a PEM file with at least one")]
    Empty {
        /// The file.
        path: PathBuf,
        /// The flag or key that names it.
        set_by: &'static str,
    },
    /// A key that is none, or of a kind that is not known.
    #[error(
        "{path} ({set_by}) holds no private key that can be used; it must be PEM: PKCS#8, PKCS#1 or SEC1, without a passphrase"
    )]
    NoKey {
        /// The file.
        path: PathBuf,
        /// The flag or key that names it.
        set_by: &'static str,
    },
    /// A key that belongs to another certificate.
    #[error("the key in {key} does not belong to the certificate in {path} ({set_by})")]
    OtherKey {
        /// The file of the certificate.
        path: PathBuf,
        /// The file of the key.
        key: PathBuf,
        /// The flag or key that names them.
        set_by: &'static str,
    },
    /// The TLS library refuses its own defaults.
    #[error("cannot set up TLS")]
    Setup(#[source] rustls::Error),
}

/// The authorities that are believed everywhere: the system's (or those of `SSL_CERT_FILE` and `SSL_CERT_DIR`), and those of
/// `--registry_ca`.
///
/// # Blocking
/// Reads files: some 10 to 50 ms.
pub(super) fn roots(ca_file: Option<&Path>) -> Result<RootCertStore, TlsError> {
    let mut roots = RootCertStore::empty();
    if let Some(path) = ca_file {
        add_file(&mut roots, path, FLAG)?;
    }
    // Unreadable or strange certificates of the system are left out, as other clients do: a chain that needs one is refused
    // with a message that names --registry_ca.
    roots.add_parsable_certificates(rustls_native_certs::load_native_certs().certs);
    Ok(roots)
}

/// How TLS is spoken to hosts of this trust, without ALPN.
///
/// # Blocking
/// Reads the files it names.
pub(super) fn config(roots: &RootCertStore, trust: &Trust) -> Result<ClientConfig, TlsError> {
    let provider = Arc::new(rustls::crypto::ring::default_provider());
    let builder = ClientConfig::builder_with_provider(Arc::clone(&provider))
        .with_safe_default_protocol_versions()
        .map_err(TlsError::Setup)?;
    let builder = if trust.skip_verify {
        builder.dangerous().with_custom_certificate_verifier(Arc::new(Unverified::new(&provider)))
    } else {
        let mut roots = roots.clone();
        for path in &trust.ca {
            add_file(&mut roots, path, CA)?;
        }
        builder.with_root_certificates(roots)
    };
    if trust.client.is_empty() {
        return Ok(builder.with_no_client_auth());
    }
    let identities = Identities::read(&trust.client, &provider)?;
    Ok(builder.with_client_cert_resolver(Arc::new(identities)))
}

fn add_file(roots: &mut RootCertStore, path: &Path, set_by: &'static str) -> Result<(), TlsError> {
    for certificate in certificates(path, set_by)? {
        roots.add(certificate).map_err(|error| TlsError::NoCertificate {
            path: path.to_owned(),
            set_by,
            source: error.into(),
        })?;
    }
    Ok(())
}

/// The certificates in a PEM file, at least one.
pub(super) fn certificates(
    path: &Path,
    set_by: &'static str,
) -> Result<Vec<CertificateDer<'static>>, TlsError> {
    let pem = read(path, set_by)?;
    let certificates = CertificateDer::pem_slice_iter(&pem).collect::<Result<Vec<_>, _>>();
    let certificates = certificates.map_err(|error| TlsError::NoCertificate {
        path: path.to_owned(),
        set_by,
        source: error.into(),
    })?;
    if certificates.is_empty() {
        return Err(TlsError::Empty { path: path.to_owned(), set_by });
    }
    Ok(certificates)
}

pub(super) fn read(path: &Path, set_by: &'static str) -> Result<Vec<u8>, TlsError> {
    std::fs::read(path).map_err(|source| TlsError::Read { path: path.to_owned(), set_by, source })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn error(content: &str) -> TlsError {
        let file = tempfile::NamedTempFile::new().unwrap();
        std::fs::write(file.path(), content).unwrap();
        roots(Some(file.path())).unwrap_err()
    }

    #[test]
    fn a_ca_file_that_is_none_is_named_with_its_flag() {
        assert!(matches!(error(""), TlsError::Empty { .. }));
        assert!(matches!(error("hello\n"), TlsError::Empty { .. }));
        let bad = "-----BEGIN CERTIFICATE-----\nAAAA\n-----END CERTIFICATE-----\n";
        assert!(matches!(error(bad), TlsError::NoCertificate { .. }));
        let torn = "-----BEGIN CERTIFICATE-----\nAAAA\n";
        assert!(matches!(error(torn), TlsError::NoCertificate { .. }));
        let missing = roots(Some(Path::new("/nonexistent/ca.pem"))).unwrap_err();
        assert_eq!(missing.to_string(), "cannot read /nonexistent/ca.pem (--registry_ca)");
    }

    #[test]
    fn without_a_ca_file_the_system_alone_is_trusted() {
        let roots = roots(None).unwrap();
        assert!(config(&roots, &Trust::default()).is_ok());
    }
}
