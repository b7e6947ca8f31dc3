#!/usr/bin/env bash
# keelblock beside its peers, in one interleaved run, as tables of medians.
#
#   benches/compare.sh                            every part on every image
#   benches/compare.sh cold copy --images node    these parts on this image
#   benches/compare.sh --json FILE                keeps every value as well; --table FILE prints the tables of it again
#   benches/compare.sh --help                     parts, images, tools, rounds, where things are kept
#
# Needs root, python3 and as many of the peers as are to be compared (Debian: docker-registry skopeo umoci podman crun
# runc containerd curl jq isal strace; debootstrap and npm where the images are made). A peer that is missing is left
# out. Builds nothing: `cargo build --release` first.
# Everything is mounted in a mount namespace of its own, so that nothing stays mounted whatever happens.
set -euo pipefail
export PATH="$PATH:/usr/sbin:/sbin" PYTHONDONTWRITEBYTECODE=1
compare=$(dirname "$(realpath "$0")")/compare
for argument in "$@"; do
    case $argument in -h | --help | --table*) exec python3 "$compare" "$@" ;; esac
done
[ "$(id -u)" -eq 0 ] || { echo 'compare.sh: it makes file systems and mounts them: run it as root' >&2; exit 1; }
exec unshare --mount --propagation private python3 "$compare" "$@"
