//! `keelblock appc`: which keys are trusted to sign Appc images.

use std::collections::BTreeSet;
use std::io::{BufRead, IsTerminal, Read, Write};
use std::path::Path;

use keelblock_actors::image::appc::AcIdentifier;
use serde_json::{Value, json};

use super::output::{one_line, table};
use super::{CliError, Context};
use crate::agent::Agent;
use crate::provider::appc::trust::{
    Certificate, FormatError, KEY_FILE_BYTES_MAX, Scope, TrustError, TrustStore, date, now, read_keys,
};

/// Bytes of an answer that are read. 64: `y`, `yes`, or some other word.
const ANSWER_BYTES_MAX: u64 = 64;

/// User IDs of a key that people are shown. 8: a person has some addresses; a key may have thousands.
const USER_IDS_SHOWN_MAX: usize = 8;

/// A key that was read, and where from.
struct Offered {
    certificate: Certificate,
    from: String,
}

fn scope(context: &Context<'_>) -> Result<Option<Scope>, CliError> {
    if context.matches.get_flag("root") {
        return Ok(Some(Scope::Root));
    }
    let prefix = context.matches.get_one::<String>("prefix");
    let parsed = prefix.map(|text| text.parse::<AcIdentifier>().map(Scope::Prefix)).transpose();
    parsed.map_err(|error| CliError::Usage(format!("--prefix: {error}")))
}

/// A fingerprint as people write it: in groups, upper case, with `0x`.
fn fingerprint(text: &str) -> Result<String, CliError> {
    let plain: String = text.chars().filter(|c| !c.is_whitespace()).collect::<String>().to_ascii_lowercase();
    let plain = plain.strip_prefix("0x").unwrap_or(&plain);
    if matches!(plain.len(), 40 | 64) && plain.bytes().all(|byte| byte.is_ascii_hexdigit()) {
        return Ok(plain.to_owned());
    }
    Err(CliError::Usage(format!(
        "{text:?} is no fingerprint: it must be all 40 or 64 hexadecimal digits; the last ones alone can be made to \
         match"
    )))
}

pub(super) async fn trust(context: &Context<'_>) -> Result<u8, CliError> {
    let scope = scope(context)?
        .ok_or_else(|| CliError::Usage("give --prefix NAME, or --root for all names".to_owned()))?;
    let wanted = context.matches.get_many::<String>("fingerprint").into_iter().flatten();
    let wanted = wanted.map(|text| fingerprint(text)).collect::<Result<BTreeSet<_>, _>>()?;
    let offered = offered(context, &scope).await?;
    let chosen = choose(context, &scope, &offered, &wanted)?;
    let store = TrustStore::at(&context.config.work_dir);
    let mut documents = Vec::new();
    let mut text = String::new();
    for key in chosen {
        let path = store.add(&scope, &key.certificate)?;
        text.push_str(&format!("{} {scope}\n", key.certificate.fingerprint()));
        documents.push(document(&scope, &key.certificate, &path));
    }
    context.output.print(&documents, || text);
    Ok(0)
}

/// All keys of all files; without any, those that discovery finds.
async fn offered(context: &Context<'_>, scope: &Scope) -> Result<Vec<Offered>, CliError> {
    let sources: Vec<_> = context.matches.get_many::<String>("files").into_iter().flatten().collect();
    let is_address = |source: &&String| source.starts_with("https://") || source.starts_with("http://");
    let mut texts: Vec<(String, Vec<u8>)> = Vec::new();
    if sources.is_empty() {
        let prefix = scope.prefix().ok_or_else(|| {
            CliError::Usage(
                "give the files with the keys that are to be trusted for all names; keys are discovered for a --prefix only"
                    .to_owned(),
            )
        })?;
        let agent = context.onlooker()?;
        let places = agent.appc_source().keys(prefix).await;
        agent.shutdown().await;
        let places = places.map_err(|source| CliError::Discover { prefix: prefix.to_string(), source })?;
        texts.extend(places.into_iter().map(|place| (place.from, place.bytes)));
    } else if sources.iter().any(is_address) {
        let agent = context.onlooker()?;
        let fetched = fetched(&agent, &sources).await;
        agent.shutdown().await;
        texts = fetched?;
    } else {
        for source in sources {
            texts.push((source.clone(), read_file(Path::new(source))?));
        }
    }
    let mut offered: Vec<Offered> = Vec::new();
    for (from, text) in texts {
        for certificate in read_keys(&text, &from)? {
            let is_new =
                !offered.iter().any(|key| key.certificate.fingerprint() == certificate.fingerprint());
            if is_new {
                offered.push(Offered { certificate, from: from.clone() });
            }
        }
    }
    Ok(offered)
}

