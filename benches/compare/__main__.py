"""Measures keelblock beside its peers. Started by compare.sh, which says what for.

Rules that keep the comparison fair, each learnt from a measurement that was not:

- Every cold pull runs on a file system of its own, made a moment before (ext4 in a loop file): ext4 that has just
  deleted much creates files many times slower.
- Tools take turns within a round, in an order shuffled anew each round, so that a slow minute of the machine
  hits all of them. The floors run in the same rounds. A part begins with a round that is thrown away: it warms caches.
- A cold pull is timed twice: until the command ends, and until its file system is synced as well. Some tools
  sync before they call an image pulled and some do not; the second number is the same promise for all.
- Processor time is that of everything a pull makes run, a daemon and what outlives its parent too; not the registry's.
- Memory is sampled in a round of its own, because sampling costs time.
"""

import argparse
import json
import os
import platform
import shutil
import signal
import sys
import time
import urllib.request
from pathlib import Path

import images
import parts
import tables
from measure import Daemon, Failed, free_port, have, run, unmount_below, wait_for


def one_cgroup_version():
    """crun refuses a hybrid hierarchy whose version 2 half has controllers. In our mount namespace, and only
    there, that half goes: what stays is the version 1 half that it can use."""
    unified = Path("/sys/fs/cgroup/unified")
    if (unified / "cgroup.controllers").exists() and (unified / "cgroup.controllers").read_text().strip():
        run("umount", unified)
        return "hybrid; version 1 for the peers"
    return "version 2" if Path("/sys/fs/cgroup/cgroup.controllers").exists() else "version 1"


def environment(o):
    """What the numbers are of: key -> text."""

    def first(*argv):
        try:
            return run(*argv).strip().splitlines()[0][:100]
        except (Failed, OSError, IndexError):
            return "not installed"

    cpu = next((l.split(":")[1].strip() for l in open("/proc/cpuinfo") if l.startswith("model name")),
               platform.machine())
    memory = os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE") / 2**30
    distribution = next((l.split("=")[1].strip().strip('"') for l in open("/etc/os-release")
                         if l.startswith("PRETTY_NAME")), "unknown")
    told = {
        "date": time.strftime("%Y-%m-%d"),
        "machine": f"{os.cpu_count()} x {cpu}, {memory:.0f} GiB, load {os.getloadavg()[0]:.2f} at the start",
        "system": f"{distribution}, Linux {platform.release()}",
        "cgroups": one_cgroup_version(),
        "scratch": f"ext4 in a loop file of {o.disk_bytes / 2**30:.0f} GiB on "
                   f"{run('stat', '-f', '-c', '%T', o.scratch).strip()}",
        "images": "tiny: the figures say nothing" if o.tiny else "as below",
        "rounds": str(o.rounds),
    }
    if o.binary:
        told["keelblock"] = f"{first(o.binary, '--version')}, {o.binary.stat().st_size / 1e6:.1f} MB"
    for name in ("skopeo", "umoci", "podman", "containerd", "crun", "runc", "docker-registry", "curl", "igzip", "tar"):
        told[name] = first(name, "--version")
    return told


def chosen(known):
    """The type of an option that is a list of these, separated by commas."""

    def parse(text):
        names = text.split(",")
        for name in names:
            if name not in known:
                raise argparse.ArgumentTypeError(f"{name} is unknown; known are {', '.join(known)}")
        return names

    return parse


