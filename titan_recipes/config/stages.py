"""The pipeline's arithmetic: schedules, which modules form a stage, which rank holds it.

A pipeline of P ranks cuts the layers into consecutive stages, and a rank's local batch into
microbatches that flow through them. With one stage a rank, rank r holds stage r. Looped schedules
give each rank several, r, r + P, ..., which shortens the time that ranks wait for the first and the
last microbatch; V-shaped ones give rank r stages r and 2P - 1 - r, so that the loss is on rank 0.

Torch-free: the laptop refuses here what torch.distributed.pipelining would refuse on the ranks.
"""

from collections.abc import Iterator
from dataclasses import dataclass

from titan_recipes.config.flavor import WhereOf, divisors
from titan_recipes.config.load import did_you_mean
from titan_recipes.config.schema import Config
from titan_recipes.errors import Problem

DEGREE = "parallelism.pipeline_parallel_degree"
SCHEDULE = "parallelism.pipeline_parallel_schedule"
CSV = "parallelism.pipeline_parallel_schedule_csv"
MODULES = "parallelism.module_fqns_per_model_part"
PER_STAGE = "parallelism.pipeline_parallel_layers_per_stage"


@dataclass(frozen=True, slots=True, kw_only=True)
class Schedule:
    """What a schedule of torch.distributed.pipelining asks of a job."""

    is_looped: bool = True
    """Two stages or more a rank, not one."""
    is_v_shaped: bool = False
    """Exactly two stages a rank, the first and last on rank 0."""
    must_fill: bool = False
    """At least as many microbatches as stages."""
    in_rounds: bool = False
    """Microbatches go in equal rounds of P or a few more."""
    splits_backward: bool = False
    """Gradients of weights are computed apart from those of inputs, to fill waiting time."""


SCHEDULES: dict[str, Schedule] = {
    "GPipe": Schedule(is_looped=False),
    "1F1B": Schedule(is_looped=False, must_fill=True),
    "Interleaved1F1B": Schedule(in_rounds=True),
    "LoopedBFS": Schedule(),
    "InterleavedZeroBubble": Schedule(in_rounds=True, splits_backward=True),
    "ZBVZeroBubble": Schedule(is_v_shaped=True, splits_backward=True),
    "DualPipeV": Schedule(is_v_shaped=True, must_fill=True, splits_backward=True),
}
"""arXiv:1811.06965, 2006.09503, 2104.04473, 2211.05953, 2401.10241 (two), 2412.19437."""

FROM_CSV = Schedule(splits_backward=True)
"""A schedule read from a file: its rows say which rank holds which stages. It may split."""


def schedule_of(config: Config) -> Schedule:
    """The schedule that a valid config asks for."""
    p = config.parallelism
    return FROM_CSV if p.pipeline_parallel_schedule_csv else SCHEDULES[p.pipeline_parallel_schedule]


def num_microbatches(config: Config) -> int:
    """Microbatches in one pass of one rank."""
    size = config.parallelism.pipeline_parallel_microbatch_size
    return config.training.local_batch_size // size


