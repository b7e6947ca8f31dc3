//! The provider with a source, a check and a store that are made up: what is fetched, how often, and what becomes of it.

use std::sync::Arc;
use std::sync::atomic::Ordering;

use futures_util::FutureExt;
use futures_util::future::BoxFuture;
use keelblock_actors::error::{ResolveError, chain};
use keelblock_actors::image::appc::{AppcName, AppcReference};
use keelblock_actors::image::name::{ImageName, ImageRequest, PullPolicy};
use keelblock_actors::image::plan::{ImagePlan, LayerKey, LayerSource, LayerSpec};
use keelblock_actors::ports::Provider;
use serde_json::json;

use self::aci::{Aci, Pack};
use self::world::{World, world};
use super::AppcProvider;
use super::ports::{AciFetchError, AciSource, FetchedAci, WantedAci};
use crate::limits::Limits;

#[path = "../../../../tests/support/aci.rs"]
mod aci;
mod world;

/// Image IDs of the layers as names of these, base first.
fn stack(plan: &ImagePlan, of: &[&Aci]) -> Vec<String> {
    let name = |layer: &LayerSpec| {
        let id = layer.aci.as_ref().unwrap().image_id.to_string();
        let aci = of.iter().find(|aci| aci.id() == id).unwrap();
        aci.manifest["name"].as_str().unwrap().to_owned()
    };
    plan.layers.iter().map(name).collect()
}

#[tokio::test]
async fn an_image_without_dependencies_is_one_layer_and_its_manifest_the_one_returned() {
    let a = Aci::new("a:1").app(&["/x"]).packed(Pack::Gzip);
    let world = Arc::new(world(&[&a]));
    let plan = world.plan("appc:a:1").await;
    assert_eq!(plan.identity.name.to_string(), "appc:a:1,arch=amd64,os=linux");
    assert_eq!(plan.identity.manifest.to_string(), a.id().replace('-', ":"));
    assert_eq!(plan.identity.config, plan.identity.manifest);
    assert_eq!(plan.platform.as_deref(), Some("linux/amd64"));
    let [layer] = &plan.layers[..] else { panic!("{plan:?}") };
    assert_eq!(layer.key, LayerKey::Aci(layer.aci.as_ref().unwrap().diff_id()));
    assert_eq!(layer.blob.size, Some(a.bytes().len() as u64));
    assert!(
        matches!(&layer.source, LayerSource::Aci { from, path } if from == "https://a" && path.is_file())
    );
    assert_eq!(plan.runtime.appc.unwrap().app.unwrap().exec, ["/x"]);
    assert_eq!(world.fetches(), ["a:1,arch=amd64,os=linux"]);
    assert_eq!(*world.checks.lock().unwrap(), ["a"]);
}

#[tokio::test]
async fn files_of_later_dependencies_override_those_of_earlier_ones() {
    // The examples of ace.md, "Filesystem Setup".
    let (b, c, d) = (Aci::new("b"), Aci::new("c").needs("d").app(&["/c"]), Aci::new("d"));
    let a = Aci::new("a").needs("b").needs("c").app(&["/a"]);
    let all = [&a, &b, &c, &d];
    let first = Arc::new(world(&all));
    let plan = first.plan("appc:a").await;
    assert_eq!(stack(&plan, &all), ["b", "d", "c", "a"]);
    // Never that of a dependency.
    assert_eq!(plan.runtime.appc.unwrap().app.unwrap().exec, ["/a"]);
    assert_eq!(first.fetches().len(), 4);
    assert_eq!(first.checks.lock().unwrap().len(), 4);

    let b = Aci::new("b").needs("d").only(&["/b", "/d"]);
    let c = Aci::new("c").needs("d").only(&["/c", "/d"]);
    let all = [&a, &b, &c, &d];
    let second = Arc::new(world(&all));
    let plan = second.plan("appc:a").await;
    assert_eq!(stack(&plan, &all), ["d", "b", "d", "c", "a"]);
    assert_ne!(plan.layers[0].key, plan.layers[2].key);
    assert_eq!(second.fetches().len(), 4, "the shared one is fetched once");
}

