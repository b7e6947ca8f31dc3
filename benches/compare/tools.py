"""The competitors, each with the commands that a person would use, and the floors that nobody gets below."""

import json
import re
import resource
import signal
import subprocess
from pathlib import Path

from measure import Daemon, Failed, have, run, wait_for

HERE = Path(__file__).resolve().parent


class Tool:
    """One competitor. `home` is a directory on the file system that is measured."""

    daemon = None
    on_disk = True  # whether what it writes on the measured file system is to be counted

    def start(self, home):
        """What runs before the clock does."""

    def stop(self):
        if self.daemon:
            self.daemon.stop()
            self.daemon = None

    def pids(self):
        """Processes of its own beside the command: a daemon."""
        return [self.daemon.child.pid] if self.daemon else []

    def traced(self, home, image, out):
        """Pulls and unpacks under strace, whose table goes to the files `out`-*; what is unpacking, where a tool has a command
        of its own for that."""
        for n, argv in enumerate(self.pull(home, image)):
            run("strace", "-f", "-c", "-o", f"{out}-{n}", *argv)


class Keelblock(Tool):
    def __init__(self, binary, name="keelblock", flags=(), prune=()):
        self.binary, self.name, self.flags, self.prune = binary, name, flags, prune

    def base(self, home):
        return [self.binary, "--work_dir", home / "keelblock", *self.flags]

    def pull(self, home, image):
        return [[*self.base(home), "pull", image]]

    def run(self, home, image, n):
        return self.run_command(home, image, ["/bin/true"])

    def run_command(self, home, image, argv):
        return [*self.base(home), "run", image, "--", *argv]

    def provision(self, home, image, n):
        return [[*self.base(home), "provision", "--id", f"bench-{n}", image]]

    def unprovision(self, home, n):
        return [[*self.base(home), "destroy", f"bench-{n}"]]

    def remove(self, home, image):
        return [[*self.base(home), "prune", *self.prune]]

    def trees(self, home, image):
        """The unpacked layers of an image that was pulled, base first."""
        trees = [home / "keelblock/store/layers" / layer.diff_id.replace(":", "/") / "tree" for layer in image.layers]
        missing = [tree for tree in trees if not tree.is_dir()]
        if missing:
            raise Failed(f"the store has no {missing[0]}")
        return trees


class SkopeoUmoci(Tool):
    name = "skopeo + umoci"

    def pull(self, home, image):
        return [["skopeo", "--insecure-policy", "copy", "--quiet", "--src-tls-verify=false", f"docker://{image}",
                 f"oci:{home}/oci:1"],
                ["umoci", "unpack", "--image", f"{home}/oci:1", home / "bundle"]]

    def traced(self, home, image, out):
        fetch, unpack = self.pull(home, image)
        run(*fetch)
        run("strace", "-f", "-c", "-o", f"{out}-0", *unpack)


class Podman(Tool):
    name = "podman"

    def limits(self):
        """Limits below our own: its defaults are higher, and not everyone may raise them."""
        for name, which in (("nofile", resource.RLIMIT_NOFILE), ("nproc", resource.RLIMIT_NPROC)):
            hard = min(limit for limit in (4096, resource.getrlimit(which)[1]) if limit >= 0)
            yield f"--ulimit={name}={hard}:{hard}"

    def base(self, home):
        return ["podman", "--root", home / "podman", "--runroot", home / "podman-run", "--tmpdir",
                home / "podman-tmp", "--storage-driver", "overlay", "--cgroup-manager=cgroupfs",
                "--events-backend=none"]

    def pull(self, home, image):
        return [[*self.base(home), "pull", "-q", "--tls-verify=false", image]]

    def run(self, home, image, n):
        return [*self.base(home), "run", "--rm", "--network=host", "--cgroups=disabled", *self.limits(), image,
                "/bin/true"]

    def provision(self, home, image, n):
        return [[*self.base(home), "create", "--name", f"bench-{n}", "--network=host", "--cgroups=disabled", *self.limits(),
                 image, "/bin/true"],
                [*self.base(home), "mount", f"bench-{n}"]]

    def unprovision(self, home, n):
        return [[*self.base(home), "rm", "-f", f"bench-{n}"]]

    def remove(self, home, image):
        return [[*self.base(home), "rmi", image]]


