//! The containerizer: owns every container of this process from launch to destroy, and reaches for those of others.
//!
//! A launch is a story told by one task ([`launch`]); a destroy marks the container first, waits for the story to
//! reach its next full stop, and takes down what was built, in reverse. Whoever gives a launch up, by leaving or by
//! asking for a destroy from any process, gets the same teardown.
//!
//! Steps of a story are never dropped half way, so what a step made is always known to the teardown; the one
//! exception is waiting for an image, which is given up at once and cleared away by the provisioner.

use std::cell::{Cell, RefCell};
use std::collections::HashMap;
use std::path::PathBuf;
use std::rc::{Rc, Weak};
use std::sync::Arc;
use std::time::Duration;

use actix::{Actor, Addr, Context, Handler, Message, ResponseFuture};
use futures_util::FutureExt;
use futures_util::future::{LocalBoxFuture, Shared, join_all, try_join_all};
use slog::Logger;
use tokio::sync::watch;

use crate::container::{ContainerId, ContainerRecord, ContainerSpec, ExitStatus, PhaseName, VolumeSource};
use crate::error::{ContainerError, Gone, LaunchError, RecordError, chain};
use crate::image::name::ImageRequest;
use crate::launch::{LaunchContext, LaunchPlan, MountedVolume};
use crate::messages::{
    Deprovision, Destroy, Exec, Executed, Kill, Launch, List, Provision, ProvisionContainer, Provisioned,
    Recover, RunningContainer, Wait,
};
use crate::pool::{Admission, Admitted, Pool, guarded};
use crate::ports::{Found, Isolator, Launched, Launcher, Owner, Records, Store};
use crate::provisioner::{LetGo, ProvisionerActor, in_use};
use crate::reply::{Lease, Leased, WhileWanted};

/// How often a container's owner looks whether another process asked for its destruction.
const DESTROY_POLL: Duration = Duration::from_millis(250);
/// Longest pause between two tries of a teardown that another process asked for and that fails.
const DESTROY_RETRY_MAX: Duration = Duration::from_secs(30);
/// How often a process that asked looks whether it is done.
const GONE_POLL: Duration = Duration::from_millis(20);
/// How long it looks before it gives up: an owner that is stopped or hung.
const GONE_TIMEOUT: Duration = Duration::from_secs(60);

type Answer<T> = Result<T, Arc<ContainerError>>;
type DestroyFlight = Shared<LocalBoxFuture<'static, Answer<Option<ExitStatus>>>>;

pub(crate) struct ContainerizerDeps {
    pub(crate) records: Arc<dyn Records>,
    pub(crate) store: Arc<dyn Store>,
    pub(crate) isolators: Vec<Arc<dyn Isolator>>,
    pub(crate) launcher: Arc<dyn Launcher>,
    pub(crate) provisioner: Addr<ProvisionerActor>,
    pub(crate) admission: Admission,
    pub(crate) disk: Pool,
    pub(crate) launch: Pool,
    /// Of the machine, as it runs now.
    pub(crate) boot_id: String,
    pub(crate) log: Logger,
}

#[derive(Clone)]
pub(crate) struct ContainerizerActor {
    pub(crate) deps: Rc<ContainerizerDeps>,
    pub(crate) table: Rc<RefCell<HashMap<ContainerId, Container>>>,
    /// Teardowns of containers of other or dead processes.
    pub(crate) foreign: Rc<RefCell<HashMap<ContainerId, DestroyFlight>>>,
    /// Set at shutdown: nothing is launched any more.
    pub(crate) closing: Rc<Cell<bool>>,
}

/// Where a container of this process stands. Each phase holds only what is true in it.
enum Phase {
    /// Its name is being taken, its images are being brought.
    Provisioning,
    /// Isolators have begun; so many of them are to be cleaned up.
    Preparing { isolators: usize },
    /// It has a process.
    Running { process: Arc<dyn Launched> },
}

pub(crate) struct Container {
    phase: Phase,
    /// What is on disk of it; `None` until its name is taken.
    record: Option<ContainerRecord>,
    /// Holds the name among all processes.
    hold: Option<Box<dyn Send + Sync>>,
    doomed: watch::Sender<bool>,
    /// `true` once the launch has come to a full stop: running, or failed.
    settled: watch::Sender<bool>,
    destroying: Option<DestroyFlight>,
    /// Tells this container from a later one of its name.
    alive: Rc<()>,
}