/// What lies at addresses and in files.
async fn fetched(agent: &Agent, sources: &[&String]) -> Result<Vec<(String, Vec<u8>)>, CliError> {
    let mut texts = Vec::new();
    for source in sources {
        let text = if source.starts_with("https://") || source.starts_with("http://") {
            let text = agent.appc_source().get_small(source, KEY_FILE_BYTES_MAX as u64).await;
            text.map_err(|error| CliError::Fetch { address: (*source).clone(), source: error.into() })?
        } else {
            read_file(Path::new(source))?
        };
        texts.push(((*source).clone(), text));
    }
    Ok(texts)
}

fn read_file(path: &Path) -> Result<Vec<u8>, TrustError> {
    let read = || {
        let mut text = Vec::new();
        let file = std::fs::File::open(path)?;
        file.take(KEY_FILE_BYTES_MAX as u64 + 1).read_to_end(&mut text)?;
        Ok(text)
    };
    let text =
        read().map_err(|source| TrustError::Io { act: "read the key", path: path.to_owned(), source })?;
    if text.len() > KEY_FILE_BYTES_MAX {
        let source = FormatError::TooLong { bytes_max: KEY_FILE_BYTES_MAX };
        return Err(TrustError::Keys { from: path.display().to_string(), source });
    }
    Ok(text)
}

/// Those that whoever runs the command says are right. Nothing is trusted unless all that was asked for can be.
fn choose<'a>(
    context: &Context<'_>,
    scope: &Scope,
    offered: &'a [Offered],
    wanted: &BTreeSet<String>,
) -> Result<Vec<&'a Offered>, CliError> {
    let is_offered =
        |fingerprint: &&String| offered.iter().any(|key| key.certificate.fingerprint() == *fingerprint);
    if let Some(missing) = wanted.iter().find(|fingerprint| !is_offered(fingerprint)) {
        let there: Vec<_> = offered.iter().map(|key| key.certificate.fingerprint()).collect();
        return Err(CliError::NotTrusted(format!(
            "no key {missing} is there, but {}; nothing was changed",
            there.join(", ")
        )));
    }
    let skip = context.matches.get_flag("skip_fingerprint_review");
    if wanted.is_empty() && !skip && !std::io::stdin().is_terminal() {
        let there: Vec<_> =
            offered.iter().map(|key| format!("--fingerprint {}", key.certificate.fingerprint())).collect();
        return Err(CliError::Usage(format!(
            "nobody can be asked whether the keys are right, since standard input is no terminal; compare with what their \
             owner publishes, and say {}",
            there.join(" ")
        )));
    }
    let mut chosen = Vec::new();
    for key in offered {
        let certificate = &key.certificate;
        if !wanted.is_empty() && !wanted.contains(certificate.fingerprint()) {
            eprintln!("keelblock: key {} was not asked for", certificate.fingerprint());
            continue;
        }
        let usable = certificate.usable(now());
        usable.map_err(|why| TrustError::UnfitKey { key: certificate.fingerprint().to_owned(), why })?;
        if !context.quiet || (wanted.is_empty() && !skip) {
            eprint!("{}", review(key));
        }
        if !wanted.is_empty() || skip || answered_yes(scope)? {
            chosen.push(key);
        } else {
            eprintln!("keelblock: key {} is not trusted", certificate.fingerprint());
        }
    }
    if chosen.is_empty() {
        return Err(CliError::NotTrusted("no key was trusted".to_owned()));
    }
    Ok(chosen)
}

/// What somebody must see of a key to decide.
fn review(key: &Offered) -> String {
    let certificate = &key.certificate;
    let ends = certificate
        .expires()
        .map_or_else(|| "never expires".to_owned(), |end| format!("expires {}", date(end)));
    let mut text = format!(
        "key  {}\n     from {}\n     made {}, {ends}\n",
        grouped(certificate.fingerprint()),
        one_line(&key.from),
        date(certificate.created()),
    );
    for user_id in shown(certificate) {
        text.push_str(&format!("     {user_id}\n"));
    }
    text
}

/// The user IDs of a key for people: some, each on one line.
fn shown(certificate: &Certificate) -> Vec<String> {
    let all = certificate.user_ids();
    let mut ids: Vec<_> = all.iter().take(USER_IDS_SHOWN_MAX).map(|id| one_line(id)).collect();
    if all.len() > ids.len() {
        ids.push(format!("and {} more", all.len() - ids.len()));
    }
    ids
}

