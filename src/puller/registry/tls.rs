//! Whom to trust: certificates of the system and of `--registry_ca`.
//!
//! Reading the system's certificates costs tens of milliseconds, so it is done when TLS is first spoken and never by a
//! command that finds its images in the store or on loopback. Names and chains are checked always; there is no way to switch
//! that off: an insecure registry is one over plain http.

use std::io;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use hyper_rustls::{HttpsConnector, HttpsConnectorBuilder};
use hyper_util::client::legacy::connect::HttpConnector;
use rustls::{ClientConfig, RootCertStore};
use rustls_pki_types::CertificateDer;
use rustls_pki_types::pem::PemObject;

/// Whom to believe at a server, and who to be, besides what holds everywhere (the system's authorities, `--registry_ca`).
/// Servers of equal trust share connections.
#[derive(Clone, Debug, Default, PartialEq, Eq, Hash)]
pub(super) struct Trust {
    /// Certificate authorities, PEM files.
    pub(super) ca: Vec<PathBuf>,
    /// Client certificates: PEM files with a certificate chain and its key, which may lie in one file.
    pub(super) client: Vec<(PathBuf, PathBuf)>,
    /// Any certificate will do: `skip_verify` of `hosts.toml`.
    pub(super) skip_verify: bool,
}

/// Why TLS cannot be spoken at all.
#[derive(Debug, thiserror::Error)]
pub enum TlsError {
    /// The file of `--registry_ca` cannot be read.
    #[error("cannot read {path} (--registry_ca)")]
    Read {
        /// The file.
        path: PathBuf,
        /// Why.
        #[source]
        source: io::Error,
    },
    /// It is no PEM, or a certificate in it is none.
    #[error("{path} (--registry_ca) holds something that is no certificate")]
    NoCertificate {
        /// The file.
        path: PathBuf,
        /// Why.
        #[source]
        source: Box<dyn std::error::Error + Send + Sync>,
    },
    /// It has no certificate.
    #[error("{path} (--registry_ca) holds no certificate; it must be a PEM file with at least one")]
    Empty {
        /// The file.
        path: PathBuf,
    },
    /// The TLS library refuses its own defaults.
    #[error("cannot set up TLS")]
    Setup(#[source] rustls::Error),
}

/// Speaks TLS over connections of `tcp`, trusting the system and the certificates in `ca_file`.
///
/// # Blocking
/// Reads files: some 10 to 50 ms.
pub(super) fn connector(
    ca_file: Option<&Path>,
    tcp: HttpConnector,
) -> Result<HttpsConnector<HttpConnector>, TlsError> {
    let mut roots = RootCertStore::empty();
    if let Some(path) = ca_file {
        add_file(&mut roots, path)?;
    }
    // Unreadable or strange certificates of the system are left out, as other clients do: a chain that needs one is refused
    // with a message that names --registry_ca.
    roots.add_parsable_certificates(rustls_native_certs::load_native_certs().certs);
    let provider = Arc::new(rustls::crypto::ring::default_provider());
    let config = ClientConfig::builder_with_provider(provider)
        .with_safe_default_protocol_versions()
        .map_err(TlsError::Setup)?
        .with_root_certificates(roots)
        .with_no_client_auth();
    let builder = HttpsConnectorBuilder::new().with_tls_config(config).https_only();
    Ok(builder.enable_http1().wrap_connector(tcp))
}

fn add_file(roots: &mut RootCertStore, path: &Path) -> Result<(), TlsError> {
    let pem = std::fs::read(path).map_err(|source| TlsError::Read { path: path.to_owned(), source })?;
    let wrong = |source: Box<dyn std::error::Error + Send + Sync>| TlsError::NoCertificate {
        path: path.to_owned(),
        source,
    };
    for certificate in CertificateDer::pem_slice_iter(&pem) {
        let certificate = certificate.map_err(|error| wrong(error.into()))?;
        roots.add(certificate).map_err(|error| wrong(error.into()))?;
    }
    if roots.is_empty() {
        return Err(TlsError::Empty { path: path.to_owned() });
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn error(content: &str) -> TlsError {
        let file = tempfile::NamedTempFile::new().unwrap();
        std::fs::write(file.path(), content).unwrap();
        connector(Some(file.path()), HttpConnector::new()).unwrap_err()
    }

    #[test]
    fn a_ca_file_that_is_none_is_named_with_its_flag() {
        assert!(matches!(error(""), TlsError::Empty { .. }));
        assert!(matches!(error("hello\n"), TlsError::Empty { .. }));
        let bad = "-----BEGIN CERTIFICATE-----\nAAAA\n-----END CERTIFICATE-----\n";
        assert!(matches!(error(bad), TlsError::NoCertificate { .. }));
        let torn = "-----BEGIN CERTIFICATE-----\nAAAA\n";
        assert!(matches!(error(torn), TlsError::NoCertificate { .. }));
        let missing = connector(Some(Path::new("/nonexistent/ca.pem")), HttpConnector::new()).unwrap_err();
        assert_eq!(missing.to_string(), "cannot read /nonexistent/ca.pem (--registry_ca)");
    }

    #[test]
    fn without_a_ca_file_the_system_alone_is_trusted() {
        assert!(connector(None, HttpConnector::new()).is_ok());
    }
}
