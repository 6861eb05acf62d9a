"""Compute in bfloat16 with float32 parameters, where no FSDP does the casting.

Every module reads its parameters cast, so that hidden states and gradients of a block have the type
that they have under FSDP's mixed precision: one process computes what many compute. (Autocast casts
what enters a matrix product only: between blocks hidden states stay float32, twice the memory and
traffic, and each product casts its input anew.)
"""

import functools

import torch
from torch import Tensor, nn

DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16, "float16": torch.float16}


def compute_in(model: nn.Module, dtype: torch.dtype) -> None:
    """Have a model's modules read their parameters in a type, in place; its parameters stay."""
    for module in model.modules():
        names = tuple(
            name
            for name, parameter in module.named_parameters(recurse=False)
            if parameter.is_floating_point() and parameter.dtype != dtype
        )
        if names:
            module.__class__ = _reading(type(module), names, dtype)


@functools.cache
def _reading(base: type, names: tuple[str, ...], dtype: torch.dtype) -> type:
    """`base` with parameters that read as cast; one class for all layers, which compile shares."""

    def cast(name: str) -> property:
        def read(module: nn.Module) -> Tensor:
            parameter = module._parameters[name]
            assert parameter is not None
            return parameter.to(dtype)

        return property(read)

    return type(base.__name__, (base,), {name: cast(name) for name in names})
