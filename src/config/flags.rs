//! [`FLAGS`]: every agent flag, with what it does to a [`Config`].

use std::path::Path;

use super::values::{
    absolute, at_least_one, below, boolean, bytes, bytes_or_none, capabilities, list, number, proxy, seconds,
    small_bytes, wide_number,
};
use super::{AppcVerify, Config, Secret};
use crate::puller::registry::{DockerConfigSource, NoProxy};
use crate::store::{LayerForm, SyncMode};

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
    pub(super) set: fn(&mut Config, &str) -> Result<(), String>,
}

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
        help: "Kinds of image to serve, separated by commas [default: docker,oci,appc]",
        heading: IMAGES,
        set: |config, text| {
            let kinds: Vec<_> = list(text).map(|kind| kind.to_ascii_lowercase()).collect();
            for kind in &kinds {
                match kind.as_str() {
                    "docker" | "oci" | "appc" => {}
                    _ => return Err("known are docker, oci and appc".to_owned()),
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
        name: "appc_store_dir",
        value: "DIR",
        help: "Where layers and records of appc images are kept, and archives while they are verified [default: where those of docker images are]",
        heading: IMAGES,
        set: |config, text| {
            config.appc_store_dir = Some(absolute(text)?);
            Ok(())
        },
    },
    Flag {
        name: "appc_simple_discovery_uri_prefix",
        value: "PREFIX",
        help: "What stands before NAME-VERSION-OS-ARCH.aci in the address of an appc image: https://, http://, either of them with a host and path, or a directory as /DIR/ or file:///DIR/. With a host or directory it is the only place that is asked; else meta discovery comes second [default: https://]",
        heading: IMAGES,
        set: |config, text| {
            config.appc_simple_discovery_uri_prefix = text.to_owned();
            Ok(())
        },
    },
    Flag {
        name: "appc_verify",
        value: "WHEN",
        help: "Which appc images must be signed: required (all), if-present (a signature that is there must be good, and by a key that is trusted for the name), none (signatures are not looked at) [default: if-present]",
        heading: IMAGES,
        set: |config, text| {
            config.appc_verify = match text {
                "required" => AppcVerify::Required,
                "if-present" | "if_present" => AppcVerify::IfPresent,
                "none" => AppcVerify::None,
                _ => return Err("use required, if-present or none".to_owned()),
            };
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
        help: "Isolators, separated by commas [default: filesystem/linux,docker/runtime,appc/runtime,namespaces/pid,namespaces/ipc,linux/capabilities]",
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
        name: "appc_strict_isolators",
        value: "",
        help: "Run Appc images only if all isolators that they name are in place, as they have them; else it is told in the log and by inspect which are not",
        heading: CONTAINERS,
        set: |config, text| {
            config.appc_strict_isolators = boolean(text)?;
            Ok(())
        },
    },
    Flag {
        name: "cgroups_hierarchy",
        value: "DIR",
        help: "Where cgroups are mounted, of either version, for cgroups/mem and cgroups/cpu in --isolation [default: /sys/fs/cgroup]",
        heading: CONTAINERS,
        set: |config, text| {
            config.cgroups_hierarchy = absolute(text)?;
            Ok(())
        },
    },
    Flag {
        name: "cgroups_root",
        value: "NAME",
        help: "Cgroup below which those of containers are made; it stays [default: keelblock]",
        heading: CONTAINERS,
        set: |config, text| {
            config.cgroups_root = below(text)?;
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
    limit!(
        appc_dependency_depth_max,
        "N",
        "Images below each other in the dependencies of an appc image [default: 16]",
        at_least_one
    ),
    limit!(
        appc_dependencies_max,
        "N",
        "Images that an appc image depends on, directly or not [default: 128]",
        at_least_one
    ),
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
