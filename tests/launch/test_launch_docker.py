"""What `--scheduler docker` asks the engine for; tests/docker runs it. Here no engine answers."""

import os
import shlex
import subprocess
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from past_runs import attempt, commit_checkpoint, debug_job, make_run, running, stopped
from torchx.runner import Runner

from titan_recipes.config.hardware import NO_GPU
from titan_recipes.config.job import Job
from titan_recipes.config.site import Container, Site
from titan_recipes.errors import ConfigError, LaunchError
from titan_recipes.launch.control import resume
from titan_recipes.launch.docker_inputs import read_folders, with_homes
from titan_recipes.launch.docker_request import (
    ContainerRequest,
    Mount,
    container_request,
    docker_files,
    image_of,
    with_gpus,
)
from titan_recipes.launch.image import DEFAULT_IMAGE
from titan_recipes.launch.record import write_record
from titan_recipes.launch.runs import open_run
from titan_recipes.launch.state import RunState, run_status
from titan_recipes.launch.submit import launch, preview
from titan_recipes.launch.titan_docker import Request, create_scheduler, secret_values
from titan_recipes.render import render

NOWHERE = "unix:///no/engine/here.sock"


@pytest.fixture(autouse=True)
def _no_engine(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("DOCKER_HOST", NOWHERE)
    monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)


def asked(job: Job, run_dir: str = "/o/run", **more: Any) -> ContainerRequest:
    return container_request(job, Path(run_dir), image="i:1", working_dir="/w", **more)


def sited(job: Job, **site: Any) -> Job:
    return replace(job, site=Site(**site))


def gpu_job(gpus: int = 4) -> Job:
    job = debug_job()
    return replace(job, plan=replace(job.plan, gpu="h100", gpus_per_node=gpus))


def mounted(request: ContainerRequest) -> list[str]:
    return [str(mount).removeprefix("type=bind,") for mount in request.mounts]


# --- the request ----------------------------------------------------------------------------------


def test_container_is_the_user_s_and_has_no_privileges(tmp_path: Path) -> None:
    words = shlex.split(docker_files(debug_job(), str(tmp_path / "run"))["docker.sh"])
    user = words[words.index("--user") + 1]
    assert user == f"{os.getuid()}:{os.getgid()}"
    assert words[words.index("--cap-drop") + 1] == "ALL"
    assert words[words.index("--security-opt") + 1] == "no-new-privileges"
    assert not {"--privileged", "--rm", "--restart", "--init", "--gpus", "--ulimit"} & {*words}
    assert words[words.index("--shm-size") + 1] == "16g"
    assert DEFAULT_IMAGE in words


def test_stop_timeout_leaves_the_time_to_save() -> None:
    assert asked(debug_job("fault_tolerance.grace_seconds=120")).stop_seconds == 150


def test_run_directory_and_cache_are_seen_at_their_own_paths(session_cache: Path) -> None:
    request = asked(debug_job())
    cache = f"source={session_cache},target={session_cache}"
    assert mounted(request) == [cache, "source=/o/run,target=/o/run"]
    assert request.env["TITAN_RECIPES_CACHE"] == str(session_cache)
    assert "TORCHINDUCTOR_CACHE_DIR" not in request.env
    compiled = asked(debug_job("compile.enable=true")).env["TORCHINDUCTOR_CACHE_DIR"]
    assert Path(compiled).parent == session_cache
    assert Path(compiled).name.startswith("compile-")


def test_profile_s_mounts_and_python_are_taken() -> None:
    container = Container(image="i:1", python="/opt/python")
    site = {"/d": "/data:ro", "/o/run": "/o/run"}
    request = asked(sited(debug_job(), container=container, mounts=site))
    assert mounted(request)[:2] == [
        "source=/d,target=/data,readonly",
        "source=/o/run,target=/o/run",
    ]
    assert len(request.mounts) == 3
    assert request.command[:4] == ("/opt/python", "-P", "-m", "titan_recipes.launch.node")
    assert asked(debug_job(), resumed=True).command[-1] == "--resumed"


