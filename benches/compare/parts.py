"""The parts of the comparison: what is timed, in which turns, and the table that comes of it."""

import contextlib
import os
import random
import shutil
import statistics
import subprocess
import sys
import time

from measure import Disk, Failed, adopted, drop_caches, have, peak_memory, processor_seconds, run, timed
from tables import aim, ceiling, column
from tools import (Copy, Keelblock, calls_of, floors, forms, gunzip, knows, launchers, provisioners, pullers, removers,
                   wanted, written_and_synced)

# The parts, and on which images each of them runs.
IMAGES = {
    "cold": ["debian", "node", "sixty", "big", "twenty"],
    "sync": ["debian", "node", "sixty", "big", "twenty"],
    "first": ["debian", "numpy"],
    "copy": ["node", "five"],
    "removal": ["node"],
    "syscalls": ["debian"],  # under strace, more entries take many minutes
    "warm": ["debian"],
    "launch": ["debian"],
    "together": ["debian"],
}
ALL = list(IMAGES)
PEERS = ["skopeo + umoci", "podman", "containerd"]


def measure(part, o, results):
    images = {name: o.images[name] for name in IMAGES[part] if name in o.images}
    if not images:
        print(f"{part} is left out: it runs on {' and '.join(IMAGES[part])}", file=sys.stderr)
    elif not o.binary and part in ("sync", "first", "copy"):
        print(f"{part} is left out: it measures keelblock", file=sys.stderr)
    else:
        globals()[f"part_{part}"](o, images, results)


def rounds(count, tools, measure, warm_up, place=contextlib.nullcontext):
    """Lets the tools take turns in an order shuffled anew each round; with `warm_up`, there is one more round, and the
    first is thrown away. `measure(tool, turn, made)` gives a value for each key; `made` comes from `place`, a context
    made anew for each round. A tool that fails is out, and says why. Gives tool -> key -> values."""
    series = {tool.name: {} for tool in tools}
    out = set()
    for turn in range(0 if warm_up else 1, count + 1):
        order, began = [t for t in tools if t.name not in out], time.monotonic()
        random.shuffle(order)
        with place() as made:
            for tool in order:
                try:
                    values = measure(tool, turn, made)
                except Failed as why:
                    print(f"{tool.name} is out: {why}", file=sys.stderr)
                    out.add(tool.name)
                    series[tool.name] = {}
                    continue
                if turn > 0:
                    for key, value in values.items():
                        series[tool.name].setdefault(key, []).append(value)
        print(f"  round {turn} of {count}: {time.monotonic() - began:.1f} s", file=sys.stderr)
    return series


@contextlib.contextmanager
def running(tool, home):
    tool.start(home)
    try:
        yield
    finally:
        tool.stop()


# ---- pulls ----------------------------------------------------------------------------------------------------


def pull_once(o, tool, image):
    """Seconds until done, until synced as well, of processors, and bytes written, of one pull on a new file system."""
    with Disk(o.scratch, o.disk_bytes) as disk, running(tool, disk.path), adopted() as orphans:
        disk.sync()
        written, daemon = disk.written(), processor_seconds(tool.pids())
        wall, used = timed(*tool.pull(disk.path, image))
        synced = wall + disk.sync()
        used += orphans() + processor_seconds(tool.pids()) - daemon
        values = {"wall_s": wall, "processor_s": used}
        if tool.on_disk:
            values.update(synced_s=synced, written_mb=(disk.written() - written) / 1e6)
        return values


def memory_once(o, tool, image):
    with Disk(o.scratch, o.disk_bytes) as disk, running(tool, disk.path):
        return {"peak_mib": peak_memory(tool.pull(disk.path, image), tool.pids()) / 2**20}


def into_page_cache(image):
    """What floors and the registry read."""
    for layer in image.layers:
        for path in (layer.blob, layer.tar):
            with open(path, "rb") as f:
                while f.read(1 << 20):
                    pass


def part_cold(o, images, results):
    for n, (name, image) in enumerate(images.items()):
        into_page_cache(image)
        # Programs are warm after the first image, and this image is now.
        series = rounds(o.rounds, pullers(o) + wanted(o, floors()), lambda tool, *_: pull_once(o, tool, image),
                        o.warm_up and n == 0)
        # It varies little, so there is one round.
        peaks = rounds(1, [t for t in pullers(o) if series[t.name]], lambda tool, *_: memory_once(o, tool, image), False)
        for tool, row in peaks.items():
            series[tool] = {**series[tool], **row} if row else {}
        results.show(
            f"Cold pull and unpack: {name}",
            [column("wall_s", "done, s", 2, ratio=True, spread=True), column("synced_s", "done and synced, s", 2),
             column("processor_s", "processor, s", 2, ratio=True), column("peak_mib", "peak memory, MiB", 0),
             column("written_mb", "written, MB", 0)],
            series,
            aims=[aim("wall time", "wall_s", 0.2 if name in ("debian", "node") else 0.3, ["podman", "containerd"]),
                  aim("processor time", "processor_s", 0.5, PEERS),
                  aim("wall time", "wall_s", 0.6, ["pipeline"]),
                  aim("wall time", "wall_s", 1.5, ["floor: fetch", f"floor: {gunzip()} -d", "floor: write"], slowest=True),
                  ceiling("peak memory", "peak_mib", 64, "MiB")])


