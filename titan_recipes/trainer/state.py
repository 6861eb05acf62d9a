"""The state of a training run: what a checkpoint holds, taken from and given back to its owners.

The parts of a model (pipeline stages) have names that no other part has, so their states join into
one flat dict: a checkpoint does not know how the model was split. Of a tied weight that two stages
hold, see `parallel.tied`.
"""

from collections.abc import Sequence
from typing import Any

import torch
from torch import nn
from torch.distributed.checkpoint.state_dict import (
    StateDictOptions,
    get_model_state_dict,
    get_optimizer_state_dict,
    set_optimizer_state_dict,
)

from titan_recipes.trainer.parallel.tied import own_state, stored_name

_FLAT = StateDictOptions(flatten_optimizer_state_dict=True)
_TRAINED = StateDictOptions(ignore_frozen_params=True)


def model_state(parts: Sequence[nn.Module]) -> dict[str, Any]:
    """Name -> tensor or DTensor of what is trained, and of buffers, of all parts.

    The tensors are the model's own. Frozen weights are those of a base model, saved elsewhere.
    """
    return {
        name: value
        for part in parts
        for name, value in get_model_state_dict(part, options=_TRAINED).items()
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
    """Flat state of all parts' optimizers; a fresh one takes a step with zero gradients for it."""
    return {
        stored_name(part, name): value
        for part, optimizer in zip(parts, optimizers, strict=True)
        for name, value in get_optimizer_state_dict(part, optimizer, options=_FLAT).items()
    }


def load_optimizer_state(
    parts: Sequence[nn.Module],
    optimizers: Sequence[torch.optim.Optimizer],
    state: dict[str, Any],
) -> None:
    """Give a loaded flat state to the optimizers; options such as weight decay stay the job's."""
    for part, optimizer in zip(parts, optimizers, strict=True):
        options = [dict(group) for group in optimizer.param_groups]
        set_optimizer_state_dict(part, optimizer, own_state(part, state), options=_FLAT)
        for group, own in zip(optimizer.param_groups, options, strict=True):
            group.update({key: own[key] for key in own if key != "params"})


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
