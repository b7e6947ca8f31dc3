//! The engine on fakes: share, serialise, bound, and nothing left whatever happens. Gates hold steps where a race is
//! wanted; no test sleeps.

use std::collections::HashSet;
use std::sync::Arc;

use futures_util::future::join_all;
use keelblock_actors::container::{
    BackendName, CommandSpec, ContainerId, ContainerRecord, ContainerSpec, ExitStatus, PhaseName,
    ProcessIdentity, RootfsId, RootfsRecord, VolumeSource, VolumeSpec,
};
use keelblock_actors::error::{ContainerError, JobLost, LaunchError, ProvisionError, chain};
use keelblock_actors::fakes::{Act, Step, World, image};
use keelblock_actors::image::name::{ImageName, ImageRequest, PullPolicy};
use keelblock_actors::launch::StdioSpec;
use keelblock_actors::ports::Keep;
use keelblock_actors::system::EngineLimits;

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

fn runtime() -> tokio::runtime::Runtime {
    tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap()
}

#[test]
fn a_thousand_provisions_of_one_image_fetch_each_layer_once() {
    let world = World::default();
    let engine = world.engine(limits());
    runtime().block_on(async {
        let names: Vec<_> = (0..1000).map(|n| id(&format!("c{n}"))).collect();
        let provisions = names.iter().map(|name| engine.provision(name.clone(), request("app:20")));
        for provisioned in join_all(provisions).await {
            assert_eq!(provisioned.unwrap().image.layers.len(), 20);
        }
        assert_eq!((world.count(Step::Open), world.count(Step::Unpack)), (20, 20));
        assert_eq!(world.count(Step::Mount), 1000);
        for destroyed in join_all(names.iter().map(|name| engine.destroy(name.clone()))).await {
            destroyed.unwrap();
        }
        world.empties().await;
        engine.shutdown().await;
    });
}

#[test]
fn one_layer_of_two_images_and_two_sources_is_fetched_once() {
    let world = World::default();
    let engine = world.engine(limits());
    runtime().block_on(async {
        world.close(Step::Open);
        let both =
            async { tokio::join!(engine.pull(request("a.io/app:1")), engine.pull(request("b.io/app:1"))) };
        let open = async {
            world.reached(Step::Open, 1).await;
            world.open_all();
        };
        let ((first, second), ()) = tokio::join!(both, open);
        assert_eq!(first.unwrap().layers, second.unwrap().layers);
        assert_eq!(world.count(Step::Open), 1);
        engine.shutdown().await;
    });
}

/// The layers of the fakes have 1,000 bytes and 10 entries.
#[test]
fn an_image_beyond_its_limits_is_given_up_with_the_layers_not_yet_here() {
    for (flag, limits, allowed) in [
        ("image_bytes_max", EngineLimits { image_bytes_max: 3999, fetches_max: 1, ..limits() }, "3999 bytes"),
        (
            "image_entries_max",
            EngineLimits { image_entries_max: 39, fetches_max: 1, ..limits() },
            "39 entries",
        ),
    ] {
        let world = World::default();
        let engine = world.engine(limits);
        runtime().block_on(async {
            let mut fetching = world.fetching();
            let error = engine.pull(request("app:400")).await.unwrap_err();
            let text = keelblock_actors::error::chain(&*error);
            assert!(text.contains("app:400") && text.contains(allowed) && text.contains(flag), "{text}");
            fetching.wait_for(|count| *count == 0).await.unwrap();
            // The sizes are looked up beside the fetches, which go on meanwhile: so many that those cannot come to their end.
            assert!(world.count(Step::Unpack) < 400, "the rest was not given up");
            assert!(engine.images().await.unwrap().is_empty());
            // What is within them is pulled, also of layers that came before.
            engine.pull(request("app:3")).await.unwrap();
            world.empties().await;
            engine.shutdown().await;
        });
    }
}

