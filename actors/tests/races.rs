//! The engine on fakes: what happens when things happen at once. Gates hold steps; no test sleeps.

use std::future::Future;
use std::pin::pin;
use std::time::Duration;

use futures_util::future::join_all;
use futures_util::poll;
use keelblock_actors::container::{
    BackendName, CommandSpec, ContainerId, ContainerRecord, ContainerSpec, PhaseName, ProcessIdentity,
    RootfsId, RootfsRecord,
};
use keelblock_actors::error::{ContainerError, LaunchError, chain};
use keelblock_actors::fakes::{Act, Step, World, image};
use keelblock_actors::image::name::{ImageName, ImageRequest};
use keelblock_actors::launch::StdioSpec;
use keelblock_actors::ports::{ExecSpec, Keep};
use keelblock_actors::progress::LayerEvent;
use keelblock_actors::system::{Engine, EngineLimits};

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

fn limits() -> EngineLimits {
    EngineLimits { launches_max: 2000, fetches_max: 20, unpacks_max: 20, ..EngineLimits::default() }
}

/// Runs a test on an engine of its own, which is shut down after it.
fn with_engine(world: &World, limits: EngineLimits, test: impl AsyncFnOnce(Engine)) {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
    let engine = world.engine(limits);
    runtime.block_on(async {
        // A race that is lost may also be a wait without end.
        let ended = tokio::time::timeout(Duration::from_secs(60), test(engine.clone())).await;
        ended.expect("a request was never answered");
        engine.shutdown().await;
    });
}

/// Begins a request, and drops it when it has been answered and the answer not been read. `first` is its first step.
async fn leave_the_answer<T>(
    world: &World,
    first: Step,
    request: impl Future<Output = T>,
    engine: &Engine,
    answered: impl Fn() -> bool,
) {
    let mut request = pin!(request);
    world.close(first);
    assert!(poll!(request.as_mut()).is_pending());
    world.reached(first, 1).await;
    world.open_all();
    while !answered() {
        let _ = engine.list().await;
    }
    // Some rounds through the actors' thread: what was about to be sent has been sent.
    for _ in 0..10 {
        let _ = engine.list().await;
    }
}

#[test]
fn a_launch_whose_answer_nobody_takes_is_taken_down() {
    let world = World::default();
    with_engine(&world, limits(), async |engine| {
        let running = || world.record(&id("web")).is_some_and(|record| record.phase == PhaseName::Running);
        leave_the_answer(&world, Step::Create, engine.launch(spec("web", "app:2")), &engine, running).await;
        world.empties().await;
    });
}

#[test]
fn a_provision_whose_answer_nobody_takes_is_taken_down() {
    let world = World::default();
    with_engine(&world, limits(), async |engine| {
        let stands = || world.record(&id("web")).is_some_and(|record| record.phase == PhaseName::Provisioned);
        leave_the_answer(
            &world,
            Step::Create,
            engine.provision(id("web"), request("app:2")),
            &engine,
            stands,
        )
        .await;
        world.empties().await;
    });
}

#[test]
fn a_command_that_nobody_holds_is_killed_and_its_container_unharmed() {
    let world = World::default();
    with_engine(&world, limits(), async |engine| {
        let running = engine.launch(spec("web", "app:1")).await.unwrap();
        let kills = world.count(Step::KillAll);
        leave_the_answer(&world, Step::Exec, engine.exec(id("web"), ExecSpec::default()), &engine, || {
            world.count(Step::Exec) == 1
        })
        .await;
        while world.count(Step::KillAll) == kills {
            let _ = engine.list().await;
        }
        assert!(poll!(pin!(running.process.wait())).is_pending());
        let held = engine.exec(id("web"), ExecSpec::default()).await.unwrap();
        let _ = engine.list().await;
        assert!(poll!(pin!(held.process.wait())).is_pending());
        engine.destroy(id("web")).await.unwrap();
        world.empties().await;
    });
}

