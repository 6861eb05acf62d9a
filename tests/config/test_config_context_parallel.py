"""What context parallelism refuses on the laptop, with the arithmetic and the cure."""

import pytest

from titan_recipes.bundle.find import find_bundle
from titan_recipes.config.job import Job
from titan_recipes.errors import ConfigError

CP = "parallelism.context_parallel_"


def resolved(*overrides: str) -> Job:
    """llama3_debug on 4 CPU ranks, 2 of them in each context-parallel group."""
    plan = ("plan.gpu='cpu'", "plan.gpus_per_node=4", f"{CP}degree=2")
    plan += ("training.seq_len=64", "validation.seq_len=64")
    return find_bundle("llama3_debug").resolve(overrides=[*plan, *overrides]).job


def problems(*overrides: str) -> list[str]:
    with pytest.raises(ConfigError) as caught:
        resolved(*overrides)
    return [str(problem) for problem in caught.value.problems]


def test_context_parallel_ranks_read_the_same_data() -> None:
    job = resolved()
    assert (job.derived.cp, job.derived.dp_shard, job.dp_degree) == (2, 2, 2)


@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        (
            ["training.seq_len=66", "validation.enable=false"],
            f"--set: {CP}degree: seq_len 66 is not a multiple of 2 * cp = 4; use a "
            "seq_len that is, or cp 1, 3, 11 or 33",
        ),
        (
            ["training.seq_len=65", "validation.enable=false", f"{CP}load_balancer=''"],
            f"--set: {CP}degree: seq_len 65 is not a multiple of cp = 2; use a "
            "seq_len that is, or cp 1, 5 or 13",
        ),
        (
            [f"{CP}load_balancer='headtial'"],
            f"--set: {CP}load_balancer: got \"headtial\"; use 'headtail' or ''",
        ),
        (
            ["validation.seq_len=32"],
            "--set: validation.seq_len: got 32, but with cp(2) a rank knows "
            "only its own positions of training.seq_len = 64; use 64",
        ),
        *(
            (
                [f"{CP}rotate_method='alltoall'", setting],
                f'--set: {CP}rotate_method: got "alltoall", but '
                f'ring attention has no masks and no {shown}; use "allgather"',
            )
            for setting, shown in (
                ("model.sliding_window=63", "model.sliding_window = 63 < seq_len = 64"),
                ("model.attention_soft_cap=50.0", "model.attention_soft_cap = 50.0"),
                ("model.attention_sinks=true", "model.attention_sinks"),
                ("data.document_mask=true", "data.document_mask"),
            )
        ),
    ],
)
def test_what_cannot_work_is_refused(overrides: list[str], message: str) -> None:
    assert problems(*overrides) == [message]


@pytest.mark.parametrize(
    "overrides",
    [
        ["training.seq_len=66", "validation.seq_len=66", f"{CP}load_balancer=''"],
        ["model.sliding_window=64", f"{CP}rotate_method='alltoall'"],
        ["model.sliding_window=16", "model.attention_soft_cap=50.0"],
        ["training.seq_len=65", f"{CP}degree=1", "plan.gpus_per_node=1"],
        ["validation.seq_len=32", "validation.enable=false"],
    ],
)
def test_what_works_is_accepted(overrides: list[str]) -> None:
    resolved(*overrides)
