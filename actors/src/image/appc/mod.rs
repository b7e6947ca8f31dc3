//! Application Container Images (appc spec 0.8.11): their names, their manifests, and what of their archives is shown.

mod identifier;
mod manifest;
mod name;
mod view;

pub use identifier::{AcIdentifier, AcName, IdentifierError};
pub use manifest::{App, AppcManifest, Dependency, EventHandler, EventName, Isolator, MountPoint, Port};
pub use name::{AppcName, AppcNameError, AppcReference, ImageId};
pub use view::{AciView, PathWhitelist};

/// The label that names the operating system.
pub const LABEL_OS: &str = "os";
/// The label that names the processor.
pub const LABEL_ARCH: &str = "arch";
/// The label that tells builds of one name apart.
pub const LABEL_VERSION: &str = "version";
