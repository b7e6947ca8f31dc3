//! Flags: what was typed, in the environment or in a file, turned into a checked [`Config`].
//!
//! [`FLAGS`] is the one table: the command line, `KEELBLOCK_<FLAG>`, the TOML file of `--config`, `--help` and the
//! man page are all made from it. Precedence: command line over environment over file over default.

mod flags;
pub(crate) mod values;

use std::path::{Path, PathBuf};
use std::time::Duration;

use keelblock_actors::container::BackendName;
use keelblock_actors::image::name::PullPolicy;
use keelblock_actors::launch::CapabilitySet;

use crate::limits::Limits;
use crate::provider::manifest::Platform;
use crate::puller::registry::{DockerConfigSource, NoProxy, Proxy};
use crate::records::layout;
use crate::store::{DiskStore, LayerForm, SyncMode};

pub use flags::{FLAGS, Flag};

/// Which Appc images must be signed.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum AppcVerify {
    /// All.
    Required,
    /// A signature that is there must be good, and by a key that is trusted for the name.
    #[default]
    IfPresent,
    /// Signatures are not looked at.
    None,
}

/// Everything an agent is started with. `Config::default()` is what no flag at all means.
#[derive(Clone, Debug)]
pub struct Config {
    /// Everything keelblock writes lies below it, save what the store flags name.
    pub work_dir: PathBuf,
    /// Which kinds of image are served.
    pub image_providers: Vec<String>,
    /// `None` = overlay where it works, else copy.
    pub backend: Option<BackendName>,
    /// Whether the bind backend takes one layer only, as Mesos' does.
    pub bind_strict: bool,
    /// Where docker images without a registry in their name come from, as typed.
    pub docker_registry: String,
    /// Layers and image records; `None` = `<work_dir>/store`.
    pub docker_store_dir: Option<PathBuf>,
    /// `--appc_store_dir`.
    pub appc_store_dir: Option<PathBuf>,
    /// `--appc_simple_discovery_uri_prefix`.
    pub appc_simple_discovery_uri_prefix: String,
    /// `--appc_verify`.
    pub appc_verify: AppcVerify,
    /// In which form layers are kept that come from now on.
    pub layer_form: LayerForm,
    /// How often layers are verified in the background; `None` = never.
    pub scrub_interval: Option<Duration>,
    /// Bytes a second that are read for it; `None` = [`SCRUB_RATE`] in the background, no limit for `keelblock scrub`.
    pub scrub_rate: Option<u64>,
    /// When sources of images are asked; `None` = when an image is missing, and by `keelblock pull` always.
    pub image_pull_policy: Option<PullPolicy>,
    /// Whether an image in the store is given only to those to whom its registry gives it now.
    pub authorize_stored_images: bool,
    /// Credentials `USER:PASSWORD` for registries.
    pub docker_auth: Option<Secret>,
    /// The docker config that credentials are looked up in; `None` = those in the usual places.
    pub docker_config: Option<DockerConfigSource>,
    /// More certificate authorities, PEM.
    pub registry_ca: Option<PathBuf>,
    /// Directories with a `hosts.toml` for each registry.
    pub registry_config_path: Vec<PathBuf>,
    /// The proxy for hosts spoken to over TLS; `None` = that of the environment.
    pub https_proxy: Option<Proxy>,
    /// The proxy for hosts spoken to in plain http; `None` = that of the environment.
    pub http_proxy: Option<Proxy>,
    /// Hosts that no proxy is used for; `None` = those of the environment.
    pub no_proxy: Option<NoProxy>,
    /// Whether HTTP/2 is never spoken.
    pub disable_http2: bool,
    /// Hosts spoken to in plain http.
    pub docker_insecure_registries: Vec<String>,
    /// What is chosen from an index.
    pub platform: Option<Platform>,
    /// Isolators by name, in the order typed.
    pub isolation: Vec<String>,
    /// Where a container finds its sandbox.
    pub sandbox_directory: PathBuf,
    /// Capabilities of containers that ask for none.
    pub effective_capabilities: Option<CapabilitySet>,
    /// What containers may ask for at most.
    pub bounding_capabilities: Option<CapabilitySet>,
    /// Whether Entrypoint, Cmd, Env, WorkingDir and User of docker images are ignored.
    pub docker_ignore_runtime: bool,
    /// Whether the `User` of docker images is ignored, as Mesos does.
    pub docker_ignore_user: bool,
    /// Whether arguments replace the whole command of an image, as `docker run` does and `keelblock run` wants; else
    /// Mesos's table holds, in which its first word stays.
    pub arguments_replace_cmd: bool,
    /// `--appc_strict_isolators`: an Appc image runs only if all isolators that it names are in place.
    pub appc_strict_isolators: bool,
    /// `--cgroups_hierarchy`: where cgroups are mounted.
    pub cgroups_hierarchy: PathBuf,
    /// `--cgroups_root`: below which cgroup those of containers are.
    pub cgroups_root: PathBuf,
    /// When a pull is done.
    pub sync: SyncMode,
    /// See [`Limits`].
    pub limits: Limits,
    /// Least severe level that is logged.
    pub log_level: slog::Level,
    /// One JSON object a line instead of text.
    pub log_json: bool,
    /// Whether root filesystems must stay when this process ends: rules out mounts where they would go with it.
    pub mounts_must_outlive: bool,
    /// Whether what nobody waits for (large trees that are to go, layers that are to reach the disk) is left, for the command that started this agent to see to: see
    /// [`crate::gc`]. Else a thread of this process removes them.
    pub leave_garbage: bool,
    /// Flags that were given and have no effect, for a warning.
    pub without_effect: Vec<&'static str>,
}

