"""Small networks of every form and inputs for them."""

import torch
from hypothesis import strategies as st

from steval.model.config import ModelConfig
from steval.model.network import StateTransition
from support import golden_models

GENES, PERTS, BATCHES = 14, 5, 3


CAUSAL = st.sampled_from(["causal", "causal-rope"])


@st.composite
def configurations(draw, attention=st.sampled_from(golden_models.REGIMES)):
    heads, groups, head_dim = draw(st.sampled_from([(4, 4, 4), (4, 2, 6), (2, 1, 10)]))
    regime = draw(attention)
    llama = {
        "kind": "llama",
        "hidden_size": 16,
        "intermediate_size": 24,
        "num_layers": 2,
        "num_heads": heads,
        "num_key_value_heads": groups,
        "head_dim": head_dim,
    }
    gpt2 = {"kind": "gpt2", "hidden_size": 16, "intermediate_size": 64, "num_layers": 2, "num_heads": 4}
    space = draw(st.sampled_from(["gene", "all", "embedding"]))
    decoder = {"latent_dim": GENES, "gene_dim": 9, "hidden_dims": (8, 8), "residual": draw(st.booleans())}
    return ModelConfig.parse(
        {
            "input_dim": GENES,
            "output_dim": GENES,
            "pert_dim": PERTS,
            "hidden_dim": 16,
            "batch_dim": BATCHES,
            "input_key": "X_state",
            "output_space": space,
            "num_encoder_layers": draw(st.integers(1, 3)),
            "num_decoder_layers": draw(st.integers(1, 3)),
            "activation": draw(st.sampled_from(["gelu", "relu", "leakyrelu", "elu", "selu"])),
            "predict_residual": draw(st.booleans()),
            "use_basal_projection": draw(st.booleans()),
            "backbone": llama if regime == "causal-rope" else draw(st.sampled_from([llama, gpt2])),
            "attention": regime,
            "mask_attn": draw(st.booleans()),
            "batch_encoder": draw(st.booleans()),
            "batch_token": draw(st.booleans()),
            "confidence_token": draw(st.booleans()),
            "gene_decoder": draw(st.sampled_from([None, decoder])),
        }
    )


def network_and_inputs(config: ModelConfig, seed: int, num_sets: int, num_cells: int):
    """A network in float64, so that differences are the network's and not of rounding."""
    generator = torch.Generator().manual_seed(seed)
    network = StateTransition(config).double().eval()
    network.reset(generator)
    control_BSG = torch.rand(num_sets, num_cells, GENES, generator=generator, dtype=torch.float64)
    pert_BSP = torch.rand(num_sets, num_cells, PERTS, generator=generator, dtype=torch.float64)
    batch_BS = torch.randint(BATCHES, (num_sets, num_cells), generator=generator)
    return network, (control_BSG, pert_BSP, batch_BS)