def part_sync(o, images, results):
    """A pull that ends when all of it is on the disk, against the disk's own sequential write of the same bytes. With the
    scratch directory on tmpfs the disk is as quick as memory, and what is seen is the rest of the pull."""
    if not knows(o, "pull", "sync"):
        print("sync is left out: this keelblock has no --sync", file=sys.stderr)
        return
    full = Keelblock(o.binary, "keelblock (--sync=full)", ["--sync=full"])
    tools = wanted(o, [Keelblock(o.binary), full, written_and_synced()])
    for n, (name, image) in enumerate(images.items()):
        into_page_cache(image)
        results.show(
            f"Cold pull until all is on the disk: {name}",
            [column("wall_s", "done, s", 2, ratio=True, spread=True), column("synced_s", "done and synced, s", 2),
             column("processor_s", "processor, s", 2), column("written_mb", "written, MB", 0)],
            rounds(o.rounds, tools, lambda tool, *_: pull_once(o, tool, image), o.warm_up and n == 0),
            aims=[aim("wall time", "wall_s", 1.1, [written_and_synced().name], ours=full.name)])


# ---- first use ------------------------------------------------------------------------------------------------

# Key -> its head, and the command. GNU tar reads nothing for /dev/null; /proc and /sys are not the image's.
FIRST = {
    "true_ms": ("`true`, ms", ["true"]),
    "find_ms": ("`find /`, ms", ["find", "/", "-xdev"]),
    "stat_ms": ("`find / -size +1M`, ms", ["find", "/", "-xdev", "-size", "+1024k"]),
    "tar_ms": ("`tar c /usr`, ms", ["sh", "-c", "tar -cf - /usr | cat >/dev/null"]),
    "import_ms": ("`python3 -c 'import numpy'`, ms", ["python3", "-c", "import numpy"]),
}


def part_first(o, images, results):
    """The first command in a container of an image in the store, nothing of which is in memory: layers as images, and as
    trees."""
    if not knows(o, "run", "layer_form"):
        print("first is left out: this keelblock has layers in one form only (no --layer_form)", file=sys.stderr)
        return
    tools = forms(o)
    try:
        with Disk(o.scratch, o.disk_bytes) as disk:
            for tool in tools:
                for argv in tool.pull(disk.path, next(iter(images.values()))):
                    run(*argv)
    except Failed as why:
        print(f"first is left out: layers cannot be kept in both forms here: {why}", file=sys.stderr)
        return
    for n, (name, image) in enumerate(images.items()):
        commands = {key: argv for key, (_, argv) in FIRST.items() if key != "import_ms" or name == "numpy"}

        @contextlib.contextmanager
        def place():
            with Disk(o.scratch, o.disk_bytes) as disk:
                for tool in random.sample(tools, len(tools)):
                    home = disk.path / tool.name.replace(" ", "-")
                    home.mkdir()
                    for argv in tool.pull(home, image):
                        run(*argv)
                yield disk

        def once(tool, turn, disk):
            values = {}
            for key, argv in commands.items():
                with adopted() as orphans:
                    disk.sync()
                    drop_caches()
                    # Its own program is not what is measured.
                    run(o.binary, "reference", "alpine")
                    wall, _ = timed(tool.run_command(disk.path / tool.name.replace(" ", "-"), image, argv))
                    orphans()
                values[key] = wall * 1e3
            return values

        against = ["keelblock (trees)"]
        results.show(
            f"First use with a cold cache, layers as images and as trees: {name}",
            [column(key, FIRST[key][0], 0, ratio=True, spread=True) for key in commands],
            rounds(o.rounds, tools, once, o.warm_up and n == 0, place),
            aims=[aim(f"first {FIRST[key][0].removesuffix(', ms')}", key, 1.0, against) for key in commands])


# ---- provisions -----------------------------------------------------------------------------------------------