impl Container {
    fn phase_name(&self) -> PhaseName {
        match self.phase {
            Phase::Provisioning => PhaseName::Provisioning,
            Phase::Preparing { .. } => PhaseName::Preparing,
            Phase::Running { .. } => PhaseName::Running,
        }
    }
}

/// Take down every container that this process launched. Sent once, at shutdown.
pub(crate) struct DestroyAll;
impl Message for DestroyAll {
    type Result = ();
}

impl Actor for ContainerizerActor {
    type Context = Context<Self>;

    fn started(&mut self, ctx: &mut Self::Context) {
        ctx.set_mailbox_capacity(crate::system::MAILBOX);
    }
}

// ---- launch -------------------------------------------------------------------------------------------------

impl Handler<Leased<Launch>> for ContainerizerActor {
    type Result = ResponseFuture<Answer<RunningContainer>>;

    fn handle(&mut self, asked: Leased<Launch>, _: &mut Self::Context) -> Self::Result {
        let Leased { message: Launch { spec }, lease } = asked;
        let id = spec.id.clone();
        self.begin(id, lease, |this| async move { launch(&this, spec).await }.boxed_local())
    }
}

impl Handler<Leased<ProvisionContainer>> for ContainerizerActor {
    type Result = ResponseFuture<Answer<Provisioned>>;

    fn handle(&mut self, asked: Leased<ProvisionContainer>, _: &mut Self::Context) -> Self::Result {
        let Leased { message, lease } = asked;
        let id = message.id.clone();
        self.begin(id, lease, |this| async move { provision_to_stay(&this, message).await }.boxed_local())
    }
}

