"""Adam and AdamW whose moments are kept in 8 bits or in bfloat16; the arithmetic is float32.

8 bits are block-wise dynamic quantization (arXiv:2110.02861) by torchao's functions: a code for
each number and a float32 scale for each block of 256 neighbours of a row, 2.03 bytes a parameter
for both moments. torchao's own AdamW8bit, which gives the same bits, lays blocks over whatever
flat shard a rank has, so that its state can't be loaded on other ranks. As a block here never
leaves its row, codes and scales are split like the parameter, and a checkpoint goes on bit for bit
at any layout that does not cut through blocks.
"""

import math
from typing import Any

import torch
from torch import Tensor, nn
from torch.distributed.tensor import DTensor
from torchao.optim.quant_utils import (
    create_dynamic_map,
    dequant_with_qmap,
    quantize_8bit_with_qmap,
    scale_tensor,
)

from titan_recipes.trainer.optim.shards import laid_out_like, local

BLOCKS = (256, 128, 64)
"""Numbers that share a scale: the first that divides a rank's part of a row."""
FEWEST = 4096
"""Numbers of a parameter that is quantized at all, as in bitsandbytes."""

MOMENTS = ("exp_avg", "exp_avg_sq")
MOST_SHAPES = 256
"""Of a model's parameters on a rank; more would be a fault of this module."""


class LowPrecisionAdam(torch.optim.Optimizer):
    """Adam or AdamW over a rank's shards, one parameter after the other.

    On CUDA each parameter's update is compiled, one graph for each shape, and fused to one kernel
    or two; in eager its float32 intermediates would take the memory that the state saves. On CPU it
    runs in eager, unless `compiles`. As torch's fused kernels it looks at `found_inf` on the
    device: the host does not wait.
    """

    def __init__(self, groups: Any, *, is_adamw: bool, eight_bits: bool, **options: Any) -> None:
        """options: lr, betas, eps, weight_decay."""
        super().__init__(groups, {**options, "fused": True})
        self.is_adamw, self.eight_bits, self.compiles = is_adamw, eight_bits, False
        self._maps: dict[torch.device, tuple[Tensor, Tensor]] = {}

    @torch.no_grad()
    def step(self, closure: None = None) -> None:  # pyright: ignore[reportIncompatibleMethodOverride]
        """Update what has a gradient; nothing where `found_inf` is 1."""
        # torch gives up at 8 graphs of a function; here there is one for each shape.
        with torch._dynamo.config.patch(recompile_limit=MOST_SHAPES):
            self._step()

    def _step(self) -> None:
        found_inf: Tensor | None = getattr(self, "found_inf", None)
        for group in self.param_groups:
            beta1, beta2 = group["betas"]
            for parameter in group["params"]:
                if parameter.grad is None:
                    continue
                state = self.state[parameter]
                if not state:
                    state.update(self._new_state(parameter))
                shard, grad = local(parameter), local(parameter.grad)
                if not shard.numel():
                    continue
                device = shard.device
                first, second = (local(state[name]) for name in MOMENTS)
                scales = [state.get(f"{name}_scale") for name in MOMENTS]
                first_scale, second_scale = (s if s is None else local(s) for s in scales)
                update = _update_compiled if self.compiles or shard.is_cuda else _update
                update(
                    shard,
                    grad,
                    state["step"],
                    first,
                    first_scale,
                    second,
                    second_scale,
                    self._maps_on(device),
                    # Filled in by a kernel: nothing is copied from the host.
                    torch.full((), group["lr"], dtype=torch.float32, device=device),
                    torch.zeros((), device=device) if found_inf is None else found_inf,
                    beta1,
                    beta2,
                    group["eps"],
                    group["weight_decay"],
                    self.is_adamw,
                )

    def _new_state(self, parameter: nn.Parameter) -> dict[str, Tensor]:
        shard = local(parameter)
        state = {"step": torch.zeros((), device=shard.device)}
        block = block_size(parameter) if self.eight_bits else 0
        for name in MOMENTS:
            dtype = torch.uint8 if block else shard.dtype if self.eight_bits else torch.bfloat16
            zeros = torch.zeros(shard.shape, dtype=dtype, device=shard.device)
            state[name] = laid_out_like(parameter, zeros, parameter.shape)
            if block:
                scale = shard.new_zeros(_blocks(shard, block), dtype=torch.float32)
                state[f"{name}_scale"] = laid_out_like(parameter, scale, _blocks(parameter, block))
        return state

    def _maps_on(self, device: torch.device) -> tuple[Tensor, Tensor]:
        """What the codes of each moment stand for; only the first has a sign."""
        if device not in self._maps:
            signed, unsigned = (
                torch.tensor(create_dynamic_map(signed), device=device) for signed in (True, False)
            )
            self._maps[device] = signed, unsigned
        return self._maps[device]


def block_size(parameter: Tensor) -> int:
    """Numbers that share a scale; 0 = a parameter that is not quantized. The same on every rank."""
    if parameter.ndim < 2 or parameter.numel() < FEWEST:
        return 0
    parts = 1
    if isinstance(parameter, DTensor):
        sizes = zip(parameter.placements, parameter.device_mesh.shape, strict=True)
        last = parameter.ndim - 1
        parts = math.prod(size for placement, size in sizes if placement.is_shard(last))
    return next((block for block in BLOCKS if parameter.shape[-1] % (parts * block) == 0), 0)


def _blocks(tensor: Tensor, block: int) -> tuple[int, ...]:
    return (*tensor.shape[:-1], tensor.shape[-1] // block)


def _update(
    shard: Tensor,
    grad: Tensor,
    step: Tensor,
    first: Tensor,
    first_scale: Tensor | None,
    second: Tensor,
    second_scale: Tensor | None,
    maps: tuple[Tensor, Tensor],
    lr: Tensor,
    found_inf: Tensor,
    beta1: float,
    beta2: float,
    eps: float,
    weight_decay: float,
    is_adamw: bool,
) -> None:
    """One parameter's step, in place: torchao's order of operations, which gives its bits."""
    is_good = found_inf == 0
    new, grad = shard.float(), grad.float()
    if is_adamw:
        new = new - lr * weight_decay * new
    else:
        grad = grad + weight_decay * new
    step.copy_(step + is_good)
    mean = _read(first, first_scale, maps[0]).lerp(grad, 1 - beta1)
    square = _read(second, second_scale, maps[1]).lerp(grad.square(), 1 - beta2)
    _write(first, first_scale, maps[0], mean, is_good)
    _write(second, second_scale, maps[1], square, is_good)
    root = (square.sqrt() / (1 - beta2**step).sqrt()) + eps
    new = new - lr * (mean / (1 - beta1**step)) / root
    shard.copy_(torch.where(is_good, new, shard))


_update_compiled = torch.compile(_update, fullgraph=True, dynamic=False)


def _read(kept: Tensor, scale: Tensor | None, codes_mean: Tensor) -> Tensor:
    if scale is None:
        return kept.float()
    return dequant_with_qmap(kept, codes_mean, scale.flatten())


def _write(
    kept: Tensor, scale: Tensor | None, codes_mean: Tensor, value: Tensor, is_good: Tensor
) -> None:
    if scale is None:
        kept.copy_(torch.where(is_good, value, kept))
        return
    scaled, new_scale = scale_tensor(value, kept.numel() // scale.numel())
    codes = quantize_8bit_with_qmap(scaled, codes_mean)
    kept.copy_(torch.where(is_good, codes, kept))
    scale.copy_(torch.where(is_good, new_scale.view_as(scale), scale))