#[tokio::test]
async fn of_the_same_view_twice_the_topmost_stays() {
    let (b, c, d) = (Aci::new("b").needs("d"), Aci::new("c").needs("d"), Aci::new("d"));
    let a = Aci::new("a").needs("b").needs("c");
    let all = [&a, &b, &c, &d];
    let plan = Arc::new(world(&all)).plan("appc:a").await;
    assert_eq!(stack(&plan, &all), ["b", "d", "c", "a"]);
    let twice = Aci::new("a").needs("d").needs("b").needs("d");
    let all = [&twice, &b, &d];
    assert_eq!(stack(&Arc::new(world(&all)).plan("appc:a").await, &all), ["b", "d", "a"]);
}

#[tokio::test]
async fn whitelists_hold_for_all_that_is_below() {
    let c = Aci::new("c").only(&["/x", "/y"]);
    let b = Aci::new("b").needs("c");
    let a = Aci::new("a").needs("b").only(&["/x", "/z"]);
    let plan = Arc::new(world(&[&a, &b, &c])).plan("appc:a").await;
    let through =
        |at: usize, path: &str| plan.layers[at].aci.as_ref().unwrap().lets_through(path.as_bytes(), false);
    let lets = |at: usize| ["x", "y", "z"].map(|path| through(at, path));
    assert_eq!(lets(0), [true, false, false]);
    assert_eq!(lets(1), [true, false, true]);
    assert_eq!(lets(2), [true, false, true]);
}

#[tokio::test]
async fn what_is_known_to_be_needed_is_fetched_at_once() {
    let leaves: Vec<Aci> = (0..5).map(|at| Aci::new(&format!("leaf{at}"))).collect();
    let root =
        leaves.iter().fold(Aci::new("a"), |root, leaf| root.needs(leaf.manifest["name"].as_str().unwrap()));
    let leaf = |world: World, leaf: &Aci| world.with(leaf.manifest["name"].as_str().unwrap(), leaf);
    let mut world = leaves.iter().fold(World::new().with("a", &root), leaf);
    // Nobody gets through until all five are there; the file that names them waits for nobody.
    world.together = Some(Arc::new(tokio::sync::Barrier::new(5)));
    let world = Arc::new(world);
    let plan = world.plan(&format!("aci:{}", world.archives["a"].display())).await;
    assert_eq!(plan.layers.len(), 6);
}

#[tokio::test]
async fn a_dependency_is_for_the_platform_of_its_dependent() {
    let (a, b) = (Aci::new("a,arch=i386").needs("b"), Aci::new("b,arch=i386"));
    let here = Arc::new(world(&[&a, &b]));
    here.plan("appc:a,arch=i386").await;
    assert_eq!(here.fetches(), ["a:latest,arch=i386,os=linux", "b:latest,arch=i386,os=linux"]);
    // An image for all machines hands on what it was asked for.
    let (a, b) = (Aci::new("a,os=,arch=").needs("b"), Aci::new("b"));
    let here = Arc::new(world(&[&a, &b]));
    here.plan("appc:a").await;
    assert_eq!(here.fetches()[1], "b:latest,arch=amd64,os=linux");
}

#[tokio::test]
async fn circles_are_refused_by_name() {
    let (a, b, c) = (Aci::new("a").needs("b"), Aci::new("b").needs("c"), Aci::new("c").needs("b"));
    let error = Arc::new(world(&[&a, &b, &c])).error("appc:a").await;
    assert!(
        error.contains("circle") && error.contains("b,arch=amd64,os=linux -> c,arch=amd64,os=linux -> b,"),
        "{error}"
    );
    let own = Aci::new("a:1").needs("a:1");
    let error = Arc::new(world(&[&own])).error("appc:a").await;
    assert!(error.contains("a:1,arch=amd64,os=linux -> a:1,"), "{error}");
}

