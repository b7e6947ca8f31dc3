//! The command line as clap sees it: agent flags from [`FLAGS`], and the commands with their own options.

use clap::{Arg, ArgAction, ArgMatches, Command};

use crate::config::FLAGS;

/// The command that others start to remove what they moved away.
pub(super) const COLLECT: &str = "collect";

/// The whole command line.
pub(super) fn command() -> Command {
    let root = Command::new("keelblock")
        .version(env!("CARGO_PKG_VERSION"))
        .about("Turns container images into root filesystems, and runs containers in them")
        .after_help(
            "Every flag also reads KEELBLOCK_<FLAG> from the environment and its own name from the TOML file of \
             --config;\nthe command line wins over the environment, that over the file. Flags take underscores or \
             dashes.\n\nImages: NAME[:TAG][@DIGEST], docker:NAME, docker-archive:PATH[:REF], oci:PATH[:TAG], \
             oci-archive:PATH[:TAG],\nappc:NAME[:VERSION][,LABEL=VALUE...], appc:sha512-ID, aci:PATH\n\nExit status: 0 done; 125 keelblock failed; 126 command not executable; 127 \
             command not found; 128+N killed by\nsignal N; 2 wrong usage; else what the container's command \
             returned.",
        )
        .subcommand_required(true)
        .arg_required_else_help(true)
        .max_term_width(110)
        .next_help_heading("General")
        .arg(switch("json", "Print one JSON document on standard output and nothing else there").global(true))
        .arg(switch("quiet", "Show no progress").short('q').global(true))
        .arg(option("config", "FILE", "Read flags from this TOML file").global(true));
    let root = FLAGS.iter().fold(root, |root, flag| {
        let arg = if flag.value.is_empty() {
            // `--flag`, `--flag=false`: a switch that the environment turned on can be turned off again.
            Arg::new(flag.name)
                .num_args(0..=1)
                .require_equals(true)
                .default_missing_value("true")
                .value_name("BOOL")
        } else {
            Arg::new(flag.name).value_name(flag.value)
        };
        let arg = arg.long(flag.name).help(flag.help).help_heading(flag.heading).global(true);
        root.arg(
            arg.action(ArgAction::Set).allow_hyphen_values(false).hide_short_help(flag.heading == "Limits"),
        )
    });
    root.subcommands([
        Command::new("pull")
            .about("Bring images into the store, asking their source what the name means now")
            .arg(images()),
        Command::new("provision")
            .about("Give a container a root filesystem and no process; it stays until destroyed")
            .arg(option("id", "ID", "Name of the container").required(true))
            .arg(Arg::new("image").value_name("IMAGE").required(true)),
        Command::new("destroy").about("Undo provision, or remove a container whatever its state").arg(ids()),
        run(),
        Command::new("images").about("List the images in the store"),
        Command::new("ps").about("List containers").visible_alias("containers"),
        Command::new("inspect")
            .about("Show all that is known of a container or an image")
            .arg(Arg::new("name").value_name("ID|IMAGE").required(true)),
        Command::new("prune")
            .about("Remove images and layers that nothing uses; their disk space is freed in the background")
            .arg(option("keep", "IMAGE", "Keep these images").num_args(1..).action(ArgAction::Append))
            .arg(switch("wait", "Return when all disk space is freed, that of earlier commands too")),
        Command::new("scrub")
            .about("Verify layers on disk; a bad one is moved to quarantine and pulled again. 125 when one stays bad")
            .arg(switch("no_repair", "Only say what is bad"))
            .arg(Arg::new("names").value_name("LAYER|IMAGE").num_args(0..).help("[default: all layers]")),
        Command::new(COLLECT).hide(true).about("Remove what was moved away (started by other commands)"),
        Command::new("kill")
            .about("Send a signal to a container's command")
            .arg(option("signal", "SIGNAL", "Name or number").short('s').default_value("KILL"))
            .arg(ids()),
        Command::new("wait").about("Wait for a container and return its exit status").arg(id()),
        Command::new("exec")
            .about("Run one more command in a container")
            .arg(option("env", "NAME=VALUE", "Set a variable").short('e').action(ArgAction::Append))
            .arg(option("user", "USER[:GROUP]", "Run as this user of the container").short('u'))
            .arg(option("workdir", "DIR", "Start in this directory").short('w'))
            .arg(switch("tty", "Give it a terminal [default: when standard input is one]").short('t'))
            .arg(id())
            .arg(argv("COMMAND").required(true)),
        appc(),
        Command::new("agent").about("The daemon with the operator API (not yet)"),
        Command::new("record").about("Record a pull for replay (not yet)").arg(argv("ARG")),
        Command::new("replay").about("Replay a recorded pull (not yet)").arg(argv("FILE")),
        Command::new("reference")
            .about("Print the canonical form of an image name, or why it has none")
            .arg(Arg::new("name").value_name("NAME").required(true)),
        Command::new("completions")
            .about("Print a completion script for a shell")
            .arg(Arg::new("shell").required(true).value_parser(clap::value_parser!(clap_complete::Shell))),
        Command::new("man").about("Print the manual page"),
    ])
    .mut_args(dashed)
    .mut_subcommands(|command| {
        command.mut_args(dashed).mut_subcommands(|command| command.mut_args(dashed))
    })
}