impl ContainerizerActor {
    /// Admits a launch, enters its container in the table, and lets its story run in a task of its own: when the
    /// asker leaves, or the story fails, the container is taken down there.
    fn begin<T: 'static>(
        &self,
        id: ContainerId,
        lease: Lease,
        story: impl FnOnce(Self) -> LocalBoxFuture<'static, Result<T, ContainerError>>,
    ) -> ResponseFuture<Answer<T>> {
        let admitted = match self.enter(&id) {
            Ok(admitted) => admitted,
            Err(error) => return Box::pin(std::future::ready(Err(Arc::new(error)))),
        };
        let (tx, rx) = tokio::sync::oneshot::channel();
        let story = story(self.clone());
        actix::spawn(self.clone().tell(id, lease, admitted, story, tx));
        Box::pin(
            rx.map(|answer| answer.unwrap_or_else(|_| Err(Arc::new(Gone { actor: "containerizer" }.into())))),
        )
    }

    async fn tell<T: 'static>(
        self,
        id: ContainerId,
        mut lease: Lease,
        admitted: Admitted,
        story: LocalBoxFuture<'static, Result<T, ContainerError>>,
        tx: tokio::sync::oneshot::Sender<Answer<T>>,
    ) {
        let mut story = std::pin::pin!(guarded("launch", story));
        let told = tokio::select! {
            biased;
            told = &mut story => told,
            () = lease.left() => {
                // Nobody wants it: doomed, the story stops at its next full stop.
                self.doom(&id);
                story.await
            }
        };
        drop(admitted);
        self.settle(&id);
        match told {
            Ok(answer) => {
                let _ = tx.send(Ok(answer));
                // An answer that nobody took, however late its asker left, is a launch given up.
                if !lease.taken().await {
                    slog::debug!(self.deps.log, "the asker left"; "container" => %id);
                    self.take_down(&id).await;
                }
            }
            Err(error) => {
                slog::debug!(self.deps.log, "launch failed"; "container" => %id, "error" => chain(&error));
                self.take_down(&id).await;
                let _ = tx.send(Err(Arc::new(error)));
            }
        }
    }

    /// Destroys a container whose launch failed or is wanted no more; nobody else is there to hear of failures.
    async fn take_down(&self, id: &ContainerId) {
        match self.destroy(id).await.as_ref().map_err(|error| &**error) {
            Ok(_) | Err(ContainerError::Unknown { .. }) => {}
            Err(error) => slog::error!(self.deps.log, "a failed launch could not be taken down whole";
                "container" => %id, "error" => chain(error)),
        }
    }

    fn enter(&self, id: &ContainerId) -> Result<Admitted, ContainerError> {
        if self.closing.get() {
            return Err(Gone { actor: "containerizer" }.into());
        }
        let mut table = self.table.borrow_mut();
        if table.contains_key(id) {
            return Err(ContainerError::Exists { id: id.clone() });
        }
        let admitted =
            self.deps.admission.admit().map_err(|full| ContainerError::Busy { limit: full.limit })?;
        let container = Container {
            phase: Phase::Provisioning,
            record: None,
            hold: None,
            doomed: watch::Sender::new(false),
            settled: watch::Sender::new(false),
            destroying: None,
            alive: Rc::new(()),
        };
        table.insert(id.clone(), container);
        Ok(admitted)
    }

    fn doom(&self, id: &ContainerId) {
        if let Some(container) = self.table.borrow().get(id) {
            container.doomed.send_replace(true);
        }
    }

    fn settle(&self, id: &ContainerId) {
        if let Some(container) = self.table.borrow().get(id) {
            container.settled.send_replace(true);
        }
    }

    fn destroyed(&self, id: &ContainerId) -> ContainerError {
        let phase = self.table.borrow().get(id).map_or(PhaseName::Destroying, Container::phase_name);
        ContainerError::Destroyed { id: id.clone(), phase }
    }

    /// An error when somebody asked for the container's destruction meanwhile. Asked after every step.
    fn still_wanted(&self, id: &ContainerId) -> Result<(), ContainerError> {
        let wanted = self.table.borrow().get(id).is_some_and(|container| !*container.doomed.borrow());
        if wanted { Ok(()) } else { Err(self.destroyed(id)) }
    }

    /// Changes what is known of a container, then writes its record.
    async fn advance(
        &self,
        id: &ContainerId,
        phase: Option<Phase>,
        change: impl FnOnce(&mut ContainerRecord),
    ) -> Result<(), ContainerError> {
        let record = {
            let mut table = self.table.borrow_mut();
            let Some(container) = table.get_mut(id) else {
                return Err(ContainerError::Unknown { id: id.clone() });
            };
            if let Some(phase) = phase {
                container.phase = phase;
            }
            let name = container.phase_name();
            let Some(record) = &mut container.record else {
                return Err(ContainerError::Unknown { id: id.clone() });
            };
            record.phase = name;
            change(record);
            record.clone()
        };
        let records = self.deps.records.clone();
        Ok(self.deps.disk.run(move |_| records.write_container(&record)).await?)
    }

    /// Takes the name and writes the first record.
    async fn take_name(&self, id: &ContainerId, argv: Vec<String>) -> Result<(), ContainerError> {
        let (records, name) = (self.deps.records.clone(), id.clone());
        let taken = self.deps.disk.run(move |_| records.create(&name)).await;
        let hold = taken.map_err(|error| match error {
            RecordError::Exists { id } => ContainerError::Exists { id },
            error => error.into(),
        })?;
        // Ours from here on, also if the record cannot be written: the teardown removes what `create` made.
        let alive = match self.table.borrow_mut().get_mut(id) {
            Some(container) => {
                container.hold = Some(hold);
                Rc::downgrade(&container.alive)
            }
            None => return Err(ContainerError::Unknown { id: id.clone() }),
        };
        let (records, name) = (self.deps.records.clone(), id.clone());
        let written = self.deps.disk.run(move |_| {
            let record = ContainerRecord {
                id: name,
                phase: PhaseName::Provisioning,
                created_ms: records.now_ms(),
                owner: Some(records.us()),
                image: None,
                rootfs: None,
                init: None,
                argv,
                image_isolators: Vec::new(),
            };
            records.write_container(&record)?;
            Ok::<_, RecordError>(record)
        });
        let record = written.await?;
        if let Some(container) = self.table.borrow_mut().get_mut(id) {
            container.record = Some(record);
        }
        self.watch_for_requests(id, alive);
        self.still_wanted(id)
    }

    /// Looks now and then whether another process asked for this container's destruction, until it is gone. A
    /// teardown that fails is tried again, ever more seldom: whoever asked may still be waiting.
    fn watch_for_requests(&self, id: &ContainerId, alive: Weak<()>) {
        let (this, id) = (self.clone(), id.clone());
        actix::spawn(async move {
            let mut pause = DESTROY_POLL;
            loop {
                tokio::time::sleep(pause).await;
                if alive.strong_count() == 0 {
                    return;
                }
                let (records, name) = (this.deps.records.clone(), id.clone());
                let asked =
                    this.deps.disk.run(move |_| Ok::<_, RecordError>(records.destroy_requested(&name)));
                match asked.await {
                    Ok(false) => {}
                    // It may have gone, and its name to another container, while we looked.
                    Ok(true) if alive.strong_count() == 0 => return,
                    Ok(true) => {
                        pause = (pause * 2).min(DESTROY_RETRY_MAX);
                        if let Err(error) = this.destroy(&id).await {
                            slog::error!(this.deps.log, "a container could not be destroyed for another process";
                                "container" => %id, "error" => chain(&*error));
                        }
                    }
                    Err(error) => slog::warn!(this.deps.log, "cannot look for requests of other processes";
                        "container" => %id, "error" => chain(&error)),
                }
            }
        });
    }

    async fn provision(
        &self,
        id: &ContainerId,
        request: &ImageRequest,
    ) -> Result<Provisioned, ContainerError> {
        let message = Provision { container: id.clone(), request: request.clone() };
        let mut doomed = match self.table.borrow().get(id) {
            Some(container) => container.doomed.subscribe(),
            None => return Err(ContainerError::Unknown { id: id.clone() }),
        };
        tokio::select! {
            provisioned = self.deps.provisioner.send(message) => {
                let provisioned = provisioned.map_err(|_| Gone { actor: "provisioner" })?;
                provisioned.map_err(ContainerError::Provisioning)
            }
            _ = doomed.wait_for(|doomed| *doomed) => Err(self.destroyed(id)),
        }
    }
}

