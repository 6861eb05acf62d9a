"""Activations that wait for backward in host memory.

What a block keeps travels to pinned memory on a stream of its own while the next blocks compute,
and back while the blocks after it have their backward: each tensor that backward asks for starts
the journey of the one kept before it. Parameters stay, and what is too small to be worth it. Under
checkpointing a block keeps its input only, so that both together need the least memory; without, in
one process that computes in bfloat16, its weights' casts travel too.
"""

import functools
import weakref
from typing import Any

import torch
from torch import Tensor, nn
from torch.autograd.graph import saved_tensors_hooks
from torch.distributed.algorithms._checkpoint.checkpoint_wrapper import ActivationWrapper
from torch.utils._pytree import tree_leaves

from titan_recipes.trainer.model.decoder import Decoder
from titan_recipes.trainer.quantize import own_memory

LEAST_BYTES = 2**20
"""Smaller tensors stay: they cost more time than memory."""


class Kept:
    """One tensor that backward will ask for, in host memory. Autograd owns it.

    users: how many operations kept it; the last to ask for it gives its memory on the device back.
    """

    def __init__(self, tensor: Tensor, before: "weakref.ref[Kept] | None") -> None:
        self.users = 0
        self._before, self._device = before, tensor.device
        self._back: Tensor | None = None
        self._host = torch.empty_like(tensor, device="cpu", pin_memory=tensor.is_cuda)
        if not tensor.is_cuda:
            self._host.copy_(tensor)
            return
        stream = side_stream(tensor.device)
        stream.wait_stream(torch.cuda.current_stream())
        with torch.cuda.stream(stream):
            self._host.copy_(tensor, non_blocking=True)
        # Its memory is not used again before the copy is done.
        tensor.record_stream(stream)

    def start(self) -> Tensor:
        """Begin the way back, if it has not begun."""
        if self._back is None:
            if self._device.type == "cuda":
                with torch.cuda.stream(side_stream(self._device)):
                    self._back = self._host.to(self._device, non_blocking=True)
            else:
                self._back = self._host.clone()
        return self._back

    def take(self) -> Tensor:
        """The tensor, for what comes next on the current stream; starts the one kept before."""
        tensor = self.start()
        self.users -= 1
        if self.users <= 0:
            self._back = None
        if tensor.is_cuda:
            torch.cuda.current_stream().wait_stream(side_stream(self._device))
            tensor.record_stream(torch.cuda.current_stream())
        if self._before is not None and (before := self._before()) is not None:
            before.start()
        return tensor


@functools.cache
def side_stream(device: torch.device) -> torch.cuda.Stream:
    """What the copies of a device run on."""
    return torch.cuda.Stream(device)


class OffloadedBlock(ActivationWrapper):
    """A block whose saved tensors wait in host memory. Names of parameters stay the block's."""

    def __init__(self, block: nn.Module, last: "list[weakref.ref[Kept] | None]") -> None:
        """last: shared by all blocks, what was kept last."""
        super().__init__(block)
        self._last = last

    def forward(self, *args: Any, **kwargs: Any) -> Any:
        """The block's own forward."""
        # What is there anyway: parameters, and what all blocks share, as rotary tables and masks.
        shared = [value for value in tree_leaves((args[1:], kwargs)) if isinstance(value, Tensor)]
        staying = {_storage(tensor) for tensor in (*self.parameters(), *shared)}
        # The tensors too: while one is alive no other has its memory.
        sent: dict[tuple[Any, ...], tuple[Kept, Tensor]] = {}

        def pack(tensor: Tensor) -> Any:
            size = tensor.numel() * tensor.element_size()
            if size < LEAST_BYTES or _storage(tensor) in staying:
                return tensor
            view = (tensor.storage_offset(), tensor.shape, tensor.stride(), tensor.dtype)
            key = (_storage(tensor), *view, tensor._version)
            if key not in sent:
                sent[key] = Kept(tensor, self._last[0]), tensor
                self._last[0] = weakref.ref(sent[key][0])
            kept, _ = sent[key]
            kept.users += 1
            return kept

        with saved_tensors_hooks(pack, _unpack):
            return self._checkpoint_wrapped_module(*args, **kwargs)


def _unpack(packed: Any) -> Tensor:
    return packed.take() if isinstance(packed, Kept) else packed


def _storage(tensor: Tensor) -> int:
    return own_memory(tensor).untyped_storage().data_ptr()


def offload_activations(model: Decoder) -> None:
    """Wrap a model's blocks in place, after they were checkpointed and compiled."""
    last: list[weakref.ref[Kept] | None] = [None]
    for name, block in model.layers.items():
        model.layers[name] = OffloadedBlock(block, last)
