"""Layers on different ranks: the same numbers as in one process, and schedules from a file."""

from pathlib import Path

import pytest
import torch
import torch.distributed as dist
from parity import difference, parity_job, train_all
from torch import nn
from torch.distributed.pipelining import PipelineStage
from torch.distributed.pipelining.schedules import get_schedule_class
from torch.testing._internal.distributed.fake_pg import FakeStore
from training import column, largest_difference, rows

from titan_recipes.config.stages import SCHEDULES
from titan_recipes.errors import ConfigError
from titan_recipes.trainer.parallel.schedule_csv import read_schedule_csv

P = "parallelism.pipeline_parallel_"
MODULES = "parallelism.module_fqns_per_model_part="
FOUR_STAGES = (
    MODULES + "[['tok_embeddings'],"
    " ['layers.0', 'layers.1', 'layers.2'], ['layers.3', 'norm'], ['output']]"
)
LAYERS = "'layers.0', 'layers.1', 'layers.2', 'layers.3'"
RECOMPUTED = "activation_checkpoint.mode='full'"


def pipeline(schedule: str) -> tuple[str, str]:
    return P + "degree=2", f"{P}schedule='{schedule}'"


def write_blocks(path: Path, microbatches: int) -> Path:
    """A CSV that puts stages 0 and 1 on rank 0, 2 and 3 on rank 1, which no built-in does."""
    lines: list[str] = []
    for low, high in ((0, 1), (2, 3)):
        forwards = [f"{low}F{m},{high}F{m}" for m in range(microbatches)]
        backwards = [f"{high}B{m},{low}I{m},,{low}W{m}" for m in range(microbatches)]
        lines.append(",".join([*forwards, *backwards]))
    path.write_text("\n".join(lines) + "\n")
    return path


def test_two_ranks_on_masked_documents_train_and_validate_as_one_process(
    tmp_path: Path, corpus: Path
) -> None:
    held_out = (
        "validation.enable=true",
        "validation.dataset='text'",
        f"validation.dataset_path='{corpus}'",
        "validation.seq_len=64",
        "validation.local_batch_size=8",
        "validation.freq=4",
        "validation.steps=2",
        "data.document_mask=true",
        "training.steps=8",
    )
    csv = write_blocks(tmp_path / "blocks.csv", microbatches=8)
    layouts = {
        "1F1B, recomputed": (*pipeline("1F1B"), P + "microbatch_size=2", RECOMPUTED),
        "ZBVZeroBubble, explicit": (*pipeline("ZBVZeroBubble"), FOUR_STAGES),
        "CSV": (P + "degree=2", f"{P}schedule_csv='{csv}'"),
    }
    train_all(tmp_path, {"one": parity_job(corpus, *held_out)})
    train_all(
        tmp_path,
        {name: parity_job(corpus, *held_out, *o, ranks=2) for name, o in layouts.items()},
    )
    expected = rows(tmp_path / "one", "validation.jsonl")
    assert [row["step"] for row in expected] == [4, 8]
    for name in layouts:
        assert difference(tmp_path / "one", tmp_path / name) <= 1e-5
        for row, found in zip(expected, rows(tmp_path / name, "validation.jsonl"), strict=True):
            assert found["loss"] == pytest.approx(row["loss"], rel=1e-5)


def test_checkpoint_of_a_pipeline_goes_on_in_one_process_and_back(
    tmp_path: Path, corpus: Path
) -> None:
    saving = ("checkpoint.enable=true", "checkpoint.interval=4", "training.steps=8")
    again = (*saving, "checkpoint.load_step=4")
    split = pipeline("DualPipeV")
    pipelined, alone = tmp_path / "a", tmp_path / "b"
    train_all(pipelined.parent, {"a": parity_job(corpus, *saving, *split, ranks=2)})
    train_all(alone.parent, {"b": parity_job(corpus, *saving)})
    expected = {name: column(alone, name) for name in ("loss", "grad_norm")}
    pipelined.rename(tmp_path / "c")
    alone.rename(tmp_path / "d")
    train_all(tmp_path, {"c": parity_job(corpus, *again)})
    train_all(tmp_path, {"d": parity_job(corpus, *again, *split, ranks=2)})
    for name, values in expected.items():
        for directory in (tmp_path / "c", tmp_path / "d"):
            assert largest_difference(values, column(directory, name)) <= 1e-5
    assert column(tmp_path / "c", "loss") != expected["loss"]


