//! The `keelblock` command: from arguments to an exit status.
//!
//! [`main`] reads the arguments, enters a user namespace where root is missing, builds the [`Config`], and hands
//! over to one file per group of commands. What people read goes to standard output as tables; with `--json` one
//! document does; logs, progress and errors go to standard error.

mod appc;
mod args;
mod bars;
mod collect;
mod containers;
mod images;
mod output;
mod run;
mod scrub;
mod volumes;

use std::error::Error;
use std::process::ExitCode;
use std::sync::Arc;

use clap::ArgMatches;
use keelblock_actors::error::{
    Cause, ContainerError, LaunchError, ProvisionError, RecordError, StoreError, chain,
};
use keelblock_actors::messages::PruneError;
use keelblock_actors::progress::{NoObserver, Observer};
use slog::Logger;

use crate::agent::{Agent, AgentError};
use crate::config::{Config, ConfigError};
use crate::provider::appc::ports::AciFetchError;
use crate::records::DiskRecords;
use crate::rootless;
use crate::sys::memory;
use keelblock_actors::ports::Records as _;
use output::{Output, one_line};

/// Exit status when keelblock itself failed (podman's `run`).
pub const EXIT_OWN_FAILURE: u8 = 125;
/// Exit status for wrong usage.
pub const EXIT_USAGE: u8 = 2;

