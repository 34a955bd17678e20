"""The ST network arranged for prediction: what depends on control cells alone is computed once, and consecutive linear
maps are one.

In output space `all` with down-then-up, with z the input of `project_out`'s last layer,

    down(project_out(h) + control) = (W_down·W_last) z + [W_down·control + W_down·b_last + b_down]

so that two products over all genes become one over the hidden size, and the bracket belongs to the control cell. The same
function as the network's to rounding (1e-6 in float32). Shape letters: N control cells, B sets, S cells of a set, G basal
features and output columns, P perturbation features, C hidden size, K head terms.
"""

from dataclasses import dataclass
from typing import Self

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from steval.model.config import Attention
from steval.model.lora import attach, split_pairs
from steval.model.network import Prediction, StateTransition


@dataclass(frozen=True)
class ControlTerms:
    """What N control cells contribute to any prediction from them."""

    encoding_NC: Tensor
    head_NK: Tensor | None
    """What the head adds: down-projected controls (K = G//8), or controls (K = G); None where it adds nothing."""

    def __len__(self) -> int:
        return self.encoding_NC.shape[0]

    @classmethod
    def concatenate(cls, parts: list[Self]) -> Self:
        """The terms of all cells of `parts`, in order: controls may be encoded in blocks."""
        heads = [part.head_NK for part in parts if part.head_NK is not None]
        return cls(torch.cat([part.encoding_NC for part in parts]), torch.cat(heads) if heads else None)


class InferenceNetwork:
    """A network in evaluation mode, in float32 or bfloat16, that predicts from `ControlTerms`."""

    def __init__(self, network: StateTransition, folded: tuple[Tensor, Tensor] | None):
        self._network = network
        self._folded = folded
        self.config = network.config
        self.dtype = network.project_out.last.weight.dtype
        self.device = network.project_out.last.weight.device

    @classmethod
    def from_network(
        cls, network: StateTransition, dtype: torch.dtype = torch.float32, attention: Attention | None = None
    ) -> Self:
        """Arrange `network`, whose weights are shared where the dtype is the same and never changed; `attention`
        overrides its regime. bfloat16 is faster and rounds outputs to 3 significant digits. Adapters beside its weights
        (`Checkpoint.beside`) stay there."""
        with torch.device("meta"):
            arranged = StateTransition(network.config, attention)
        weights, pairs = split_pairs({name: value.detach().to(dtype) for name, value in network.state_dict().items()})
        arranged.load_state_dict(weights, assign=True)
        attach(arranged, pairs, scale=1.0)
        arranged.requires_grad_(requires_grad=False).eval()
        bottleneck = network.final_down_then_up
        folded = None if bottleneck is None else _fold(network.project_out.last, bottleneck.down, dtype)
        return cls(arranged, folded)

    def weights(self) -> dict[str, Tensor]:
        """The weights as they are computed with, without adapters beside them; shared, not to be changed."""
        return split_pairs({name: value.detach() for name, value in self._network.state_dict().items()})[0]

    @torch.inference_mode()
    def encode_controls(self, control_NG: Tensor) -> ControlTerms:
        """Terms of control cells, dense, on the checkpoint's scale; any number at a time."""
        control_NG = control_NG.to(self.device, self.dtype)
        encoding_NC = self._network.basal_encoder(control_NG)
        if not self.config.predict_residual or self.config.output_space != "all":
            return ControlTerms(encoding_NC, None)
        bottleneck = self._network.final_down_then_up
        if bottleneck is None or self._folded is None:
            return ControlTerms(encoding_NC, control_NG)
        return ControlTerms(encoding_NC, F.linear(control_NG, bottleneck.down.weight, self._folded[1]))

    @torch.inference_mode()
    def predict(
        self,
        terms: ControlTerms,
        indices_BS: Tensor,
        pert_BP: Tensor,
        batch_BS: Tensor | None = None,
        padding_BS: Tensor | None = None,
    ) -> Prediction:
        """As `StateTransition.forward` for the control cells `indices_BS` (int64, rows of `terms`; any valid row where
        `padding_BS` is True) and one perturbation per set; output and genes in float32."""
        network = self._network
        indices_BS = indices_BS.to(self.device)
        basal_BSC = terms.encoding_NC[indices_BS]
        tokens_BSC = network.embed(basal_BSC, pert_BP.to(self.device, self.dtype), batch_BS)
        hidden = network.run_backbone(tokens_BSC, padding_BS)
        head_BSK = None if terms.head_NK is None else terms.head_NK[indices_BS]
        output_BSG = self._run_head(hidden.cells_BSC, basal_BSC, head_BSK)
        genes_BSD = None if network.gene_decoder is None else network.gene_decoder(output_BSG)
        confidence_B, logits_BK = network.confidence(hidden), network.batch_logits(hidden)
        return Prediction(
            _finished(output_BSG, padding_BS),
            None if genes_BSD is None else _finished(genes_BSD, padding_BS),
            None if confidence_B is None else confidence_B.float(),
            None if logits_BK is None else logits_BK.float(),
        )

    def _run_head(self, cells_BSC: Tensor, basal_BSC: Tensor, head_BSK: Tensor | None) -> Tensor:
        if self.config.predict_residual and head_BSK is None:
            cells_BSC = cells_BSC + basal_BSC
        features_BSC = self._network.project_out.before_last(cells_BSC)
        bottleneck = self._network.final_down_then_up
        if bottleneck is not None and self._folded is not None and head_BSK is not None:
            output_BSG = bottleneck.from_down(F.linear(features_BSC, self._folded[0]).add_(head_BSK))
        else:
            output_BSG = self._network.project_out.last(features_BSC)
            if head_BSK is not None:
                output_BSG.add_(head_BSK)
        return output_BSG.relu_() if self.config.output_is_genes else output_BSG


@torch.no_grad()
def _fold(last: nn.Linear, down: nn.Linear, dtype: torch.dtype) -> tuple[Tensor, Tensor]:
    """`W_down·W_last` and `W_down·b_last + b_down`, formed in the weights' own precision and rounded once."""
    wide = torch.promote_types(down.weight.dtype, last.weight.dtype)  # an adapter may share one of them alone
    down_KG, bias_K = down.weight.to(wide), down.bias.to(wide)
    return (down_KG @ last.weight.to(wide)).to(dtype), (down_KG @ last.bias.to(wide) + bias_K).to(dtype)


def _finished(rows_BSG: Tensor, padding_BS: Tensor | None) -> Tensor:
    rows_BSG = rows_BSG.float()
    return rows_BSG if padding_BS is None else rows_BSG.masked_fill_(padding_BS[..., None], 0)
