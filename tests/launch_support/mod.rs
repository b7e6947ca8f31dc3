//! Containers for tests: a root filesystem of a static busybox, a launcher, isolators.

#![allow(dead_code, reason = "each test program uses a part")]

use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::Arc;

use keelblock::isolator::{DEFAULT_ISOLATION, Settings, compose};
use keelblock::launcher::LinuxLauncher;
use keelblock_actors::container::{CommandSpec, ExitStatus};
use keelblock_actors::error::{IsolatorError, LaunchError, chain};
use keelblock_actors::image::appc::{App, AppcManifest, EventHandler, EventName};
use keelblock_actors::image::plan::RuntimeConfig;
use keelblock_actors::launch::{LaunchContext, LaunchPlan, StdioSpec};
use keelblock_actors::ports::{Isolator, Launched, Launcher};
use tempfile::TempDir;

/// Where containers of a test live.
pub(crate) struct House {
    pub(crate) directory: TempDir,
    pub(crate) rootfs: PathBuf,
    pub(crate) launcher: LinuxLauncher,
    pub(crate) isolators: Vec<Arc<dyn Isolator>>,
}

/// Why a launch failed, of either kind.
#[derive(Debug)]
pub(crate) enum Failure {
    Isolator(IsolatorError),
    Launch(LaunchError),
}

impl Failure {
    pub(crate) fn text(&self) -> String {
        match self {
            Self::Isolator(error) => chain(error),
            Self::Launch(error) => chain(error),
        }
    }
}

pub(crate) fn skipped(why: &str) {
    eprintln!("skipped: {why}");
}

fn busybox() -> Option<PathBuf> {
    let found = ["/bin/busybox", "/usr/bin/busybox"].iter().map(PathBuf::from).find(|path| path.is_file())?;
    let told = Command::new("file").arg("-L").arg(&found).output();
    let dynamic = told.is_ok_and(|told| String::from_utf8_lossy(&told.stdout).contains("dynamically"));
    (!dynamic).then_some(found)
}

/// A busybox tree with users, without `/proc`, `/sys` and `/dev`.
pub(crate) fn fill(rootfs: &Path) -> Option<()> {
    let busybox = busybox()?;
    for name in ["bin", "etc", "tmp", "root"] {
        std::fs::create_dir_all(rootfs.join(name)).ok()?;
    }
    std::fs::copy(&busybox, rootfs.join("bin/busybox")).ok()?;
    let list = Command::new(&busybox).arg("--list").output().ok()?;
    for applet in String::from_utf8_lossy(&list.stdout).lines().filter(|name| *name != "busybox") {
        std::os::unix::fs::symlink("busybox", rootfs.join("bin").join(applet)).ok()?;
    }
    let passwd = "root:x:0:0:root:/root:/bin/sh\nweb:x:33:34:web:/srv:/bin/sh\n";
    std::fs::write(rootfs.join("etc/passwd"), passwd).ok()?;
    std::fs::write(rootfs.join("etc/group"), "root:x:0:\nadm:x:4:web\nweb:x:34:\n").ok()
}

/// A house as root, or `None` after saying why not.
pub(crate) fn house() -> Option<House> {
    house_with(&DEFAULT_ISOLATION, Settings::default())
}

pub(crate) fn house_with(isolation: &[&str], settings: Settings) -> Option<House> {
    if !rustix::process::geteuid().is_root() {
        skipped("needs root");
        return None;
    }
    bare_house(isolation, settings)
}

pub(crate) fn bare_house(isolation: &[&str], settings: Settings) -> Option<House> {
    let shm = Path::new("/dev/shm");
    let directory = if shm.is_dir() { tempfile::tempdir_in(shm) } else { tempfile::tempdir() };
    let directory = directory.expect("a directory");
    let rootfs = directory.path().join("rootfs");
    if fill(&rootfs).is_none() {
        skipped("needs a static busybox (Debian: busybox-static)");
        return None;
    }
    let log = slog::Logger::root(slog::Discard, slog::o!());
    let launcher = LinuxLauncher::new(&directory.path().join("containers"), &log);
    let isolators = compose(isolation, &settings).expect("isolators");
    Some(House { directory, rootfs, launcher, isolators })
}

/// A shell line.
pub(crate) fn line(line: &str) -> CommandSpec {
    CommandSpec { shell: true, value: Some(line.to_owned()), ..CommandSpec::default() }
}

