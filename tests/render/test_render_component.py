"""component.py: what torchx makes of it, hostile values, and templates of a bundle's own."""

import sys
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import yaml
from manifests import pods, schema_faults
from past_runs import debug_job
from torchx.runner import Runner
from torchx.schedulers.kubernetes_scheduler import create_scheduler
from torchx.specs import AppDef, macros

from titan_recipes.config.job import decode
from titan_recipes.config.site import Container
from titan_recipes.errors import BundleError
from titan_recipes.launch.node_options import parse_options
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


def test_component_in_an_image_runs_the_profiles_python() -> None:
    job = debug_job()
    container = Container(image="img:1", python="/opt/venv/bin/python")
    job = replace(job, site=replace(job.site, container=container))
    train: Callable[..., AppDef] = component(render(job)["component.py"])["train"]
    (role,) = train(image="img:1").roles
    assert role.entrypoint == "/opt/venv/bin/python"
    (role,) = train().roles
    assert role.entrypoint == sys.executable


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


def test_component_on_torchxs_own_kubernetes_is_a_job_whose_nodes_meet(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """torchx makes a Volcano job with a task for each node; no server is asked for a dry run."""
    monkeypatch.setenv("KUBECONFIG", str(tmp_path / "none"))
    job = replace(debug_job(), env={"NCCL_IB_HCA": "mlx5_0,mlx5_1"})
    job = replace(job, plan=replace(job.plan, gpu="h100", nodes=3, gpus_per_node=8))
    file = tmp_path / "component.py"
    file.write_text(render(job, name="run_1", outputs="/outputs")["component.py"])
    mounts = "type=volume,src=runs,dst=/outputs,type=bind,src=/data,dst=/data,readonly"
    args = ["--image", "img:1", "--mounts", mounts, "--cpu", "8", "--memory_mb", "65536"]
    runner = Runner("torchx", {"kubernetes": create_scheduler})
    info = runner.dryrun_component(
        f"{file}:train", args, "kubernetes", {"queue": "team"}, workspace=""
    )
    document = yaml.safe_load(str(info.request))
    assert schema_faults(document) == []
    tasks = document["spec"]["tasks"]
    assert [task["name"] for task in tasks] == ["trainer-0", "trainer-1", "trainer-2"]
    assert (document["spec"]["queue"], {*document["spec"]["plugins"]}) == ("team", {"svc", "env"})

    # What Volcano's svc plugin sets in every pod: the names of a task's pods.
    name = document["metadata"]["name"]
    first = f"{name}-trainer-0-0.{name}"
    monkeypatch.setenv("VC_TRAINER_0_HOSTS", first)
    for rank, pod in enumerate(pods(document)):
        (trainer,) = pod["spec"]["containers"]
        env = {entry["name"]: entry["value"] for entry in trainer["env"]}
        assert (trainer["image"], trainer["command"][0]) == ("img:1", "python")
        assert env["NCCL_IB_HCA"] == "mlx5_0,mlx5_1"
        assert env["TORCHX_JOB_ID"] == f"kubernetes://torchx/{name}"
        with monkeypatch.context() as its_own:
            for key, value in env.items():
                its_own.setenv(key, value)
            options = parse_options(trainer["command"][4:])
        assert decode(options.job) == job
        assert (options.node_rank, options.nodes, options.run_id) == (rank, 3, name)
        assert options.master_addr == ("localhost" if rank == 0 else first)
        assert options.run_dir == Path("/outputs/run_1")
        assert trainer["resources"]["limits"] == {
            "nvidia.com/gpu": "8",
            "cpu": "8000m",
            "memory": "65536M",
        }
        found = {mount["mountPath"]: mount for mount in trainer["volumeMounts"]}
        assert {"/dev/shm", "/outputs", "/data"} == {*found}
        sources = {volume.pop("name"): volume for volume in pod["spec"]["volumes"]}
        assert sources[found["/outputs"]["name"]] == {
            "persistentVolumeClaim": {"claimName": "runs"}
        }
        assert sources[found["/data"]["name"]] == {"hostPath": {"path": "/data"}}
        assert (found["/outputs"]["readOnly"], found["/data"]["readOnly"]) == (False, True)


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