def test_gpus_of_the_plan_are_asked_for_with_the_limits_they_want(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    first = asked(gpu_job())
    assert (first.num_gpus, first.gpu_ids, first.raises_limits) == (4, (), True)
    assert "  --gpus 4 \\\n" in str(first)
    assert "  --ulimit memlock=-1 --ulimit stack=67108864 \\\n" in str(first)
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "4, 5,6,7")
    chosen = with_gpus(asked(debug_job()), 2)
    assert chosen.gpu_ids == ("4", "5")
    assert shlex.split(str(chosen)).count('"device=4,5"') == 1
    assert asked(debug_job()).num_gpus == 0


def test_two_runs_of_one_name_have_containers_of_two_names() -> None:
    names = {asked(debug_job(), f"/{folder}/run").name for folder in ("a", "b")}
    assert len(names) == 2
    assert all(name.startswith("run-") and len(name) == 12 for name in names)
    longest = asked(debug_job(), f"/o/{'r' * 54}-.-------")
    assert longest.hostname == "r" * 54


@pytest.mark.parametrize(
    "hostile",
    ["a b", "$(touch x)", "'", '"', "a,b", 'a,"b', "`id`", "\\", "*", "ü", "a;b", "--env"],
)
def test_hostile_strings_reach_docker_unchanged(
    tmp_path: Path, hostile: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    fake = tmp_path / "bin/docker"
    fake.parent.mkdir()
    fake.write_text('#!/bin/sh\nprintf "%s\\0" "$@"\n')
    fake.chmod(0o755)
    monkeypatch.setenv("PATH", f"{fake.parent}:{os.environ['PATH']}")
    job = replace(debug_job(), env={"V": hostile})
    script = str(asked(job, f"/o/{hostile}/run", resumed=True))
    told = subprocess.run(["sh", "-c", script], capture_output=True, check=True).stdout
    words = [word.decode() for word in told.split(b"\0")[:-1]]
    assert f"V={hostile}" in words
    assert words[-6:-3] == ["titan_recipes.launch.node", "--run-dir", f"/o/{hostile}/run"]
    assert str(Mount(source=f"/o/{hostile}/run", target=f"/o/{hostile}/run")) in words


def test_mount_with_commas_is_one_field_of_docker_s_csv() -> None:
    assert str(Mount(source="/a,b", target="/c")) == 'type=bind,"source=/a,b",target=/c'
    mount = Mount(source='/a,"b', target="/c", read_only=True)
    assert str(mount) == 'type=bind,"source=/a,""b",target=/c,readonly'


@pytest.mark.parametrize(
    ("container", "image"),
    [
        (Container(), DEFAULT_IMAGE),
        (Container(image="mine:1"), "mine:1"),
        (Container(runtime="pyxis", image="/images/x.sqsh"), DEFAULT_IMAGE),
    ],
)
def test_image_is_the_profile_s_unless_it_is_another_runtime_s(
    container: Container, image: str
) -> None:
    assert image_of(sited(debug_job(), container=container)) == image


# --- what the job reads ---------------------------------------------------------------------------


def test_packaged_tokenizer_is_the_image_s_own_and_named_text_is_mounted(tmp_path: Path) -> None:
    assert read_folders(debug_job()) == []
    text = tmp_path / "text.jsonl"
    job = debug_job("training.dataset='text'", f"training.dataset_path='{text}'")
    assert read_folders(job) == [text]
    assert f"source={text},target={text},readonly" in mounted(asked(job))
    seen = sited(job, mounts={"/elsewhere": str(tmp_path)})
    assert str(text) not in " ".join(mounted(asked(seen)))


def test_relative_paths_start_at_the_bundle_or_where_the_run_was_launched(tmp_path: Path) -> None:
    job = debug_job("training.dataset='text'", "training.dataset_path='text/*.txt'")
    here = Path.cwd()
    assert read_folders(job) == [here / "text"]
    (tmp_path / "text").mkdir()
    (tmp_path / "text/a.txt").touch()
    bundled = replace(job, origin=replace(job.origin, bundle=str(tmp_path)))
    assert read_folders(bundled) == [tmp_path]  # the tokenizer's folder, which holds the text
    initial = debug_job("checkpoint.initial_load_path='../other/run'")
    assert read_folders(initial) == [here.parent / "other/run"]


def test_links_of_a_hub_cache_lead_somewhere_inside(tmp_path: Path) -> None:
    blobs, snapshot = tmp_path / "blobs", tmp_path / "snapshots/abc"
    blobs.mkdir()
    snapshot.mkdir(parents=True)
    (blobs / "1234").touch()
    (snapshot / "tokenizer.json").symlink_to("../../blobs/1234")
    job = debug_job(f"assets.tokenizer='{snapshot}/tokenizer.json'")
    assert read_folders(job) == [snapshot, blobs]


def test_home_is_written_out_for_a_container_that_has_another(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setenv("HOME", "/home/me")
    job = debug_job("training.dataset='text'", "training.dataset_path='~/text'")
    job = with_homes(replace(job, data=replace(job.data, cache_dir="~/cache")))
    assert (job.training.dataset_path, job.data.cache_dir) == ("/home/me/text", "/home/me/cache")
    assert job.assets.tokenizer == debug_job().assets.tokenizer


# --- torchx ---------------------------------------------------------------------------------------


def dry_run(folder: Path, job: Job, *words: str) -> Request:
    """What `torchx run -s titan_docker component.py:train WORDS` would start."""
    (folder / "component.py").write_text(render(job, name="run", outputs="/o")["component.py"])
    runner = Runner("torchx", {"titan_docker": create_scheduler})
    component = f"{folder}/component.py:train"
    info = runner.dryrun_component(component, [*words], "titan_docker", {}, workspace="")
    return info.request


def test_component_becomes_the_container_that_launch_would_start(tmp_path: Path) -> None:
    job = replace(debug_job(), env={"A": "$b"})
    request = dry_run(tmp_path, job)
    assert (request.job, request.run_dir, request.resumed) == (job, Path("/o/run"), False)
    ours = container_request(job, Path("/o/run"), image=DEFAULT_IMAGE, working_dir=os.getcwd())
    assert ours.command == request.container.command
    assert ours.mounts == request.container.mounts
    assert ours.env.items() <= request.container.env.items()
    handle = request.container.env["TORCHX_JOB_ID"]
    assert handle == f"titan_docker://torchx/{request.app_id}"
    assert request.container.labels["torchx.pytorch.org/app-id"] == request.app_id


def test_what_torchx_says_wins_over_the_profile(tmp_path: Path) -> None:
    mounts = "type=bind,src=/a,dst=/b,readonly"
    words = ("--image", "other:2", "--mounts", mounts, "--env", "A=c", "--name", "n")
    job = sited(debug_job(), container=Container(image="first:1"), mounts={"/a": "/c"})
    request = dry_run(tmp_path, replace(job, env={"A": "b"}), *words)
    assert request.container.image == request.job.site.container.image == "other:2"
    assert request.job.site.mounts == {"/a": "/b:ro"}
    assert request.job.env == {"A": "c"}
    assert request.run_dir == Path("/o/n")


@pytest.mark.parametrize(
    ("words", "told"),
    [
        (("--gpu", "4"), "--gpu 4: the job's plan has 0; render another plan"),
        (("--max_retries", "2"), "--max_retries 2: the job itself restarts; set fault_tol"),
        (("--cpu", "2"), "no run of titan_docker has limits of its own; leave them out, or use"),
        (("--mounts", "type=volume,src=v,dst=/b"), "only type=bind can be mounted"),
    ],
)
def test_what_a_container_has_no_place_for_is_refused(
    tmp_path: Path, words: Sequence[str], told: str
) -> None:
    with pytest.raises(LaunchError) as error:
        dry_run(tmp_path, debug_job(), *words)
    assert told in str(error.value)


# --- without an engine ----------------------------------------------------------------------------


def test_dry_run_needs_no_engine(tmp_path: Path) -> None:
    files = preview(debug_job(), outputs=str(tmp_path), name="run", scheduler="docker")
    assert [*files] == ["job.toml", "component.py", "docker.sh"]
    assert f"source={tmp_path}/run,target={tmp_path}/run \\\n" in files["docker.sh"]


def test_launch_without_an_engine_says_all_that_is_wrong(tmp_path: Path) -> None:
    job = debug_job()
    job = sited(replace(job, plan=replace(job.plan, nodes=2)), secrets={"MY_TOKEN": "env"})
    with pytest.raises(ConfigError) as error:
        launch(job, outputs=tmp_path / "o", command=(), name="run", scheduler="docker")
    assert str(error.value).splitlines() == [
        "job.toml: plan.nodes: the plan needs 2 machines, --scheduler docker has this one; choose "
        "a plan with nodes = 1 (titan-recipes show RECIPE lists them), or --dry-run",
        "cluster: secrets.MY_TOKEN: not in this environment; export MY_TOKEN=...",
        f"--scheduler docker: no Docker Engine answers at {NOWHERE}: No such file; start it, or "
        "set DOCKER_HOST",
    ]
    assert not (tmp_path / "o").exists()


def test_run_without_an_engine_stands_as_it_was_last_seen(tmp_path: Path) -> None:
    run = make_run(tmp_path, "run", running())
    going = replace(run.record, scheduler="docker")
    status = run_status(run.layout, going)
    assert status.state is RunState.RUNNING
    assert status.cause.startswith(f"as last seen: no Docker Engine answers at {NOWHERE}")
    done = replace(going, attempts=(attempt(),))
    assert run_status(run.layout, done).state is RunState.SUCCEEDED


def test_resume_without_an_engine_changes_nothing(tmp_path: Path) -> None:
    run = make_run(tmp_path, "run", stopped(), steps=20, reached=4)
    commit_checkpoint(run.layout, 20)
    write_record(run.layout, replace(run.record, scheduler="docker"))
    job, record = run.layout.job.read_text(), run.layout.record.read_text()
    with pytest.raises(LaunchError, match="no Docker Engine answers"):
        resume(open_run(run.layout.root), ["training.steps=40"])
    assert (run.layout.job.read_text(), run.layout.record.read_text()) == (job, record)


def test_secrets_are_read_where_the_profile_says(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "token").write_text("from a file\n")
    monkeypatch.setenv("A_TOKEN", "from here")
    site = Site(secrets={"A_TOKEN": "env", "B_TOKEN": f"file:{tmp_path}/token"})
    assert secret_values(site) == {"A_TOKEN": "from here", "B_TOKEN": "from a file"}
    request = asked(sited(debug_job(), secrets=site.secrets))
    assert request.secrets == ("A_TOKEN", "B_TOKEN")
    assert "from a file" not in str(request)
    assert "from here" not in str(request)
    assert "# By hand: export A_TOKEN B_TOKEN first" in str(request)
    monkeypatch.delenv("A_TOKEN")
    with pytest.raises(LaunchError, match=r"^secrets.A_TOKEN: not in this environment"):
        secret_values(site)


def test_plan_without_gpus_asks_for_none() -> None:
    job = gpu_job()
    assert asked(replace(job, plan=replace(job.plan, gpu=NO_GPU))).num_gpus == 0
    assert asked(replace(job, plan=replace(job.plan, gpu="any"))).num_gpus == 0
