"""Losses and gradient norms between two rows of metrics.csv, kept on the device so that no step waits for a copy."""

from collections.abc import Sequence

import torch
import torch.distributed as dist
from torch import Tensor

from steval.errors import StevalError


class DivergenceError(StevalError):
    """A loss or gradient that is not finite: training cannot go on with these rates, or this data."""

    exit_code = 2
    http_status = 422
    code = "diverged"


def window_row(losses: Tensor, norms: Tensor) -> Tensor:
    """Losses of a step and norms of its gradients, in the order of a `Window`."""
    return torch.cat([losses.detach().float(), norms.detach().float()])


class Window:
    """One row for each optimiser step since the last flush: the losses, then the norm of each trainable tensor's gradient."""

    def __init__(self, loss_names: Sequence[str], tensors: Sequence[str], labels: Sequence[str]):
        self._loss_names = tuple(loss_names)
        self._tensors = tuple(tensors)
        self._labels = tuple(labels)
        """Label (encoders, outputs, ...) of each trainable tensor."""
        self._rows: list[Tensor] = []

    def add(self, losses: Tensor, norms: Tensor) -> None:
        """One optimiser step: mean losses over its batches, gradient norms before clipping."""
        self.add_row(window_row(losses, norms))

    def add_row(self, row: Tensor) -> None:
        """One optimiser step, by its `window_row`."""
        self._rows.append(row)

    def rows(self) -> list[Tensor]:
        """What has been added since the last flush, on the CPU; for the saved state."""
        return [row.cpu() for row in self._rows]

    def restore(self, rows: Sequence[Tensor], device: torch.device) -> None:
        """Take up the rows of a saved state."""
        self._rows = [row.to(device) for row in rows]

    def share(self) -> None:
        """Average the losses over all processes (gradient norms are equal already); a second time changes nothing."""
        if not self._rows or not (dist.is_available() and dist.is_initialized()):
            return
        table = torch.stack(self._rows)
        losses = table[:, : len(self._loss_names)].contiguous()
        dist.all_reduce(losses)
        table[:, : len(self._loss_names)] = losses / dist.get_world_size()
        self._rows = list(table)

    @property
    def latest_is_finite(self) -> bool:
        """Whether the latest step's row is finite; waits for the device."""
        return bool(torch.isfinite(self._rows[-1]).all())

    def require_finite(self, step: int) -> None:
        """Raise a `DivergenceError` that names the first step and tensor that are not finite; `step` is the latest step."""
        if not self._rows:
            return
        table = torch.stack(self._rows)
        if bool(torch.isfinite(table).all()):
            return
        row = int((~torch.isfinite(table)).any(dim=1).nonzero()[0])
        bad = (~torch.isfinite(table[row])).nonzero().flatten().tolist()
        names = [f"loss {name}" for name in self._loss_names] + [f"gradient of {name}" for name in self._tensors]
        first_loss = [names[column] for column in bad if column < len(self._loss_names)]
        gradients = [names[column] for column in bad if column >= len(self._loss_names)]
        shown = ", ".join([*first_loss, *gradients[:3]]) + (
            f" and {len(gradients) - 3} more" if len(gradients) > 3 else ""
        )
        raise DivergenceError(
            f"training stopped at step {step - len(self._rows) + 1 + row}: not finite: {shown}. The last good checkpoint is kept. "
            "Lower the learning rates (phases.*.rates), check the data for extreme values, or use precision 32"
        )

    def flush(self) -> dict[str, float]:
        """Means over the steps since the last flush: `train/...`, `grad_norm/<label>` and `grad_norm/total`; then empty."""
        if not self._rows:
            return {}
        table = torch.stack(self._rows).double().cpu()
        self._rows = []
        count = len(self._loss_names)
        values = {
            f"train/{name}": float(column)
            for name, column in zip(self._loss_names, table[:, :count].mean(0), strict=True)
        }
        squares = table[:, count:].square()
        for label in dict.fromkeys(self._labels):
            chosen = [index for index, other in enumerate(self._labels) if other == label]
            values[f"grad_norm/{label}"] = float(squares[:, chosen].sum(1).sqrt().mean())
        values["grad_norm/total"] = float(squares.sum(1).sqrt().mean())
        return values
