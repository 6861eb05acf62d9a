"""Simulated ranks against real ones: the same memory to the byte, the same collectives."""

import json
import os
import subprocess
import sys
from collections.abc import Callable, Iterator
from concurrent.futures import ProcessPoolExecutor
from dataclasses import replace
from multiprocessing import get_context
from pathlib import Path
from typing import Any

import pytest
import torch
from parity import parity_job
from training import write_job

from titan_recipes.bundle.find import find_bundle
from titan_recipes.config.job import Job, encode
from titan_recipes.errors import ConfigError
from titan_recipes.trainer.simulate.__main__ import chosen_ranks
from titan_recipes.trainer.simulate.measure import Measured
from titan_recipes.trainer.simulate.memory import MemoryTracker, Peak
from titan_recipes.trainer.simulate.rank import simulate_rank
from titan_recipes.trainer.simulate.report import RankReport, as_json, as_text, verdict

PARALLEL = "parallelism."
LAYOUTS: dict[str, tuple[int, tuple[str, ...]]] = {
    "fsdp": (4, ()),
    "recomputed in bf16": (
        4,
        (
            "activation_checkpoint.mode='selective'",
            "activation_checkpoint.selective_ac_option='op'",
            "training.mixed_precision_param='bfloat16'",
        ),
    ),
    "copies": (4, (PARALLEL + "data_parallel_replicate_degree=2",)),
    "tensor": (2, (PARALLEL + "tensor_parallel_degree=2",)),
    "context": (2, (PARALLEL + "context_parallel_degree=2",)),
    "pipeline": (2, (PARALLEL + "pipeline_parallel_degree=2",)),
    "experts": (
        4,
        (
            "model.family='deepseek_v3'",
            "model.ffn_dim=64",
            "model.moe={num_experts=8, experts_per_token=2, ffn_dim=32, num_shared_experts=1,"
            " num_dense_layers=1, score_func='sigmoid', load_balance_coeff=1e-3}",
            PARALLEL + "expert_parallel_degree=2",
        ),
    ),
}
"""Layouts of four ranks: those that read different data, and overrides."""

Simulate = Callable[[Job], dict[str, Any]]
EXACT = [name for name in LAYOUTS if name not in ("pipeline", "experts")]


@pytest.fixture(scope="module")
def jobs(corpus: Path) -> dict[str, Job]:
    return {
        name: parity_job(corpus, *overrides, ranks=4, dp=dp)
        for name, (dp, overrides) in LAYOUTS.items()
    }


@pytest.fixture(scope="module")
def real(
    tmp_path_factory: pytest.TempPathFactory, jobs: dict[str, Job], session_cache: Path
) -> dict[str, Any]:
    """Layout -> what rank 0 of four real ones measured of itself."""
    root = tmp_path_factory.mktemp("real")
    for name, job in jobs.items():
        write_job(root / name, job)
    script = str(Path(__file__).parents[1] / "measured_rank.py")
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone"]
    command += ["--nproc-per-node=4", script, str(root), *jobs]
    environment = {
        **os.environ,
        "OMP_NUM_THREADS": "1",
        "TITAN_RECIPES_CACHE": str(session_cache),
    }
    done = subprocess.run(command, capture_output=True, text=True, timeout=900, env=environment)
    assert done.returncode == 0, done.stderr
    return {name: rank_of((root / name / "measured-0.json").read_text()) for name in jobs}


def rank_of(text: str) -> dict[str, Any]:
    """The one rank of a report, without how long it took, collectives by name."""
    (rank,) = json.loads(text)["ranks"]
    rank.pop("seconds")
    rank["collectives"] = {
        f"{row['op']} {row['axis']}": (row["count"], row["bytes"]) for row in rank["collectives"]
    }
    return rank


def run_simulation(job: Job, *options: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "titan_recipes.trainer.simulate", "--job", encode(job)]
    return subprocess.run([*command, *options], capture_output=True, text=True, timeout=600)


