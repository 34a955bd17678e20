#!/usr/bin/env bash
# The image's steps without a container engine: builds the bento, runs its own install and setup scripts in a fresh virtual
# environment, then its entry point with `score` and `serve` and its health check.
#   deploy/try_image.sh WORK_DIRECTORY     about 2 GB and three minutes; `python` needs steval[serve] and pip a package index
# STEVAL_ACCELERATOR: the kind of torch that the index gives, cpu (the default) or cuda.
set -euo pipefail
root="$(cd "$(dirname "$0")/.." && pwd)"
work="$(mkdir -p "$1" && cd "$1" && pwd)"
export BENTOML_HOME="$work/bentoml" BENTOML_DO_NOT_TRACK=True STEVAL_DATA_DIR="$work/data" NUMBA_CACHE_DIR="$work/numba"
export STEVAL_ACCELERATOR="${STEVAL_ACCELERATOR:-cpu}"
export PIP_NO_COMPILE=1 # an image would be compiled for its next starts; this has one
mkdir -p "$BENTOML_HOME" "$STEVAL_DATA_DIR"

say() { printf -- '-- %s (%ss)\n' "$1" "$SECONDS"; }
stop() {
    printf '%s; the end of %s:\n' "$1" "$2" >&2
    tail -n 25 "$2" >&2
    exit 1
}

say "bentoml build"
rm -rf "$work/venv" "$work/case"
PYTHONPATH="$root:$root/tests" python -c "import pathlib, sys; from support import batch_cases
batch_cases.write_case(pathlib.Path(sys.argv[1]))" "$work/case"
tag="$(cd "$root" && PYTHONPATH="$root" python -m bentoml build -o tag . 2>"$work/build.log" | tail -1)" ||
    stop "bentoml build failed" "$work/build.log"
export BENTO_PATH="$BENTOML_HOME/bentos/steval/${tag#__tag__:steval:}" VIRTUAL_ENV="$work/venv"

say "the bento's install script in a fresh virtual environment"
python -m venv "$VIRTUAL_ENV"
unset PYTHONPATH PYTHONHOME
export PATH="$VIRTUAL_ENV/bin:/usr/bin:/bin"
bash "$BENTO_PATH/env/python/install.sh" >"$work/install.log" 2>&1 || stop "the install script failed" "$work/install.log"

say "the bento's setup script"
bash "$BENTO_PATH/env/docker/setup_script"
other=$([ "$STEVAL_ACCELERATOR" = cpu ] && echo cuda || echo cpu)
if STEVAL_ACCELERATOR=$other bash "$BENTO_PATH/env/docker/setup_script" >"$work/setup.log" 2>&1; then
    stop "the setup script took the wrong build of torch" "$work/setup.log"
fi

say "entry point: score"
entry() { python "$BENTO_PATH/src/deploy/entrypoint.py" "$@"; }
cd "$work/case"
entry --version
found="$(entry python -c 'import steval; print(steval.__file__)')"
[ "$found" = "$BENTO_PATH/src/steval/__init__.py" ] || { echo "steval came from $found, not from the bento" >&2 && exit 1; }
entry score models/a.safetensors preds.h5ad --predict --real data/packaged.h5ad --metrics-only -o score
[ -s score/results.csv ] || { echo "score wrote no results.csv" >&2 && exit 1; }

say "entry point: serve"
PORT="$(python -c 'import socket; s = socket.socket(); s.bind(("127.0.0.1", 0)); print(s.getsockname()[1])')"
export PORT STEVAL_CHECKPOINT="$work/case/models/a.safetensors" STEVAL_NO_AUTH=true
grep -q '^HEALTHCHECK .*entrypoint.py", "healthy"' "$BENTO_PATH/env/docker/Dockerfile" || { echo "the Dockerfile has no health check" >&2 && exit 1; }
python "$BENTO_PATH/src/deploy/entrypoint.py" serve >"$work/serve.log" 2>&1 &
server=$!
trap 'kill "$server" 2>/dev/null; wait "$server" || true' EXIT
for _ in $(seq 90); do
    kill -0 "$server" 2>/dev/null || stop "the service ended" "$work/serve.log"
    if entry healthy 2>/dev/null; then
        python -c "import os
from steval.service.client import ServiceClient
with ServiceClient('http://127.0.0.1:' + os.environ['PORT']) as service:
    print('predicted', service.predict_means(['STAT1'], cells=20).means.shape)" || stop "no prediction" "$work/serve.log"
        say "healthy, predicts"
        exit 0
    fi
    sleep 1
done
stop "the service did not become healthy" "$work/serve.log"
