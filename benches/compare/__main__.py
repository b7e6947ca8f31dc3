"""Measures keelblock beside its peers. Started by compare.sh, which says what for.

Rules that keep the comparison fair, each learnt from a measurement that was not:

- Every cold pull runs on a file system of its own, made a moment before (ext4 in a loop file): ext4 that has just
  deleted much creates files many times slower.
- Tools take turns within a round, in an order shuffled anew each round, so that a slow minute of the machine
  hits all of them. The first round warms caches and is thrown away.
- A cold pull is timed twice: until the command ends, and until its file system is synced as well. Some tools
  sync before they call an image pulled and some do not; the second number is the same promise for all.
- Memory is sampled in runs of its own, because sampling costs time.
"""

import argparse
import io
import json
import os
import platform
import random
import resource
import shutil
import signal
import socket
import statistics
import subprocess
import sys
import tarfile
import time
import urllib.request
from pathlib import Path

PARTS = ["cold", "memory", "warm", "launch", "together"]


# ---- small things ---------------------------------------------------------------------------------------------


class Failed(Exception):
    pass


def run(*argv, **options):
    """Runs a command to its end; what it said is the error."""
    argv = [str(a) for a in argv]
    done = subprocess.run(argv, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, **options)
    if done.returncode != 0:
        raise Failed(f"{' '.join(argv)} ended with {done.returncode}: {done.stdout.decode(errors='replace')[-2000:]}")
    return done.stdout.decode(errors="replace")


def timed(*commands):
    """Runs commands one after another; gives wall seconds, and processor seconds of them and their children."""
    before = time.perf_counter()
    used = 0.0
    for argv in commands:
        argv = [str(a) for a in argv]
        with open(LOG, "wb") as log:
            child = os.posix_spawnp(
                argv[0], argv, os.environ,
                file_actions=[(os.POSIX_SPAWN_OPEN, 0, "/dev/null", os.O_RDONLY, 0),
                              (os.POSIX_SPAWN_DUP2, log.fileno(), 1), (os.POSIX_SPAWN_DUP2, log.fileno(), 2)])
            _, status, usage = os.wait4(child, 0)
        if status != 0:
            said = Path(LOG).read_text(errors="replace")[-2000:]
            raise Failed(f"{' '.join(argv)} ended with {os.waitstatus_to_exitcode(status)}: {said}")
        used += usage.ru_utime + usage.ru_stime
    return time.perf_counter() - before, used


def have(*programs):
    return all(shutil.which(p) for p in programs)


def free_port():
    with socket.socket() as s:
        s.bind(("127.0.0.1", 0))
        return s.getsockname()[1]


def wait_for(what, check, seconds=30):
    end = time.monotonic() + seconds
    while time.monotonic() < end:
        try:
            if check():
                return
        except OSError:
            pass
        time.sleep(0.02)
    raise Failed(f"{what} did not start within {seconds} s")


def unmount_below(directory):
    for _ in range(5):
        points = [line.split()[4] for line in open("/proc/self/mountinfo")]
        points = [p for p in points if (p + "/").startswith(str(directory) + "/")]
        if not points:
            return
        for point in reversed(points):
            subprocess.run(["umount", point], stderr=subprocess.DEVNULL)
        time.sleep(0.02)
    for point in reversed(points):
        subprocess.run(["umount", "-l", point], stderr=subprocess.DEVNULL)


class Disk:
    """A new ext4 of its own, mounted; gone with the `with`."""

    def __init__(self, scratch, size):
        self.image, self.size = scratch / "disk.img", size
        self.path = scratch / "disk"

    def __enter__(self):
        self.path.mkdir(exist_ok=True)
        with open(self.image, "wb") as f:
            f.truncate(self.size)
        # Inode tables made now, or the kernel makes them during the measurement.
        run("mkfs.ext4", "-q", "-F", "-E", "lazy_itable_init=0,lazy_journal_init=0", self.image)
        run("mount", "-o", "loop", self.image, self.path)
        return self.path

    def __exit__(self, *_):
        unmount_below(self.path)
        self.image.unlink(missing_ok=True)


