//! Application Container Images: one like the others, and some that depend on each other, in every compression.

#[path = "../../tests/support/pgp.rs"]
mod pgp;

use std::io::Write as _;

use keelblock_actors::image::digest::Hasher;
use serde_json::{Value, json};
use tar::EntryType;

use super::{Image, Item, dir, file, gzip, hard_link, symlink, tar, text, zstd};

/// An Application Container Image: the layers on top of each other below `rootfs`, and a manifest.
pub(crate) fn aci(image: &Image) -> Vec<u8> {
    let manifest = json!({
        "acKind": "ImageManifest", "acVersion": "0.8.11", "name": "keelblock.example/hello",
        "labels": [{"name": "version", "value": "1.0.0"}, {"name": "os", "value": "linux"},
                   {"name": "arch", "value": "amd64"}],
        "app": {"exec": ["/bin/hello"], "user": "0", "group": "0", "workingDirectory": "/",
                "environment": [{"name": "PATH", "value": "/bin:/usr/bin"}, {"name": "GREETING", "value": "ahoy"}]},
    });
    let mut items = vec![file("manifest", 0o644, &text(&manifest)), dir("rootfs", 0o755)];
    for mut item in image.layers.iter().flatten().cloned() {
        item.path = format!("rootfs/{}", item.path);
        if item.kind == EntryType::Link {
            item.link = format!("rootfs/{}", item.link);
        }
        if !items.iter().any(|other| other.path == item.path) {
            items.push(item);
        }
    }
    gzip(&tar(&items))
}

/// ACIs where simple discovery finds them, in all compressions: `app` needs `base`, which needs `libs`, then `motd` and `notes`.
pub(crate) fn appc(program: &[u8]) -> Vec<(&'static str, Vec<u8>)> {
    let labels = |version: &str| {
        json!([{"name": "version", "value": version}, {"name": "os", "value": "linux"},
               {"name": "arch", "value": "amd64"}])
    };
    let manifest = |name: &str| {
        json!({"acKind": "ImageManifest", "acVersion": "0.8.11", "name": format!("keelblock.example/{name}"),
               "labels": labels("1.0.0")})
    };
    let common = |text: &str| file("rootfs/etc/common", 0o644, text.as_bytes());
    let archive = |manifest: &Value, rootfs: Vec<Item>| {
        let head = [file("manifest", 0o644, &text(manifest)), dir("rootfs", 0o755), dir("rootfs/etc", 0o755)];
        tar(&[head.to_vec(), rootfs].concat())
    };

    let libs = archive(
        &manifest("libs"),
        vec![
            common("libs\n"),
            dir("rootfs/lib", 0o755),
            file("rootfs/lib/unused", 0o644, b"left out\n"),
            file("rootfs/lib/words", 0o644, b"keel block mast\n"),
        ],
    );
    let mut of_base = manifest("base");
    of_base["dependencies"] = json!([{"imageName": "keelblock.example/libs", "labels": labels("1.0.0")}]);
    let names = ["cat", "echo", "env", "hello", "id", "ls", "pwd"];
    let mut items =
        vec![common("base\n"), dir("rootfs/bin", 0o755), file("rootfs/bin/keelbox", 0o755, program)];
    items.extend(names.map(|name| hard_link(&format!("rootfs/bin/{name}"), "rootfs/bin/keelbox")));
    items.extend([
        symlink("rootfs/bin/sh", "keelbox"),
        file("rootfs/etc/group", 0o644, b"root:x:0:\nkeel:x:2000:app\n"),
    ]);
    items.push(file("rootfs/etc/passwd", 0o644, b"root:x:0:0::/:/bin/sh\napp:x:1000:1000::/:/bin/sh\n"));
    let all = ["/lib/words", "/etc/common", "/etc/group", "/etc/passwd", "/bin/keelbox", "/bin/sh"]
        .map(str::to_owned);
    of_base["pathWhitelist"] = all.into_iter().chain(names.map(|name| format!("/bin/{name}"))).collect();
    let base = archive(&of_base, items);
    let motd = archive(
        &manifest("motd"),
        vec![common("motd\n"), file("rootfs/etc/motd", 0o644, b"Welcome aboard.\n")],
    );
    let notes = archive(
        &manifest("notes"),
        vec![common("notes\n"), file("rootfs/etc/notes", 0o644, b"Mind the keel.\n")],
    );

    let mut of_app = manifest("app");
    of_app["app"] = json!({
        "exec": ["/bin/sh", "-c", "cat /etc/motd; cat /etc/notes; cat /lib/words; cat /etc/common; echo $GREETING"],
        "user": "app", "group": "keel", "workingDirectory": "/etc",
        "environment": [{"name": "PATH", "value": "/bin"}, {"name": "GREETING", "value": "ahoy"}],
    });
    of_app["dependencies"] = json!([
        {"imageName": "keelblock.example/base", "labels": labels("1.0.0")},
        {"imageName": "keelblock.example/motd"},
        {"imageName": "keelblock.example/notes", "labels": labels("1.0.0"), "imageID": image_id(&notes),
         "size": notes.len()},
    ]);
    let app = archive(&of_app, vec![common("app\n")]);
    vec![
        ("app-1.0.0", zstd(&app)),
        ("base-1.0.0", gzip(&base)),
        ("libs-1.0.0", xz(&libs)),
        ("motd-latest", bzip2(&motd)),
        ("notes-1.0.0", notes),
    ]
}

/// Images that are signed, one of them wrongly, and the key that has signed them: paths and contents.
pub(crate) fn signed() -> Vec<(&'static str, Vec<u8>)> {
    let image = |name: &str| {
        let manifest = json!({
            "acKind": "ImageManifest", "acVersion": "0.8.11", "name": format!("keelblock.example/{name}"),
            "labels": [{"name": "version", "value": "1.0.0"}],
        });
        gzip(&tar(&[
            file("manifest", 0o644, &text(&manifest)),
            dir("rootfs", 0o755),
            file("rootfs/name", 0o644, name.as_bytes()),
        ]))
    };
    let key =
        pgp::Shape { user_id: "Fixtures <fixtures@keelblock.example>".to_owned(), ..pgp::Shape::new(7) };
    let key = key.make();
    let (pier, wreck) = (image("pier"), image("wreck"));
    // What stands beside the wreck is the signature of the pier.
    let signature = key.sign(&pier).into_bytes();
    vec![
        ("key.asc", key.armored().into_bytes()),
        ("keelblock.example/pier-1.0.0-linux-amd64.aci", pier),
        ("keelblock.example/pier-1.0.0-linux-amd64.aci.asc", signature.clone()),
        ("keelblock.example/wreck-1.0.0-linux-amd64.aci", wreck),
        ("keelblock.example/wreck-1.0.0-linux-amd64.aci.asc", signature),
    ]
}

/// Image ID of an ACI whose tar this is.
fn image_id(tar: &[u8]) -> String {
    let mut hasher = Hasher::sha512();
    hasher.update(tar);
    format!("sha512-{}", hasher.finish().hex())
}

fn xz(bytes: &[u8]) -> Vec<u8> {
    let mut encoder = liblzma::write::XzEncoder::new(Vec::new(), 9);
    encoder.write_all(bytes).and_then(|()| encoder.finish()).expect("memory takes all that is written")
}

fn bzip2(bytes: &[u8]) -> Vec<u8> {
    let mut encoder = bzip2::write::BzEncoder::new(Vec::new(), bzip2::Compression::best());
    encoder.write_all(bytes).and_then(|()| encoder.finish()).expect("memory takes all that is written")
}