/// A container that stays when this process ends: the name is let go once its rootfs stands.
async fn provision_to_stay(
    this: &ContainerizerActor,
    ProvisionContainer { id, request }: ProvisionContainer,
) -> Result<Provisioned, ContainerError> {
    this.take_name(&id, Vec::new()).await?;
    let provisioned = this.provision(&id, &request).await?;
    this.still_wanted(&id)?;
    let (image, rootfs) = (provisioned.image.identity.clone(), provisioned.rootfs.path.clone());
    this.advance(&id, None, |record| {
        record.phase = PhaseName::Provisioned;
        (record.image, record.rootfs, record.owner) = (Some(image), Some(rootfs), None);
    })
    .await?;
    this.still_wanted(&id)?;
    // Not ours any more, as if this process had ended: whoever destroys it adopts it and reads the records.
    let let_go = this.deps.provisioner.send(LetGo { container: id.clone() }).await;
    let_go.map_err(|_| Gone { actor: "provisioner" })?;
    this.still_wanted(&id)?;
    this.table.borrow_mut().remove(&id);
    Ok(provisioned)
}

async fn launch(this: &ContainerizerActor, spec: ContainerSpec) -> Result<RunningContainer, ContainerError> {
    let d = this.deps.clone();
    let id = spec.id.clone();
    this.take_name(&id, Vec::new()).await?;

    // The root image and all image volumes at once; one failure fails the launch.
    let image_of = |source: &VolumeSource| match source {
        VolumeSource::Image(request) => Some(request.clone()),
        VolumeSource::HostPath(_) => None,
    };
    let root = async {
        match &spec.image {
            Some(request) => this.provision(&id, request).await.map(Some),
            None => Ok(None),
        }
    };
    let volumes = try_join_all(spec.volumes.iter().map(|volume| {
        let (id, this) = (&id, &this);
        async move {
            let host_path = match image_of(&volume.source) {
                Some(request) => this.provision(id, &request).await?.rootfs.path,
                None => match &volume.source {
                    VolumeSource::HostPath(path) => path.clone(),
                    VolumeSource::Image(_) => return Err(ContainerError::Unknown { id: id.clone() }),
                },
            };
            Ok(MountedVolume { spec: volume.clone(), host_path })
        }
    }));
    let (root, volumes) = futures_util::future::try_join(root, volumes).await?;
    this.still_wanted(&id)?;

    let (image, rootfs) = match &root {
        Some(root) => (Some(root.image.identity.clone()), Some(root.rootfs.clone())),
        None => (None, None),
    };
    let path = rootfs.as_ref().map(|rootfs| rootfs.path.clone());
    let all = d.isolators.len();
    this.advance(&id, Some(Phase::Preparing { isolators: all }), |record| {
        (record.image, record.rootfs) = (image.clone(), path.clone());
    })
    .await?;
    let mut context = LaunchContext {
        id: id.clone(),
        rootfs: path,
        rootfs_read_only: rootfs.as_ref().is_some_and(|rootfs| rootfs.read_only),
        runtime: root.as_ref().map(|root| root.image.runtime.clone()),
        command: spec.command,
        volumes,
        // Asked for on the pool thread.
        sandbox: PathBuf::new(),
        effective_capabilities: spec.effective_capabilities,
        bounding_capabilities: spec.bounding_capabilities,
        resources: spec.resources,
        tty: spec.tty,
        stdio: spec.stdio,
        read_only: spec.read_only,
    };
    let (isolators, records) = (d.isolators.clone(), d.records.clone());
    let (plan, argv, image_isolators) = d
        .launch
        .run(move |_| {
            context.sandbox = records.sandbox(&context.id);
            let mut plan = LaunchPlan::default();
            for isolator in &isolators {
                isolator.prepare(&context, &mut plan)?;
            }
            let argv = plan.argv.clone().unwrap_or_default();
            let image_isolators = plan.image_isolators.clone();
            Ok::<_, ContainerError>((plan, argv, image_isolators))
        })
        .await?;
    this.still_wanted(&id)?;

    let (launcher, name) = (d.launcher.clone(), id.clone());
    let process = d.launch.run(move |_| launcher.start(&name, plan)).await?;
    // In the table before anything else can fail: from here on a teardown kills it.
    if let Some(container) = this.table.borrow_mut().get_mut(&id) {
        container.phase = Phase::Running { process: process.clone() };
    }
    let init = process.init();
    this.advance(&id, None, |record| {
        record.phase = PhaseName::Preparing;
        (record.init, record.argv) = (Some(init.clone()), argv);
        record.image_isolators = image_isolators;
    })
    .await?;
    this.still_wanted(&id)?;
    let (isolators, name, launched) = (d.isolators.clone(), id.clone(), process.clone());
    d.launch
        .run(move |_| {
            for isolator in &isolators {
                isolator.isolate(&name, &init)?;
            }
            launched.release()?;
            Ok::<_, ContainerError>(())
        })
        .await?;
    this.advance(&id, None, |_| {}).await?;
    this.still_wanted(&id)?;
    slog::info!(d.log, "container runs"; "container" => %id);
    Ok(RunningContainer { id, process, rootfs, image })
}