class Daemon:
    """A server of ours, started and stopped."""

    def __init__(self, argv, log):
        self.log = open(log, "wb")
        self.child = subprocess.Popen([str(a) for a in argv], stdin=subprocess.DEVNULL, stdout=self.log,
                                      stderr=self.log)

    def stop(self):
        self.child.terminate()
        try:
            self.child.wait(20)
        except subprocess.TimeoutExpired:
            self.child.kill()
            self.child.wait()
        self.log.close()


# ---- images ---------------------------------------------------------------------------------------------------


def debian_tar(cache):
    """A minimal Debian, made once."""
    tar = cache / "debian-bookworm-minbase.tar"
    if not tar.exists():
        cache.mkdir(parents=True, exist_ok=True)
        root = cache / "debootstrap"
        shutil.rmtree(root, ignore_errors=True)
        print("making a Debian with debootstrap, once", file=sys.stderr)
        mirror = [m for m in [os.environ.get("DEBOOTSTRAP_MIRROR")] if m]
        run("debootstrap", "--variant=minbase", "bookworm", root, *mirror)
        part = tar.with_suffix(".part")
        run("tar", "--numeric-owner", "--xattrs", "--xattrs-include=*", "--format=pax", "--sort=name", "-C", root,
            "-cf", part, ".")
        part.rename(tar)
        shutil.rmtree(root)
    return tar


def many_layers(base, layers, files, directory):
    """Tars of an image with many layers: the Debian's own shell and libraries below, small files above."""
    random.seed(7)
    tars = [base]
    for layer in range(layers - 1):
        path = directory / f"layer-{layer}.tar"
        with tarfile.open(path, "w") as tar:
            for n in range(files):
                # Text of the size that sources and site-packages have, compressible as they are.
                words = random.choices(["alpha", "beta", "gamma", "delta", str(random.random())], k=800)
                body = " ".join(words).encode()
                info = tarfile.TarInfo(f"opt/layer-{layer}/dir-{n // 20}/file-{n}")
                info.size, info.mtime = len(body), 1_600_000_000
                tar.addfile(info, io.BytesIO(body))
        tars.append(path)
    return tars


def small_base(tar, directory):
    """The part of the Debian that /bin/true needs, so that the many-layer image is about its layers."""
    path = directory / "base.tar"
    wanted = ("./bin", "./lib", "./lib64", "./usr/bin/true", "./usr/bin/sh", "./usr/bin/dash", "./etc/passwd",
              "./etc/group", "./proc", "./sys", "./dev", "./tmp")
    libraries = ("libc.so.6", "ld-linux", "ld-2", "libc-2")
    with tarfile.open(tar) as source, tarfile.open(path, "w") as target:
        for member in source:
            if member.isdir() and member.name.count("/") <= 3 or member.name in wanted \
                    or any(Path(member.name).name.startswith(l) for l in libraries):
                target.addfile(member, source.extractfile(member) if member.isreg() else None)
    return path


def push(tars, name, directory, registry):
    """Makes an image of these layers with umoci's raw commands and pushes it with skopeo."""
    layout = directory / name
    shutil.rmtree(layout, ignore_errors=True)
    run("umoci", "init", "--layout", layout)
    run("umoci", "new", "--image", f"{layout}:1")
    for tar in tars:
        run("umoci", "raw", "add-layer", "--image", f"{layout}:1", tar)
    run("umoci", "config", "--image", f"{layout}:1", "--config.cmd", "/bin/true", "--os", "linux", "--architecture",
        {"x86_64": "amd64", "aarch64": "arm64"}.get(platform.machine(), platform.machine()))
    run("skopeo", "--insecure-policy", "copy", "--quiet", "--dest-tls-verify=false", f"oci:{layout}:1",
        f"docker://{registry}/{name}:1")
    manifest = json.loads(run("skopeo", "--insecure-policy", "inspect", "--raw", "--tls-verify=false",
                              f"docker://{registry}/{name}:1"))
    megabytes = sum(layer["size"] for layer in manifest["layers"]) / 1e6
    unpacked = sum(Path(t).stat().st_size for t in tars) / 1e6
    print(f"image {name}: {len(tars)} layers, {megabytes:.1f} MB compressed, {unpacked:.0f} MB of tar")
    return f"{registry}/{name}:1"