class Containerd(Tool):
    name = "containerd"

    def start(self, home):
        (home / "containerd").mkdir(exist_ok=True)
        config = home / "containerd.toml"
        self.socket = home / "containerd.sock"
        config.write_text(
            f'version = 2\nroot = "{home}/containerd/root"\nstate = "{home}/containerd/state"\n'
            f'disabled_plugins = ["io.containerd.grpc.v1.cri"]\n[grpc]\naddress = "{self.socket}"\n')
        self.daemon = Daemon(["containerd", "--config", config], home / "containerd.log")
        wait_for("containerd", lambda: self.socket.exists() and run(*self.base(home), "version"))

    def base(self, home):
        return ["ctr", "--address", self.socket]

    def pull(self, home, image):
        return [[*self.base(home), "images", "pull", "--plain-http", image]]

    def run(self, home, image, n):
        return [*self.base(home), "run", "--rm", image, f"bench-{n}", "/bin/true"]

    def provision(self, home, image, n):
        (home / f"mnt-{n}").mkdir()
        return [[*self.base(home), "images", "mount", "--rw", image, home / f"mnt-{n}"]]

    def unprovision(self, home, n):
        return [[*self.base(home), "images", "unmount", "--rm", home / f"mnt-{n}"]]

    def remove(self, home, image):
        return [[*self.base(home), "images", "rm", "--sync", image]]

    def traced(self, home, image, out):
        """The daemon does the work."""
        strace = subprocess.Popen(["strace", "-f", "-c", "-o", f"{out}-0", "-p", str(self.daemon.child.pid)],
                                  stdin=subprocess.DEVNULL, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE)
        while b"attached" not in (line := strace.stderr.readline()):
            if not line:
                raise Failed("strace does not attach to containerd")
        try:
            for argv in self.pull(home, image):
                run(*argv)
        finally:
            strace.send_signal(signal.SIGINT)
            strace.communicate()


class Pipeline(Tool):
    """pipeline.sh: the standard tools of a Unix, well put together."""

    name = "pipeline"

    def pull(self, home, image):
        return [[HERE / "pipeline.sh", f"http://{image.address}", image.name, image.tag, home / "pipeline"]]

    def remove(self, home, image):
        return [["rm", "-rf", home / "pipeline"]]

    def traced(self, home, image, out):
        """Only its tar: the other programs move bytes, and make no files."""
        for n, layer in enumerate(image.layers):
            (home / str(n)).mkdir()
            run("strace", "-f", "-c", "-o", f"{out}-{n}", "tar", "--numeric-owner", "--xattrs", "--xattrs-include=*",
                "-xpf", layer.tar, "-C", home / str(n))


class Floor(Tool):
    """One step of a pull alone, for all layers of an image, two at a time. `script` runs in `home`, with what it works on
    as its arguments."""

    def __init__(self, name, script, inputs, on_disk=False):
        self.name, self.script, self.inputs, self.on_disk = name, script, inputs, on_disk

    def pull(self, home, image):
        return [["sh", "-ec", f'cd "$1"; shift; {self.script}', "sh", home, *self.inputs(image)]]


def floors():
    """What is to be done at the least, by the quickest program for it that Debian has."""

    def urls(image):
        return [image.blob_url(layer) for layer in image.layers]

    def blobs(image):
        return [layer.blob for layer in image.layers]

    def tars(image):
        return [layer.tar for layer in image.layers]

    def each(script):
        return f"printf '%s\\n' \"$@\" | xargs -P 2 -n 1 sh -ec '{script}' sh"

    found = []
    if have("curl"):
        found.append(Floor("floor: fetch", """printf 'url="%s"\\noutput=/dev/null\\n' "$@" | curl -fsSZ --parallel-max 2 -K -""",
                           urls))
    if have("curl", "openssl"):
        found.append(Floor("floor: fetch + sha256", each('curl -fsS "$1" | openssl dgst -sha256 -r >/dev/null'), urls))
    found.append(Floor(f"floor: {gunzip()} -d", each(f'{gunzip()} -d -c "$1" >/dev/null'), blobs))
    extract = 'd=$(mktemp -d -p .); tar --numeric-owner --xattrs --xattrs-include="*" -xpf "$1" -C "$d"'
    found.append(Floor("floor: tar -x", each(extract), tars, on_disk=True))
    found.append(sequential_write("floor: write"))
    return found


def gunzip():
    """The quickest that Debian has."""
    return "igzip" if have("igzip") else "gzip"


def sequential_write(name, end=""):
    """A file of the bytes of all tars, written from the page cache from the first to the last."""
    write = 'for tar; do dd if="$tar" of=written bs=1M oflag=append conv=notrunc status=none; done'
    return Floor(name, write + end, lambda image: [layer.tar for layer in image.layers], on_disk=True)


