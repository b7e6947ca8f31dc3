//! Programs that keep credentials: `docker-credential-NAME get`, the server on standard input, JSON on standard output.
//!
//! A helper runs in a process group of its own, which is killed as a whole when it takes too long or when nobody waits for
//! it any more. Nobody else in this process waits for it: the launcher's children are waited for one by one
//! (`launcher/reaper.rs`), and so is this one. What it answers is remembered for a while, since a pull asks for every
//! repository and some helpers ask a server of their own.

use std::collections::HashMap;
use std::ffi::OsString;
use std::io;
use std::process::Stdio;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use keelblock_actors::error::quote;
use nix::sys::signal::{Signal, killpg};
use nix::unistd::Pid;
use serde::Deserialize;
use tokio::io::{AsyncRead, AsyncReadExt, AsyncWriteExt};
use tokio::process::{Child, Command};
use tokio::time::Instant;

use super::docker_config::HUB_ADDRESS;
use super::{Login, Secret};

/// For how long an answer is remembered. 5 min: the tokens of cloud registries live for at least 12 times as long, and an
/// answer that a registry refuses is asked for anew anyway.
const REMEMBERED: Duration = Duration::from_secs(300);
/// For how long it is remembered that there was nothing. 30 s: who is refused and then logs in wants to be believed soon.
const NOTHING_REMEMBERED: Duration = Duration::from_secs(30);
/// Bytes of what a helper writes. 64 KiB: the largest tokens have some 5.
const OUTPUT_BYTES_MAX: u64 = 64 << 10;
/// Answers that are remembered before old ones are looked for.
const ANSWERS_BEFORE_SWEEP: usize = 256;
/// What a helper says when it has nothing for a server.
const NOTHING: &str = "credentials not found in native keychain";
/// The user name that stands for: the secret is an identity token.
const TOKEN: &str = "<token>";

/// Why a helper gave no answer.
#[derive(Debug, thiserror::Error)]
pub enum HelperError {
    /// The name leads elsewhere.
    #[error(
        "credential helper {name:?} of {of} has no plain name; it must be NAME of a program docker-credential-NAME"
    )]
    Name {
        /// As written, cut.
        name: String,
        /// Which config names it.
        of: String,
    },
    /// It cannot be started.
    #[error("cannot run {program}, which {of} names; install it, or take it out there")]
    Start {
        /// The program.
        program: String,
        /// Which config names it.
        of: String,
        /// Why.
        #[source]
        source: io::Error,
    },
    /// It was given up.
    #[error("{program}, which {of} names, gave no answer within {} s (--credential_helper_timeout)", limit.as_secs_f64())]
    TimedOut {
        /// The program.
        program: String,
        /// Which config names it.
        of: String,
        /// The limit.
        limit: Duration,
    },
    /// It failed.
    #[error("{program}, which {of} names, failed ({status}){}", said.as_ref().map_or_else(String::new, |said| format!("; it says {said:?}")))]
    Failed {
        /// The program.
        program: String,
        /// Which config names it.
        of: String,
        /// How it ended.
        status: String,
        /// The first line of what it wrote, cut.
        said: Option<String>,
    },
    /// What it wrote is no answer.
    #[error("the answer of {program}, which {of} names, is not JSON with Username and Secret, or too long")]
    NoAnswer {
        /// The program.
        program: String,
        /// Which config names it.
        of: String,
    },
    /// It cannot be talked to.
    #[error("cannot talk to {program}, which {of} names")]
    Io {
        /// The program.
        program: String,
        /// Which config names it.
        of: String,
        /// Why.
        #[source]
        source: io::Error,
    },
}

/// Who names the helper.
#[derive(Clone, Debug)]
pub(super) struct Named {
    /// `ecr-login`.
    pub(super) name: String,
    /// For messages: `credHelpers of FILE`.
    pub(super) of: String,
}

type Answer = Arc<tokio::sync::Mutex<Option<(Instant, Option<Login>)>>>;

/// The helpers, and what they answered.
#[derive(Debug)]
pub(super) struct Helpers {
    timeout: Duration,
    /// Where programs are looked for; `None` = in `$PATH`.
    path: Option<OsString>,
    answers: Mutex<HashMap<(String, String), Answer>>,
}

