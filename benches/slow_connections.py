#!/usr/bin/env python3
"""keelblock pulling one large layer from a registry that answers late and slows each connection down.

    benches/slow_connections.py [--megabytes 64] [--rate 8] [--delay 20] [--binary target/release/keelblock]

The registry is in this process: it waits `--delay` ms before each answer and sends at most `--rate` MB/s on each connection, as object
stores and content networks do. Printed for each `--fetch_ranges_max`: seconds, requests and connections for the layer, bytes sent
of it in all (what is sent beyond its size was thrown away), and the most memory that the pull held.
"""

import argparse
import hashlib
import http.server
import io
import json
import os
import random
import socketserver
import subprocess
import tarfile
import tempfile
import threading
import time
from pathlib import Path

PIECE = 64 << 10
MANIFEST = "application/vnd.oci.image.manifest.v1+json"


def digest(data):
    return "sha256:" + hashlib.sha256(data).hexdigest()


def image(megabytes):
    """What is served, by path, and the path of the layer."""
    tar = io.BytesIO()
    with tarfile.open(fileobj=tar, mode="w") as archive:
        entry = tarfile.TarInfo("file")
        entry.size = megabytes * 1_000_000
        archive.addfile(entry, io.BytesIO(random.Random(1).randbytes(entry.size)))
    layer = tar.getvalue()
    config = json.dumps({"architecture": "amd64", "os": "linux",
                         "rootfs": {"type": "layers", "diff_ids": [digest(layer)]}}).encode()
    manifest = json.dumps({
        "schemaVersion": 2, "mediaType": MANIFEST,
        "config": {"mediaType": "application/vnd.oci.image.config.v1+json", "digest": digest(config), "size": len(config)},
        "layers": [{"mediaType": "application/vnd.oci.image.layer.v1.tar", "digest": digest(layer), "size": len(layer)}],
    }).encode()
    blobs = {f"/v2/app/blobs/{digest(data)}": data for data in (layer, config)}
    return {"/v2/app/manifests/1": manifest, **blobs}, f"/v2/app/blobs/{digest(layer)}"


def serve(served, layer, rate, delay):
    """A server, and what it counts."""
    counts = {"requests": 0, "connections": set(), "bytes": 0}
    lock = threading.Lock()

    class Handler(http.server.BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def log_message(self, *_):
            pass

        def do_GET(self):
            time.sleep(delay)
            data = served.get(self.path)
            if data is None:
                self.send_response(404)
                self.send_header("Content-Length", "0")
                return self.end_headers()
            first, last, status = 0, len(data) - 1, 200
            if wanted := self.headers.get("Range"):
                start, _, end = wanted.removeprefix("bytes=").partition("-")
                first, last, status = int(start), min(int(end or last), last), 206
            self.send_response(status)
            if status == 206:
                self.send_header("Content-Range", f"bytes {first}-{last}/{len(data)}")
            self.send_header("Content-Type", MANIFEST if "manifests" in self.path else "application/octet-stream")
            self.send_header("Accept-Ranges", "bytes")
            self.send_header("Content-Length", str(last + 1 - first))
            self.end_headers()
            counted = self.path == layer
            with lock:
                counts["requests"] += counted
                if counted:
                    counts["connections"].add(self.client_address)
            began, sent = time.monotonic(), 0
            try:
                for at in range(first, last + 1, PIECE):
                    piece = data[at:min(at + PIECE, last + 1)]
                    self.wfile.write(piece)
                    sent += len(piece)
                    if (ahead := sent / rate - (time.monotonic() - began)) > 0:
                        time.sleep(ahead)
            except (BrokenPipeError, ConnectionResetError):
                self.close_connection = True
            with lock:
                counts["bytes"] += sent * counted

    class Server(socketserver.ThreadingMixIn, http.server.HTTPServer):
        daemon_threads = True
        # Nothing is to be told of connections that the client ends.
        handle_error = staticmethod(lambda *_: None)

    server = Server(("127.0.0.1", 0), Handler)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    return server, counts


def main():
    top = Path(__file__).resolve().parent.parent
    target = Path(os.environ.get("CARGO_TARGET_DIR", top / "target"))
    p = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    p.add_argument("--megabytes", type=int, default=64, help="size of the layer (64)")
    p.add_argument("--rate", type=float, default=8, help="MB/s of a connection (8)")
    p.add_argument("--delay", type=float, default=20, help="ms before each answer (20)")
    p.add_argument("--rounds", type=int, default=2)
    p.add_argument("--binary", type=Path, default=target / "release/keelblock")
    o = p.parse_args()
    served, layer = image(o.megabytes)
    print("| fetch_ranges_max | seconds | x of one | requests | connections | bytes sent, of the layer's | peak memory, MiB |")
    print("| ---------------- | ------- | -------- | -------- | ----------- | -------------------------- | ---------------- |")
    alone = None
    for most in (1, 2, 4, 8):
        best = None
        for _ in range(o.rounds):
            server, counts = serve(served, layer, o.rate * 1e6, o.delay / 1e3)
            # What removes in the background may still be at it.
            with tempfile.TemporaryDirectory(ignore_cleanup_errors=True) as home:
                began = time.monotonic()
                # By a program between, for a child of ours begins with the memory that we hold.
                subprocess.run(["/usr/bin/time", "-f", "%M", "-o", f"{home}/peak",
                                o.binary, f"--work_dir={home}/work", f"--fetch_ranges_max={most}", "pull",
                                f"127.0.0.1:{server.server_port}/app:1"], check=True, stdout=subprocess.DEVNULL)
                took = time.monotonic() - began
                peak = int(Path(home, "peak").read_text()) / 1024
            server.shutdown()
            row = (took, counts["requests"], len(counts["connections"]), counts["bytes"] / len(served[layer]), peak)
            best = min(best or row, row)
        alone = alone or best[0]
        print(f"| {most} | {best[0]:.2f} | {best[0] / alone:.2f} | {best[1]} | {best[2]} | {best[3]:.3f} | {best[4]:.0f} |")


main()
