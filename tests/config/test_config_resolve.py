"""Resolve: precedence, derived integers, and every check with its message."""

import dataclasses
from collections.abc import Mapping
from typing import Any

import pytest

from titan_recipes.config import job as job_text
from titan_recipes.config.cluster import Cluster
from titan_recipes.config.load import Layer
from titan_recipes.config.resolve import Resolution, resolve, with_overrides
from titan_recipes.config.site import Hardware
from titan_recipes.errors import ConfigError

RECIPE = {"recipe": dict(name="x", version="1.0.0", summary="s", default_plan="p")}
LLAMA3_8B = {
    "model": dict(
        family="llama3", dim=4096, n_layers=32, n_heads=32, n_kv_heads=8, head_dim=128,
        ffn_dim=14336, vocab_size=128256,
    )
}  # fmt: skip
TRAIN = {
    "training": {"dataset": "c4", "seq_len": 8192, "steps": 1000},
    "lr_scheduler": {"warmup_steps": 100},
}
PLAN = {"plan": {"gpu": "h100", "gpus_per_node": 8}, "training": {"local_batch_size": 1}}


def resolved(
    *overrides: str, train: Mapping[str, Any] = TRAIN, cluster: Cluster | None = None
) -> Resolution:
    layers = [
        Layer("x/recipe.toml", RECIPE),
        Layer("x/model.toml", LLAMA3_8B),
        Layer("x/train.toml", train),
        Layer("x/plans/p.toml", PLAN),
    ]
    return resolve(layers, digest="d", bundle="", plan="p", overrides=overrides, cluster=cluster)


def problems(*overrides: str, **kwargs: Any) -> list[str]:
    with pytest.raises(ConfigError) as caught:
        resolved(*overrides, **kwargs)
    return [str(problem) for problem in caught.value.problems]


def test_plan_wins_over_train_and_overrides_over_plan() -> None:
    assert resolved().job.training.local_batch_size == 1
    assert resolved("training.local_batch_size=2").job.training.local_batch_size == 2


def test_derived_integers_of_llama3_8b_on_8_gpus() -> None:
    derived = resolved("training.global_batch_size=64").job.derived
    assert derived.world_size == derived.dp_shard == 8
    assert derived.gradient_accumulation_steps == 8
    assert derived.tokens_per_step == 64 * 8192
    assert derived.num_params == 8_030_261_248
    # 6 x (parameters without the lookup) + 12 x layers x heads x head_dim x sequence
    assert derived.flops_per_token == 6 * (8_030_261_248 - 128256 * 4096) + 12 * 32 * 4096 * 8192
    assert (derived.warmup_steps, derived.decay_steps, derived.schedule_steps) == (100, 900, 1000)


def test_warmup_and_decay_longer_than_training_are_clipped_and_said() -> None:
    made = resolved("training.steps=50", "lr_scheduler.decay_ratio=0.5")
    assert (made.job.derived.warmup_steps, made.job.derived.decay_steps) == (50, 0)
    assert made.notes == (
        "lr_scheduler.warmup_steps 100 is clipped to the schedule's 50 steps",
        "lr_scheduler: warmup 50 + decay 25 > 50 steps; decay is clipped to 0",
    )


def test_job_survives_toml_and_its_argument_form() -> None:
    job = resolved("training.dataset_path='a\"b\\\\c'", "model.rope_scaling={factor=32.0}").job
    assert job_text.from_toml(job_text.to_toml(job), "t") == job
    assert job_text.decode(job_text.encode(job)) == job
    with pytest.raises(ConfigError, match="not an encoded job"):
        job_text.decode(job_text.encode(job)[:-9])


def test_override_that_is_not_toml_is_text_where_the_key_holds_text() -> None:
    made = resolved("training.dataset=c4", "optimizer.name=Adam").job
    assert (made.training.dataset, made.optimizer.name) == ("c4", "Adam")


def test_with_overrides_derives_anew() -> None:
    longer = with_overrides(resolved().job, ["training.steps=2000"])
    assert longer.derived.schedule_steps == 2000
    job = resolved("lr_scheduler.total_steps=1000").job
    with pytest.raises(ConfigError, match=r"^job.toml: lr_scheduler.total_steps: 1000 < training"):
        with_overrides(job, ["training.steps=2000"])


