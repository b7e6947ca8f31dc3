//! What is executed: the tables of Mesos's docker/runtime and appc/runtime isolators.

use keelblock_actors::container::CommandSpec;
use keelblock_actors::image::appc::{AppcManifest, AppcName};
use keelblock_actors::image::plan::RuntimeConfig;

/// Why there is nothing to run. The words are Mesos's.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum CommandError {
    /// `shell` without `value`.
    #[error("Shell specified but no command value provided")]
    NoShellCommand,
    /// Neither image nor caller names a program.
    #[error("No executable is found: neither the image (Entrypoint, Cmd) nor the command names one")]
    NoExecutable,
    /// Of an Appc image.
    #[error(
        "No executable is found: neither image {image} (app.exec of its manifest) nor the command names one"
    )]
    NoExec {
        /// Which.
        image: AppcName,
    },
}

/// A program and its arguments.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Argv {
    pub(super) argv: Vec<String>,
    /// When another file than `argv[0]` is executed.
    pub(super) executable: Option<String>,
}

/// The table of mesos `docs/container-image.md` ("docker/runtime"), row by row. `replace` = arguments stand for
/// the whole `Cmd`, and for the command where the image has none, as with `docker run`.
pub(super) fn argv(
    command: &CommandSpec,
    image: Option<&RuntimeConfig>,
    replace: bool,
) -> Result<Argv, CommandError> {
    let none = Vec::new();
    let (entrypoint, cmd) = image.map_or((&none, &none), |image| (&image.entrypoint, &image.cmd));
    let arguments = &command.arguments;
    let argv = match (command.shell, &command.value) {
        (true, Some(line)) => vec!["/bin/sh".to_owned(), "-c".to_owned(), line.clone()],
        (true, None) => return Err(CommandError::NoShellCommand),
        (false, Some(file)) => {
            let argv = if arguments.is_empty() { vec![file.clone()] } else { arguments.clone() };
            let executable = argv.first().filter(|first| *first != file).map(|_| file.clone());
            return Ok(Argv { argv, executable });
        }
        (false, None) => {
            let operands = match cmd.split_first() {
                _ if replace || !entrypoint.is_empty() => {
                    if arguments.is_empty() {
                        cmd.clone()
                    } else {
                        arguments.clone()
                    }
                }
                Some((program, rest)) => {
                    let rest = if arguments.is_empty() { rest } else { arguments };
                    [std::slice::from_ref(program), rest].concat()
                }
                None => Vec::new(),
            };
            [entrypoint.as_slice(), &operands].concat()
        }
    };
    if argv.is_empty() { Err(CommandError::NoExecutable) } else { Ok(Argv { argv, executable: None }) }
}

