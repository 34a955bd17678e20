"""Run while an image is built: writes what is inside, as CycloneDX and as a table of licences.

    python deploy/inventory.py ENVIRONMENT          `python` has cyclonedx-bom, ENVIRONMENT is a virtual environment

`ENVIRONMENT/share/steval/sbom.cdx.json` lists the Python packages of the environment (by `cyclonedx-py environment`) and the Debian
packages around it; `licences.tsv` beside it has a line for each: kind, name, version, licence.
"""

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

DPKG_STATUS = Path("/var/lib/dpkg/status")
COPYRIGHTS = Path("/usr/share/doc")


def python_packages(environment: Path) -> dict[str, Any]:
    """The CycloneDX document of a virtual environment."""
    tool = Path(sys.executable).parent / "cyclonedx-py"
    command = [tool, "environment", "--output-reproducible", "--output-format", "JSON", str(environment)]
    return json.loads(subprocess.run(command, check=True, capture_output=True, text=True).stdout)


def debian_packages(status: Path = DPKG_STATUS, copyrights: Path = COPYRIGHTS) -> list[dict[str, Any]]:
    """CycloneDX components of the installed Debian packages; none where there is no dpkg."""
    if not status.exists():
        return []
    components = []
    for paragraph in status.read_text(encoding="utf-8").split("\n\n"):
        fields = dict(
            line.split(": ", 1) for line in paragraph.splitlines() if ": " in line and not line.startswith(" ")
        )
        if fields.get("Status") != "install ok installed":
            continue
        name, version = fields["Package"], fields["Version"]
        component: dict[str, Any] = {
            "bom-ref": f"debian:{name}",
            "type": "library",
            "name": name,
            "version": version,
            "purl": f"pkg:deb/debian/{name}@{version.replace('+', '%2B').replace(':', '%3A')}?arch={fields['Architecture']}",
        }
        found = debian_licences(copyrights / name / "copyright")
        if found:
            component["licenses"] = [{"license": {"name": licence}} for licence in found]
        components.append(component)
    return components


def debian_licences(copyright_file: Path) -> list[str]:
    """Short names of the licences in a package's machine-readable copyright file; empty where it is prose or missing."""
    if not copyright_file.exists():
        return []
    lines = copyright_file.read_text(encoding="utf-8", errors="replace").splitlines()
    if not lines or not lines[0].startswith("Format:"):
        return []
    return sorted({line.removeprefix("License:").strip() for line in lines if line.startswith("License:")} - {""})


def licence_of(component: dict[str, Any]) -> str:
    """All licences that a component states, for the table."""
    stated = []
    for entry in component.get("licenses", []):
        licence = entry.get("license", {})
        stated.append(entry.get("expression") or licence.get("id") or licence.get("name"))
    return " | ".join(dict.fromkeys(filter(None, stated))) or "not stated; see its copyright file"


def main(environment: Path) -> None:
    """Write both files."""
    document = python_packages(environment)
    around = debian_packages()
    rows = [("python", one) for one in document["components"]] + [("debian", one) for one in around]
    document["components"] += around
    share = environment / "share" / "steval"
    share.mkdir(parents=True, exist_ok=True)
    (share / "sbom.cdx.json").write_text(json.dumps(document, indent=1) + "\n", encoding="utf-8")
    lines = [
        "\t".join((kind, one["name"], one.get("version", ""), " ".join(licence_of(one).split())[:200]))
        for kind, one in rows
    ]
    (share / "licences.tsv").write_text("\n".join(["kind\tname\tversion\tlicence", *lines, ""]), encoding="utf-8")
    sys.stdout.write(f"{len(rows)} packages in {share}\n")


if __name__ == "__main__":
    main(Path(sys.argv[1]))
