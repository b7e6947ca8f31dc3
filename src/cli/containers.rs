//! Commands about containers of any process on the work directory: provision, destroy, ps, inspect, kill, wait.

use std::sync::Arc;

use keelblock_actors::container::{ContainerId, ContainerRecord};
use keelblock_actors::error::{ContainerError, chain};
use keelblock_actors::image::name::{ImageKind, ImageRequest};
use keelblock_actors::image::plan::ImageIdentity;
use keelblock_actors::ports::{Found, Owner};
use serde_json::{Value, json};

use super::images::{image_json, image_name, record_json};
use super::output::{ago, table};
use super::{CliError, Context, bars};
use crate::provider::appc::manifest::to_json;
use crate::scrub::damaged_layers;
use crate::store::Quarantined;
use crate::stores::Stores;

/// A container ID from the command line.
pub(super) fn container_id(text: &str) -> Result<ContainerId, CliError> {
    text.parse().map_err(|error| CliError::Usage(format!("{error}")))
}

fn ids(context: &Context<'_>) -> Result<Vec<ContainerId>, CliError> {
    context.matches.get_many::<String>("ids").into_iter().flatten().map(|text| container_id(text)).collect()
}

fn text<'a>(context: &'a Context<'_>, name: &str) -> &'a str {
    context.matches.get_one::<String>(name).map(String::as_str).unwrap_or_default()
}

pub(super) async fn provision(context: &Context<'_>) -> Result<u8, CliError> {
    let id = container_id(text(context, "id"))?;
    let request = ImageRequest::cached(image_name(text(context, "image"))?);
    let agent = context.agent(bars::observer(context.quiet, false)).await?;
    let provisioned = agent.provision(id.clone(), request).await;
    agent.shutdown().await;
    let provisioned = provisioned?;
    let layers: Vec<_> = provisioned.image.layers.iter().map(|layer| &layer.diff_id).collect();
    let document = json!({
        "container_id": id,
        "rootfs": provisioned.rootfs.path,
        "backend": provisioned.rootfs.backend,
        "read_only": provisioned.rootfs.read_only,
        "image": image_json(&provisioned.image.identity),
        "layers": layers,
    });
    context.output.print(&document, || format!("{}\n", provisioned.rootfs.path.display()));
    Ok(0)
}

pub(super) async fn destroy(context: &Context<'_>) -> Result<u8, CliError> {
    let ids = ids(context)?;
    let agent = context.quiet_agent().await?;
    let results = futures_util::future::join_all(ids.iter().map(|id| agent.destroy(id.clone()))).await;
    agent.shutdown().await;
    let done: Vec<_> =
        ids.iter().zip(&results).filter(|(_, result)| result.is_ok()).map(|(id, _)| id).collect();
    let failed: Vec<_> = results.iter().filter_map(|result| result.as_ref().err().cloned()).collect();
    if failed.is_empty() || !context.output.is_json() {
        context
            .output
            .print(&json!({ "destroyed": done }), || done.iter().map(|id| format!("{id}\n")).collect());
    }
    several(failed)
}

/// One error as it is, several on one line, none as success.
fn several(mut failed: Vec<Arc<ContainerError>>) -> Result<u8, CliError> {
    match failed.len() {
        0 => Ok(0),
        1 => Err(failed.remove(0).into()),
        _ => {
            Err(CliError::Several(failed.iter().map(|error| chain(&**error)).collect::<Vec<_>>().join("; ")))
        }
    }
}

fn document(found: &Found, quarantined: &[Quarantined]) -> Value {
    let record = found.container.as_ref();
    let image = record.and_then(|record| record.image.as_ref());
    let owner = match found.owner {
        Owner::Us | Owner::Other => record.and_then(|record| record.owner.as_ref()).map(|owner| owner.pid),
        Owner::Nobody => None,
    };
    let rootfses = found.rootfses.as_ref();
    json!({
        "container_id": found.id,
        "phase": record.map(|record| record.phase),
        "created": record.map(|record| crate::logging::rfc3339_of(record.created_ms)),
        "pid": record.and_then(|record| record.init.as_ref()).map(|init| init.pid),
        "owner_pid": owner,
        "image": image.map(image_json),
        "rootfs": record.and_then(|record| record.rootfs.as_ref()),
        "command": record.map(|record| &record.argv),
        "image_isolators": record.map(|record| &record.image_isolators),
        "layers": rootfses.map(|record| &record.layers),
        "damaged_layers": damaged_layers(found, quarantined),
        "backends": rootfses.map(|record| record.rootfses.iter().map(|(_, backend)| backend).collect::<Vec<_>>()),
    })
}

pub(super) async fn list(context: &Context<'_>) -> Result<u8, CliError> {
    let agent = context.quiet_agent().await?;
    let found = agent.containers().await;
    agent.shutdown().await;
    let found = found?;
    let quarantined = Stores::quarantined(&context.config.store_dirs())?;
    let documents: Vec<_> = found.iter().map(|found| document(found, &quarantined)).collect();
    context.output.print(&documents, || {
        let rows: Vec<_> = found
            .iter()
            .map(|found| {
                let from = |f: &dyn Fn(&ContainerRecord) -> String| {
                    found.container.as_ref().map_or_else(|| "-".to_owned(), f)
                };
                vec![
                    found.id.to_string(),
                    from(&|record| {
                        record.image.as_ref().map_or_else(|| "-".to_owned(), |image| image.name.reference())
                    }),
                    match damaged_layers(found, &quarantined).is_empty() {
                        true => from(&|record| record.phase.to_string()),
                        false => from(&|record| record.phase.to_string()) + " (damaged layer)",
                    },
                    from(&|record| {
                        record.init.as_ref().map_or_else(|| "-".to_owned(), |init| init.pid.to_string())
                    }),
                    from(&|record| ago(record.created_ms)),
                    from(&|record| command(&record.argv)),
                ]
            })
            .collect();
        table(&["ID", "IMAGE", "PHASE", "PID", "CREATED", "COMMAND"], &rows)
    });
    Ok(0)
}

