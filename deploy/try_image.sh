#!/usr/bin/env bash
# The image's steps without a container engine: builds the bento, runs its own install and setup scripts in a fresh virtual
# environment, then its entry point with `score` and `serve`.   deploy/try_image.sh WORK_DIRECTORY   (about 2 GB, minutes)
set -euo pipefail
root="$(cd "$(dirname "$0")/.." && pwd)"
work="$(mkdir -p "$1" && cd "$1" && pwd)"
export BENTOML_HOME="$work/bentoml" BENTOML_DO_NOT_TRACK=True STEVAL_DATA_DIR="$work/data" NUMBA_CACHE_DIR="$work/numba"
mkdir -p "$BENTOML_HOME" "$STEVAL_DATA_DIR"
PYTHONPATH="$root/tests/batch" python -c "
import pathlib, sys, batch_cases
case = pathlib.Path(sys.argv[1]) / 'case'
case.exists() or batch_cases.write_case(case)" "$work"
tag="$(cd "$root" && python -m bentoml build -o tag . | tail -1)"
tag="${tag#__tag__:steval:}"
export BENTO_PATH="$BENTOML_HOME/bentos/steval/$tag" VIRTUAL_ENV="$work/venv"
[ -x "$VIRTUAL_ENV/bin/steval" ] || {
    python -m venv "$VIRTUAL_ENV"
    PATH="$VIRTUAL_ENV/bin:/usr/bin:/bin" bash "$BENTO_PATH/env/python/install.sh" >"$work/install.log" 2>&1
}
export PATH="$VIRTUAL_ENV/bin:/usr/bin:/bin"
bash "$BENTO_PATH/env/docker/setup_script"
entry="$BENTO_PATH/src/deploy/entrypoint.sh"
cd "$work/case"
"$entry" --version
rm -rf score preds.h5ad
"$entry" score models/a.safetensors preds.h5ad --predict --real data/packaged.h5ad --metrics-only -o score
export PORT="${PORT:-3970}" STEVAL_CHECKPOINT="$work/case/models/a.safetensors" STEVAL_NO_AUTH=true
"$entry" serve >"$work/serve.log" 2>&1 &
server=$!
trap 'kill $server' EXIT
ready="import os, urllib.request as r; r.urlopen('http://127.0.0.1:' + os.environ['PORT'] + '/readyz', timeout=4)"
for _ in $(seq 90); do
    if python -c "$ready" 2>/dev/null; then
        echo "serves"
        exit 0
    fi
    sleep 1
done
echo "did not become ready; the log is $work/serve.log" >&2
exit 1
