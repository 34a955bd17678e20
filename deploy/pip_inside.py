"""For builds in a chroot: pip's configuration of this machine as one file, and what has to be mounted for it.

    python deploy/pip_inside.py DIRECTORY       prints lines `PATH PLACE`: mount PATH there, read only

The same for uv, which BentoML's images install with and which reads no configuration of pip.
"""

import json
import subprocess
import sys
from pathlib import Path

SETTINGS = (
    "index-url",
    "extra-index-url",
    "find-links",
    "trusted-host",
    "constraint",
    "cert",
    "default-timeout",
    "proxy",
)
"""Those that decide where packages come from; the first that pip lists (its own order: environment, then files) counts."""


def configuration() -> dict[str, str]:
    """What `pip config list` says of `SETTINGS`, without sections."""
    listed = subprocess.run(
        [sys.executable, "-m", "pip", "config", "list"], check=True, capture_output=True, text=True
    ).stdout
    found: dict[str, str] = {}
    for line in listed.splitlines():
        key, _, value = line.partition("=")
        name = key.rsplit(".", 1)[-1]
        if name in SETTINGS:
            found.setdefault(name, " ".join(value.strip().strip("'\"").replace("\\n", " ").split()))
    return found


def local_paths(settings: dict[str, str]) -> list[Path]:
    """Files and folders of this machine that the settings name; an index of files is taken with the folder around it."""
    words = [word for value in settings.values() for word in value.split()]
    paths = [Path(word.removeprefix("file://")) for word in words if word.startswith(("/", "file:///"))]
    return [path.parent if path.name == "simple" else path for path in paths if path.exists()]


def uv_lines(settings: dict[str, str]) -> list[str]:
    """The same places as lines of `uv.toml`; certificates are the system's."""
    lines = ["native-tls = true"]
    if "index-url" in settings:
        lines.append(f'index-url = "{settings["index-url"]}"')
    for name in ("extra-index-url", "find-links"):
        if name in settings:
            lines.append(f"{name} = {json.dumps(settings[name].split())}")
    return lines


def main(directory: Path) -> None:
    """Write both files and print the mounts."""
    settings = configuration()
    (directory / "pip.conf").write_text(
        "\n".join(["[global]", *(f"{name} = {value}" for name, value in settings.items()), ""])
    )
    (directory / "uv.toml").write_text("\n".join([*uv_lines(settings), ""]))
    for path in dict.fromkeys(local_paths(settings)):
        sys.stdout.write(f"{path} {path}\n")
    sys.stdout.write(f"{directory}/pip.conf /etc/pip.conf\n{directory}/uv.toml /etc/uv/uv.toml\n")


if __name__ == "__main__":
    main(Path(sys.argv[1]))
