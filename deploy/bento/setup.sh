#!/usr/bin/env bash
# Runs while the image is built, after the requirements and before the source is copied to $BENTO_PATH/src: makes that source
# importable, and writes the `steval` console script, so that `docker run IMAGE steval score ...` works.
set -euo pipefail
source_dir="${BENTO_PATH:-/home/bentoml/bento}/src"
python_path="$(command -v python)"
site_dir="$("$python_path" -c 'import sysconfig; print(sysconfig.get_path("purelib"))')"
printf '%s\n' "$source_dir" >"$site_dir/steval-source.pth"
script="$(dirname "$python_path")/steval"
printf '#!%s\nfrom steval.cli import main\n\nmain()\n' "$python_path" >"$script"
chmod 755 "$script"
