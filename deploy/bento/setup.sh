#!/usr/bin/env bash
# Runs while the image is built, after the requirements and before the source is copied to $BENTO_PATH/src: makes that source
# importable, and writes the `steval` console script, so that `docker run IMAGE score ...` works.
set -euo pipefail
source_dir="${BENTO_PATH:-/home/bentoml/bento}/src"
python_path="$(command -v python)"
"$python_path" - "${STEVAL_ACCELERATOR:-cpu}" <<'CHECK'
import sys, torch
found = "cpu" if torch.version.cuda is None else "cuda"
if found != sys.argv[1]:
    sys.exit(f"the package index gave a {found} build of torch ({torch.__version__}), and {sys.argv[1]} was asked for; "
             "give the build argument TORCH_INDEX, or ACCELERATOR")
CHECK
site_dir="$("$python_path" -c 'import sysconfig; print(sysconfig.get_path("purelib"))')"
printf '%s\n' "$source_dir" >"$site_dir/steval-source.pth"
script="$(dirname "$python_path")/steval"
printf '#!%s\nfrom steval.cli import main\n\nif __name__ == "__main__":\n    main()\n' "$python_path" >"$script"
chmod 755 "$script"
