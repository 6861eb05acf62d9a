"""train.sbatch of every packaged recipe in every container runtime, and through a real shell.

tests/golden/sbatch/ holds the scripts of LIKENESS whole, and of every other recipe the lines in
which its scripts differ from those.
"""

import difflib
import os
import re
import shutil
import subprocess
from dataclasses import replace
from pathlib import Path

import pytest

from titan_recipes.bundle.find import find_bundle
from titan_recipes.config.data_root import data_root
from titan_recipes.config.site import Container, Hardware, Site
from titan_recipes.errors import LaunchError
from titan_recipes.render import Submission, render_sbatch

GOLDEN = Path(__file__).parent.parent / "golden" / "sbatch"
RECIPES = sorted(path.parent.name for path in (data_root() / "recipes").glob("*/recipe.toml"))
assert RECIPES, "no packaged recipes"
LIKENESS = "llama3_8b"
RUNTIMES: dict[str, Container] = {
    "slurm": Container(),
    "pyxis": Container(runtime="pyxis", image="docker://registry/titan:1"),
    "apptainer": Container(runtime="apptainer", image="/images/titan.sif"),
    "docker": Container(runtime="docker", image="localhost/titan:1"),
}
UPDATE = "UPDATE_GOLDEN=1 pytest tests/render/test_render_sbatch.py"
SITE = Site(
    hardware=Hardware(gpus_per_node=8, cpus=96, memory_gib=1000.0),
    slurm={"partition": "gpu", "account": "team a", "time": "4:00:00", "exclusive": False},
    setup=("module load cuda",),
    mounts={"/data": "/data:ro"},
    secrets={"HF_TOKEN": "env", "WANDB_API_KEY": "file:/keys/wandb"},
)
ENV = {"NCCL_IB_HCA": "mlx5_0,mlx5_1"}


def script(recipe: str, runtime: str) -> str:
    """The script of a recipe's default plan, the encoded job left out."""
    job = find_bundle(recipe).resolve().job
    job = replace(job, env=ENV, site=replace(SITE, container=RUNTIMES[runtime]))
    submission = Submission(run_dir=f"/shared/outputs/{recipe}", python="/opt/venv/bin/python")
    return re.sub(r"^job=.*$", "job=...", render_sbatch(job, submission), flags=re.MULTILINE)


def compare(path: Path, text: str) -> None:
    if os.environ.get("UPDATE_GOLDEN"):
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)
    assert path.exists(), f"no golden text; {UPDATE}"
    assert text == path.read_text(), f"differs from {path}; if that is meant: {UPDATE}"


@pytest.mark.parametrize("runtime", RUNTIMES)
def test_script_equals_its_golden_text(runtime: str) -> None:
    compare(GOLDEN / f"{LIKENESS}.{runtime}.sbatch", script(LIKENESS, runtime))


@pytest.mark.parametrize("recipe", [name for name in RECIPES if name != LIKENESS])
def test_other_recipes_differ_only_where_they_should(recipe: str) -> None:
    lines: list[str] = []
    for runtime in RUNTIMES:
        pair = (script(LIKENESS, runtime), script(recipe, runtime))
        lines += [
            f"{runtime} {line}"
            for line in difflib.ndiff(*(text.splitlines() for text in pair))
            if line[0] in "+-"
        ]
    compare(GOLDEN / f"{recipe}.txt", "\n".join(lines) + "\n")


def test_golden_files_are_all_of_a_recipe_that_is_there() -> None:
    expected = {f"{LIKENESS}.{runtime}.sbatch" for runtime in RUNTIMES}
    expected |= {f"{recipe}.txt" for recipe in RECIPES if recipe != LIKENESS}
    assert {path.name for path in GOLDEN.iterdir()} == expected


@pytest.mark.parametrize("runtime", RUNTIMES)
def test_shell_accepts_the_script(runtime: str, tmp_path: Path) -> None:
    file = tmp_path / "train.sbatch"
    file.write_text(script(LIKENESS, runtime))
    subprocess.run(["bash", "-n", file], check=True)
    if shutil.which("shellcheck") is None:
        pytest.skip("shellcheck is not installed")
    found = subprocess.run(["shellcheck", file], capture_output=True, text=True)
    assert found.stdout == ""