def num_stages(config: Config) -> int:
    """Stages in all: as the split says, else one a rank, or two for looped schedules."""
    p = config.parallelism
    if p.module_fqns_per_model_part:
        return len(p.module_fqns_per_model_part)
    if p.pipeline_parallel_layers_per_stage > 0:
        return -(-_num_weights(config) // p.pipeline_parallel_layers_per_stage)
    return p.pipeline_parallel_degree * (2 if schedule_of(config).is_looped else 1)


def stage_modules(config: Config) -> tuple[tuple[str, ...], ...]:
    """The names of each stage's modules, for a valid config.

    The automatic split counts the embedding and the output as so many layers, so that the stages
    that have them get fewer; what does not divide goes to the stages in front.
    """
    p, stages = config.parallelism, num_stages(config)
    if p.module_fqns_per_model_part:
        return p.module_fqns_per_model_part
    least, more = divmod(_num_weights(config), stages)
    counts = [least + (stage < more) for stage in range(stages)]
    counts[0] -= p.pipeline_parallel_first_stage_less_layers
    counts[-1] -= p.pipeline_parallel_last_stage_less_layers
    names = _module_names(config)
    parts: list[tuple[str, ...]] = []
    begin = 0
    for stage, count in enumerate(counts):
        end = begin + count + (stage == 0)
        parts.append(tuple(names[begin : None if stage == stages - 1 else end]))
        begin = end
    return tuple(parts)


def stages_of_rank(config: Config, rank: int) -> tuple[int, ...]:
    """The stages that a rank of the pipeline holds, in order; a CSV schedule has its own."""
    ranks, stages = config.parallelism.pipeline_parallel_degree, num_stages(config)
    if schedule_of(config).is_v_shaped:
        return rank, stages - 1 - rank
    return tuple(range(rank, stages, ranks))


def pipeline_line(config: Config) -> str:
    """One line on what the pipeline became, for people; "" without one."""
    p, microbatches = config.parallelism, num_microbatches(config)
    if p.pipeline_parallel_degree == 1:
        return ""
    layers = [sum(name.startswith("layers.") for name in part) for part in stage_modules(config)]
    name = p.pipeline_parallel_schedule_csv or p.pipeline_parallel_schedule
    return (
        f"pipeline {name}: {microbatches} microbatches of "
        f"{p.pipeline_parallel_microbatch_size} x {config.training.seq_len:,} tokens through "
        f"{len(layers)} stages on {p.pipeline_parallel_degree} ranks; "
        f"layers a stage: {' '.join(map(str, layers))}"
    )


# --- checks ---------------------------------------------------------------------------------------


def pipeline_problems(config: Config, where_of: WhereOf) -> Iterator[Problem]:
    """Why this pipeline can't be built or run; nothing at degree 1."""
    p = config.parallelism
    if p.pipeline_parallel_degree == 1:
        return
    name = p.pipeline_parallel_schedule
    if not p.pipeline_parallel_schedule_csv and name not in SCHEDULES:
        near = {known.lower(): known for known in SCHEDULES}.get(name.lower(), name)
        cure = did_you_mean(near, SCHEDULES) or f"use {', '.join(SCHEDULES)}"
        yield Problem(where_of(SCHEDULE), SCHEDULE, f'got "{name}"', cure)
        return
    split = [*_split_problems(config, where_of)] or [*_count_problems(config, where_of)]
    yield from split
    if not split:
        yield from _microbatch_problems(config, where_of)
    yield from _static_shape_problems(config, where_of)
    if schedule_of(config).splits_backward:
        yield from _split_backward_problems(config, where_of)


def _split_problems(config: Config, where_of: WhereOf) -> Iterator[Problem]:
    if config.parallelism.module_fqns_per_model_part:
        for got, cure in _explicit_split_problems(config):
            yield Problem(where_of(MODULES), MODULES, got, cure)
        return
    p, stages = config.parallelism, num_stages(config)
    first = p.pipeline_parallel_first_stage_less_layers
    last = p.pipeline_parallel_last_stage_less_layers
    if _fits(config, stages):
        return
    key = PER_STAGE if p.pipeline_parallel_layers_per_stage > 0 else DEGREE
    got = (
        f"{stages} stages for n_layers = {config.model.n_layers}, embedding = {first} and "
        f"output = {last} layers"
    )
    most = max((n for n in range(1, stages) if _fits(config, n)), default=1)
    per_rank = 2 if schedule_of(config).is_looped else 1
    cure = f"at most {most} stages fit: use a degree of at most {max(most // per_rank, 1)}"
    yield Problem(where_of(key), key, got, cure)


def _fits(config: Config, stages: int) -> bool:
    """Whether every stage of an automatic split has work, and the ends no less than none."""
    p = config.parallelism
    least, more = divmod(_num_weights(config), stages)
    front = least + (more > 0)
    ends = (
        (p.pipeline_parallel_first_stage_less_layers, front),
        (
            p.pipeline_parallel_last_stage_less_layers,
            least,
        ),
    )
    return least >= 1 and all(less <= size for less, size in ends)


def _explicit_split_problems(config: Config) -> Iterator[tuple[str, str]]:
    parts = config.parallelism.module_fqns_per_model_part
    names, known = [name for part in parts for name in part], _module_names(config)
    for stage, part in enumerate(parts):
        if not part:
            yield f"stage {stage} is empty", "give each stage a module"
        elif part == ("norm",) and config.model.norm == "np_layernorm":
            got = f'stage {stage} has nothing to train: its norm is "np_layernorm"'
            yield got, "put it into the stage of the last layer, or of the output"
    unknown = [name for name in dict.fromkeys(names) if name not in known]
    for name in unknown:
        legal = f"use tok_embeddings, layers.0 to {known[-3]}, norm and output"
        yield f'no module is called "{name}"', did_you_mean(name, known, 0.8) or legal
    for name in known:
        if (count := names.count(name)) != 1:
            yield f'"{name}" is in {count} stages', "name each module of the model once"
    if not unknown and len(set(names)) == len(names) == len(known) and names != known:
        at = next(index for index, name in enumerate(names) if name != known[index])
        yield f'"{names[at]}" comes before "{known[at]}"', "list modules in the model's order"


def _count_problems(config: Config, where_of: WhereOf) -> Iterator[Problem]:
    """Whether ranks get the number of stages that the schedule takes."""
    p, stages, schedule = config.parallelism, num_stages(config), schedule_of(config)
    ranks, name = p.pipeline_parallel_degree, p.pipeline_parallel_schedule
    key, got = DEGREE, f"{stages} stages"
    if p.module_fqns_per_model_part:
        key = MODULES
    elif p.pipeline_parallel_layers_per_stage > 0:
        key = PER_STAGE
        got += f" = ceil({_num_weights(config)} / {p.pipeline_parallel_layers_per_stage})"
    got += f" on {ranks} ranks"
    if p.pipeline_parallel_schedule_csv:
        fits, cure = stages >= ranks, f"use {ranks} stages or more"
    elif not schedule.is_looped:
        fits, cure = stages == ranks, f"{name} takes one a rank: {ranks}"
    elif schedule.is_v_shaped:
        fits, cure = stages == 2 * ranks, f"{name} takes two a rank: {2 * ranks}"
    else:
        fits = stages % ranks == 0 and stages >= 2 * ranks
        cure = f"{name} takes two or more a rank: {2 * ranks}, {3 * ranks}, ..."
    if not fits:
        yield Problem(where_of(key), key, got, cure)


def _microbatch_problems(config: Config, where_of: WhereOf) -> Iterator[Problem]:
    p, batch = config.parallelism, config.training.local_batch_size
    size, stages, ranks = (
        p.pipeline_parallel_microbatch_size,
        num_stages(config),
        p.pipeline_parallel_degree,
    )
    if batch % size:
        key = "parallelism.pipeline_parallel_microbatch_size"
        got = f"{size} does not divide local_batch_size = {batch}"
        yield Problem(where_of(key), key, got, f"use {divisors(batch, 64)}")
        return
    schedule, name = schedule_of(config), p.pipeline_parallel_schedule
    count, key = batch // size, "training.local_batch_size"
    got = f"{batch} / microbatch_size {size} = {count} microbatches"
    if schedule.must_fill and count < stages:
        cure = f"{name} needs at least as many as stages: use {stages * size} or more, or GPipe"
        yield Problem(where_of(key), key, f"{got} for {stages} stages", cure)
    rounds = max(1, count // ranks)
    if schedule.in_rounds and count % rounds:
        cure = (
            f"{name} goes in rounds of equal size: use a multiple of {ranks} * {size} = "
            f"{ranks * size}"
        )
        yield Problem(where_of(key), key, f"{got} in {rounds} rounds of {ranks} or more", cure)


def _split_backward_problems(config: Config, where_of: WhereOf) -> Iterator[Problem]:
    """What can't compute the gradients of weights apart from those of inputs."""
    p, ac = config.parallelism, config.activation_checkpoint
    name = p.pipeline_parallel_schedule_csv or p.pipeline_parallel_schedule
    got = f'contradicts the schedule "{name}", which splits the backward in two'
    if config.compile.enable and "model" in config.compile.components:
        key, cure = "compile.enable", "a compiled block has one backward: compile only the loss"
        yield Problem(where_of(key), key, got, f"{cure}, or use Interleaved1F1B")
    if (ac.mode, ac.selective_ac_option) == ("selective", "op"):
        # torch 2.13: "Trying to backward an extra time".
        key = "activation_checkpoint.selective_ac_option"
        cure = 'torch (2.13) recomputes such a block once: use "1", or Interleaved1F1B'
        yield Problem(where_of(key), key, got, cure)
    if p.fsdp_reshard_after_forward == "always":
        # torch 2.13 gathers them for the inputs' half only: the weights' gradients come out wrong.
        key, cure = "parallelism.fsdp_reshard_after_forward", 'use "default": both need parameters'
        yield Problem(where_of(key), key, got, cure)


def _static_shape_problems(config: Config, where_of: WhereOf) -> Iterator[Problem]:
    if not config.validation.enable:
        return
    for name in ("seq_len", "local_batch_size"):
        trained: int = getattr(config.training, name)
        if (validated := getattr(config.validation, name)) != trained:
            key = f"validation.{name}"
            got = f"{validated}, but the pipeline's buffers have the shapes of training"
            yield Problem(where_of(key), key, got, f"use training.{name} = {trained}")


def _module_names(config: Config) -> list[str]:
    layers = [f"layers.{layer}" for layer in range(config.model.n_layers)]
    return ["tok_embeddings", *layers, "norm", "output"]


def _num_weights(config: Config) -> int:
    """Layers to deal out, embedding and output counted as so many."""
    p = config.parallelism
    ends = p.pipeline_parallel_first_stage_less_layers + p.pipeline_parallel_last_stage_less_layers
    return config.model.n_layers + ends