#[tokio::test]
async fn depth_count_and_layers_are_limited() {
    let link = |at: usize| match at {
        4 => Aci::new("n4"),
        at => Aci::new(&format!("n{at}")).needs(&format!("n{}", at + 1)),
    };
    let chain_of: Vec<Aci> = (0..5).map(link).collect();
    let world = Arc::new(world(&chain_of.iter().collect::<Vec<_>>()));
    let with = async |change: fn(&mut Limits)| {
        let request = ImageRequest::cached("appc:n0".parse().unwrap());
        world
            .provider(change)
            .resolve(request)
            .await
            .map(|plan| plan.layers.len())
            .map_err(|error| chain(&error))
    };
    assert_eq!(with(|limits| limits.appc_dependency_depth_max = 4).await, Ok(5));
    let error = with(|limits| limits.appc_dependency_depth_max = 3).await.unwrap_err();
    assert!(
        error.contains("--appc_dependency_depth_max") && error.contains("n0") && error.contains("-> n4"),
        "{error}"
    );
    assert_eq!(with(|limits| limits.appc_dependencies_max = 4).await, Ok(5));
    let error = with(|limits| limits.appc_dependencies_max = 3).await.unwrap_err();
    assert!(error.contains("more than 3 dependencies (--appc_dependencies_max)"), "{error}");
    assert_eq!(with(|limits| limits.layers_max = 5).await, Ok(5));
    let error = with(|limits| limits.layers_max = 4).await.unwrap_err();
    assert!(error.contains("more than 4 layers (--layers_max)"), "{error}");
}

#[tokio::test]
async fn an_endless_chain_of_new_names_ends_at_the_limit() {
    struct Endless(tempfile::TempDir);
    impl AciSource for Endless {
        fn fetch(&self, wanted: WantedAci) -> BoxFuture<'static, Result<FetchedAci, AciFetchError>> {
            let WantedAci::Named { name, .. } = wanted else { panic!("a file") };
            let next: usize = name.name.as_str().trim_start_matches('n').parse::<usize>().unwrap() + 1;
            let path = self.0.path().join(name.name.as_str());
            std::fs::write(&path, Aci::new(name.name.as_str()).needs(&format!("n{next}")).bytes()).unwrap();
            async move { Ok(FetchedAci { path, from: "x".to_owned(), bytes_fetched: 0, signature: None }) }
                .boxed()
        }
    }
    let world = Arc::new(World::new());
    let source = Arc::new(Endless(tempfile::tempdir().unwrap()));
    let handle = tokio::runtime::Handle::current();
    let platform = "linux/amd64".parse().unwrap();
    let provider = AppcProvider::new(source, world.clone(), world, handle, Limits::default(), platform);
    let error = provider.resolve(ImageRequest::cached("appc:n0".parse().unwrap())).await.unwrap_err();
    assert!(chain(&error).contains("more than 128 dependencies"), "{}", chain(&error));
}

#[tokio::test]
async fn a_dependency_must_be_the_one_that_is_meant() {
    let b = Aci::new("b:2,channel=beta");
    let size = b.bytes().len();
    for (dependency, fields, words) in [
        ("b", json!({"imageID": b.id(), "size": size}), None),
        ("b:2,channel=beta", json!({}), None),
        ("b", json!({"imageID": format!("sha512-{}", "0".repeat(128))}), Some("has image ID sha512-")),
        ("b", json!({"size": size + 1}), Some(" bytes, but its dependent says ")),
        ("b:3", json!({}), Some("has the label version=\"2\", but version=\"3\" was asked for")),
        ("b,channel=alpha", json!({}), Some("has the label channel=\"beta\"")),
        ("b,region=eu", json!({}), Some("has no label region")),
        ("b,os=linux,arch=i386", json!({}), Some("arch=\"i386\" was asked for")),
    ] {
        let a = Aci::new("a:1").needs_with(dependency, fields);
        let world = Arc::new(world(&[&a, &b]));
        match words {
            None => assert_eq!(world.plan("appc:a").await.layers.len(), 2),
            Some(words) => {
                let error = world.error("appc:a").await;
                assert!(
                    error.contains(words) && error.contains("which a:1,arch=amd64,os=linux depends on"),
                    "{error}"
                );
                assert!(error.contains("https://b"), "{error}");
            }
        }
    }
    let a = Aci::new("a").needs("b");
    let error = Arc::new(World::new().with("a", &a).with("b", &Aci::new("c"))).error("appc:a").await;
    assert!(error.contains("is the image c, but b was asked for"), "{error}");
    let error = Arc::new(World::new().with("a", &a)).error("appc:a").await;
    assert!(
        error.contains("b, which a,arch=amd64,os=linux depends on") && error.contains("not in the shelf"),
        "{error}"
    );
}