#[test]
fn a_layer_on_its_way_is_given_up_when_those_that_are_here_pass_the_limit() {
    let world = World::default();
    let roomy = world.engine(limits());
    let engine = world.engine(EngineLimits { image_bytes_max: 3999, ..limits() });
    runtime().block_on(async {
        roomy.pull(request("app:19")).await.unwrap();
        // The twentieth can never be unpacked: only being given up lets this end.
        world.close(Step::Unpack);
        let error = engine.pull(request("app:20")).await.unwrap_err();
        let text = keelblock_actors::error::chain(&*error);
        assert!(text.contains("3999 bytes") && text.contains("image_bytes_max"), "{text}");
        world.fetching().wait_for(|count| *count == 0).await.unwrap();
        assert_eq!(engine.images().await.unwrap().len(), 1);
        world.open_all();
        roomy.shutdown().await;
        engine.shutdown().await;
    });
}

#[test]
fn a_waiter_that_leaves_does_not_take_the_fetch_from_the_others() {
    let world = World::default();
    let engine = world.engine(limits());
    runtime().block_on(async {
        world.close(Step::Open);
        let mut first = Box::pin(engine.pull(request("a.io/app:1")));
        let second = async {
            world.reached(Step::Open, 1).await;
            engine.pull(request("b.io/app:1")).await
        };
        let mut second = Box::pin(second);
        tokio::select! {
            _ = &mut first => unreachable!("the gate is closed"),
            _ = &mut second => unreachable!("the gate is closed"),
            () = async { while world.count(Step::Resolve) < 2 { tokio::task::yield_now().await; } } => {}
        }
        drop(first);
        let open = async {
            let _ = engine.list().await;
            world.open_all();
        };
        let (second, ()) = tokio::join!(second, open);
        second.unwrap();
        world.empties().await;
        engine.shutdown().await;
    });
}

#[test]
fn the_last_waiter_leaving_stops_the_fetch_and_nobody_joins_what_is_abandoned() {
    let world = World::default();
    let engine = world.engine(limits());
    runtime().block_on(async {
        world.close(Step::Open);
        let mut fetching = world.fetching();
        let mut pull = Box::pin(join_all((0..10).map(|_| engine.pull(request("app:3")))));
        tokio::select! {
            _ = &mut pull => unreachable!("the gate is closed"),
            () = world.reached(Step::Open, 3) => {}
        }
        drop(pull);
        fetching.wait_for(|count| *count == 0).await.unwrap();
        world.empties().await;
        world.open_all();
        engine.pull(request("app:3")).await.unwrap();
        assert_eq!(world.count(Step::Open), 6);
        engine.shutdown().await;
    });
}

#[test]
fn a_failed_flight_fails_its_waiters_and_nobody_after_them() {
    let world = World::default();
    let engine = world.engine(limits());
    runtime().block_on(async {
        world.once(Step::Unpack, Act::Fail);
        let error = engine.pull(request("app:1")).await.unwrap_err();
        assert!(matches!(&*error, ProvisionError::Pull { .. }), "{error:?}");
        engine.pull(request("app:1")).await.unwrap();
        world.empties().await;
        engine.shutdown().await;
    });
}

#[test]
fn a_follower_whose_leader_had_a_bad_source_tries_once_under_its_own() {
    let world = World::default();
    let engine = world.engine(limits());
    runtime().block_on(async {
        let bad = image("bad.io/app:1", "app", 1).1.layers.remove(0).source;
        world.refuse(bad);
        world.close(Step::Open);
        let lead = engine.pull(request("bad.io/app:1"));
        let follow = async {
            world.reached(Step::Open, 1).await;
            let followers = join_all((0..10).map(|_| engine.pull(request("good.io/app:1"))));
            let open = async {
                while world.count(Step::Resolve) < 2 {
                    tokio::task::yield_now().await;
                }
                world.open_all();
            };
            tokio::join!(followers, open).0
        };
        let (lead, followers) = tokio::join!(lead, follow);
        assert!(lead.is_err());
        assert!(followers.iter().all(Result::is_ok), "{followers:?}");
        assert_eq!(world.count(Step::Open), 2, "ten followers share one second flight");
        engine.shutdown().await;
    });
}

