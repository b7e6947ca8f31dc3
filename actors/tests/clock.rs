//! The engine under a paused clock: every pause and timeout at its moment, and a thousand launches in no time at all.

use std::time::Duration;

use futures_util::future::join_all;
use keelblock_actors::container::{
    CommandSpec, ContainerId, ContainerRecord, ContainerSpec, PhaseName, ProcessIdentity, RootfsRecord,
};
use keelblock_actors::error::{ContainerError, RecordError};
use keelblock_actors::fakes::{Act, Step, World, image};
use keelblock_actors::image::name::{ImageName, ImageRequest};
use keelblock_actors::launch::StdioSpec;
use keelblock_actors::progress::LayerEvent;
use keelblock_actors::system::{Engine, EngineLimits};
use tokio::task::LocalSet;
use tokio::time::{Instant, sleep_until};

fn id(text: &str) -> ContainerId {
    text.parse().unwrap()
}

fn request(name: &str) -> ImageRequest {
    ImageRequest::cached(name.parse::<ImageName>().unwrap())
}

fn spec(name: &str, image: &str) -> ContainerSpec {
    ContainerSpec {
        id: id(name),
        image: Some(request(image)),
        command: CommandSpec::default(),
        volumes: Vec::new(),
        read_only: false,
        tty: false,
        stdio: StdioSpec::Null,
        effective_capabilities: None,
        bounding_capabilities: None,
        resources: Default::default(),
    }
}

fn paused(world: &World, test: impl AsyncFnOnce(Engine)) {
    let runtime =
        tokio::runtime::Builder::new_current_thread().enable_all().start_paused(true).build().unwrap();
    LocalSet::new().block_on(&runtime, async {
        let limits = EngineLimits { launches_max: 2000, ..EngineLimits::default() };
        test(Engine::start_here(world.parts(limits))).await
    })
}

#[test]
fn a_thousand_provisions_of_twenty_layers_are_twenty_fetches_and_no_pause() {
    let world = World::default();
    paused(&world, async |engine| {
        let began = Instant::now();
        let names: Vec<_> = (0..1000).map(|n| id(&format!("c{n}"))).collect();
        let launches = names.iter().map(|name| engine.launch(spec(name.as_str(), "app:20")));
        for launched in join_all(launches).await {
            launched.unwrap();
        }
        assert_eq!((world.count(Step::Open), world.count(Step::Unpack)), (20, 20));
        assert_eq!((world.count(Step::Mount), world.count(Step::Start)), (1000, 1000));
        assert_eq!(began.elapsed(), Duration::ZERO, "somebody waited for a timer");
        for destroyed in join_all(names.iter().map(|name| engine.destroy(name.clone()))).await {
            destroyed.unwrap();
        }
        world.empties().await;
    });
}

#[test]
fn a_layer_that_another_process_brings_is_claimed_again_ever_more_seldom() {
    let world = World::default();
    paused(&world, async |engine| {
        let layer = image("app:1", "app", 1).1.layers.remove(0);
        world.bring_elsewhere(&layer.key, true);
        let began = Instant::now();
        let at = |ms| sleep_until(began + Duration::from_millis(ms));
        let watch = async {
            // Pauses of 25, 50, 100, 200, 250, 250 ms.
            for (ms, claims) in [(24, 1), (26, 2), (74, 2), (76, 3), (176, 4), (376, 5), (626, 6), (876, 7)] {
                at(ms).await;
                assert_eq!(world.count(Step::Claim), claims, "after {ms} ms");
            }
            world.bring_elsewhere(&layer.key, false);
        };
        let (pulled, ()) = tokio::join!(engine.pull(request("app:1")), watch);
        assert_eq!(pulled.unwrap().layers_fetched, 1);
        assert!(began.elapsed() <= Duration::from_millis(1130), "{:?}", began.elapsed());
        let waits = world.events().iter().filter(|(_, event)| *event == LayerEvent::WaitingForOther).count();
        assert_eq!(waits, 1);
    });
}

