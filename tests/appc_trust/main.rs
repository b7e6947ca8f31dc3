//! Signatures of Appc images: what is accepted and what is refused, by the library on made-up keys, against gpg, and by the
//! commands that manage trusted keys.

#[path = "../support"]
mod support {
    pub(crate) mod aci;
    pub(crate) mod acis;
    pub(crate) mod binary;
    pub(crate) mod pgp;
    pub(crate) mod registry;
    pub(crate) mod servers;
}

mod commands;
mod gpg;
mod keys;
mod pulls;
mod signatures;
mod store;

use std::error::Error;
use std::path::PathBuf;

use keelblock::config::AppcVerify;
use keelblock::provider::appc::ports::{Signature, SignatureCheck};
use keelblock::provider::appc::trust::{Scope, Signatures, TrustError, TrustStore, read_keys};
use keelblock_actors::stop::Stop;

/// What everybody signs here.
const NAME: &str = "example.com/app";

/// A work directory with trusted keys, and an archive.
struct Bench {
    dir: tempfile::TempDir,
    policy: AppcVerify,
}

impl Bench {
    fn new() -> Self {
        Self { dir: tempfile::tempdir().unwrap(), policy: AppcVerify::IfPresent }
    }

    fn store(&self) -> TrustStore {
        TrustStore::at(self.dir.path())
    }

    /// Trusts all keys of a text, without asking whether they are good for anything.
    fn trust(&self, prefix: Option<&str>, keys: &str) -> Vec<PathBuf> {
        let scope = prefix.map_or(Scope::Root, |prefix| Scope::Prefix(prefix.parse().unwrap()));
        let keys = read_keys(keys.as_bytes(), "the test").unwrap();
        keys.iter().map(|key| self.store().add(&scope, key).unwrap()).collect()
    }

    /// Whether an archive of these bytes is accepted as [`NAME`].
    fn check(&self, aci: &[u8], signature: &str) -> Result<(), String> {
        self.check_as(NAME, aci, Some(signature.as_bytes()))
    }

    fn check_as(&self, name: &str, aci: &[u8], signature: Option<&[u8]>) -> Result<(), String> {
        let log = slog::Logger::root(slog::Discard, slog::o!());
        let signatures = Signatures::new(self.policy, self.store(), log);
        let signature =
            signature.map(|bytes| Signature { bytes: bytes.to_vec(), from: "image.aci.asc".to_owned() });
        let checked =
            signatures.check(&name.parse().unwrap(), &mut &*aci, signature.as_ref(), &Stop::default());
        checked.map(drop).map_err(|error| {
            let error = error.downcast_ref::<TrustError>().expect("errors are typed");
            let source = error.source().map(|source| format!(": {source}")).unwrap_or_default();
            format!("{error}{source}")
        })
    }
}

/// Expects a refusal that says this.
#[track_caller]
fn refused(checked: Result<(), String>, says: &str) {
    let error = checked.expect_err("it is refused");
    assert!(error.contains(says), "{error}\ndoes not say {says:?}");
}