/// Launches, and destroys as soon as `step` is reached; then nothing is left and the launch was told so.
#[test]
fn a_destroy_at_every_moment_of_a_launch_leaves_nothing() {
    for step in Step::ALL {
        if matches!(step, Step::KillAll | Step::Cleanup | Step::Unmount | Step::Remove) {
            continue;
        }
        let world = World::default();
        let engine = world.engine(limits());
        runtime().block_on(async {
            world.close(step);
            let launch = engine.launch(spec("web", "app:3"));
            let destroy = async {
                world.reached(step, 1).await;
                let destroy = engine.destroy(id("web"));
                let open = async {
                    // The destroy is in the table before the step goes on: it was sent first.
                    let _ = engine.list().await;
                    world.open_all();
                };
                tokio::join!(destroy, open).0
            };
            let (launched, destroyed) = tokio::join!(launch, destroy);
            let error = launched.expect_err("it was destroyed meanwhile");
            let told = chain(&*error);
            assert!(told.contains("destroyed"), "{step:?}: {told}");
            destroyed.unwrap_or_else(|error| panic!("{step:?}: {}", chain(&*error)));
            world.empties().await;
            engine.shutdown().await;
        });
    }
}

/// Launches, and leaves as soon as `step` is reached.
#[test]
fn a_launch_whose_asker_leaves_is_taken_down_at_every_moment() {
    for step in Step::ALL {
        if matches!(step, Step::KillAll | Step::Cleanup | Step::Unmount | Step::Remove) {
            continue;
        }
        let world = World::default();
        let engine = world.engine(limits());
        runtime().block_on(async {
            world.close(step);
            let mut launch = Box::pin(engine.launch(spec("web", "app:3")));
            tokio::select! {
                _ = &mut launch => panic!("{step:?} is closed"),
                () = world.reached(step, 1) => {}
            }
            drop(launch);
            let _ = engine.list().await;
            world.open_all();
            // Gone is when the name is free again.
            loop {
                match engine.launch(spec("web", "app:3")).await {
                    Ok(_) => break,
                    Err(error) => {
                        assert!(matches!(&*error, ContainerError::Exists { .. }), "{step:?}: {error:?}")
                    }
                }
                tokio::task::yield_now().await;
            }
            engine.destroy(id("web")).await.unwrap();
            world.empties().await;
            engine.shutdown().await;
        });
    }
}

#[test]
fn a_failure_or_panic_of_any_port_is_an_error_of_that_launch_alone() {
    for step in Step::ALL {
        for act in [Act::Fail, Act::Panic] {
            if matches!(step, Step::KillAll | Step::Cleanup | Step::Unmount | Step::Remove) {
                continue;
            }
            let world = World::default();
            let engine = world.engine(limits());
            runtime().block_on(async {
                world.once(step, act.clone());
                let error = engine.launch(spec("web", "app:3")).await.expect_err("a port failed");
                if matches!(act, Act::Panic) {
                    let told = chain(&*error);
                    assert!(told.contains("a fake panics at"), "{step:?}: {told}");
                }
                world.empties().await;
                let running = engine.launch(spec("web", "app:3")).await;
                running.unwrap_or_else(|error| panic!("{step:?} {act:?}: {}", chain(&*error)));
                engine.destroy(id("web")).await.unwrap();
                world.empties().await;
                engine.shutdown().await;
            });
        }
    }
}

#[test]
fn a_teardown_that_failed_is_told_whole_and_can_be_asked_for_again() {
    for step in [Step::KillAll, Step::Cleanup, Step::Unmount, Step::Remove] {
        for act in [Act::Fail, Act::Panic] {
            let world = World::default();
            let engine = world.engine(limits());
            runtime().block_on(async {
                engine.launch(spec("web", "app:3")).await.unwrap();
                world.once(step, act.clone());
                let error = engine.destroy(id("web")).await.expect_err("a port failed");
                assert!(matches!(&*error, ContainerError::Teardown { .. }), "{step:?}: {error:?}");
                engine
                    .destroy(id("web"))
                    .await
                    .unwrap_or_else(|error| panic!("{step:?}: {}", chain(&*error)));
                world.empties().await;
                engine.shutdown().await;
            });
        }
    }
}

