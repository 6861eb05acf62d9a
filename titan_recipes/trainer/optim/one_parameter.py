"""A step of an optimizer for one of its parameters."""

from typing import Any

import torch
from torch import nn


def step_one(
    optimizer: torch.optim.Optimizer, group: dict[str, Any], parameter: nn.Parameter
) -> None:
    """Update one parameter, with the settings of a group that may be another optimizer's."""
    groups = optimizer.param_groups
    optimizer.param_groups = [{**optimizer.defaults, **group, "params": [parameter]}]
    try:
        optimizer.step()
    finally:
        optimizer.param_groups = groups
