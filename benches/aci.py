#!/usr/bin/env python3
"""An ACI pulled from a file, against the programs that a shell would use for the same.

    cargo build --release && benches/aci.py --tar ROOTFS.tar --scratch DIR [--rounds 5]

Makes an ACI (gzip -6) of a root filesystem's tar, and pulls it in turn by keelblock (image ID, manifest, layer as an image and as a
tree; the archive is read twice) and by `igzip -dc | tee >(sha512sum) | tar -x`, each into an empty directory below DIR, which should
be on a file system of its own. Prints medians of seconds, their ratio, and the most memory keelblock took. Run as root.
"""

import argparse
import io
import json
import os
import resource
import shutil
import statistics
import subprocess
import tarfile
import time
from pathlib import Path

MANIFEST = {
    "acKind": "ImageManifest",
    "acVersion": "0.8.11",
    "name": "bench.example/rootfs",
    "labels": [{"name": "version", "value": "1"}],
}


def make(source: Path, aci: Path) -> None:
    """Wraps a root filesystem's tar as an ACI."""
    content = json.dumps(MANIFEST).encode()
    packer = subprocess.Popen(["gzip", "-6"], stdin=subprocess.PIPE, stdout=aci.open("wb"))
    with tarfile.open(source) as there, tarfile.open(fileobj=packer.stdin, mode="w|") as here:
        manifest = tarfile.TarInfo("manifest")
        manifest.size = len(content)
        here.addfile(manifest, io.BytesIO(content))
        rootfs = tarfile.TarInfo("rootfs")
        rootfs.type, rootfs.mode = tarfile.DIRTYPE, 0o755
        here.addfile(rootfs)
        seen = set()
        for entry in there:
            name = entry.name.removeprefix("./").strip("/")
            if name in ("", ".") or name in seen:
                continue
            seen.add(name)
            entry.name = f"rootfs/{name}"
            if entry.islnk():
                entry.linkname = "rootfs/" + entry.linkname.removeprefix("./").lstrip("/")
            here.addfile(entry, there.extractfile(entry) if entry.isreg() else None)
    packer.stdin.close()
    if packer.wait() != 0:
        raise SystemExit("gzip failed")


def seconds(command: list[str]) -> float:
    begun = time.monotonic()
    subprocess.run(command, check=True, stdout=subprocess.DEVNULL)
    return time.monotonic() - begun


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--tar", type=Path, required=True, help="tar of a root filesystem")
    parser.add_argument("--scratch", type=Path, required=True, help="an empty directory")
    parser.add_argument("--binary", default="target/release/keelblock")
    parser.add_argument("--rounds", type=int, default=5)
    options = parser.parse_args()
    options.scratch.mkdir(parents=True, exist_ok=True)
    aci, work, tree = (options.scratch / name for name in ("image.aci", "work", "tree"))
    make(options.tar, aci)
    keelblock = [options.binary, "--work_dir", str(work), "--quiet", "pull", f"aci:{aci}"]
    ways = {
        "keelblock": keelblock,
        "keelblock (trees)": [*keelblock[:3], "--layer_form=tree", *keelblock[3:]],
        "pipeline": ["bash", "-c", f"set -o pipefail; igzip -dc {aci} | tee >(sha512sum) | tar -xC {tree}"],
    }
    taken = {name: [] for name in ways}
    for _ in range(options.rounds):
        for name, command in ways.items():
            for path in (work, tree):
                shutil.rmtree(path, ignore_errors=True)
            tree.mkdir()
            os.sync()
            taken[name].append(seconds(command))
    medians = {name: statistics.median(all_) for name, all_ in taken.items()}
    print(f"{aci.stat().st_size / 1e6:.0f} MB compressed, {options.rounds} rounds, in turn")
    for name, median in medians.items():
        spread = f"{min(taken[name]):.2f} to {max(taken[name]):.2f}"
        print(f"{name:18} {median:6.2f} s ({spread}), {median / medians['pipeline']:.2f} of the pipeline")
    shutil.rmtree(work, ignore_errors=True)
    subprocess.run(keelblock, check=True, stdout=subprocess.DEVNULL)
    print(f"most memory of any: {resource.getrusage(resource.RUSAGE_CHILDREN).ru_maxrss / 1024:.0f} MiB")


if __name__ == "__main__":
    main()