fn appc() -> Command {
    let prefix = || option("prefix", "NAME", "For this image, and those whose names begin with NAME/");
    let root = || switch("root", "For all images").conflicts_with("prefix");
    Command::new("appc")
        .about("Say which keys are trusted to sign appc images")
        .subcommand_required(true)
        .arg_required_else_help(true)
        .subcommands([
            Command::new("trust")
                .about("Trust the owners of keys to sign images, after showing each key and asking")
                .after_help(
                    "Files hold public keys in ASCII armour (gpg --armor --export). Without any, the keys are discovered that \
                     the web page of\n--prefix names. Compare each fingerprint with one that came another way than the \
                     key. Without a terminal,\n--fingerprint says which keys are right.",
                )
                .arg(prefix().required_unless_present("root"))
                .arg(root())
                .arg(
                    option("fingerprint", "FINGERPRINT", "Trust the key with this fingerprint, all 40 or 64 digits of it, and do not ask")
                        .action(ArgAction::Append),
                )
                .arg(
                    switch("skip_fingerprint_review", "Trust whatever keys are there, and do not ask")
                        .conflicts_with("fingerprint"),
                )
                .arg(Arg::new("files").value_name("FILE|URL").num_args(0..)),
            Command::new("untrust")
                .about("Trust keys no longer; without --prefix or --root, for no image")
                .arg(prefix())
                .arg(root())
                .arg(Arg::new("fingerprints").value_name("FINGERPRINT").required(true).num_args(1..)),
            Command::new("keys").about("List the keys that are trusted, and for which images"),
        ])
}

fn run() -> Command {
    Command::new("run")
        .about("Provision, launch, wait, destroy: the exit status is the command's")
        .after_help(
            "Arguments replace the command of a docker or OCI image, and follow its entrypoint. Of an Appc image they replace all of \
             its exec but the first word (rkt appends them); --entrypoint replaces all of it.",
        )
        .override_usage("keelblock [FLAGS] run [OPTIONS] IMAGE [--] [ARG...]\n       keelblock [FLAGS] run --host_root [OPTIONS] [--] COMMAND [ARG...]")
        .arg(option("id", "ID", "Name of the container [default: a random one]").alias("name"))
        .arg(option("env", "NAME=VALUE", "Set a variable, above those of the image").short('e').action(ArgAction::Append))
        .arg(option("user", "USER[:GROUP]", "Run as this user, above that of the image").short('u'))
        .arg(option("workdir", "DIR", "Start in this directory, above that of the image").short('w'))
        .arg(switch("tty", "Give it a terminal [default: when standard input and output are one]").short('t'))
        .arg(switch("shell", "The arguments are one line for /bin/sh -c; the image's entrypoint is not used"))
        .arg(option("entrypoint", "FILE", "Execute this file in place of the image's entrypoint and command (of an Appc image: its exec)"))
        .arg(
            option("volume", "HOST:PATH[:ro]", "Mount a file or directory of the host; also NAME,kind=host,source=HOST[,readOnly=true], as --mount_point")
                .short('v')
                .action(ArgAction::Append),
        )
        .arg(option("volume_image", "IMAGE:PATH[:ro]", "Mount the root filesystem of an image").action(ArgAction::Append))
        .arg(
            option("mount_point", "NAME=HOST[:ro]", "Fill this mount point of an Appc image with a directory of the host")
                .action(ArgAction::Append),
        )
        .arg(
            option("mount_point_image", "NAME=IMAGE[:ro]", "Fill this mount point of an Appc image with the root filesystem of an image")
                .action(ArgAction::Append),
        )
        .arg(switch("read_only", "Mount the root filesystem read-only"))
        .arg(switch("host_root", "No image: run in the host's root filesystem"))
        .arg(option("cap_add", "LIST", "Capabilities beside the default ones, or `all`").action(ArgAction::Append))
        .arg(option("cap_drop", "LIST", "Capabilities not to have, or `all`").action(ArgAction::Append))
        .arg(option("memory", "BYTES", "Most memory, swap included: 64M, 1G; needs cgroups/mem in --isolation"))
        .arg(option("cpus", "NUMBER", "Most processors: 2, 0.5; needs cgroups/cpu in --isolation"))
        .arg(argv("ARG").value_names(["IMAGE", "ARG"]).required(true))
}

