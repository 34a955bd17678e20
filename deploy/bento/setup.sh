#!/usr/bin/env bash
# Runs while the image is built, after requirements and source are in place: checks that torch is of the kind asked for, makes
# the source importable, and writes the `steval` console script, so that `docker run IMAGE score ...` works.
set -euo pipefail
source_dir="${BENTO_PATH:-/home/bentoml/bento}/src"
python_path="$(command -v python)"
"$python_path" "$source_dir/deploy/check_torch.py" "${STEVAL_ACCELERATOR:-cpu}"
site_dir="$("$python_path" -c 'import sysconfig; print(sysconfig.get_path("purelib"))')"
printf '%s\n' "$source_dir" >"$site_dir/steval-source.pth"
script="$(dirname "$python_path")/steval"
printf '#!%s\nfrom steval.cli import main\n\nif __name__ == "__main__":\n    main()\n' "$python_path" >"$script"
chmod 755 "$script"
