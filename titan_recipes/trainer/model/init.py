"""How weights begin: the same numbers at every parallel layout.

Every parameter has a random generator of its own, seeded by its name, and each rank draws the full
tensor and keeps its shard. One seed for all ranks would give every shard of a CPU DTensor the same
numbers; one per rank would make the model depend on the layout.
"""

import zlib

import torch
from torch import Tensor, nn
from torch.distributed.algorithms._checkpoint.checkpoint_wrapper import _CHECKPOINT_PREFIX
from torch.distributed.tensor import DTensor, distribute_tensor

from titan_recipes.config.schema import Model
from titan_recipes.trainer.model.decoder import Decoder
from titan_recipes.trainer.model.lora import A, B, init_adapter

RESIDUAL = ("wo", "w2")
"""Matrices that write to the residual stream."""


@torch.no_grad()
def init_weights(model: Decoder, seed: int, device: torch.device | None = None) -> None:
    """Fill every parameter and buffer of a materialized model, in place.

    device: where the numbers are drawn, for parameters that CPU offload keeps elsewhere: CPU and
    GPU draw different ones. None = where each parameter is.

    Normal with std 1 for the embedding; truncated normal with std 0.02 for matrices, those that
    write to the residual stream scaled by 1 / sqrt(2 (layer + 1)), and dim ** -0.5 for the output,
    also where it is the embedding: torchtitan v0.2.2's Llama 3 numbers, so that runs compare.
    Biases and sinks begin at 0, norms at a factor of 1.
    """
    for wrapped_name, parameter in model.named_parameters():
        # Activation checkpointing wraps blocks; the name that seeds a weight must not change.
        name = wrapped_name.replace(_CHECKPOINT_PREFIX, "")
        # A pipeline's last stage has a copy of a tied weight, which begins as the first stage's.
        is_copy = model.sizes.tie_embeddings and name == "output.weight"
        own_seed = name_seed(seed, "tok_embeddings.weight" if is_copy else name)
        target = parameter.to_local() if isinstance(parameter, DTensor) else parameter
        generator = torch.Generator(device or target.device).manual_seed(own_seed)
        full = torch.empty(parameter.shape, dtype=parameter.dtype, device=generator.device)
        _fill(full, name, model.sizes, generator)
        if isinstance(parameter, DTensor):
            mesh, placements = parameter.device_mesh, parameter.placements
            full = distribute_tensor(full, mesh, placements, src_data_rank=None).to_local()
        target.copy_(full)
    model.init_buffers()


def name_seed(seed: int, name: str) -> int:
    """A generator seed below 2**63 from the run's seed and a parameter's name."""
    return (seed * 1_000_003 + zlib.crc32(name.encode())) % 2**63


def _fill(full: Tensor, name: str, sizes: Model, generator: torch.Generator) -> None:
    module, leaf = name.rsplit(".", 2)[-2:]
    matrix = leaf if module == "experts" else module
    if leaf in (A, B):
        init_adapter(full, leaf, generator)
    elif module.endswith("norm"):
        full.fill_(0.0 if sizes.norm_unit_offset else 1.0)
    elif leaf in ("bias", "b1", "b2", "b3", "sinks"):
        full.zero_()
    elif module == "tok_embeddings" and not sizes.tie_embeddings:
        nn.init.normal_(full, generator=generator)
    else:
        std = 0.02
        if module in ("output", "tok_embeddings"):
            std = sizes.dim**-0.5
        elif matrix in RESIDUAL:
            layer = int(name.split(".")[1])
            std = 0.02 / (2 * (layer + 1)) ** 0.5
        # Cut off at 3 std: beyond that a draw is an outlier to every optimizer step that follows.
        nn.init.trunc_normal_(full, std=std, a=-3 * std, b=3 * std, generator=generator)