#[test]
fn isolators_are_cleaned_up_in_reverse_before_the_rootfs_goes() {
    let world = World::default();
    let engine = world.engine(limits());
    runtime().block_on(async {
        engine.launch(spec("web", "app:1")).await.unwrap();
        engine.destroy(id("web")).await.unwrap();
        let expected = ["mount web 0", "cleanup web second", "cleanup web first", "unmount web 0"];
        assert_eq!(world.history(), expected);
        engine.shutdown().await;
    });
}

#[test]
fn all_who_destroy_share_one_teardown() {
    let world = World::default();
    let engine = world.engine(limits());
    runtime().block_on(async {
        engine.launch(spec("web", "app:1")).await.unwrap();
        world.close(Step::KillAll);
        let destroys = join_all((0..50).map(|_| engine.destroy(id("web"))));
        let open = async {
            world.reached(Step::KillAll, 1).await;
            // Sent after the fifty, answered after they were taken in.
            let _ = engine.list().await;
            world.open_all();
        };
        let (all, ()) = tokio::join!(destroys, open);
        assert!(all.iter().all(|one| matches!(one, Ok(Some(ExitStatus::Signaled(9))))), "{all:?}");
        assert_eq!(world.count(Step::KillAll), 1);
        assert_eq!(world.count(Step::Unmount), 1);
        let error = engine.destroy(id("web")).await.unwrap_err();
        assert!(matches!(&*error, ContainerError::Unknown { .. }));
        engine.shutdown().await;
    });
}

#[test]
fn work_on_one_rootfs_is_in_turn_and_different_ones_side_by_side() {
    let world = World::default();
    let engine = world.engine(EngineLimits { mounts_max: 8, ..limits() });
    runtime().block_on(async {
        world.close(Step::Mount);
        let launches = join_all((0..8).map(|n| engine.launch(spec(&format!("c{n}"), "app:1"))));
        let destroys = async {
            // All eight are in their mount at once.
            world.reached(Step::Mount, 8).await;
            let destroys = join_all((0..8).map(|n| engine.destroy(id(&format!("c{n}")))));
            let open = async {
                let _ = engine.list().await;
                world.open_all();
            };
            tokio::join!(destroys, open).0
        };
        let (_, destroyed) = tokio::join!(launches, destroys);
        assert!(destroyed.iter().all(Result::is_ok), "{destroyed:?}");
        // Overlapping work on one rootfs would be left.
        world.empties().await;
        engine.shutdown().await;
    });
}

#[test]
fn a_launch_past_the_limit_is_refused_as_busy_and_admitted_later() {
    let world = World::default();
    let engine = world.engine(EngineLimits { launches_max: 2, ..limits() });
    runtime().block_on(async {
        world.close(Step::Mount);
        let two = join_all([engine.launch(spec("a", "app:1")), engine.launch(spec("b", "app:1"))]);
        let third = async {
            world.reached(Step::Mount, 2).await;
            let refused = engine.launch(spec("c", "app:1")).await;
            world.open_all();
            refused
        };
        let (two, third) = tokio::join!(two, third);
        assert!(two.iter().all(Result::is_ok));
        assert!(matches!(&*third.unwrap_err(), ContainerError::Busy { limit: 2 }));
        engine.launch(spec("c", "app:1")).await.unwrap();
        engine.shutdown().await;
        world.empties().await;
    });
}

#[test]
fn a_name_in_use_is_refused_and_its_owner_unharmed() {
    let world = World::default();
    let engine = world.engine(limits());
    runtime().block_on(async {
        let running = engine.launch(spec("web", "app:1")).await.unwrap();
        let error = engine.launch(spec("web", "app:1")).await.unwrap_err();
        assert!(matches!(&*error, ContainerError::Exists { .. }), "{error:?}");
        running.process.signal(15).unwrap();
        assert_eq!(engine.wait(id("web")).await.unwrap(), Some(ExitStatus::Signaled(15)));
        engine.shutdown().await;
    });
}