// ---- destroy ------------------------------------------------------------------------------------------------

impl Handler<Destroy> for ContainerizerActor {
    type Result = ResponseFuture<Answer<Option<ExitStatus>>>;

    fn handle(&mut self, Destroy { id }: Destroy, _: &mut Self::Context) -> Self::Result {
        let this = self.clone();
        Box::pin(async move {
            let launching = this.table.borrow().contains_key(&id);
            let done = match this.destroy(&id).await {
                // The launch in our table was refused the name: the container meant is the one that has it.
                Err(error) if launching && matches!(&*error, ContainerError::Unknown { .. }) => {
                    this.destroy(&id).await
                }
                done => done,
            };
            // We held none of its layers: they stayed shown for it.
            if !launching && done.is_ok() {
                this.hide_idle().await;
            }
            done
        })
    }
}

impl Handler<DestroyAll> for ContainerizerActor {
    type Result = ResponseFuture<()>;

    fn handle(&mut self, _: DestroyAll, _: &mut Self::Context) -> Self::Result {
        let this = self.clone();
        this.closing.set(true);
        Box::pin(async move {
            let ids: Vec<_> = this.table.borrow().keys().cloned().collect();
            for (id, done) in ids.iter().zip(join_all(ids.iter().map(|id| this.destroy(id))).await) {
                match done.as_ref().map_err(|error| &**error) {
                    Err(ContainerError::Unknown { .. }) | Ok(_) => {}
                    Err(error) => {
                        slog::error!(this.deps.log, "a container could not be taken down at shutdown";
                        "container" => %id, "error" => chain(error))
                    }
                }
            }
        })
    }
}

impl ContainerizerActor {
    /// One teardown for all who ask; it runs to its end with or without them.
    fn destroy(&self, id: &ContainerId) -> DestroyFlight {
        let running =
            |flight: &Option<DestroyFlight>| flight.clone().filter(|flight| flight.peek().is_none());
        let flight = {
            let mut table = self.table.borrow_mut();
            let mut foreign = self.foreign.borrow_mut();
            match table.get_mut(id) {
                Some(container) => {
                    container.doomed.send_replace(true);
                    if let Some(flight) = running(&container.destroying) {
                        return flight;
                    }
                    let flight = teardown(self.clone(), id.clone(), container.settled.subscribe());
                    let flight = guarded("destroy", flight);
                    let flight = flight.map(|done| done.map_err(Arc::new)).boxed_local().shared();
                    container.destroying = Some(flight.clone());
                    flight
                }
                None => {
                    foreign.retain(|_, flight| flight.peek().is_none());
                    if let Some(flight) = foreign.get(id) {
                        return flight.clone();
                    }
                    let flight = destroy_foreign(self.clone(), id.clone());
                    let flight = guarded("destroy", flight);
                    let flight = flight.map(|done| done.map_err(Arc::new)).boxed_local().shared();
                    foreign.insert(id.clone(), flight.clone());
                    flight
                }
            }
        };
        actix::spawn(flight.clone().map(drop));
        flight
    }