# ---- tools ----------------------------------------------------------------------------------------------------


class Tool:
    """One competitor. `home` is a directory on the file system that is measured."""

    daemon = None

    def start(self, home):
        """What runs before the clock does."""

    def stop(self):
        if self.daemon:
            self.daemon.stop()
            self.daemon = None

    def pids(self):
        """Processes of its own beside the command: a daemon."""
        return [self.daemon.child.pid] if self.daemon else []


class Keelblock(Tool):
    name = "keelblock"

    def __init__(self, binary, flags=(), name=None):
        self.binary, self.flags = binary, list(flags)
        self.name = name or self.name

    def base(self, home):
        return [self.binary, "--work_dir", home / "keelblock", *self.flags]

    def pull(self, home, image):
        return [[*self.base(home), "pull", image]]

    def run(self, home, image, n):
        return [*self.base(home), "run", image, "--", "/bin/true"]

    def provision(self, home, image, n):
        return [[*self.base(home), "provision", "--id", f"bench-{n}", image]]

    def unprovision(self, home, n):
        return [[*self.base(home), "destroy", f"bench-{n}"]]


class SkopeoUmoci(Tool):
    name = "skopeo + umoci"

    def pull(self, home, image):
        return [["skopeo", "--insecure-policy", "copy", "--quiet", "--src-tls-verify=false", f"docker://{image}",
                 f"oci:{home}/oci:1"],
                ["umoci", "unpack", "--image", f"{home}/oci:1", home / "bundle"]]


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


# ---- tables ---------------------------------------------------------------------------------------------------


def show(title, unit, columns, rows, against="keelblock"):
    """Prints medians with their spread, and each tool's first column as a multiple of keelblock's."""
    print(f"\n### {title}\n")
    heads = ["tool"] + [f"{c}, {unit}" for c in columns] + ["lowest..highest", f"x {against}", "n"]
    mine = rows.get(against)
    mine = statistics.median(mine[0]) if mine and mine[0] else None
    lines = []
    for tool, series in rows.items():
        if not series[0]:
            lines.append([tool, *["failed"] * len(columns), "", "", "0"])
            continue
        medians = [statistics.median(s) for s in series]
        factor = f"{medians[0] / mine:.2f}" if mine else ""
        lines.append([tool, *[f"{m:.1f}" for m in medians], f"{min(series[0]):.1f}..{max(series[0]):.1f}", factor,
                      str(len(series[0]))])
    widths = [max(len(l[i]) for l in [heads, *lines]) for i in range(len(heads))]
    for line in [heads, ["-" * w for w in widths], *lines]:
        print("| " + " | ".join(c.ljust(w) for c, w in zip(line, widths)) + " |")
    sys.stdout.flush()


def rounds(count, tools, measure, columns):
    """Lets the tools take turns, first round thrown away. A tool that fails is out, and says why."""
    series = {tool.name: [[] for _ in range(columns)] for tool in tools}
    out = set()
    for turn in range(count + 1):
        order = [t for t in tools if t.name not in out]
        random.shuffle(order)
        for tool in order:
            try:
                values = measure(tool, turn)
            except Failed as why:
                print(f"{tool.name} is out: {why}", file=sys.stderr)
                out.add(tool.name)
                series[tool.name] = [[] for _ in range(columns)]
                continue
            if turn > 0:
                for column, value in zip(series[tool.name], values):
                    column.append(value)
        print(f"  round {turn} of {count}", file=sys.stderr)
    return series


# ---- parts ----------------------------------------------------------------------------------------------------