#[test]
fn a_name_that_another_container_has_on_disk_is_refused_and_that_one_unharmed() {
    let world = World::default();
    let (record, rootfses) = planted("web", PhaseName::Provisioned, "this boot", false);
    world.plant(record, rootfses, false);
    let engine = world.engine(limits());
    runtime().block_on(async {
        for _ in 0..2 {
            let error = engine.launch(spec("web", "app:1")).await.unwrap_err();
            assert!(matches!(&*error, ContainerError::Exists { .. }), "{error:?}");
        }
        assert_eq!((world.count(Step::Unmount), world.count(Step::Remove)), (0, 0));
        assert_eq!(engine.list().await.unwrap().len(), 1);
        engine.shutdown().await;
    });
}

#[test]
fn image_volumes_are_root_filesystems_of_the_same_container() {
    let world = World::default();
    let engine = world.engine(limits());
    runtime().block_on(async {
        let volume = |image: &str| VolumeSpec {
            container_path: "/data".into(),
            mount_point: None,
            read_only: true,
            source: VolumeSource::Image(request(image)),
        };
        let with_volumes =
            ContainerSpec { volumes: vec![volume("data:2"), volume("more:2")], ..spec("web", "app:3") };
        engine.launch(with_volumes).await.unwrap();
        let found = engine.list().await.unwrap().remove(0);
        let record = found.rootfses.unwrap();
        assert_eq!((record.rootfses.len(), record.layers.len(), record.images.len()), (3, 7, 3));
        // What any of its images needs survives a prune; what nobody needs does not.
        engine.pull(request("idle:5")).await.unwrap();
        let pruned = engine.prune(Keep::default()).await.unwrap();
        assert_eq!(pruned.layers.len(), 5);
        engine.destroy(id("web")).await.unwrap();
        world.empties().await;

        // One volume's failure fails the launch and takes the others down.
        world.once(Step::Resolve, Act::Fail);
        let error = engine.launch(ContainerSpec { volumes: vec![volume("x:1")], ..spec("web", "y:1") }).await;
        assert!(error.is_err());
        world.empties().await;
        engine.shutdown().await;
    });
}

#[test]
fn a_warm_image_is_provisioned_without_asking_its_source() {
    let world = World::default();
    let engine = world.engine(limits());
    runtime().block_on(async {
        engine.provision(id("a"), request("app:4")).await.unwrap();
        let again = engine.provision(id("b"), request("docker.io/library/app:4")).await.unwrap();
        assert_eq!(world.kept_layers(), 8, "what stays when this process ends stays shown");
        assert_eq!((again.image.layers_reused, again.image.layers_fetched), (4, 0));
        assert_eq!(world.count(Step::Resolve), 1);
        let fresh = ImageRequest::fresh(request("app:4").name);
        engine.pull(fresh).await.unwrap();
        assert_eq!((world.count(Step::Resolve), world.count(Step::Open)), (2, 4));
        engine.shutdown().await;
    });
}

#[test]
fn a_source_that_must_not_be_asked_is_not() {
    let world = World::default();
    let engine = world.engine(limits());
    runtime().block_on(async {
        let never = ImageRequest { policy: Some(PullPolicy::Never), ..request("app:4") };
        let missing = chain(&*engine.pull(never.clone()).await.unwrap_err());
        assert!(missing.contains("image docker:app:4 is not whole in the store"), "{missing}");
        assert_eq!(world.count(Step::Resolve), 0);
        let pulled = engine.pull(request("app:4")).await.unwrap();
        assert_eq!(engine.pull(never.clone()).await.unwrap().layers, pulled.layers);
        world.lose(&pulled.layers[2].diff_id);
        assert!(engine.pull(never).await.is_err());
        assert_eq!((world.count(Step::Resolve), world.count(Step::Open)), (1, 4));
        engine.shutdown().await;
    });
}