def test_identity_of_a_recipe_cannot_be_set_but_its_needs_can() -> None:
    got = "can't be set for one run: it says what the recipe is; fork the recipe and edit"
    assert problems("recipe.version='9.9.9'", "expect={source='measured'}") == [
        f"--set: recipe.version: {got} recipe.toml",
        f"--set: expect: {got} the plan",
    ]
    job = resolved("assets.tokenizer=t.model", "plan.gpus_per_node=4", "model.dim=2048").job
    assert (job.assets.tokenizer, job.plan.gpus_per_node, job.model.dim) == ("t.model", 4, 2048)


@pytest.mark.parametrize(
    ("override", "message"),
    [
        (
            "training.seqlen=4",
            '--set training.seqlen=4: training.seqlen: unknown key; did you mean "seq_len"?',
        ),
        (
            "training.tensor_parallel_degree=2",
            "--set training.tensor_parallel_degree=2: training.tensor_parallel_degree: unknown "
            'key; did you mean "parallelism.tensor_parallel_degree"?',
        ),
        (
            "job.dump_folder='x'",
            "--set job.dump_folder='x': job.dump_folder: unknown key; a torchtitan section with "
            "no place here; `titan-recipes import FILE` translates it",
        ),
        ("training.steps", "--set training.steps: no key=value; write section.key=value"),
        (
            "training.steps=5\nfoo=3",
            "--set training.steps=5\nfoo=3: training.steps: '5\\nfoo=3' is more than one value; "
            "write a --set for each key",
        ),
        (
            "training.steps=" + "9" * 25,
            f"--set training.steps={'9' * 25}: training.steps: '{'9' * 25}' is not a TOML value "
            "(an integer of more than 64 bits)",
        ),
        ("training.dataset=\udcff", "'--set training.dataset=\\udcff': not UTF-8"),
        ("training.steps=-3", "--set: training.steps: got -3; must be >= 1"),
        ("training.steps=abc", '--set: training.steps: got "abc"; must be an integer'),
        ("training.steps=", '--set: training.steps: got ""; must be an integer'),
        ("compile.enable=yes", '--set: compile.enable: got "yes"; must be true or false'),
        (
            "optimizer.lr=1e-4x",
            "--set optimizer.lr=1e-4x: optimizer.lr: '1e-4x' is not a TOML value (Expected newline "
            "or end of document after a statement (at line 1, column 13))",
        ),
        *(
            (f"{key}={value}", f"--set: {key}: got {value}; must be -1, or {allowed}")
            for key, value, allowed in (
                ("lr_scheduler.total_steps", 0, "an integer >= 1"),
                ("lr_scheduler.total_steps", -2, "an integer >= 1"),
                ("validation.steps", 0, "an integer >= 1"),
                ("training.global_batch_size", 0, "an integer >= 1"),
                ("parallelism.data_parallel_shard_degree", 0, "an integer >= 1"),
                ("lr_scheduler.decay_ratio", -0.5, "a number >= 0 and <= 1"),
                ("lr_scheduler.decay_ratio", 1.5, "a number >= 0 and <= 1"),
            )
        ),
        (
            "lr_scheduler.total_steps=600",
            "--set: lr_scheduler.total_steps: 600 < training.steps 1000: the rest would train at a "
            "rate of 0; leave it out, raise it, or set lr_scheduler.min_lr_factor",
        ),
        *(
            (
                f"{key}='{folder}'",
                f'--set: {key}: got "{folder}"; must be a folder below the run directory; '
                "--outputs says where runs are",
            )
            for key, folder in (
                ("checkpoint.folder", "../x"),
                ("checkpoint.folder", "a/../../x"),
                ("checkpoint.folder", "/tmp/x"),
                ("checkpoint.folder", ""),
                ("checkpoint.folder", "."),
                ("checkpoint.folder", "~/x"),
                ("metrics.save_tb_folder", ".."),
                ("profiling.save_traces_folder", "/x"),
                ("profiling.save_memory_snapshot_folder", "../../x"),
                ("comm.save_traces_folder", "../x"),
            )
        ),
        *(
            (
                f"checkpoint.folder='{name}'",
                f'--set: checkpoint.folder: got "{name}"; the run has a file of its own there',
            )
            for name in ("STOP", "logs/x", "attempts", "job.toml", "metrics.jsonl")
        ),
        (
            "comm.save_traces_file_prefix='../x_'",
            "--set: comm.save_traces_file_prefix: '../x_'; must be the start of a file name",
        ),
        (
            "compile.components=['modle']",
            "--set: compile.components.0: got \"modle\"; use 'model' or 'loss'",
        ),
        (
            "checkpoint.exclude_from_loading=['lr']",
            "--set: checkpoint.exclude_from_loading.0: got \"lr\"; use 'optimizer', "
            "'lr_scheduler', 'dataloader' or 'rng'",
        ),
        ("training.steps='9'", '--set: training.steps: got "9"; must be an integer'),
        ("training.steps=4.5", "--set: training.steps: got 4.5; must be an integer"),
        ("compile.enable=1", "--set: compile.enable: got 1; must be true or false"),
        ("optimizer.lr=nan", "--set: optimizer.lr: got NaN; must be a finite number"),
        (
            "optimizer.name='SGD'",
            "--set: optimizer.name: got \"SGD\"; use 'Adam', 'AdamW' or 'Muon'",
        ),
        (
            "training.dataset='stdlb'",
            '--set: training.dataset: no dataset "stdlb"; did you mean "stdlib"?',
        ),
        (
            "training.dataset='text'",
            '--set: training.dataset_path: not set, for dataset "text"; it needs a file, a '
            "directory or a glob of jsonl, parquet or txt",
        ),
        (
            "profiling={enable_profiling=true,profile_freq=3}",
            "--set: profiling.profile_freq: got 3; must be at least profiler_warmup + "
            "profiler_active = 4",
        ),
        ("optimizer.beta2=1.0", "--set: optimizer.beta2: got 1.0; must be < 1.0"),
        (
            "parallelism.expert_tensor_parallel_degree=2",
            "--set: parallelism.expert_tensor_parallel_degree: 2 is not supported yet; use 1",
        ),
        (
            "training.global_batch_size=12",
            "--set: training.global_batch_size: 12 is not a multiple of local_batch_size 1 * "
            "dp 8 = 8; use 8, or another local batch",
        ),
        (
            "parallelism.data_parallel_shard_degree=4",
            "--set: parallelism.data_parallel_shard_degree: dp_shard(4) * dp_replicate(1) * "
            "cp(1) * tp(1) * pp(1) = 4 != world size 8 (nodes 1 * gpus_per_node 8); set it to -1, "
            "or change plan.nodes or plan.gpus_per_node to give 4",
        ),
        (
            "model.n_kv_heads=5",
            "--set: model.n_kv_heads: 5 does not divide n_heads = 32; use 1, 2, 4, 8, 16 or 32",
        ),
        ("plan.gpu='h10'", '--set: plan.gpu: got "h10"; did you mean "h100"?'),
        (
            "activation_checkpoint.selective_ac_option='x'",
            '--set: activation_checkpoint.selective_ac_option: got "x"; use "op", or a number '
            "n >= 1 for every n-th block",
        ),
    ],
)
def test_mistake_gives_where_what_got_cure(override: str, message: str) -> None:
    assert problems(override) == [message]