#[test]
fn a_destroy_stops_a_long_copy_and_takes_its_rootfs_away_after_it() {
    let world = World::default();
    with_engine(&world, limits(), async |engine| {
        world.close(Step::Mount);
        let (launched, destroyed) = tokio::join!(engine.launch(spec("web", "app:1")), async {
            world.reached(Step::Mount, 1).await;
            // The gate stays closed: only being stopped ends the mount.
            engine.destroy(id("web")).await
        });
        assert!(matches!(&*launched.unwrap_err(), ContainerError::Destroyed { .. }));
        destroyed.unwrap();
        assert_eq!(world.history(), ["mount web 0", "stop web 0", "unmount web 0"]);
        world.empties().await;
    });
}

#[test]
fn a_destroy_leaves_the_pull_to_another_launch_that_shares_it() {
    let world = World::default();
    with_engine(&world, limits(), async |engine| {
        world.close(Step::Unpack);
        let first = engine.launch(spec("first", "app:1"));
        let second = async {
            world.reached(Step::Unpack, 1).await;
            engine.launch(spec("second", "app:1")).await
        };
        let destroy = async {
            // Both have pinned, each for itself and for its pull, and ask for the layer next.
            while world.pins() < 4 {
                tokio::task::yield_now().await;
            }
            for _ in 0..50 {
                let _ = engine.list().await;
            }
            // Returns while the bytes are still on their way.
            let destroyed = engine.destroy(id("first")).await;
            world.open_all();
            destroyed
        };
        let (first, second, destroyed) = tokio::join!(first, second, destroy);
        assert!(matches!(&*first.unwrap_err(), ContainerError::Destroyed { .. }));
        destroyed.unwrap();
        second.unwrap();
        assert_eq!((world.count(Step::Open), world.count(Step::Unpack)), (1, 1));
        engine.destroy(id("second")).await.unwrap();
        world.empties().await;
    });
}

#[test]
fn the_last_launch_destroyed_stops_the_unpack() {
    let world = World::default();
    with_engine(&world, limits(), async |engine| {
        world.close(Step::Unpack);
        let launches = join_all([engine.launch(spec("a", "app:1")), engine.launch(spec("b", "app:1"))]);
        let destroys = async {
            world.reached(Step::Unpack, 1).await;
            join_all([engine.destroy(id("a")), engine.destroy(id("b"))]).await
        };
        let (launched, _) = tokio::join!(launches, destroys);
        assert!(launched.iter().all(Result::is_err));
        // The gate was never opened.
        world.empties().await;
        let ended = world.events().iter().filter(|(_, event)| *event == LayerEvent::Ended).count();
        assert_eq!(ended, 1);
    });
}

#[test]
fn a_prune_that_listed_before_a_provision_takes_none_of_its_layers() {
    for warm in [false, true] {
        let world = World::default();
        with_engine(&world, limits(), async |engine| {
            if warm {
                engine.pull(request("app:3")).await.unwrap();
            }
            world.close(Step::Prune);
            let provision = async {
                world.reached(Step::Prune, 1).await;
                engine.provision(id("web"), request("app:3")).await.unwrap();
                assert!(world.pins() > 0, "let go while a prune may not know of it");
                world.open_all();
            };
            let (pruned, ()) = tokio::join!(engine.prune(Keep::default()), provision);
            assert_eq!(pruned.unwrap().layers, []);
            // Recorded now: the next one knows.
            assert_eq!(engine.prune(Keep::default()).await.unwrap().layers, []);
            assert_eq!(world.pins(), 0);
            engine.destroy(id("web")).await.unwrap();
            assert_eq!(engine.prune(Keep::default()).await.unwrap().layers.len(), 3);
            world.empties().await;
        });
    }
}

#[test]
fn what_a_prune_took_after_the_name_was_resolved_is_pulled_again() {
    let world = World::default();
    with_engine(&world, limits(), async |engine| {
        engine.pull(request("app:3")).await.unwrap();
        world.close(Step::Pin);
        let prune = async {
            world.reached(Step::Pin, 1).await;
            assert_eq!(engine.prune(Keep::default()).await.unwrap().layers.len(), 3);
            world.open_all();
        };
        let (provisioned, ()) = tokio::join!(engine.provision(id("web"), request("app:3")), prune);
        assert_eq!(provisioned.unwrap().image.layers_fetched, 3);
        engine.destroy(id("web")).await.unwrap();
        world.empties().await;
    });
}