impl Helpers {
    pub(super) fn new(timeout: Duration) -> Self {
        Self { timeout, path: None, answers: Mutex::default() }
    }

    /// What a helper has for a host; `anew`: though it answered before.
    ///
    /// # Cancel safety
    /// Dropping the future kills the helper.
    pub(super) async fn login(
        &self,
        named: &Named,
        host: &str,
        anew: bool,
    ) -> Result<Option<Login>, HelperError> {
        let answer = self.answer(&named.name, host);
        let asked = Instant::now();
        // Held while the helper runs: whoever waits here wants the same answer.
        let mut answer = answer.lock().await;
        if let Some((at, login)) = &*answer
            && at.elapsed() < if login.is_some() { REMEMBERED } else { NOTHING_REMEMBERED }
            // Somebody else may have asked anew while this one waited.
            && (!anew || *at > asked)
        {
            return Ok(login.clone());
        }
        let mut login = None;
        let servers: &[&str] = if host == "docker.io" { &[HUB_ADDRESS, host] } else { &[host] };
        for server in servers {
            login =
                tokio::time::timeout(self.timeout, self.get(named, server)).await.unwrap_or_else(|_| {
                    let (program, of) = (program(named), named.of.clone());
                    Err(HelperError::TimedOut { program, of, limit: self.timeout })
                })?;
            if login.is_some() {
                break;
            }
        }
        *answer = Some((Instant::now(), login.clone()));
        Ok(login)
    }

    fn answer(&self, name: &str, host: &str) -> Answer {
        let mut answers = self.answers.lock().unwrap_or_else(PoisonError::into_inner);
        if answers.len() > ANSWERS_BEFORE_SWEEP {
            answers.retain(|_, answer| Arc::strong_count(answer) > 1);
        }
        Arc::clone(answers.entry((name.to_owned(), host.to_owned())).or_default())
    }
}

fn program(named: &Named) -> String {
    format!("docker-credential-{}", quote(&named.name))
}

#[derive(Deserialize)]
struct Credential {
    #[serde(rename = "Username", default)]
    user: String,
    #[serde(rename = "Secret", default)]
    secret: String,
}

/// A child with all its own, killed unless it has ended.
struct Group(Child);

impl Drop for Group {
    fn drop(&mut self) {
        // Until it is waited for its number is not given to another.
        if let Some(id) = self.0.id().and_then(|id| i32::try_from(id).ok()) {
            let _ = killpg(Pid::from_raw(id), Signal::SIGKILL);
        }
    }
}

impl Helpers {
    async fn get(&self, named: &Named, server: &str) -> Result<Option<Login>, HelperError> {
        let plain = |c: char| c.is_ascii_alphanumeric() || "-_.".contains(c);
        if named.name.is_empty() || !named.name.chars().all(plain) {
            return Err(HelperError::Name { name: quote(&named.name), of: named.of.clone() });
        }
        let (program, of) = (program(named), named.of.clone());
        let io = |source| HelperError::Io { program: program.clone(), of: of.clone(), source };
        let mut command = Command::new(&program);
        command.envs(self.path.iter().map(|path| ("PATH", path)));
        let child = command
            .arg("get")
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .stderr(Stdio::piped())
            .process_group(0)
            .spawn()
            .map_err(|source| HelperError::Start { program: program.clone(), of: of.clone(), source })?;
        let mut group = Group(child);
        let (stdin, stdout, stderr) = (group.0.stdin.take(), group.0.stdout.take(), group.0.stderr.take());
        let ask = async {
            if let Some(mut stdin) = stdin {
                // One that ends without reading may have answered all the same.
                let _ = stdin.write_all(format!("{server}\n").as_bytes()).await;
            }
        };
        let ((), out, err) = tokio::join!(ask, beginning(stdout), beginning(stderr));
        let (out, err) = (out.map_err(io)?, err.map_err(io)?);
        let status = group.0.wait().await.map_err(io)?;
        if !status.success() {
            if first_line(&out).is_some_and(|line| line.trim_end_matches('.') == NOTHING) {
                return Ok(None);
            }
            // Helpers say what is wrong on either; half an answer is not repeated.
            let said = first_line(&err).or_else(|| first_line(&out).filter(|line| !line.contains('{')));
            let said = said.map(|line| quote(&line));
            return Err(HelperError::Failed { program, of, status: status.to_string(), said });
        }
        // What serde_json says of a text that holds a secret is not repeated.
        let credential: Credential = match serde_json::from_slice(&out) {
            Ok(credential) if out.len() as u64 <= OUTPUT_BYTES_MAX => credential,
            _ => return Err(HelperError::NoAnswer { program, of }),
        };
        let Credential { user, secret } = credential;
        if secret.is_empty() {
            return Ok(None);
        }
        let source = format!("{program} ({of})");
        Ok(Some(match user.as_str() {
            TOKEN => Login {
                user: String::new(),
                password: None,
                identity_token: Some(Secret(secret)),
                registry_token: None,
                source,
            },
            _ => Login::with_password(user, secret, source),
        }))
    }
}

