"""Fully sharded data parallelism (arXiv:2304.11277, PyTorch's `fully_shard`): each process holds a piece of every tensor.

Each backbone block is a unit, the rest is one: a unit is gathered when it computes and let go after. All processes gather together,
so that all of them call what is here.
"""

from collections.abc import Iterable, Mapping
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.distributed.device_mesh import DeviceMesh
from torch.distributed.fsdp import fully_shard
from torch.distributed.tensor import DTensor, distribute_tensor

from steval.model.llama import Llama
from steval.model.network import StateTransition


def shard(network: StateTransition, mesh: DeviceMesh) -> None:
    """Keep of every tensor of `network` this process's piece, on the mesh's device; all start from the first process's values."""
    backbone = network.transformer_backbone
    for block in backbone.layers if isinstance(backbone, Llama) else backbone.h:
        _make_equal(block, mesh)
        fully_shard(block, mesh=mesh)
    _make_equal(network, mesh)
    fully_shard(network, mesh=mesh)


def whole(value: Any) -> Any:
    """`value` with its sharded tensors gathered, on the CPU of the first process; in mappings, lists and tuples at any depth.

    Other processes take part and get an empty tensor instead of each. What is not sharded stays as it is.
    """
    if isinstance(value, DTensor):
        gathered = value.full_tensor().detach()
        return gathered.to("cpu") if dist.get_rank() == 0 else gathered.new_empty(0)
    if isinstance(value, Mapping):
        return {key: whole(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return type(value)(whole(item) for item in value)
    return value


def local(tensors: Iterable[Tensor]) -> list[Tensor]:
    """This process's pieces; tensors that are not sharded are their own."""
    return [tensor.to_local() if isinstance(tensor, DTensor) else tensor for tensor in tensors]


def joint_norms(norms: Tensor, tensors: Iterable[Tensor]) -> Tensor:
    """Norms of whole tensors from those of the pieces."""
    if not any(isinstance(tensor, DTensor) for tensor in tensors):
        return norms
    squares = norms.square()
    dist.all_reduce(squares)
    return squares.sqrt()


def sharded_state(state: Mapping[str, Any], parameters: Iterable[Tensor]) -> dict[str, Any]:
    """An optimiser's `state_dict` of whole tensors with this process's pieces, where its parameters are sharded."""
    pieces: dict[int, Any] = {}
    for number, parameter in enumerate(parameters):
        values = state["state"].get(number, {})
        pieces[number] = {name: _like(value, parameter) for name, value in values.items()}
    return {**state, "state": {number: values for number, values in pieces.items() if values}}


def _like(value: Any, parameter: Tensor) -> Any:
    if not isinstance(value, Tensor) or not isinstance(parameter, DTensor) or value.shape != parameter.shape:
        return value
    on_device = value.to(parameter.device)
    return distribute_tensor(on_device, parameter.device_mesh, parameter.placements, src_data_rank=None)


def _make_equal(module: nn.Module, mesh: DeviceMesh) -> None:
    device = (
        torch.device(mesh.device_type, torch.cuda.current_device())
        if mesh.device_type == "cuda"
        else torch.device("cpu")
    )
    for tensor in (*module.parameters(), *module.buffers()):
        if isinstance(tensor, DTensor):
            continue
        tensor.data = tensor.data.to(device)
        dist.broadcast(tensor.data, 0)
