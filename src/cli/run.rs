//! `run` and `exec`: a command in a container, with this process's streams, terminal and signals.

use std::io::IsTerminal;
use std::path::PathBuf;
use std::sync::Arc;

use clap::ArgMatches;
use keelblock_actors::container::{CommandSpec, ContainerId, ContainerSpec, ExitStatus, Resources};
use keelblock_actors::error::ContainerError;
use keelblock_actors::image::name::ImageRequest;
use keelblock_actors::launch::{CapabilitySet, StdioSpec};
use keelblock_actors::ports::{ExecSpec, Launched};
use serde_json::json;
use tokio::signal::unix::{Signal, SignalKind, signal};

use super::containers::container_id;
use super::images::{image_json, image_name};
use super::volumes::volumes;
use super::{CliError, Context, bars};
use crate::agent::Agent;
use crate::config::values;
use crate::isolator::{DEFAULT_CAPABILITIES, parse_capabilities};
use crate::launcher::Terminal;

pub(super) async fn run(context: &Context<'_>) -> Result<u8, CliError> {
    let spec = spec(context)?;
    let id = spec.id.clone();
    let mut signals = Signals::listen()?;
    context
        .output
        .keep_containers_off()
        .map_err(|source| CliError::Io { act: "set standard output aside", source })?;
    let agent = context.agent(bars::observer(context.quiet, false)).await?;
    context.collect_leftovers();
    let result = run_with(context, &agent, spec, &mut signals).await;
    // Whatever happened, the container goes; a failed launch has taken itself down already.
    let destroyed = match &result {
        Ok(_) => agent.destroy(id.clone()).await.map(|_| ()),
        Err(_) => Ok(()),
    };
    agent.shutdown().await;
    let (status, image) = result?;
    match destroyed {
        // Somebody else destroyed it meanwhile.
        Err(error) if matches!(&*error, ContainerError::Unknown { .. }) => {}
        destroyed => destroyed?,
    }
    if context.output.is_json() {
        let document = json!({ "container_id": id, "exit_status": status.code(), "image": image });
        context.output.print(&document, String::new);
    }
    Ok(exit_code(status))
}

fn exit_code(status: ExitStatus) -> u8 {
    u8::try_from(status.code()).unwrap_or(u8::MAX)
}

async fn run_with(
    context: &Context<'_>,
    agent: &Agent,
    spec: ContainerSpec,
    signals: &mut Signals,
) -> Result<(ExitStatus, serde_json::Value), CliError> {
    let (id, tty) = (spec.id.clone(), spec.tty);
    let name = spec.image.as_ref().map(|request| request.name.to_string());
    let mut launch = std::pin::pin!(agent.launch(spec));
    let (mut asked, mut pending) = (None, Vec::new());
    let running = loop {
        tokio::select! {
            running = &mut launch => match (running, asked) {
                (Ok(running), _) => break running,
                // Given up because of the signal: that is how it ended.
                (Err(_), Some(number)) => return Ok((ExitStatus::Signaled(number), json!(null))),
                (Err(error), None) => return Err(about_image(error, name)),
            },
            // Without a process yet the launch is given up, the pull with it if nobody else waits for it.
            number = signals.next() => match agent.kill(id.clone(), number).await {
                Ok(()) => asked = Some(number),
                // Between the two: its command gets the signal as soon as there is one.
                Err(_) => pending.push(number),
            },
        }
    };
    for number in pending {
        let _ = running.process.signal(number);
    }
    // What was pulled for it need not wait for its end.
    context.collect_leftovers();
    let image = running.image.as_ref().map(image_json);
    let status = wait_attached(agent, tty, &running.process, signals).await?;
    running.process.started().await?;
    Ok((status, json!(image)))
}

/// Isolators know a container by its ID, which nobody chose: their errors get the name of the image.
fn about_image(error: Arc<ContainerError>, image: Option<String>) -> CliError {
    match (&*error, image) {
        (ContainerError::Isolator(_), Some(image)) => CliError::Run { image, source: error },
        _ => error.into(),
    }
}

