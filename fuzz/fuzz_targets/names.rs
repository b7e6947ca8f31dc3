//! Image names, references, digests and container IDs: what parses prints back to itself.
#![no_main]

use keelblock_actors::container::ContainerId;
use keelblock_actors::image::digest::Digest;
use keelblock_actors::image::name::ImageName;
use keelblock_actors::image::reference::Reference;
use libfuzzer_sys::fuzz_target;

fuzz_target!(|text: &str| {
    if let Ok(digest) = text.parse::<Digest>() {
        assert_eq!(digest.to_string(), text);
    }
    if let Ok(reference) = text.parse::<Reference>() {
        assert_eq!(reference.to_string(), text);
        let canonical = reference.canonical();
        assert_eq!(canonical.to_string().parse::<Reference>().as_ref(), Ok(&canonical));
        assert_eq!(canonical.canonical(), canonical);
    }
    if let Ok(name) = text.parse::<ImageName>() {
        assert_eq!(name.to_string().parse::<ImageName>().as_ref(), Ok(&name));
    }
    if let Ok(id) = text.parse::<ContainerId>() {
        assert!(!id.as_str().contains(['/', '.', '\0']) && !id.as_str().is_empty());
    }
});