/// As gpg prints fingerprints, to compare them.
fn grouped(fingerprint: &str) -> String {
    let upper = fingerprint.to_ascii_uppercase();
    let groups: Vec<_> = upper.as_bytes().chunks(4).map(|group| String::from_utf8_lossy(group)).collect();
    let (first, second) = groups.split_at(groups.len() / 2);
    format!("{}  {}", first.join(" "), second.join(" "))
}

fn answered_yes(scope: &Scope) -> Result<bool, CliError> {
    let what = match scope {
        Scope::Root => "all names".to_owned(),
        Scope::Prefix(prefix) => format!("{prefix} and {prefix}/..."),
    };
    let failed = |source| CliError::Io { act: "ask whether the key is right", source };
    let mut error = std::io::stderr();
    write!(error, "Trust this key for {what}? [y/N] ").and_then(|()| error.flush()).map_err(failed)?;
    let mut answer = String::new();
    std::io::stdin().lock().take(ANSWER_BYTES_MAX).read_line(&mut answer).map_err(failed)?;
    Ok(matches!(answer.trim().to_ascii_lowercase().as_str(), "y" | "yes"))
}

pub(super) fn untrust(context: &Context<'_>) -> Result<u8, CliError> {
    let scope = scope(context)?;
    let fingerprints = context.matches.get_many::<String>("fingerprints").into_iter().flatten();
    let fingerprints = fingerprints.map(|text| fingerprint(text)).collect::<Result<Vec<_>, _>>()?;
    let store = TrustStore::at(&context.config.work_dir);
    let (mut documents, mut text, mut missing) = (Vec::new(), String::new(), Vec::new());
    for fingerprint in &fingerprints {
        let removed = store.remove(scope.as_ref(), fingerprint)?;
        if removed.is_empty() {
            missing.push(fingerprint.as_str());
        }
        for scope in removed {
            text.push_str(&format!("{fingerprint} {scope}\n"));
            documents.push(json!({ "prefix": scope.prefix(), "fingerprint": fingerprint }));
        }
    }
    if missing.is_empty() || !context.output.is_json() {
        context.output.print(&documents, || text);
    }
    match missing.is_empty() {
        true => Ok(0),
        false => Err(CliError::NotTrusted(format!(
            "{} {} not trusted{}; see keelblock appc keys",
            missing.join(", "),
            if missing.len() == 1 { "was" } else { "were" },
            scope.map(|scope| format!(" for {scope}")).unwrap_or_default(),
        ))),
    }
}

pub(super) fn keys(context: &Context<'_>) -> Result<u8, CliError> {
    let (keys, skipped) = TrustStore::at(&context.config.work_dir).keys()?;
    for skipped in skipped {
        slog::warn!(context.log, "a trusted key is not used"; "file" => %skipped.path.display(), "why" => skipped.why);
    }
    let documents: Vec<_> =
        keys.iter().map(|key| document(&key.scope, &key.certificate, &key.path)).collect();
    context.output.print(&documents, || {
        let rows: Vec<_> = keys
            .iter()
            .map(|key| {
                let certificate = &key.certificate;
                let ends = certificate.expires().map_or_else(|| "never".to_owned(), date);
                let standing = certificate.usable(now()).err().map(|why| format!(" (it {why})"));
                vec![
                    key.scope.prefix().map_or_else(|| "(all)".to_owned(), ToString::to_string),
                    certificate.fingerprint().to_owned(),
                    ends + &standing.unwrap_or_default(),
                    shown(certificate).join(", "),
                ]
            })
            .collect();
        table(&["PREFIX", "FINGERPRINT", "EXPIRES", "USER IDS"], &rows)
    });
    Ok(0)
}

fn document(scope: &Scope, certificate: &Certificate, path: &Path) -> Value {
    json!({
        "prefix": scope.prefix(),
        "fingerprint": certificate.fingerprint(),
        "user_ids": certificate.user_ids(),
        "created": crate::logging::rfc3339_of(certificate.created() * 1000),
        "expires": certificate.expires().map(|end| crate::logging::rfc3339_of(end * 1000)),
        "unusable": certificate.usable(now()).err().map(|why| why.to_string()),
        "file": path,
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn fingerprints_are_taken_whole_however_they_are_grouped() {
        let plain = "bff313cdaa560b16a8987b8f72abf5f6799d33bc";
        for text in [plain, "BFF3 13CD AA56 0B16 A898  7B8F 72AB F5F6 799D 33BC", &format!("0x{plain}")] {
            assert_eq!(fingerprint(text).unwrap(), plain);
        }
        assert_eq!(fingerprint(&grouped(plain)).unwrap(), plain);
        for text in
            ["799D33BC", "72ABF5F6799D33BC", "", "../../../../../../../../../../../../../../xx", &plain[1..]]
        {
            assert!(fingerprint(text).is_err(), "{text}");
        }
    }
}
