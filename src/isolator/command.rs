//! What is executed: the table of Mesos's docker/runtime isolator.

use keelblock_actors::container::CommandSpec;
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

#[cfg(test)]
mod tests {
    use super::*;

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