#[test]
fn a_stored_image_is_given_to_those_alone_whom_its_source_would_give_it() {
    let world = World::default();
    let engine = world.engine(EngineLimits { authorize_stored: true, ..limits() });
    runtime().block_on(async {
        engine.provision(id("a"), request("app:4")).await.unwrap();
        assert_eq!(world.count(Step::Authorize), 0, "its source has just given it");
        engine.provision(id("b"), request("app:4")).await.unwrap();
        assert_eq!(world.count(Step::Authorize), 1);
        world.once(Step::Authorize, Act::Fail);
        let refused = chain(&*engine.provision(id("c"), request("app:4")).await.unwrap_err());
        assert!(refused.contains("is in the store, but its source does not give it"), "{refused}");
        assert_eq!((world.count(Step::Resolve), world.count(Step::Open)), (1, 4));
        engine.provision(id("c"), request("app:4")).await.unwrap();
        // Who asks its source anew is asked about each layer in the store.
        let asked = world.count(Step::Authorize);
        let pulled = engine.pull(ImageRequest::fresh(request("app:4").name)).await.unwrap();
        assert_eq!((pulled.layers_reused, pulled.layers_fetched), (4, 0));
        assert_eq!((world.count(Step::Authorize), world.count(Step::Open)), (asked + 4, 4));
        world.always(Step::Authorize, true);
        assert!(engine.pull(ImageRequest::fresh(request("app:4").name)).await.is_err());
        assert_eq!(world.count(Step::Open), 4);
        engine.shutdown().await;
    });
}

#[test]
fn a_layer_that_is_gone_from_a_recorded_image_is_fetched_again_and_no_other() {
    let world = World::default();
    let engine = world.engine(limits());
    runtime().block_on(async {
        let first = engine.provision(id("a"), request("app:4")).await.unwrap();
        engine.destroy(id("a")).await.unwrap();
        world.lose(&first.image.layers[2].diff_id);
        let again = engine.provision(id("b"), request("app:4")).await.unwrap();
        assert_eq!((again.image.layers_reused, again.image.layers_fetched), (3, 1));
        assert_eq!(again.image.layers, first.image.layers);
        assert_eq!(world.count(Step::Open), 5);
        engine.shutdown().await;
    });
}

fn planted(name: &str, phase: PhaseName, boot: &str, owner: bool) -> (ContainerRecord, RootfsRecord) {
    let process = ProcessIdentity { pid: 7, start_ticks: 7, boot_id: "this boot".to_owned() };
    let record = ContainerRecord {
        id: id(name),
        phase,
        created_ms: 0,
        owner: owner.then_some(process),
        image: None,
        rootfs: None,
        init: None,
        argv: Vec::new(),
        image_isolators: Vec::new(),
    };
    let rootfses = RootfsRecord {
        rootfses: vec![(RootfsId(0), BackendName::Overlay)],
        boot_id: boot.to_owned(),
        ..RootfsRecord::default()
    };
    (record, rootfses)
}

#[test]
fn recovery_takes_down_what_dead_processes_left_and_nothing_else() {
    let world = World::default();
    for (name, phase, boot, owner, alive) in [
        ("died", PhaseName::Running, "this boot", true, false),
        ("stays", PhaseName::Provisioned, "this boot", false, false),
        ("rebooted", PhaseName::Provisioned, "another boot", false, false),
        ("theirs", PhaseName::Running, "this boot", true, true),
    ] {
        let (record, rootfses) = planted(name, phase, boot, owner);
        world.plant(record, rootfses, alive);
    }
    let engine = world.engine(limits());
    runtime().block_on(async {
        let taken: HashSet<_> = engine.recover().await.unwrap().into_iter().collect();
        assert_eq!(world.hidden_but().len(), 1, "once, after all were taken down");
        assert_eq!(taken, HashSet::from([id("died"), id("rebooted")]));
        let left: Vec<_> = engine.list().await.unwrap().into_iter().map(|found| found.id).collect();
        assert_eq!(left, [id("stays"), id("theirs")]);
        // What stays is destroyed when asked for.
        engine.destroy(id("stays")).await.unwrap();
        engine.shutdown().await;
    });
}