@pytest.mark.parametrize(
    ("key", "meant"),
    [
        ("metrics.learning_rte", "optimizer.lr"),
        ("optimizer.learning_rate", "optimizer.lr"),
        ("metrics.lr", "optimizer.lr"),
        ("optimizer.steps", "training.steps"),
        ("validaton.steps", "validation.steps"),
        ("trainng.stps", "training.steps"),
        ("training.freq", "validation.freq"),
        ("training.gc_frq", "gc_freq"),
        ("profiling.enable", "enable_profiling"),
        ("model.rope_scaling.facter", "factor"),
    ],
)
def test_unknown_key_suggests_the_section_that_has_it(key: str, meant: str) -> None:
    said = f'--set {key}=1: {key}: unknown key; did you mean "{meant}"?'
    assert problems(f"{key}=1") == [said]


def test_unknown_key_like_no_other_suggests_none() -> None:
    cure = "remove it, or see `titan-recipes schema` for the keys there are"
    assert problems("metrics.zebra=1") == [
        f"--set metrics.zebra=1: metrics.zebra: unknown key; {cure}"
    ]


@pytest.mark.parametrize(
    ("settings", "decay", "share"),
    [
        (["lr_scheduler.min_lr_factor=0.1"], 500, "0.1"),
        (["lr_scheduler.decay_ratio=0.0"], 0, "1.0"),
    ],
)
def test_training_longer_than_its_schedule_says_at_which_rate(
    settings: list[str], decay: int, share: str
) -> None:
    made = resolved("lr_scheduler.total_steps=600", *settings)
    assert (made.job.derived.decay_steps, made.job.derived.schedule_steps) == (decay, 600)
    assert made.notes == (
        "lr_scheduler.total_steps: steps 601 to 1000 stay at the rate it ends with, "
        f"{share} of the peak",
    )