def part_warm(o, images, results):
    """From an image in the store to a mounted root filesystem."""
    image = images["debian"]
    with Disk(o.scratch, o.disk_bytes) as disk:
        home, starts, tools = disk.path, [], provisioners(o)

        def once(tool, turn, _):
            wall, used = timed(*tool.provision(home, image, turn))
            timed(*tool.unprovision(home, turn))
            if isinstance(tool, Keelblock):
                starts.append(timed([o.binary, "reference", "alpine"])[0] * 1e3)
            return {"wall_ms": wall * 1e3, "client_ms": used * 1e3}

        with made_ready(home, tools, image):
            series = rounds(o.rounds * 4, tools, once, o.warm_up)
        results.show(
            "Warm provision: image in the store -> root filesystem mounted",
            [column("wall_ms", "wall, ms", ratio=True, spread=True), column("client_ms", "processor (client), ms")],
            series,
            notes=[f"process start alone (`keelblock reference alpine`): {statistics.median(starts):.1f} ms"] if starts else [])


def part_copy(o, images, results):
    """The copy backend against `cp -aT` of the very same directories, both on the same new file system."""
    as_trees = ["--layer_form=tree"] if knows(o, "pull", "layer_form") else []
    keelblock = Keelblock(o.binary, flags=["--image_provisioner_backend=copy", *as_trees])
    for name, image in images.items():

        @contextlib.contextmanager
        def place():
            with Disk(o.scratch, o.disk_bytes) as disk:
                for argv in keelblock.pull(disk.path, image):
                    run(*argv)
                disk.sync()
                yield disk

        def once(tool, turn, disk):
            written = disk.written()
            wall, used = timed(*tool.provision(disk.path, image, turn))
            synced = wall + disk.sync()
            return {"wall_s": wall, "synced_s": synced, "processor_s": used,
                    "written_mb": (disk.written() - written) / 1e6}

        results.show(
            f"Copy backend, image in the store -> root filesystem copied: {name}",
            [column("wall_s", "done, s", 2, ratio=True, spread=True), column("synced_s", "done and synced, s", 2),
             column("processor_s", "processor, s", 2), column("written_mb", "written, MB", 0)],
            rounds(o.rounds, wanted(o, [keelblock, Copy(keelblock)]), once, o.warm_up, place),
            aims=[aim("wall time", "wall_s", 0.5, ["cp -aT"])])


# ---- removal --------------------------------------------------------------------------------------------------


def part_removal(o, images, results):
    """An image goes: until the command returns, and until its space is free."""
    longest_s = 300  # a deletion in the background has the lowest priority
    for name, image in images.items():

        def once(tool, *_):
            with Disk(o.scratch, o.disk_bytes) as disk, running(tool, disk.path), adopted() as orphans:
                empty = disk.free()
                for argv in tool.pull(disk.path, image):
                    run(*argv)
                disk.sync()
                # A little may stay: databases, directories that have grown.
                least = [before - (before - there) * 0.02 - few
                         for before, there, few in zip(empty, disk.free(), (2**20 / 4096, 64))]
                daemon = processor_seconds(tool.pids())
                began = time.perf_counter()
                wall, used = timed(*tool.remove(disk.path, image))
                while any(now < enough for now, enough in zip(disk.free(), least)):
                    if time.perf_counter() - began > longest_s:
                        raise Failed(f"the space is not free {longest_s} s after the command")
                    time.sleep(0.001)
                free = time.perf_counter() - began
                used += orphans() + processor_seconds(tool.pids()) - daemon
                return {"wall_ms": wall * 1e3, "free_ms": free * 1e3, "processor_ms": used * 1e3}

        results.show(
            f"Removal of an image with all of its layers: {name}",
            [column("wall_ms", "until the command returns, ms", 0, ratio=True, spread=True),
             column("free_ms", "until the space is free, ms", 0), column("processor_ms", "processor, ms", 0)],
            rounds(o.rounds, removers(o), once, o.warm_up),
            aims=[ceiling("until the command returns", "wall_ms", 50, "ms"),
                  ceiling("until `prune --wait` returns", "wall_ms", 50, "ms", ours="keelblock (--wait)")])


# ---- system calls ---------------------------------------------------------------------------------------------

# Calls by which threads wait for each other and for the network: their number says nothing of the work.
WAITS = {"futex", "epoll_wait", "epoll_pwait", "epoll_ctl", "nanosleep", "clock_nanosleep", "sched_yield", "poll", "ppoll",
         "select", "pselect6", "rt_sigreturn", "tgkill", "rt_sigprocmask", "sigaltstack", "wait4", "waitid"}


