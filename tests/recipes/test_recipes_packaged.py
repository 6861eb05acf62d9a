"""The packaged recipes: published parameter counts, plans that resolve, bumped versions."""

import functools
import json
import sys
import tomllib
from pathlib import Path

import pytest

from titan_recipes.bundle.bundle import Bundle
from titan_recipes.config.data_root import data_root
from titan_recipes.config.flavor import num_active_params
from titan_recipes.config.hardware import GPUS
from titan_recipes.config.job import Job
from titan_recipes.config.resolve import resolve
from titan_recipes.config.stages import pipeline_line

PACKAGED = sorted(p.parent for p in (data_root() / "recipes").glob("*/recipe.toml"))
PLANS = [(path, plan) for path in PACKAGED for plan in Bundle(path).plans()]
CHECKOUT = Path(__file__).resolve().parents[2]
DIGESTS = Path(__file__).parent / "digests.json"

PUBLISHED = {
    "codellama_7b": 6_738_546_688,
    "codellama_34b": 33_743_970_304,
    "deepseek_v3_16b": 15_706_484_224,
    "deepseek_v3_671b": 671_026_404_352,
    "gemma_2b": 2_506_172_416,
    "gemma_7b": 8_537_680_896,
    "gemma2_9b": 9_241_705_984,
    "gemma2_27b": 27_227_128_320,
    "gemma3_1b": 999_885_952,
    "gemma3_4b": 3_880_263_168,
    "gpt_oss_20b": 20_914_757_184,
    "llama2_7b": 6_738_415_616,
    "llama2_13b": 13_015_864_320,
    "llama2_70b": 68_976_648_192,
    "llama3_debug": 6_163_712,
    "llama3_1b": 1_235_814_400,
    "llama3_3b": 3_212_749_824,
    "llama3_8b": 8_030_261_248,
    "llama3_8b_lora": 8_030_261_248,
    "llama3_8b_sft": 8_030_261_248,
    "llama3_70b": 70_553_706_496,
    "llama3_405b": 405_853_388_800,
    "mixtral_8x7b": 46_702_792_704,
    "qwen3_0_6b": 596_049_920,
    "qwen3_1_7b": 1_720_574_976,
    "qwen3_4b": 4_022_468_096,
    "qwen3_8b": 8_190_735_360,
    "qwen3_14b": 14_768_307_200,
    "qwen3_32b": 32_762_123_264,
    "qwen3_30b_a3b": 30_532_122_624,
}

ACTIVE = {
    "deepseek_v3_16b": 2_661_150_208,
    "deepseek_v3_671b": 37_552_282_624,
    "gpt_oss_20b": 4_187_440_704,
    "mixtral_8x7b": 12_879_925_248,
    "qwen3_30b_a3b": 3_353_032_704,
}
"""Parameters that one token meets, embedding included, of the recipes with experts."""


@functools.cache
def job_of(path: Path, plan: str) -> Job:
    bundle = Bundle(path)
    resolution = resolve(bundle.layers(plan), digest=bundle.digest(), bundle="", plan=plan)
    line = pipeline_line(resolution.job)
    assert resolution.notes == ((line,) if line else ())
    assert resolution.dormant == ()
    return resolution.job


def test_every_recipe_has_its_published_parameter_count():
    counts = {path.name: job_of(path, "").derived.num_params for path in PACKAGED}
    assert counts == PUBLISHED


@pytest.mark.parametrize("path", PACKAGED, ids=[path.name for path in PACKAGED])
def test_model_toml_begins_with_its_parameter_count(path: Path):
    first = (path / "model.toml").read_text(encoding="utf-8").splitlines()[0]
    expected = f": {PUBLISHED[path.name]:,} parameters"
    active = num_active_params(job_of(path, "").model)
    assert active == ACTIVE.get(path.name, PUBLISHED[path.name])
    if path.name in ACTIVE:
        expected += f", of which a token meets {active:,}"
    assert first.startswith("# ")
    assert first.endswith(f"{expected}.")


@pytest.mark.parametrize(("path", "plan"), PLANS, ids=[f"{p.name}-{n}" for p, n in PLANS])
def test_every_plan_resolves_without_notes_and_is_named_after_its_hardware(path: Path, plan: str):
    job = job_of(path, plan)
    ranks = job.plan.nodes * job.plan.gpus_per_node
    gpu = "cpu" if job.plan.gpu == "any" else job.plan.gpu
    separator = "" if gpu == "cpu" else "x"
    # A second plan for the same hardware is told apart by what it splits.
    degrees = {axis: getattr(job.derived, axis) for axis in ("tp", "cp", "pp", "ep")}
    split = "".join(f"_{axis}{degree}" for axis, degree in degrees.items() if degree > 1)
    hardware = f"{gpu}{separator}{ranks}"
    assert plan in (hardware, hardware + split)
    assert gpu in (*GPUS, "cpu")
    assert job.derived.dp_replicate == 1
    assert job.derived.dp_shard * degrees["tp"] * degrees["cp"] * degrees["pp"] == ranks
    assert job.plan.summary


@pytest.mark.parametrize(("path", "plan"), PLANS, ids=[f"{p.name}-{n}" for p, n in PLANS])
def test_every_plan_leaves_room_beside_parameters_gradients_and_optimizer(path: Path, plan: str):
    job = job_of(path, plan)
    if job.plan.gpu == "any":
        return
    # fp32 master weight, gradient and two moments, sharded over all ranks.
    states_gib = 16 * job.derived.num_params / job.derived.world_size / 2**30
    # The logits, their softmax and gradient of one microbatch, in bf16 and fp32.
    sequences = job.training.local_batch_size
    if job.derived.pp > 1:
        sequences = job.parallelism.pipeline_parallel_microbatch_size
    tokens = sequences * job.training.seq_len // (job.derived.tp * job.derived.cp)
    logits_gib = 12 * tokens * job.model.vocab_size / 2**30
    assert states_gib + logits_gib <= 0.7 * GPUS[job.plan.gpu].memory_gib


