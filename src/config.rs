//! Flags: what was typed, in the environment or in a file, turned into a checked [`Config`].
//!
//! [`FLAGS`] is the one table: the command line, `KEELBLOCK_<FLAG>`, the TOML file of `--config`, `--help` and the
//! man page are all made from it. Precedence: command line over environment over file over default.

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

/// One agent flag.
pub struct Flag {
    /// Name, with underscores: dashes work too.
    pub name: &'static str,
    /// Name of its value in `--help`; empty for a switch.
    pub value: &'static str,
    /// What it does, with default and unit.
    pub help: &'static str,
    /// Group in `--help`.
    pub heading: &'static str,
    set: fn(&mut Config, &str) -> Result<(), String>,
}

/// Bytes a second that are read to verify layers in the background. 16 MiB: a tenth of a slow disk.
pub const SCRUB_RATE: u64 = 16 << 20;

/// Flags whose values have passwords in them.
const SECRET: [&str; 4] = ["docker_auth", "docker_config", "https_proxy", "http_proxy"];

const IMAGES: &str = "Images";
const CONTAINERS: &str = "Containers";
const LIMITS: &str = "Limits";
const AGENT: &str = "Agent";

macro_rules! limit {
    ($name:ident, $value:literal, $help:literal, $parse:expr) => {
        Flag {
            name: stringify!($name),
            value: $value,
            help: $help,
            heading: LIMITS,
            set: |config, text| {
                config.limits.$name = $parse(text)?;
                Ok(())
            },
        }
    };
}

