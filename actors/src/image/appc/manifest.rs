//! An image manifest (appc spec 0.8.11, aci.md), as it is kept once it was found valid.
//!
//! Written in a form of its own, in which a name and its labels are one text. Whether a text is a valid manifest is decided where
//! texts are read: `keelblock::provider::appc`.

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};

use super::identifier::{AcIdentifier, AcName};
use super::name::{AppcName, ImageId};

/// An image manifest.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct AppcManifest {
    /// `acVersion`: the version of the specification it was written for.
    pub ac_version: String,
    /// `name` and `labels`.
    pub name: AppcName,
    /// How to run it, if it can be run.
    pub app: Option<App>,
    /// `dependencies`, lowest first.
    pub dependencies: Vec<Dependency>,
    /// `pathWhitelist`; empty = everything.
    pub path_whitelist: Vec<String>,
    /// `annotations`.
    pub annotations: BTreeMap<AcIdentifier, String>,
}

/// An image whose files are below those of the one that names it.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Dependency {
    /// `imageName` and `labels`.
    pub name: AppcName,
    /// `imageID`, which the image must have.
    pub image_id: Option<ImageId>,
    /// `size`: bytes of its archive.
    pub size: Option<u64>,
}

/// `app`.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct App {
    /// The command; may be empty.
    #[serde(default)]
    pub exec: Vec<String>,
    /// A name, a number, or the path of a file whose owner it is.
    pub user: String,
    /// As `user`.
    pub group: String,
    /// Groups beside it.
    #[serde(default, rename = "supplementaryGIDs", skip_serializing_if = "Vec::is_empty")]
    pub supplementary_gids: Vec<u32>,
    /// At most one of each name.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub event_handlers: Vec<EventHandler>,
    /// Absolute.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub working_directory: Option<String>,
    /// Names and values.
    #[serde(default, skip_serializing_if = "Vec::is_empty", with = "pairs")]
    pub environment: Vec<(String, String)>,
    /// Where it expects data of others.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub mount_points: Vec<MountPoint>,
    /// What it listens on: told, not enforced.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub ports: Vec<Port>,
    /// Limits and rights.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub isolators: Vec<Isolator>,
    /// For users alone.
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    pub user_annotations: BTreeMap<String, String>,
    /// For users alone.
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    pub user_labels: BTreeMap<String, String>,
}

/// A hook.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct EventHandler {
    /// When.
    pub name: EventName,
    /// What.
    pub exec: Vec<String>,
}

/// When a hook runs.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum EventName {
    /// Before the command, which waits for its end.
    PreStart,
    /// After the command has ended.
    PostStop,
}

/// A place for a volume.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct MountPoint {
    /// What a volume is matched by.
    pub name: AcName,
    /// Where, absolute.
    pub path: String,
    /// Whether the app only reads there.
    #[serde(default)]
    pub read_only: bool,
}

/// A port or a range of them.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Port {
    /// Its name.
    pub name: AcName,
    /// `tcp`, `udp`, ...
    pub protocol: String,
    /// The first, 1 to 65535.
    pub port: u16,
    /// How many.
    #[serde(default = "one")]
    pub count: u32,
    /// Whether the app is handed the listening socket.
    #[serde(default)]
    pub socket_activated: bool,
}

fn one() -> u32 {
    1
}

/// A limit or right by name. Its value is what the name says it is; as text, for there is no JSON here.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Isolator {
    /// `resource/memory`, `os/linux/capabilities-retain-set`, ...
    pub name: AcIdentifier,
    /// As the manifest has it: JSON.
    pub value: String,
}

mod pairs {
    use serde::{Deserialize, Deserializer, Serialize, Serializer};

    #[derive(Serialize, Deserialize)]
    struct Pair {
        name: String,
        value: String,
    }

    pub(super) fn serialize<S: Serializer>(
        pairs: &[(String, String)],
        serializer: S,
    ) -> Result<S::Ok, S::Error> {
        serializer
            .collect_seq(pairs.iter().map(|(name, value)| Pair { name: name.clone(), value: value.clone() }))
    }

    pub(super) fn deserialize<'de, D: Deserializer<'de>>(
        deserializer: D,
    ) -> Result<Vec<(String, String)>, D::Error> {
        let pairs = Vec::<Pair>::deserialize(deserializer)?;
        Ok(pairs.into_iter().map(|pair| (pair.name, pair.value)).collect())
    }
}
