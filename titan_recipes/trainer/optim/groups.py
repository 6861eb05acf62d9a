"""Which parameters are updated by which settings: optimizer.groups, and what is Muon's."""

from collections.abc import Iterator
from typing import Any

from torch import nn
from torch.distributed.algorithms._checkpoint.checkpoint_wrapper import _CHECKPOINT_PREFIX

from titan_recipes.config.optimizer import group_of
from titan_recipes.config.schema import Optimizer
from titan_recipes.trainer.parallel.tied import has_copy


def trained_parameters(part: nn.Module) -> Iterator[tuple[str, nn.Parameter]]:
    """(name, parameter) of what is trained of a part, names as in the whole, unwrapped model."""
    for wrapped_name, parameter in part.named_parameters():
        if parameter.requires_grad:
            yield wrapped_name.replace(_CHECKPOINT_PREFIX, ""), parameter


def parameter_groups(part: nn.Module, config: Optimizer) -> list[dict[str, Any]]:
    """A part's parameters as torch's optimizers take them; a stage may have none of a group.

    With Muon each group says by "is_muon" what its parameters are.
    """
    by_kind: dict[tuple[int, bool], list[nn.Parameter]] = {}
    for name, parameter in trained_parameters(part):
        # Copies of a tied weight must be updated alike to stay equal.
        is_copy = has_copy(part) and name == "output.weight"
        index = group_of("tok_embeddings.weight" if is_copy else name, config)
        kind = index, config.name == "Muon" and is_matrix_of_block(name, parameter)
        by_kind.setdefault(kind, []).append(parameter)
    groups: list[dict[str, Any]] = []
    for (index, is_muon), parameters in sorted(by_kind.items(), key=lambda item: item[0]):
        group: dict[str, Any] = {"params": parameters}
        if config.name == "Muon":
            group["is_muon"] = is_muon
        if index >= 0:
            settings = config.groups[index]
            group["lr_scale"] = settings.lr_scale
            if settings.weight_decay >= 0:
                group["weight_decay"] = settings.weight_decay
        groups.append(group)
    return groups


def is_matrix_of_block(name: str, parameter: nn.Parameter) -> bool:
    """Whether a parameter is a block's matrix, or one for each expert, that turns hidden states.

    A router's gate is none, each row of it scores an expert of its own; nor are biases, also those
    of experts, which are stacked to two dimensions.
    """
    *_, module, leaf = name.split(".")
    if not name.startswith("layers.") or module == "gate":
        return False
    return parameter.ndim == 3 or (parameter.ndim == 2 and leaf == "weight")