def pullers(o):
    tools = [Keelblock(o.binary)] if o.binary else []
    tools += [SkopeoUmoci()] if have("skopeo", "umoci") else []
    tools += [Podman()] if have("podman") else []
    tools += [Containerd()] if have("containerd", "ctr") else []
    return [t for t in tools if not o.tools or t.name in o.tools]


def part_cold(o):
    for label, image in o.images.items():

        def measure(tool, _):
            with Disk(o.scratch, o.disk_bytes) as home:
                run("sync")
                tool.start(home)
                try:
                    wall, used = timed(*tool.pull(home, image))
                    before = time.perf_counter()
                    run("sync", "-f", home)
                    return wall * 1e3, (wall + time.perf_counter() - before) * 1e3, used * 1e3
                finally:
                    tool.stop()

        series = rounds(o.rounds, pullers(o), measure, 3)
        show(f"Cold pull and unpack: {label}", "ms", ["done", "done and synced", "processor (client)"], series)


def sample_memory(commands, pids):
    """Highest sum of resident memory of the commands, everything they start, and these daemons; MiB."""
    page, peak = os.sysconf("SC_PAGE_SIZE"), 0
    for argv in commands:
        child = subprocess.Popen([str(a) for a in argv], stdin=subprocess.DEVNULL, stdout=subprocess.DEVNULL,
                                 stderr=subprocess.DEVNULL)
        while child.poll() is None:
            parents, resident = {}, {}
            for entry in os.listdir("/proc"):
                if entry.isdigit():
                    try:
                        parents[int(entry)] = int(open(f"/proc/{entry}/stat").read().rsplit(")", 1)[1].split()[1])
                    except (OSError, IndexError):
                        continue
            ours, grew = {child.pid, *pids}, True
            while grew:
                more = {p for p, parent in parents.items() if parent in ours} - ours
                ours |= more
                grew = bool(more)
            for pid in ours:
                try:
                    resident[pid] = int(open(f"/proc/{pid}/statm").read().split()[1]) * page
                except (OSError, IndexError):
                    pass
            peak = max(peak, sum(resident.values()))
            time.sleep(0.002)
        if child.returncode != 0:
            raise Failed(f"{argv[0]} ended with {child.returncode}")
    return peak / 2**20


def part_memory(o):
    for label, image in o.images.items():

        def measure(tool, _):
            with Disk(o.scratch, o.disk_bytes) as home:
                tool.start(home)
                try:
                    return (sample_memory(tool.pull(home, image), tool.pids()),)
                finally:
                    tool.stop()

        series = rounds(o.rounds, pullers(o), measure, 1)
        show(f"Peak memory of a cold pull, all processes together: {label}", "MiB", ["peak"], series)


def part_warm(o):
    """From an image in the store to a mounted root filesystem."""
    image = o.images["debian"]
    with Disk(o.scratch, o.disk_bytes) as home:
        tools = [t for t in pullers(o) if hasattr(t, "provision")]
        if o.binary:
            tools.append(Keelblock(o.binary, ["--image_provisioner_backend=copy"], "keelblock (copy)"))
        ready(home, tools, image)
        starts = []

        def measure(tool, turn):
            wall, used = timed(*tool.provision(home, image, turn))
            timed(*tool.unprovision(home, turn))
            if isinstance(tool, Keelblock):
                starts.append(timed([o.binary, "reference", "alpine"])[0] * 1e3)
            return wall * 1e3, used * 1e3

        try:
            series = rounds(o.rounds * 4, tools, measure, 2)
        finally:
            for tool in tools:
                tool.stop()
        show("Warm provision: image in the store -> root filesystem mounted", "ms", ["wall", "processor (client)"],
             series)
        if starts:
            print(f"\nProcess start alone (`keelblock reference alpine`): {statistics.median(starts):.1f} ms")


def launchers(o):
    tools = [t for t in pullers(o) if hasattr(t, "run")]
    if have("runc"):
        if have("crun"):
            tools += [Bundle("crun", ["crun"]), Bundle("crun without cgroups", ["crun", "--cgroup-manager=disabled"])]
        tools += [Bundle("runc", ["runc"])]
    tools += [Unshare()]
    return [t for t in tools if not o.tools or t.name in o.tools]