/// A program with arguments.
pub(crate) fn program(words: &[&str]) -> CommandSpec {
    CommandSpec {
        value: words.first().map(|word| (*word).to_owned()),
        arguments: words.iter().map(|word| (*word).to_owned()).collect(),
        ..CommandSpec::default()
    }
}

impl House {
    pub(crate) fn context(&self, id: &str, command: CommandSpec) -> LaunchContext {
        let sandbox = self.directory.path().join("sandboxes").join(id);
        std::fs::create_dir_all(&sandbox).expect("a sandbox");
        LaunchContext {
            id: id.parse().expect("an ID"),
            rootfs: Some(self.rootfs.clone()),
            rootfs_read_only: false,
            runtime: Some(RuntimeConfig::default()),
            command,
            volumes: Vec::new(),
            sandbox,
            effective_capabilities: None,
            bounding_capabilities: None,
            resources: Default::default(),
            tty: false,
            stdio: StdioSpec::Sandbox,
            read_only: false,
        }
    }

    /// A container of an Appc image.
    pub(crate) fn appc(&self, id: &str, app: App) -> LaunchContext {
        let mut context = self.context(id, CommandSpec::default());
        context.runtime = Some(of_app(app));
        context
    }

    pub(crate) fn start(&self, context: &LaunchContext) -> Result<Arc<dyn Launched>, Failure> {
        let mut plan = LaunchPlan::default();
        for isolator in &self.isolators {
            isolator.prepare(context, &mut plan).map_err(Failure::Isolator)?;
        }
        self.launcher.start(&context.id, plan).map_err(Failure::Launch)
    }

    pub(crate) fn launch(&self, context: &LaunchContext) -> Result<Arc<dyn Launched>, Failure> {
        let launched = self.start(context)?;
        launched.release().map_err(Failure::Launch)?;
        Ok(launched)
    }

    /// Runs to the end: status and output of both streams.
    pub(crate) fn run(&self, context: &LaunchContext) -> (ExitStatus, String) {
        let launched = self.launch(context).unwrap_or_else(|failure| panic!("{}", failure.text()));
        let status = block_on(launched.wait());
        (status, output(context))
    }

    /// Output of a shell line in a container that ends well.
    pub(crate) fn output(&self, id: &str, text: &str) -> String {
        let context = self.context(id, line(text));
        let (status, output) = self.run(&context);
        assert_eq!(status, ExitStatus::Exited(0), "{text}: {output}");
        output
    }
}

/// What a container wrote.
pub(crate) fn output(context: &LaunchContext) -> String {
    let read = |name: &str| std::fs::read_to_string(context.sandbox.join(name)).unwrap_or_default();
    read("stdout") + &read("stderr")
}

/// Waits without a runtime: what the launcher gives needs none.
pub(crate) fn block_on<T>(future: impl Future<Output = T>) -> T {
    let runtime = tokio::runtime::Builder::new_current_thread().build().expect("a runtime");
    runtime.block_on(future)
}

/// What an Appc image of this app asks.
pub(crate) fn of_app(app: App) -> RuntimeConfig {
    let manifest = AppcManifest {
        ac_version: "0.8.11".to_owned(),
        name: "example.com/test".parse().expect("a name"),
        app: Some(app),
        dependencies: Vec::new(),
        path_whitelist: Vec::new(),
        annotations: Default::default(),
    };
    RuntimeConfig { appc: Some(Box::new(manifest)), ..RuntimeConfig::default() }
}

/// An app that runs a shell line as root.
pub(crate) fn app(text: &str) -> App {
    App { exec: shell(text), user: "0".to_owned(), group: "0".to_owned(), ..App::default() }
}

fn shell(text: &str) -> Vec<String> {
    ["/bin/sh", "-c", text].map(str::to_owned).to_vec()
}

/// The same with hooks that run shell lines.
pub(crate) fn hooked(text: &str, before: Option<&str>, after: Option<&str>) -> App {
    let handler = |name, text: Option<&str>| text.map(|text| EventHandler { name, exec: shell(text) });
    let handlers = [handler(EventName::PreStart, before), handler(EventName::PostStop, after)];
    App { event_handlers: handlers.into_iter().flatten().collect(), ..app(text) }
}
