#!/usr/bin/env bash
# Everything there is to measure on one GPU, by one command; see benchmarks/gpu/run.py and docs/performance.md.
#   bash benchmarks/gpu/run.sh --out DIR [--budget SECONDS] [--stages a,b] [--device cpu --small]
set -euo pipefail
here=$(cd "$(dirname "${BASH_SOURCE[0]}")" && pwd)
# pandas 3 would make text columns that anndata 0.12 does not write
export PANDAS_FUTURE_INFER_STRING=0
export PYTHONPATH="$here/../..${PYTHONPATH:+:$PYTHONPATH}" PYTHONUNBUFFERED=1
exec "${PYTHON:-python3}" "$here/run.py" "$@"
