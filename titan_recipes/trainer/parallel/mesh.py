"""The ranks: joining the process group, the device of each, and the meshes they form.

Ranks are numbered pp slowest, then dp_replicate, dp_shard, cp, tp. Parameters and tokens see that
grid differently, so there are two meshes over the same ranks: parameters are sharded over dp_shard
and cp as one axis, since both hold the same weights; samples are dealt over dp_replicate and
dp_shard as one axis, since both read different data.
"""

import os
from dataclasses import dataclass
from datetime import timedelta
from pathlib import Path

import torch
import torch.distributed as dist
from torch import Tensor
from torch.distributed.device_mesh import DeviceMesh, init_device_mesh

from titan_recipes.config.hardware import ANY_GPU, NO_GPU
from titan_recipes.config.job import Job
from titan_recipes.errors import ConfigError, Problem


@dataclass(frozen=True, slots=True)
class World:
    """This process among all: its rank, its device, and the groups it talks in.

    mesh: axes pp, dp_replicate, dp_shard_cp, tp; what parameters are laid over. data_mesh: axes
    pp, dp, cp, tp; what tokens are dealt over. expert_mesh: axes pp, dp_replicate, edp, ep; what
    experts are laid over, None where that is like all else. Every axis is there, if with one rank.
    host_group is gloo: it carries what must not wait for the device (stop flag, checkpoint
    agreement). A single process has none of them.
    """

    rank: int
    size: int
    device: torch.device
    mesh: DeviceMesh | None = None
    data_mesh: DeviceMesh | None = None
    expert_mesh: DeviceMesh | None = None
    host_group: dist.ProcessGroup | None = None

    @property
    def fsdp_mesh(self) -> DeviceMesh | None:
        """What parameters are sharded over; with copies of the model in two axes, copies first."""
        return self._with_copies(self.mesh, "dp_shard_cp")

    @property
    def expert_fsdp_mesh(self) -> DeviceMesh | None:
        """The same for experts; None where they are sharded like all else."""
        return self._with_copies(self.expert_mesh, "edp")

    @property
    def ep_mesh(self) -> DeviceMesh | None:
        """The ranks that hold different experts; None at degree 1."""
        return self._axis(self.expert_mesh, "ep")

    @property
    def tp_mesh(self) -> DeviceMesh | None:
        """The ranks that split each matrix; None at degree 1."""
        return self._axis(self.mesh, "tp")

    @property
    def pp_mesh(self) -> DeviceMesh | None:
        """The ranks that hold consecutive layers; None at degree 1."""
        return self._axis(self.mesh, "pp")

    @property
    def pp_group(self) -> dist.ProcessGroup | None:
        """The ranks that hold the other stages of this rank's copy; None without a pipeline."""
        return self.pp_mesh.get_group() if self.pp_mesh is not None else None

    @property
    def cp_mesh(self) -> DeviceMesh | None:
        """The ranks that split each sequence; None at degree 1."""
        return self._axis(self.data_mesh, "cp")

    @property
    def dp_rank(self) -> int:
        """This rank's place among those that read different data."""
        return self.data_mesh.get_local_rank("dp") if self.data_mesh is not None else 0

    @staticmethod
    def _with_copies(mesh: DeviceMesh | None, axis: str) -> DeviceMesh | None:
        if mesh is None:
            return None
        return mesh["dp_replicate", axis] if mesh["dp_replicate"].size() > 1 else mesh[axis]

    @staticmethod
    def _axis(mesh: DeviceMesh | None, name: str) -> DeviceMesh | None:
        return mesh[name] if mesh is not None and mesh[name].size() > 1 else None

    def sum_over(self, value: Tensor, *axes: str) -> Tensor:
        """The sum of a tensor over axes of data_mesh, on its device, as a new tensor."""
        total = value.clone()
        for axis in axes:
            if (mesh := self._axis(self.data_mesh, axis)) is not None:
                dist.all_reduce(total, group=mesh.get_group())
        return total


def choose_device(job: Job, local_rank: int) -> torch.device:
    """The device of a rank. Raises ConfigError where the plan wants a GPU that is not there."""
    gpu, found = job.plan.gpu, torch.cuda.device_count()
    # Two ranks can't share a GPU under NCCL.
    if gpu == NO_GPU or (gpu == ANY_GPU and found < job.plan.gpus_per_node):
        return torch.device("cpu")
    if found <= local_rank:
        got = f'"{gpu}" on {job.plan.gpus_per_node} ranks, but this machine shows {found} GPUs'
        cure = "--set plan.gpu=cpu, or fewer ranks"
        raise ConfigError([Problem("job.toml", "plan.gpu", got, cure)])
    return torch.device("cuda", local_rank)


