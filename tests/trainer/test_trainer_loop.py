"""The loop's own rules: schedule, clipping, accumulation, faults, stops, validation."""

import json
import math
import threading
from multiprocessing import active_children
from pathlib import Path

import pytest
import torch
from torch import nn
from training import column, largest_difference, rows, small_job, train_here, write_job

from titan_recipes.config.job import Job
from titan_recipes.config.layout import RunLayout
from titan_recipes.errors import CheckpointError, ConfigError, DataError, NumericsError
from titan_recipes.trainer.data.loader import Batch, open_training_data
from titan_recipes.trainer.data.read_ahead import ReadAhead
from titan_recipes.trainer.metrics import RankEvents
from titan_recipes.trainer.optimizer import clip_grads, global_grad_norm, lr_factor
from titan_recipes.trainer.parallel.mesh import join_world
from titan_recipes.trainer.train import Trainer

CPU = torch.device("cpu")


def make_trainer(directory: Path, job: Job) -> Trainer:
    """A trainer of one rank that stands before its first step."""
    write_job(directory, job)
    (directory / "logs").mkdir()
    layout = RunLayout(directory)
    return Trainer(job, layout, join_world(job, directory), RankEvents(layout, 0))


@pytest.mark.parametrize(
    ("decay_type", "expected"),
    [
        ("linear", [0.5, 1.0, 1.0, 1.0, 1.0, 1.0, 1.0, 0.8, 0.6, 0.4]),
        ("cosine", [0.5, 1.0, 1.0, 1.0, 1.0, 1.0, 1.0,
                    0.2 + 0.8 * (1 + math.cos(math.pi / 4)) / 2, 0.6,
                    0.2 + 0.8 * (1 + math.cos(3 * math.pi / 4)) / 2]),
        ("sqrt", [0.5, 1.0, 1.0, 1.0, 1.0, 1.0, 1.0, 0.6,
                  0.2 + 0.8 * (1 - math.sqrt(0.5)), 0.2 + 0.8 * (1 - math.sqrt(0.75))]),
    ],
)  # fmt: skip
def test_lr_warms_up_stays_and_decays(corpus: Path, decay_type: str, expected: list[float]) -> None:
    job = small_job(
        corpus,
        "training.steps=10",
        "lr_scheduler.warmup_steps=2",
        "lr_scheduler.decay_ratio=0.3",
        f"lr_scheduler.decay_type='{decay_type}'",
        "lr_scheduler.min_lr_factor=0.2",
    )
    assert [lr_factor(step, job) for step in range(1, 11)] == pytest.approx(expected)


def test_grad_norm_is_exact_on_large_tensors_and_clipping_reaches_it() -> None:
    generator = torch.Generator().manual_seed(0)
    parameters = [nn.Parameter(torch.zeros(n)) for n in (3_000_000, 7)]
    for parameter in parameters:
        parameter.grad = torch.randn(parameter.shape, generator=generator) + 1
    exact = math.sqrt(sum(p.grad.double().square().sum().item() for p in parameters))
    norm, own = global_grad_norm(parameters, torch.device("cpu"))
    assert norm.item() == own.item() == pytest.approx(exact, rel=1e-7)
    clip_grads(parameters, norm, 2 * exact)
    assert global_grad_norm(parameters, torch.device("cpu"))[0].item() == pytest.approx(
        exact, rel=1e-7
    )
    clip_grads(parameters, norm, 1.0)
    assert global_grad_norm(parameters, torch.device("cpu"))[0].item() == pytest.approx(
        1.0, rel=1e-5
    )


def test_accumulated_batches_equal_one_large_batch(tmp_path: Path, corpus: Path) -> None:
    for name, local in (("one", 8), ("four", 2)):
        settings = ("training.steps=5", f"training.local_batch_size={local}")
        train_here(tmp_path / name, small_job(corpus, *settings))
    for name in ("loss", "grad_norm"):
        pair = column(tmp_path / "one", name), column(tmp_path / "four", name)
        assert largest_difference(*pair) <= 1e-6


