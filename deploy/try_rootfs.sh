#!/usr/bin/env bash
# What docs/deployment.md promises of an image, tried without a container engine on an unpacked one (deploy/run_rootfs.sh).
#   ROOTFS=DIRECTORY deploy/try_rootfs.sh WORK_DIRECTORY       needs root; `python` needs steval
set -euo pipefail
root="$(cd "$(dirname "$0")/.." && pwd)"
work="$(rm -rf "$1" && mkdir -p "$1" && cd "$1" && pwd)"
export ROOTFS MODELS="$work/case/models" DATA="$work/case/data" WORK="$work/out"

run() { bash "$root/deploy/run_rootfs.sh" "$@"; }
fail() {
    echo "$1" >&2
    exit 1
}
refused() { # refused WORDS COMMAND...: it ends with an error that has the words
    local words=$1
    shift
    if run "$@" >"$work/refused.log" 2>&1; then fail "not refused: $*"; fi
    grep -q "$words" "$work/refused.log" || fail "$* said: $(tail -n 3 "$work/refused.log")"
}

PYTHONPATH="$root:$root/tests" python -c "import pathlib, sys; from support import batch_cases
batch_cases.write_case(pathlib.Path(sys.argv[1]))" "$work/case"
mkdir "$WORK"
chown 1034:1034 "$WORK"

run --version
[ "$(run python -c 'import os; print(os.getuid(), os.path.exists("/bin/sh") and os.path.getsize("/bin/sh"))')" = "1034 0" ] ||
    fail "not uid 1034, or with a shell"
refused "Read-only file system" python -c 'open("/usr/new", "w")'
refused "Read-only file system" python -c 'open("/models/new", "w")'

run predict /models/a.safetensors -o preds.h5ad --cells 20
run score /models/a.safetensors scored.h5ad --predict --real /data/packaged.h5ad --metrics-only -o score >/dev/null
[ -s "$WORK/score/results.csv" ] || fail "score wrote no results.csv"
printf 'checkpoints: [/models/*.safetensors]\ndata: [{real: /data/packaged.h5ad}]\nrequests: [{name: all}]\n' >"$WORK/night.yaml"
run batch night.yaml >/dev/null
[ "$(grep -c ,scored, "$WORK/night.batch/leaderboard.csv")" -ge 2 ] || fail "the batch scored less than two"
RUN_AS=4321:4321 run predict /models/a.safetensors -o /tmp/preds.h5ad --cells 20

refused "api-key" serve /models/a.safetensors
key="$(run serve --new-key lab --api-key-file keys.txt | grep -o 'stv_[A-Za-z0-9_-]*')"
PORT="$(python -c 'import socket; s = socket.socket(); s.bind(("127.0.0.1", 0)); print(s.getsockname()[1])')"
export PORT STEVAL_CHECKPOINT=/models/a.safetensors STEVAL_API_KEY_FILE=/work/keys.txt
refused "refused" healthy
began="$(date +%s%N)"
bash "$root/deploy/run_rootfs.sh" serve >"$work/serve.log" 2>&1 & # it becomes the service: its number is the service's
server=$!
trap 'kill "$server" 2>/dev/null; wait "$server" || true' EXIT
for _ in $(seq 600); do
    kill -0 "$server" 2>/dev/null || fail "the service ended: $(tail -n 20 "$work/serve.log")"
    if curl -sf "http://127.0.0.1:$PORT/readyz" >/dev/null; then break; fi
    sleep 0.1
done
printf 'ready after %s ms\n' "$((($(date +%s%N) - began) / 1000000))"
run healthy
ask=(curl -s -o "$work/answer.json" -w '%{http_code}' -H 'Content-Type: application/json' -d '{"perturbations": ["STAT1"], "cells": 20}' "http://127.0.0.1:$PORT/predict")
[ "$("${ask[@]}")" = 401 ] || fail "answered without a key"
[ "$("${ask[@]}" -H "Authorization: Bearer $key")" = 200 ] || fail "no prediction: $(cat "$work/answer.json")"
printf 'user of the service: %s\n' "$(ps -o uid= -p "$server" | tr -d ' ')"