def ready(home, tools, image):
    """Stores filled, daemons up, bundles made: what is not measured."""
    for tool in tools:
        tool.start(home)
        if hasattr(tool, "pull"):
            for argv in tool.pull(home, image):
                run(*argv)
    if any(hasattr(t, "prepare") for t in tools):
        rootfs = home / "ready"
        rootfs.mkdir()
        run("tar", "-xf", DEBIAN, "-C", rootfs, "--numeric-owner")
        for tool in tools:
            if hasattr(tool, "prepare"):
                tool.prepare(home, rootfs)
    run("sync")


def part_launch(o):
    image = o.images["debian"]
    with Disk(o.scratch, o.disk_bytes) as home:
        tools = launchers(o)
        ready(home, tools, image)
        try:
            series = rounds(o.rounds * 6, tools, lambda tool, turn:
                            [v * 1e3 for v in timed(tool.run(home, image, f"one-{turn}"))], 2)
        finally:
            for tool in tools:
                tool.stop()
        show("Warm launch of /bin/true, one at a time: start, root filesystem, launch, wait, destroy", "ms",
             ["wall", "processor (client)"], series)


def part_together(o):
    image = o.images["debian"]
    with Disk(o.scratch, o.disk_bytes) as home:
        tools = launchers(o)
        ready(home, tools, image)

        def measure(tool, turn):
            commands = [[str(a) for a in tool.run(home, image, f"all-{turn}-{n}")] for n in range(o.at_once)]
            null = os.open("/dev/null", os.O_RDWR)
            before = time.perf_counter()
            children = [subprocess.Popen(c, stdin=null, stdout=null, stderr=null) for c in commands]
            statuses = [c.wait() for c in children]
            wall = time.perf_counter() - before
            os.close(null)
            bad = sum(1 for s in statuses if s != 0)
            if bad:
                raise Failed(f"{bad} of {o.at_once} launches ended with {set(statuses)}")
            return (wall * 1e3,)

        try:
            series = rounds(o.rounds, tools, measure, 1)
        finally:
            for tool in tools:
                tool.stop()
        show(f"Warm launch of /bin/true, {o.at_once} at once: until the last has ended", "ms", ["wall"], series)


# ---- the whole ------------------------------------------------------------------------------------------------


def one_cgroup_version():
    """crun refuses a hybrid hierarchy whose version 2 half has controllers. In our mount namespace, and only
    there, that half goes: what stays is the version 1 half that it can use."""
    unified = Path("/sys/fs/cgroup/unified")
    if (unified / "cgroup.controllers").exists() and (unified / "cgroup.controllers").read_text().strip():
        run("umount", unified)
        return "hybrid; version 1 for the peers"
    return "version 2" if Path("/sys/fs/cgroup/cgroup.controllers").exists() else "version 1"


def environment(o):
    def first(*argv):
        try:
            return run(*argv).strip().splitlines()[0]
        except (Failed, OSError, IndexError):
            return "not installed"

    cpu = next((l.split(":")[1].strip() for l in open("/proc/cpuinfo") if l.startswith("model name")),
               platform.machine())
    memory = os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE") / 2**30
    distribution = next((l.split("=")[1].strip().strip('"') for l in open("/etc/os-release")
                         if l.startswith("PRETTY_NAME")), "unknown")
    print(f"date: {time.strftime('%Y-%m-%d')}")
    print(f"machine: {os.cpu_count()} x {cpu}, {memory:.0f} GiB, load {os.getloadavg()[0]:.2f} at the start")
    print(f"system: {distribution}, Linux {platform.release()}")
    print(f"cgroups: {one_cgroup_version()}")
    print(f"scratch: ext4 in a loop file of {o.disk_bytes / 2**30:.0f} GiB on "
          f"{run('stat', '-f', '-c', '%T', o.scratch).strip()}")
    if o.binary:
        print(f"keelblock: {first(o.binary, '--version')}, {o.binary.stat().st_size / 1e6:.1f} MB")
    for name, argv in {"skopeo": ["skopeo", "--version"], "umoci": ["umoci", "--version"],
                       "podman": ["podman", "--version"], "containerd": ["containerd", "--version"],
                       "crun": ["crun", "--version"], "runc": ["runc", "--version"],
                       "docker-registry": ["docker-registry", "--version"]}.items():
        print(f"{name}: {first(*argv)}")
    sys.stdout.flush()


