"""Versions of the packages that a run's numbers depend on."""

import platform
from importlib.metadata import PackageNotFoundError, version

PACKAGES = ("steval", "torch", "lightning", "numpy", "scipy", "anndata", "safetensors")


def package_versions() -> dict[str, str]:
    """Name → version, Python's own among them."""
    found = {"python": platform.python_version()}
    for name in PACKAGES:
        try:
            found[name] = version(name)
        except PackageNotFoundError:
            found[name] = "not installed"
    return found
