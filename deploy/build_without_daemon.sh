#!/usr/bin/env bash
# The images where no container engine runs: buildah in a chroot, on a Debian base by debootstrap.
#   deploy/build_without_daemon.sh WORK_DIRECTORY [STEP...]
# Steps, all of them without names: base, serve, full, cuda (that a wrong torch stops the build), try. Also: bento, export.
# Needs root and `apt-get install buildah debootstrap`. Builds take pip's configuration, its certificates and its folders of packages
# from this machine. BASE=IMAGE takes another base than the one that `base` makes; IMAGES='serve bento' says which to try or export.
set -euo pipefail
root="$(cd "$(dirname "$0")/.." && pwd)"
directory="${1:?a work directory}"
shift
steps=("$@")
[ $# -gt 0 ] || steps=(base serve full cuda try)
known=(base serve full cuda try bento export)
for step in "${steps[@]}"; do
    [[ " ${known[*]} " = *" $step "* ]] || { echo "no step $step; steps are ${known[*]}" >&2; exit 2; }
done
work="$(mkdir -p "$directory" && cd "$directory" && pwd)"
export BUILDAH_ISOLATION=chroot TMPDIR="$work"
base="${BASE:-localhost/steval-base}"
mirror="${DEBIAN_MIRROR:-http://deb.debian.org/debian}"
store=(buildah --root "$work/storage" --runroot "$work/run")
mkdir -p "$work/empty"

say() { printf -- '-- %s (%ss)\n' "$1" "$SECONDS"; }

# What RUN steps see of this machine: pip's configuration as one file, and the files and folders that it names.
inside() {
    python3 "$root/deploy/pip_inside.py" "$work" >"$work/mounts"
    mounts=()
    while read -r path at; do mounts+=(--volume "$path:$at:ro"); done <"$work/mounts"
}

step_base() {
    say "base: debootstrap"
    rm -rf "$work/base"
    debootstrap --variant=minbase --include=ca-certificates,python-is-python3,python3-distutils,python3.11-venv \
        bookworm "$work/base" "$mirror" >"$work/debootstrap.log" 2>&1 || { tail -n 20 "$work/debootstrap.log" >&2; exit 1; }
    rm -rf "$work"/base/var/cache/apt/* "$work"/base/var/lib/apt/lists/* "$work"/base/var/log/* "$work"/base/usr/share/{man,locale,info}
    find "$work/base/usr/share/doc" -type f ! -name copyright -delete
    local container
    container="$("${store[@]}" from scratch)"
    "${store[@]}" add --quiet "$container" "$work/base" / >/dev/null
    "${store[@]}" config --cmd /bin/bash "$container"
    "${store[@]}" commit --quiet --rm "$container" "$base" >/dev/null
    rm -rf "$work/base"
}

# build TAG FILE CONTEXT OPTION...
build() {
    inside
    local tag=$1 file=$2 context=$3
    shift 3
    "${store[@]}" bud --layers "${mounts[@]}" --build-arg BASE="$base" --tag "$tag" --file "$file" "$@" "$context"
}

step_image() {
    say "$1: buildah bud"
    build "localhost/steval:$1" "$root/deploy/Containerfile" "$root" --target "$1" >"$work/$1.log" 2>&1 || { tail -n 20 "$work/$1.log" >&2; exit 1; }
    measure "$1" /opt/steval
}

# measure IMAGE ENVIRONMENT: its size, and the inventory out of it where it has one.
measure() {
    local container rootfs
    container="$("${store[@]}" from "localhost/steval:$1")"
    rootfs="$("${store[@]}" mount "$container")"
    if [ -d "$rootfs$2/share/steval" ]; then
        cp "$rootfs$2/share/steval/sbom.cdx.json" "$work/$1.cdx.json"
        cp "$rootfs$2/share/steval/licences.tsv" "$work/$1.licences.tsv"
    fi
    printf '%s: %s MB, of them %s MB Python packages\n' "$1" "$(du -sm "$rootfs" | cut -f1)" "$(du -sm "$rootfs$2" | cut -f1)"
    "${store[@]}" rm "$container" >/dev/null
}

# A build for GPUs that gets a CPU torch (or the other way round) stops and says so.
step_cuda() {
    say "the other kind of torch"
    local found other
    found="$(run serve python -c 'import torch; print("cpu" if torch.version.cuda is None else "cuda")')"
    other=$([ "$found" = cpu ] && echo cuda || echo cpu)
    if build localhost/steval:other "$root/deploy/Containerfile" "$root" --target serve --build-arg ACCELERATOR="$other" >"$work/other.log" 2>&1; then
        echo "a build that asked for $other and got $found went through" >&2
        exit 1
    fi
    grep -o "a $other build of torch was asked for.*" "$work/other.log"
}

# The bento as BentoML's own Dockerfile makes it, with the base of here in place of python:3.11-slim (which has pip, so this gets it).
step_bento() {
    say "bento: bentoml build, buildah bud"
    local tag python_base=localhost/steval-base-python
    printf 'ARG BASE\nFROM ${BASE}\nRUN python -m venv /usr/local\n' >"$work/python.containerfile"
    build "$python_base" "$work/python.containerfile" "$work/empty" >"$work/bento.log" 2>&1
    tag="$(cd "$root" && BENTOML_HOME="$work/bentoml" BENTOML_DO_NOT_TRACK=True PYTHONPATH="$root" python -m bentoml build -o tag . 2>>"$work/bento.log" | tail -1)"
    local bento="$work/bentoml/bentos/steval/${tag#__tag__:steval:}"
    build localhost/steval:bento "$bento/env/docker/Dockerfile" "$bento" --from "$python_base" >>"$work/bento.log" 2>&1 || { tail -n 20 "$work/bento.log" >&2; exit 1; }
    measure bento /app/.venv
}

# run IMAGE ARGUMENT...: the image's entry point by deploy/run_rootfs.sh.
run() {
    local image=$1 container status=0
    shift
    container="$("${store[@]}" from "localhost/steval:$image")"
    ROOTFS="$("${store[@]}" mount "$container")" bash "$root/deploy/run_rootfs.sh" "$@" || status=$?
    "${store[@]}" rm "$container" >/dev/null
    return "$status"
}

# What docs/deployment.md promises of an image, on a tiny checkpoint; `python` needs steval.
step_try() {
    local image container status
    for image in ${IMAGES:-serve full}; do
        say "$image: tried as its user, and as another"
        container="$("${store[@]}" from "localhost/steval:$image")"
        status=0
        ROOTFS="$("${store[@]}" mount "$container")" bash "$root/deploy/try_rootfs.sh" "$work/try-$image" || status=$?
        "${store[@]}" rm "$container" >/dev/null
        [ "$status" = 0 ] || exit "$status"
    done
}

step_export() {
    local image
    for image in ${IMAGES:-serve full}; do
        say "$image: steval-$image.tar"
        rm -f "$work/steval-$image.tar"
        "${store[@]}" push --quiet "localhost/steval:$image" "docker-archive:$work/steval-$image.tar:steval:$image"
    done
}

for step in "${steps[@]}"; do
    case "$step" in
    serve | full) step_image "$step" ;;
    *) "step_$step" ;;
    esac
done
say "done"
