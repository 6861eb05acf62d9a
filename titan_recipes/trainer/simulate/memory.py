"""Memory of one rank: every storage from its first tensor to its end, and what it is for.

The tracker keeps a journal of storages that come, go and change their size; the peak and what it
is made of are found by playing the journal back, since only later is it known that a buffer was to
become a gradient. Sizes are rounded up as CUDA's allocator rounds them.
"""

import contextlib
import functools
import weakref
from collections import Counter
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.distributed.tensor import DTensor
from torch.distributed.tensor._sharding_prop import ShardingPropagator
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from titan_recipes.trainer.quantize import own_memory
from titan_recipes.trainer.simulate.fake_world import patched

PARAMETERS = "parameters"
GRADIENTS = "gradients"
OPTIMIZER = "optimizer state"
UNSUMMED = "gradients before their sum"
ACTIVATIONS = "activations"
LOGITS = "logits and loss"
COMMUNICATION = "gathered parameters, communication"
TEMPORARY = "temporary"
CATEGORIES = (
    PARAMETERS,
    GRADIENTS,
    OPTIMIZER,
    UNSUMMED,
    ACTIVATIONS,
    LOGITS,
    COMMUNICATION,
    TEMPORARY,
)
"""In the order of a report. before their sum: of whole matrices, which a pipeline keeps until its
last microbatch; temporary: most of all gradients of activations."""

STATE = (PARAMETERS, GRADIENTS, OPTIMIZER)
"""What CPU offload keeps in host memory."""

BLOCK_BYTES = 512

_FILLED = frozenset({"c10d::_allgather_base_", "c10d::_reduce_scatter_base_", "c10d::recv_"})
"""Collectives whose first argument is a buffer they fill."""


@functools.cache
def operator_name(func: Any) -> str:
    """`namespace::name` of an operator, whichever its overload."""
    return func.name().partition(".")[0]


@dataclass(slots=True)
class Storage:
    """One piece of memory. size: its bytes now; category: what it is for, as far as is known."""

    size: int
    category: str


@dataclass(frozen=True, slots=True)
class Peak:
    """The most memory alive at once, in bytes, and its parts by category."""

    size: int
    parts: dict[str, int]


