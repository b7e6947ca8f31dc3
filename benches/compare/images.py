"""The images: made once, kept in a cache directory together with the registry's storage, reused by later runs.

Each has a recipe here and the number of that recipe in its tag: whoever changes what comes out counts it up. `--tiny`
makes images of the same shape from a few kilobytes, without a network.
"""

import fcntl
import io
import json
import os
import platform
import random
import shutil
import sys
import tarfile
from dataclasses import dataclass
from pathlib import Path

from measure import run

RECIPES = {"debian": 1, "node": 1, "sixty": 1, "big": 1, "twenty": 1, "five": 1, "numpy": 1}
NAMES = list(RECIPES)

# A web application's dependencies as of a day in January 2025. `--before` pins what these ask for in turn; optional
# packages are prebuilt programs, which would make bytes out of a tree that is about files.
NPM_BEFORE = "2025-01-15"
NPM_PACKAGES = {
    "@babel/preset-env": "7.26.0", "@mui/material": "6.1.6", "aws-sdk": "2.1692.0", "core-js": "3.39.0",
    "date-fns": "4.1.0", "eslint": "9.14.0", "express": "4.21.1", "jest": "29.7.0", "lodash": "4.17.21",
    "next": "15.0.3", "prettier": "3.3.3", "react": "18.3.1", "react-dom": "18.3.1", "rxjs": "7.8.1",
    "typescript": "5.6.3", "webpack": "5.96.1",
}
MTIME = 1_700_000_000


@dataclass
class Layer:
    digest: str  # of the compressed blob
    size: int
    diff_id: str
    tar: Path  # the same, not compressed
    blob: Path  # in the storage of the registry


@dataclass
class Image:
    name: str
    tag: str
    address: str  # of the registry
    layers: list
    entries: int
    tar_bytes: int

    def __str__(self):
        return f"{self.address}/{self.name}:{self.tag}"

    def blob_url(self, layer):
        return f"http://{self.address}/v2/{self.name}/blobs/{layer.digest}"

    def described(self):
        size = sum(layer.size for layer in self.layers) / 1e6
        return (f"{len(self.layers)} {'layer' if len(self.layers) == 1 else 'layers'}, {self.entries} entries, "
                f"{size:.1f} MB compressed, {self.tar_bytes / 1e6:.0f} MB of tar")


# ---- where real files come from -------------------------------------------------------------------------------


def made_once(path, make):
    """`make(part)` writes the file; afterwards it is there whole, or not at all."""
    if not path.exists():
        part = path.with_name(path.name + ".part")
        make(part)
        part.rename(path)
    return path


def debian_tar(cache, name="debian-bookworm", packages=()):
    """A Debian as debootstrap makes it, with these packages on top; about 10,000 entries without any."""

    def make(part):
        root = cache / f"debootstrap-{name}"
        shutil.rmtree(root, ignore_errors=True)
        print(f"making {name} with debootstrap, once", file=sys.stderr)
        mirror = [m for m in [os.environ.get("DEBOOTSTRAP_MIRROR")] if m]
        more = [f"--include={','.join(packages)}"] if packages else []
        run("debootstrap", *more, "bookworm", root, *mirror)
        run("tar", "--numeric-owner", "--xattrs", "--xattrs-include=*", "--format=pax",
            "--pax-option=delete=atime,delete=ctime", "--sort=name", "-C", root, "-cf", part, ".")
        shutil.rmtree(root)

    return made_once(cache / f"{name}.tar", make)


def node_tar(cache):
    """app/node_modules as npm makes it, more than 30,000 files."""

    def make(part):
        top = cache / "npm"
        shutil.rmtree(top, ignore_errors=True)
        (top / "app").mkdir(parents=True)
        (top / "app/package.json").write_text(json.dumps(
            {"name": "app", "version": "1.0.0", "private": True, "dependencies": NPM_PACKAGES}))
        print("making a node_modules with npm, once", file=sys.stderr)
        run("npm", "install", "--ignore-scripts", "--omit=optional", "--no-audit", "--no-fund", "--no-package-lock",
            f"--before={NPM_BEFORE}", cwd=top / "app")
        (top / "app/package.json").unlink()
        run("tar", "--sort=name", "--owner=0", "--group=0", "--numeric-owner", f"--mtime=@{MTIME}", "-C", top,
            "-cf", part, "app")
        shutil.rmtree(top)

    return made_once(cache / "node-modules.tar", make)


def small_base(tar, path):
    """The part of the Debian that /bin/true needs, so that an image is about its other layers."""
    wanted = ("./bin", "./lib", "./lib64", "./usr/bin/true", "./usr/bin/sh", "./usr/bin/dash", "./etc/passwd",
              "./etc/group", "./proc", "./sys", "./dev", "./tmp")
    libraries = ("libc.so.6", "ld-linux", "ld-2", "libc-2")
    with tarfile.open(tar) as source, tarfile.open(path, "w") as target:
        for member in source:
            if member.isdir() and member.name.count("/") <= 3 or member.name in wanted \
                    or any(Path(member.name).name.startswith(l) for l in libraries):
                target.addfile(member, source.extractfile(member) if member.isreg() else None)
    return path


