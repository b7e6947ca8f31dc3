//! The agent: the one place that names adapters and actors together, and the object that embedders hold.
//!
//! [`Agent::start`] reads a [`Config`], builds every adapter (cheaply: nothing is connected, no certificate is
//! loaded), starts the engine, and takes down what dead processes left. No actix type appears in its methods;
//! they work from any tokio runtime.

use std::collections::BTreeMap;
use std::os::fd::OwnedFd;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use keelblock_actors::container::{ContainerId, ContainerSpec, ExitStatus, VolumeSource};
use keelblock_actors::error::{ContainerError, ProvisionError, RecordError, StoreError};
use keelblock_actors::image::appc::{AppcReference, ImageId};
use keelblock_actors::image::name::{ImageKind, ImageName, ImageRequest, PullPolicy};
use keelblock_actors::image::plan::ImageIdentity;
use keelblock_actors::messages::{Executed, Provisioned, PruneError, PulledImage, RunningContainer};
use keelblock_actors::ports::{
    ExecSpec, Found, ImageRecord, Keep, Launched, Provider, Pruned, Puller, Records,
};
use keelblock_actors::progress::Observer;
use keelblock_actors::system::{Engine, EngineLimits, EngineParts};
use slog::{Logger, o};

use crate::backend;
use crate::config::{Config, SCRUB_RATE};
use crate::gc::{Collector, Gc};
use crate::isolator;
use crate::launcher::LinuxLauncher;
use crate::provider::appc::trust::{Signatures, TrustStore};
use crate::provider::appc::{self, AppcProvider};
use crate::provider::archive::Archives;
use crate::provider::docker::{DockerProvider, DockerSource, DockerSourceError};
use crate::provider::manifest::Platform;
use crate::provider::oci::OciProvider;
use crate::puller::appc::{AppcPrefix, AppcPuller, AppcSource, AppcSourceSettings, PrefixError};
use crate::puller::local::LocalPuller;
use crate::puller::registry::{
    HostMetrics, InsecureRegistries, Login, LoginFor, ParseLoginError, Proxies, RegistryClient,
    RegistryPuller, RegistrySettings, Sources, Task, usual_places,
};
use crate::records::{DiskRecords, layout};
use crate::rootless::IdMaps;
use crate::scrub::Scrubber;
use crate::spool;
use crate::store::{Privileges, Settler, StoreSettings};
use crate::stores::Stores;

/// Threads that move bytes between sockets and pulls. 2: one sleeps while the other decrypts.
const IO_THREADS: usize = 2;

/// An image in the store and what it weighs.
#[derive(Clone, Debug)]
pub struct StoredImage {
    /// The image.
    pub record: ImageRecord,
    /// Bytes of file content of its layers together, as unpacked.
    pub bytes: u64,
}