def part_syscalls(o, images, results):
    """Calls for each entry of the image, as strace counts them. Once: they vary by little."""
    if not have("strace"):
        print("syscalls is left out: strace is not installed", file=sys.stderr)
        return
    for name, image in images.items():
        most = []

        def once(tool, *_):
            out = o.scratch / "strace"
            shutil.rmtree(out, ignore_errors=True)
            out.mkdir()
            with Disk(o.scratch, o.disk_bytes) as disk, running(tool, disk.path):
                tool.traced(disk.path, image, out / "calls")
            calls = calls_of(out.iterdir())
            working = sorted(((count, call) for call, count in calls.items() if call not in WAITS), reverse=True)
            most.append(f"{tool.name}: " + ", ".join(f"{call} {count / image.entries:.2f}" for count, call in working[:10]))
            total, work = sum(calls.values()), sum(count for count, _ in working)
            return {"per_entry": work / image.entries, "waits": (total - work) / image.entries, "total": total}

        rows = rounds(1, pullers(o), once, False)
        results.show(
            f"System calls for each entry: {name} ({image.entries} entries)",
            [column("per_entry", "calls / entry", 2, ratio=True), column("waits", "waits / entry", 2),
             column("total", "calls", 0)],
            rows, notes=sorted(most))


# ---- launches -------------------------------------------------------------------------------------------------


@contextlib.contextmanager
def made_ready(home, tools, image):
    """Stores filled, daemons up, bundles made: what is not measured."""
    try:
        for tool in tools:
            tool.start(home)
            if hasattr(tool, "pull"):
                for argv in tool.pull(home, image):
                    run(*argv)
        if any(hasattr(t, "prepare") for t in tools):
            rootfs = home / "ready"
            rootfs.mkdir()
            run("tar", "-xf", image.layers[0].tar, "-C", rootfs, "--numeric-owner")
            for tool in tools:
                if hasattr(tool, "prepare"):
                    tool.prepare(home, rootfs)
        run("sync")
        yield
    finally:
        for tool in tools:
            tool.stop()


def part_launch(o, images, results):
    image = images["debian"]
    with Disk(o.scratch, o.disk_bytes) as disk:
        tools = launchers(o)

        def once(tool, turn, _):
            wall, used = timed(tool.run(disk.path, image, f"one-{turn}"))
            return {"wall_ms": wall * 1e3, "client_ms": used * 1e3}

        with made_ready(disk.path, tools, image):
            series = rounds(o.rounds * 6, tools, once, o.warm_up)
        results.show(
            "Warm launch of /bin/true, one at a time: start, root filesystem, launch, wait, destroy",
            [column("wall_ms", "wall, ms", ratio=True, spread=True), column("client_ms", "processor (client), ms")],
            series)


def part_together(o, images, results):
    image = images["debian"]
    with Disk(o.scratch, o.disk_bytes) as disk:
        tools = launchers(o)

        def once(tool, turn, _):
            commands = [[str(a) for a in tool.run(disk.path, image, f"all-{turn}-{n}")] for n in range(o.at_once)]
            null = os.open("/dev/null", os.O_RDWR)
            before = time.perf_counter()
            children = [subprocess.Popen(c, stdin=null, stdout=null, stderr=null) for c in commands]
            statuses = [c.wait() for c in children]
            wall = time.perf_counter() - before
            os.close(null)
            bad = sum(1 for s in statuses if s != 0)
            if bad:
                raise Failed(f"{bad} of {o.at_once} launches ended with {set(statuses)}")
            return {"wall_ms": wall * 1e3}

        with made_ready(disk.path, tools, image):
            series = rounds(o.rounds, tools, once, o.warm_up)
        results.show(
            f"Warm launch of /bin/true, {o.at_once} at once: until the last has ended",
            [column("wall_ms", "wall, ms", ratio=True, spread=True)], series)


# ---- how long it takes ----------------------------------------------------------------------------------------

# Seconds of one round with all tools on two idle processors, roughly: three quarters of the processor seconds that a trial
# on a busy machine told, and what making the disks takes. What a round did take is said after each.
ROUND_S = {
    "cold": {"debian": 25, "node": 48, "sixty": 40, "big": 63, "twenty": 39},
    "sync": {"debian": 7, "node": 8, "sixty": 8, "big": 12, "twenty": 8},
    "first": {"debian": 10, "numpy": 14},
    "copy": {"node": 12, "five": 12},
    "removal": {"node": 30},
    "syscalls": {"debian": 60},
    "warm": {"debian": 1},
    "launch": {"debian": 1},
    "together": {"debian": 22},
}


def expected_s(o):
    more = 1 if o.warm_up else 0
    turns = {"cold": o.rounds + 1, "sync": o.rounds + more, "first": o.rounds + more, "copy": o.rounds + more, "removal": o.rounds + more, "syscalls": 1,
             "warm": 4 * o.rounds + more, "launch": 6 * o.rounds + more, "together": o.rounds + more}
    return sum(turns[part] * seconds for part in o.parts for image, seconds in ROUND_S[part].items() if image in o.images)
