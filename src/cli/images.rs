//! Commands about images: pull, images, prune, reference; and the texts made from the command line itself.

use clap::ArgMatches;
use keelblock_actors::error::quote;
use keelblock_actors::image::appc::ImageId;
use keelblock_actors::image::name::{ImageKind, ImageName, ImageRequest, PullPolicy};
use keelblock_actors::image::plan::ImageIdentity;
use keelblock_actors::messages::PulledImage;
use keelblock_actors::ports::{ImageRecord, Keep};
use serde_json::{Value, json};

use super::output::{Output, ago, human_bytes, table};
use super::{CliError, Context, args, bars, collect};
use crate::provider::appc;
use crate::provider::manifest::Platform;

/// An image name from the command line, relative paths made absolute.
pub(super) fn image_name(text: &str) -> Result<ImageName, CliError> {
    // No name of an image begins so: where the rest of a line is the container's, a flag that is none of ours comes here.
    if text.starts_with('-') {
        let flag = quote(text.split('=').next().unwrap_or_default());
        return Err(CliError::Usage(format!("there is no flag {flag:?}; see --help for those there are")));
    }
    let name: ImageName = text.parse().map_err(|error| CliError::Usage(format!("{error}")))?;
    let absolute = |path: &std::path::PathBuf| {
        std::path::absolute(path).map_err(|source| CliError::Io { act: "find the current directory", source })
    };
    Ok(match name {
        ImageName::DockerArchive { path, reference } => {
            ImageName::DockerArchive { path: absolute(&path)?, reference }
        }
        ImageName::OciLayout { path, tag } => ImageName::OciLayout { path: absolute(&path)?, tag },
        ImageName::OciArchive { path, tag } => ImageName::OciArchive { path: absolute(&path)?, tag },
        ImageName::Aci(path) => ImageName::Aci(absolute(&path)?),
        other => other,
    })
}

/// The part of every document that says which image it is.
pub(super) fn image_json(image: &ImageIdentity) -> Value {
    let mut document = json!({
        "kind": image.kind(),
        "reference": image.name.reference(),
        "digest": image.manifest,
        "id": image.config,
    });
    if let Some(id) = image_id(image) {
        document["image_id"] = json!(id);
    }
    document
}

/// What an Appc image is called by its specification.
pub(super) fn image_id(image: &ImageIdentity) -> Option<ImageId> {
    ImageId::of(&image.config).filter(|_| image.kind() == ImageKind::Appc)
}

/// Its digest, for a table: of an Appc image its image ID.
fn shown_digest(image: &ImageIdentity) -> String {
    image_id(image).map_or_else(|| image.manifest.to_string(), |id| id.to_string())
}

pub(super) async fn pull(context: &Context<'_>) -> Result<u8, CliError> {
    let names: Vec<_> = context.matches.get_many::<String>("images").into_iter().flatten().collect();
    let names = names.into_iter().map(|text| image_name(text)).collect::<Result<Vec<_>, _>>()?;
    let agent = context.agent(bars::observer(context.quiet, true)).await?;
    // Who asks for a pull wants to know what the name means now, unless he says otherwise.
    let policy = context.config.image_pull_policy;
    let pulls = names.into_iter().map(|name| {
        agent.pull(ImageRequest { policy: policy.or(Some(PullPolicy::Always)), ..ImageRequest::cached(name) })
    });
    let results = futures_util::future::join_all(pulls).await;
    agent.shutdown().await;
    let (mut pulled, mut failed) = (Vec::new(), Vec::new());
    for result in results {
        match result {
            Ok(image) => pulled.push(image),
            Err(error) => failed.push(error),
        }
    }
    // What was pulled is there, and is said, also when another image failed; a document comes only with success.
    if failed.is_empty() || !context.output.is_json() {
        print_pulled(&context.output, &pulled);
    }
    match failed.len() {
        0 => Ok(0),
        1 => Err(failed.remove(0).into()),
        _ => {
            let lines = failed.iter().map(|error| keelblock_actors::error::chain(&**error));
            Err(CliError::Several(lines.collect::<Vec<_>>().join("; ")))
        }
    }
}

