//! Two hundred launches of one cold image at once in one process, through the embedding API: as many layer requests in
//! the registry's log as the image has layers, every exit status right, and no mount, process, staging directory or
//! file descriptor left.
//!
//! Alone in its file: it counts the descriptors of its process.

use std::sync::Arc;
use std::time::{Duration, Instant};

use keelblock::config::Config;
use keelblock::{Agent, CommandSpec, ContainerSpec, ImageRequest, NoObserver, StdioSpec};

mod support {
    pub(crate) mod binary;
    pub(crate) mod images;
    pub(crate) mod peers;
}

use support::binary::{Room, need_programs, need_root, open_descriptors};
use support::images::twelve_layers;
use support::peers::Registry;

/// How many containers are launched at once.
const LAUNCHES: i32 = 200;

fn spec(n: i32, image: &str) -> ContainerSpec {
    // Looks at the lowest and the highest layer before it ends with its own number.
    let line = format!("read -r a b < /data/0; read -r c d < /data/10; [ \"$b $d\" = '0 10' ] && exit {n}");
    ContainerSpec {
        id: format!("stress-{n}").parse().expect("letters and digits"),
        image: Some(ImageRequest::cached(image.parse().expect("a name with a registry"))),
        command: CommandSpec { shell: true, value: Some(line), ..CommandSpec::default() },
        volumes: Vec::new(),
        read_only: false,
        tty: false,
        stdio: StdioSpec::Null,
        effective_capabilities: None,
        bounding_capabilities: None,
        resources: Default::default(),
    }
}

#[test]
fn two_hundred_launches_of_a_cold_image_fetch_each_layer_once_and_leave_nothing() {
    need_root!();
    need_programs!("docker-registry", "skopeo");
    let room = Room::new("stress");
    let registry = Registry::start();
    twelve_layers().write_oci(&room.join("oci"), "latest");
    registry.push(&format!("oci:{}:latest", room.join("oci").display()), "app:1", &["--format", "oci"]);
    let image = registry.image("app:1");
    let before = registry.requests().len();
    // Tokio's signal handler and the thread that reaps stay for the life of the process: a first agent, on another
    // work dir, has them made.
    let first = Room::new("stress-first");
    assert_eq!(launch_at_once(&first, 1, &format!("oci:{}:latest", room.join("oci").display())), [Ok(0)]);
    let descriptors = descriptors_without_runtimes();

    let statuses = launch_at_once(&room, LAUNCHES, &image);

    let wrong: Vec<_> = (0..LAUNCHES).zip(&statuses).filter(|(n, status)| status.as_ref() != Ok(n)).collect();
    assert!(wrong.is_empty(), "{} launches went wrong: {wrong:#?}", wrong.len());
    registry.expect_each_fetched_once(before, "app:1");
    room.expect_no_leftovers();
    assert_eq!(descriptors_without_runtimes(), descriptors, "descriptors (left: now, right: before)");
}

/// Open descriptors once every runtime is gone, of which each has an eventfd: that of a stopped agent closes what it
/// has on threads of its own. If one does not go, its descriptors are in the list.
fn descriptors_without_runtimes() -> Vec<String> {
    let deadline = Instant::now() + Duration::from_secs(20);
    loop {
        let open = open_descriptors();
        if Instant::now() > deadline || !open.iter().any(|target| target.contains("eventfd")) {
            return open;
        }
        std::thread::sleep(Duration::from_millis(20));
    }
}

/// Starts an agent, launches so many containers at once, waits for each and destroys it, and stops the agent. The
/// exit statuses, in order.
fn launch_at_once(room: &Room, launches: i32, image: &str) -> Vec<Result<i32, String>> {
    let config = Config { work_dir: room.work_dir(), ..Config::default() };
    let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(2).enable_all().build().unwrap();
    runtime.block_on(async {
        let log = slog::Logger::root(slog::Discard, slog::o!());
        let agent = Agent::start(config, Arc::new(NoObserver), log).await.expect("the agent starts");
        let run = async |n: i32| {
            let running =
                agent.launch(spec(n, image)).await.map_err(|error| format!("launch {n}: {error:?}"))?;
            let status = running.process.wait().await.code();
            agent.destroy(running.id.clone()).await.map_err(|error| format!("destroy {n}: {error:?}"))?;
            Ok::<_, String>(status)
        };
        let statuses = futures_util::future::join_all((0..launches).map(run)).await;
        let listed = agent.containers().await.expect("the records can be read");
        assert!(listed.is_empty(), "containers outlived their destruction: {listed:?}");
        agent.shutdown().await;
        statuses
    })
}