/// As [`wait_forwarding`], with this process's terminal joined to the container's meanwhile.
async fn wait_attached(
    agent: &Agent,
    tty: bool,
    process: &Arc<dyn Launched>,
    signals: &mut Signals,
) -> Result<ExitStatus, CliError> {
    let master = if tty { agent.terminal(process) } else { None };
    let terminal = master.map(Terminal::attach).transpose()?;
    let status = wait_forwarding(process, signals).await;
    if let Some(terminal) = terminal {
        terminal.finish();
    }
    Ok(status)
}

/// How the command ended; every signal that comes meanwhile goes to it.
async fn wait_forwarding(process: &Arc<dyn Launched>, signals: &mut Signals) -> ExitStatus {
    let mut ended = process.wait();
    loop {
        tokio::select! {
            status = &mut ended => return status,
            // A command that is gone by now needs no signal.
            number = signals.next() => { let _ = process.signal(number); }
        }
    }
}

pub(super) async fn exec(context: &Context<'_>) -> Result<u8, CliError> {
    let matches = context.matches;
    let text = |name: &str| matches.get_one::<String>(name).cloned();
    let id = container_id(&text("id").unwrap_or_default())?;
    let mut argv: Vec<_> = matches.get_many::<String>("argv").into_iter().flatten().cloned().collect();
    if argv.first().is_some_and(|first| first == "--") {
        argv.remove(0);
    }
    let spec = ExecSpec {
        argv,
        environment: environment(matches)?,
        user: text("user"),
        working_directory: text("workdir").map(PathBuf::from),
        tty: wants_terminal(matches),
    };
    let tty = spec.tty;
    let mut signals = Signals::listen()?;
    context
        .output
        .keep_containers_off()
        .map_err(|source| CliError::Io { act: "set standard output aside", source })?;
    let agent = context.onlooker()?;
    let result = agent.exec(id.clone(), spec).await;
    let status = match result {
        Ok(executed) => wait_attached(&agent, tty, &executed.process, &mut signals).await,
        Err(error) => Err(error.into()),
    };
    agent.shutdown().await;
    let status = status?;
    if context.output.is_json() {
        context.output.print(&json!({ "container_id": id, "exit_status": status.code() }), String::new);
    }
    Ok(exit_code(status))
}

/// The container that the options of `run` describe.
fn spec(context: &Context<'_>) -> Result<ContainerSpec, CliError> {
    let matches = context.matches;
    let text = |name: &str| matches.get_one::<String>(name).cloned();
    let many =
        |name: &str| -> Vec<String> { matches.get_many(name).into_iter().flatten().cloned().collect() };
    let mut argv = many("argv");
    let image = if matches.get_flag("host_root") {
        None
    } else {
        let name = argv.first().cloned().unwrap_or_default();
        argv.drain(..1);
        Some(ImageRequest::cached(image_name(&name)?))
    };
    if argv.first().is_some_and(|first| first == "--") {
        argv.remove(0);
    }
    if image.is_none() && argv.is_empty() {
        return Err(CliError::Usage("--host_root needs a command to run".to_owned()));
    }
    let volumes = volumes(matches)?;
    let shell = matches.get_flag("shell");
    let mut command = CommandSpec {
        shell,
        value: None,
        arguments: argv,
        environment: environment(matches)?,
        user: text("user"),
        working_directory: text("workdir").map(PathBuf::from),
    };
    match text("entrypoint") {
        Some(_) if shell => {
            return Err(CliError::Usage("--shell and --entrypoint exclude each other".to_owned()));
        }
        Some(file) => {
            command.arguments.insert(0, file.clone());
            command.value = Some(file);
        }
        None if shell => command.value = Some(command.arguments.drain(..).collect::<Vec<_>>().join(" ")),
        // Without an image there is no entrypoint to add to: the arguments are the command.
        None if image.is_none() => command.value = command.arguments.first().cloned(),
        None => {}
    }
    let id = match text("id") {
        Some(id) => container_id(&id)?,
        None => random_id(),
    };
    let effective = capability_changes(context, &many("cap_add"), &many("cap_drop"))?;
    let tty = wants_terminal(matches);
    Ok(ContainerSpec {
        id,
        image,
        command,
        volumes,
        read_only: matches.get_flag("read_only"),
        tty,
        stdio: StdioSpec::Inherit,
        effective_capabilities: effective,
        bounding_capabilities: None,
        resources: resources(text("memory"), text("cpus"))?,
    })
}