/// A text that must never be printed.
#[derive(Clone, PartialEq, Eq)]
pub struct Secret(pub String);

impl std::fmt::Debug for Secret {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("(secret)")
    }
}

/// Why the flags make no configuration.
#[derive(Debug, thiserror::Error)]
pub enum ConfigError {
    /// A value does not parse; the text says what would.
    #[error("--{flag}={value}: {reason} (from {origin})")]
    Value {
        /// The flag.
        flag: &'static str,
        /// As given, cut; `...` for secrets.
        value: String,
        /// What is wrong with it.
        reason: String,
        /// Command line, environment or which file.
        origin: String,
    },
    /// The file of `--config` cannot be read.
    #[error("cannot read the configuration file {path}")]
    File {
        /// Which.
        path: PathBuf,
        /// Why.
        #[source]
        source: std::io::Error,
    },
    /// It is no TOML, or holds something that is no flag.
    #[error("configuration file {path}: {reason}")]
    Toml {
        /// Which.
        path: PathBuf,
        /// Why.
        reason: String,
    },
}

/// Bytes a second that are read to verify layers in the background. 16 MiB: a tenth of a slow disk.
pub const SCRUB_RATE: u64 = 16 << 20;

/// Flags whose values have passwords in them.
const SECRET: [&str; 4] = ["docker_auth", "docker_config", "https_proxy", "http_proxy"];

impl Default for Config {
    fn default() -> Self {
        Self {
            work_dir: default_work_dir(),
            image_providers: ["docker", "oci", "appc"].map(str::to_owned).into(),
            backend: None,
            bind_strict: false,
            docker_registry: "https://registry-1.docker.io".to_owned(),
            docker_store_dir: None,
            appc_store_dir: None,
            appc_simple_discovery_uri_prefix: "https://".to_owned(),
            appc_verify: AppcVerify::default(),
            layer_form: LayerForm::default(),
            scrub_interval: None,
            scrub_rate: None,
            image_pull_policy: None,
            authorize_stored_images: false,
            docker_auth: None,
            docker_config: None,
            registry_ca: None,
            registry_config_path: Vec::new(),
            https_proxy: None,
            http_proxy: None,
            no_proxy: None,
            disable_http2: false,
            docker_insecure_registries: Vec::new(),
            platform: None,
            isolation: crate::isolator::DEFAULT_ISOLATION.iter().map(|&name| name.to_owned()).collect(),
            sandbox_directory: PathBuf::from("/mnt/mesos/sandbox"),
            effective_capabilities: None,
            bounding_capabilities: None,
            docker_ignore_runtime: false,
            docker_ignore_user: false,
            arguments_replace_cmd: false,
            appc_strict_isolators: false,
            cgroups_hierarchy: PathBuf::from("/sys/fs/cgroup"),
            cgroups_root: PathBuf::from("keelblock"),
            sync: SyncMode::default(),
            limits: Limits::default(),
            log_level: slog::Level::Warning,
            log_json: false,
            mounts_must_outlive: false,
            leave_garbage: false,
            without_effect: Vec::new(),
        }
    }
}