def main():
    global DEBIAN, LOG
    top = Path(__file__).resolve().parent.parent.parent
    target = Path(os.environ.get("CARGO_TARGET_DIR", top / "target"))
    p = argparse.ArgumentParser(prog="benches/compare.sh", description="keelblock beside its peers")
    p.add_argument("parts", nargs="*", metavar="PART", help=f"of {', '.join(PARTS)}; all without")
    p.add_argument("--rounds", type=int, default=5, help="measured rounds, besides one thrown away (5)")
    p.add_argument("--scratch", type=Path, default=target / "bench", help="where loop files and servers lie")
    p.add_argument("--binary", type=Path, default=target / "release/keelblock", help="the keelblock to measure")
    p.add_argument("--tools", type=lambda s: s.split(","), help="only these, by the names in the tables")
    p.add_argument("--at-once", type=int, default=100, help="launches of the part together (100)")
    p.add_argument("--layers", type=int, default=40, help="layers of the many-layer image (40)")
    p.add_argument("--files", type=int, default=200, help="files in each of them (200)")
    p.add_argument("--disk-gib", type=int, default=6, help="size of the file systems (6)")
    o = p.parse_args()
    unknown = [part for part in o.parts if part not in PARTS]
    if unknown:
        p.error(f"unknown part {unknown[0]}; known are {', '.join(PARTS)}")
    o.disk_bytes = o.disk_gib << 30
    needed = [x for x in ("docker-registry", "skopeo", "umoci", "debootstrap", "mkfs.ext4") if not have(x)]
    if needed:
        sys.exit(f"compare.sh: not installed: {' '.join(needed)}")
    if not o.binary.exists():
        print(f"{o.binary} is missing (cargo build --release): only the peers are measured", file=sys.stderr)
        o.binary = None
    # Short, because unix sockets and overlay options are: and of its own, because runs may overlap.
    o.scratch = o.scratch.resolve() / str(os.getpid())
    o.scratch.mkdir(parents=True)
    LOG = o.scratch / "last-command.log"
    registry = None
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))
    try:
        DEBIAN = debian_tar(target / "ci-cache")
        environment(o)
        port = free_port()
        config = o.scratch / "registry.yml"
        config.write_text(f"version: 0.1\nlog: {{level: error, accesslog: {{disabled: true}}}}\n"
                          f"storage: {{filesystem: {{rootdirectory: {o.scratch}/registry}}}}\n"
                          f"http: {{addr: '127.0.0.1:{port}'}}\n")
        registry = Daemon(["docker-registry", "serve", config], o.scratch / "registry.log")
        address = f"127.0.0.1:{port}"
        wait_for("docker-registry", lambda: urllib.request.urlopen(f"http://{address}/v2/").status == 200)
        parts = o.parts or PARTS
        o.images = {"debian": push([DEBIAN], "debian", o.scratch, address)}
        if {"cold", "memory"} & set(parts):
            tars = many_layers(small_base(DEBIAN, o.scratch), o.layers, o.files, o.scratch)
            o.images["many layers"] = push(tars, "many", o.scratch, address)
        sys.stdout.flush()
        for part in parts:
            globals()[f"part_{part}"](o)
    except Failed as why:
        sys.exit(f"compare.sh: {why}")
    finally:
        if registry:
            registry.stop()
        unmount_below(o.scratch)
        shutil.rmtree(o.scratch, ignore_errors=True)


main()