#[tokio::test]
async fn what_comes_by_a_name_has_it() {
    let world = Arc::new(World::new().with("a", &Aci::new("b")).with("c", &Aci::new("c:1")));
    assert!(world.error("appc:a").await.contains("is the image b, but a was asked for"));
    assert!(world.error("appc:c:2").await.contains("version=\"2\" was asked for"));
    let gone = world.resolve("appc:gone", PullPolicy::Missing).await;
    assert!(matches!(gone, Err(ResolveError::NotFound { place, .. }) if place == "the shelf"));
}

#[tokio::test]
async fn nothing_of_an_archive_is_used_unless_its_signature_is_good() {
    let (a, b) = (Aci::new("a").needs("b"), Aci::new("b").needs("c"));
    let mut world = world(&[&a, &b]);
    world.untrusted = Some("b");
    let world = Arc::new(world);
    let error = world.error("appc:a").await;
    assert!(error.contains("must not be used as b: it is not signed"), "{error}");
    assert_eq!(world.fetches().len(), 2, "what it depends on is not asked for");
    // A file says itself whose it is.
    let file = world.archives["b"].display().to_string();
    assert!(world.error(&format!("aci:{file}")).await.contains("must not be used as b"));
}

#[tokio::test]
async fn files_are_for_this_platform() {
    let (here, other) = (Aci::new("a").needs("b"), Aci::new("a,os=freebsd"));
    let any = Aci::new("a,os=,arch=").needs("b");
    let world =
        Arc::new(World::new().with("1", &here).with("2", &other).with("3", &any).with("b", &Aci::new("b")));
    let file = |key: &str| format!("aci:{}", world.archives[key].display());
    let plan = world.plan(&file("1")).await;
    assert_eq!(plan.identity.name.to_string(), file("1"));
    assert_eq!(plan.layers.len(), 2);
    assert_eq!(world.plan(&file("3")).await.layers.len(), 2);
    let error = world.error(&file("2")).await;
    assert!(error.contains("is for freebsd/amd64, and not for linux/amd64; see --platform"), "{error}");
}

#[tokio::test]
async fn what_is_in_the_store_is_not_fetched_unless_it_must() {
    let (a, b) = (Aci::new("a").needs("b"), Aci::new("b").needs("c"));
    let (c, x) = (Aci::new("c"), Aci::new("x").needs("b").only(&["/x"]));
    let all = [&a, &b, &c, &x];
    let world = Arc::new(world(&all));
    world.keep(world.plan("appc:b").await);
    world.keep(world.plan("appc:c").await);
    world.fetches.lock().unwrap().clear();
    let plan = world.plan("appc:a").await;
    assert_eq!(
        (world.fetches(), stack(&plan, &all)),
        (vec!["a:latest,arch=amd64,os=linux".into()], vec!["c".into(), "b".into(), "a".into()])
    );
    // Other views are needed: then their archives are.
    world.fetches.lock().unwrap().clear();
    let plan = world.plan("appc:x").await;
    assert_eq!((world.fetches().len(), stack(&plan, &all)), (3, vec!["c".into(), "b".into(), "x".into()]));
    assert_eq!(plan.layers[0].aci.as_ref().unwrap().whitelists.len(), 1);
    // By policy.
    world.fetches.lock().unwrap().clear();
    world.resolve("appc:a", PullPolicy::Always).await.unwrap();
    assert_eq!(world.fetches().len(), 3);
    let file = world.archives["a"].display().to_string();
    world.fetches.lock().unwrap().clear();
    world.resolve(&format!("aci:{file}"), PullPolicy::Never).await.unwrap();
    assert_eq!(world.fetches(), [""; 0]);
    let file = world.archives["x"].display().to_string();
    let error = world.resolve(&format!("aci:{file}"), PullPolicy::Never).await.unwrap_err();
    assert!(chain(&error).contains("--image_pull_policy=never"), "{}", chain(&error));
}