fn print_pulled(output: &Output, pulled: &[PulledImage]) {
    let mut documents: Vec<_> = pulled
        .iter()
        .map(|image| {
            let mut document = image_json(&image.identity);
            document["layers"] = json!(image.layers.iter().map(|layer| &layer.diff_id).collect::<Vec<_>>());
            document["bytes_fetched"] = json!(image.bytes_fetched);
            document["layers_fetched"] = json!(image.layers_fetched);
            document["layers_reused"] = json!(image.layers_reused);
            document["retries"] = json!(image.transfer.retries);
            document["resumed"] = json!(image.transfer.resumed);
            document["bytes_resumed"] = json!(image.transfer.bytes_resumed);
            document["bytes_again"] = json!(image.transfer.bytes_again);
            document
        })
        .collect();
    let document = if documents.len() == 1 { documents.remove(0) } else { Value::Array(documents) };
    output.print(&document, || {
        let rows: Vec<_> = pulled
            .iter()
            .map(|image| {
                vec![
                    image.identity.kind().to_string(),
                    image.identity.name.reference(),
                    // As much of a SHA-512 as of others.
                    shown_digest(&image.identity).chars().take(71).collect(),
                    human_bytes(image.bytes_fetched),
                    format!("{} fetched, {} reused", image.layers_fetched, image.layers_reused),
                ]
            })
            .collect();
        if rows.is_empty() {
            String::new()
        } else {
            table(&["KIND", "REFERENCE", "DIGEST", "FETCHED", "LAYERS"], &rows)
        }
    });
}

/// What is shown of an image in the store.
pub(super) fn record_json(record: &ImageRecord, bytes: u64) -> Value {
    let mut document = image_json(&record.plan.identity);
    document["layers"] = json!(record.layers.iter().map(|layer| &layer.diff_id).collect::<Vec<_>>());
    document["bytes"] = json!(bytes);
    document["pulled"] = json!(crate::logging::rfc3339_of(record.pulled_ms));
    document
}

pub(super) async fn list(context: &Context<'_>) -> Result<u8, CliError> {
    let agent = context.quiet_agent().await?;
    let images = agent.images().await;
    agent.shutdown().await;
    let images = images?;
    let documents: Vec<_> = images.iter().map(|image| record_json(&image.record, image.bytes)).collect();
    context.output.print(&documents, || {
        let rows: Vec<_> = images
            .iter()
            .map(|image| {
                let identity = &image.record.plan.identity;
                vec![
                    identity.kind().to_string(),
                    identity.name.reference(),
                    shown_digest(identity).chars().take(19).collect(),
                    image.record.layers.len().to_string(),
                    human_bytes(image.bytes),
                    ago(image.record.pulled_ms),
                ]
            })
            .collect();
        table(&["KIND", "REFERENCE", "DIGEST", "LAYERS", "SIZE", "PULLED"], &rows)
    });
    Ok(0)
}

pub(super) async fn prune(context: &Context<'_>) -> Result<u8, CliError> {
    let keep = context.matches.get_many::<String>("keep").into_iter().flatten();
    let images = keep.map(|text| image_name(text)).collect::<Result<_, _>>()?;
    let agent = context.quiet_agent().await?;
    let pruned = agent.prune(Keep { images }).await;
    agent.shutdown().await;
    let (mut pruned, mut failure) = (pruned?, None);
    if context.matches.get_flag("wait") {
        failure = collect::sweep(&context.config).failures.into_iter().next();
        pruned.freed = failure.is_none();
    }
    // A document comes only with success.
    if let Some(error) = failure.take_if(|_| context.output.is_json()) {
        return Err(error.into());
    }
    let document = json!({
        "images": pruned.images,
        "layers": pruned.layers,
        "bytes": pruned.bytes,
        "freed": pruned.freed,
    });
    context.output.print(&document, || {
        let images: String = pruned.images.iter().map(|image| format!("{}\n", image.reference())).collect();
        let (count, bytes) = (pruned.layers.len(), human_bytes(pruned.bytes));
        let rest = if pruned.freed || failure.is_some() { "" } else { ", being freed in the background" };
        format!("{images}removed {} images, {count} layers, {bytes}{rest}\n", pruned.images.len())
    });
    failure.map_or(Ok(0), |error| Err(error.into()))
}

pub(super) fn reference(sub: &ArgMatches, output: &Output) -> Result<u8, CliError> {
    let text = sub.get_one::<String>("name").map(String::as_str).unwrap_or_default();
    let name: ImageName = text.parse().map_err(|error| CliError::Several(format!("{error}")))?;
    let platform = sub.get_one::<String>("platform").map(|text| text.parse::<Platform>()).transpose();
    let platform = platform.map_err(|error| CliError::Usage(format!("--platform: {error}")))?;
    let canonical = appc::canonical(&name.canonical(), &platform.unwrap_or_else(Platform::host));
    let document = json!({ "kind": canonical.kind(), "reference": canonical.reference() });
    output.print(&document, || format!("{}\n", canonical.reference()));
    Ok(0)
}

pub(super) fn completions(sub: &ArgMatches) -> Result<u8, CliError> {
    if let Some(&shell) = sub.get_one::<clap_complete::Shell>("shell") {
        clap_complete::generate(shell, &mut args::command(), "keelblock", &mut std::io::stdout());
    }
    Ok(0)
}

pub(super) fn man() -> Result<u8, CliError> {
    let page = clap_mangen::Man::new(args::command());
    page.render(&mut std::io::stdout())
        .map_err(|source| CliError::Io { act: "print the manual page", source })?;
    Ok(0)
}
