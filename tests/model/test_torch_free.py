"""Settings of the room can be read where torch is not wanted."""

import subprocess
import sys

import pytest


@pytest.mark.parametrize("module", ["config", "groups", "loss_settings"])
def test_does_not_import_torch(module):
    code = f"import sys, steval.model.{module}; sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0
