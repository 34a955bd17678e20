"""What every stage has at hand: the device, sizes, notes that outlive it, and clocks that wait for the device."""

import json
import statistics
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any


class Stage:
    """One stage of `run.py`. `work` is shared by all stages, `out` is what the user gets."""

    def __init__(self, name: str, device: str, small: bool, work: Path, out: Path):
        self.name, self.device, self.small, self.work, self.out = name, device, small, work, out
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
        path = self.notes_path(self.work, self.name)
        partial = path.with_suffix(".part")
        partial.write_text(json.dumps(self._notes, indent=1))
        partial.replace(path)
        print({key: value for key, value in values.items() if key != "kernels"}, flush=True)

    def notes_of(self, name: str) -> dict[str, Any]:
        """What another stage has noted; empty where it has not run."""
        path = self.notes_path(self.work, name)
        return json.loads(path.read_text()) if path.exists() else {}

    @staticmethod
    def notes_path(work: Path, name: str) -> Path:
        """Where a stage's notes are."""
        return work / f"{name}.json"

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
