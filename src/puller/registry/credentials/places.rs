//! Where docker configs lie when no flag names one: where `podman login` and `docker login` put them.

use std::ffi::OsString;
use std::path::PathBuf;

use super::file::ConfigFile;

/// The files, in the order in which they are looked at: `$REGISTRY_AUTH_FILE` alone, if it is set; else
/// `$XDG_RUNTIME_DIR/containers/auth.json` (`/run/containers/UID/auth.json` without such a directory),
/// `$XDG_CONFIG_HOME/containers/auth.json` (`~/.config/...`), `$DOCKER_CONFIG/config.json` (`~/.docker/...`) and
/// `~/.dockercfg`. `uid` and `home` are those of the user outside of any user namespace.
pub fn usual_places(
    variable: impl Fn(&str) -> Option<OsString>,
    uid: u32,
    home: Option<PathBuf>,
) -> Vec<UsualPlace> {
    let set = |name: &str| variable(name).filter(|value| !value.is_empty()).map(PathBuf::from);
    if let Some(path) = set("REGISTRY_AUTH_FILE") {
        return vec![UsualPlace { path, origin: "$REGISTRY_AUTH_FILE", required: true }];
    }
    let runtime = set("XDG_RUNTIME_DIR").map(|dir| dir.join("containers/auth.json"));
    let runtime = runtime.unwrap_or_else(|| format!("/run/containers/{uid}/auth.json").into());
    let config = set("XDG_CONFIG_HOME").or_else(|| home.as_ref().map(|home| home.join(".config")));
    let docker = set("DOCKER_CONFIG").or_else(|| home.as_ref().map(|home| home.join(".docker")));
    let paths = [
        Some(runtime),
        config.map(|dir| dir.join("containers/auth.json")),
        docker.map(|dir| dir.join("config.json")),
        home.map(|home| home.join(".dockercfg")),
    ];
    let place = |path| UsualPlace { path, origin: "a usual place", required: false };
    paths.into_iter().flatten().map(place).collect()
}

/// One of [`usual_places`].
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct UsualPlace {
    /// The file.
    pub path: PathBuf,
    pub(super) origin: &'static str,
    pub(super) required: bool,
}

impl From<UsualPlace> for ConfigFile {
    fn from(place: UsualPlace) -> Self {
        Self::new(place.path, place.origin, place.required)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn places(variables: &[(&str, &str)], home: Option<&str>) -> Vec<String> {
        let variable = |name: &str| {
            variables.iter().find(|(key, _)| *key == name).map(|(_, value)| OsString::from(value))
        };
        let places = usual_places(variable, 7, home.map(PathBuf::from));
        places.into_iter().map(|place| place.path.display().to_string()).collect()
    }

    #[test]
    fn they_are_those_of_podman_and_docker() {
        let defaults = [
            "/run/containers/7/auth.json",
            "/h/.config/containers/auth.json",
            "/h/.docker/config.json",
            "/h/.dockercfg",
        ];
        assert_eq!(places(&[("DOCKER_CONFIG", "")], Some("/h")), defaults);
        let set = [("XDG_RUNTIME_DIR", "/r"), ("XDG_CONFIG_HOME", "/c"), ("DOCKER_CONFIG", "/d")];
        let expected =
            ["/r/containers/auth.json", "/c/containers/auth.json", "/d/config.json", "/h/.dockercfg"];
        assert_eq!(places(&set, Some("/h")), expected);
        assert_eq!(places(&set, None), expected[..3]);
        assert_eq!(places(&[("REGISTRY_AUTH_FILE", "/a"), ("DOCKER_CONFIG", "/d")], Some("/h")), ["/a"]);
    }
}