def written_and_synced():
    """The same, until it is on the disk."""
    return sequential_write("floor: write + fdatasync", "; sync -d written")


class Bundle(Tool):
    """A runtime on a bundle that lies ready: the root filesystem costs it nothing."""

    def __init__(self, name, argv):
        self.name, self.argv = name, argv

    def prepare(self, home, rootfs):
        self.bundle = home / f"bundle-{self.name.replace(' ', '-')}"
        self.bundle.mkdir()
        run("runc", "spec", cwd=self.bundle)
        config = json.loads((self.bundle / "config.json").read_text())
        config["process"].update(terminal=False, args=["/bin/true"])
        config["root"] = {"path": str(rootfs), "readonly": False}
        if "--cgroup-manager=disabled" in self.argv:
            config["linux"].pop("resources", None)
        (self.bundle / "config.json").write_text(json.dumps(config))
        self.state = home / f"state-{self.name.replace(' ', '-')}"

    def run(self, home, image, n):
        return [*self.argv, "--root", self.state, "run", "--bundle", self.bundle, f"bench-{n}"]


class Unshare(Tool):
    """The floor: namespaces and a chroot, nothing prepared and nothing cleaned up."""

    name = "unshare + chroot"

    def prepare(self, home, rootfs):
        self.rootfs = rootfs

    def run(self, home, image, n):
        return ["unshare", "--mount", "--pid", "--fork", "--ipc", "--uts", "chroot", self.rootfs, "/bin/true"]


class Copy(Tool):
    """`cp -aT` of every layer, base first, as Mesos' copy backend does."""

    name = "cp -aT"

    def __init__(self, keelblock):
        self.keelblock = keelblock

    def provision(self, home, image, n):
        return [["sh", "-ec", 'to=$1; shift; for layer; do cp -aT "$layer" "$to"; done', "sh", home / f"copied-{n}",
                 *self.keelblock.trees(home, image)]]


def calls_of(files):
    """System calls by name, from the tables of `strace -c`."""
    calls = {}
    for file in files:
        for line in file.read_text().splitlines():
            # % time, seconds, usecs/call, calls, errors (may be empty), syscall
            row = re.fullmatch(r"\s*[\d.]+\s+[\d.]+\s+\d+\s+(\d+)\s+(?:\d+\s+)?([a-z]\w*)", line)
            if row and row[2] != "total":
                calls[row[2]] = calls.get(row[2], 0) + int(row[1])
    if not calls:
        raise Failed("strace counted nothing")
    return calls


def wanted(o, tools):
    """Those that --tools names."""
    return [t for t in tools if not o.tools or t.name in o.tools or isinstance(t, Floor) and "floors" in o.tools]


def pullers(o):
    tools = [Keelblock(o.binary)] if o.binary else []
    tools += [SkopeoUmoci()] if have("skopeo", "umoci") else []
    tools += [Podman()] if have("podman") else []
    tools += [Containerd()] if have("containerd", "ctr") else []
    tools += [Pipeline()] if have("bash", "curl", "tee", "openssl", "igzip", "jq", "xargs") else []
    return wanted(o, tools)


def knows(o, command, flag):
    """Whether this keelblock has a flag."""
    return bool(o.binary) and f"--{flag}" in run(o.binary, command, "--help")


def forms(o):
    """keelblock with its layers as images and as trees."""
    return wanted(o, [Keelblock(o.binary, "keelblock", ["--layer_form=erofs"]),
                      Keelblock(o.binary, "keelblock (trees)", ["--layer_form=tree"])])


def provisioners(o):
    copying = [Keelblock(o.binary, "keelblock (copy)", ["--image_provisioner_backend=copy"])] if o.binary else []
    return [t for t in pullers(o) if hasattr(t, "provision")] + wanted(o, copying)


def removers(o):
    """`prune` leaves the deletion to a process in the background where it knows `--wait`."""
    tools = [t for t in pullers(o) if hasattr(t, "remove")]
    if knows(o, "prune", "wait"):
        tools += wanted(o, [Keelblock(o.binary, "keelblock (--wait)", prune=["--wait"])])
    return tools


def launchers(o):
    tools = []
    if have("runc"):
        if have("crun"):
            tools += [Bundle("crun", ["crun"]), Bundle("crun without cgroups", ["crun", "--cgroup-manager=disabled"])]
        tools += [Bundle("runc", ["runc"])]
    return [t for t in pullers(o) if hasattr(t, "run")] + wanted(o, [*tools, Unshare()])
