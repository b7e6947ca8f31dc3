//! Many launches of one cold image at once: each layer is fetched once, every exit status is right, nothing is left.

mod support {
    pub(crate) mod binary;
    pub(crate) mod images;
    pub(crate) mod peers;
}

use support::binary::{Room, need_programs, need_root};
use support::images::{Compression, Image, Layer, shell};
use support::peers::Registry;

/// How many commands run at once on one work dir.
const PROCESSES: u8 = 20;

/// An image of twelve layers, large enough that the commands meet in the middle of fetching them.
fn image() -> Image {
    (0..11_u32).fold(Image::new().compressed(shell().finish(), Compression::None), |image, layer| {
        let text = format!("layer {layer}\n").repeat(100_000);
        image.layer(Layer::new().file(&format!("data/{layer}"), text, 0o644))
    })
}

#[test]
fn twenty_processes_on_one_cold_work_dir_fetch_each_layer_once() {
    need_root!();
    need_programs!("docker-registry", "skopeo");
    let room = Room::new("stress-processes");
    let registry = Registry::start(&room.join("registry"));
    image().write_oci(&room.join("oci"), "latest");
    registry.push(&format!("oci:{}:latest", room.join("oci").display()), "app:1", &["--format", "oci"]);
    let name = registry.image("app:1");
    let layers = layer_digests(&room);
    let before = registry.requests().len();

    let line =
        |status: u8| format!("read -r word rest < /data/7; [ \"$word $rest\" = 'layer 7' ] && exit {status}");
    let runs: Vec<_> = (0..PROCESSES)
        .map(|status| room.keelblock(["run", &name, "--", "sh", "-c", &line(status)]).start())
        .collect();
    for (status, run) in (0..PROCESSES).zip(runs) {
        run.wait().code(status.into());
    }

    expect_each_once(&registry.blobs_fetched(before), &layers);
    room.expect_no_leftovers();
}

/// The layers of the image in the layout `oci` of this room.
fn layer_digests(room: &Room) -> Vec<String> {
    let read = |path: &str| -> serde_json::Value {
        serde_json::from_slice(&std::fs::read(room.join("oci").join(path)).unwrap()).unwrap()
    };
    let digest = read("index.json")["manifests"][0]["digest"].as_str().unwrap().replace(':', "/");
    let manifest = read(&format!("blobs/{digest}"));
    let layers = manifest["layers"].as_array().unwrap();
    layers.iter().map(|layer| layer["digest"].as_str().unwrap().to_owned()).collect()
}

#[track_caller]
fn expect_each_once(fetched: &[String], layers: &[String]) {
    for layer in layers {
        let count = fetched.iter().filter(|blob| *blob == layer).count();
        assert_eq!(count, 1, "requests for layer {layer}; all blob requests: {fetched:#?}");
    }
}
