"""One all-reduce test of the ranks: `python -m titan_recipes.trainer.preflight`, by torchrun.

The nodes are split into groups: all of them, each alone, or neighbours in pairs. Each group is a
process group of its own, so that one with a bad network does not keep the others from meeting; it
sums integers that depend on rank and position, and the sum must be exact. The bus bandwidth of n
ranks is 2 (n - 1) / n x bytes / seconds, what each link of a ring carries ("Performance" in the
nccl-tests of NVIDIA).

Ranks tell what they saw through torchrun's store, not through what is being tested, and a rank that
hangs is left hanging. Rank 0 prints one line: MARK and JSON. What it means is the launcher's to
judge, so the exit code is 0 as long as ranks could tell.
"""

import argparse
import json
import os
import re
import sys
import threading
import time
from collections.abc import Sequence
from datetime import timedelta
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist

from titan_recipes.config.job import read_job
from titan_recipes.config.layout import PREFLIGHT_MARK
from titan_recipes.trainer.__main__ import die_with_parent
from titan_recipes.trainer.parallel.mesh import choose_device

START_SECONDS = 180.0
"""From the first rank to the last: all nodes may read Python from one file system at once."""
TEST_SECONDS = 60.0
"""For one test, NCCL's start among thousands of ranks included."""
TELL_SECONDS = 15.0
NEVER = timedelta(
    hours=1
)  # we look at the clock ourselves: NCCL's watchdog would abort the process
CUDA_SIZES = (1 << 20, 1 << 25, 1 << 28)
CPU_SIZES = (1 << 16, 1 << 20, 1 << 22)
CUDA_ROUNDS, CPU_ROUNDS = 5, 3
ERROR_CHARS = 160


