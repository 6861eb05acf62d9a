"""`titan_slurm`: what torchx tells it becomes the job's, or is refused. Nothing is submitted."""

import re
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from past_runs import debug_job
from torchx.runner import Runner

from titan_recipes.config.job import Job
from titan_recipes.config.site import Container, Site
from titan_recipes.errors import ConfigError, LaunchError
from titan_recipes.launch.titan_slurm import Request, create_scheduler
from titan_recipes.render import render

PYXIS = Container(runtime="pyxis", image="registry/first:1")


def dry_run(folder: Path, job: Job, *words: str, component: str = "", **cfg: str) -> Request:
    """What `torchx run -s titan_slurm -cfg ... component.py:train WORDS` would submit."""
    (folder / "component.py").write_text(render(job, name="run", outputs="/o")["component.py"])
    runner = Runner("torchx", {"titan_slurm": create_scheduler})
    what = component or f"{folder}/component.py:train"
    return runner.dryrun_component(what, [*words], "titan_slurm", cfg, workspace="").request


def slurm_job(**site: Any) -> Job:
    return replace(debug_job(), site=Site(**{"slurm": {"time": "1:00:00"}, **site}), env={"A": "b"})


def options(request: Request) -> list[str]:
    return re.findall(r"^#SBATCH (.*)$", request.script, re.MULTILINE)


def test_component_becomes_the_script_that_launch_would_submit(tmp_path: Path) -> None:
    job = slurm_job()
    request = dry_run(tmp_path, job)
    assert request.job == job
    assert request.run_dir == Path("/o/run")
    assert "--job-name=run" in options(request)
    assert "--time=1:00:00" in options(request)
    assert "export A=b\n" in request.script
    assert "TORCHX_JOB_ID=titan_slurm://titan-recipes/$SLURM_JOB_ID\n" in request.script


def test_what_torchx_says_wins_over_the_profile(tmp_path: Path) -> None:
    words = ("--cpu", "3", "--memory_mb", "500", "--env", "A=c,D=$HOME x", "--name", "other")
    request = dry_run(tmp_path, slurm_job(), *words, time="2:00:00", partition="p", after="7,8")
    asked = ("--time=2:00:00", "--partition=p", "--cpus-per-task=3", "--mem=500M")
    assert {*asked, "--dependency=afterok:7:8", "--job-name=other"} <= {*options(request)}
    assert "--time=1:00:00" not in options(request)
    assert request.job.env == {"A": "c", "D": "$HOME x"}
    assert "export D='$HOME x'\n" in request.script


def test_image_and_mounts_are_the_container_s(tmp_path: Path) -> None:
    words = ("--image", "registry/second:2", "--mounts", "type=bind,src=/a,dst=/b,readonly")
    request = dry_run(tmp_path, slurm_job(container=PYXIS), *words)
    assert "--container-image=registry/second:2" in request.script
    assert "/a:/b:ro" in request.script


@pytest.mark.parametrize(
    ("words", "cfg", "told"),
    [
        (("--gpu", "4"), {}, "--gpu 4: the job's plan has 0; render another plan"),
        (("--max_retries", "2"), {}, "--max_retries 2: the job itself restarts; set fault_tol"),
        (("--image", "x"), {}, "--image, --mounts: the job has no container; set [container]"),
        (("--mounts", "type=bind,src=/a,dst=/b"), {}, "the job has no container"),
        ((), {"time": "soon"}, 'torchx: slurm.time: got "soon"'),
        ((), {"time": "5:00"}, 'slurm.time = "5:00" leaves no time to train'),
        ((), {"partition": 'a"b'}, "sbatch has no way to take"),
    ],
)
def test_what_a_job_has_no_place_for_is_refused(
    tmp_path: Path, words: Sequence[str], cfg: dict[str, str], told: str
) -> None:
    with pytest.raises((LaunchError, ConfigError), match=re.escape(told)):
        dry_run(tmp_path, slurm_job(), *words, **cfg)


def test_component_of_others_is_refused(tmp_path: Path) -> None:
    words = ("--script", "train.py")
    with pytest.raises(LaunchError, match="runs only components that titan-recipes rendered"):
        dry_run(tmp_path, slurm_job(), *words, component="dist.ddp")