@pytest.mark.slow
def test_tied_embeddings_at_both_ends_equal_one_process(tmp_path: Path, corpus: Path) -> None:
    tied = ("model.tie_embeddings=true", "training.steps=5")
    output_alone = f"{MODULES}[['tok_embeddings', {LAYERS}, 'norm'], ['output']]"
    offloaded = "training.enable_cpu_offload=true"
    halves = "parallelism.tensor_parallel_degree=2"
    layouts = {
        "1F1B, fsdp, output alone": (2, (*pipeline("1F1B"), output_alone)),
        "Interleaved1F1B, fsdp": (2, (*pipeline("Interleaved1F1B"), offloaded)),
        "ZBVZeroBubble, tp": (1, (*pipeline("ZBVZeroBubble"), halves)),
    }
    train_all(tmp_path, {"one": parity_job(corpus, *tied)})
    jobs = {
        name: parity_job(corpus, *tied, *settings, ranks=4, dp=dp)
        for name, (dp, settings) in layouts.items()
    }
    train_all(tmp_path, jobs)
    for name in jobs:
        assert difference(tmp_path / "one", tmp_path / name) <= 1e-5, name


@pytest.mark.parametrize("ranks", [2, 3, 4])
def test_laptop_refuses_the_batches_that_torch_refuses(ranks: int) -> None:
    dist.init_process_group("fake", store=FakeStore(), rank=0, world_size=ranks)
    try:
        for name, schedule in SCHEDULES.items():
            stages = ranks * (2 if schedule.is_looped else 1)
            own = (0, stages - 1) if schedule.is_v_shaped else range(0, stages, ranks)
            refused = [
                count
                for count in range(1, 13)
                if not _torch_accepts(name, list(own), stages, microbatches=count)
            ]
            expected = [
                count
                for count in range(1, 13)
                if (schedule.must_fill and count < stages)
                or (schedule.in_rounds and count % max(1, count // ranks))
            ]
            assert refused == expected, name
    finally:
        dist.destroy_process_group()


def _torch_accepts(name: str, own: list[int], stages: int, *, microbatches: int) -> bool:
    parts = [PipelineStage(nn.Identity(), i, stages, torch.device("cpu")) for i in own]
    one_or_all = parts if SCHEDULES[name].is_looped else parts[0]
    try:
        get_schedule_class(name)(one_or_all, microbatches, loss_fn=nn.functional.mse_loss)
    except ValueError:
        return False
    return True


def test_csv_says_which_rank_holds_which_stages(tmp_path: Path) -> None:
    path = write_blocks(tmp_path / "blocks.csv", microbatches=3)
    found = read_schedule_csv(path, ranks=2, stages=4, microbatches=3)
    assert found == [(0, 1), (2, 3)]


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("0F0,0B0\n", "has 1 rows; write one for each of the 2 ranks"),
        ("0F0,0X0\n1F0,1B0\n", 'has "0X0"; write actions as 2F0'),
        ("0F0,0B0,2F0\n1F0,1B0\n", "has 2F0; the job has stages 0 to 1, microbatches 0 to 0"),
        ("0F0,0B0\n1F0\n", "has F for stage 1, microbatch 0; give each microbatch a forward"),
        ("0F0,0B0,0F0\n1F0,1B0\n", "has BFF for stage 0, microbatch 0"),
        ("0F0,0B0\n0F0,0B0\n", "has stage 0 on ranks [0, 1]; put it on one rank"),
        ("0B0,0F0\n1F0,1B0\n", "gets stuck at 0B0, 1F0; order each rank's actions"),
        ("0F0,0B0\n1F0,1W0,1I0\n", "gets stuck at 0B0, 1W0"),
    ],
)
def test_csv_that_cannot_run_is_refused(tmp_path: Path, text: str, message: str) -> None:
    path = tmp_path / "schedule.csv"
    path.write_text(text)
    with pytest.raises(ConfigError) as caught:
        read_schedule_csv(path, ranks=2, stages=2, microbatches=1)
    (problem,) = caught.value.problems
    assert message in str(problem)


def test_csv_that_is_not_there_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"can't be read.*give a path that the ranks see"):
        read_schedule_csv(tmp_path / "no.csv", ranks=2, stages=2, microbatches=1)