impl Config {
    /// A configuration from the TOML file `file` (if any), then the environment as `env` answers for
    /// `KEELBLOCK_<FLAG>`, then `typed` pairs of flag name and text. Switches have the text `true`.
    ///
    /// # Errors
    /// [`ConfigError`] for the first value that does not parse, naming flag, value and origin.
    pub fn layered<'a>(
        file: Option<&Path>,
        env: impl Fn(&str) -> Option<String>,
        typed: impl IntoIterator<Item = (&'a str, String)>,
    ) -> Result<Self, ConfigError> {
        let mut config = Self::default();
        if let Some(path) = file {
            config.apply_file(path)?;
        }
        for flag in FLAGS {
            let variable = format!("KEELBLOCK_{}", flag.name.to_ascii_uppercase());
            if let Some(text) = env(&variable).filter(|text| !text.is_empty()) {
                config.apply(flag, &text, &variable)?;
            }
        }
        for (name, text) in typed {
            if let Some(flag) = FLAGS.iter().find(|flag| flag.name == name) {
                config.apply(flag, &text, "the command line")?;
            }
        }
        Ok(config)
    }

    /// Where layers and image records lie.
    pub fn store_dir(&self) -> PathBuf {
        self.docker_store_dir.clone().unwrap_or_else(|| self.work_dir.join("store"))
    }

    /// Where all stores are: that of [`Self::store_dir`] first, then that of Appc images, if they have one of their own.
    pub fn store_dirs(&self) -> Vec<PathBuf> {
        let main = self.store_dir();
        let same = |one: &Path, other: &Path| {
            one == other
                || one.canonicalize().is_ok_and(|one| other.canonicalize().is_ok_and(|other| one == other))
        };
        let appc = self.appc_store_dir.clone().filter(|appc| !same(appc, &main));
        std::iter::once(main).chain(appc).collect()
    }

    /// Where trees on their way out lie: of layers, and of root filesystems.
    pub fn gc_dirs(&self) -> Vec<PathBuf> {
        let stores = self.store_dirs();
        let of_stores = stores.iter().map(|dir| DiskStore::gc_dir(dir));
        of_stores.chain([layout::gc_dir(&self.work_dir)]).collect()
    }

    fn apply(&mut self, flag: &'static Flag, text: &str, origin: &str) -> Result<(), ConfigError> {
        let wrong = |reason: String| {
            let value = if SECRET.contains(&flag.name) {
                "...".to_owned()
            } else {
                keelblock_actors::error::quote(text)
            };
            ConfigError::Value { flag: flag.name, value, reason, origin: origin.to_owned() }
        };
        // Mesos: a value file:///path stands for the content of that file. Not for the registry, where it is a
        // place of its own right, nor for the docker config, which is read again when it changes.
        let content = match text.strip_prefix("file://") {
            Some(path)
                if !matches!(flag.name, "docker_registry" | "docker_config") && path.starts_with('/') =>
            {
                Some(
                    std::fs::read_to_string(path)
                        .map_err(|error| wrong(format!("cannot read {path}: {error}")))?,
                )
            }
            _ => None,
        };
        (flag.set)(self, content.as_deref().unwrap_or(text)).map_err(wrong)
    }

    fn apply_file(&mut self, path: &Path) -> Result<(), ConfigError> {
        let text = std::fs::read_to_string(path)
            .map_err(|source| ConfigError::File { path: path.to_owned(), source })?;
        let wrong = |reason: String| ConfigError::Toml { path: path.to_owned(), reason };
        let table: toml::Table = text.parse().map_err(|error: toml::de::Error| wrong(error.to_string()))?;
        for (key, value) in table {
            let name = key.replace('-', "_");
            let Some(flag) = FLAGS.iter().find(|flag| flag.name == name) else {
                return Err(wrong(format!("{key:?} is no flag; see keelblock --help")));
            };
            let text = match value {
                toml::Value::String(text) => text,
                toml::Value::Integer(number) => number.to_string(),
                toml::Value::Boolean(yes) => yes.to_string(),
                toml::Value::Array(items) if items.iter().all(toml::Value::is_str) => {
                    items.iter().filter_map(toml::Value::as_str).collect::<Vec<_>>().join(",")
                }
                _ => {
                    return Err(wrong(format!(
                        "{key} must be a string, a number, a boolean or a list of strings"
                    )));
                }
            };
            self.apply(flag, &text, &path.display().to_string())?;
        }
        Ok(())
    }
}

