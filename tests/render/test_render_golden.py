"""The rendered text of every packaged recipe and plan, compared whole with tests/golden/."""

import os
import re
from pathlib import Path

import pytest
from torchx.specs.file_linter import validate

from titan_recipes.bundle.bundle import Bundle
from titan_recipes.config.data_root import data_root
from titan_recipes.config.job import Job, decode, to_toml
from titan_recipes.config.resolve import resolve
from titan_recipes.launch.submit import preview

GOLDEN = Path(__file__).parent.parent / "golden"
PLANS = sorted((data_root() / "recipes").glob("*/plans/*.toml"))
assert PLANS, "no packaged plans"
JOB_BLOCK = re.compile(r"^JOB = \(\n(.*?)^\)\n", re.MULTILINE | re.DOTALL)
UPDATE = "UPDATE_GOLDEN=1 pytest tests/render/test_render_golden.py"


def packaged_job(plan: Path) -> Job:
    bundle = Bundle(plan.parent.parent)
    layers = bundle.layers(plan.stem)
    return resolve(layers, digest=bundle.digest(), bundle="", plan=plan.stem).job


def split(component: str) -> tuple[str, str]:
    """(the text without the encoded job, the job): zlib's bytes may differ between versions."""
    (lines,) = JOB_BLOCK.findall(component)
    encoded = "".join(line.strip().strip("'\"") for line in lines.splitlines())
    return JOB_BLOCK.sub("JOB = ...\n", component), to_toml(decode(encoded))


@pytest.mark.parametrize("plan", PLANS, ids=lambda p: f"{p.parent.parent.name}-{p.stem}")
def test_rendered_files_equal_the_golden_ones(plan: Path) -> None:
    files = preview(packaged_job(plan), outputs="outputs")
    folder = GOLDEN / plan.parent.parent.name / plan.stem
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


def test_golden_files_are_all_of_a_plan_that_is_there() -> None:
    plans = {(plan.parent.parent.name, plan.stem) for plan in PLANS}
    golden = {(path.parent.parent.name, path.parent.name) for path in GOLDEN.glob("*/*/*")}
    assert golden == plans, f"remove what is too much; {UPDATE} adds what is missing"
