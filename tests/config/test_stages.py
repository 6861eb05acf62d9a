"""The pipeline's arithmetic: how layers are dealt out, and what is refused before a rank starts."""

import pytest

from titan_recipes.bundle.find import find_bundle
from titan_recipes.config.resolve import Resolution
from titan_recipes.config.stages import (
    num_microbatches,
    num_stages,
    stage_modules,
    stages_of_rank,
)
from titan_recipes.errors import ConfigError

P = "parallelism.pipeline_parallel_"
MODULES = "parallelism.module_fqns_per_model_part="
HALVES = (
    MODULES + "[['tok_embeddings', 'layers.0', 'layers.1'],"
    " ['layers.2', 'layers.3', 'norm', 'output']]"
)


def resolved(*overrides: str, pp: int = 2, layers: int = 4) -> Resolution:
    settings = (
        "plan.gpu='cpu'",
        f"plan.gpus_per_node={pp}",
        f"{P}degree={pp}",
        f"model.n_layers={layers}",
        "training.local_batch_size=8",
        "training.global_batch_size=16",
        "validation.enable=false",
        "compile.enable=false",
    )
    return find_bundle("llama3_debug").resolve(overrides=[*settings, *overrides])


def refusal(*overrides: str, pp: int = 2, layers: int = 4) -> str:
    with pytest.raises(ConfigError) as caught:
        resolved(*overrides, pp=pp, layers=layers)
    (problem,) = caught.value.problems
    return str(problem)


def layers_a_stage(*overrides: str, pp: int, layers: int) -> list[int]:
    job = resolved(*overrides, pp=pp, layers=layers).job
    return [sum("layers." in name for name in part) for part in stage_modules(job)]


@pytest.mark.parametrize(
    ("settings", "pp", "layers", "expected"),
    [
        ((), 2, 4, [2, 2]),
        ((), 4, 32, [8, 9, 8, 7]),
        ((), 4, 4, [1, 2, 1, 0]),
        ((P + "schedule='Interleaved1F1B'",), 4, 32, [4, 5, 4, 4, 4, 4, 4, 3]),
        ((P + "first_stage_less_layers=0", P + "last_stage_less_layers=0"), 3, 8, [3, 3, 2]),
        ((P + "first_stage_less_layers=2", P + "last_stage_less_layers=3"), 2, 9, [5, 4]),
        ((P + "layers_per_stage=3", P + "schedule='LoopedBFS'"), 2, 16, [2, 3, 3, 3, 3, 2]),
    ],
)
def test_ends_get_fewer_layers_and_the_front_what_is_left(
    settings: tuple[str, ...], pp: int, layers: int, expected: list[int]
) -> None:
    assert layers_a_stage(*settings, pp=pp, layers=layers) == expected
    assert sum(expected) == layers


def test_automatic_split_names_every_module_once_in_order() -> None:
    job = resolved(P + "schedule='ZBVZeroBubble'", layers=3).job
    assert stage_modules(job) == (
        ("tok_embeddings", "layers.0"),
        ("layers.1",),
        ("layers.2",),
        ("norm", "output"),
    )


def test_explicit_split_is_taken_as_it_is() -> None:
    job = resolved(HALVES).job
    assert stage_modules(job)[1] == ("layers.2", "layers.3", "norm", "output")
    assert num_stages(job) == 2


@pytest.mark.parametrize(
    ("schedule", "expected"),
    [
        ("1F1B", [(0,), (1,), (2,), (3,)]),
        ("Interleaved1F1B", [(0, 4), (1, 5), (2, 6), (3, 7)]),
        ("DualPipeV", [(0, 7), (1, 6), (2, 5), (3, 4)]),
    ],
)
def test_ranks_hold_the_stages_of_their_schedule(
    schedule: str, expected: list[tuple[int, ...]]
) -> None:
    job = resolved(f"{P}schedule='{schedule}'", pp=4, layers=8).job
    assert [stages_of_rank(job, rank) for rank in range(4)] == expected