/// All agent flags, in the order of `--help`.
pub const FLAGS: &[Flag] = &[
    Flag {
        name: "work_dir",
        value: "DIR",
        help: "Where everything is kept [default: /var/lib/keelblock for root, else $XDG_DATA_HOME/keelblock]",
        heading: AGENT,
        set: |config, text| {
            config.work_dir = absolute(text)?;
            Ok(())
        },
    },
    Flag {
        name: "log_level",
        value: "LEVEL",
        help: "Least severe level logged to standard error: crit, error, warn, info, debug or trace [default: warn]",
        heading: AGENT,
        set: |config, text| {
            let known = "use crit, error, warn, info, debug or trace";
            let name = if text == "crit" { "critical" } else { text };
            config.log_level = name.parse().map_err(|()| known.to_owned())?;
            Ok(())
        },
    },
    Flag {
        name: "log_format",
        value: "FORMAT",
        help: "How log lines look: text or json [default: text]",
        heading: AGENT,
        set: |config, text| {
            config.log_json = match text {
                "text" => false,
                "json" => true,
                _ => return Err("use text or json".to_owned()),
            };
            Ok(())
        },
    },
    Flag {
        name: "image_providers",
        value: "LIST",
        help: "Kinds of image to serve, separated by commas [default: docker,oci]",
        heading: IMAGES,
        set: |config, text| {
            let kinds: Vec<_> = list(text).map(|kind| kind.to_ascii_lowercase()).collect();
            for kind in &kinds {
                match kind.as_str() {
                    "docker" | "oci" => {}
                    "appc" => {
                        return Err("appc images are not served yet; known are docker and oci".to_owned());
                    }
                    _ => return Err("known are docker and oci".to_owned()),
                }
            }
            config.image_providers = kinds;
            Ok(())
        },
    },
    Flag {
        name: "image_provisioner_backend",
        value: "BACKEND",
        help: "How root filesystems are made: overlay, copy or bind [default: overlay where it works, else copy]",
        heading: IMAGES,
        set: |config, text| {
            config.backend = Some(text.parse()?);
            Ok(())
        },
    },
    Flag {
        name: "bind_strict",
        value: "",
        help: "Refuse more than one layer in the bind backend, as Mesos does; else they are stacked, read-only",
        heading: IMAGES,
        set: |config, text| {
            config.bind_strict = boolean(text)?;
            Ok(())
        },
    },
    Flag {
        name: "docker_registry",
        value: "PLACE",
        help: "Where docker images without a registry in their name come from: http(s)://HOST[:PORT], or a directory of `docker save` archives as /DIR or file:///DIR [default: https://registry-1.docker.io]",
        heading: IMAGES,
        set: |config, text| {
            config.docker_registry = text.to_owned();
            Ok(())
        },
    },
    Flag {
        name: "docker_store_dir",
        value: "DIR",
        help: "Where layers and image records are kept [default: <work_dir>/store]",
        heading: IMAGES,
        set: |config, text| {
            config.docker_store_dir = Some(absolute(text)?);
            Ok(())
        },
    },
    Flag {
        name: "sync",
        value: "WHEN",
        help: "When a pull is done: `background`, once its layers are whole and verified, and they are forced to disk afterwards; `full`, once all of it is on disk. What a power cut takes is pulled again either way [default: background]",
        heading: IMAGES,
        set: |config, text| {
            config.sync = match text {
                "background" => SyncMode::Background,
                "full" => SyncMode::Full,
                _ => return Err("use background or full".to_owned()),
            };
            Ok(())
        },
    },
    Flag {
        name: "layer_form",
        value: "FORM",
        help: "How layers are kept that come from now on: erofs (an image each, which is mounted), tree (a directory each), or auto: erofs for root where such images can be mounted, else tree [default: auto]",
        heading: IMAGES,
        set: |config, text| {
            config.layer_form = match text {
                "auto" => LayerForm::Auto,
                "erofs" => LayerForm::Erofs,
                "tree" => LayerForm::Tree,
                _ => return Err("use auto, erofs or tree".to_owned()),
            };
            Ok(())
        },
    },
    Flag {
        name: "scrub_interval",
        value: "SECS",
        help: "How often an agent verifies each layer in the background; 0 = never [default: 0]",
        heading: IMAGES,
        set: |config, text| {
            config.scrub_interval = if text.trim() == "0" { None } else { Some(seconds(text)?) };
            Ok(())
        },
    },
    Flag {
        name: "scrub_rate",
        value: "BYTES",
        help: "Bytes a second read to verify layers; 0 = no limit [default: 16M in the background, no limit for scrub]",
        heading: IMAGES,
        set: |config, text| {
            config.scrub_rate = Some(bytes_or_none(text)?);
            Ok(())
        },
    },
    Flag {
        name: "image_pull_policy",
        value: "WHEN",
        help: "When the source of an image is asked: always, missing (when the image is not whole in the store) or never [default: missing; for `pull` always]",
        heading: IMAGES,
        set: |config, text| {
            config.image_pull_policy = Some(text.parse().map_err(|error| format!("{error}"))?);
            Ok(())
        },
    },
    Flag {
        name: "authorize_stored_images",
        value: "",
        help: "Give an image or layer that is in the store only to those whose credentials its registry accepts for it: the registry is asked each time, mirrors are not",
        heading: IMAGES,
        set: |config, text| {
            config.authorize_stored_images = boolean(text)?;
            Ok(())
        },
    },
    Flag {
        name: "docker_auth",
        value: "USER:PASSWORD",
        help: "Credentials for registries that ask for some, whichever they are, but for no mirror; they count before those of --docker_config; file:///PATH reads them from a file",
        heading: IMAGES,
        set: |config, text| {
            let text = text.trim_end_matches('\n');
            if !text.contains(':') {
                return Err("expected USER:PASSWORD".to_owned());
            }
            config.docker_auth = Some(Secret(text.to_owned()));
            Ok(())
        },
    },
    Flag {
        name: "docker_config",
        value: "JSON|PATH",
        help: "Credentials as `docker login` and `podman login` keep them: the JSON itself, a config.json, auth.json or .dockercfg, or a directory with a config.json. Entries by host or by repository (auths), and the helpers they name (credHelpers, credsStore) [default: $REGISTRY_AUTH_FILE; else $XDG_RUNTIME_DIR/containers/auth.json or /run/containers/UID/auth.json, $XDG_CONFIG_HOME/containers/auth.json, $DOCKER_CONFIG/config.json or ~/.docker/config.json, ~/.dockercfg]",
        heading: IMAGES,
        set: |config, text| {
            let text = text.strip_prefix("file://").filter(|path| path.starts_with('/')).unwrap_or(text);
            let source = DockerConfigSource::parse(text).map_err(|error| error.to_string())?;
            config.docker_config = Some(match source {
                DockerConfigSource::Path(path) => {
                    let path = path.to_str().ok_or_else(|| "expected JSON or a path".to_owned())?;
                    DockerConfigSource::Path(absolute(path)?)
                }
                text => text,
            });
            Ok(())
        },
    },
    Flag {
        name: "registry_ca",
        value: "FILE",
        help: "Certificate authorities, PEM, trusted beside those of the system",
        heading: IMAGES,
        set: |config, text| {
            config.registry_ca = Some(absolute(text)?);
            Ok(())
        },
    },
    Flag {
        name: "registry_config_path",
        value: "DIR[:DIR]",
        help: "Directories with mirrors and certificates of registries, in containerd's form: DIR/HOST[:PORT]/hosts.toml, DIR/_default/hosts.toml",
        heading: IMAGES,
        set: |config, text| {
            let dirs = text.split(':').filter(|dir| !dir.is_empty()).map(absolute);
            config.registry_config_path = dirs.collect::<Result<_, _>>()?;
            Ok(())
        },
    },
    Flag {
        name: "https_proxy",
        value: "URL",
        help: "Proxy for registries spoken to over TLS: http(s)://[USER:PASSWORD@]HOST:PORT [default: $HTTPS_PROXY, $ALL_PROXY]",
        heading: IMAGES,
        set: |config, text| {
            config.https_proxy = Some(proxy(text)?);
            Ok(())
        },
    },
    Flag {
        name: "http_proxy",
        value: "URL",
        help: "Proxy for registries spoken to in plain http [default: $HTTP_PROXY, $ALL_PROXY]",
        heading: IMAGES,
        set: |config, text| {
            config.http_proxy = Some(proxy(text)?);
            Ok(())
        },
    },
    Flag {
        name: "no_proxy",
        value: "HOSTS",
        help: "Hosts, .domains and networks that no proxy is used for, separated by commas; loopback never is [default: $NO_PROXY]",
        heading: IMAGES,
        set: |config, text| {
            config.no_proxy = Some(NoProxy::parse(text));
            Ok(())
        },
    },
    Flag {
        name: "disable_http2",
        value: "",
        help: "Speak HTTP/1.1 also with registries that offer HTTP/2",
        heading: IMAGES,
        set: |config, text| {
            config.disable_http2 = boolean(text)?;
            Ok(())
        },
    },
    Flag {
        name: "docker_insecure_registries",
        value: "HOSTS",
        help: "Registries HOST[:PORT] spoken to in plain http, separated by commas; loopback ones always are",
        heading: IMAGES,
        set: |config, text| {
            config.docker_insecure_registries = list(text).map(str::to_owned).collect();
            Ok(())
        },
    },
    Flag {
        name: "platform",
        value: "OS/ARCH[/VARIANT]",
        help: "What to choose from images for several platforms; images in registries for another one are refused \
               [default: this machine's, and what is for another processor comes with a warning]",
        heading: IMAGES,
        set: |config, text| {
            config.platform = Some(text.parse().map_err(|error| format!("{error}"))?);
            Ok(())
        },
    },
    Flag {
        name: "isolation",
        value: "LIST",
        help: "Isolators, separated by commas [default: filesystem/linux,docker/runtime,namespaces/pid,namespaces/ipc,linux/capabilities]",
        heading: CONTAINERS,
        set: |config, text| {
            config.isolation = list(text).map(str::to_owned).collect();
            Ok(())
        },
    },
    Flag {
        name: "sandbox_directory",
        value: "PATH",
        help: "Where a container finds its sandbox, inside its root filesystem [default: /mnt/mesos/sandbox]",
        heading: CONTAINERS,
        set: |config, text| {
            let path = Path::new(text);
            if !path.is_absolute() || path.components().any(|part| part.as_os_str() == "..") {
                return Err("expected an absolute path without '..'".to_owned());
            }
            config.sandbox_directory = path.to_owned();
            Ok(())
        },
    },
    Flag {
        name: "effective_capabilities",
        value: "LIST",
        help: "Capabilities that containers run with, by name (NET_RAW,...), `none` or `all` [default: the safe set of the README]",
        heading: CONTAINERS,
        set: |config, text| {
            config.effective_capabilities = Some(capabilities(text)?);
            Ok(())
        },
    },
    Flag {
        name: "bounding_capabilities",
        value: "LIST",
        help: "Capabilities that containers can ever have; those they run with must be among them [default: the effective ones]",
        heading: CONTAINERS,
        set: |config, text| {
            config.bounding_capabilities = Some(capabilities(text)?);
            Ok(())
        },
    },
    Flag {
        name: "docker_ignore_runtime",
        value: "",
        help: "Ignore Entrypoint, Cmd, Env, WorkingDir and User of docker images",
        heading: CONTAINERS,
        set: |config, text| {
            config.docker_ignore_runtime = boolean(text)?;
            Ok(())
        },
    },
    Flag {
        name: "docker_ignore_user",
        value: "",
        help: "Ignore the User of docker images, as Mesos does: containers run as root unless told otherwise",
        heading: CONTAINERS,
        set: |config, text| {
            config.docker_ignore_user = boolean(text)?;
            Ok(())
        },
    },
    Flag {
        name: "containerizers",
        value: "LIST",
        help: "Accepted for Mesos' sake: only `mesos` is served",
        heading: AGENT,
        set: |_, text| match text {
            "mesos" => Ok(()),
            _ => Err("only the mesos containerizer is served here".to_owned()),
        },
    },
    Flag {
        name: "docker_auth_server",
        value: "URL",
        help: "Accepted from Mesos 0.27 and without effect: registries name their token server themselves",
        heading: AGENT,
        set: |config, _| {
            config.without_effect.push("docker_auth_server");
            Ok(())
        },
    },
    Flag {
        name: "docker_puller_timeout",
        value: "SECS",
        help: "Accepted from Mesos 0.27 and without effect: a pull ends when it stalls (--stall_timeout)",
        heading: AGENT,
        set: |config, _| {
            config.without_effect.push("docker_puller_timeout");
            Ok(())
        },
    },
    limit!(
        launches_max,
        "N",
        "Launches under way at once; one more is refused as busy [default: 1024]",
        at_least_one
    ),
    limit!(fetches_max, "N", "Blobs fetched at once from one registry [default: 6]", at_least_one),
    limit!(
        unpacks_max,
        "N",
        "Layers unpacked at once [default: one per processor, no fewer than four times fetches_max]",
        number
    ),
    limit!(copies_max, "N", "Trees copied at once by the copy backend [default: 2]", at_least_one),
    limit!(mounts_max, "N", "Mounts and unmounts at once [default: 8]", at_least_one),
    limit!(manifest_bytes_max, "BYTES", "Size of a manifest or index [default: 4M]", bytes),
    limit!(config_bytes_max, "BYTES", "Size of an image config [default: 8M]", bytes),
    limit!(index_depth_max, "N", "Indexes within indexes [default: 4]", at_least_one),
    limit!(layers_max, "N", "Layers of an image [default: 500]", at_least_one),
    limit!(layer_bytes_max, "BYTES", "Unpacked file bytes of a layer [default: 64G]", bytes),
    limit!(
        layer_expansion_max,
        "N",
        "Times its size a layer may become when decompressed [default: 200]",
        wide_number
    ),
    limit!(
        layer_expansion_estimate,
        "PERCENT",
        "Size of a layer on disk, of its compressed size, for which room is reserved at first [default: 300]",
        wide_number
    ),
    limit!(
        disk_free_min,
        "BYTES",
        "Room that pulls leave on the store's filesystem; 0 = none [default: 64M, or a sixteenth of a smaller one]",
        |text| bytes_or_none(text).map(Some)
    ),
    limit!(layer_entries_max, "N", "Entries of a layer [default: 10000000]", wide_number),
    limit!(
        layer_names_bytes_max,
        "BYTES",
        "Memory for the names of a layer while it is written [default: 192M]",
        small_bytes
    ),
    limit!(image_bytes_max, "BYTES", "Unpacked file bytes of an image that is pulled [default: 256G]", bytes),
    limit!(image_entries_max, "N", "Entries of an image that is pulled [default: 40000000]", wide_number),
    limit!(path_bytes_max, "BYTES", "Length of a path in a layer [default: 4096]", small_bytes),
    limit!(xattr_bytes_max, "BYTES", "All xattrs of an entry together [default: 64K]", small_bytes),
    limit!(pax_bytes_max, "BYTES", "Extended headers of a tar entry [default: 1M]", small_bytes),
    limit!(archive_members_max, "N", "Members of an image archive [default: 100000]", at_least_one),
    limit!(archive_bytes_max, "BYTES", "An image archive, decompressed [default: 256G]", bytes),
    limit!(user_file_bytes_max, "BYTES", "Size of an image's /etc/passwd or /etc/group [default: 4M]", bytes),
    limit!(redirects_max, "N", "Redirects followed for a request [default: 5]", number),
    limit!(
        retries_max,
        "N",
        "Further attempts at a request to a registry that failed for now [default: 5]",
        number
    ),
    limit!(
        retry_pause,
        "SECS",
        "Pause before the first of them; the later ones double it [default: 500ms]",
        seconds
    ),
    limit!(retry_pause_max, "SECS", "Longest of these pauses [default: 10]", seconds),
    limit!(
        retry_after_max,
        "SECS",
        "Longest pause that a registry may ask for (Retry-After); a longer one fails the pull [default: 60]",
        seconds
    ),
    limit!(
        connections_per_host_max,
        "N",
        "Requests at once to one server of a registry; no fewer than fetches_max and two [default: 16]",
        at_least_one
    ),
    limit!(
        fetch_ranges_min,
        "BYTES",
        "Blobs of this size are fetched in ranges where one connection is slow [default: 32M]",
        bytes
    ),
    limit!(
        fetch_ranges_max,
        "N",
        "Connections for one such blob; 1 = never more than one [default: 4]",
        at_least_one
    ),
    limit!(fetch_range_bytes, "BYTES", "Size of one such range [default: 4M]", bytes),
    limit!(connect_timeout, "SECS", "Until a connection stands [default: 10]", seconds),
    limit!(stall_timeout, "SECS", "Without a byte where some should come [default: 60]", seconds),
    limit!(
        token_lifetime_max,
        "SECS",
        "How long a registry's token is used, whatever it claims [default: 1h]",
        seconds
    ),
    limit!(
        credential_helper_timeout,
        "SECS",
        "Until a credential helper (docker-credential-NAME) has answered [default: 30]",
        seconds
    ),
    limit!(answer_bytes_max, "BYTES", "Size of a token server's or an error answer [default: 64K]", bytes),
];