    /// Isolators in reverse, all attempted; then every rootfs. Adds what failed.
    async fn clean_up(&self, id: &ContainerId, isolators: usize, failures: &mut Vec<String>) {
        for isolator in self.deps.isolators.iter().take(isolators).rev() {
            let (job, name) = (isolator.clone(), id.clone());
            let cleaned =
                self.deps.launch.run(move |_| job.cleanup(&name).map_err(ContainerError::from)).await;
            failures.extend(cleaned.err().map(|error| chain(&error)));
        }
        match self.deps.provisioner.send(Deprovision { container: id.clone() }).await {
            Ok(Ok(_)) => {}
            Ok(Err(error)) => failures.push(chain(&*error)),
            Err(_) => failures.push(Gone { actor: "provisioner" }.to_string()),
        }
    }

    async fn forget(&self, id: &ContainerId, failures: &mut Vec<String>) {
        let (records, name) = (self.deps.records.clone(), id.clone());
        let removed = self.deps.disk.run(move |_| records.remove(&name)).await;
        failures.extend(removed.err().map(|error| chain(&error)));
    }
}

/// Takes down a container of this process.
async fn teardown(
    this: ContainerizerActor,
    id: ContainerId,
    mut settled: watch::Receiver<bool>,
) -> Result<Option<ExitStatus>, ContainerError> {
    // The launch has seen that it is doomed and comes to its next full stop.
    let _ = settled.wait_for(|settled| *settled).await;
    let (process, isolators) = match this.table.borrow().get(&id).map(|container| &container.phase) {
        Some(Phase::Running { process }) => (Some(process.clone()), this.deps.isolators.len()),
        Some(Phase::Preparing { isolators }) => (None, *isolators),
        Some(Phase::Provisioning) | None => (None, 0),
    };
    let named = this.table.borrow().get(&id).is_some_and(|container| container.hold.is_some());
    if !named {
        // The name was never ours: whatever lies on disk under it is somebody else's.
        this.table.borrow_mut().remove(&id);
        return Err(ContainerError::Unknown { id });
    }
    let mut failures = Vec::new();
    let mut status = None;
    if let Some(process) = process {
        let job = process.clone();
        match this.deps.launch.run(move |_| job.kill_all()).await {
            Ok(()) => match ended(&process).await {
                Ok(ended) => status = Some(ended),
                // Dead it is; only how it died is not known.
                Err(error) => failures.push(chain(&error)),
            },
            Err(error) => failures.push(chain(&error)),
        }
    }
    if failures.is_empty() {
        this.clean_up(&id, isolators, &mut failures).await;
    }
    if failures.is_empty() {
        this.forget(&id, &mut failures).await;
    }
    if failures.is_empty() {
        slog::info!(this.deps.log, "container destroyed"; "container" => %id);
        // The name is free when the guard drops, after everything else of it is gone.
        this.table.borrow_mut().remove(&id);
        return Ok(status);
    }
    // For others to see; that this fails, too, would add nothing.
    let _ = this.advance(&id, None, |record| record.phase = PhaseName::Destroying).await;
    Err(ContainerError::Teardown { id, failures })
}

/// How a process ended.
async fn ended(process: &Arc<dyn Launched>) -> Result<ExitStatus, ContainerError> {
    let process = process.clone();
    guarded("wait", async move { Ok(process.wait().await) }).await
}

/// Takes down a container that is not in this process's table.
async fn destroy_foreign(
    this: ContainerizerActor,
    id: ContainerId,
) -> Result<Option<ExitStatus>, ContainerError> {
    let d = this.deps.clone();
    let started = tokio::time::Instant::now();
    let mut asked = false;
    loop {
        let (records, name) = (d.records.clone(), id.clone());
        let found = d.disk.run(move |_| records.read(&name)).await?;
        match found {
            None if asked => return Ok(None),
            None => return Err(ContainerError::Unknown { id }),
            Some(found) if found.owner == Owner::Nobody => {
                let (records, name) = (d.records.clone(), id.clone());
                match d.disk.run(move |_| records.adopt(&name)).await {
                    Ok(Some(hold)) => return destroy_adopted(&this, found, hold).await,
                    Ok(None) => return if asked { Ok(None) } else { Err(ContainerError::Unknown { id }) },
                    // Somebody was faster.
                    Err(RecordError::Elsewhere { .. }) => {}
                    Err(error) => return Err(error.into()),
                }
            }
            Some(_) if !asked => {
                let (records, name) = (d.records.clone(), id.clone());
                d.disk.run(move |_| records.request_destroy(&name)).await?;
                asked = true;
            }
            Some(_) => {}
        }
        if started.elapsed() > GONE_TIMEOUT {
            return Err(RecordError::Elsewhere { id }.into());
        }
        tokio::time::sleep(GONE_POLL).await;
    }
}