def test_three_steps_that_are_not_finite_end_the_run_and_name_step_and_rank(
    tmp_path: Path, corpus: Path
) -> None:
    job = small_job(corpus, "optimizer.lr=1e38", "lr_scheduler.warmup_steps=0")
    with pytest.raises(NumericsError, match=r"step 4: loss not finite on rank 0, 3 steps in a row"):
        train_here(tmp_path, job)
    table = rows(tmp_path)
    assert [row["step"] for row in table] == [1, 2, 3, 4]
    assert table[0]["loss"] is not None
    assert [row["loss"] for row in table[1:]] == [None, None, None]


def test_validation_writes_its_own_rows_and_changes_nothing_else(
    tmp_path: Path, corpus: Path
) -> None:
    path = f"validation.dataset_path='{corpus}'"
    validation = ("validation.enable=true", "validation.dataset='text_validation'", path,
                  "validation.freq=2", "validation.steps=2", "validation.seq_len=64",
                  "validation.local_batch_size=2")  # fmt: skip
    train_here(tmp_path / "with", small_job(corpus, "training.steps=5", *validation))
    train_here(tmp_path / "without", small_job(corpus, "training.steps=5"))
    assert column(tmp_path / "with", "loss") == column(tmp_path / "without", "loss")
    found = rows(tmp_path / "with", "validation.jsonl")
    assert [row["step"] for row in found] == [2, 4, 5]
    assert found[0]["loss"] > found[-1]["loss"] > 4


def test_stop_file_ends_the_run_with_a_checkpoint_and_word_of_more(
    tmp_path: Path, corpus: Path
) -> None:
    (tmp_path / "STOP").touch()
    train_here(tmp_path, small_job(corpus))
    assert (tmp_path / "REQUEUE").exists()
    assert rows(tmp_path) == [] if (tmp_path / "metrics.jsonl").exists() else True
    assert (tmp_path / "checkpoints" / "step-00000000" / "manifest.json").exists()


def test_seed_checkpoint_is_the_start_of_the_same_run(tmp_path: Path, corpus: Path) -> None:
    train_here(tmp_path / "seed", small_job(corpus, "checkpoint.create_seed_checkpoint=true"))
    assert not (tmp_path / "seed" / "REQUEUE").exists()
    seed = tmp_path / "seed" / "checkpoints" / "step-00000000"
    assert seed.is_dir()
    path = f"checkpoint.initial_load_path='{seed}'"
    train_here(tmp_path / "a", small_job(corpus, path, "debug.seed=5", "training.steps=1"))
    train_here(tmp_path / "b", small_job(corpus, "debug.seed=5", "training.steps=1"))
    train_here(tmp_path / "c", small_job(corpus, "training.steps=1", "data.shuffle=false", path))
    train_here(tmp_path / "d", small_job(corpus, "training.steps=1", "data.shuffle=false"))
    assert column(tmp_path / "a", "loss") != column(tmp_path / "b", "loss")
    assert column(tmp_path / "c", "loss") == column(tmp_path / "d", "loss")


def test_last_checkpoint_of_weights_only_cannot_be_resumed(tmp_path: Path, corpus: Path) -> None:
    settings = ("training.steps=3", "checkpoint.interval=2", "checkpoint.keep_latest_k=1")
    weights = ("checkpoint.last_save_model_only=true", "checkpoint.export_dtype='bfloat16'")
    train_here(tmp_path, small_job(corpus, *settings, *weights))
    manifest = tmp_path / "checkpoints" / "step-00000003" / "manifest.json"
    assert json.loads(manifest.read_text())["model_only"] is True
    job = small_job(corpus, "training.steps=4", f"checkpoint.load_step={3}")
    (tmp_path / "job.toml").unlink()
    with pytest.raises(CheckpointError, match="weights only"):
        train_here(tmp_path, job)


