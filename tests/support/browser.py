"""Debian's Chromium by playwright, for tests of the service's page; required in CI, elsewhere skipped where it is not installed."""

import os
import shutil

import pytest

CHROMIUM = shutil.which("chromium") or shutil.which("chromium-browser")
FLAGS = [
    *("--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run"),
    *("--disable-background-networking", "--disable-component-update", "--disable-sync"),
]
REQUIRED = "STEVAL_REQUIRE_BROWSER" in os.environ
"""Set in CI, so that the tests cannot be skipped there."""


def playwright():
    """`playwright.sync_api`; skips the whole module where it or Chromium is missing and nobody requires them."""
    if REQUIRED:
        import playwright.sync_api

        return playwright.sync_api
    if CHROMIUM is None:
        pytest.skip("chromium is not installed", allow_module_level=True)
    return pytest.importorskip("playwright.sync_api")