/// `/var/lib/keelblock` for root, `$XDG_DATA_HOME/keelblock` (or `~/.local/share/keelblock`) otherwise.
fn default_work_dir() -> PathBuf {
    // In a user namespace the user is root by name only.
    if nix::unistd::geteuid().is_root() && crate::rootless::IdMaps::read().is_whole_machine() {
        return PathBuf::from("/var/lib/keelblock");
    }
    let from = |name: &str| std::env::var_os(name).map(PathBuf::from).filter(|path| path.is_absolute());
    let data = from("XDG_DATA_HOME").or_else(|| from("HOME").map(|home| home.join(".local/share")));
    data.unwrap_or_else(|| PathBuf::from("/var/tmp").join(format!("keelblock-{}", nix::unistd::getuid())))
        .join("keelblock")
}

#[cfg(test)]
mod tests {
    use super::values::{bytes, seconds};
    use super::*;

    fn from(typed: &[(&str, &str)]) -> Result<Config, ConfigError> {
        Config::layered(None, |_| None, typed.iter().map(|&(name, text)| (name, text.to_owned())))
    }

    #[test]
    fn the_command_line_wins_over_the_environment_and_that_over_the_file() {
        let dir = tempfile::tempdir().unwrap();
        let file = dir.path().join("c.toml");
        std::fs::write(&file, "work_dir = '/file'\nlayers-max = 3\nlog_level = 'info'\n").unwrap();
        let env = |name: &str| match name {
            "KEELBLOCK_WORK_DIR" => Some("/env".to_owned()),
            "KEELBLOCK_LAYERS_MAX" => Some("4".to_owned()),
            _ => None,
        };
        let config = Config::layered(Some(&file), env, [("work_dir", "/typed".to_owned())]).unwrap();
        assert_eq!(config.work_dir, Path::new("/typed"));
        assert_eq!(config.limits.layers_max, 4);
        assert_eq!(config.log_level, slog::Level::Info);
    }

    #[test]
    fn a_wrong_value_is_named_with_its_flag_and_origin() {
        let error = from(&[("layers_max", "many")]).unwrap_err().to_string();
        assert_eq!(error, "--layers_max=many: expected a number from 1 (from the command line)");
        let error = from(&[("docker_auth", "nocolon")]).unwrap_err().to_string();
        assert!(!error.contains("nocolon"), "{error}");
        assert!(from(&[("containerizers", "docker")]).is_err());
        assert!(from(&[("sandbox_directory", "../x")]).is_err());
    }

    #[test]
    fn a_file_with_an_unknown_key_is_refused() {
        let dir = tempfile::tempdir().unwrap();
        let file = dir.path().join("c.toml");
        std::fs::write(&file, "wrok_dir = '/x'\n").unwrap();
        let error = Config::layered(Some(&file), |_| None, []).unwrap_err().to_string();
        assert!(error.contains("wrok_dir"), "{error}");
    }

    #[test]
    fn a_secret_can_be_read_from_a_file_and_is_never_shown() {
        let dir = tempfile::tempdir().unwrap();
        let file = dir.path().join("auth");
        std::fs::write(&file, "me:hush\n").unwrap();
        let config = from(&[("docker_auth", &format!("file://{}", file.display()))]).unwrap();
        assert_eq!(config.docker_auth, Some(Secret("me:hush".to_owned())));
        assert!(!format!("{config:?}").contains("hush"));
        let config = from(&[("docker_config", r#"{"auths":{"r.io":{"username":"me","password":"hush"}}}"#)]);
        assert!(!format!("{config:?}").contains("hush"));
        let error = from(&[("docker_config", r#"{"auths":{"r.io":{"auth":"hush!"}}}"#)]).unwrap_err();
        assert!(!error.to_string().contains("hush"), "{error}");
        for text in ["/etc/x.json", "file:///etc/x.json"] {
            let path = from(&[("docker_config", text)]).unwrap().docker_config;
            assert_eq!(path, Some(DockerConfigSource::Path("/etc/x.json".into())));
        }
        assert_eq!(from(&[("docker_registry", "file:///x")]).unwrap().docker_registry, "file:///x");
    }

    #[test]
    fn units_are_understood() {
        assert_eq!(bytes("4M").unwrap(), 4 << 20);
        assert_eq!(bytes("64KiB").unwrap(), 64 << 10);
        assert_eq!(seconds("1mins").unwrap(), Duration::from_secs(60));
        for text in ["", "x", "4X", "99999999999999T", "0"] {
            assert!(bytes(text).is_err(), "{text}");
        }
        assert!(seconds("0").is_err());
    }
}
