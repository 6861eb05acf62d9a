"""Eight-bit products: linears and experts converted through torchao, on the model as it was built.

What is converted is decided in `config.quantize`. A converted linear keeps its weight's name, type
and numbers; its three products cast their operands first, with a scale for each tensor, row or
block (arXiv:2209.05433; microscaled: arXiv:2310.10537). Under FSDP a weight may know how to be
gathered in float8: its shard is then wrapped in a tensor type of torchao's, which checkpoints must
not see (`stored`).
"""

import dataclasses
from collections.abc import Iterator, Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.distributed.tensor import DTensor
from torch.utils._python_dispatch import is_traceable_wrapper_subclass

from titan_recipes.config.hardware import ANY_GPU
from titan_recipes.config.job import Job
from titan_recipes.config.quantize import (
    FLOAT8,
    MX,
    choose,
    converter,
    gathers_float8,
    grouped_layers,
    is_emulated,
    needs_blackwell,
    needs_float8,
    needs_grouped,
    precomputes_scales,
    recipe,
)
from titan_recipes.errors import ConfigError, Problem
from titan_recipes.trainer.model.moe import GroupedExperts

BLACKWELL_CAPABILITY = (10, 0)
GROUPED_CAPABILITIES = ((9, 0), (10, 0))
"""Of torch's grouped float8 products (torch 2.13)."""


def convert(model: nn.Module, job: Job, device: torch.device) -> None:
    """Convert a whole model on the meta device, in place, if the job asks for it.

    Raises ConfigError where the device can't compute what is asked.
    """
    if not (kind := converter(job)):
        return
    check_device(job, device)
    names = frozenset(linear.name for linear in choose(job).converted)
    if kind == FLOAT8:
        _convert_float8(model, names, job)
    else:
        _convert_mx(model, names, job)
    if experts := grouped_layers(job):
        from titan_recipes.trainer.model.grouped_float8 import emulated_mm, float8_mm

        for name in experts:
            module = model.get_submodule(name)
            assert isinstance(module, GroupedExperts)
            module.grouped_mm = emulated_mm if is_emulated(job) else float8_mm


def check_device(job: Job, device: torch.device) -> None:
    """Raises ConfigError where a rank's own device can't do what the plan's GPU may."""
    # A simulated rank of a GPU plan is on the CPU: what its GPU can do was checked by name.
    if is_emulated(job) or (device.type == "cpu" and job.plan.gpu != ANY_GPU):
        return
    found, name = (0, 0), "this machine computes on the CPU"
    if device.type == "cuda":
        major, minor = torch.cuda.get_device_capability(device)
        found = (major, minor)
        name = f"this is {torch.cuda.get_device_name(device)} (capability {major}.{minor})"
    # AMD's numbers: 9.4 and 9.5 are CDNA 3 and 4.
    least = (9, 4) if torch.version.hip else (8, 9)
    if converter(job) == FLOAT8 and found < least:
        raise ConfigError([Problem("job.toml", "model.converters", *needs_float8(name))])
    is_grouped = converter(job) == FLOAT8 and grouped_layers(job)
    if is_grouped and (torch.version.hip or found not in GROUPED_CAPABILITIES):
        key = "quantize.grouped_mm.float8.fqns"
        raise ConfigError([Problem("job.toml", key, *needs_grouped(name))])
    if converter(job) == MX and (torch.version.hip or found < BLACKWELL_CAPABILITY):
        raise ConfigError([Problem("job.toml", "model.converters", *needs_blackwell(name))])


def _convert_float8(model: nn.Module, names: frozenset[str], job: Job) -> None:
    # Both import torch's compiler, which other jobs can do without.
    import torch._inductor.config as inductor
    from torchao.float8 import Float8LinearConfig, convert_to_float8_training

    if recipe(job) == "rowwise" and job.compile.enable:
        # Fused casts of a row would round otherwise than eager ones: pytorch issue 150859.
        inductor.emulate_precision_casts = True
    config = dataclasses.replace(
        Float8LinearConfig.from_recipe_name(recipe(job)),
        enable_fsdp_float8_all_gather=gathers_float8(job),
        emulate=is_emulated(job),
    )
    convert_to_float8_training(model, module_filter_fn=lambda _, name: name in names, config=config)


def _convert_mx(model: nn.Module, names: frozenset[str], job: Job) -> None:
    from titan_recipes.trainer.model.mx_linear import MXLinear

    for name in names:
        parent, _, leaf = name.rpartition(".")
        linear = model.get_submodule(name)
        assert isinstance(linear, nn.Linear)
        setattr(model.get_submodule(parent), leaf, MXLinear(linear, job.quantize.linear.mx))


# --- weights gathered in float8 -------------------------------------------------------------------


def precompute_scales(parts: Sequence[nn.Module], job: Job) -> None:
    """Compute the scales of all weights that FSDP gathers in float8: one all-reduce for a part.

    Call it whenever weights have changed: after an optimizer step, and after a checkpoint is
    loaded. Scales that were never computed are taken at each gather, with an all-reduce each.
    """
    if not precomputes_scales(job):
        return
    from torchao.float8 import precompute_float8_dynamic_scale_for_fsdp

    for part in parts:
        precompute_float8_dynamic_scale_for_fsdp(part)


def stored(state: dict[str, Any]) -> dict[str, Any]:
    """A state of tensors as checkpoints know them: the same memory without torchao's type."""
    return dict(_stored(state))


def own_memory(tensor: Tensor) -> Tensor:
    """A rank's own numbers behind a tensor, shared: of a DTensor, or of a type of torchao's."""
    while is_traceable_wrapper_subclass(tensor):
        # Asking the weight's type what it is made of would wait for its scale.
        inner = "_tensor" if _gathers_itself(tensor) else tensor.__tensor_flatten__()[0][0]
        tensor = getattr(tensor, inner)
    return tensor


def _gathers_itself(tensor: Tensor) -> bool:
    """Whether a shard is of torchao's type, by the method that FSDP looks for."""
    return hasattr(tensor, "fsdp_pre_all_gather")


def _stored(state: dict[str, Any]) -> Iterator[tuple[str, Any]]:
    for name, value in state.items():
        if not isinstance(value, DTensor) or not _gathers_itself(value.to_local()):
            yield name, value
            continue
        yield (
            name,
            DTensor.from_local(
                own_memory(value),
                value.device_mesh,
                value.placements,
                run_check=False,
                shape=value.shape,
                stride=value.stride(),
            ),
        )