impl Default for Config {
    fn default() -> Self {
        Self {
            work_dir: default_work_dir(),
            image_providers: vec!["docker".to_owned(), "oci".to_owned()],
            backend: None,
            bind_strict: false,
            docker_registry: "https://registry-1.docker.io".to_owned(),
            docker_store_dir: None,
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

    /// Where trees on their way out lie: of layers, and of root filesystems.
    pub fn gc_dirs(&self) -> [PathBuf; 2] {
        [DiskStore::gc_dir(&self.store_dir()), layout::gc_dir(&self.work_dir)]
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

fn absolute(text: &str) -> Result<PathBuf, String> {
    if text.is_empty() {
        return Err("expected a path".to_owned());
    }
    std::path::absolute(text).map_err(|error| error.to_string())
}

fn list(text: &str) -> impl Iterator<Item = &str> {
    text.split(',').map(str::trim).filter(|item| !item.is_empty())
}

fn proxy(text: &str) -> Result<Proxy, String> {
    Proxy::parse(text, "it").map_err(|error| error.to_string())
}

fn boolean(text: &str) -> Result<bool, String> {
    match text.to_ascii_lowercase().as_str() {
        "true" | "1" | "yes" | "on" => Ok(true),
        "false" | "0" | "no" | "off" => Ok(false),
        _ => Err("expected true or false".to_owned()),
    }
}

fn number(text: &str) -> Result<usize, String> {
    text.parse().map_err(|_| "expected a number".to_owned())
}

fn at_least_one(text: &str) -> Result<usize, String> {
    number(text).ok().filter(|&n| n > 0).ok_or_else(|| "expected a number from 1".to_owned())
}

fn wide_number(text: &str) -> Result<u64, String> {
    text.parse().ok().filter(|&n| n > 0).ok_or_else(|| "expected a number from 1".to_owned())
}

/// `512`, `64K`, `4MiB`, `1G`: powers of 1024.
fn bytes(text: &str) -> Result<u64, String> {
    let digits = text.bytes().take_while(u8::is_ascii_digit).count();
    let shift = match text[digits..].trim().to_ascii_lowercase().trim_end_matches("ib").trim_end_matches('b')
    {
        "" => 0,
        "k" => 10,
        "m" => 20,
        "g" => 30,
        "t" => 40,
        _ => return Err("expected bytes, as in 512, 64K, 4M or 1G".to_owned()),
    };
    let count: u64 =
        text[..digits].parse().map_err(|_| "expected bytes, as in 512, 64K, 4M or 1G".to_owned())?;
    count.checked_mul(1 << shift).filter(|&n| n > 0).ok_or_else(|| "out of range".to_owned())
}

fn bytes_or_none(text: &str) -> Result<u64, String> {
    if text.trim() == "0" { Ok(0) } else { bytes(text) }
}

fn small_bytes(text: &str) -> Result<usize, String> {
    usize::try_from(bytes(text)?).map_err(|_| "out of range".to_owned())
}

/// `10`, `10s`, `500ms`, `1min`, `1h` (Mesos writes `1mins`, `1hrs`).
fn seconds(text: &str) -> Result<Duration, String> {
    let digits = text.bytes().take_while(u8::is_ascii_digit).count();
    let wrong = || "expected a time, as in 10, 10s, 500ms, 1min or 1h".to_owned();
    let count: u64 = text[..digits].parse().map_err(|_| wrong())?;
    let duration = match text[digits..].trim() {
        "" | "s" | "secs" => Duration::from_secs(count),
        "ms" => Duration::from_millis(count),
        "min" | "mins" => Duration::from_secs(count.checked_mul(60).ok_or_else(wrong)?),
        "h" | "hrs" => Duration::from_secs(count.checked_mul(3600).ok_or_else(wrong)?),
        _ => return Err(wrong()),
    };
    if duration.is_zero() { Err("must be more than nothing".to_owned()) } else { Ok(duration) }
}

fn capabilities(text: &str) -> Result<CapabilitySet, String> {
    crate::isolator::parse_capabilities(text).map_err(|error| error.to_string())
}

#[cfg(test)]
mod tests {
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
