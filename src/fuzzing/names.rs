//! The fuzz target `reference`.

use keelblock_actors::container::ContainerId;
use keelblock_actors::image::digest::{DiffId, Digest};
use keelblock_actors::image::name::{ImageKind, ImageName};
use keelblock_actors::image::reference::{NAME_BYTES_MAX, Reference, TAG_BYTES_MAX};

use crate::provider::manifest::Platform;
use crate::puller::registry::{Endpoint, InsecureRegistries, RegistryUrl};

/// Image names, references, digests, container IDs, platforms and registries: what parses prints back to itself, and is
/// safe where it goes, which is into addresses and file names.
pub fn reference(bytes: &[u8]) {
    let Ok(text) = std::str::from_utf8(bytes) else { return };
    if let Ok(digest) = text.parse::<Digest>() {
        assert_eq!(digest.to_string(), text);
        assert!(digest.hex().bytes().all(|byte| byte.is_ascii_hexdigit()));
        assert_eq!(text.parse(), Ok(DiffId(digest)));
    }
    let parsed = text.parse::<Reference>();
    if let Ok(reference) = &parsed {
        assert_eq!(reference.to_string(), text);
        safe(reference);
        let canonical = reference.canonical();
        safe(&canonical);
        assert_eq!(canonical.to_string().parse::<Reference>().as_ref(), Ok(&canonical));
        assert_eq!(canonical.canonical(), canonical);
        assert_eq!(reference.tag.is_none() && reference.digest.is_none(), canonical.tag != reference.tag);
        let endpoint = Endpoint::of(reference, None, &InsecureRegistries::default());
        assert_eq!(endpoint, Endpoint::of(&canonical, None, &InsecureRegistries::default()));
        assert!(
            !endpoint.host.server.contains(['/', '@', '?', '#', '\\']) && !endpoint.host.server.is_empty()
        );
    }
    if let Ok(name) = text.parse::<ImageName>() {
        assert_eq!(name.to_string().parse::<ImageName>().as_ref(), Ok(&name));
        assert_eq!(name.canonical().canonical(), name.canonical());
        assert_eq!(name.canonical().kind(), name.kind());
        assert!(!name.to_string().contains(char::is_control));
        if let ImageName::Docker(reference) = &name {
            assert_eq!(name.kind(), ImageKind::Docker);
            assert_eq!(name.reference().parse::<Reference>().as_ref(), Ok(reference));
        }
    }
    if let Ok(id) = text.parse::<ContainerId>() {
        assert!(!id.as_str().contains(['/', '.', '\0']) && !id.as_str().is_empty() && id.as_str() == text);
    }
    if let Ok(platform) = text.parse::<Platform>() {
        assert_eq!(platform.to_string().parse::<Platform>().as_ref(), Ok(&platform));
    }
    if let Ok(url) = text.parse::<RegistryUrl>() {
        // What a flag may name, a reference may name.
        let name = format!("{}/x", url.host).parse::<Reference>();
        assert_eq!(name.ok().and_then(|name| name.registry), Some(url.host));
    }
    let _ = text.parse::<InsecureRegistries>();
}

fn safe(reference: &Reference) {
    let parts = reference.repository.split('/');
    assert!(parts.clone().all(|part| !part.is_empty() && !part.starts_with('.') && !part.ends_with('.')));
    let plain = |byte: u8| matches!(byte, b'a'..=b'z' | b'0'..=b'9' | b'.' | b'_' | b'-' | b'/');
    assert!(reference.repository.bytes().all(plain));
    let registry = reference.registry.as_deref().unwrap_or("none");
    assert!(!registry.contains(['/', '@', '\\', '%', ' ']) && registry.is_ascii() && !registry.is_empty());
    if let Some(tag) = &reference.tag {
        assert!(tag.len() <= TAG_BYTES_MAX && !tag.contains(['/', ':', '@']) && !tag.starts_with('.'));
    }
    let name =
        reference.repository.len() + reference.registry.as_ref().map_or(0, |registry| registry.len() + 1);
    assert!(name <= NAME_BYTES_MAX);
}