def test_notes_say_what_the_pipeline_became() -> None:
    made = resolved(P + "microbatch_size=2", "training.seq_len=1024")
    assert num_microbatches(made.job) == 4
    assert made.notes[-1] == (
        "pipeline 1F1B: 4 microbatches of 2 x 1,024 tokens through 2 stages on 2 ranks; "
        "layers a stage: 2 2"
    )
    assert not any(note.startswith("pipeline") for note in resolved(pp=1).notes)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        (
            (P + "schedule='1f1b'",),
            'pipeline_parallel_schedule: got "1f1b"; did you mean "1F1B"?',
        ),
        (
            (P + "schedule='Interleaved'",),
            'got "Interleaved"; did you mean "Interleaved1F1B"?',
        ),
        (
            (P + "microbatch_size=3",),
            "3 does not divide local_batch_size = 8; use 1, 2, 4 or 8",
        ),
        (
            (P + "microbatch_size=8",),
            "8 / microbatch_size 8 = 1 microbatches for 2 stages; 1F1B needs at least as many as "
            "stages: use 16 or more, or GPipe",
        ),
        (
            (P + "schedule='DualPipeV'", P + "microbatch_size=4"),
            "2 microbatches for 4 stages; DualPipeV needs at least as many as stages: use 16",
        ),
        (
            (P + "schedule='LoopedBFS'", P + "layers_per_stage=3"),
            "pipeline_parallel_layers_per_stage: 2 stages = ceil(6 / 3) on 2 ranks; "
            "LoopedBFS takes two or more a rank: 4, 6, ...",
        ),
        ((P + "layers_per_stage=2",), "3 stages = ceil(6 / 2) on 2 ranks; 1F1B takes one a rank"),
        (
            (P + "schedule='ZBVZeroBubble'", P + "layers_per_stage=1"),
            "6 stages = ceil(6 / 1) on 2 ranks; ZBVZeroBubble takes two a rank: 4",
        ),
        (
            (P + "first_stage_less_layers=9",),
            "2 stages for n_layers = 4, embedding = 9 and output = 1 layers; at most 1 stages fit",
        ),
        (
            (HALVES, P + "schedule='Interleaved1F1B'"),
            "module_fqns_per_model_part: 2 stages on 2 ranks; Interleaved1F1B takes two or more",
        ),
        (
            (HALVES.replace("'norm'", "'norms'"),),
            'no module is called "norms"; did you mean "norm"?',
        ),
        ((HALVES.replace(" 'layers.1'", " 'layers.1', 'layers.1'"),), '"layers.1" is in 2 stages'),
        ((HALVES.replace("'norm', ", ""),), '"norm" is in 0 stages; name each module of the model'),
        (
            (HALVES.replace("'layers.2', 'layers.3'", "'layers.3', 'layers.2'"),),
            '"layers.3" comes before "layers.2"; list modules in the model\'s order',
        ),
        ((HALVES[:-1] + ", []]",), "stage 2 is empty; give each stage a module"),
        (
            (
                MODULES
                + "[['tok_embeddings', 'layers.0', 'layers.1', 'layers.2', 'layers.3'], ['norm'],"
                " ['output']]",
                P + "schedule='LoopedBFS'",
                "model.norm='np_layernorm'",
            ),
            'stage 1 has nothing to train: its norm is "np_layernorm"; put it into the stage of',
        ),
        (
            (P + "schedule='ZBVZeroBubble'", "compile.enable=true"),
            'compile.enable: contradicts the schedule "ZBVZeroBubble", which splits the backward',
        ),
        (
            (P + "schedule='DualPipeV'", "activation_checkpoint.selective_ac_option='op'"),
            'selective_ac_option: contradicts the schedule "DualPipeV"',
        ),
        (
            (P + "schedule='ZBVZeroBubble'", "parallelism.fsdp_reshard_after_forward='always'"),
            'fsdp_reshard_after_forward: contradicts the schedule "ZBVZeroBubble"',
        ),
    ],
)
def test_pipeline_that_cannot_work_is_refused(settings: tuple[str, ...], message: str) -> None:
    lines = refusal_lines(*settings)
    assert any(message in line for line in lines), lines
    assert len(lines) == 1 or "norms" in message


def refusal_lines(*settings: str) -> list[str]:
    with pytest.raises(ConfigError) as caught:
        resolved("activation_checkpoint.mode='selective'", *settings)
    return [str(problem) for problem in caught.value.problems]


def test_microbatches_of_unequal_rounds_are_refused() -> None:
    name = P + "schedule='Interleaved1F1B'"
    batch = ("training.local_batch_size=7", "training.global_batch_size=7")
    assert refusal(name, *batch).endswith(
        "7 / microbatch_size 1 = 7 microbatches in 3 rounds of 2 or more; "
        "Interleaved1F1B goes in rounds of equal size: use a multiple of 2 * 1 = 2"
    )


def test_validation_of_another_shape_is_refused_with_the_cure() -> None:
    with pytest.raises(ConfigError) as caught:
        resolved("validation.enable=true", "training.seq_len=512")
    lines = [str(problem).split(": ", 1)[1] for problem in caught.value.problems]
    buffers = "but the pipeline's buffers have the shapes of training"
    sizes = resolved().job.validation
    assert lines == [
        f"validation.seq_len: {sizes.seq_len}, {buffers}; use training.seq_len = 512",
        f"validation.local_batch_size: {sizes.local_batch_size}, {buffers}; "
        "use training.local_batch_size = 8",
    ]


def test_keys_without_effect_are_noted() -> None:
    key = P + "first_stage_less_layers"
    why = "module_fqns_per_model_part says what is in each stage"
    assert f"--set: {key} has no effect: {why}" in resolved(HALVES, key + "=2").dormant
    key, csv = P + "schedule", P + "schedule_csv='/x.csv'"
    why = "pipeline_parallel_schedule_csv is the schedule"
    assert f"--set: {key} has no effect: {why}" in resolved(key + "='GPipe'", csv).dormant
    assert not any("schedule_csv has" in note for note in resolved(csv).dormant)