fn wants_terminal(matches: &ArgMatches) -> bool {
    matches.get_flag("tty") || (std::io::stdin().is_terminal() && std::io::stdout().is_terminal())
}

fn environment(matches: &ArgMatches) -> Result<Vec<(String, String)>, CliError> {
    let variables = matches.get_many::<String>("env").into_iter().flatten();
    let split = |text: &String| match text.split_once('=') {
        Some(("", _)) | None => {
            Err(CliError::Usage(format!("--env={text}: expected NAME=VALUE, the value may be empty")))
        }
        Some((name, value)) => Ok((name.to_owned(), value.to_owned())),
    };
    variables.map(split).collect()
}

fn resources(memory: Option<String>, cpus: Option<String>) -> Result<Resources, CliError> {
    let wrong = |flag, text: &str, reason: String| CliError::Usage(format!("--{flag}={text}: {reason}"));
    let memory_bytes =
        memory.map(|text| values::bytes(&text).map_err(|reason| wrong("memory", &text, reason)));
    let cpu_millis =
        cpus.map(|text| values::thousandths(&text).map_err(|reason| wrong("cpus", &text, reason)));
    Ok(Resources {
        memory_bytes: memory_bytes.transpose()?,
        cpu_millis: cpu_millis.transpose()?,
        ..Resources::default()
    })
}

/// `None` when nothing was asked for.
fn capability_changes(
    context: &Context<'_>,
    add: &[String],
    drop: &[String],
) -> Result<Option<CapabilitySet>, CliError> {
    if add.is_empty() && drop.is_empty() {
        return Ok(None);
    }
    let union = |texts: &[String]| {
        texts.iter().try_fold(0, |set, text| match parse_capabilities(text) {
            Ok(more) => Ok(set | more.0),
            Err(error) => Err(CliError::Usage(error.to_string())),
        })
    };
    let default = || CapabilitySet(DEFAULT_CAPABILITIES.iter().fold(0, |set, one| set | one.bitmask()));
    let base = context.config.effective_capabilities.unwrap_or_else(default);
    Ok(Some(CapabilitySet((base.0 | union(add)?) & !union(drop)?)))
}

/// Twelve hex digits, as other tools make them; a clash is refused, not harmful.
fn random_id() -> ContainerId {
    use std::hash::{BuildHasher, Hasher};
    loop {
        let mut hasher = std::hash::RandomState::new().build_hasher();
        hasher.write_u32(std::process::id());
        let text = format!("{:012x}", hasher.finish() >> 16);
        if let Ok(id) = text.parse() {
            return id;
        }
    }
}

/// The signals that go on to the container's command.
struct Signals(Vec<(i32, Signal)>);

impl Signals {
    fn listen() -> Result<Self, CliError> {
        let kinds = [
            SignalKind::hangup(),
            SignalKind::interrupt(),
            SignalKind::quit(),
            SignalKind::terminate(),
            SignalKind::user_defined1(),
            SignalKind::user_defined2(),
            SignalKind::alarm(),
        ];
        let listen = |kind: SignalKind| {
            signal(kind)
                .map(|stream| (kind.as_raw_value(), stream))
                .map_err(|source| CliError::Io { act: "listen for signals", source })
        };
        kinds.into_iter().map(listen).collect::<Result<_, _>>().map(Self)
    }

    /// The number of the next signal. Cancel safe.
    async fn next(&mut self) -> i32 {
        std::future::poll_fn(|cx| {
            for (number, stream) in &mut self.0 {
                if let std::task::Poll::Ready(Some(())) = stream.poll_recv(cx) {
                    return std::task::Poll::Ready(*number);
                }
            }
            std::task::Poll::Pending
        })
        .await
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn random_ids_are_valid_and_differ() {
        assert_ne!(random_id(), random_id());
    }
}