@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        (
            ["parallelism.tensor_parallel_degree=16"],
            "16 does not divide n_kv_heads = 8; use 1, 2, 4 or 8",
        ),
        (
            ["parallelism.tensor_parallel_degree=3"],
            "dp_replicate(1) * cp(1) * tp(3) * pp(1) = 3 does not divide world size 8",
        ),
        (
            ["parallelism.context_parallel_degree=8", "training.seq_len=8200"],
            "seq_len 8200 is not a multiple of 2 * cp = 16",
        ),
        (["parallelism.pipeline_parallel_degree=64"], "64 stages for n_layers = 32"),
    ],
)
def test_degree_that_cannot_work_shows_its_arithmetic(overrides: list[str], message: str) -> None:
    assert any(message in line for line in problems(*overrides)), problems(*overrides)


def test_all_problems_come_at_once() -> None:
    found = problems("training.global_batch_size=9", "plan.gpu='h1'", "model.n_heads=33")
    assert len(found) == 3


def test_missing_and_mistyped_keys_name_their_file() -> None:
    layers = [Layer("r/recipe.toml", RECIPE), Layer("r/model.toml", {"model": {"dim": 4}})]
    with pytest.raises(ConfigError) as caught:
        resolve(layers, digest="d", bundle="", plan="p")
    lines = [str(problem) for problem in caught.value.problems]
    assert "r/model.toml: model.n_layers: missing; it has no default; write it" in lines
    assert all(line.startswith("r/model.toml: model.") for line in lines)


def test_contradicting_settings_are_refused() -> None:
    train = {"training": {"steps": 1000}, "data": {"sources": [{"dataset": "stdlib"}]}}
    assert problems("training.dataset='c4'", train=train) == [
        "--set: training.dataset: contradicts data.sources; the mixture names its own datasets; "
        "keep one"
    ]
    assert resolved(train=train).job.data.sources[0].dataset == "stdlib"


@pytest.mark.parametrize(
    ("settings", "contradictions"),
    [
        (("activation_checkpoint.mode='memory_budget'",), ["blocks that are not compiled; "]),
        (
            ("activation_checkpoint.mode='memory_budget'", "compile.enable=true"),
            [],
        ),
        (("training.loss_kernel='liger'",), []),
        (
            ("training.loss_kernel='liger'", "parallelism.tensor_parallel_degree=2"),
            ["tensor_parallel_degree > 1; "],
        ),
        (("training.loss_kernel='liger'", "plan.gpu='cpu'"), ['plan.gpu = "cpu"; ']),
    ],
)
def test_kernels_and_budgets_are_refused_where_nothing_would_honour_them(
    settings: tuple[str, ...], contradictions: list[str]
) -> None:
    found = problems(*settings) if contradictions else list(resolved(*settings).dormant)
    key = settings[0].partition("=")[0]
    assert len(found) == len(contradictions)
    for said, what in zip(found, contradictions, strict=True):
        assert said.startswith(f"--set: {key}: contradicts {what}")


def test_dormant_keys_are_legal_and_noted() -> None:
    made = resolved("parallelism.pipeline_parallel_schedule='GPipe'", "checkpoint.enable=false")
    key = "parallelism.pipeline_parallel_schedule"
    assert made.dormant == (f"--set: {key} has no effect: pipeline_parallel_degree is 1",)
    made = resolved("checkpoint.interval=7", "checkpoint.enable=false")
    assert made.dormant == ("--set: checkpoint.interval has no effect: checkpoint.enable is false",)


def test_cluster_hardware_that_cannot_hold_the_plan_is_refused() -> None:
    cluster = Cluster(hardware=Hardware(gpu="a100", gpus_per_node=4))
    assert problems(cluster=cluster) == [
        'x/plans/p.toml: plan.gpu: "h100", but the cluster has a100; choose another plan or --set '
        "plan.gpu",
        "x/plans/p.toml: plan.gpus_per_node: 8 > the cluster's 4 per node; --set "
        "plan.gpus_per_node=4 and more nodes",
    ]
    assert resolved(cluster=Cluster(env={"A": "b"})).job.env == {"A": "b"}


def test_job_is_frozen() -> None:
    job = resolved().job
    with pytest.raises(dataclasses.FrozenInstanceError):
        job.env = {}  # type: ignore[misc]
