//! `keelblock scrub`: whether layers are on disk what was written.

use std::collections::BTreeSet;

use keelblock_actors::image::digest::DiffId;
use keelblock_actors::stop::Stop;
use serde_json::json;

use super::images::image_name;
use super::output::{human_bytes, one_line, table};
use super::{CliError, Context};
use crate::agent::Agent;
use crate::store::{DiskStore, Form, Privileges, Scrubbed, Verdict};

pub(super) async fn scrub(context: &Context<'_>) -> Result<u8, CliError> {
    let agent = context.quiet_agent().await?;
    let done = looked_at(context, &agent).await;
    agent.shutdown().await;
    let rows = done?;
    let bad = rows.iter().filter(|(layer, _)| matches!(layer.verdict, Verdict::Bad(_))).count();
    let failure = (bad > 0).then_some(CliError::Scrubbed { bad, looked_at: rows.len() });
    // The document says which; so it comes also with a failure, whose own would be a second one.
    let documents: Vec<_> = rows.iter().map(|(layer, users)| document(layer, users)).collect();
    context.output.print(&documents, || text(&rows));
    match failure {
        Some(error) if context.output.is_json() => {
            eprintln!("keelblock: {error}");
            Ok(error.exit_status())
        }
        Some(error) => Err(error),
        None => Ok(0),
    }
}

/// The layers with the containers on them.
async fn looked_at(context: &Context<'_>, agent: &Agent) -> Result<Vec<(Scrubbed, Vec<String>)>, CliError> {
    let config = &context.config;
    let privileges =
        Privileges::detect().map_err(|source| CliError::Io { act: "see what it may do", source })?;
    let store = DiskStore::open(&config.store_dir(), config.limits.clone(), privileges, context.log.clone())?;
    let layers = wanted(context, agent, &store).await?;
    let rate = context.matches.get_one::<u64>("scrub_rate").copied().unwrap_or_default();
    let mut scrubbed = Vec::new();
    for layer in &layers {
        scrubbed.extend(store.scrub(layer, rate, &Stop::default())?);
    }
    let containers = agent.containers().await?;
    let users = |layer: &DiffId| {
        let on_it = containers
            .iter()
            .filter(|found| found.rootfses.as_ref().is_some_and(|record| record.layers.contains(layer)));
        on_it.map(|found| found.id.to_string()).collect()
    };
    Ok(scrubbed
        .into_iter()
        .map(|layer| {
            let users = users(&layer.diff_id);
            (layer, users)
        })
        .collect())
}

/// The layers that were named, or all.
async fn wanted(
    context: &Context<'_>,
    agent: &Agent,
    store: &DiskStore,
) -> Result<BTreeSet<DiffId>, CliError> {
    let all = store.layers()?;
    let names: Vec<_> = context.matches.get_many::<String>("names").into_iter().flatten().collect();
    if names.is_empty() {
        return Ok(all.into_iter().collect());
    }
    let images = agent.images().await?;
    let mut wanted = BTreeSet::new();
    for name in names {
        if let Some(layer) = all.iter().find(|layer| layer.to_string() == *name) {
            wanted.insert(layer.clone());
            continue;
        }
        let image = image_name(name).ok().map(|name| agent.canonical(&name));
        let image = images.iter().find(|found| Some(&found.record.plan.identity.name) == image.as_ref());
        let image = image.ok_or_else(|| CliError::Unknown(keelblock_actors::error::quote(name)))?;
        wanted.extend(image.record.layers.iter().map(|layer| layer.diff_id.clone()));
    }
    Ok(wanted)
}

fn form(layer: &Scrubbed) -> &'static str {
    match layer.form {
        Some(Form::Tree) => "tree",
        Some(Form::Erofs) => "erofs",
        None => "unknown",
    }
}

fn result(layer: &Scrubbed) -> (&'static str, Option<&str>) {
    match &layer.verdict {
        Verdict::Whole => ("whole", None),
        Verdict::NotVerifiable => ("not verifiable", None),
        Verdict::Bad(why) => ("bad", Some(why)),
    }
}

fn document(layer: &Scrubbed, users: &[String]) -> serde_json::Value {
    let (result, why) = result(layer);
    json!({
        "layer": layer.diff_id,
        "form": form(layer),
        "bytes": layer.bytes,
        "result": result,
        "why": why,
        "containers": users,
    })
}

fn text(rows: &[(Scrubbed, Vec<String>)]) -> String {
    let rows: Vec<_> = rows
        .iter()
        .map(|(layer, users)| {
            let (result, why) = result(layer);
            let result = why.map_or(result.to_owned(), |why| one_line(&format!("{result}: {why}")));
            vec![
                layer.diff_id.to_string(),
                form(layer).to_owned(),
                human_bytes(layer.bytes),
                result,
                users.join(","),
            ]
        })
        .collect();
    table(&["LAYER", "FORM", "READ", "RESULT", "CONTAINERS"], &rows)
}