/// A command on one line of a table, cut.
fn command(argv: &[String]) -> String {
    let line = super::output::one_line(&argv.join(" "));
    if line.chars().count() <= 40 { line } else { line.chars().take(37).chain("...".chars()).collect() }
}

pub(super) async fn inspect(context: &Context<'_>) -> Result<u8, CliError> {
    let name = text(context, "name");
    let agent = context.quiet_agent().await?;
    let result = inspect_with(context, &agent, name).await;
    agent.shutdown().await;
    let document = result?;
    // The document is what people want of inspect, too.
    context.output.print(&document, || format!("{document:#}\n"));
    Ok(0)
}

async fn inspect_with(
    context: &Context<'_>,
    agent: &crate::agent::Agent,
    name: &str,
) -> Result<Value, CliError> {
    let containers = agent.containers().await?;
    if let Some(found) = containers.iter().find(|found| found.id.as_str() == name) {
        return Ok(document(found, &Stores::quarantined(&context.config.store_dirs())?));
    }
    let wanted = image_name(name).ok().map(|name| agent.canonical(&name));
    for image in agent.images().await? {
        let identity = &image.record.plan.identity;
        if is_called(identity, name) || wanted.as_ref() == Some(&identity.name) {
            let mut document = record_json(&image.record, image.bytes);
            let users = containers.iter().filter(|found| {
                found.rootfses.as_ref().is_some_and(|record| record.images.contains(identity))
            });
            document["containers"] = json!(users.map(|found| &found.id).collect::<Vec<_>>());
            match &image.record.plan.runtime.appc {
                Some(manifest) => document["manifest"] = to_json(manifest),
                None => document["config"] = json!(image.record.plan.runtime),
            }
            document["blobs"] =
                json!(image.record.plan.layers.iter().map(|layer| &layer.blob).collect::<Vec<_>>());
            return Ok(document);
        }
    }
    Err(CliError::Unknown(keelblock_actors::error::quote(name)))
}

/// Whether a text is the ID of an image, or the beginning of it.
fn is_called(image: &ImageIdentity, text: &str) -> bool {
    let appc = image.kind() == ImageKind::Appc;
    let text = text.strip_prefix("appc:").filter(|_| appc).unwrap_or(text);
    let prefixes: &[&str] = if appc { &["sha512-", "sha512:"] } else { &["sha256:"] };
    let hex = prefixes.iter().find_map(|prefix| text.strip_prefix(prefix)).unwrap_or(text);
    text.len() >= 12 && !hex.is_empty() && image.config.hex().starts_with(hex)
}

pub(super) async fn kill(context: &Context<'_>) -> Result<u8, CliError> {
    let ids = ids(context)?;
    let signal = signal_number(text(context, "signal"))?;
    let agent = context.onlooker()?;
    let results = futures_util::future::join_all(ids.iter().map(|id| agent.kill(id.clone(), signal))).await;
    agent.shutdown().await;
    let failed: Vec<_> = results.into_iter().filter_map(Result::err).collect();
    if failed.is_empty() {
        context.output.print(&json!({ "signal": signal, "signaled": ids }), String::new);
    }
    several(failed)
}

/// `TERM`, `SIGTERM`, `sigterm` or `15`.
fn signal_number(text: &str) -> Result<i32, CliError> {
    let upper = text.to_ascii_uppercase();
    let name = if upper.starts_with("SIG") { upper } else { format!("SIG{upper}") };
    let by_name = name.parse::<nix::sys::signal::Signal>().map(|signal| signal as i32).ok();
    // Real-time signals have numbers only.
    let by_number = || text.parse().ok().filter(|number| (1..=64).contains(number));
    by_name.or_else(by_number).ok_or_else(|| {
        CliError::Usage(format!("{text:?} is no signal; use a name as in kill -l, or a number from 1 to 64"))
    })
}

pub(super) async fn wait(context: &Context<'_>) -> Result<u8, CliError> {
    let id = container_id(text(context, "id"))?;
    let agent = context.onlooker()?;
    let status = agent.wait(id.clone()).await;
    agent.shutdown().await;
    let status = status?;
    let code = status.map(|status| status.code());
    let document = json!({ "container_id": id, "exit_status": code });
    context.output.print(&document, || match code {
        Some(code) => format!("{code}\n"),
        None => "unknown\n".to_owned(),
    });
    Ok(0)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn signals_have_names_and_numbers() {
        for text in ["TERM", "SIGTERM", "sigterm", "15"] {
            assert_eq!(signal_number(text).unwrap(), 15);
        }
        assert_eq!(signal_number("64").unwrap(), 64);
        for text in ["", "0", "65", "-9", "NOPE"] {
            assert!(signal_number(text).is_err(), "{text}");
        }
    }
}
