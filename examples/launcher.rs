//! A launcher in the manner of Mesos' containerizer: starts the agent object, launches two containers from one
//! image at once, waits for both and destroys them.
//!
//! ```sh
//! cargo run --example launcher -- fixtures/images/hello.tar
//! ```

use std::sync::Arc;

use keelblock::config::Config;
use keelblock::{Agent, CommandSpec, ContainerSpec, ImageRequest, NoObserver, StdioSpec};

fn main() -> Result<(), Box<dyn std::error::Error>> {
    // Without root: a user namespace, before there is a second thread.
    if keelblock::rootless::is_needed() {
        keelblock::rootless::enter()?;
    }
    let archive = std::env::args().nth(1).unwrap_or_else(|| "fixtures/images/hello.tar".to_owned());
    let image = format!("docker-archive:{}", std::path::absolute(archive)?.display());

    let work = tempdir()?;
    let config = Config { work_dir: work.clone(), ..Config::default() };
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
    let result = runtime.block_on(async {
        let agent =
            Agent::start(config, Arc::new(NoObserver), slog::Logger::root(slog::Discard, slog::o!())).await?;
        let launch = |id: &str| {
            let spec = ContainerSpec {
                id: id.parse().expect("the names are letters and digits"),
                image: Some(ImageRequest::cached(image.parse().expect("a path makes an image name"))),
                command: CommandSpec::default(),
                volumes: Vec::new(),
                read_only: false,
                tty: false,
                stdio: StdioSpec::Inherit,
                effective_capabilities: None,
                bounding_capabilities: None,
                resources: Default::default(),
            };
            let agent = &agent;
            async move {
                let running = agent.launch(spec).await?;
                let status = running.process.wait().await;
                agent.destroy(running.id.clone()).await?;
                println!("{} ended with {}", running.id, status.code());
                Ok::<_, Box<dyn std::error::Error>>(())
            }
        };
        // One image, two containers, at once: each layer is fetched and unpacked once.
        let (first, second) = tokio::join!(launch("first"), launch("second"));
        agent.shutdown().await;
        first.and(second)
    });
    std::fs::remove_dir_all(&work)?;
    result
}

fn tempdir() -> std::io::Result<std::path::PathBuf> {
    let dir = std::env::temp_dir().join(format!("keelblock-launcher-{}", std::process::id()));
    std::fs::create_dir_all(&dir)?;
    Ok(dir)
}