def files_of(tar):
    """Its files with something in them: (path, mode, content)."""
    with tarfile.open(tar) as source:
        for member in source:
            if member.isreg() and member.size:
                yield member.name.removeprefix("./"), member.mode, source.extractfile(member).read()


class LayerWriter:
    """A layer as builders write it: parents before children, each directory once."""

    def __init__(self, path):
        self.path, self.bytes, self.known = path, 0, set()
        self.tar = tarfile.open(path, "w")

    def __enter__(self):
        return self

    def __exit__(self, *_):
        self.tar.close()

    def add(self, name, mode, content):
        for parent in reversed(Path(name).parents[:-1]):
            if parent not in self.known:
                self.known.add(parent)
                info = tarfile.TarInfo(str(parent))
                info.type, info.mode, info.mtime = tarfile.DIRTYPE, 0o755, MTIME
                self.tar.addfile(info)
        info = tarfile.TarInfo(name)
        info.size, info.mode, info.mtime = len(content), mode, MTIME
        self.tar.addfile(info, io.BytesIO(content))
        self.bytes += 1024 + len(content)


# ---- recipes: the tars of each image, base first -------------------------------------------------------------


def debian(source, directory):
    return [source.debian()]


def node(source, directory):
    return [small_base(source.debian(), directory / "base.tar"), source.node()]