@pytest.fixture(scope="module")
def simulated() -> Iterator[Simulate]:
    """Simulates rank 0 of a job in a process of its own, forked from one that has torch."""
    context = get_context("forkserver")
    context.set_forkserver_preload(["titan_recipes.trainer.train"])
    with ProcessPoolExecutor(1, mp_context=context, max_tasks_per_child=1) as pool:

        def simulate(job: Job) -> dict[str, Any]:
            report = pool.submit(simulate_rank, job, 0, traceback=False).result()
            return rank_of(json.dumps(as_json(job, [report])))

        yield simulate


@pytest.mark.slow
@pytest.mark.parametrize("layout", EXACT)
def test_simulated_rank_equals_the_real_one_to_the_byte(
    simulated: Simulate, real: dict[str, Any], jobs: dict[str, Job], layout: str
) -> None:
    assert simulated(jobs[layout]) == real[layout]
    assert real[layout]["peak_bytes"] > 4_000_000


@pytest.mark.slow
def test_simulated_pipeline_stage_is_close_to_the_real_one(
    simulated: Simulate, real: dict[str, Any], jobs: dict[str, Job]
) -> None:
    """Real sends hold what they send until it has left."""
    found, expected = simulated(jobs["pipeline"]), real["pipeline"]
    assert found["peak_bytes"] == pytest.approx(expected["peak_bytes"], rel=0.01)
    assert found["collectives"] == expected["collectives"]
    assert expected["collectives"]["send pp"][0] == 8


@pytest.mark.slow
def test_simulated_experts_are_loaded_evenly(
    simulated: Simulate, real: dict[str, Any], jobs: dict[str, Job]
) -> None:
    found, expected = simulated(jobs["experts"]), real["experts"]
    assert found["peak_bytes"] == pytest.approx(expected["peak_bytes"], rel=0.01)
    for name, (count, size) in expected["collectives"].items():
        assert found["collectives"][name][0] == count
        assert found["collectives"][name][1] == pytest.approx(size, rel=0.05)
    # 2 passes, 3 layers with 2 experts a token over 512 tokens of 64 numbers, there and back, in
    # forward and backward: all that even load leaves open is none of it.
    counts = 2 * 3 * 8 * 8
    assert found["collectives"]["all_to_all ep"][1] == 2 * 3 * 4 * (2 * 128 * 64 * 4) + counts


def test_sharded_rank_has_its_share_of_the_state_and_of_the_traffic(
    simulated: Simulate, jobs: dict[str, Job]
) -> None:
    job = jobs["fsdp"]
    found, num_params = simulated(job), job.derived.num_params
    memory = found["memory_bytes"]
    # The allocator rounds each tensor up; the rotary table lies with the parameters.
    table = job.training.seq_len * job.model.head_dim * 4
    assert 0 <= memory["parameters"] - num_params - table < 512 * 40
    assert 0 <= memory["gradients"] - num_params < 512 * 40
    assert 0 <= memory["optimizer state"] - 2 * num_params < 512 * 120
    assert found["peak_bytes"] == sum(memory.values())
    # At the peak, in the loss, the output matrix is there as gathered and as copied out of that;
    # logits and their softmax are, and the gradient of the hidden states.
    tokens = job.training.local_batch_size * job.training.seq_len
    output, logits = (4 * n * job.model.vocab_size for n in (job.model.dim, tokens))
    assert 0 <= memory["gathered parameters, communication"] - 2 * output < 4096
    rest = memory["logits and loss"] - 2 * logits - 4 * tokens * job.model.dim
    assert 0 <= rest < 8192
    # In each of 2 passes 4 blocks, embedding and output are gathered, all but the output again in
    # backward, and their gradients scattered.
    assert found["collectives"]["all_gather dp_shard_cp"][0] == 2 * (6 + 5)
    assert found["collectives"]["reduce_scatter dp_shard_cp"] == (2 * 6, 2 * 4 * num_params)
    kept = 4 * job.model.dim * (job.model.vocab_size + 1)
    gathered = 2 * 4 * num_params - kept
    assert found["collectives"]["all_gather dp_shard_cp"][1] == 2 * gathered