#[test]
fn shown_layers_are_let_go_on_threads_that_may_block_and_not_before_the_rootfs() {
    let world = World::default();
    with_engine(&world, limits(), async |engine| {
        engine.launch(spec("web", "app:3")).await.unwrap();
        assert!(world.hidden_by().is_empty());
        engine.destroy(id("web")).await.unwrap();
        world.empties().await;
        // What stays needs its layers shown by nobody: this process may end.
        engine.provision(id("stays"), request("app:3")).await.unwrap();
        assert!(!world.leftovers().iter().any(|left| left.contains("shown")), "{:?}", world.leftovers());
        let threads = world.hidden_by();
        assert!(!threads.is_empty() && !threads.contains("keelblock-actors"), "{threads:?}");
        engine.destroy(id("stays")).await.unwrap();
        world.empties().await;
    });
}

#[test]
fn a_provisioned_container_destroyed_by_another_process_can_be_provisioned_anew() {
    let world = World::default();
    with_engine(&world, limits(), async |engine| {
        engine.provision(id("stays"), request("app:3")).await.unwrap();
        world.vanish(&id("stays"));
        let again = engine.provision(id("stays"), request("data:1")).await.unwrap();
        assert_eq!(again.rootfs.id, RootfsId(0), "nothing of the first is remembered");
        assert_eq!(world.rootfses(&id("stays")).unwrap().layers.len(), 1);
        engine.destroy(id("stays")).await.unwrap();
        world.empties().await;
    });
}

#[test]
fn no_connection_is_opened_before_there_is_a_thread_to_drain_it() {
    let world = World::default();
    with_engine(&world, EngineLimits { unpacks_max: 1, ..limits() }, async |engine| {
        world.close(Step::Unpack);
        let watch = async {
            world.reached(Step::Unpack, 1).await;
            for _ in 0..50 {
                let _ = engine.list().await;
            }
            assert_eq!(world.count(Step::Open), 1);
            world.open_all();
        };
        let (pulled, ()) = tokio::join!(engine.pull(request("app:5")), watch);
        assert_eq!(pulled.unwrap().layers_fetched, 5);
    });
}

#[test]
fn a_registry_that_gives_nothing_holds_up_no_pull_from_another() {
    let world = World::default();
    with_engine(&world, EngineLimits { fetches_max: 2, unpacks_max: 8, ..limits() }, async |engine| {
        world.close(Step::Open);
        let watch = async {
            world.reached(Step::Open, 2).await;
            for _ in 0..50 {
                let _ = engine.list().await;
            }
            assert_eq!(world.count(Step::Open), 2, "a registry is asked for two blobs at once");
            let other = engine.pull(request("other.io/data:2"));
            let both = async {
                world.reached(Step::Open, 4).await;
                world.open_all();
            };
            let (other, ()) = tokio::join!(other, both);
            assert_eq!(other.unwrap().layers_fetched, 2);
        };
        let (slow, ()) = tokio::join!(engine.pull(request("slow.io/app:20")), watch);
        assert_eq!(slow.unwrap().layers_fetched, 20);
    });
}

#[test]
fn the_observer_hears_every_layer_begin_and_end() {
    let world = World::default();
    with_engine(&world, limits(), async |engine| {
        let key = image("app:1", "app", 1).1.layers.remove(0).key.to_string();
        let heard = |events: &[LayerEvent]| {
            let expected: Vec<_> = events.iter().map(|event| (key.clone(), *event)).collect();
            assert_eq!(world.events(), expected);
        };
        let started = LayerEvent::Started { total: Some(1) };
        let fetched = LayerEvent::Fetched { bytes: 1 };
        world.once(Step::Unpack, Act::Fail);
        engine.pull(request("app:1")).await.unwrap_err();
        heard(&[started, fetched, LayerEvent::Ended]);
        engine.pull(request("app:1")).await.unwrap();
        heard(&[started, fetched, LayerEvent::Ended, started, fetched, LayerEvent::Committed]);
        engine.pull(ImageRequest::fresh(request("app:1").name)).await.unwrap();
        assert_eq!(world.events().last().unwrap().1, LayerEvent::Reused);
    });
}

