//! The environment of a command: defaults below the image's below the caller's, and nothing else.

use crate::launcher::PATH_DEFAULT;

/// Puts the variables together; later ones win, each name comes once.
pub(super) fn merge(
    home: &str,
    sandbox: &str,
    tty: bool,
    image: &[(String, String)],
    command: &[(String, String)],
) -> Vec<(String, String)> {
    let mut merged: Vec<(String, String)> = Vec::new();
    let mut set = |name: &str, value: &str| match merged.iter_mut().find(|(known, _)| known == name) {
        Some((_, known)) => value.clone_into(known),
        None => merged.push((name.to_owned(), value.to_owned())),
    };
    set("PATH", PATH_DEFAULT);
    set("HOME", home);
    if tty {
        set("TERM", "xterm");
    }
    for (name, value) in image {
        set(name, value);
    }
    // Where the sandbox is is not the image's to say.
    set("MESOS_SANDBOX", sandbox);
    for (name, value) in command {
        set(name, value);
    }
    merged
}

#[cfg(test)]
mod tests {
    use super::*;

    fn pair(name: &str, value: &str) -> (String, String) {
        (name.to_owned(), value.to_owned())
    }

    #[test]
    fn the_caller_wins_over_the_image_and_the_image_over_defaults() {
        let image = [pair("PATH", "/i"), pair("A", "i"), pair("MESOS_SANDBOX", "/lie")];
        let command = [pair("A", "c"), pair("A", "c2"), pair("HOME", "/h")];
        let merged = merge("/root", "/s", false, &image, &command);
        let expected = [pair("PATH", "/i"), pair("HOME", "/h"), pair("A", "c2"), pair("MESOS_SANDBOX", "/s")];
        assert_eq!(merged, expected);
    }
}