/// Why an agent could not be started.
#[derive(Debug, thiserror::Error)]
pub enum AgentError {
    /// `/proc` cannot be read.
    #[error("cannot find out what this process may do")]
    Privileges(#[source] std::io::Error),
    /// See [`StoreError`].
    #[error(transparent)]
    Store(#[from] StoreError),
    /// See [`RecordError`].
    #[error(transparent)]
    Record(#[from] RecordError),
    /// The backend asked for cannot work here.
    #[error(transparent)]
    Backend(#[from] backend::BackendError),
    /// `--isolation` names something that is not there.
    #[error(transparent)]
    Isolation(#[from] isolator::IsolationError),
    /// `--docker_registry` names no place.
    #[error("--docker_registry")]
    DockerRegistry(#[from] DockerSourceError),
    /// `--docker_insecure_registries` names no host.
    #[error("--docker_insecure_registries")]
    Insecure(#[source] crate::puller::registry::EndpointError),
    /// `--docker_auth` is no login.
    #[error("--docker_auth")]
    Login(#[from] ParseLoginError),
    /// `--appc_simple_discovery_uri_prefix` names no place.
    #[error("--appc_simple_discovery_uri_prefix")]
    AppcPrefix(#[from] PrefixError),
    /// A thread or runtime cannot be made.
    #[error("cannot start the agent's threads")]
    Threads(#[source] std::io::Error),
}

/// keelblock in a process of yours: owns the engine, the I/O threads and the adapters.
///
/// Containers launched by it end with it: [`Agent::shutdown`] destroys them, and if the process is killed the kernel
/// does, and the next agent on the work directory removes what they leave.
pub struct Agent {
    engine: Engine,
    launcher: Arc<LinuxLauncher>,
    source: DockerSource,
    /// For which images are wanted.
    platform: Platform,
    registries: RegistryClient,
    appc: AppcSource,
    /// For requests that do not say.
    policy: Option<PullPolicy>,
    /// Bytes come by them.
    io: IoThreads,
    /// Removes what was moved away.
    collector: Collector,
    /// Write layers to disk, each of one store.
    settlers: Vec<Settler>,
    /// Where archives lie that were decompressed or fetched.
    spools: Vec<PathBuf>,
    /// Where root filesystems go.
    gc: Gc,
    store: Arc<Stores>,
    /// Verifies layers in the background, if it shall.
    scrubber: Option<Scrubber>,
    scrub: Option<(Duration, u64)>,
    /// For the scrubber, which names containers.
    records: Arc<DiskRecords>,
    log: Logger,
}

impl Agent {
    /// Starts an agent, then takes down what dead processes left on its work directory.
    ///
    /// # Errors
    /// [`AgentError`] when a flag cannot be honoured here. What recovery cannot take down is logged, not an error.
    pub async fn start(config: Config, observer: Arc<dyn Observer>, log: Logger) -> Result<Self, AgentError> {
        let mut agent = Self::start_idle(config, observer, log)?;
        if let Err(error) = agent.engine.recover().await {
            slog::error!(agent.log, "what dead processes left could not be looked at";
                "error" => keelblock_actors::error::chain(&*error));
        }
        if let Some((interval, rate)) = agent.scrub {
            let (stores, log) = ((*agent.store).clone(), agent.log.new(o!("actor" => "scrub")));
            let records = Arc::clone(&agent.records);
            let containers = Box::new(move || records.list());
            let scrubber =
                Scrubber::start(stores, interval, rate, containers, log).map_err(AgentError::Threads)?;
            agent.scrubber = Some(scrubber);
        }
        // The store has seen to its own.
        if let Err(error) = agent.gc.collect_all() {
            slog::warn!(agent.log, "root filesystems on their way out cannot be removed";
                "error" => keelblock_actors::error::chain(&error));
        }
        Ok(agent)
    }

    /// Starts an agent that takes nothing down: for a look at, or a word to, containers of other processes.
    ///
    /// # Errors
    /// As [`Agent::start`].
    pub fn start_idle(config: Config, observer: Arc<dyn Observer>, log: Logger) -> Result<Self, AgentError> {
        let source: DockerSource = config.docker_registry.parse()?;
        let limits = config.limits.clone();
        let privileges = Privileges::detect().map_err(AgentError::Privileges)?;
        let io = IoThreads::start()?;
        let store_dir = config.store_dir();
        let collector = match config.leave_garbage {
            true => Collector::later(),
            false => Collector::thread(log.new(o!("actor" => "gc"))),
        };
        let mut settlers = Vec::new();
        let settings = || {
            let settler = match config.leave_garbage {
                true => Settler::later(),
                false => Settler::thread(log.new(o!("actor" => "settler"))),
            };
            let settler = settler.with_mode(config.sync);
            settlers.push(settler.clone());
            StoreSettings {
                form: config.layer_form,
                collector: collector.clone(),
                settler,
                ..StoreSettings::new(limits.clone(), privileges)
            }
        };
        let store = Arc::new(Stores::open(&config.store_dirs(), settings, &log.new(o!("actor" => "store")))?);
        let records = Arc::new(DiskRecords::open_with(&config.work_dir, collector.clone())?);
        let gc = Gc::new(layout::gc_dir(&config.work_dir), collector.clone());

        let platform = config.platform.clone().unwrap_or_else(Platform::host);
        let archives = Archives::new(limits.clone(), store_dir.join("spool"), platform.clone());
        let settings = registry_settings(&config, &source, platform.clone())?;
        let appc = appc_source(&config, &settings, observer.clone(), io.handle(), &log)?;
        let registries =
            RegistryClient::new(settings, io.handle().clone(), log.new(o!("actor" => "registry")));
        let served = |kind: &str| config.image_providers.iter().any(|one| one == kind);
        let mut providers: Vec<Arc<dyn Provider>> = Vec::new();
        if served("docker") {
            providers.push(Arc::new(DockerProvider::new(
                source.clone(),
                registries.clone(),
                archives.clone(),
            )));
        }
        if served("oci") {
            providers.push(Arc::new(OciProvider::new(io.handle().clone(), archives)));
        }
        if served("appc") {
            let keys = TrustStore::at(&config.work_dir);
            let check = Signatures::new(config.appc_verify, keys, log.new(o!("actor" => "signatures")));
            providers.push(Arc::new(AppcProvider::new(
                Arc::new(appc.clone()),
                Arc::new(check),
                store.clone(),
                io.handle().clone(),
                limits.clone(),
                platform.clone(),
            )));
        }
        let pullers: Vec<Arc<dyn Puller>> = vec![
            Arc::new(LocalPuller),
            Arc::new(RegistryPuller::new(registries.clone())),
            Arc::new(AppcPuller),
        ];

        let chosen = backend::choose(
            config.backend,
            &config.work_dir,
            &store_dir,
            privileges.in_user_namespace,
            config.mounts_must_outlive,
        )?;
        if let Some(reason) = &chosen.fallback {
            slog::info!(log, "root filesystems are copied"; "error" => keelblock_actors::error::chain(reason));
        }
        let isolators = isolator::compose(
            &config.isolation,
            &isolator::Settings {
                sandbox_directory: config.sandbox_directory.clone(),
                docker_ignore_runtime: config.docker_ignore_runtime,
                docker_ignore_user: config.docker_ignore_user,
                arguments_replace_cmd: config.arguments_replace_cmd,
                effective_capabilities: config.effective_capabilities,
                bounding_capabilities: config.bounding_capabilities,
                ids: IdMaps::read(),
                user_file_bytes_max: limits.user_file_bytes_max,
                appc_strict_isolators: config.appc_strict_isolators,
                cgroups: isolator::CgroupSettings {
                    hierarchy: config.cgroups_hierarchy.clone(),
                    root: config.cgroups_root.clone(),
                    run_dir: Some(config.work_dir.join("containers")),
                },
                log: log.new(slog::o!("actor" => "isolator")),
                ..isolator::Settings::default()
            },
        )?;
        let launcher = LinuxLauncher::new(&config.work_dir.join("containers"), &log);
        let launcher = Arc::new(launcher.with_user_file_bytes_max(limits.user_file_bytes_max));
        let scrub = config.scrub_interval.map(|interval| (interval, config.scrub_rate.unwrap_or(SCRUB_RATE)));
        let engine = Engine::start(EngineParts {
            store: store.clone(),
            records: records.clone(),
            providers,
            pullers,
            backends: backend::all(&gc, config.bind_strict),
            default_backend: chosen.default,
            isolators,
            launcher: launcher.clone(),
            observer,
            log: log.clone(),
            limits: EngineLimits {
                launches_max: limits.launches_max,
                authorize_stored: config.authorize_stored_images,
                fetches_max: limits.fetches_max,
                unpacks_max: limits.unpack_threads(),
                copies_max: limits.copies_max,
                mounts_max: limits.mounts_max,
                image_bytes_max: limits.image_bytes_max,
                image_entries_max: limits.image_entries_max,
            },
        })
        .map_err(AgentError::Threads)?;
        Ok(Self {
            engine,
            launcher,
            source,
            platform,
            registries,
            appc,
            policy: config.image_pull_policy,
            io,
            collector,
            settlers,
            spools: config.store_dirs().iter().map(|dir| dir.join("spool")).collect(),
            gc,
            store,
            scrubber: None,
            scrub,
            records,
            log,
        })
    }

    /// The name under which this agent looks an image up and remembers it: every default written out, also where
    /// names without a registry come from.
    pub fn canonical(&self, name: &ImageName) -> ImageName {
        canonical(&self.source, &self.platform, name)
    }

    /// Where Appc images are discovered, and the keys of their publishers.
    pub fn appc_source(&self) -> &AppcSource {
        &self.appc
    }

    /// How the registries that this agent asked did so far, by server (`host:port`).
    pub fn registry_metrics(&self) -> BTreeMap<String, HostMetrics> {
        self.registries.metrics()
    }

    /// How the servers did that Appc images were discovered at.
    pub fn appc_metrics(&self) -> BTreeMap<String, HostMetrics> {
        self.appc.metrics()
    }

    fn request(&self, request: ImageRequest) -> ImageRequest {
        let policy = request.policy.or(self.policy);
        ImageRequest { name: self.canonical(&request.name), policy, ..request }
    }

    /// Brings an image into the store.
    pub async fn pull(&self, request: ImageRequest) -> Result<PulledImage, Arc<ProvisionError>> {
        self.engine.pull(self.request(request)).await
    }

    /// Gives a container a root filesystem and no process; it stays until destroyed, also when this process ends.
    pub async fn provision(
        &self,
        id: ContainerId,
        request: ImageRequest,
    ) -> Result<Provisioned, Arc<ContainerError>> {
        self.engine.provision(id, self.request(request)).await
    }

    /// Launches a container; answers when its command runs. Dropping the future gives the launch up.
    pub async fn launch(&self, mut spec: ContainerSpec) -> Result<RunningContainer, Arc<ContainerError>> {
        spec.image = spec.image.map(|image| self.request(image));
        for volume in &mut spec.volumes {
            if let VolumeSource::Image(request) = &mut volume.source {
                *request = self.request(request.clone());
            }
        }
        self.engine.launch(spec).await
    }

    /// How a container ended; waits while it runs.
    pub async fn wait(&self, id: ContainerId) -> Result<Option<ExitStatus>, Arc<ContainerError>> {
        self.engine.wait(id).await
    }

    /// Sends a signal to a container's command.
    pub async fn kill(&self, id: ContainerId, signal: i32) -> Result<(), Arc<ContainerError>> {
        self.engine.kill(id, signal).await
    }

    /// Runs one more command in a container.
    pub async fn exec(&self, id: ContainerId, exec: ExecSpec) -> Result<Executed, Arc<ContainerError>> {
        self.engine.exec(id, exec).await
    }

    /// Takes a container down and removes everything of it.
    pub async fn destroy(&self, id: ContainerId) -> Result<Option<ExitStatus>, Arc<ContainerError>> {
        self.engine.destroy(id).await
    }

    /// All containers of all processes on the work directory.
    pub async fn containers(&self) -> Result<Vec<Found>, Arc<ContainerError>> {
        self.engine.list().await
    }

    /// All images in the store.
    pub async fn images(&self) -> Result<Vec<StoredImage>, StoreError> {
        let images = self.engine.images().await?;
        Ok(images.into_iter().map(|(record, bytes)| StoredImage { record, bytes }).collect())
    }

    /// Removes images and layers that nothing uses, and archives that nobody has asked for lately. Large trees may still be on their way out when this answers:
    /// [`crate::gc::sweep`] on [`Config::gc_dirs`] waits for them.
    pub async fn prune(&self, keep: Keep) -> Result<Pruned, Arc<PruneError>> {
        let mut images: Vec<_> = keep.images.iter().map(|name| self.canonical(name)).collect();
        let by_id = |name: &ImageName| matches!(name, ImageName::Appc(AppcReference::Id(_)));
        if images.iter().any(by_id) {
            // Images are remembered by name.
            let stored = self.images().await.map_err(|error| Arc::new(PruneError::from(error)))?;
            let kept = stored.into_iter().map(|image| image.record.plan.identity);
            let is_kept = |identity: &ImageIdentity| {
                let id = ImageId::of(&identity.manifest).filter(|_| identity.kind() == ImageKind::Appc);
                id.is_some_and(|id| images.contains(&ImageName::Appc(AppcReference::Id(id))))
            };
            let named: Vec<_> = kept.filter(is_kept).map(|identity| identity.name).collect();
            images.extend(named);
        }
        let pruned = self.engine.prune(Keep { images }).await?;
        let spools = self.spools.clone();
        let swept = Task::spawn_blocking(self.io.handle(), move || {
            spools.iter().map(|spool| spool::sweep(spool, spool::SPOOL_IDLE)).sum::<usize>()
        });
        // What stays now goes with a later one.
        match swept.await {
            Ok(files) => slog::debug!(self.log, "the spool is swept"; "files" => files),
            Err(lost) => slog::warn!(self.log, "the spool is not swept"; "error" => lost.to_string()),
        }
        Ok(pruned)
    }

    /// The master side of a container's terminal, to whoever asks first: see [`crate::launcher::Terminal`].
    pub fn terminal(&self, process: &Arc<dyn Launched>) -> Option<OwnedFd> {
        self.launcher.terminal_of(&process.init())
    }

    /// Destroys the containers that this agent launched and stops its threads. Trees that were moved away and are not
    /// removed by then stay on disk, for the next agent on the work directory.
    pub async fn shutdown(mut self) {
        self.scrubber = None;
        self.engine.shutdown().await;
        self.collector.stop();
        self.settlers.iter().for_each(Settler::stop);
        // Nobody waits for its bytes any more.
        self.io.stop();
    }
}

impl Drop for Agent {
    fn drop(&mut self) {
        self.collector.stop_soon();
        self.settlers.iter().for_each(Settler::stop_soon);
        self.io.stop();
    }
}

/// A runtime for what comes from outside. Whoever lets go of it, also by an error on the way to an agent, does not wait
/// for its threads: that must not be on a thread that may belong to another runtime.
struct IoThreads {
    runtime: Option<tokio::runtime::Runtime>,
    handle: tokio::runtime::Handle,
}

impl IoThreads {
    fn start() -> Result<Self, AgentError> {
        let runtime = tokio::runtime::Builder::new_multi_thread()
            .worker_threads(IO_THREADS)
            .thread_name("keelblock-io")
            .enable_all()
            .build()
            .map_err(AgentError::Threads)?;
        let handle = runtime.handle().clone();
        Ok(Self { runtime: Some(runtime), handle })
    }

    fn handle(&self) -> &tokio::runtime::Handle {
        &self.handle
    }

    fn stop(&mut self) {
        if let Some(runtime) = self.runtime.take() {
            runtime.shutdown_background();
        }
    }
}

impl Drop for IoThreads {
    fn drop(&mut self) {
        self.stop();
    }
}

/// See [`Agent::canonical`].
pub(crate) fn canonical(source: &DockerSource, platform: &Platform, name: &ImageName) -> ImageName {
    match name.kind() {
        ImageKind::Appc => appc::canonical(name, platform),
        ImageKind::Docker | ImageKind::Oci => source.canonical(name),
    }
}

fn appc_source(
    config: &Config,
    registry: &RegistrySettings,
    observer: Arc<dyn Observer>,
    handle: &tokio::runtime::Handle,
    log: &Logger,
) -> Result<AppcSource, AgentError> {
    let prefix: AppcPrefix = config.appc_simple_discovery_uri_prefix.parse()?;
    let spool = config.appc_store_dir.clone().unwrap_or_else(|| config.store_dir()).join("spool");
    let settings = AppcSourceSettings { prefix, registry: registry.clone(), spool, observer };
    Ok(AppcSource::new(settings, handle.clone(), log.new(o!("actor" => "discovery"))))
}

fn registry_settings(
    config: &Config,
    source: &DockerSource,
    platform: Platform,
) -> Result<RegistrySettings, AgentError> {
    let mut settings = RegistrySettings::new(config.limits.clone());
    settings.platform = platform;
    settings.platform_given = config.platform.is_some();
    settings.default_registry = source.registry().cloned();
    let insecure: InsecureRegistries =
        config.docker_insecure_registries.join(",").parse().map_err(AgentError::Insecure)?;
    settings.insecure = insecure;
    settings.ca_file = config.registry_ca.clone();
    settings.hosts_dirs = config.registry_config_path.clone();
    settings.http2 = !config.disable_http2;
    settings.proxies = proxies(config);
    let login = config.docker_auth.as_ref().map(|login| login.0.parse::<Login>()).transpose()?;
    let login = login.map(|login| LoginFor { login, registries: None });
    let (uid, home) = caller();
    let usual = usual_places(|name| std::env::var_os(name), uid, home);
    let sources = Sources::new(login, config.docker_config.clone(), usual, &config.limits);
    settings.credentials = Arc::new(sources);
    Ok(settings)
}

/// Those of the environment, unless flags say otherwise.
fn proxies(config: &Config) -> Proxies {
    let environment = Proxies::from_environment(|name| std::env::var(name).ok());
    Proxies {
        https: config.https_proxy.clone().map(Ok).or(environment.https),
        http: config.http_proxy.clone().map(Ok).or(environment.http),
        without: config.no_proxy.clone().unwrap_or(environment.without),
    }
}

/// The user outside of any user namespace of ours, and his home.
fn caller() -> (u32, Option<PathBuf>) {
    let inside = nix::unistd::getuid().as_raw();
    let outside = IdMaps::read().uids.iter().find_map(|range| {
        let at = inside.checked_sub(range.inside).filter(|&at| at < range.count)?;
        range.outside.checked_add(at)
    });
    let uid = outside.unwrap_or(inside);
    let home = std::env::var_os("HOME").map(PathBuf::from).filter(|home| home.is_absolute());
    // Services are often started without it.
    let home = home.or_else(|| Some(nix::unistd::User::from_uid(uid.into()).ok()??.dir));
    (uid, home)
}
