"""The ranks: joining the process group, the device of each, and the one DeviceMesh."""

import os
from dataclasses import dataclass
from datetime import timedelta
from pathlib import Path

import torch
import torch.distributed as dist
from torch.distributed.device_mesh import DeviceMesh, init_device_mesh

from titan_recipes.config.hardware import ANY_GPU, NO_GPU
from titan_recipes.config.job import Derived, Job
from titan_recipes.errors import ConfigError, Problem


@dataclass(frozen=True, slots=True)
class World:
    """This process among all: its rank, its device, and the groups it talks in.

    mesh and host_group are None for a single process, which needs neither. host_group is gloo: it
    carries what must not wait for the device (stop flag, checkpoint agreement).
    """

    rank: int
    local_rank: int
    size: int
    device: torch.device
    mesh: DeviceMesh | None
    host_group: dist.ProcessGroup | None

    @property
    def dp_mesh(self) -> DeviceMesh | None:
        """The axis over which data and parameters are sharded."""
        return self.mesh["dp_shard"] if self.mesh is not None else None

    @property
    def dp_rank(self) -> int:
        """This rank's place among those that read different data."""
        return self.dp_mesh.get_local_rank() if self.dp_mesh is not None else 0


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
    """Join the process group that torchrun's environment describes and build the mesh.

    Axes have the job's degrees and their names; only axes that some parallelism uses are in it.
    """
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
        return World(rank, local_rank, size, device, None, None)
    if device.type == "cuda" and job.comm.trace_buf_size:
        trace_collectives(job, run_directory)
    timeout = timedelta(seconds=job.comm.init_timeout_seconds)
    backend = "nccl" if device.type == "cuda" else "gloo"
    device_id = device if device.type == "cuda" else None
    dist.init_process_group(backend, timeout=timeout, device_id=device_id)
    mesh = init_device_mesh(device.type, mesh_shape(derived), mesh_dim_names=("dp_shard",))
    host_group = dist.new_group(backend="gloo", timeout=timeout)
    assert not isinstance(host_group, int), "every rank is in the host group"
    return World(rank, local_rank, size, device, mesh, host_group)


def mesh_shape(derived: Derived) -> tuple[int, ...]:
    """Sizes of the mesh's axes, slowest first."""
    return (derived.dp_shard,)


def trace_collectives(job: Job, run_directory: Path) -> None:
    """Have NCCL keep a record of its last collectives and dump it when one hangs."""
    folder = run_directory / job.comm.save_traces_folder
    folder.mkdir(parents=True, exist_ok=True)
    os.environ["TORCH_FR_BUFFER_SIZE"] = str(job.comm.trace_buf_size)
    os.environ["TORCH_NCCL_DUMP_ON_TIMEOUT"] = "1"
    os.environ["TORCH_NCCL_DEBUG_INFO_TEMP_FILE"] = str(folder / job.comm.save_traces_file_prefix)


def tighten_timeouts(seconds: int, world: World) -> None:
    """Shorten the longest wait for a collective, once the slow first step is done."""
    assert world.mesh is not None
    dist.barrier()
    groups = [dist.group.WORLD, world.host_group, *world.mesh.get_all_groups()]
    for group in groups:
        torch.distributed.distributed_c10d._set_pg_timeout(timedelta(seconds=seconds), group)