def test_script_does_not_grow_with_the_number_of_nodes() -> None:
    job = find_bundle("llama3_405b").resolve().job
    scripts = [
        render_sbatch(replace(job, plan=replace(job.plan, nodes=nodes)), Submission(run_dir="/o/r"))
        for nodes in (4, 2048)
    ]
    few, many = (len(re.sub(r"^job=.*$", "", text, flags=re.MULTILINE)) for text in scripts)
    assert many - few == 4 * len("048")  # --nodes of sbatch, srun and the node, and --ntasks


HOSTILE = (
    "a b", "it's", 'say "x"', "$(touch pwned)", "`touch pwned`", "a,b,c", "a;b&c|d", "é ☃ 漢",
    "#not a comment", "a\\b", "%j %%", "*?[x]", "-rf", "",
)  # fmt: skip


@pytest.mark.parametrize("value", HOSTILE)
def test_env_values_pass_the_shell_unchanged(value: str, tmp_path: Path) -> None:
    """The script runs with an srun that writes down what it got."""
    job = find_bundle("llama3_debug").resolve("cpu1").job
    text = render_sbatch(replace(job, env={"VALUE": value}), Submission(run_dir=str(tmp_path)))
    done = _run(text, tmp_path, srun=f'printf "%s" "$VALUE" >{tmp_path}/record')
    assert (done.returncode, done.stderr) == (0, "")
    assert (tmp_path / "record").read_text() == value
    assert not (tmp_path / "pwned").exists()


def _run(text: str, folder: Path, *, srun: str) -> subprocess.CompletedProcess[str]:
    """The script, in a shell where srun is only this line of sh."""
    programs = folder / "bin"
    programs.mkdir()
    (programs / "srun").write_text(f"#!/bin/sh\n{srun}\n")
    (programs / "scontrol").write_text("#!/bin/sh\necho node1\n")
    for program in programs.iterdir():
        program.chmod(0o755)
    environment = {
        "PATH": f"{programs}:{os.environ['PATH']}",
        "SLURM_JOB_ID": "7",
        "SLURM_JOB_NODELIST": "node1",
    }
    return subprocess.run(
        ["bash"], input=text, cwd=folder, env=environment, capture_output=True, text=True
    )


@pytest.mark.parametrize("run_dir", ['/o/a"b', "/o/a\\b", "/o/a\nb", "/o/a\x00b", "/o/a\tb"])
def test_run_directory_that_sbatch_cannot_take_is_refused(run_dir: str) -> None:
    job = find_bundle("llama3_debug").resolve("cpu1").job
    with pytest.raises(LaunchError, match="which sbatch can't take in a path; choose another"):
        render_sbatch(job, Submission(run_dir=run_dir))


@pytest.mark.parametrize("mode", [0o644, 0o640])
def test_secret_that_others_could_read_ends_the_job(mode: int, tmp_path: Path) -> None:
    file = tmp_path / "key"
    file.write_text("hunter2")
    file.chmod(mode)
    done = _run_with_secret(file, tmp_path)
    assert done.returncode == 2
    assert done.stderr == f"error: {file}: others can read it; chmod 600\n"
    assert "hunter2" not in done.stderr + done.stdout


def test_secret_whose_file_is_missing_ends_the_job(tmp_path: Path) -> None:
    done = _run_with_secret(tmp_path / "none", tmp_path)
    assert (done.returncode, done.stdout) == (2, "")
    assert done.stderr == f"error: {tmp_path}/none: can't be read, for KEY\n"


def test_secret_of_its_owner_reaches_the_ranks_and_no_text(tmp_path: Path) -> None:
    file = tmp_path / "key"
    file.write_text("hunter2\n")
    file.chmod(0o600)
    done = _run_with_secret(file, tmp_path)
    assert done.returncode == 0
    assert done.stdout == "got hunter2\n"


def _run_with_secret(file: Path, tmp_path: Path) -> subprocess.CompletedProcess[str]:
    job = find_bundle("llama3_debug").resolve("cpu1").job
    site = replace(job.site, secrets={"KEY": f"file:{file}"})
    text = render_sbatch(replace(job, site=site), Submission(run_dir=str(tmp_path)))
    assert "hunter2" not in text
    return _run(text, tmp_path, srun='echo "got $KEY"')