/// The table for an Appc image: the first three rows are the same. Else `exec[0]` with the caller's arguments, or with
/// the rest of `exec` if there are none. `replace` = arguments are the command where the image has none.
///
/// An `exec` is one list: what of it is the program and what may be replaced, it does not say. So the rule is Mesos's
/// for all callers; rkt, which appends, leaves no way to run with fewer arguments than the image has.
pub(super) fn of_appc(
    command: &CommandSpec,
    manifest: &AppcManifest,
    replace: bool,
) -> Result<Argv, CommandError> {
    let as_docker = match manifest.app.as_ref().map(|app| app.exec.as_slice()) {
        Some([program, rest @ ..]) => RuntimeConfig {
            entrypoint: vec![program.clone()],
            cmd: rest.to_vec(),
            ..RuntimeConfig::default()
        },
        _ => RuntimeConfig::default(),
    };
    argv(command, Some(&as_docker), replace).map_err(|error| match error {
        CommandError::NoExecutable => CommandError::NoExec { image: manifest.name.clone() },
        error => error,
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use keelblock_actors::image::appc::App;

    fn list(text: &str) -> Vec<String> {
        text.split_whitespace().map(str::to_owned).collect()
    }

    fn row(
        shell: bool,
        value: Option<&str>,
        arguments: &str,
        entrypoint: &str,
        cmd: &str,
        replace: bool,
    ) -> Result<Vec<String>, CommandError> {
        let command = CommandSpec {
            shell,
            value: value.map(str::to_owned),
            arguments: list(arguments),
            ..CommandSpec::default()
        };
        let image =
            RuntimeConfig { entrypoint: list(entrypoint), cmd: list(cmd), ..RuntimeConfig::default() };
        argv(&command, Some(&image), replace).map(|argv| argv.argv)
    }

    #[test]
    fn every_row_of_the_mesos_table_holds() {
        assert_eq!(
            row(true, Some("a b"), "x", "e", "c", false),
            Ok(vec!["/bin/sh".to_owned(), "-c".to_owned(), "a b".to_owned()])
        );
        assert_eq!(row(true, None, "x", "e", "c", false), Err(CommandError::NoShellCommand));
        assert_eq!(row(false, Some("/f"), "zero one", "e", "c", false), Ok(list("zero one")));
        assert_eq!(row(false, Some("/f"), "", "e", "c", false), Ok(list("/f")));
        assert_eq!(row(false, None, "x y", "e f", "c d", false), Ok(list("e f x y")));
        assert_eq!(row(false, None, "", "e f", "c d", false), Ok(list("e f c d")));
        assert_eq!(row(false, None, "x", "e", "", false), Ok(list("e x")));
        assert_eq!(row(false, None, "x", "", "c d", false), Ok(list("c x")));
        assert_eq!(row(false, None, "", "", "c d", false), Ok(list("c d")));
        assert_eq!(row(false, None, "x", "", "", false), Err(CommandError::NoExecutable));
    }

    #[test]
    fn arguments_can_replace_the_images_command_as_with_docker() {
        assert_eq!(row(false, None, "x y", "", "c d", true), Ok(list("x y")));
        assert_eq!(row(false, None, "x", "e", "c", true), Ok(list("e x")));
        assert_eq!(row(false, None, "", "", "c d", true), Ok(list("c d")));
        assert_eq!(row(false, None, "x", "", "", true), Ok(list("x")));
        assert_eq!(row(false, None, "", "", "", true), Err(CommandError::NoExecutable));
    }

    fn appc_row(
        shell: bool,
        value: Option<&str>,
        arguments: &str,
        exec: Option<&str>,
        replace: bool,
    ) -> Result<Vec<String>, CommandError> {
        let command = CommandSpec {
            shell,
            value: value.map(str::to_owned),
            arguments: list(arguments),
            ..CommandSpec::default()
        };
        let manifest =
            crate::isolator::appc::sample(exec.map(|exec| App { exec: list(exec), ..App::default() }));
        of_appc(&command, &manifest, replace).map(|argv| argv.argv)
    }

    #[test]
    fn every_row_of_the_mesos_table_for_appc_holds() {
        let line = vec!["/bin/sh".to_owned(), "-c".to_owned(), "a b".to_owned()];
        for replace in [false, true] {
            let row = |shell, value, arguments, exec| appc_row(shell, value, arguments, exec, replace);
            assert_eq!(row(true, Some("a b"), "x", Some("e f")), Ok(line.clone()));
            assert_eq!(row(true, None, "x", Some("e f")), Err(CommandError::NoShellCommand));
            assert_eq!(row(false, Some("/f"), "zero one", Some("e f")), Ok(list("zero one")));
            assert_eq!(row(false, Some("/f"), "", Some("e f")), Ok(list("/f")));
            assert_eq!(row(false, None, "x y", Some("e f g")), Ok(list("e x y")));
            assert_eq!(row(false, None, "", Some("e f g")), Ok(list("e f g")));
            for exec in [None, Some("")] {
                let error = row(false, None, "", exec).expect_err("nothing to run").to_string();
                assert!(error.contains("example.com/some_app") && error.contains("exec"), "{error}");
            }
        }
        assert!(appc_row(false, None, "x", None, false).is_err());
        assert_eq!(appc_row(false, None, "x y", None, true), Ok(list("x y")), "a base image, with a command");
        assert_eq!(appc_row(false, None, "x y", Some(""), true), Ok(list("x y")));
    }

    #[test]
    fn another_file_than_argv_0_can_be_executed() {
        let command = CommandSpec {
            value: Some("/bin/busybox".to_owned()),
            arguments: list("ls -l"),
            ..CommandSpec::default()
        };
        let argv = argv(&command, None, false).expect("runs");
        assert_eq!(argv.executable.as_deref(), Some("/bin/busybox"));
        assert_eq!(argv.argv, list("ls -l"));
    }
}
