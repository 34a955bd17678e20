#!/usr/bin/env bash
# The wheels that steval needs on a GPU machine without network, where Python 3.12 is and `there` below is installed: a folder to carry.
#   bash benchmarks/gpu/pack_wheels.sh DIR        (--list: what of steval's dependencies is carried, there, and left out)
# There, in the source tree:
#   python3 -m pip install -q --no-index --no-deps --no-compile --no-cache-dir --target SITE DIR/*.whl
#   PYTHONPATH=SITE bash benchmarks/gpu/run.sh --out OUT
# Versions are those of constraints.txt. Large wheels are packed again, without symbols for debuggers (binutils' strip) and with LZMA,
# which pip reads too: that takes two minutes and brings the folder with the source tree under 64 MiB; more is an error. What only
# cell-eval's own scoring, submissions and the HTTP service need is left out; cell-eval's own wheel is carried, for its version
# stands in every score's record.
set -euo pipefail
out=${1:?the folder to write the wheels into, or --list}
root=$(cd "$(dirname "${BASH_SOURCE[0]}")/../.." && pwd)
names="anndata annotated-types array-api-compat cell-eval donfig google-crc32c legacy-api-wrap natsort numba-mwu numcodecs pdex polars \
polars-runtime-32 pydantic pydantic_core pytest-timeout pytz scverse-misc typing-inspection zarr"
there="torch lightning numba numpy pandas pyarrow h5py scipy scikit-learn safetensors matplotlib typer rich tqdm pyyaml jinja2 fsspec \
pytest"
left_out="scanpy zstandard tensorboard"
most=$((64 << 20))
if [ "$out" = --list ]; then
  printf 'carried: %s\nthere: %s\nleft out: %s\n' "$names" "$there" "$left_out"
  exit
fi
command -v strip >/dev/null || { echo "pack_wheels: no strip; it comes with binutils"; exit 2; }
[ -z "$(ls -A "$out" 2>/dev/null)" ] || { echo "pack_wheels: $out holds files; give a new or empty folder"; exit 2; }

pins=()
for name in $names; do
  pins+=("$(grep -i "^$name==" "$root/constraints.txt")")
done
platforms=()
for version in 5 12 17 24 26 27 28 31 34 35; do platforms+=(--platform "manylinux_2_${version}_x86_64"); done
platforms+=(--platform manylinux1_x86_64 --platform manylinux2010_x86_64 --platform manylinux2014_x86_64)
python3 -m pip download -q --no-deps --only-binary=:all: --python-version 3.12 --implementation cp "${platforms[@]}" -d "$out" "${pins[@]}"

python3 - "$out" <<'PYTHON'
import subprocess
import sys
import tempfile
import zipfile
from pathlib import Path

for path in sorted(Path(sys.argv[1]).glob("*.whl")):
    if path.stat().st_size < 1 << 20:
        continue
    packed = path.with_suffix(".part")
    with tempfile.TemporaryDirectory() as directory, zipfile.ZipFile(path) as wheel:
        wheel.extractall(directory)
        libraries = [str(library) for library in Path(directory).rglob("*.so")]
        if libraries:
            subprocess.run(["strip", "--strip-unneeded", *libraries], check=True)
        with zipfile.ZipFile(packed, "w", zipfile.ZIP_LZMA) as again:
            for entry in filter(lambda entry: not entry.is_dir(), wheel.infolist()):
                again.writestr(entry, (Path(directory) / entry.filename).read_bytes(), compress_type=zipfile.ZIP_LZMA)
    packed.replace(path)
PYTHON
wheels=$(cat "$out"/*.whl | wc -c)
tree=$(cd "$root" && git ls-files -z | xargs -0 cat | wc -c)
mib() { awk -v bytes="$1" 'BEGIN { printf "%.1f MiB", bytes / 1048576 }'; }
echo "$out: $(ls "$out" | wc -l) wheels, $(mib "$wheels"); with the source tree ($(mib "$tree")) $(mib $((wheels + tree)))"
[ $((wheels + tree)) -le $most ] || { echo "pack_wheels: more than $(mib $most)"; exit 1; }
