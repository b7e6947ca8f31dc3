//! Many commands at once on one cold work dir: each layer is fetched once, every exit status is right, nothing is left.

mod support {
    pub(crate) mod binary;
    pub(crate) mod images;
    pub(crate) mod peers;
}

use support::binary::{Room, need_programs, need_root};
use support::images::twelve_layers;
use support::peers::Registry;

/// How many commands run at once on one work dir.
const PROCESSES: u8 = 20;

#[test]
fn twenty_processes_on_one_cold_work_dir_fetch_each_layer_once() {
    need_root!();
    need_programs!("docker-registry", "skopeo");
    let room = Room::new("stress-processes");
    let registry = Registry::start();
    twelve_layers().write_oci(&room.join("oci"), "latest");
    registry.push(&format!("oci:{}:latest", room.join("oci").display()), "app:1", &["--format", "oci"]);
    let name = registry.image("app:1");
    let before = registry.requests().len();

    let line =
        |status: u8| format!("read -r word rest < /data/7; [ \"$word $rest\" = 'layer 7' ] && exit {status}");
    let runs: Vec<_> = (0..PROCESSES)
        .map(|status| room.keelblock(["run", &name, "--", "sh", "-c", &line(status)]).start())
        .collect();
    for (status, run) in (0..PROCESSES).zip(runs) {
        run.wait().code(status.into());
    }

    registry.expect_each_fetched_once(before, "app:1");
    room.expect_no_leftovers();
}