def test_every_plan_of_a_recipe_trains_on_the_same_batch():
    batches: dict[str, set[int]] = {}
    for path, plan in PLANS:
        batches.setdefault(path.name, set()).add(job_of(path, plan).derived.tokens_per_step)
    # One of its H100 plans is the published run's first stage, with a batch of its own.
    assert len(batches.pop("llama3_405b")) == 2
    assert {name: len(tokens) for name, tokens in batches.items()} == dict.fromkeys(batches, 1)


@pytest.mark.parametrize(
    ("name", "scaling", "tied"),
    [
        ("llama3_1b", 32.0, True),
        ("llama3_3b", 32.0, True),
        ("llama3_8b", 8.0, False),
        ("llama3_70b", 8.0, False),
        ("llama3_405b", 8.0, False),
    ],
)
def test_rope_and_embeddings_are_as_published(name: str, scaling: float, tied: bool):
    model = job_of(data_root() / "recipes" / name, "").model
    assert model.rope_scaling is not None
    assert model.rope_scaling.factor == scaling
    assert model.rope_scaling.original_max_seq_len == 8192
    assert (model.rope_scaling.low_freq_factor, model.rope_scaling.high_freq_factor) == (1.0, 4.0)
    assert model.tie_embeddings is tied
    assert model.rope_theta == 500_000.0


def test_405b_first_stage_has_the_published_batch():
    first = job_of(data_root() / "recipes" / "llama3_405b", "h100x512")
    assert first.derived.tokens_per_step == 1024 * 4096
    full = job_of(data_root() / "recipes" / "llama3_405b", "h200x512")
    assert full.derived.tokens_per_step == 2048 * 8192
    assert (full.optimizer.lr, full.derived.warmup_steps) == (8e-5, 8000)


def test_deepseek_v3_has_the_published_schedule():
    job = job_of(data_root() / "recipes" / "deepseek_v3_671b", "h100x2048")
    assert job.derived.tokens_per_step == 15360 * 4096
    warmup, decay, steps = (
        job.derived.warmup_steps, job.derived.decay_steps, job.training.steps,
    )  # fmt: skip
    assert (job.optimizer.lr, warmup) == (2.2e-4, 2000)
    tokens = [round(n * job.derived.tokens_per_step / 1e12, 1) for n in (steps - decay, steps)]
    assert tokens == [10.0, 14.3]
    assert (job.derived.pp, job.derived.ep) == (16, 64)


@pytest.mark.parametrize("path", PACKAGED, ids=[path.name for path in PACKAGED])
def test_readme_names_every_plan(path: Path):
    readme = (path / "README.md").read_text(encoding="utf-8")
    assert readme.startswith(f"# {path.name}\n")
    assert [plan for plan in Bundle(path).plans() if f"`{plan}`" not in readme] == []
    assert f"{PUBLISHED[path.name]:,}" in readme


@pytest.mark.parametrize("path", PACKAGED, ids=[path.name for path in PACKAGED])
def test_recipe_says_how_to_get_the_tokenizer_it_does_not_ship(path: Path):
    assets = job_of(path, "").assets
    if (path / assets.tokenizer).is_file():
        return
    assert assets.tokenizer.startswith("~/.cache/titan-recipes/")
    assert assets.hf_repo.count("/") == 1
    readme = (path / "README.md").read_text(encoding="utf-8")
    fetch = (f"titan-recipes assets pull {path.name}", f"hf download {assets.hf_repo} ")
    assert any(command in readme for command in fetch)


def test_docs_list_every_recipe_with_its_plans():
    lines = (CHECKOUT / "docs" / "recipes.md").read_text(encoding="utf-8").splitlines()
    listed = [line for line in lines if line.startswith("| `")]
    expected = {
        f"| `{path.name}` | {PUBLISHED[path.name]:,} | {', '.join(Bundle(path).plans())} |"
        for path in PACKAGED
    }
    assert {"|".join(line.split("|")[:4]) + "|" for line in listed} == expected
    assert len(listed) == len(PACKAGED)


def test_what_ships_is_listed_by_name():
    project = tomllib.loads((CHECKOUT / "pyproject.toml").read_text(encoding="utf-8"))
    excluded = project["tool"]["hatch"]["build"]["exclude"]
    assert excluded[0] == "/recipes/*"
    assert sorted(excluded[1:]) == sorted(f"!/recipes/{path.name}" for path in PACKAGED)


def current_digests() -> dict[str, str]:
    return {f"{path.name}@{Bundle(path).version}": Bundle(path).digest() for path in PACKAGED}


def test_a_changed_recipe_has_a_new_version():
    locked = json.loads(DIGESTS.read_text())
    current = current_digests()
    changed = [name for name in current if current[name] != locked.get(name, current[name])]
    unlisted = [name for name in current if name not in locked]
    assert changed == [], (
        "these recipes changed but not their version: raise recipe.version in recipe.toml, then "
        f"run `python {Path(__file__).name}` in {DIGESTS.parent.name}/"
    )
    assert unlisted == [], f"new versions: run `python {Path(__file__).name}` to list their digests"


if __name__ == "__main__":
    # Lists the digests of versions that are new; one that is listed never changes.
    locked = current_digests() | json.loads(DIGESTS.read_text() if DIGESTS.exists() else "{}")
    DIGESTS.write_text(json.dumps(dict(sorted(locked.items())), indent=2) + "\n")
    sys.exit(0)
