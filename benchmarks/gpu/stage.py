"""What every stage has at hand: the device, sizes, notes that outlive it, and clocks that wait for the device."""

import importlib
import json
import statistics
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any


class Stage:
    """One stage of `run.py`. `work` is shared by all stages, `out` is what the user gets."""

    def __init__(
        self, name: str, device: str, small: bool, work: Path, out: Path, variant: str | None = None, *, together: bool
    ):
        self.name, self.device, self.small, self.work, self.out = name, device, small, work, out
        self.variant, self.together = variant, together
        self._notes: dict[str, Any] = {}

    @property
    def on_gpu(self) -> bool:
        return self.device == "cuda"

    def size(self, full: int, small: int) -> int:
        """`full`, or `small` where only the script is to be proved."""
        return small if self.small else full

    def note(self, **values: Any) -> None:
        """Keep values, at once."""
        self._notes |= values
        path = self.notes_path(self.work, self.name, self.variant)
        partial = path.with_suffix(".part")
        partial.write_text(json.dumps(self._notes, indent=1))
        partial.replace(path)
        print({key: value for key, value in values.items() if key != "kernels"}, flush=True)

    def notes_of(self, name: str, variant: str | None = None) -> dict[str, Any]:
        """What another stage has noted; empty where it has not run."""
        path = self.notes_path(self.work, name, variant)
        return json.loads(path.read_text()) if path.exists() else {}

    @staticmethod
    def notes_path(work: Path, name: str, variant: str | None = None) -> Path:
        """Where the notes of a stage, or of one of its variants, are."""
        return work / (f"{name}.json" if variant is None else f"{name}.{variant.replace(' ', '_')}.json")

    def run_variant(self, name: str, seconds: float) -> dict[str, Any]:
        """What variant `name` of this stage notes, in a process of its own (or here, where all are together); and how it
        ended, where not well."""
        if self.together:
            stage = Stage(self.name, self.device, self.small, self.work, self.out, name, together=True)
            importlib.import_module(self.name).run(stage)
            return self.notes_of(self.name, name)
        command = [sys.executable, str(Path(__file__).with_name("run.py")), "--only", self.name, "--variant", name]
        command += ["--device", self.device, "--work", str(self.work), "--out", str(self.out)]
        command += ["--small"] if self.small else []
        status = {}
        try:
            code = subprocess.run(command, check=False, timeout=seconds).returncode
            if code:
                status = {"status": f"failed with exit code {code}"}
        except subprocess.TimeoutExpired:
            status = {"status": f"ended at its limit of {seconds:.0f} s"}
        return self.notes_of(self.name, name) | status

    def made(self, name: str, seconds: float = 100.0) -> Path:
        """A file that `make` writes; waits for it."""
        path = self.work / name
        end = time.monotonic() + seconds
        while not path.exists():
            if time.monotonic() > end:
                raise SystemExit(f"{name} was not made within {seconds:.0f} s")
            time.sleep(0.05)
        return path

    def synchronise(self) -> None:
        """Wait for the device."""
        if self.on_gpu:
            import torch

            torch.cuda.synchronize()

    def seconds(self, work: Callable[[], object], repeats: int = 10, warmup: int = 3) -> float:
        """Median seconds of `work`, the device's included."""
        for _ in range(warmup):
            work()
        self.synchronise()
        taken = []
        for _ in range(repeats):
            started = time.perf_counter()
            work()
            self.synchronise()
            taken.append(time.perf_counter() - started)
        return statistics.median(taken)
