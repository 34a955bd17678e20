"""Do arc-state's LoRA models give the same numbers in steval, merged and with their adapters apart? (1e-5 of the largest output)

    python -m venv ARC && ARC/bin/pip install arc-state==0.11.1 peft
    python benchmarks/parity_arc_lora.py --arc-python ARC/bin/python

With `transformers==4.52.4` in that environment the models are GPT-2, else Llama. As `parity_arc.py`, whose random models these are
with `lora` turned on: every rank, alpha, target and bias of the table below; the adapters and biases are random. At the end: how
many adapters `model=pseudobulk` has, whose configuration has a `lora` too.
"""

import argparse
import contextlib
import io
import itertools
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

import numpy as np
import parity_arc
import torch

RANKS = ((1, 3), (4, 8), (16, 32), (5, 1))
"""Rank and alpha."""
TARGETS = (
    {"target": "auto", "adapt_mlp": False},
    {"target": "auto", "adapt_mlp": True},
    {"target": "other", "adapt_mlp": False},
)
"""Attention; attention and MLP; peft's own choice for the backbone."""
BIASES = ("none", "all", "lora_only")


def combinations() -> list[dict[str, Any]]:
    """`lora` of each model."""
    return [
        {"enable": True, "r": rank, "alpha": alpha, "dropout": 0.05, "bias": BIASES[number % 3], **target}
        | {"task_type": "FEATURE_EXTRACTION", "merge_on_eval": False}
        for number, ((rank, alpha), target) in enumerate(itertools.product(RANKS, TARGETS))
    ]


def pseudobulk_adapters() -> int:
    """Runs where arc-state is installed: matrices of adapters in its pseudobulk network, built with `lora` on."""
    from state.tx.models.pseudobulk import PseudobulkPerturbationModel

    arguments = parity_arc.random_arguments(np.random.default_rng(0), "llama")
    arguments |= {"batch_encoder": False, "use_batch_token": False, "lora": combinations()[0]}
    arguments["transformer_backbone_kwargs"] |= {"n_positions": arguments["cell_set_len"]}
    with contextlib.redirect_stdout(io.StringIO()):
        model = PseudobulkPerturbationModel(**arguments)
    return sum("lora_" in name for name in model.state_dict())


def compare(directory: Path) -> int:
    """A line per model: merged and apart against arc-state's own numbers; returns the number of failures."""
    from steval.model.inference import InferenceNetwork
    from steval.model.lora import attach
    from steval.model.network import StateTransition

    failures = 0
    for path in sorted(directory.glob("*.ckpt"), key=lambda path: int(path.stem)):
        model = parity_arc.read(path)
        with np.load(path.with_suffix(".npz")) as arrays:
            data = {key: torch.from_numpy(arrays[key]) for key in arrays}
        together, apart = (StateTransition(model.config).eval() for _ in range(2))
        together.load_state_dict(model.weights)
        apart.load_state_dict(model.base)
        attach(apart, model.adapters.pairs, model.adapters.scale)
        worst = {
            name: max(parity_arc.differences(network, arranged, data).values())
            for name, network, arranged in (
                ("merged", together, InferenceNetwork.from_network(together)),
                ("apart", apart, InferenceNetwork.from_network(together)),
            )
        }
        idle = float(max((model.weights[name] - model.base[name]).abs().max() for name in model.adapters.pairs))
        failed = max(worst.values()) > parity_arc.RELATIVE or not idle
        failures += failed
        parts = sorted({name.split(".")[-2] for name in model.adapters.pairs})
        print(
            f"{path.stem:>3} rank {model.adapters.rank:>2} alpha {model.adapters.alpha:>4g} {', '.join(parts):<55} "
            + " ".join(f"{name} {value:.1e}" for name, value in worst.items()) + (" FAILED" if failed else "")
        )  # fmt: skip
    print(f"{failures} failures (allowed {parity_arc.RELATIVE:.0e} of the largest output)")
    return failures


def main() -> None:
    """Both halves."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--arc-python", type=Path, help="python of an environment with arc-state 0.11.1 and peft")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--generate", type=Path, help=argparse.SUPPRESS)
    parser.add_argument("--pseudobulk", action="store_true", help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.pseudobulk:
        print(f"model=pseudobulk with lora.enable=true: {pseudobulk_adapters()} adapter matrices in its state dict")
        return
    if options.generate is not None:
        parity_arc.generate(options.generate, [{"lora": lora} for lora in combinations()], options.seed)
        return
    if options.arc_python is None:
        parser.error("--arc-python is needed")
    with tempfile.TemporaryDirectory() as directory:
        command = [options.arc_python, __file__, "--generate", directory, "--seed", str(options.seed)]
        subprocess.run([str(part) for part in command], check=True)
        failures = compare(Path(directory))
        subprocess.run([str(options.arc_python), __file__, "--pseudobulk"], check=True)
        sys.exit(min(failures, 1))


if __name__ == "__main__":
    main()