fn option(name: &'static str, value: &'static str, help: &'static str) -> Arg {
    Arg::new(name).long(name).value_name(value).help(help)
}

fn switch(name: &'static str, help: &'static str) -> Arg {
    Arg::new(name).long(name).help(help).action(ArgAction::SetTrue)
}

fn id() -> Arg {
    Arg::new("id").value_name("ID").required(true)
}

fn ids() -> Arg {
    Arg::new("ids").value_name("ID").required(true).num_args(1..)
}

fn images() -> Arg {
    Arg::new("images").value_name("IMAGE").required(true).num_args(1..)
}

/// The rest of the line: from the first word that is no option on, nothing is an option of ours.
fn argv(name: &'static str) -> Arg {
    Arg::new("argv").value_name(name).num_args(0..).trailing_var_arg(true).allow_hyphen_values(true)
}

/// `--work_dir` is `--work-dir` too.
fn dashed(arg: Arg) -> Arg {
    match arg.get_long().filter(|long| long.contains('_')).map(|long| long.replace('_', "-")) {
        Some(alias) => arg.alias(alias),
        None => arg,
    }
}

/// The agent flags that were typed, with their texts.
pub(super) fn typed_flags(matches: &ArgMatches) -> Vec<(&'static str, String)> {
    let text = |name| matches.get_one::<String>(name).cloned();
    FLAGS.iter().filter_map(|flag| Some((flag.name, text(flag.name)?))).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn parse(line: &str) -> ArgMatches {
        command().try_get_matches_from(line.split(' ')).unwrap_or_else(|error| panic!("{line}: {error}"))
    }

    #[test]
    fn the_command_line_is_well_formed() {
        command().debug_assert();
    }

    #[test]
    fn flags_stand_before_or_after_the_command_with_underscores_or_dashes() {
        for line in ["keelblock --work_dir /x images", "keelblock images --work-dir=/x"] {
            assert_eq!(typed_flags(parse(line).subcommand().unwrap().1), [("work_dir", "/x".to_owned())]);
        }
        let matches = parse("keelblock --docker-ignore-user ps");
        assert_eq!(typed_flags(&matches), [("docker_ignore_user", "true".to_owned())]);
        assert_eq!(typed_flags(&parse("keelblock --docker_ignore_user=false ps"))[0].1, "false");
    }

    #[test]
    fn what_follows_the_image_belongs_to_the_container() {
        for line in ["keelblock run --id a img -- ls --json", "keelblock run --id a img ls --json"] {
            let matches = parse(line);
            let run = matches.subcommand().unwrap().1;
            let argv: Vec<_> = run.get_many::<String>("argv").unwrap().collect();
            assert_eq!(argv.first().map(|text| text.as_str()), Some("img"), "{line}");
            assert_eq!(argv.last().map(|text| text.as_str()), Some("--json"), "{line}");
            assert!(!run.get_flag("json"));
        }
    }
}