def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m titan_recipes.trainer.preflight")
    parser.add_argument("job", type=Path, help="job.toml in the run directory")
    parser.add_argument(
        "--test", required=True, help="who talks to whom: all, local, pairs-0 or pairs-1"
    )
    parser.add_argument("--attempt", help="number of the attempt, by which orphans are found")
    arguments = parser.parse_args()
    die_with_parent()
    # A peer that dies must not abort the ranks that are to say so.
    os.environ["TORCH_NCCL_ASYNC_ERROR_HANDLING"] = "0"
    rank, local_rank = int(os.environ["RANK"]), int(os.environ["LOCAL_RANK"])
    ranks_per_node, node = int(os.environ["LOCAL_WORLD_SIZE"]), int(os.environ["GROUP_RANK"])
    store, _, size = next(dist.rendezvous("env://", timeout=NEVER))
    groups = groups_of(arguments.test, size // ranks_per_node)
    told: dict[str, Any] = {"error": "", "sizes": []}
    try:
        device = choose_device(read_job(arguments.job), local_rank)
        if not wait_for_start(store, rank, size):
            told["error"] = "some ranks did not start"
        else:
            number, nodes = next((n, group) for n, group in enumerate(groups) if node in group)
            ranks = ranks_of(nodes, ranks_per_node)
            group_store = dist.PrefixStore(f"{arguments.test}/{number}", store)
            told = run_test(device, group_store, ranks.index(rank), len(ranks))
    except Exception as error:
        told["error"] = in_one_line(error)
    store.set(f"told/{rank}", json.dumps(told))
    if rank == 0:
        found = collect(store, size)
        line = {"test": arguments.test, "groups": summary(groups, ranks_per_node, found)}
        print(PREFLIGHT_MARK + json.dumps(line), flush=True)
    return 0


def groups_of(test: str, num_nodes: int) -> list[tuple[int, ...]]:
    """The nodes of each group; with pairs-1 the last node is the first one's neighbour."""
    everyone = range(num_nodes)
    if test == "all":
        return [tuple(everyone)]
    if test == "local":
        return [(node,) for node in everyone]
    ring = [*everyone] if test == "pairs-0" else [*everyone[1:], 0]
    return [tuple(ring[start : start + 2]) for start in range(0, num_nodes, 2)]


def ranks_of(nodes: Sequence[int], ranks_per_node: int) -> list[int]:
    return [node * ranks_per_node + local for node in nodes for local in range(ranks_per_node)]


def wait_for_start(store: dist.Store, rank: int, size: int) -> bool:
    """Whether every rank came, so that they begin together; rank 0 counts them."""
    store.set(f"here/{rank}", "")
    if rank == 0:
        came = wait_for(store, [f"here/{other}" for other in range(size)], START_SECONDS)
        store.set("start", str(int(came)))
    store.wait(["start"], timedelta(seconds=START_SECONDS + TELL_SECONDS))
    return store.get("start") == b"1"


def wait_for(store: dist.Store, keys: Sequence[str], seconds: float) -> bool:
    """Whether all keys are set in time."""
    deadline = time.monotonic() + seconds
    while not store.check(list(keys)):
        if time.monotonic() > deadline:
            return False
        time.sleep(0.05)
    return True


def run_test(device: torch.device, store: dist.Store, rank: int, size: int) -> dict[str, Any]:
    """{"error": what went wrong or "", "sizes": [[bytes, GiB/s], ...]} of this rank.

    In a thread, which is given up when it hangs: there is no way to end a collective that waits.
    """
    told: dict[str, Any] = {"error": f"hung: not done within {TEST_SECONDS:.0f} s", "sizes": []}

    def work() -> None:
        try:
            told["sizes"] = all_reduce_test(device, store, rank, size)
            told["error"] = ""
        except Exception as error:
            told["error"] = in_one_line(error)

    thread = threading.Thread(target=work, daemon=True)
    thread.start()
    thread.join(TEST_SECONDS)
    return dict(told)


def in_one_line(error: Exception) -> str:
    """The start of what it says, without the place in torch's source that stands in front."""
    words = re.sub(r"^\[[^\]]*\]\s*", "", str(error).strip())
    return f"{type(error).__name__}: {words.partition(chr(10))[0][:ERROR_CHARS]}"


class WrongSumError(Exception):
    """An all-reduce returned a sum that is not the sum."""


def all_reduce_test(
    device: torch.device, store: dist.Store, rank: int, size: int
) -> list[tuple[int, float]]:
    """(bytes, bus bandwidth in GiB/s) of each size, among ranks of one group.

    Raises WrongSumError; RuntimeError where the ranks can't talk.
    """
    on_gpu = device.type == "cuda"
    if on_gpu:
        torch.cuda.set_device(device)
    dist.init_process_group(
        "nccl" if on_gpu else "gloo", store=store, rank=rank, world_size=size, timeout=NEVER
    )
    sizes, rounds = (CUDA_SIZES, CUDA_ROUNDS) if on_gpu else (CPU_SIZES, CPU_ROUNDS)
    figures: list[tuple[int, float]] = []
    wrong = ""
    for num_bytes in sizes:
        position = torch.arange(num_bytes // 4, dtype=torch.int32, device=device) % 7
        total = position + rank
        dist.all_reduce(total)
        # Told at the end: a rank that left now would look like a network that fails.
        wrong = wrong or wrong_sum(total, position * size + size * (size - 1) // 2)
        if size == 1:
            continue
        dist.barrier()
        began = time.perf_counter()
        for _ in range(rounds):
            dist.all_reduce(total)
        if on_gpu:
            torch.cuda.synchronize()
        seconds = (time.perf_counter() - began) / rounds
        figures.append((num_bytes, 2 * (size - 1) / size * num_bytes / seconds / 2**30))
    if wrong:
        raise WrongSumError(wrong)
    return figures


def wrong_sum(total: torch.Tensor, wanted: torch.Tensor) -> str:
    """Which elements differ; "" = none."""
    wrong = (total != wanted).nonzero()
    if not len(wrong):
        return ""
    first = int(wrong[0])
    words = f"{len(wrong)} of {len(total)} sums are wrong, the first is {int(total[first])}"
    return f"{words}, not {int(wanted[first])}"


def collect(store: dist.Store, size: int) -> list[dict[str, Any]]:
    """What every rank told; one that did not is told of."""
    deadline = time.monotonic() + TEST_SECONDS + TELL_SECONDS
    found: list[dict[str, Any]] = []
    for rank in range(size):
        left = max(0.0, deadline - time.monotonic())
        if wait_for(store, [f"told/{rank}"], left):
            found.append(json.loads(store.get(f"told/{rank}")))
        else:
            found.append({"error": f"rank {rank} was lost", "sizes": []})
    return found


def summary(
    groups: Sequence[tuple[int, ...]], ranks_per_node: int, found: Sequence[dict[str, Any]]
) -> list[dict[str, Any]]:
    """Of each group: its nodes, the first error of its ranks, and the slowest rank's figures."""
    told: list[dict[str, Any]] = []
    for nodes in groups:
        ranks = ranks_of(nodes, ranks_per_node)
        errors = [found[rank]["error"] for rank in ranks if found[rank]["error"]]
        sizes: list[tuple[int, float]] = []
        if not errors:
            columns = zip(*(found[rank]["sizes"] for rank in ranks), strict=True)
            sizes = [min((n, speed) for n, speed in column) for column in columns]
        # A rank that says why is worth more than one that waited for it.
        errors.sort(key=lambda error: error.startswith("hung"))
        told.append({"nodes": list(nodes), "error": errors[0] if errors else "", "sizes": sizes})
    return told


if __name__ == "__main__":
    code = main()
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(code)  # without teardown: a thread may hang in a collective
