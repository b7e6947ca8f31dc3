//! Credentials that come with an image: nobody gets an answer that was given to somebody else, and nothing of them stays.

use futures_util::future::join_all;
use keelblock_actors::fakes::{Step, World};
use keelblock_actors::image::access::Access;
use keelblock_actors::image::name::ImageRequest;
use keelblock_actors::system::EngineLimits;

fn request(access: Option<&str>) -> ImageRequest {
    ImageRequest::cached("app:2".parse().unwrap()).with_access(access.map(Access::new))
}

fn runtime() -> tokio::runtime::Runtime {
    tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap()
}

#[test]
fn callers_with_different_credentials_share_no_answer_of_a_registry() {
    let world = World::default();
    let engine = world.engine(EngineLimits::default());
    runtime().block_on(async {
        world.close(Step::Resolve);
        let who = [None, Some("a"), Some("b"), Some("a"), None];
        let pulls = join_all(who.map(|access| engine.pull(request(access))));
        let open = async {
            world.reached(Step::Resolve, 3).await;
            world.open_all();
        };
        let (pulled, ()) = tokio::join!(pulls, open);
        assert!(pulled.iter().all(Result::is_ok), "{pulled:?}");
        assert_eq!(world.count(Step::Resolve), 3, "one for each that asks");
        engine.shutdown().await;
    });
}

#[test]
fn a_follower_whose_leader_is_refused_tries_with_its_own_credentials() {
    let world = World::default();
    let engine = world.engine(EngineLimits::default());
    runtime().block_on(async {
        world.refuse_to(None);
        world.close(Step::Open);
        let lead = engine.pull(request(None));
        let follow = async {
            world.reached(Step::Open, 1).await;
            let followers = join_all([Some("a"), Some("b"), Some("a")].map(|who| engine.pull(request(who))));
            let open = async {
                while world.count(Step::Resolve) < 3 {
                    tokio::task::yield_now().await;
                }
                world.open_all();
            };
            tokio::join!(followers, open).0
        };
        let (lead, followers) = tokio::join!(lead, follow);
        assert!(lead.is_err());
        assert!(followers.iter().all(Result::is_ok), "{followers:?}");
        engine.shutdown().await;
    });
}

#[test]
fn what_the_store_remembers_has_no_credentials() {
    let world = World::default();
    let engine = world.engine(EngineLimits::default());
    runtime().block_on(async {
        engine.pull(request(Some("hush"))).await.unwrap();
        let images = engine.images().await.unwrap();
        assert_eq!(images.len(), 1);
        assert!(images[0].0.plan.layers.iter().all(|layer| layer.access.is_none()), "{images:?}");
        engine.shutdown().await;
    });
}
