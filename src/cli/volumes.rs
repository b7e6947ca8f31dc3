//! The options of `run` that mount something: by a path in the container, or by the name of an Appc image's mount point.

use std::path::PathBuf;

use clap::ArgMatches;
use keelblock_actors::container::{VolumeSource, VolumeSpec};
use keelblock_actors::image::appc::AcName;
use keelblock_actors::image::name::ImageRequest;

use super::CliError;
use super::images::image_name;

/// All volumes that were asked for.
pub(super) fn volumes(matches: &ArgMatches) -> Result<Vec<VolumeSpec>, CliError> {
    let many = |name: &str| matches.get_many::<String>(name).into_iter().flatten();
    let mut volumes = Vec::new();
    for text in many("volume") {
        volumes.push(match rkt(text)? {
            Some(volume) => volume,
            None => {
                let (source, path, read_only) = volume(text, "volume")?;
                VolumeSpec { container_path: path, mount_point: None, read_only, source: host(&source)? }
            }
        });
    }
    for text in many("volume_image") {
        let (source, path, read_only) = volume(text, "volume_image")?;
        volumes.push(VolumeSpec {
            container_path: path,
            mount_point: None,
            read_only,
            source: image(&source)?,
        });
    }
    for text in many("mount_point") {
        let (name, source, read_only) = mount_point(text, "mount_point", "HOST")?;
        volumes.push(filling(name, read_only, host(&source)?));
    }
    for text in many("mount_point_image") {
        let (name, source, read_only) = mount_point(text, "mount_point_image", "IMAGE")?;
        volumes.push(filling(name, read_only, image(&source)?));
    }
    Ok(volumes)
}

fn filling(name: AcName, read_only: bool, source: VolumeSource) -> VolumeSpec {
    VolumeSpec { container_path: PathBuf::new(), mount_point: Some(name), read_only, source }
}

fn host(path: &str) -> Result<VolumeSource, CliError> {
    let path = std::path::absolute(path).map_err(|source| CliError::Io { act: "find the volume", source })?;
    Ok(VolumeSource::HostPath(path))
}

fn image(name: &str) -> Result<VolumeSource, CliError> {
    Ok(VolumeSource::Image(ImageRequest::cached(image_name(name)?)))
}

/// `SOURCE[:ro|:rw]`: what comes before, and whether it may only be read.
fn mode(text: &str) -> (&str, bool) {
    match text.rsplit_once(':') {
        Some((rest, "ro")) => (rest, true),
        Some((rest, "rw")) => (rest, false),
        _ => (text, false),
    }
}

/// `SOURCE:PATH[:ro|:rw]`; colons of the source are kept.
fn volume(text: &str, flag: &str) -> Result<(String, PathBuf, bool), CliError> {
    let wrong = || CliError::Usage(format!("--{flag}={text}: expected SOURCE:PATH or SOURCE:PATH:ro"));
    let (rest, read_only) = mode(text);
    let (source, path) = rest.rsplit_once(':').ok_or_else(wrong)?;
    if source.is_empty() || path.is_empty() {
        return Err(wrong());
    }
    Ok((source.to_owned(), PathBuf::from(path), read_only))
}

/// `NAME=SOURCE[:ro|:rw]`.
fn mount_point(text: &str, flag: &str, what: &str) -> Result<(AcName, String, bool), CliError> {
    let wrong = |why: &str| CliError::Usage(format!("--{flag}={text}: {why}"));
    let expected = format!("expected NAME={what} or NAME={what}:ro");
    let (name, source) = text.split_once('=').ok_or_else(|| wrong(&expected))?;
    let (source, read_only) = mode(source);
    if source.is_empty() {
        return Err(wrong(&expected));
    }
    Ok((name.parse().map_err(|error| wrong(&format!("{error}")))?, source.to_owned(), read_only))
}

/// rkt's way to say it: `NAME,kind=host,source=PATH[,readOnly=true]`. `None` = not said so: the first comma is not that
/// after a name, or `kind=` does not follow.
fn rkt(text: &str) -> Result<Option<VolumeSpec>, CliError> {
    let Some((name, rest)) = text.split_once(',') else { return Ok(None) };
    let (Ok(name), true) = (name.parse::<AcName>(), rest.starts_with("kind=")) else { return Ok(None) };
    let wrong = |why: String| CliError::Usage(format!("--volume={text}: {why}"));
    let (mut source, mut read_only) = (None, false);
    for part in rest.split(',') {
        match part.split_once('=') {
            Some(("kind", "host")) => {}
            Some(("kind", kind)) => {
                return Err(wrong(format!(
                    "kind {kind:?} is not served, only host; a mount point that no volume fills stays as the image has it"
                )));
            }
            Some(("source", path)) if path.starts_with('/') => source = Some(path),
            Some(("source", _)) => return Err(wrong("the source must be an absolute path".to_owned())),
            Some(("readOnly", "true")) => read_only = true,
            Some(("readOnly", "false")) => read_only = false,
            _ => {
                return Err(wrong(format!(
                    "{part:?} is none of kind=host, source=PATH and readOnly=true|false"
                )));
            }
        }
    }
    let source = source.ok_or_else(|| wrong("source=PATH is missing".to_owned()))?;
    Ok(Some(filling(name, read_only, host(source)?)))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_volume_keeps_the_colons_of_its_source() {
        let volume =
            |text| volume(text, "volume").map(|(source, path, ro)| (source, path.display().to_string(), ro));
        assert_eq!(volume("/a:/b").unwrap(), ("/a".to_owned(), "/b".to_owned(), false));
        assert_eq!(volume("h:5000/i:t:/b:ro").unwrap(), ("h:5000/i:t".to_owned(), "/b".to_owned(), true));
        for text in ["/a", ":/b", "/a:", ":ro", "/a:ro"] {
            assert!(volume(text).is_err(), "{text}");
        }
    }

    #[test]
    fn a_mount_point_is_filled_by_name() {
        let parse = |text| {
            mount_point(text, "mount_point", "HOST").map(|(name, source, ro)| (name.to_string(), source, ro))
        };
        assert_eq!(parse("work=/a:b").unwrap(), ("work".to_owned(), "/a:b".to_owned(), false));
        assert_eq!(parse("work=/a=b:ro").unwrap(), ("work".to_owned(), "/a=b".to_owned(), true));
        for text in ["work", "work=", "work=:ro", "=/a", "Work=/a", "a b=/a"] {
            assert!(parse(text).is_err(), "{text}");
        }
    }

    #[test]
    fn the_spelling_of_rkt_is_told_from_a_path() {
        let read = |text| {
            rkt(text)
                .unwrap()
                .map(|volume| (volume.mount_point.unwrap().to_string(), volume.read_only, volume.source))
        };
        let data = VolumeSource::HostPath("/srv/a:b".into());
        assert_eq!(read("data,kind=host,source=/srv/a:b"), Some(("data".to_owned(), false, data.clone())));
        assert_eq!(
            read("data,kind=host,source=/srv/a:b,readOnly=true"),
            Some(("data".to_owned(), true, data))
        );
        for text in ["/a,kind=host:/b", "/a:/b", "data,x:/b", "Data,kind=host,source=/a"] {
            assert_eq!(read(text), None, "{text}");
        }
        for text in [
            "d,kind=empty",
            "d,kind=host",
            "d,kind=host,source=a",
            "d,kind=host,source=/a,mode=0700",
            "d,kind=host,source=/a,readOnly=1",
        ] {
            assert!(rkt(text).is_err(), "{text}");
        }
    }
}
