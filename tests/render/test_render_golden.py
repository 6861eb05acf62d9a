"""The rendered text of every packaged recipe and plan, compared with tests/golden/.

For the plans in WHOLE the files are there as they are. For the others there is what each job holds
that the schema's defaults don't, and their component is WHOLE's with other facts in it: the same
guarantee in a tenth of the text.
"""

import dataclasses
import os
import re
from pathlib import Path
from typing import Any

import pytest
import tomli_w
from torchx.specs.file_linter import validate

from titan_recipes.bundle.bundle import Bundle
from titan_recipes.config.data_root import data_root
from titan_recipes.config.job import Job, decode, to_toml
from titan_recipes.config.resolve import resolve
from titan_recipes.launch.submit import preview

GOLDEN = Path(__file__).parent.parent / "golden"
PLANS = sorted((data_root() / "recipes").glob("*/plans/*.toml"))
assert PLANS, "no packaged plans"
WHOLE = ("llama3_debug/cpu1", "llama3_debug/cpu2", "llama3_8b/h100x8")
LIKENESS = "llama3_8b/h100x8"
JOB_BLOCK = re.compile(r"^JOB = \(\n(.*?)^\)\n", re.MULTILINE | re.DOTALL)
UPDATE = "UPDATE_GOLDEN=1 pytest tests/render/test_render_golden.py"


def name_of(plan: Path) -> str:
    return f"{plan.parent.parent.name}/{plan.stem}"


WHOLE_PLANS = [plan for plan in PLANS if name_of(plan) in WHOLE]
OTHER_PLANS = [plan for plan in PLANS if name_of(plan) not in WHOLE]


def packaged_job(plan: Path) -> Job:
    bundle = Bundle(plan.parent.parent)
    layers = bundle.layers(plan.stem)
    return resolve(layers, digest=bundle.digest(), bundle="", plan=plan.stem).job


def split(component: str) -> tuple[str, str]:
    """(the text without the encoded job, the job): zlib's bytes may differ between versions."""
    (lines,) = JOB_BLOCK.findall(component)
    encoded = "".join(line.strip().strip("'\"") for line in lines.splitlines())
    return JOB_BLOCK.sub("JOB = ...\n", component), to_toml(decode(encoded))


def explicit(value: Any) -> dict[str, Any]:
    """What a section holds that its defaults don't, and so its tables; keys without one always."""
    found: dict[str, Any] = {}
    for field in dataclasses.fields(value):
        given: Any = getattr(value, field.name)
        default = field.default
        if field.default_factory is not dataclasses.MISSING:
            default = field.default_factory()
        if given != default:
            found[field.name] = explicit(given) if dataclasses.is_dataclass(given) else given
    return found


def facts(job: Job) -> list[str]:
    """What in a component differs from job to job, as it is written there."""
    return [
        f'"{job.recipe_id}, plan {job.origin.plan}"',
        f'"{job.origin.digest}"',
        f"RECIPE = '{job.recipe.name}'",
        f"gpu: int = {job.plan.gpus_per_node},",
        f'"--nodes",\n        "{job.plan.nodes}",',
        f"num_replicas={job.plan.nodes},",
    ]


@pytest.mark.parametrize("plan", WHOLE_PLANS, ids=name_of)
def test_rendered_files_equal_the_golden_ones(plan: Path) -> None:
    files = preview(packaged_job(plan), outputs="outputs")
    folder = GOLDEN / name_of(plan)
    if os.environ.get("UPDATE_GOLDEN"):
        folder.mkdir(parents=True, exist_ok=True)
        for name, text in files.items():
            (folder / name).write_text(text)
    golden = {path.name: path.read_text() for path in folder.glob("*")}
    assert golden.keys() == files.keys(), f"{folder}: write it with {UPDATE}"
    text, job = split(files["component.py"])
    golden_text, golden_job = split(golden["component.py"])
    assert files["job.toml"] == golden["job.toml"], f"if that is meant: {UPDATE}"
    assert text == golden_text, f"if that is meant: {UPDATE}"
    assert job == golden_job == files["job.toml"], f"if that is meant: {UPDATE}"
    assert validate(str(folder / "component.py"), "train") == []


@pytest.mark.parametrize("plan", OTHER_PLANS, ids=name_of)
def test_rendered_job_and_component_equal_what_is_golden_of_them(
    plan: Path, tmp_path: Path
) -> None:
    job = packaged_job(plan)
    files = preview(job, outputs="outputs")
    text, rendered_job = split(files["component.py"])

    (likeness,) = (path for path in PLANS if name_of(path) == LIKENESS)
    expected, _ = split((GOLDEN / LIKENESS / "component.py").read_text())
    for theirs, ours in zip(facts(packaged_job(likeness)), facts(job), strict=True):
        assert expected.count(theirs) == 1
        expected = expected.replace(theirs, ours)
    assert files.keys() == {"component.py", "job.toml"}
    assert text == expected
    assert rendered_job == files["job.toml"] == to_toml(job)
    (tmp_path / "component.py").write_text(files["component.py"])
    assert validate(str(tmp_path / "component.py"), "train") == []

    golden = GOLDEN / f"{name_of(plan)}.toml"
    differences = tomli_w.dumps(explicit(job))
    if os.environ.get("UPDATE_GOLDEN"):
        golden.parent.mkdir(exist_ok=True)
        golden.write_text(differences)
    assert golden.is_file(), f"write it with {UPDATE}"
    assert differences == golden.read_text(), f"if that is meant: {UPDATE}"


def test_golden_files_are_all_of_a_plan_that_is_there() -> None:
    files = {path.relative_to(GOLDEN).as_posix() for path in GOLDEN.rglob("*") if path.is_file()}
    others = ("sbatch/", "kubernetes/")  # test_render_sbatch.py's, test_render_kubernetes.py's
    files = {file for file in files if not file.startswith(others)}
    whole = {f"{name}/{file}" for name in WHOLE for file in ("component.py", "job.toml")}
    expected = whole | {f"{name_of(plan)}.toml" for plan in OTHER_PLANS}
    assert files == expected, f"remove what is too much; {UPDATE} adds what is missing"