def test_going_back_sets_the_newer_checkpoints_aside(tmp_path: Path, corpus: Path) -> None:
    train_here(tmp_path, small_job(corpus, "training.steps=6", "checkpoint.interval=2"))
    straight = column(tmp_path, "loss")
    back = ("training.steps=5", "checkpoint.interval=2", "checkpoint.load_step=2")
    train_here(tmp_path, small_job(corpus, *back, "checkpoint.keep_latest_k=2"))
    folders = sorted(path.name for path in (tmp_path / "checkpoints").iterdir())
    assert folders == [
        "abandoned-step-00000004", "abandoned-step-00000006", "step-00000004", "step-00000005",
    ]  # fmt: skip
    assert column(tmp_path, "loss")[:2] == straight[:2]
    assert len(column(tmp_path, "loss")) == 5


def test_checkpoints_do_not_change_the_numbers(tmp_path: Path, corpus: Path) -> None:
    train_here(tmp_path / "on", small_job(corpus, "training.steps=4"))
    train_here(tmp_path / "off", small_job(corpus, "training.steps=4", "checkpoint.enable=false"))
    assert column(tmp_path / "on", "loss") == column(tmp_path / "off", "loss")


def test_full_load_takes_the_state_but_not_the_old_hyperparameters(
    tmp_path: Path, corpus: Path
) -> None:
    train_here(tmp_path / "old", small_job(corpus, "training.steps=2"))
    path = f"checkpoint.initial_load_path='{tmp_path / 'old'}'"
    settings = ("checkpoint.initial_load_model_only=false", "training.steps=3", path)
    job = small_job(corpus, *settings, "optimizer.weight_decay=0.25", "optimizer.beta2=0.9")
    layout = RunLayout(write_job(tmp_path / "new", job))
    trainer = Trainer(job, layout, join_world(job, layout.root), RankEvents(layout, 0))
    trainer.resume()
    (group,) = trainer.optimizers[0].param_groups
    assert (group["weight_decay"], group["betas"]) == (0.25, (0.9, 0.9))
    assert {int(state["step"]) for state in trainer.optimizers[0].state.values()} == {2}
    assert trainer.step == 2
    trainer.close()


def test_checkpoint_of_other_data_is_refused(tmp_path: Path, corpus: Path) -> None:
    train_here(tmp_path, small_job(corpus, "training.steps=2"))
    other = tmp_path / "other.txt"
    other.write_text(corpus.read_text().upper())
    job = small_job(corpus, "training.steps=3", f"training.dataset_path='{other}'")
    with pytest.raises(ConfigError, match="data"):
        train_here(tmp_path, job)


def test_missing_dataset_is_a_config_error(tmp_path: Path, corpus: Path) -> None:
    job = small_job(corpus, "training.dataset_path='/nowhere/*.txt'")
    with pytest.raises((ConfigError, DataError), match="nowhere"):
        train_here(tmp_path, job)


def test_profiler_and_tensorboard_files_are_written(tmp_path: Path, corpus: Path) -> None:
    profiling = ("profiling.enable_profiling=true", "profiling.profile_freq=4",
                 "profiling.profiler_warmup=1", "training.steps=4")  # fmt: skip
    train_here(tmp_path, small_job(corpus, *profiling))
    trace = tmp_path / "profiles" / "profile_traces" / "step-00000004" / "rank-0.json.gz"
    assert trace.stat().st_size > 1000
    assert list((tmp_path / "tb").glob("events.*"))


def test_figures_that_arrive_late_change_nothing_but_what_is_logged(
    tmp_path: Path, corpus: Path
) -> None:
    job = small_job(corpus, "training.steps=8")
    train_here(tmp_path / "each", job)
    train_here(tmp_path / "some", small_job(corpus, "training.steps=8", "metrics.log_freq=3"))
    each, some = rows(tmp_path / "each"), rows(tmp_path / "some")
    assert [row["step"] for row in some] == [1, 3, 6, 8]
    by_step = {row["step"]: row for row in each}
    for row in some:
        assert (row["loss"], row["grad_norm"]) == tuple(
            by_step[row["step"]][name] for name in ("loss", "grad_norm")
        )