#[test]
fn every_failure_of_a_teardown_is_told_and_the_container_stays_destroying() {
    let world = World::default();
    with_engine(&world, limits(), async |engine| {
        engine.launch(spec("web", "app:1")).await.unwrap();
        world.always(Step::Cleanup, true);
        world.always(Step::Unmount, true);
        let error = engine.destroy(id("web")).await.unwrap_err();
        let ContainerError::Teardown { failures, .. } = &*error else { panic!("{error:?}") };
        assert_eq!(failures.len(), 3, "{failures:?}");
        assert_eq!(
            world.history(),
            ["mount web 0", "cleanup web second", "cleanup web first", "unmount web 0"]
        );
        assert_eq!(world.record(&id("web")).unwrap().phase, PhaseName::Destroying);
        let refused = engine.exec(id("web"), ExecSpec::default()).await.map(drop).unwrap_err();
        assert!(matches!(&*refused, ContainerError::Launch(LaunchError::NotRunning { .. })), "{refused:?}");
        let refused = engine.launch(spec("web", "app:1")).await.unwrap_err();
        assert!(matches!(&*refused, ContainerError::Exists { .. }));
        world.always(Step::Cleanup, false);
        world.always(Step::Unmount, false);
        assert!(engine.destroy(id("web")).await.unwrap().is_some(), "how it ended is still known");
        world.empties().await;
    });
}

#[test]
fn nothing_is_launched_once_the_engine_is_shutting_down() {
    let world = World::default();
    let engine = world.engine(limits());
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
    runtime.block_on(async {
        engine.launch(spec("web", "app:1")).await.unwrap();
        world.close(Step::KillAll);
        let late = async {
            world.reached(Step::KillAll, 1).await;
            let late = engine.launch(spec("late", "app:1")).await;
            world.open_all();
            late
        };
        let ((), late) = tokio::join!(engine.shutdown(), late);
        assert!(matches!(&*late.unwrap_err(), ContainerError::Gone(_)));
        world.empties().await;
    });
}

fn planted(name: &str, init: bool) -> (ContainerRecord, RootfsRecord) {
    let process = ProcessIdentity { pid: 7, start_ticks: 7, boot_id: "this boot".to_owned() };
    let record = ContainerRecord {
        id: id(name),
        phase: PhaseName::Provisioning,
        created_ms: 0,
        owner: Some(process.clone()),
        image: None,
        rootfs: None,
        init: init.then_some(process),
        argv: Vec::new(),
        image_isolators: Vec::new(),
    };
    let rootfses =
        RootfsRecord { rootfses: vec![(RootfsId(0), BackendName::Overlay)], ..RootfsRecord::default() };
    (record, rootfses)
}

#[test]
fn waiting_for_a_container_whose_keeper_died_before_it_ran_ends() {
    let world = World::default();
    let (record, rootfses) = planted("dead", false);
    world.plant(record, rootfses, false);
    with_engine(&world, limits(), async |engine| {
        assert_eq!(engine.wait(id("dead")).await.unwrap(), None);
        engine.recover().await.unwrap();
    });
}