/// What went wrong in a command, and the exit status that says so.
#[derive(Debug, thiserror::Error)]
enum CliError {
    #[error("{0}")]
    Usage(String),
    #[error(transparent)]
    Config(#[from] ConfigError),
    #[error(transparent)]
    Rootless(#[from] rootless::RootlessError),
    #[error(transparent)]
    Record(#[from] RecordError),
    #[error(transparent)]
    Agent(#[from] AgentError),
    #[error(transparent)]
    Store(#[from] StoreError),
    #[error(transparent)]
    Terminal(#[from] crate::launcher::TerminalError),
    #[error(transparent)]
    Container(#[from] Arc<ContainerError>),
    #[error("cannot run {image}")]
    Run {
        image: String,
        #[source]
        source: Arc<ContainerError>,
    },
    /// After the launch: its hooks did not let the command run.
    #[error(transparent)]
    NotStarted(#[from] Arc<LaunchError>),
    #[error(transparent)]
    Provision(#[from] Arc<ProvisionError>),
    #[error(transparent)]
    Prune(#[from] Arc<PruneError>),
    #[error(transparent)]
    Remove(#[from] crate::sys::remove::RemoveError),
    #[error(transparent)]
    Trust(#[from] crate::provider::appc::trust::TrustError),
    #[error("{}", one_line(.0))]
    NotTrusted(String),
    #[error("no keys were discovered for {prefix}; give the files that hold them")]
    Discover {
        prefix: String,
        #[source]
        source: AciFetchError,
    },
    #[error("cannot fetch {}", one_line(.address))]
    Fetch {
        address: String,
        #[source]
        source: Cause,
    },
    #[error("no container or image {0:?}; see keelblock ps and keelblock images")]
    Unknown(String),
    #[error("{0} is not there yet in this version")]
    NotYet(&'static str),
    #[error(
        "{bad} of {looked_at} layers are not what was written{}; check the disk, pull their images again, and destroy the \
         containers on them", .why.as_ref().map(|why| format!(" and could not be brought again ({why})")).unwrap_or_default()
    )]
    Scrubbed { bad: usize, looked_at: usize, why: Option<String> },
    #[error("cannot {act}")]
    Io {
        act: &'static str,
        #[source]
        source: std::io::Error,
    },
    #[error("{}", one_line(.0))]
    Several(String),
}

impl CliError {
    fn exit_status(&self) -> u8 {
        match self {
            Self::Usage(_) | Self::Config(_) => EXIT_USAGE,
            Self::Container(error) => match &**error {
                ContainerError::Launch(error) => not_executed(error),
                _ => EXIT_OWN_FAILURE,
            },
            Self::NotStarted(error) => not_executed(error),
            _ => EXIT_OWN_FAILURE,
        }
    }
}

fn not_executed(error: &LaunchError) -> u8 {
    match error {
        LaunchError::CommandNotFound { .. } => 127,
        LaunchError::CommandNotExecutable { .. } => 126,
        _ => EXIT_OWN_FAILURE,
    }
}

/// What every command gets.
struct Context<'a> {
    matches: &'a ArgMatches,
    config: Config,
    log: Logger,
    output: Output,
    quiet: bool,
}

impl Context<'_> {
    /// The agent of this command, after taking down what dead processes left.
    async fn agent(&self, observer: Arc<dyn Observer>) -> Result<Agent, CliError> {
        Ok(Agent::start(self.config.clone(), observer, self.log.clone()).await?)
    }

    /// Has done what an earlier command left, or this one so far: for commands that may run long.
    fn collect_leftovers(&self) {
        collect::hand_over(&self.config, &self.log);
    }

    /// An agent for commands that only reach for processes of others: it takes nothing down.
    fn onlooker(&self) -> Result<Agent, CliError> {
        // It makes no root filesystem, so no backend that cannot work for this user shall stop it.
        let config = Config { backend: None, ..self.config.clone() };
        Ok(Agent::start_idle(config, Arc::new(NoObserver), self.log.clone())?)
    }

    /// As [`Self::agent`], for commands that pull nothing.
    async fn quiet_agent(&self) -> Result<Agent, CliError> {
        self.agent(Arc::new(NoObserver)).await
    }
}

/// Heaps of the allocator. 2: threads of a pull rarely allocate, large buffers are used again and again.
const HEAPS: i32 = 2;

/// Runs the command of this process's arguments.
pub fn main() -> ExitCode {
    memory::share_heaps(HEAPS);
    let matches = match args::command().try_get_matches() {
        Ok(matches) => matches,
        Err(error) => {
            let _ = error.print();
            return ExitCode::from(if error.use_stderr() { EXIT_USAGE } else { 0 });
        }
    };
    let Some((name, sub)) = matches.subcommand() else { return ExitCode::from(EXIT_USAGE) };
    // Only `appc` has commands below it; their names are those of no others.
    let (name, sub) = sub.subcommand().unwrap_or((name, sub));
    let output = Output::new(sub.get_flag("json"));
    match dispatch(name, sub, output.clone()) {
        Ok(status) => ExitCode::from(status),
        Err(error) => {
            let status = error.exit_status();
            let text = one_line(&chain(&error as &dyn Error));
            eprintln!("keelblock: {text}");
            output.failure(&text, status);
            ExitCode::from(status)
        }
    }
}

fn dispatch(name: &str, sub: &ArgMatches, output: Output) -> Result<u8, CliError> {
    match name {
        "completions" => return images::completions(sub),
        "man" => return images::man(),
        "reference" => return images::reference(sub, &output),
        "agent" => return Err(CliError::NotYet("the agent with its operator API")),
        "record" | "replay" => return Err(CliError::NotYet("recording and replaying pulls")),
        _ => {}
    }
    let file = sub.get_one::<String>("config").cloned().or_else(|| std::env::var("KEELBLOCK_CONFIG").ok());
    let mut config = Config::layered(
        file.as_deref().map(std::path::Path::new),
        |name| std::env::var(name).ok(),
        args::typed_flags(sub),
    )?;
    config.mounts_must_outlive = name == "provision";
    config.arguments_replace_cmd = true;
    config.leave_garbage = true;
    if name == args::COLLECT {
        // Whoever starts it is root already, of a user namespace perhaps.
        return collect::collect(&config);
    }
    if rootless::is_needed() {
        be_root(name, sub, &config)?;
    }
    let (log, flush) = crate::logging::to_stderr(config.log_level, config.log_json);
    for flag in &config.without_effect {
        slog::warn!(log, "a flag has no effect here"; "flag" => flag);
    }
    let quiet = sub.get_flag("quiet");
    let context = Context { matches: sub, config, log, output, quiet };
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()
        .map_err(|source| CliError::Io { act: "start the runtime", source })?;
    let result = runtime.block_on(async {
        match name {
            "pull" => images::pull(&context).await,
            "images" => images::list(&context).await,
            "prune" => images::prune(&context).await,
            "scrub" => scrub::scrub(&context).await,
            "inspect" => containers::inspect(&context).await,
            "provision" => containers::provision(&context).await,
            "destroy" => containers::destroy(&context).await,
            "ps" => containers::list(&context).await,
            "kill" => containers::kill(&context).await,
            "wait" => containers::wait(&context).await,
            "exec" => run::exec(&context).await,
            "trust" => appc::trust(&context).await,
            "untrust" => appc::untrust(&context),
            "keys" => appc::keys(&context),
            _ => run::run(&context).await,
        }
    });
    // These act on others' processes and have no rights of a root of ours.
    if !matches!(name, "kill" | "wait" | "exec") {
        collect::hand_over(&context.config, &context.log);
    }
    drop(flush);
    result
}

/// Makes this process root of a user namespace, as its command needs it. There is one thread yet.
fn be_root(name: &str, sub: &ArgMatches, config: &Config) -> Result<(), CliError> {
    match name {
        // They reach for processes of another command's namespace, which none of ours may.
        "kill" | "wait" => {}
        "exec" => {
            let id = sub.get_one::<String>("id").map(String::as_str).unwrap_or_default();
            let found = DiskRecords::open(&config.work_dir)?.read(&containers::container_id(id)?)?;
            if let Some(owner) = found.and_then(|found| found.container).and_then(|record| record.owner) {
                rootless::join(&owner)?;
            }
        }
        _ => {
            rootless::enter()?;
        }
    }
    Ok(())
}
