//! `keelblock scrub`: whether layers are on disk what was written, and the bad ones anew.

use std::collections::BTreeSet;

use keelblock_actors::error::chain;
use keelblock_actors::image::digest::DiffId;
use keelblock_actors::image::name::ImageRequest;
use keelblock_actors::image::plan::LayerKey;
use keelblock_actors::ports::Store;
use keelblock_actors::stop::Stop;
use serde_json::json;

use super::images::image_name;
use super::output::{human_bytes, one_line, table};
use super::{CliError, Context};
use crate::agent::Agent;
use crate::scrub::standing_on;
use crate::store::{Form, Privileges, Scrubbed, Standing, StoreSettings, Verdict};
use crate::stores::Stores;

/// A layer that was looked at, the containers on it, and what was done about it.
struct Row {
    layer: Scrubbed,
    users: Vec<Standing>,
    repair: Repair,
}

enum Repair {
    /// Nothing: it is not bad, or nothing was to be done.
    None,
    /// It was pulled again.
    Pulled,
    /// It was moved to quarantine, and no image names it.
    Unnamed,
    /// It was moved to quarantine, and is not there; why.
    Failed(String),
}

impl Row {
    fn stays_bad(&self) -> bool {
        matches!(self.layer.verdict, Verdict::Bad(_))
            && matches!(self.repair, Repair::None | Repair::Failed(_))
    }
}

pub(super) async fn scrub(context: &Context<'_>) -> Result<u8, CliError> {
    let agent = context.quiet_agent().await?;
    let done = looked_at(context, &agent).await;
    agent.shutdown().await;
    let rows = done?;
    let bad = rows.iter().filter(|row| row.stays_bad()).count();
    let why = rows.iter().find_map(|row| match &row.repair {
        Repair::Failed(why) => Some(why.clone()),
        _ => None,
    });
    let failure = (bad > 0).then_some(CliError::Scrubbed { bad, looked_at: rows.len(), why });
    // The document says which; so it comes also with a failure, whose own would be a second one.
    let documents: Vec<_> = rows.iter().map(document).collect();
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

/// Looks at the layers, and brings bad ones again.
async fn looked_at(context: &Context<'_>, agent: &Agent) -> Result<Vec<Row>, CliError> {
    let config = &context.config;
    let privileges =
        Privileges::detect().map_err(|source| CliError::Io { act: "see what it may do", source })?;
    let settings = || StoreSettings::new(config.limits.clone(), privileges);
    let store = Stores::open(&config.store_dirs(), settings, &context.log)?;
    let layers = wanted(context, agent, &store).await?;
    let rate = config.scrub_rate.unwrap_or_default();
    let mut rows = Vec::new();
    for layer in &layers {
        let scrubbed = store.scrub(layer, rate, &Stop::default())?;
        rows.extend(scrubbed.map(|layer| Row { layer, users: Vec::new(), repair: Repair::None }));
    }
    let containers = agent.containers().await?;
    for row in &mut rows {
        row.users = standing_on(&containers, &row.layer.diff_id);
    }
    if !context.matches.get_flag("no_repair") {
        for row in rows.iter_mut().filter(|row| matches!(row.layer.verdict, Verdict::Bad(_))) {
            row.repair = repair(&store, agent, &row.layer.diff_id, &row.users).await?;
        }
    }
    Ok(rows)
}

/// Moves a layer out of the way and pulls the images that name it: of all their layers that one is missing.
async fn repair(
    store: &Stores,
    agent: &Agent,
    layer: &DiffId,
    users: &[Standing],
) -> Result<Repair, CliError> {
    let images = agent.images().await?;
    store.quarantine(layer, users)?;
    let named = images.into_iter().filter(|image| image.record.layers.iter().any(|of| of.diff_id == *layer));
    let mut failed = None;
    for image in named {
        let name = image.record.plan.identity.name;
        match agent.pull(ImageRequest::cached(name.clone())).await {
            Ok(_) if store.find(&LayerKey::Diff(layer.clone()))?.is_some() => return Ok(Repair::Pulled),
            Ok(_) => failed = Some(format!("{name} has other layers now")),
            Err(error) => failed = Some(chain(&*error)),
        }
    }
    Ok(failed.map_or(Repair::Unnamed, Repair::Failed))
}

/// The layers that were named, or all.
async fn wanted(context: &Context<'_>, agent: &Agent, store: &Stores) -> Result<BTreeSet<DiffId>, CliError> {
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

fn repaired(repair: &Repair) -> Option<&'static str> {
    match repair {
        Repair::None => None,
        Repair::Pulled => Some("pulled again"),
        Repair::Unnamed => Some("removed: no image names it"),
        Repair::Failed(_) => Some("not pulled again"),
    }
}

fn document(row: &Row) -> serde_json::Value {
    let (result, why) = result(&row.layer);
    json!({
        "layer": row.layer.diff_id,
        "form": form(&row.layer),
        "bytes": row.layer.bytes,
        "result": result,
        "why": why,
        "containers": row.users.iter().map(|user| &user.container).collect::<Vec<_>>(),
        "repair": repaired(&row.repair),
    })
}

fn text(rows: &[Row]) -> String {
    let rows: Vec<_> = rows
        .iter()
        .map(|row| {
            let (result, why) = result(&row.layer);
            let mut result = why.map_or(result.to_owned(), |why| one_line(&format!("{result}: {why}")));
            if let Some(repaired) = repaired(&row.repair) {
                result = format!("{result} ({repaired})");
            }
            vec![
                row.layer.diff_id.to_string(),
                form(&row.layer).to_owned(),
                human_bytes(row.layer.bytes),
                result,
                row.users.iter().map(|user| user.container.as_str()).collect::<Vec<_>>().join(","),
            ]
        })
        .collect();
    table(&["LAYER", "FORM", "READ", "RESULT", "CONTAINERS"], &rows)
}