async fn destroy_adopted(
    this: &ContainerizerActor,
    found: Found,
    hold: Box<dyn Send + Sync>,
) -> Result<Option<ExitStatus>, ContainerError> {
    let id = found.id;
    let mut failures = Vec::new();
    if let Some(init) = found.container.and_then(|record| record.init) {
        let (launcher, name) = (this.deps.launcher.clone(), id.clone());
        let killed = this.deps.launch.run(move |_| launcher.kill_orphan(&name, &init)).await;
        failures.extend(killed.err().map(|error| chain(&error)));
    }
    if failures.is_empty() {
        this.clean_up(&id, this.deps.isolators.len(), &mut failures).await;
    }
    if failures.is_empty() {
        this.forget(&id, &mut failures).await;
    }
    drop(hold);
    if failures.is_empty() { Ok(None) } else { Err(ContainerError::Teardown { id, failures }) }
}

// ---- processes, of this and of other keelblocks ----------------------------------------------------------------

impl ContainerizerActor {
    /// The process of a container of ours, if it has one.
    fn own_process(&self, id: &ContainerId) -> Option<Arc<dyn Launched>> {
        match &self.table.borrow().get(id)?.phase {
            Phase::Running { process } => Some(process.clone()),
            Phase::Provisioning | Phase::Preparing { .. } => None,
        }
    }

    async fn read(&self, id: &ContainerId) -> Result<Found, ContainerError> {
        let (records, name) = (self.deps.records.clone(), id.clone());
        let found = self.deps.disk.run(move |_| records.read(&name)).await?;
        found.ok_or_else(|| ContainerError::Unknown { id: id.clone() })
    }

    async fn wait(&self, id: &ContainerId) -> Result<Option<ExitStatus>, ContainerError> {
        loop {
            if let Some(process) = self.own_process(id) {
                return ended(&process).await.map(Some);
            }
            let found = self.read(id).await?;
            let record = found.container.as_ref();
            if let Some(init) = record.and_then(|record| record.init.clone()) {
                let launcher = self.deps.launcher.clone();
                let wait = async { Ok::<_, ContainerError>(launcher.wait(id, &init).await?) };
                return guarded("wait", wait).await;
            }
            if record.is_some_and(|record| record.phase == PhaseName::Provisioned) {
                return Err(LaunchError::NotRunning { container: id.clone() }.into());
            }
            if found.owner == Owner::Nobody {
                // Its process died before it had one: it never will.
                return Ok(None);
            }
            // On its way to a process: look again.
            tokio::time::sleep(GONE_POLL).await;
        }
    }

    async fn kill(&self, id: &ContainerId, signal: i32) -> Result<(), ContainerError> {
        if let Some(process) = self.own_process(id) {
            return Ok(self.deps.launch.run(move |_| process.signal(signal)).await?);
        }
        let ours = self.table.borrow().contains_key(id);
        if ours {
            // Mesos: no process yet, so there is nothing to signal; the launch is given up.
            return match self.destroy(id).await {
                Ok(_) => Ok(()),
                Err(error) => Err(ContainerError::Shared(error)),
            };
        }
        let init = self.read(id).await?.container.and_then(|record| record.init);
        let Some(init) = init else { return Err(LaunchError::NotRunning { container: id.clone() }.into()) };
        let (launcher, name) = (self.deps.launcher.clone(), id.clone());
        Ok(self.deps.launch.run(move |_| launcher.signal(&name, &init, signal)).await?)
    }