def join_world(job: Job, run_directory: Path) -> World:
    """Join the process group that torchrun's environment describes, and build the meshes."""
    rank, size = int(os.environ.get("RANK", "0")), int(os.environ.get("WORLD_SIZE", "1"))
    local_rank = int(os.environ.get("LOCAL_RANK", "0"))
    derived = job.derived
    if size != derived.world_size:
        got = f"the job is resolved for {derived.world_size} ranks, but {size} were started"
        cure = "start the job by its component"
        raise ConfigError([Problem("job.toml", "derived.world_size", got, cure)])
    device = choose_device(job, local_rank)
    if device.type == "cuda":
        torch.cuda.set_device(device)
    if size == 1:
        return World(rank, size, device)
    timeout = timedelta(seconds=job.comm.init_timeout_seconds)
    if not dist.is_initialized():
        if device.type == "cuda" and job.comm.trace_buf_size:
            trace_collectives(job, run_directory)
        backend = "nccl" if device.type == "cuda" else "gloo"
        device_id = device if device.type == "cuda" else None
        dist.init_process_group(backend, timeout=timeout, device_id=device_id)
    host_group = dist.new_group(backend="gloo", timeout=timeout)
    assert isinstance(host_group, dist.ProcessGroup), "every rank is in the host group"
    world = lay_out(job, rank, device, host_group)
    # Meshes make their groups with torch's own timeouts: 10 minutes on NCCL, 30 on gloo.
    set_timeouts(job.comm.init_timeout_seconds)
    return world


def lay_out(job: Job, rank: int, device: torch.device, host_group: dist.ProcessGroup) -> World:
    """The meshes over the ranks of a process group that was joined."""
    derived = job.derived

    def mesh_of(**axes: int) -> DeviceMesh:
        """A mesh with axes of these sizes, slowest first."""
        return init_device_mesh(device.type, tuple(axes.values()), mesh_dim_names=tuple(axes))

    dp_shard_cp = derived.dp_shard * derived.cp
    copies = {"pp": derived.pp, "dp_replicate": derived.dp_replicate}
    dp = derived.dp_replicate * derived.dp_shard
    mesh = mesh_of(**copies, dp_shard_cp=dp_shard_cp, tp=derived.tp)
    data_mesh = mesh_of(pp=derived.pp, dp=dp, cp=derived.cp, tp=derived.tp)
    expert_mesh = None
    # Experts are laid out unlike other parameters where ep splits them, or tp leaves them whole.
    if job.model.moe is not None and (derived.ep > 1 or derived.tp > 1):
        edp = dp_shard_cp * derived.tp // derived.ep
        expert_mesh = mesh_of(**copies, edp=edp, ep=derived.ep)
    if job.optimizer.name == "Muon":
        join_axes(mesh, "dp_shard_cp", "tp")
        join_axes(expert_mesh, "edp", "ep")
    return World(rank, derived.world_size, device, mesh, data_mesh, expert_mesh, host_group)


def join_axes(mesh: DeviceMesh | None, *axes: str) -> None:
    """Make the group of the ranks that share a matrix split over several axes.

    Here, as NCCL splits the group of all ranks for it, which all have to take part in: a pipeline's
    ranks without experts would not ask for the group of those.
    """
    if mesh is not None and all(mesh[axis].size() > 1 for axis in axes):
        mesh[axes]._flatten()


def trace_collectives(job: Job, run_directory: Path) -> None:
    """Have NCCL keep a record of its last collectives and dump it when one hangs."""
    folder = run_directory / job.comm.save_traces_folder
    folder.mkdir(parents=True, exist_ok=True)
    os.environ["TORCH_FR_BUFFER_SIZE"] = str(job.comm.trace_buf_size)
    os.environ["TORCH_NCCL_DUMP_ON_TIMEOUT"] = "1"
    os.environ["TORCH_NCCL_DEBUG_INFO_TEMP_FILE"] = str(folder / job.comm.save_traces_file_prefix)


def tighten_timeouts(seconds: int, world: World, *, but: dist.ProcessGroup | None) -> None:
    """Shorten the longest wait for a collective, once the slow first step is done.

    but: the checkpointer's group, in which all wait for the one that writes longest.
    """
    assert world.mesh is not None
    dist.barrier()
    set_timeouts(seconds, but=but)


def set_timeouts(seconds: int, *, but: dist.ProcessGroup | None = None) -> None:
    """Set the longest wait for a collective in every group there is but one.

    After set-up: those of the meshes, the host's, a tied weight's.
    """
    for group in list(dist.distributed_c10d._world.pg_map):
        if group is not but:
            dist.distributed_c10d._set_pg_timeout(timedelta(seconds=seconds), group)
