"""The optimizer, its learning-rate schedule, and clipping by the global gradient norm."""

import math
from collections.abc import Iterable
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor, nn

from titan_recipes.config.job import Job
from titan_recipes.config.schema import Optimizer
from titan_recipes.trainer.optim.groups import parameter_groups
from titan_recipes.trainer.optim.muon import Muon
from titan_recipes.trainer.optim.norm import SquaredNorm
from titan_recipes.trainer.optim.offload import OffloadedAdam
from titan_recipes.trainer.optim.shards import local


def build_optimizer(part: nn.Module, config: Optimizer) -> torch.optim.Optimizer:
    """What [optimizer] asks for, over what is trained of a part; set the rate each step.

    Adam: arXiv:1412.6980, AdamW: arXiv:1711.05101; for others see `trainer.optim`.
    """
    groups = parameter_groups(part, config)
    options: dict[str, Any] = {
        "lr": config.lr,
        "betas": (config.beta1, config.beta2),
        "eps": config.eps,
        "weight_decay": config.weight_decay,
    }
    is_adamw = config.name == "AdamW"
    if config.enable_cpu_offload:
        return OffloadedAdam(groups, is_adamw=is_adamw, **options)
    if config.state_dtype != "parameter":
        # Imports torchao, which other jobs can do without.
        from titan_recipes.trainer.optim.low_precision import LowPrecisionAdam

        eight_bits = config.state_dtype == "8bit"
        return LowPrecisionAdam(groups, is_adamw=is_adamw, eight_bits=eight_bits, **options)
    options["fused"] = config.implementation == "fused"
    options["foreach"] = config.implementation == "foreach"
    if config.name == "Muon":
        return Muon(groups, momentum=config.muon_momentum, **options)
    return (torch.optim.AdamW if is_adamw else torch.optim.Adam)(groups, **options)


def lr_factor(step: int, job: Job) -> float:
    """The share of the peak rate at optimizer step `step`, counted from 1.

    Warmup reaches the peak with step `warmup_steps`; after the stable stretch the last
    `decay_steps` steps fall towards `min_lr_factor`, which the step after the last would reach: at
    a rate of 0 the last would teach nothing (warmup-stable-decay: arXiv:2404.06395). Past the
    schedule the rate stays where it ended: at the floor, or at the peak if nothing decays.
    """
    derived, schedule = job.derived, job.lr_scheduler
    if step <= derived.warmup_steps:
        return step / derived.warmup_steps
    stable_end = derived.schedule_steps - derived.decay_steps
    if step <= stable_end or derived.decay_steps == 0:
        return 1.0
    progress = min((step - stable_end) / (derived.decay_steps + 1), 1.0)
    shapes = {
        "linear": 1 - progress,
        "sqrt": 1 - math.sqrt(progress),
        "cosine": 0.5 * (1 + math.cos(math.pi * progress)),
    }
    floor = schedule.min_lr_factor
    return floor + (1 - floor) * shapes[schedule.decay_type]


def step_if_finite(optimizers: Iterable[torch.optim.Optimizer], finite: Tensor) -> None:
    """Update every parameter, or nothing at all where `finite` on the device is false.

    Fused optimizers look at it themselves, as under a gradient scaler: the host does not wait.
    """
    for optimizer in optimizers:
        if optimizer.param_groups[0].get("fused"):
            # Where the parameters are: torch's own copy to the host would not be waited for.
            device = optimizer.param_groups[0]["params"][0].device
            optimizer.found_inf = finite.logical_not().float().to(device)  # pyright: ignore
            optimizer.step()
        elif finite.item():
            optimizer.step()


def set_lr(optimizers: Iterable[torch.optim.Optimizer], lr: float) -> None:
    """Set every group's learning rate, scaled as its optimizer.groups says."""
    for optimizer in optimizers:
        for group in optimizer.param_groups:
            group["lr"] = lr * group.get("lr_scale", 1.0)


@torch.no_grad()
def global_grad_norm(
    parameters: Iterable[nn.Parameter],
    device: torch.device,
    pp_group: dist.ProcessGroup | None = None,
) -> tuple[Tensor, Tensor]:
    """The norms of `SquaredNorm.root` over these gradients; give a tied weight of two stages once.

    Nothing here waits for the device.
    """
    squares = SquaredNorm()
    for parameter in parameters:
        if parameter.grad is not None:
            squares.add(parameter.grad)
    return squares.root(device, pp_group)


@torch.no_grad()
def clip_grads(parameters: Iterable[nn.Parameter], norm: Tensor, max_norm: float) -> None:
    """Scale all gradients so that their global norm, given as `norm`, is at most max_norm."""
    grads = [local(p.grad) for p in parameters if p.grad is not None]
    factor = (max_norm / (norm + 1e-6)).clamp(max=1.0)
    if norm.device.type == "cpu" and factor == 1:
        return  # On a GPU the host would wait to know.
    if grads:
        # With CPU offload the gradients are in host memory.
        torch._foreach_mul_(grads, factor.to(grads[0].device))
