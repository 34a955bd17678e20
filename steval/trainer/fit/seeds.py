"""Random numbers as functions of a seed and a place, and the generator that dropout draws from."""

import torch


def default_generator(device: torch.device) -> torch.Generator:
    """The generator of operations that take none, dropout among them, on `device`."""
    if device.type == "cuda":
        index = torch.cuda.current_device() if device.index is None else device.index
        return torch.cuda.default_generators[index]
    return torch.default_generator


def mixed_seed(*words: int) -> int:
    """One 63-bit seed from several numbers, by the steps of splitmix64."""
    state = 0
    for word in words:
        state = (state + word + 0x9E3779B97F4A7C15) & 0xFFFFFFFFFFFFFFFF
        state = ((state ^ (state >> 30)) * 0xBF58476D1CE4E5B9) & 0xFFFFFFFFFFFFFFFF
        state = ((state ^ (state >> 27)) * 0x94D049BB133111EB) & 0xFFFFFFFFFFFFFFFF
        state ^= state >> 31
    return state & 0x7FFFFFFFFFFFFFFF