def sixty(source, directory):
    """A base, and the Debian's files cut in 59 at their own places; each layer also rewrites what a package manager
    rewrites every time, so that there is something for higher layers to hide."""
    layers = source.layers(60)
    files = list(files_of(source.debian()))
    rewritten = ("var/lib/dpkg/status", "etc/ld.so.cache")
    every = [file for file in files if file[0] in rewritten]
    files = [file for file in files if file[0] not in rewritten]
    tars = [small_base(source.debian(), directory / "base.tar")]
    for n in range(layers - 1):
        with LayerWriter(directory / f"{n}.tar") as layer:
            for name, mode, content in files[n * len(files) // (layers - 1):(n + 1) * len(files) // (layers - 1)]:
                layer.add(name, mode, content)
            for name, mode, content in every:
                layer.add(name, mode, content + str(n).encode())
        tars.append(layer.path)
    return tars


def big(source, directory):
    """Five files of the same 200 MB of programs, libraries and texts, each beginning elsewhere in them: gzip, with
    its window of 32 KiB, sees nothing of that."""
    content = b"".join(content for _, _, content in files_of(source.debian()))
    size = source.bytes(200_000_000)
    with LayerWriter(directory / "big.tar") as layer:
        for n in range(5):
            start = n * len(content) // 5
            turned = content[start:] + content[:start]
            layer.add(f"srv/part-{n}", 0o644, (turned * (size // len(turned) + 1))[:size])
    return [layer.path]


def twenty(source, directory):
    """Twenty applications of the same size; the Debian's files over and over, each time elsewhere."""
    layers, size = source.layers(20), source.bytes(15_000_000)
    files, at, tars = list(files_of(source.debian())), 0, []
    for n in range(layers):
        with LayerWriter(directory / f"{n}.tar") as layer:
            skipped = 0
            while layer.bytes < size and skipped < 50:
                name, mode, content = files[at % len(files)]
                at += 1
                if layer.bytes + len(content) > size:
                    skipped += 1
                    continue
                layer.add(f"opt/app-{n}/{at // len(files)}/{name}", mode, content)
        tars.append(layer.path)
    return tars


def five(source, directory):
    """A Debian and four layers of an application: a third of the Debian's files at places of their own, and a tenth of
    those at the base's places, which they hide."""
    files, tars = list(files_of(source.debian())), [source.debian()]
    for n in range(4):
        with LayerWriter(directory / f"{n}.tar") as layer:
            for name, mode, content in files[n::3]:
                layer.add(f"usr/local/lib/app-{n}/{name}", mode, content)
            for name, mode, content in files[n::30]:
                layer.add(name, mode, content)
        tars.append(layer.path)
    return tars


def numpy(source, directory):
    """A Debian with what `import numpy` reads: some hundred files of Python and libraries."""
    return [source.numpy()]


class Real:
    """Real files, in the sizes that are measured."""

    prefix = ""

    def __init__(self, cache):
        self.cache = cache

    def debian(self):
        return debian_tar(self.cache)

    def numpy(self):
        return debian_tar(self.cache, "debian-bookworm-numpy", ["python3-numpy"])

    def node(self):
        return node_tar(self.cache)

    def layers(self, count):
        return count

    def bytes(self, count):
        return count


class Tiny:
    """Enough that every part has something to do: a busybox and some hundred files of words."""

    prefix = "tiny-2-"
    # What is run in containers.
    APPLETS = ("cat", "find", "sh", "tar", "true")

    def __init__(self, cache):
        self.cache = cache

    def tar(self, name, write):
        def make(part):
            with LayerWriter(part) as layer:
                write(layer)

        return made_once(self.cache / f"{self.prefix}{name}.tar", make)

    def words(self, layer, where, count):
        chance = random.Random(7)
        for n in range(count):
            words = chance.choices(["alpha", "beta", "gamma", "delta", str(chance.random())], k=400)
            layer.add(f"{where}/{n // 20}/file-{n}", 0o644, " ".join(words).encode())

    def system(self, layer):
        layer.add("usr/bin/busybox", 0o755, Path(shutil.which("busybox")).read_bytes())
        layer.add("etc/passwd", 0o644, b"root:x:0:0:root:/root:/bin/sh\n")
        for name in ("proc", "sys", "dev", "tmp"):
            info = tarfile.TarInfo(name)
            info.type, info.mode = tarfile.DIRTYPE, 0o755
            layer.tar.addfile(info)
        for name, target in (("bin", "usr/bin"), *((f"usr/bin/{applet}", "busybox") for applet in self.APPLETS)):
            info = tarfile.TarInfo(name)
            info.type, info.linkname = tarfile.SYMTYPE, target
            layer.tar.addfile(info)
        self.words(layer, "usr/share", 300)

    def debian(self):
        return self.tar("debian", self.system)

    def numpy(self):
        def write(layer):
            self.system(layer)
            layer.add("usr/bin/python3", 0o755, b"#!/bin/sh\nexec cat /usr/share/0/* >/dev/null\n")

        return self.tar("numpy", write)

    def node(self):
        return self.tar("node", lambda layer: self.words(layer, "app/node_modules", 500))

    def layers(self, count):
        return count // 5

    def bytes(self, count):
        return count // 50


# ---- into the registry ----------------------------------------------------------------------------------------


def storage(cache):
    """Where the registry of a run keeps what it serves."""
    return cache / "registry"


def prepare(names, cache, address, tiny):
    """The images of these names, in the registry that listens at the address and stores in the cache."""
    source = (Tiny if tiny else Real)(cache)
    # Two runs that begin at once must not make the same image side by side.
    with open(cache / "lock", "w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        return {name: image(name, source, cache, address) for name in names}


def image(name, source, cache, address):
    directory = cache / "images" / f"{source.prefix}{name}-{RECIPES[name]}"
    record = directory / "image.json"
    if not record.exists():
        shutil.rmtree(directory, ignore_errors=True)
        directory.mkdir(parents=True)
        print(f"making the image {name}, once", file=sys.stderr)
        tars = globals()[name](source, directory)
        push(tars, directory, f"docker://{address}/{source.prefix}{name}:{RECIPES[name]}")
        entries = 0
        for tar in tars:
            with tarfile.open(tar) as members:
                entries += sum(1 for _ in members)
        record.write_text(json.dumps({"tars": [str(tar.relative_to(cache)) for tar in tars], "entries": entries}))
    known = json.loads(record.read_text())
    reference = f"docker://{address}/{source.prefix}{name}:{RECIPES[name]}"
    inspect = ["skopeo", "--insecure-policy", "inspect", "--raw", "--tls-verify=false"]
    manifest = json.loads(run(*inspect, reference))
    diff_ids = json.loads(run(*inspect, "--config", reference))["rootfs"]["diff_ids"]
    blobs = storage(cache) / "docker/registry/v2/blobs/sha256"
    tars = [cache / tar for tar in known["tars"]]
    layers = [Layer(entry["digest"], entry["size"], diff_id, tar,
                    blobs / entry["digest"].removeprefix("sha256:")[:2] / entry["digest"].removeprefix("sha256:") / "data")
              for entry, diff_id, tar in zip(manifest["layers"], diff_ids, tars, strict=True)]
    return Image(f"{source.prefix}{name}", str(RECIPES[name]), address, layers, known["entries"],
                 sum(tar.stat().st_size for tar in tars))


def push(tars, directory, destination):
    """Makes an image of these layers with umoci's raw commands and pushes it with skopeo."""
    layout = directory / "layout"
    run("umoci", "init", "--layout", layout)
    run("umoci", "new", "--image", f"{layout}:1")
    for tar in tars:
        run("umoci", "raw", "add-layer", "--image", f"{layout}:1", tar)
    run("umoci", "config", "--image", f"{layout}:1", "--config.cmd", "/bin/true", "--os", "linux", "--architecture",
        {"x86_64": "amd64", "aarch64": "arm64"}.get(platform.machine(), platform.machine()))
    run("skopeo", "--insecure-policy", "copy", "--quiet", "--dest-tls-verify=false", f"oci:{layout}:1", destination)
    shutil.rmtree(layout)
