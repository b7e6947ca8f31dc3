"""The instruments: clocks, file systems, memory, processes. Nothing here knows a tool or an image."""

import contextlib
import ctypes
import os
import shutil
import signal
import socket
import subprocess
import tempfile
import time
from pathlib import Path


class Failed(Exception):
    """A command ended badly, or something did not come about; the text is for the reader."""


def run(*argv, **options):
    """Runs a command to its end and gives what it said; that is the error, too."""
    with tempfile.TemporaryFile() as log:
        done = subprocess.run([str(a) for a in argv], stdin=subprocess.DEVNULL, stdout=log, stderr=log, **options)
        return check(argv, done.returncode, log)


def check(argv, status, log):
    """What a command said, if it ended well."""
    log.seek(0)
    said = log.read().decode(errors="replace")
    if status != 0:
        raise Failed(f"{' '.join(str(a) for a in argv)[:500]} ended with {status}: {said[-2000:]}")
    return said


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


# ---- time -----------------------------------------------------------------------------------------------------


def timed(*commands):
    """Runs commands one after another; gives wall seconds, and processor seconds of them and their children."""
    before = time.perf_counter()
    used = 0.0
    for argv in commands:
        argv = [str(a) for a in argv]
        with tempfile.TemporaryFile() as log:
            child = os.posix_spawnp(
                argv[0], argv, os.environ,
                file_actions=[(os.POSIX_SPAWN_OPEN, 0, "/dev/null", os.O_RDONLY, 0),
                              (os.POSIX_SPAWN_DUP2, log.fileno(), 1), (os.POSIX_SPAWN_DUP2, log.fileno(), 2)])
            with ended_with_us(child):
                _, status, usage = os.wait4(child, 0)
            check(argv, os.waitstatus_to_exitcode(status), log)
        used += usage.ru_utime + usage.ru_stime
    return time.perf_counter() - before, used


@contextlib.contextmanager
def ended_with_us(pid):
    """Whoever stops us stops what we started: nothing holds a file system that is to go."""
    try:
        yield
    except BaseException:
        for each in {pid, *children_of([pid])}:
            with contextlib.suppress(ProcessLookupError):
                os.kill(each, signal.SIGKILL)
        raise


@contextlib.contextmanager
def adopted():
    """While this lasts, processes that outlive their parent become our children (a shell's process substitution
    does); gives a function that waits for them and tells their processor seconds."""
    libc = ctypes.CDLL(None, use_errno=True)
    set_child_subreaper = 36
    ours = set(children_of([os.getpid()], deep=False))

    def collect():
        used, end = 0.0, time.monotonic() + 10
        while time.monotonic() < end:
            orphans = set(children_of([os.getpid()], deep=False)) - ours
            if not orphans:
                break
            for pid in orphans:
                reaped, _, usage = os.wait4(pid, os.WNOHANG)
                if reaped:
                    used += usage.ru_utime + usage.ru_stime
            time.sleep(0.001)
        return used

    libc.prctl(set_child_subreaper, 1, 0, 0, 0)
    try:
        yield collect
    finally:
        collect()
        libc.prctl(set_child_subreaper, 0, 0, 0, 0)


def children_of(pids, deep=True):
    """Process ids of the children of these, or of all that descends from them."""
    parents = {}
    for entry in os.listdir("/proc"):
        if entry.isdigit():
            try:
                with open(f"/proc/{entry}/stat") as f:
                    parents[int(entry)] = int(f.read().rsplit(")", 1)[1].split()[1])
            except (OSError, IndexError):
                continue
    found, fresh = set(), set(pids)
    while fresh:
        fresh = {pid for pid, parent in parents.items() if parent in fresh} - found - set(pids)
        found |= fresh
        if not deep:
            break
    return found


def processor_seconds(pids):
    """Processor seconds so far of running processes, all that descends from them, and what those have waited for."""
    tick, sum_ = os.sysconf("SC_CLK_TCK"), 0.0
    for pid in {*pids, *(children_of(pids) if pids else ())}:
        try:
            with open(f"/proc/{pid}/stat") as f:
                sum_ += sum(int(field) for field in f.read().rsplit(")", 1)[1].split()[11:15]) / tick
        except (OSError, IndexError):
            continue
    return sum_


# ---- memory ---------------------------------------------------------------------------------------------------


def proportional_bytes(pid):
    """Memory of one process, pages that n processes share counted as one n-th."""
    try:
        with open(f"/proc/{pid}/smaps_rollup") as f:
            return next((int(line.split()[1]) << 10 for line in f if line.startswith("Pss:")), 0)
    except OSError:
        return 0


def peak_memory(commands, daemons):
    """Highest sum of proportional memory of the commands, everything they start, and these daemons; bytes."""
    peak = 0
    with adopted():
        for argv in commands:
            mine = children_of([os.getpid()], deep=False) - set(daemons)
            with tempfile.TemporaryFile() as log:
                child = subprocess.Popen([str(a) for a in argv], stdin=subprocess.DEVNULL, stdout=log, stderr=log)
                with ended_with_us(child.pid):
                    while child.poll() is None:
                        roots = children_of([os.getpid()], deep=False) - mine
                        peak = max(peak, sum(proportional_bytes(pid) for pid in roots | children_of(roots)))
                        time.sleep(0.002)
                check(argv, child.returncode, log)
    return peak


# ---- file systems ---------------------------------------------------------------------------------------------


def unmount_below(directory):
    points = []
    for _ in range(5):
        with open("/proc/self/mountinfo") as f:
            points = [line.split()[4] for line in f]
        points = [p for p in points if (p + "/").startswith(str(directory) + "/")]
        if not points:
            return
        for point in reversed(points):
            subprocess.run(["umount", point], stderr=subprocess.DEVNULL)
        time.sleep(0.02)
    for point in reversed(points):
        subprocess.run(["umount", "-l", point], stderr=subprocess.DEVNULL)


def drop_caches():
    """Nothing of any file system is in memory, save what is dirty or lives there."""
    with open("/proc/sys/vm/drop_caches", "w") as f:
        f.write("3\n")


class Disk:
    """A new ext4 of its own in a loop file, mounted at `path`; gone with the `with`."""

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
        self.device = os.stat(self.path).st_dev
        run("sync", "-f", self.path)
        return self

    def __exit__(self, *_):
        unmount_below(self.path)
        self.image.unlink(missing_ok=True)

    def sync(self):
        """Everything of it is on the loop file; gives seconds."""
        before = time.perf_counter()
        fd = os.open(self.path, os.O_RDONLY | os.O_DIRECTORY)
        try:
            if ctypes.CDLL(None, use_errno=True).syncfs(fd) != 0:
                raise Failed(f"cannot sync {self.path}: {os.strerror(ctypes.get_errno())}")
        finally:
            os.close(fd)
        return time.perf_counter() - before

    def written(self):
        """Bytes that have been written to the device since it was made."""
        stat = Path(f"/sys/dev/block/{os.major(self.device)}:{os.minor(self.device)}/stat").read_text().split()
        return int(stat[6]) * 512

    def free(self):
        """Free blocks and free inodes."""
        stat = os.statvfs(self.path)
        return stat.f_bfree, stat.f_ffree


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