#[tokio::test]
async fn what_was_brought_unsigned_will_not_do_once_all_must_be_signed() {
    let (a, b) = (Aci::new("a").needs("b"), Aci::new("b"));
    let world = Arc::new(world(&[&a, &b]));
    let (unsigned, of_b) = (world.plan("appc:a").await, world.plan("appc:b").await);
    assert!(!unsigned.signed && world.provider(|_| ()).fits(&unsigned));
    world.keep(unsigned.clone());
    world.keep(of_b);
    world.required.store(true, Ordering::Relaxed);
    assert!(!world.provider(|_| ()).fits(&unsigned));
    let by_id = world.error(&format!("appc:{}", a.id())).await;
    assert!(by_id.contains("--appc_verify=required"), "{by_id}");
    // All of it is brought and verified, also the dependency that there is a record of.
    world.signed.store(true, Ordering::Relaxed);
    world.fetches.lock().unwrap().clear();
    let signed = world.plan("appc:a").await;
    assert_eq!(world.fetches().len(), 2);
    assert!(signed.signed && world.provider(|_| ()).fits(&signed));
    assert_eq!(signed.layers, unsigned.layers);
}

#[tokio::test]
async fn what_is_rewritten_after_its_signature_was_verified_is_refused() {
    let a = Aci::new("a");
    let world = Arc::new(world(&[&a]));
    world.signed.store(true, Ordering::Relaxed);
    assert!(world.plan("appc:a").await.signed);
    *world.rewritten.lock().unwrap() = Some(world.archives["a"].clone());
    let error = world.error("appc:a").await;
    assert!(error.contains("changed while it was verified"), "{error}");
}

#[tokio::test]
async fn an_image_id_is_looked_up_in_the_store_alone() {
    let a = Aci::new("a:1");
    let world = Arc::new(world(&[&a]));
    let by_id = format!("appc:{}", a.id());
    let error = world.resolve(&by_id, PullPolicy::Always).await.unwrap_err();
    assert!(matches!(&error, ResolveError::NotFound { place, .. } if place == "the store"));
    assert!(chain(&error).contains("pull it by its name"), "{}", chain(&error));
    let plan = world.plan("appc:a:1").await;
    world.keep(plan.clone());
    let found = world.plan(&by_id).await;
    assert_eq!((found.identity, found.runtime), (plan.identity, plan.runtime));
    assert_eq!(world.fetches().len(), 1);
    // An image that is not whole is none.
    world.layers.lock().unwrap().clear();
    assert!(world.error(&by_id).await.contains("whole in the store"));
}

#[tokio::test]
async fn a_dependency_by_image_id_is_found_in_the_store_under_any_name() {
    let b = Aci::new("b:7");
    let a = Aci::new("a").needs_with("b", json!({"imageID": b.id()}));
    let world = Arc::new(world(&[&a, &b]));
    world.keep(world.plan("appc:b:7").await);
    world.fetches.lock().unwrap().clear();
    world.plan("appc:a").await;
    assert_eq!(world.fetches(), ["a:latest,arch=amd64,os=linux"]);
}

#[test]
fn an_image_fits_the_platform_that_it_was_asked_for() {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
    runtime.block_on(async {
        let world = Arc::new(world(&[&Aci::new("a")]));
        let provider = world.provider(|_| ());
        let mut plan = world.plan("appc:a").await;
        assert!(provider.fits(&plan));
        let other: AppcName = "a:latest,os=linux,arch=i386".parse().unwrap();
        plan.identity.name = ImageName::Appc(AppcReference::Named(other));
        assert!(!provider.fits(&plan));
    });
}

#[tokio::test]
async fn an_invalid_archive_or_manifest_says_where_it_came_from() {
    let bad = Aci::new("a").field("acVersion", json!("1.0.0"));
    let world = World::new().with("a", &bad).with("b", &Aci::new("b"));
    std::fs::write(&world.archives["b"], b"no archive").unwrap();
    let world = Arc::new(world);
    let error = world.error("appc:a").await;
    assert!(
        error.contains("from https://a cannot be used: acVersion of the manifest is \"1.0.0\""),
        "{error}"
    );
    let error = world.error("appc:b").await;
    assert!(error.contains("from https://b cannot be used: it has no good tar"), "{error}");
}
