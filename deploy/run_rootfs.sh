#!/usr/bin/env bash
# Runs the entry point of an unpacked image as its user, without a container engine. Needs root (mounts, in a name space of their own).
#   ROOTFS=DIRECTORY deploy/run_rootfs.sh ARGUMENT...
# The root file system is read-only and has no shell; /tmp is new, /etc/hosts this machine's. MODELS,
# DATA (read only) and WORK (to write) are directories of this machine for /models, /data and /work. RUN_AS=1034:1034 is the user. STEVAL_*, PORT and OMP_* are passed on.
set -euo pipefail
: "${ROOTFS:?the unpacked image}"
export ROOTFS
entry=/usr/local/bin/steval-entrypoint
[ -e "$ROOTFS$entry" ] || entry=/home/bentoml/bento/src/deploy/entrypoint.py
passed=(PATH=/opt/steval/bin:/app/.venv/bin:/usr/local/bin:/usr/bin:/bin HOME=/home/steval PYTHONUNBUFFERED=1 BENTOML_DO_NOT_TRACK=True STEVAL_DATA_DIR=/data
    NUMBA_CACHE_DIR=/tmp/steval-numba MPLCONFIGDIR=/tmp/steval-matplotlib)
while IFS= read -r line; do passed+=("$line"); done < <(env | grep -E '^(STEVAL_|PORT=|OMP_)' || true)
# shellcheck disable=SC2016 # for the inner shell
exec unshare --mount bash -euc '
    at=$ROOTFS
    mount --bind "$at" "$at"
    mount --rbind /proc "$at/proc"
    mount --rbind /dev "$at/dev"
    mount -t tmpfs -o mode=1777 tmpfs "$at/tmp"
    [ -e "$at/etc/hosts" ] || : >"$at/etc/hosts"
    mount --bind /etc/hosts "$at/etc/hosts"
    [ -z "${MODELS:-}" ] || mount --bind -o ro "$MODELS" "$at/models"
    [ -z "${DATA:-}" ] || mount --bind -o ro "$DATA" "$at/data"
    [ -z "${WORK:-}" ] || mount --bind "$WORK" "$at/work"
    for shell in sh bash dash; do [ ! -e "$at/usr/bin/$shell" ] || mount --bind /dev/null "$(realpath "$at/usr/bin/$shell")"; done
    mount -o remount,bind,ro "$at"
    cd "$at"
    exec chroot --userspec="${RUN_AS:-1034:1034}" "$at" /usr/bin/env -i --chdir=/work "$@"
' run "${passed[@]}" python "$entry" "$@"
