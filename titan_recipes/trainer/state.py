"""The state of a training run: what a checkpoint holds, taken from and given back to its owners.

The parts of a model (pipeline stages) have names that no other part has, so their states join into
one flat dict: a checkpoint does not know how the model was split. Of a tied weight that two stages
hold, see `parallel.tied`.
"""

from collections.abc import Iterator, Sequence
from typing import Any

import torch
from torch import nn
from torch.distributed.checkpoint.state_dict import StateDictOptions, get_model_state_dict

from titan_recipes.trainer.optim.groups import trained_parameters
from titan_recipes.trainer.parallel.tied import stored_name
from titan_recipes.trainer.quantize import stored

_TRAINED = StateDictOptions(ignore_frozen_params=True)


def model_state(parts: Sequence[nn.Module]) -> dict[str, Any]:
    """Name -> tensor or DTensor of what is trained, and of buffers, of all parts.

    The tensors are the model's own. Frozen weights are those of a base model, saved elsewhere.
    """
    return {
        name: value
        for part in parts
        for name, value in stored(get_model_state_dict(part, options=_TRAINED)).items()
    }


def base_state(parts: Sequence[nn.Module]) -> dict[str, Any]:
    """The same of everything that a base model has: all but what is trained."""
    trained = {name for part in parts for name in _trained_names(part)}
    return {
        name: value
        for part in parts
        for name, value in get_model_state_dict(part).items()
        if name not in trained
    }


def _trained_names(part: nn.Module) -> set[str]:
    buffers = {name for name, _ in part.named_buffers()}
    return get_model_state_dict(part, options=_TRAINED).keys() - buffers


def optimizer_state(
    parts: Sequence[nn.Module], optimizers: Sequence[torch.optim.Optimizer]
) -> dict[str, Any]:
    """state.<parameter>.<entry> -> the optimizers' own tensors, of all parts.

    A fresh optimizer takes a step with zero gradients for it. Options such as weight decay are no
    state: they are the job's.
    """
    state: dict[str, Any] = {}
    for part, optimizer in zip(parts, optimizers, strict=True):
        if not optimizer.state:
            _make_state(optimizer)
        state |= {stored_name(part, name): value for name, value in _entries(part, optimizer)}
    return state


def load_optimizer_state(
    parts: Sequence[nn.Module], optimizers: Sequence[torch.optim.Optimizer], state: dict[str, Any]
) -> None:
    """Give a state of `optimizer_state` that was loaded in place to the optimizers.

    All have it already but the second copy of a tied weight, which is loaded under one name.
    """
    for part, optimizer in zip(parts, optimizers, strict=True):
        for name, value in _entries(part, optimizer):
            loaded = state[stored_name(part, name)]
            if loaded is not value:
                value.copy_(loaded)


def _entries(
    part: nn.Module, optimizer: torch.optim.Optimizer
) -> Iterator[tuple[str, torch.Tensor]]:
    for parameter_name, parameter in trained_parameters(part):
        for entry, value in optimizer.state[parameter].items():
            yield f"state.{parameter_name}.{entry}", value


def _make_state(optimizer: torch.optim.Optimizer) -> None:
    """Have an optimizer make its state: a step that changes no parameter."""
    rates = [group["lr"] for group in optimizer.param_groups]
    for group in optimizer.param_groups:
        group["lr"] = 0.0
        for parameter in group["params"]:
            parameter.grad = torch.zeros_like(parameter)
    optimizer.step()
    optimizer.zero_grad()
    for group, rate in zip(optimizer.param_groups, rates, strict=True):
        group["lr"] = rate


def rng_state(device: torch.device) -> dict[str, torch.Tensor]:
    """The random state of this rank's generators."""
    state = {"cpu": torch.get_rng_state()}
    if device.type == "cuda":
        state["cuda"] = torch.cuda.get_rng_state()
    return state


def load_rng_state(state: dict[str, torch.Tensor], device: torch.device) -> None:
    """Set this rank's generators."""
    torch.set_rng_state(state["cpu"])
    if "cuda" in state and device.type == "cuda":
        torch.cuda.set_rng_state(state["cuda"])
