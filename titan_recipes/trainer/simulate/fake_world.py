"""A rank's world without the other ranks: a fake process group, and a device that fills no tensor.

torch's fake process group answers every collective at once, and its FakeTensorMode gives every
operator's result the right shape and no data. What depends on data gets the value it would have in
a healthy run: experts are loaded evenly, losses finite, conditions false.

CUDA can't be simulated without a driver (torch 2.13 aborts), so tensors say they are on the CPU,
and what CUDA computes otherwise is put in its place: of all that the models use, RMSNorm, which
CPU composes out of operators that keep four times as much for backward.
"""

import contextlib
import inspect
from collections.abc import Callable, Generator, Mapping
from typing import Any

import torch
import torch.distributed as dist
import torch.nn.functional as F
from torch import Tensor, nn
from torch._subclasses.fake_tensor import FakeTensor, FakeTensorMode, unset_fake_temporarily
from torch.distributed.device_mesh import DeviceMesh
from torch.testing._internal.distributed.fake_pg import FakeStore
from torch.utils._pytree import tree_leaves

from titan_recipes.config.hardware import NO_GPU
from titan_recipes.config.job import Job
from titan_recipes.trainer.parallel.expert_parallel import AllToAllDispatcher
from titan_recipes.trainer.parallel.mesh import World, lay_out

_aten = torch.ops.aten
_NOTHING: Mapping[str, Any] = {}


@contextlib.contextmanager
def fake_world(job: Job, rank: int) -> Generator[World]:
    """Be `rank` of the job's ranks, on a simulated device, until the end of the block."""
    device, size = torch.device("cpu"), job.derived.world_size
    with contextlib.ExitStack() as stack:
        if size == 1:
            world = World(0, 1, device)
        else:
            dist.init_process_group("fake", store=FakeStore(), rank=rank, world_size=size)
            stack.callback(dist.destroy_process_group)
            host_group = dist.new_group(backend="fake")
            assert isinstance(host_group, dist.ProcessGroup)
            world = lay_out(job, rank, device, host_group)
        # Meshes compute their coordinates with tensors, whose values they need.
        for name in ("_concatenate", "_flatten", "_compute_coordinate_on_dim"):
            stack.enter_context(patched(DeviceMesh, name, _with_real_tensors))
        if job.derived.pp > 1:
            stack.enter_context(_agreed_stages())
        simulated = stack.enter_context(SimulatedDevice())
        stack.enter_context(patched(AllToAllDispatcher, "forward", simulated.balanced))
        if job.plan.gpu != NO_GPU:
            stack.enter_context(patched(F, "rms_norm", lambda _: _fused_rms_norm))
        yield world


@contextlib.contextmanager
def patched(owner: Any, name: str, wrap: Callable[[Callable[..., Any]], Any]) -> Generator[None]:
    """Replace a function or method by wrap(it) for the length of a block."""
    is_own = name in vars(owner)
    kept: Any = inspect.getattr_static(owner, name)
    wrapped = wrap(getattr(kept, "__func__", kept))
    setattr(owner, name, staticmethod(wrapped) if isinstance(kept, staticmethod) else wrapped)
    try:
        yield
    finally:
        if is_own:
            setattr(owner, name, kept)
        else:
            delattr(owner, name)


def _agreed_stages() -> contextlib.AbstractContextManager[None]:
    """Pipeline stages vote whether all know their shapes, as ours do; here nobody answers."""
    from torch.distributed.pipelining.schedules import _PipelineSchedule
    from torch.distributed.pipelining.stage import InferenceMode

    def agree(schedule: Any, stages: list[Any], *_: Any) -> None:
        for stage in stages:
            stage._inference_mode = InferenceMode.STATIC

    return patched(_PipelineSchedule, "_warmup_p2p", lambda _: agree)


def _with_real_tensors(method: Callable[..., Any]) -> Callable[..., Any]:
    def run(*args: Any, **kwargs: Any) -> Any:
        with unset_fake_temporarily():
            return method(*args, **kwargs)

    return run


class SimulatedDevice(FakeTensorMode):
    """Every new tensor but those on the meta device is fake; data-dependent operators go on."""

    def __init__(self) -> None:
        super().__init__(allow_non_fake_inputs=True)
        self._rows: int | None = None
        """Rows that each rank of an expert group sends to each other, inside the dispatcher."""
        self._ranks = 1

    def balanced(self, forward: Callable[..., Tensor]) -> Callable[..., Tensor]:
        """A dispatcher's forward under even load of the experts."""

        def run(module: AllToAllDispatcher, x_TD: Tensor, *args: Any) -> Tensor:
            self._ranks = module.group.size()
            self._rows = len(x_TD) // self._ranks
            try:
                return forward(module, x_TD, *args)
            finally:
                self._rows = None

        return run

    def __torch_dispatch__(
        self, func: Any, types: Any, args: Any = (), kwargs: Mapping[str, Any] = _NOTHING
    ) -> Any:
        if func is _aten._local_scalar_dense.default and _is_unknown(args[0]):
            return self._scalar(args[0])
        if func is _aten.repeat_interleave.Tensor and self._rows is not None:
            return args[0].new_empty(self._rows * self._ranks)
        # The model is built on the meta device, whose parameters FSDP and `to_empty` want plain.
        if _is_meta(args, kwargs):
            return func(*args, **kwargs)
        return super().__torch_dispatch__(func, types, args, kwargs)

    def _scalar(self, tensor: Tensor) -> float | int | bool:
        if tensor.dtype is torch.bool:
            return False
        return 1.0 if tensor.is_floating_point() else self._rows or 0


def _is_unknown(tensor: Tensor) -> bool:
    """Whether a tensor has no value; small ones written in code keep theirs."""
    return isinstance(tensor, FakeTensor) and tensor.constant is None


def _is_meta(args: Any, kwargs: Mapping[str, Any]) -> bool:
    """Whether an operator only has to do with plain tensors on the meta device."""
    if (device := kwargs.get("device")) is not None:
        return torch.device(device).type == "meta"
    if args and isinstance(args[0], FakeTensor):
        return False
    tensors = [leaf for leaf in tree_leaves((args, kwargs)) if isinstance(leaf, Tensor)]
    return bool(tensors) and all(type(t) in (Tensor, nn.Parameter) and t.is_meta for t in tensors)


def _fused_rms_norm(x: Tensor, shape: Any, weight: Tensor, eps: float | None = None) -> Tensor:
    """RMSNorm as CUDA's fused kernel allocates it."""
    return FusedRMSNorm.apply(x, weight)


class FusedRMSNorm(torch.autograd.Function):
    """Keeps its input and a float32 for each row; values are never looked at."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, weight: Tensor) -> Tensor:
        inverse_rms = x.new_empty((*x.shape[:-1], 1), dtype=torch.float32)
        ctx.save_for_backward(x, weight, inverse_rms)
        return torch.empty_like(x)

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor, Tensor]:
        x, weight, _ = ctx.saved_tensors
        return torch.empty_like(x), torch.empty_like(weight)