class MemoryTracker(TorchDispatchMode):
    """Follows every tensor made under it."""

    def __init__(self) -> None:
        super().__init__()
        self._live: dict[int, tuple[weakref.ref[Any], Storage]] = {}
        self._journal: list[tuple[Storage, int]] = []
        self._section = TEMPORARY
        self._is_paused = False
        self._patches = contextlib.ExitStack()

    # --- what is followed ---------------------------------------------------------------------

    def __enter__(self) -> "MemoryTracker":
        # FSDP frees and refills the gathered parameters by resizing their storage.
        self._patches.enter_context(patched(torch.UntypedStorage, "resize_", self._resizing))
        # DTensor finds out shapes by tensors of the whole size, which no rank ever holds.
        name = "_propagate_tensor_meta_non_cached"
        self._patches.enter_context(patched(ShardingPropagator, name, self._pausing))
        super().__enter__()
        return self

    def __exit__(self, *exc: Any) -> None:
        super().__exit__(*exc)
        self._patches.close()

    def __torch_dispatch__(
        self, func: Any, types: Any, args: Any = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        if any(issubclass(kind, DTensor) for kind in types):
            # DTensor comes back with the tensors of this rank.
            return NotImplemented
        out = func(*args, **(kwargs or {}))
        if self._is_paused:
            return out
        for tensor in tree_leaves(out):
            if isinstance(tensor, Tensor):
                self._follow(tensor)
        name = operator_name(func)
        if name in _FILLED:
            self._label(tree_leaves(args[0]), COMMUNICATION)
        elif name.startswith("fsdp::"):
            self._label(tree_leaves((out, (kwargs or {}).get("out"))), COMMUNICATION)
            if name == "fsdp::chunk_cat":
                self._label(args[0], UNSUMMED)
        return out

    def _follow(self, tensor: Tensor) -> Storage | None:
        if tensor.device.type == "meta":
            return None
        storage = tensor.untyped_storage()
        key = storage._cdata
        if key in self._live:
            return self._live[key][1]
        record = Storage(0, self._category())
        self._live[key] = (weakref.ref(storage, lambda _: self._end(key)), record)
        self._resize(record, storage.nbytes())
        return record

    def _end(self, key: int) -> None:
        _, record = self._live.pop(key)
        self._resize(record, 0)

    def _resize(self, record: Storage, num_bytes: int) -> None:
        size = -(-num_bytes // BLOCK_BYTES) * BLOCK_BYTES
        if size != record.size:
            self._journal.append((record, size - record.size))
            record.size = size

    def _resizing(self, resize: Any) -> Any:
        def run(storage: Any, num_bytes: int) -> Any:
            done = resize(storage, num_bytes)
            if (found := self._live.get(storage._cdata)) is not None:
                self._resize(found[1], num_bytes)
            return done

        return run

    def _pausing(self, method: Any) -> Any:
        def run(*args: Any, **kwargs: Any) -> Any:
            before, self._is_paused = self._is_paused, True
            try:
                return method(*args, **kwargs)
            finally:
                self._is_paused = before

        return run

    # --- what it is for -----------------------------------------------------------------------

    def _category(self) -> str:
        if self._section == LOGITS:
            return LOGITS
        if torch._C._current_graph_task_id() != -1:
            # In a backward, autograd is on only while activations are computed again.
            return ACTIVATIONS if torch.is_grad_enabled() else TEMPORARY
        return self._section

    def _label(self, tensors: Iterable[Any], category: str) -> None:
        for tensor in tensors:
            record = self._follow(own_memory(tensor)) if isinstance(tensor, Tensor) else None
            # The trainer's state stays what it is, whatever passes through it.
            if record is not None and record.category not in STATE:
                record.category = category

    def watch(self, parts: Iterable[nn.Module], optimizers: Iterable[Any]) -> None:
        """Tell apart the memory of a model and its optimizers, from now on."""
        for part in parts:
            self._label([*part.parameters(), *part.buffers()], PARAMETERS)
            part.register_forward_pre_hook(self._enters(ACTIVATIONS), prepend=True)
            output = part.get_submodule("output") if getattr(part, "output", None) else None
            if output is not None:
                output.register_forward_pre_hook(self._enters(LOGITS))
                output.register_forward_hook(self._until_backward)
            else:
                part.register_forward_hook(self._enters(TEMPORARY))
        for optimizer in optimizers:
            optimizer.register_step_pre_hook(self._before_update)
            optimizer.register_step_post_hook(self._after_update)

    def _enters(self, section: str) -> Callable[..., None]:
        """A hook that begins a section."""

        def enter(*_: Any) -> None:
            self._section = section

        return enter

    def _until_backward(self, module: nn.Module, args: Any, logits: Tensor) -> None:
        """The loss ends where backward has the gradient of the logits."""
        if logits.requires_grad:
            logits.register_hook(self._enters(TEMPORARY))

    def _before_update(self, optimizer: Any, *_: Any) -> None:
        self._section = TEMPORARY
        parameters = [p for group in optimizer.param_groups for p in group["params"]]
        self._label([p.grad for p in parameters], GRADIENTS)

    def _after_update(self, optimizer: Any, *_: Any) -> None:
        self._label(tree_leaves(list(optimizer.state.values())), OPTIMIZER)

    # --- the answer ---------------------------------------------------------------------------

    def now(self) -> int:
        """A place in the journal, for `peak`."""
        return len(self._journal)

    def peak(self, begin: int, end: int, *, elsewhere: tuple[str, ...] = ()) -> Peak:
        """The peak between two places of the journal.

        elsewhere: categories that do not count.
        """
        alive: Counter[str] = Counter()
        total, best, best_place = 0, 0, 0
        for place, (record, change) in enumerate(self._journal[:end], start=1):
            if record.category in elsewhere:
                continue
            total += change
            if place >= begin and total > best:
                best, best_place = total, place
        for record, change in self._journal[:best_place]:
            alive[record.category] += change
        return Peak(best, {name: alive[name] for name in CATEGORIES if name not in elsewhere})