/// Every method of every port that a launch alone does not come by, or that is told elsewhere: it panics once, the one
/// request says so, and the next is served.
#[test]
fn a_panic_in_any_other_method_of_a_port_is_an_error_of_that_request_alone() {
    use Step::{
        Adopt, Exec, Find, Image, Images, Init, KillOrphan, LayerSize, List, Observe, Pin, Prune, Read,
        RecoverStore, RequestDestroy, Signal, SignalOther, Wait, WaitOther,
    };
    let steps = [
        Find,
        Pin,
        Image,
        Init,
        Observe,
        Signal,
        Wait,
        Exec,
        Images,
        LayerSize,
        Prune,
        List,
        RecoverStore,
        Adopt,
        Read,
        RequestDestroy,
        KillOrphan,
        SignalOther,
        WaitOther,
    ];
    for step in steps {
        let world = World::default();
        with_engine(&world, limits(), async |engine| {
            let told = |what: Result<(), String>| what.err().unwrap_or_default();
            let said = |error: std::sync::Arc<ContainerError>| chain(&*error);
            let (record, rootfses) = planted("other", true);
            world.plant(record, rootfses, matches!(step, RequestDestroy));
            if matches!(step, Find | Images | LayerSize) {
                engine.pull(request("app:1")).await.unwrap();
            }
            for first in [true, false] {
                if first {
                    world.once(step, Act::Panic);
                }
                let told = match step {
                    Find | Pin | Image | Init | Observe => {
                        let launched = engine.launch(spec("web", "app:1")).await;
                        let told = told(launched.map(drop).map_err(said));
                        if told.is_empty() {
                            engine.destroy(id("web")).await.unwrap();
                        }
                        told
                    }
                    Signal | Wait | Exec => {
                        if first {
                            engine.launch(spec("web", "app:1")).await.unwrap();
                        }
                        told(match step {
                            Signal => engine.kill(id("web"), 15).await.map_err(said),
                            Exec => engine.exec(id("web"), ExecSpec::default()).await.map(drop).map_err(said),
                            _ => {
                                world.exit_all(keelblock_actors::container::ExitStatus::Exited(0));
                                engine.wait(id("web")).await.map(drop).map_err(said)
                            }
                        })
                    }
                    Images | LayerSize => {
                        told(engine.images().await.map(drop).map_err(|error| chain(&error)))
                    }
                    Prune => told(engine.prune(Keep::default()).await.map(drop).map_err(|e| chain(&*e))),
                    List => told(engine.list().await.map(drop).map_err(said)),
                    RecoverStore => {
                        // Told in the log; what dead processes left is taken down all the same.
                        let taken = engine.recover().await.unwrap();
                        assert_eq!(taken.len(), usize::from(first));
                        if first { "a fake panics at RecoverStore".to_owned() } else { String::new() }
                    }
                    SignalOther => told(engine.kill(id("other"), 15).await.map_err(said)),
                    WaitOther => told(engine.wait(id("other")).await.map(drop).map_err(said)),
                    RequestDestroy => {
                        let destroyed =
                            async { told(engine.destroy(id("other")).await.map(drop).map_err(said)) };
                        let vanish = async {
                            while !first && !world.was_requested(&id("other")) {
                                tokio::task::yield_now().await;
                            }
                            if !first {
                                world.vanish(&id("other"));
                            }
                        };
                        tokio::join!(destroyed, vanish).0
                    }
                    _ => told(engine.destroy(id("other")).await.map(drop).map_err(said)),
                };
                match first {
                    true => assert!(told.contains(&format!("a fake panics at {step:?}")), "{step:?}: {told}"),
                    false => assert_eq!(told, "", "{step:?}"),
                }
            }
        });
    }
}

#[test]
fn a_destroy_during_a_launch_that_is_refused_the_name_reaches_the_one_that_has_it() {
    let world = World::default();
    let (record, rootfses) = planted("web", true);
    world.plant(ContainerRecord { phase: PhaseName::Provisioned, owner: None, ..record }, rootfses, false);
    with_engine(&world, limits(), async |engine| {
        world.close(Step::Create);
        let destroy = async {
            world.reached(Step::Create, 1).await;
            let open = async {
                let _ = engine.list().await;
                world.open_all();
            };
            tokio::join!(engine.destroy(id("web")), open).0
        };
        let (launched, destroyed) = tokio::join!(engine.launch(spec("web", "app:1")), destroy);
        assert!(matches!(&*launched.unwrap_err(), ContainerError::Exists { .. }));
        destroyed.unwrap();
        world.empties().await;
    });
}