    async fn exec(&self, message: Exec) -> Result<Executed, ContainerError> {
        let Exec { id, exec } = message;
        let doomed = self.table.borrow().get(&id).is_some_and(|container| *container.doomed.borrow());
        if doomed {
            return Err(LaunchError::NotRunning { container: id }.into());
        }
        let process = self.own_process(&id);
        if process.is_none() && self.read(&id).await?.container.and_then(|record| record.init).is_none() {
            return Err(LaunchError::NotRunning { container: id }.into());
        }
        let launcher = self.deps.launcher.clone();
        let process = self.deps.launch.run(move |_| launcher.exec(&id, exec)).await?;
        Ok(Executed { process })
    }

    async fn list(&self) -> Result<Vec<Found>, ContainerError> {
        let records = self.deps.records.clone();
        Ok(self.deps.disk.run(move |_| records.list()).await?)
    }

    /// Layers that no container uses any more are shown no more. That they stay shown harms nobody: it is logged.
    async fn hide_idle(&self) {
        let (store, records) = (self.deps.store.clone(), self.deps.records.clone());
        let hidden = self.deps.disk.run(move |_| store.hide_idle(&|| in_use(&*records))).await;
        if let Err(error) = hidden {
            slog::warn!(self.deps.log, "layers that nobody uses stay shown"; "error" => chain(&error));
        }
    }

    async fn recover(&self) -> Result<Vec<ContainerId>, ContainerError> {
        let store = self.deps.store.clone();
        if let Err(error) = self.deps.disk.run(move |_| store.recover()).await {
            slog::error!(self.deps.log, "what dead pulls left could not be removed"; "error" => chain(&error));
        }
        let boot_id = &self.deps.boot_id;
        let stays = |found: &Found| {
            let provisioned = found
                .container
                .as_ref()
                .is_some_and(|record| record.phase == PhaseName::Provisioned && record.owner.is_none());
            provisioned && found.rootfses.as_ref().is_some_and(|record| record.boot_id == *boot_id)
        };
        let dead: Vec<_> = self
            .list()
            .await?
            .into_iter()
            .filter(|found| found.owner == Owner::Nobody && !stays(found))
            .map(|found| found.id)
            .collect();
        let taken_down = join_all(dead.iter().map(|id| self.destroy(id))).await;
        let mut done = Vec::new();
        for (id, result) in dead.iter().zip(taken_down) {
            match result.as_ref().map_err(|error| &**error) {
                Ok(_) => {
                    slog::warn!(self.deps.log, "a dead process's container was taken down"; "container" => %id);
                    done.push(id.clone());
                }
                // Another process was faster.
                Err(ContainerError::Unknown { .. }) => {}
                Err(error) => {
                    slog::error!(self.deps.log, "a dead process's container could not be taken down";
                    "container" => %id, "error" => chain(error))
                }
            }
        }
        self.hide_idle().await;
        Ok(done)
    }
}

macro_rules! answer {
    ($message:ty, $answer:ty, |$this:ident, $name:ident| $future:expr) => {
        impl Handler<$message> for ContainerizerActor {
            type Result = WhileWanted<Answer<$answer>>;

            fn handle(&mut self, $name: $message, _: &mut Self::Context) -> Self::Result {
                let $this = self.clone();
                WhileWanted(async move { $future.await.map_err(Arc::new) }.boxed_local())
            }
        }
    };
}

answer!(Wait, Option<ExitStatus>, |this, message| this.wait(&message.id));
answer!(Kill, (), |this, message| this.kill(&message.id, message.signal));
answer!(List, Vec<Found>, |this, _message| this.list());

impl Handler<Leased<Exec>> for ContainerizerActor {
    type Result = ResponseFuture<Answer<Executed>>;

    fn handle(&mut self, asked: Leased<Exec>, _: &mut Self::Context) -> Self::Result {
        let Leased { message, mut lease } = asked;
        let (this, id) = (self.clone(), message.id.clone());
        Box::pin(async move {
            let executed = guarded("exec", this.exec(message)).await.map_err(Arc::new)?;
            let process = executed.process.clone();
            // A command that nobody holds is killed: it would run on unseen until its container ends.
            actix::spawn(async move {
                if !lease.taken().await
                    && let Err(error) = this.deps.launch.run(move |_| process.kill_all()).await
                {
                    slog::error!(this.deps.log, "a command that nobody waits for could not be killed";
                        "container" => %id, "error" => chain(&error));
                }
            });
            Ok(executed)
        })
    }
}

impl Handler<Recover> for ContainerizerActor {
    type Result = ResponseFuture<Answer<Vec<ContainerId>>>;

    fn handle(&mut self, _: Recover, _: &mut Self::Context) -> Self::Result {
        let this = self.clone();
        Box::pin(async move { this.recover().await.map_err(Arc::new) })
    }
}
