"""The optimizer, its learning-rate schedule, and clipping by the global gradient norm."""

import math
from collections import defaultdict
from collections.abc import Iterable

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.distributed.tensor import DTensor

from titan_recipes.config.job import Job
from titan_recipes.config.schema import Optimizer


def build_optimizer(part: nn.Module, config: Optimizer) -> torch.optim.Optimizer:
    """AdamW (arXiv:1711.05101) or Adam over what is trained of a part; set the rate each step."""
    kinds = {"AdamW": torch.optim.AdamW, "Adam": torch.optim.Adam}
    return kinds[config.name](
        [parameter for parameter in part.parameters() if parameter.requires_grad],
        lr=config.lr,
        betas=(config.beta1, config.beta2),
        eps=config.eps,
        weight_decay=config.weight_decay,
        fused=config.implementation == "fused",
        foreach=config.implementation == "foreach",
    )


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

    The fused kernels look at it themselves, as under a gradient scaler: the host does not wait.
    """
    for optimizer in optimizers:
        if optimizer.param_groups[0].get("fused"):
            optimizer.found_inf = finite.logical_not().float()  # pyright: ignore
            optimizer.step()
        elif finite.item():
            optimizer.step()


def set_lr(optimizers: Iterable[torch.optim.Optimizer], lr: float) -> None:
    """Set every group's learning rate."""
    for optimizer in optimizers:
        for group in optimizer.param_groups:
            group["lr"] = lr


@torch.no_grad()
def global_grad_norm(
    parameters: Iterable[nn.Parameter],
    device: torch.device,
    pp_group: dist.ProcessGroup | None = None,
) -> tuple[Tensor, Tensor]:
    """The 2-norm over every gradient of every rank, and that over this rank's own shards.

    Both are float32 scalars on `device`; nothing here waits for it. A rank's own norm tells where a
    fault is.

    Squares are summed in float64 on CPU: its float32 `vector_norm` is off by up to 2e-3 on large
    tensors, so that the norm would depend on how they are sharded. Sharded gradients are
    all-reduced over the mesh axes that shard them, replicated ones counted once; pipeline stages
    hold different parameters, so pp_group adds theirs: give a tied weight of two stages once.
    """
    by_axes: dict[tuple[dist.ProcessGroup, ...], list[Tensor]] = defaultdict(list)
    for parameter in parameters:
        grad = parameter.grad
        if grad is None:
            continue
        groups: tuple[dist.ProcessGroup, ...] = ()
        if isinstance(grad, DTensor):
            mesh = grad.device_mesh
            groups = tuple(
                mesh.get_group(axis)
                for axis, placement in enumerate(grad.placements)
                if not placement.is_replicate()
            )
            grad = grad.to_local()
        by_axes[groups].append(_squared_norm(grad))
    total = torch.zeros((), dtype=torch.float64, device=device)
    own = total.clone()
    for groups, squares in by_axes.items():
        part = torch.stack(squares).sum().to(device)
        own += part
        for group in groups:
            dist.all_reduce(part, group=group)
        total += part
    if pp_group is not None:
        dist.all_reduce(total, group=pp_group)
    return total.sqrt().float(), own.sqrt().float()


def _shards(parameters: Iterable[nn.Parameter]) -> list[Tensor]:
    """This rank's shards of the gradients there are."""
    grads = (p.grad for p in parameters if p.grad is not None)
    return [grad.to_local() if isinstance(grad, DTensor) else grad for grad in grads]


def _squared_norm(grad: Tensor) -> Tensor:
    dtype = torch.float64 if grad.device.type == "cpu" else torch.float32
    return torch.linalg.vector_norm(grad, dtype=dtype).square()


@torch.no_grad()
def clip_grads(parameters: Iterable[nn.Parameter], norm: Tensor, max_norm: float) -> None:
    """Scale all gradients so that their global norm, given as `norm`, is at most max_norm."""
    grads = _shards(parameters)
    factor = (max_norm / (norm + 1e-6)).clamp(max=1.0)
    # With CPU offload the gradients are in host memory.
    torch._foreach_mul_(grads, factor.to(grads[0].device))