def options():
    top = Path(__file__).resolve().parent.parent.parent
    target = Path(os.environ.get("CARGO_TARGET_DIR", top / "target"))
    cache = Path(os.environ.get("XDG_CACHE_HOME", Path.home() / ".cache")) / "keelblock-bench"
    p = argparse.ArgumentParser(prog="benches/compare.sh", description="keelblock beside its peers")
    p.add_argument("parts", nargs="*", metavar="PART", help=f"of {', '.join(parts.ALL)}; all without")
    p.add_argument("--images", type=chosen(images.NAMES), default=images.NAMES, help=f"of {','.join(images.NAMES)} (all)")
    p.add_argument("--tools", type=lambda s: s.split(","),
                   help="only these, by the names in the tables; `floors` for all of those")
    p.add_argument("--rounds", type=int, default=3,
                   help="measured rounds, besides one thrown away (3); 1 is a trial that throws none away")
    p.add_argument("--binary", type=Path, default=target / "release/keelblock", help="the keelblock to measure")
    p.add_argument("--cache", type=Path, default=cache, help=f"where images are kept between runs, about 4 GB ({cache})")
    p.add_argument("--scratch", type=Path, default=Path("/dev/shm/keelblock-bench"),
                   help="where loop files and servers lie; best on tmpfs (/dev/shm/keelblock-bench)")
    p.add_argument("--disk-gib", type=int, default=6, help="size of the file systems (6)")
    p.add_argument("--at-once", type=int, default=100, help="launches of the part together (100)")
    p.add_argument("--tiny", action="store_true",
                   help="images of the same shapes from a few kilobytes, without a network: shows that all works")
    p.add_argument("--json", type=Path, metavar="FILE", help="keep every single value here")
    p.add_argument("--table", type=Path, metavar="FILE", help="measure nothing: print what --json FILE kept, as markdown")
    o = p.parse_args()
    unknown = [part for part in o.parts if part not in parts.ALL]
    if unknown:
        p.error(f"unknown part {unknown[0]}; known are {', '.join(parts.ALL)}")
    if o.rounds < 1:
        p.error("--rounds is 1 or more")
    o.parts = o.parts or parts.ALL
    o.disk_bytes = o.disk_gib << 30
    o.warm_up = o.rounds > 1
    return o


def measure(o):
    needed = [x for x in ("docker-registry", "skopeo", "umoci", "mkfs.ext4") if not have(x)]
    if needed:
        raise Failed(f"not installed: {' '.join(needed)}")
    if not o.binary.exists():
        print(f"{o.binary} is missing (cargo build --release): only the peers are measured", file=sys.stderr)
        o.binary = None
    # Short, because unix sockets and overlay options are; and of its own, because runs may overlap.
    o.cache, o.scratch = o.cache.resolve(), o.scratch.resolve() / str(os.getpid())
    o.cache.mkdir(parents=True, exist_ok=True)
    o.scratch.mkdir(parents=True)
    registry = None
    try:
        results = tables.Results(environment(o), o.json)
        address = f"127.0.0.1:{free_port()}"
        config = o.scratch / "registry.yml"
        config.write_text(f"version: 0.1\nlog: {{level: error, accesslog: {{disabled: true}}}}\n"
                          f"storage: {{filesystem: {{rootdirectory: {images.storage(o.cache)}}}}}\n"
                          f"http: {{addr: '{address}'}}\n")
        registry = Daemon(["docker-registry", "serve", config], o.scratch / "registry.log")
        wait_for("docker-registry", lambda: urllib.request.urlopen(f"http://{address}/v2/").status == 200)
        wanted = {name for part in o.parts for name in parts.IMAGES[part] if name in o.images}
        o.images = images.prepare([name for name in images.NAMES if name in wanted], o.cache, address, o.tiny)
        results.begin({name: image.described() for name, image in o.images.items()})
        if not o.tiny:
            print(f"expected: about {parts.expected_s(o) / 60:.0f} minutes with all tools on two processors",
                  file=sys.stderr)
        began = time.monotonic()
        for part in o.parts:
            parts.measure(part, o, results)
            print(f"{part} is done, {(time.monotonic() - began) / 60:.1f} minutes since the start", file=sys.stderr)
        results.end()
        if results.failed:
            raise Failed(f"left out because they failed: {', '.join(results.failed)}")
    finally:
        if registry:
            registry.stop()
        unmount_below(o.scratch)
        shutil.rmtree(o.scratch, ignore_errors=True)


def main():
    o = options()
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))
    try:
        if o.table:
            tables.print_kept(json.loads(o.table.read_text()))
        else:
            measure(o)
    except Failed as why:
        sys.exit(f"compare.sh: {why}")


main()
