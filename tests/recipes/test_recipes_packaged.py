"""The packaged recipes: published parameter counts, plans that resolve, bumped versions."""

import json
import sys
from pathlib import Path

import pytest

from titan_recipes.bundle.bundle import Bundle
from titan_recipes.config.data_root import data_root
from titan_recipes.config.hardware import GPUS
from titan_recipes.config.job import Job
from titan_recipes.config.resolve import resolve

PACKAGED = sorted(p.parent for p in (data_root() / "recipes").glob("*/recipe.toml"))
PLANS = [(path, plan) for path in PACKAGED for plan in Bundle(path).plans()]
DIGESTS = Path(__file__).parent / "digests.json"

PUBLISHED = {
    "llama3_debug": 6_163_712,
    "llama3_1b": 1_235_814_400,
    "llama3_3b": 3_212_749_824,
    "llama3_8b": 8_030_261_248,
    "llama3_70b": 70_553_706_496,
    "llama3_405b": 405_853_388_800,
}


def job_of(path: Path, plan: str) -> Job:
    bundle = Bundle(path)
    resolution = resolve(bundle.layers(plan), digest=bundle.digest(), bundle="", plan=plan)
    assert resolution.notes == ()
    return resolution.job


def test_every_recipe_has_its_published_parameter_count():
    counts = {path.name: job_of(path, "").derived.num_params for path in PACKAGED}
    assert counts == PUBLISHED


@pytest.mark.parametrize(("path", "plan"), PLANS, ids=[f"{p.name}-{n}" for p, n in PLANS])
def test_every_plan_resolves_without_notes_and_is_named_after_its_hardware(path: Path, plan: str):
    job = job_of(path, plan)
    ranks = job.plan.nodes * job.plan.gpus_per_node
    gpu = "cpu" if job.plan.gpu == "any" else job.plan.gpu
    separator = "" if gpu == "cpu" else "x"
    assert plan == f"{gpu}{separator}{ranks}"
    assert gpu in (*GPUS, "cpu")
    assert job.derived.dp_shard == ranks
    assert job.plan.summary


def test_every_plan_of_a_recipe_trains_on_the_same_batch():
    batches: dict[str, set[int]] = {}
    for path, plan in PLANS:
        batches.setdefault(path.name, set()).add(job_of(path, plan).derived.tokens_per_step)
    # Its H100 plan is the published run's first stage, with a batch of its own.
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


@pytest.mark.parametrize("path", PACKAGED, ids=[path.name for path in PACKAGED])
def test_readme_names_every_plan(path: Path):
    readme = (path / "README.md").read_text(encoding="utf-8")
    assert readme.startswith(f"# {path.name}\n")
    assert [plan for plan in Bundle(path).plans() if f"`{plan}`" not in readme] == []


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
