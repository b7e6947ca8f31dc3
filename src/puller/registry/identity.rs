//! Who to be over TLS: client certificates and their keys.

use std::path::PathBuf;
use std::sync::Arc;

use rustls::SignatureScheme;
use rustls::client::ResolvesClientCert;
use rustls::crypto::CryptoProvider;
use rustls::sign::CertifiedKey;
use rustls_pki_types::PrivateKeyDer;
use rustls_pki_types::pem::PemObject;

use super::tls::{self, CLIENT, TlsError};

/// Certificates to choose from when a server asks for one.
#[derive(Debug)]
pub(super) struct Identities(Vec<Arc<CertifiedKey>>);

impl Identities {
    /// Those of these pairs of files: chain and key, which may be one file.
    ///
    /// # Blocking
    /// Reads the files.
    pub(super) fn read(pairs: &[(PathBuf, PathBuf)], provider: &CryptoProvider) -> Result<Self, TlsError> {
        let keys = pairs.iter().map(|(path, key)| {
            let chain = tls::certificates(path, CLIENT)?;
            let no_key = || TlsError::NoKey { path: key.clone(), set_by: CLIENT };
            let der = PrivateKeyDer::from_pem_slice(&tls::read(key, CLIENT)?).map_err(|_| no_key())?;
            let signer = provider.key_provider.load_private_key(der).map_err(|_| no_key())?;
            let certified = CertifiedKey::new(chain, signer);
            // A key of a kind that cannot tell its public half is left to the server to refuse.
            if let Err(rustls::Error::InconsistentKeys(rustls::InconsistentKeys::KeyMismatch)) =
                certified.keys_match()
            {
                return Err(TlsError::OtherKey { path: path.clone(), key: key.clone(), set_by: CLIENT });
            }
            Ok(Arc::new(certified))
        });
        keys.collect::<Result<_, _>>().map(Self)
    }
}

impl ResolvesClientCert for Identities {
    /// The first that can sign as the server wants and that one of the authorities it names has issued; else the first that
    /// can sign, as servers need not name theirs.
    fn resolve(&self, issuers: &[&[u8]], schemes: &[SignatureScheme]) -> Option<Arc<CertifiedKey>> {
        let able = || self.0.iter().filter(|key| key.key.choose_scheme(schemes).is_some());
        // The encoded name of its issuer lies in every certificate as it is; no other field is compared.
        let issued = |key: &&Arc<CertifiedKey>| {
            key.cert.iter().any(|certificate| {
                issuers.iter().any(|name| {
                    !name.is_empty() && certificate.windows(name.len()).any(|window| window == *name)
                })
            })
        };
        able().find(issued).or_else(|| able().next()).cloned()
    }

    fn has_certs(&self) -> bool {
        !self.0.is_empty()
    }
}
