"""Adam and AdamW whose moments live in host memory, and whose update runs there.

Parameters and gradients stay on the device; the moments, two numbers for each parameter, do not
take its memory. Each step a rank's gradients travel to pinned host memory, the fused CPU kernel
updates a host copy of the shard, and the new values travel back, one parameter behind the other:
while one is updated the next are on their way. The host copy has the parameter's type, so that the
numbers are those of an update on the device. The host works while the device waits: with few tokens
in a step this costs more than it saves.

On a CPU device the same code runs, with copies that do not overlap.
"""

from contextlib import nullcontext
from typing import Any

import torch
from torch import Tensor, nn

from titan_recipes.trainer.optim.shards import laid_out_like, local, step_one


class OffloadedAdam(torch.optim.Optimizer):
    """Adam or AdamW over host copies of a rank's shards.

    The state of a parameter is its host state, laid out like the parameter. Gradients are read
    until `step` returns.
    """

    def __init__(self, groups: Any, *, is_adamw: bool, **options: Any) -> None:
        """options: lr, betas, eps, weight_decay."""
        super().__init__(groups, options)
        self._copies = {
            parameter: nn.Parameter(_host_copy(local(parameter)))
            for group in self.param_groups
            for parameter in group["params"]
        }
        for parameter, copy in self._copies.items():
            copy.requires_grad_(parameter.requires_grad)
        self._versions: dict[nn.Parameter, int] = {}
        kind = torch.optim.AdamW if is_adamw else torch.optim.Adam
        self._host = kind(list(self._copies.values()), fused=True, **options)
        self._streams: dict[torch.device, tuple[torch.Stream, torch.Stream]] = {}

    @torch.no_grad()
    def step(self, closure: None = None) -> None:  # pyright: ignore[reportIncompatibleMethodOverride]
        """Update what has a gradient."""
        arriving = [
            (group, parameter, self._fetch(parameter))
            for group in self.param_groups
            for parameter in group["params"]
            if parameter.grad is not None
        ]
        for group, parameter, arrived in arriving:
            if arrived is not None:
                arrived.synchronize()
            copy = self._copies[parameter]
            if parameter not in self.state:
                self._host.state.pop(copy, None)
            step_one(self._host, group, copy)
            if parameter not in self.state:
                self.state[parameter] = self._shown(parameter, self._host.state[copy])
            self._send_back(parameter)
        for device, (_, upward) in self._streams.items():
            torch.accelerator.current_stream(device).wait_stream(upward)

    def _fetch(self, parameter: nn.Parameter) -> torch.Event | None:
        """Start copying a gradient to the host, and the shard where it was changed elsewhere."""
        assert parameter.grad is not None
        shard, grad, copy = local(parameter), local(parameter.grad), self._copies[parameter]
        if copy.grad is None:
            copy.grad = torch.empty_like(copy, pin_memory=shard.device.type != "cpu")
        is_current = self._versions.get(parameter) == shard._version
        if shard.device.type == "cpu":
            copy.grad.copy_(grad)
            if not is_current:
                copy.copy_(shard)
            return None
        downward, _ = self._streams_of(shard.device)
        downward.wait_stream(torch.accelerator.current_stream(shard.device))
        with downward:
            copy.grad.copy_(grad, non_blocking=True)
            if not is_current:
                copy.copy_(shard, non_blocking=True)
            return downward.record_event()

    def _send_back(self, parameter: nn.Parameter) -> None:
        shard, copy = local(parameter), self._copies[parameter]
        on_device = shard.device.type != "cpu"
        with self._streams_of(shard.device)[1] if on_device else nullcontext():
            shard.copy_(copy, non_blocking=on_device)
        # A checkpoint that is loaded into the shard moves its version on.
        self._versions[parameter] = shard._version

    def _streams_of(self, device: torch.device) -> tuple[torch.Stream, torch.Stream]:
        """To the host, to the device."""
        if device not in self._streams:
            self._streams[device] = torch.Stream(device), torch.Stream(device)
        return self._streams[device]

    def _shown(self, parameter: nn.Parameter, state: dict[str, Tensor]) -> dict[str, Tensor]:
        """The host's state as that of the parameter; both share memory."""
        return {
            name: value if name == "step" else laid_out_like(parameter, value, parameter.shape)
            for name, value in state.items()
        }


def _host_copy(shard: Tensor) -> Tensor:
    copy = torch.empty(shard.shape, dtype=shard.dtype, pin_memory=shard.device.type != "cpu")
    return copy.copy_(shard.detach())
