"""component.py: what torchx makes of it, hostile values, and templates of a bundle's own."""

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from past_runs import debug_job
from torchx.specs import AppDef, macros

from titan_recipes.config.job import decode
from titan_recipes.errors import BundleError
from titan_recipes.render import render

HOSTILE = "$HOME `id` ${app_id} $$ \"'\\ \n\u00e9 {{ 7 * 7 }} #"


def component(text: str) -> dict[str, Any]:
    """The component's names, as torchx gets them: it executes the file."""
    names: dict[str, Any] = {}
    exec(text, names)
    return names


def test_component_asks_for_one_node_entry_point_per_node_that_carries_the_job() -> None:
    job = debug_job()
    names = component(render(job)["component.py"])
    app: AppDef = names["train"](name="run")
    (role,) = app.roles
    assert (app.name, role.name, role.num_replicas, role.image) == ("run", "trainer", 1, "")
    assert role.args[:3] == ["-P", "-m", "titan_recipes.launch.node"]
    options = dict(zip(role.args[3::2], role.args[4::2], strict=True))
    assert decode(options.pop("--job")) == job
    assert options == {
        "--run-dir": "outputs/run",
        "--nodes": "1",
        "--node-rank": macros.replica_id,
        "--master-addr-env": macros.rank0_env,
        "--run-id": macros.app_id,
    }


@pytest.mark.parametrize(("gpu", "gpus"), [("cpu", 0), ("any", 0), ("h100", 2)])
def test_component_requests_gpus_only_where_the_plan_names_them(gpu: str, gpus: int) -> None:
    job = debug_job()
    job = replace(job, plan=replace(job.plan, gpu=gpu, nodes=3))
    train: Callable[..., AppDef] = component(render(job)["component.py"])["train"]
    (role,) = train().roles
    assert (role.resource.gpu, role.num_replicas) == (gpus, 3)
    (role,) = train(gpu=5, image="img:1").roles
    assert (role.resource.gpu, role.image, role.entrypoint) == (5, "img:1", "python")


def test_component_when_values_are_hostile_passes_them_on_as_they_are() -> None:
    job = replace(debug_job(), env={"HOSTILE": HOSTILE})
    text = render(job, name="run", outputs=f"/{HOSTILE}", image=HOSTILE)["component.py"]
    (role,) = component(text)["train"](env={"TOO": HOSTILE}).roles
    role = macros.Values(img_root="i", app_id="a", replica_id="0", rank0_env="R").apply(role)
    assert role.env == {"HOSTILE": HOSTILE, "TOO": HOSTILE}
    assert role.image == HOSTILE
    assert role.args[role.args.index("--run-dir") + 1] == f"/{HOSTILE}/run"


def test_component_when_the_recipe_is_hostile_stays_a_comment() -> None:
    job = debug_job()
    job = replace(job, recipe=replace(job.recipe, name="x\nraise SystemExit", version="1\n2"))
    assert component(render(job)["component.py"])["RECIPE"] == "x\nraise SystemExit"


def test_render_when_the_bundle_has_its_own_template_takes_it(tmp_path: Path) -> None:
    own = tmp_path / "component.py.j2"
    own.write_text("# {{ recipe | sh }} {{ nodes | tojson }}")
    assert render(debug_job(), search_path=[tmp_path]) == {"component.py": "# llama3_debug 1"}
    own.write_text("def train(:")
    with pytest.raises(BundleError, match=r"j2, from .*not Python: invalid syntax"):
        render(debug_job(), search_path=[tmp_path])
    own.write_text("{{ 1 / 0 }}")
    with pytest.raises(BundleError, match="division by zero"):
        render(debug_job(), search_path=[tmp_path])
    own.write_text("{{ no_such_value }}")
    with pytest.raises(BundleError, match=r"component\.py\.j2, from .*no_such_value"):
        render(debug_job(), search_path=[tmp_path])
    own.write_text("{{ recipe.__class__.__mro__ }}")
    with pytest.raises(BundleError, match="unsafe"):
        render(debug_job(), search_path=[tmp_path])