#[test]
fn a_container_of_another_process_is_destroyed_by_asking_it() {
    let world = World::default();
    let (record, rootfses) = planted("theirs", PhaseName::Running, "this boot", true);
    world.plant(record, rootfses, true);
    let engine = world.engine(limits());
    runtime().block_on(async {
        let other = async {
            while !world.was_requested(&id("theirs")) {
                tokio::task::yield_now().await;
            }
            world.vanish(&id("theirs"));
        };
        let (destroyed, ()) = tokio::join!(engine.destroy(id("theirs")), other);
        destroyed.unwrap();
        engine.shutdown().await;
    });
}

#[test]
fn another_process_can_ask_for_a_container_of_ours() {
    let world = World::default();
    let engine = world.engine(limits());
    runtime().block_on(async {
        let running = engine.launch(spec("web", "app:1")).await.unwrap();
        world.request(&id("web"));
        assert_eq!(running.process.wait().await, ExitStatus::Signaled(9));
        world.empties().await;
        engine.shutdown().await;
    });
}

#[test]
fn a_stopped_engine_says_that_it_is_gone() {
    let world = World::default();
    let engine = world.engine(limits());
    runtime().block_on(async {
        engine.shutdown().await;
        let error = engine.launch(spec("web", "app:1")).await.unwrap_err();
        assert!(matches!(&*error, ContainerError::Gone(_)), "{error:?}");
    });
}

#[test]
fn errors_across_actors_keep_their_type() {
    let world = World::default();
    let engine = world.engine(limits());
    runtime().block_on(async {
        let error = engine.kill(id("nobody"), 9).await.unwrap_err();
        assert!(matches!(&*error, ContainerError::Unknown { .. }));
        world.once(Step::Release, Act::Panic);
        let error = engine.launch(spec("web", "app:1")).await.unwrap_err();
        assert!(
            matches!(
                &*error,
                ContainerError::Lost(JobLost::Panicked { pool: "launch", .. })
                    | ContainerError::Launch(LaunchError::Lost(_))
            ),
            "{error:?}"
        );
        let _: Arc<ContainerError> = error;
        world.empties().await;
        engine.shutdown().await;
    });
}

#[test]
fn an_image_that_does_not_fit_is_refused_before_its_first_layer_is_asked_for() {
    let world = World::default();
    let engine = world.engine(limits());
    runtime().block_on(async {
        world.layers_fit(5);
        let error = engine.pull(request("app:6")).await.unwrap_err();
        let text = chain(&*error);
        assert!(text.contains("app:6") && text.contains("6 layers are needed; of 5"), "{text}");
        assert_eq!((world.count(Step::Claim), world.count(Step::Open)), (0, 0));
        engine.pull(request("app:5")).await.unwrap();
        // What is there counts for nothing, though there is no place left.
        engine.pull(request("app:4")).await.unwrap();
        assert!(engine.pull(request("other:1")).await.is_err());
        world.empties().await;
        engine.shutdown().await;
    });
}

#[test]
fn two_images_do_not_count_on_the_same_room_and_a_layer_of_both_counts_once() {
    let world = World::default();
    let engine = world.engine(limits());
    runtime().block_on(async {
        world.layers_fit(5);
        world.close(Step::Open);
        let mut first = Box::pin(engine.pull(request("app:3")));
        tokio::select! {
            _ = &mut first => unreachable!("the gate is closed"),
            () = world.reached(Step::Open, 3) => {}
        }
        let error = engine.pull(request("other:3")).await.unwrap_err();
        let text = chain(&*error);
        assert!(text.contains("3 layers are needed; of 5 that are free, 3 are reserved"), "{text}");
        // Three of its five layers are on their way.
        let mut second = Box::pin(engine.pull(request("app:5")));
        tokio::select! {
            _ = &mut second => unreachable!("the gate is closed"),
            () = world.reached(Step::Open, 5) => {}
        }
        // A pull that is given up gives its room back.
        drop(first);
        drop(second);
        world.empties().await;
        world.open_all();
        engine.pull(request("other:5")).await.unwrap();
        world.empties().await;
        engine.shutdown().await;
    });
}
