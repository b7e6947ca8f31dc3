#!/usr/bin/env bash
# keelblock beside its peers, in one interleaved run, as tables of medians.
#
#   benches/compare.sh                      every part
#   benches/compare.sh cold launch          these parts: cold, memory, warm, launch, together
#   benches/compare.sh --help               rounds, scratch directory, binary, tools, image sizes
#
# Needs root, python3 and as many of the peers as are to be compared (Debian: docker-registry skopeo umoci podman crun
# runc containerd debootstrap). What is missing is left out, and said. Builds nothing: `cargo build --release` first.
# Everything is mounted in a mount namespace of its own, so that nothing stays mounted whatever happens.
set -euo pipefail
cd "$(dirname "$0")/.."
for argument in "$@"; do
    case $argument in -h | --help) exec python3 benches/compare --help ;; esac
done
[ "$(id -u)" -eq 0 ] || { echo 'compare.sh: it makes file systems and mounts them: run it as root' >&2; exit 1; }
export PATH="$PATH:/usr/sbin:/sbin"
exec unshare --mount --propagation private python3 benches/compare "$@"