def test_more_passes_only_add_traffic(simulated: Simulate, jobs: dict[str, Job]) -> None:
    job = jobs["fsdp"]
    many = replace(job, derived=replace(job.derived, gradient_accumulation_steps=50))
    few, found = simulated(job), simulated(many)
    assert found["peak_bytes"] == few["peak_bytes"]
    assert found["collectives"]["all_gather dp_shard_cp"][0] == 50 * 11
    assert (
        found["collectives"]["all_reduce dp_shard_cp"]
        == (few["collectives"]["all_reduce dp_shard_cp"])
    )


def test_offloaded_state_counts_as_host_memory(simulated: Simulate, jobs: dict[str, Job]) -> None:
    job = jobs["fsdp"]
    found = simulated(replace(job, training=replace(job.training, enable_cpu_offload=True)))
    assert "parameters" not in found["memory_bytes"]
    assert found["host_bytes"] > 4 * job.derived.num_params


def test_job_that_fails_in_its_first_step_is_one_line_and_exit_2(jobs: dict[str, Job]) -> None:
    job = jobs["fsdp"]
    broken = replace(job, model=replace(job.model, n_heads=7))
    done = run_simulation(broken, "--rank", "0")
    assert done.returncode == 2
    assert done.stdout == ""
    (line,) = [line for line in done.stderr.splitlines() if line.startswith("error:")]
    assert line.startswith("error: rank 0 of 4 can't train: ")
    assert "Traceback" not in done.stderr
    assert "Traceback" in run_simulation(broken, "--rank", "0", "--traceback").stderr


# --- without a simulation -------------------------------------------------------------------------


def test_tracker_follows_storages_to_their_end() -> None:
    with MemoryTracker() as tracker:
        a = torch.empty(1024)
        both = [a.view(32, 32), a + 1]
        half = tracker.now()
        both.clear()
        a.untyped_storage().resize_(0)
        b = torch.empty(300)
        emptied = tracker.now()
        a.untyped_storage().resize_(2048)
    assert tracker.peak(0, half).size == 2 * 4096
    assert tracker.peak(emptied, emptied).size == 1536
    assert tracker.peak(emptied, tracker.now()).size == 1536 + 2048
    assert b.shape == (300,)


def test_ranks_are_the_first_of_the_first_and_of_the_last_stage(jobs: dict[str, Job]) -> None:
    assert chosen_ranks(jobs["fsdp"], "") == [0]
    assert chosen_ranks(jobs["pipeline"], "") == [0, 2]
    assert chosen_ranks(jobs["pipeline"], "3, last,first,3") == [3, 2, 0]


@pytest.mark.parametrize("text", ["4", "-1", "middle", "0,,1"])
def test_rank_that_is_not_there_is_refused(jobs: dict[str, Job], text: str) -> None:
    with pytest.raises(ConfigError, match='use 0 to 3, "first" or "last"'):
        chosen_ranks(jobs["fsdp"], text)


@pytest.mark.parametrize(
    ("gib", "expected", "words"),
    [(60, "yes", "fits"), (70, "maybe", "may or may not fit"), (74, "no", "does not fit")],
)
def test_verdict_counts_with_the_reserve(gib: int, expected: str, words: str) -> None:
    job = find_bundle("llama3_8b").resolve("h100x8").job
    peak = Peak(gib * 2**30, {"activations": gib * 2**30})
    report = RankReport(0, {"dp": 0}, Measured(peak, peak, Peak(0, {}), {}), 1.0)
    assert verdict(job, report) == expected
    text = as_text(job, [report])
    assert f"rank 0 {words} into the 80 GiB of h100: {gib}.00 GiB in use" in text


@pytest.mark.slow
def test_chunked_loss_needs_a_quarter_less_at_the_peak_of_a_1b_model(simulated: Simulate) -> None:
    alone = ("plan.nodes=1", "plan.gpus_per_node=1", "training.global_batch_size=-1")
    peaks: dict[int, int] = {}
    for tokens in (0, -1):
        settings = ("training.seq_len=8192", "training.local_batch_size=1")
        chunks = f"training.loss_chunk_tokens={tokens}"
        job = find_bundle("llama3_1b").resolve(overrides=[*alone, *settings, chunks]).job
        peaks[tokens] = simulated(job)["peak_bytes"]
    assert peaks[-1] <= 0.75 * peaks[0]
