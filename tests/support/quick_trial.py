"""In place of `steval finetune` in a process of its own: writes what a run leaves, with a loss that its settings decide.

QUICK_TRIAL_SECONDS: how long it takes; SIGTERM ends it as a run ends, with its state. A seed of 13 fails.
"""

import json
import os
import signal
import sys
import time
from pathlib import Path

import yaml

arguments = sys.argv[1:]
resumed = "--resume" in arguments
run = Path(arguments[arguments.index("--resume" if resumed else "--run") + 1])
config_path = run / "config.yaml" if resumed else Path(arguments[1])
config = yaml.safe_load(config_path.read_text())
if config["seed"] == 13:
    sys.exit("error: unlucky")
(run / "checkpoints").mkdir(parents=True, exist_ok=True)
(run / "config.yaml").write_text(config_path.read_text())
loss = 100 * abs(config["phases"][0]["rates"]["encoders"] - 0.003) + 0.01 * config["sets"]["size"]
stopped = False


def stop(number: int, frame: object) -> None:
    global stopped
    stopped = True


signal.signal(signal.SIGTERM, stop)
steps = sum(phase["steps"] for phase in config["phases"])
seconds = float(os.environ.get("QUICK_TRIAL_SECONDS", "0"))
with (run / "metrics.csv").open("w") as handle:
    handle.write("step,phase,phase_step,seconds,val/gene\n")
    for step in range(0, steps + 1, 2):
        handle.write(f"{step},a,{step},0,{loss + 0.001 * (steps - step)}\n")
        handle.flush()
        time.sleep(seconds / steps)
        if stopped:
            break
(run / "checkpoints" / "last.ckpt").write_bytes(b"state")
status = "stopped" if stopped else "finished"
(run / "run.json").write_text(json.dumps({"status": status, "best": {"value": loss}, "resumed": resumed}))
sys.exit(143 if stopped else 0)