/// What is written, up to a little more than is allowed; the rest is read and dropped, so that it ends.
async fn beginning(stream: Option<impl AsyncRead + Unpin>) -> io::Result<Vec<u8>> {
    let mut bytes = Vec::new();
    if let Some(mut stream) = stream {
        (&mut stream).take(OUTPUT_BYTES_MAX + 1).read_to_end(&mut bytes).await?;
        tokio::io::copy(&mut stream, &mut tokio::io::sink()).await?;
    }
    Ok(bytes)
}

fn first_line(bytes: &[u8]) -> Option<String> {
    let text = String::from_utf8_lossy(bytes);
    text.lines().map(str::trim).find(|line| !line.is_empty()).map(str::to_owned)
}

#[cfg(test)]
mod tests {
    use std::io::{Read, Write};
    use std::path::Path;

    use super::*;

    const SCRIPT: &str = r#"
[ "$1" = get ] || exit 9
read server
echo "$server" >> "${0%/*}/log"
case "$server" in
https://index.docker.io/v1/) echo '{"ServerURL":"https://index.docker.io/v1/","Username":"hub","Secret":"hush"}';;
token.io) echo '{"Username":"<token>","Secret":"hush"}';;
empty.io) echo '{"ServerURL":"","Username":"","Secret":""}';;
none.io|docker.io) echo 'credentials not found in native keychain'; exit 1;;
bad.io) echo 'hush, this is no JSON';;
half.io) echo '{"Username":"u","Secret":"hush'; exit 1;;
locked.io) echo 'the keychain is locked' >&2; exit 3;;
large.io) head -c 200000 /dev/zero | tr '\0' ' '; echo '{"Username":"u","Secret":"hush"}';;
slow.io) exec 3>"${0%/*}/fifo"; echo x >&3; sleep 1000;;
esac
"#;

    /// A program in a directory of its own. Written by another process: one that this process has open for writing could not be
    /// executed while a child of another test holds a copy of the descriptor.
    fn install(dir: &Path, name: &str) {
        let path = dir.join(format!("docker-credential-{name}"));
        let mut shell = std::process::Command::new("sh")
            .args(["-c", r#"cat > "$0" && chmod 755 "$0""#])
            .arg(path)
            .stdin(Stdio::piped())
            .spawn()
            .unwrap();
        let script = format!("#!/bin/sh\n{SCRIPT}");
        shell.stdin.take().unwrap().write_all(script.as_bytes()).unwrap();
        assert!(shell.wait().unwrap().success());
    }

    fn helpers(dir: &Path) -> Helpers {
        install(dir, "test");
        let mut path = OsString::from(dir);
        path.push(":");
        path.push(std::env::var_os("PATH").unwrap_or_default());
        Helpers { path: Some(path), ..Helpers::new(Duration::from_secs(60)) }
    }

    fn named(name: &str) -> Named {
        Named { name: name.to_owned(), of: "credsStore of f".to_owned() }
    }

    fn asked(dir: &Path) -> Vec<String> {
        let log = std::fs::read_to_string(dir.join("log")).unwrap_or_default();
        log.lines().map(str::to_owned).collect()
    }

    #[tokio::test]
    async fn every_answer_of_the_protocol_is_understood() {
        let dir = tempfile::tempdir().unwrap();
        let helpers = helpers(dir.path());
        let login = async |host: &str| helpers.login(&named("test"), host, false).await;
        let hub = login("docker.io").await.unwrap().unwrap();
        assert_eq!((hub.user.as_str(), hub.password.unwrap().text()), ("hub", "hush"));
        assert_eq!(hub.source, "docker-credential-test (credsStore of f)");
        let token = login("token.io").await.unwrap().unwrap();
        assert_eq!((token.password, token.identity_token.unwrap().text()), (None, "hush"));
        assert_eq!(login("empty.io").await.unwrap(), None);
        assert_eq!(login("none.io").await.unwrap(), None);
        for (host, expected) in [
            (
                "bad.io",
                "the answer of docker-credential-test, which credsStore of f names, is not JSON with Username and Secret, or too long",
            ),
            (
                "large.io",
                "the answer of docker-credential-test, which credsStore of f names, is not JSON with Username and Secret, or too long",
            ),
            ("half.io", "docker-credential-test, which credsStore of f names, failed (exit status: 1)"),
            (
                "locked.io",
                "docker-credential-test, which credsStore of f names, failed (exit status: 3); it says \"the keychain is locked\"",
            ),
        ] {
            assert_eq!(login(host).await.unwrap_err().to_string(), expected);
        }
        let missing = helpers.login(&named("nosuch"), "r.io", false).await.unwrap_err();
        assert_eq!(
            missing.to_string(),
            "cannot run docker-credential-nosuch, which credsStore of f names; install it, or take it out there"
        );
        for name in ["", "../test", "/bin/x", "a b"] {
            let error = helpers.login(&named(name), "r.io", false).await.unwrap_err();
            assert!(matches!(error, HelperError::Name { .. }), "{name}: {error}");
        }
    }

    #[tokio::test]
    async fn an_answer_is_remembered_for_a_while_unless_it_was_refused() {
        let dir = tempfile::tempdir().unwrap();
        let helpers = helpers(dir.path());
        let ask = async |host: &str, anew| drop(helpers.login(&named("test"), host, anew).await.unwrap());
        for host in ["token.io", "none.io", "token.io", "none.io"] {
            ask(host, false).await;
        }
        assert_eq!(asked(dir.path()), ["token.io", "none.io"]);
        ask("token.io", true).await;
        assert_eq!(asked(dir.path()).len(), 3);
        // Many at once ask once.
        let test = named("test");
        let all = (0..20).map(|_| helpers.login(&test, "empty.io", false));
        futures_util::future::join_all(all).await;
        assert_eq!(asked(dir.path()).len(), 4);
        tokio::time::pause();
        tokio::time::advance(NOTHING_REMEMBERED).await;
        tokio::time::resume();
        ask("none.io", false).await;
        ask("token.io", false).await;
        assert_eq!(asked(dir.path()).len(), 5);
    }

    // The clock runs ahead whenever everybody waits.
    #[tokio::test(start_paused = true)]
    async fn one_that_does_not_answer_is_given_up() {
        let dir = tempfile::tempdir().unwrap();
        let helpers = Helpers { timeout: Duration::from_secs(7), ..helpers(dir.path()) };
        let error = helpers.login(&named("test"), "slow.io", false).await.unwrap_err().to_string();
        assert!(error.ends_with("gave no answer within 7 s (--credential_helper_timeout)"), "{error}");
    }

    #[tokio::test]
    async fn it_ends_with_all_its_own_when_nobody_waits_for_it() {
        let dir = tempfile::tempdir().unwrap();
        let helpers = helpers(dir.path());
        let fifo = dir.path().join("fifo");
        nix::unistd::mkfifo(&fifo, nix::sys::stat::Mode::S_IRWXU).unwrap();
        let (begun, has_begun) = tokio::sync::oneshot::channel();
        let reader = std::thread::spawn(move || {
            let mut fifo = std::fs::File::open(fifo).unwrap();
            let mut byte = [0];
            fifo.read_exact(&mut byte).unwrap();
            let _ = begun.send(());
            // The end comes when the shell and its `sleep` are both gone.
            fifo.read_to_end(&mut Vec::new()).unwrap();
        });
        let named = named("test");
        tokio::select! {
            _ = helpers.login(&named, "slow.io", false) => panic!("it answered"),
            begun = has_begun => begun.unwrap(),
        }
        reader.join().unwrap();
    }
}
