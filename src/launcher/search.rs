//! Which files execution is tried on, in order.

/// `PATH` of a container that sets none.
pub const PATH_DEFAULT: &str = "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin";

/// Candidates for a command. With a slash in it, itself; else in every directory of the container's own `PATH`,
/// and last in the working directory (as Mesos does).
pub(super) fn candidates(command: &str, environment: &[(String, String)]) -> Vec<String> {
    if command.is_empty() || command.contains('/') {
        return vec![command.to_owned()];
    }
    let path = environment.iter().rev().find(|(name, _)| name == "PATH").map(|(_, value)| value.as_str());
    let mut candidates: Vec<String> = Vec::new();
    for directory in path.unwrap_or(PATH_DEFAULT).split(':') {
        let candidate = match directory {
            "" => format!("./{command}"),
            directory => format!("{}/{command}", directory.trim_end_matches('/')),
        };
        if !candidates.contains(&candidate) {
            candidates.push(candidate);
        }
    }
    let here = format!("./{command}");
    if !candidates.contains(&here) {
        candidates.push(here);
    }
    candidates
}

#[cfg(test)]
mod tests {
    use super::*;

    fn with_path(path: &str) -> Vec<(String, String)> {
        vec![("PATH".to_owned(), "/ignored".to_owned()), ("PATH".to_owned(), path.to_owned())]
    }

    #[test]
    fn a_command_is_looked_for_in_the_containers_path_and_then_here() {
        assert_eq!(candidates("ls", &with_path("/a/:/b::/a")), ["/a/ls", "/b/ls", "./ls"]);
        assert_eq!(candidates("ls", &with_path("/")), ["/ls", "./ls"]);
        assert_eq!(candidates("ls", &[]).first().map(String::as_str), Some("/usr/local/sbin/ls"));
    }

    #[test]
    fn a_command_with_a_slash_is_taken_as_it_is() {
        assert_eq!(candidates("/bin/ls", &with_path("/a")), ["/bin/ls"]);
        assert_eq!(candidates("bin/ls", &with_path("/a")), ["bin/ls"]);
        assert_eq!(candidates("", &with_path("/a")), [""]);
    }
}