#[test]
fn a_puller_who_leaves_while_another_process_brings_the_layer_waits_no_more() {
    let world = World::default();
    paused(&world, async |engine| {
        let layer = image("app:1", "app", 1).1.layers.remove(0);
        world.bring_elsewhere(&layer.key, true);
        let left = tokio::time::timeout(Duration::from_secs(1), engine.pull(request("app:1"))).await;
        assert!(left.is_err());
        let claims = world.count(Step::Claim);
        tokio::time::sleep(Duration::from_secs(10)).await;
        assert_eq!(world.count(Step::Claim), claims);
        assert_eq!(world.events().last().unwrap().1, LayerEvent::Ended);
        assert_eq!(world.pins(), 0);
    });
}

#[test]
fn another_process_is_heard_within_a_quarter_of_a_second_also_while_an_image_comes() {
    let world = World::default();
    paused(&world, async |engine| {
        world.close(Step::Resolve);
        let began = Instant::now();
        let ask = async {
            world.reached(Step::Resolve, 1).await;
            world.request(&id("web"));
        };
        let (launched, ()) = tokio::join!(engine.launch(spec("web", "app:1")), ask);
        assert!(matches!(&*launched.unwrap_err(), ContainerError::Destroyed { .. }));
        assert!((250..=251).contains(&began.elapsed().as_millis()), "{:?}", began.elapsed());
        world.empties().await;
    });
}

#[test]
fn a_panic_while_looking_for_requests_does_not_end_the_looking() {
    let world = World::default();
    paused(&world, async |engine| {
        let running = engine.launch(spec("web", "app:1")).await.unwrap();
        world.once(Step::DestroyRequested, Act::Panic);
        world.request(&id("web"));
        running.process.wait().await;
        assert_eq!(world.count(Step::DestroyRequested), 2);
        world.empties().await;
    });
}

#[test]
fn a_teardown_that_another_process_asked_for_is_tried_again() {
    let world = World::default();
    paused(&world, async |engine| {
        engine.launch(spec("web", "app:1")).await.unwrap();
        world.always(Step::Unmount, true);
        world.request(&id("web"));
        tokio::time::sleep(Duration::from_secs(5)).await;
        let tries = world.count(Step::Unmount);
        // After 250 ms, then 500, 1000, 2000.
        assert_eq!(tries, 4);
        world.always(Step::Unmount, false);
        tokio::time::sleep(Duration::from_secs(5)).await;
        assert_eq!(world.leftovers(), [""; 0]);
        drop(engine);
    });
}

#[test]
fn looking_for_requests_ends_with_the_container() {
    let world = World::default();
    paused(&world, async |engine| {
        for _ in 0..20 {
            engine.launch(spec("web", "app:1")).await.unwrap();
            engine.destroy(id("web")).await.unwrap();
        }
        engine.launch(spec("web", "app:1")).await.unwrap();
        tokio::time::sleep(Duration::from_millis(1010)).await;
        assert_eq!(world.count(Step::DestroyRequested), 4, "one watcher, four looks in a second");
        engine.destroy(id("web")).await.unwrap();
        tokio::time::sleep(Duration::from_secs(10)).await;
        assert_eq!(world.count(Step::DestroyRequested), 4);
    });
}

#[test]
fn a_keeper_that_does_not_answer_is_given_up_after_a_minute() {
    let world = World::default();
    let process = ProcessIdentity { pid: 7, start_ticks: 7, boot_id: "this boot".to_owned() };
    let record = ContainerRecord {
        id: id("theirs"),
        phase: PhaseName::Running,
        created_ms: 0,
        owner: Some(process),
        image: None,
        rootfs: None,
        init: None,
        argv: Vec::new(),
        image_isolators: Vec::new(),
    };
    world.plant(record, RootfsRecord::default(), true);
    paused(&world, async |engine| {
        let began = Instant::now();
        let error = engine.destroy(id("theirs")).await.unwrap_err();
        assert!(matches!(&*error, ContainerError::Record(RecordError::Elsewhere { .. })), "{error:?}");
        assert_eq!(began.elapsed().as_secs(), 60);
        assert_eq!(world.count(Step::RequestDestroy), 1);
    });
}