@pytest.mark.parametrize("implementation", ["fused", "foreach", "for-loop"])
def test_step_that_is_not_finite_is_skipped_and_written_down_when_it_is_not_due(
    tmp_path: Path, corpus: Path, implementation: str
) -> None:
    settings = ("metrics.log_freq=10", f"optimizer.implementation='{implementation}'")
    trainer = make_trainer(tmp_path, small_job(corpus, *settings))
    trainer.train_step()
    before = [p.detach().clone() for p in trainer.parameters]
    broken = trainer.parameters[0]
    with torch.no_grad():
        broken.fill_(math.nan)
    trainer.train_step()
    assert trainer.finite_check.skipped_in_a_row == 0  # not known yet
    with torch.no_grad():
        broken.copy_(before[0])
    for parameter, old in zip(trainer.parameters, before, strict=True):
        assert torch.equal(parameter, old)
    trainer.train_step()
    assert trainer.finite_check.skipped_in_a_row == 1
    trainer.figures.settle()
    assert trainer.finite_check.skipped_in_a_row == 0
    assert not torch.equal(trainer.parameters[1], before[1])
    assert [(row["step"], row["loss"] is None) for row in rows(tmp_path)] == [(1, False), (2, True)]
    trainer.close()


def test_batches_read_ahead_are_those_read_in_the_step(tmp_path: Path, corpus: Path) -> None:
    job = small_job(corpus)
    plain = open_training_data(job, dp_rank=0, dp_degree=1)
    ahead = ReadAhead(open_training_data(job, dp_rank=0, dp_degree=1), 3, CPU)
    for _ in range(5):
        assert torch.equal(ahead.next_batch().tokens_BS, plain.next_batch().tokens_BS)
        assert ahead.state_dict() == plain.state_dict()
    state, sixth = ahead.state_dict(), ahead.next_batch()
    ahead.next_batch()
    ahead.load_state_dict(state)
    assert ahead.state_dict() == state
    assert torch.equal(ahead.next_batch().tokens_BS, sixth.tokens_BS)
    ahead.close()
    assert not [thread for thread in threading.enumerate() if thread.name == "read-ahead"]


def test_processes_that_read_end_with_the_data(corpus: Path) -> None:
    job = small_job(corpus, "training.dataloader={num_workers=1,persistent_workers=true}")
    before = set(active_children())
    data = ReadAhead(open_training_data(job, dp_rank=0, dp_degree=1), 2, CPU)
    data.next_batch()
    (worker,) = set(active_children()) - before
    data.close()
    assert not worker.is_alive()


def test_fault_of_data_read_ahead_is_told_where_it_is_waited_for() -> None:
    class Torn:
        def next_batch(self) -> Batch:
            raise DataError("shard 3: torn")

        def state_dict(self) -> dict[str, object]:
            return {}

        def load_state_dict(self, state: dict[str, object]) -> None: ...

        def close(self) -> None: ...

    with pytest.raises(DataError, match="shard 3: torn"):
        ReadAhead(Torn(), 2, CPU).next_batch()


@pytest.mark.filterwarnings("ignore:.torch.jit.script_method. is deprecated:DeprecationWarning")
def test_graphs_that_are_compiled_again_are_counted_and_told(
    tmp_path: Path, corpus: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    trainer = make_trainer(tmp_path, small_job(corpus, "compile.enable=true"))
    add_one = torch.compile(lambda x: x + 1, backend="eager", dynamic=False)
    trainer.tell_compiled(1)
    trainer.step = 7
    for length, told in ((2, 1), (2, 0), (3, 1)):
        add_one(torch.ones(length))
        capsys.readouterr()
        trainer.tell_compiled(1)
        line = "step 7: torch.compile made 1 graphs; TORCH_LOGS=recompiles tells why\n"
        assert capsys.readouterr().out == line * told
    trainer.close()
