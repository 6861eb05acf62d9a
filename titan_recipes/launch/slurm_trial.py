"""A cluster profile tried without a job: the files it names, and `sbatch --test-only`."""

import os
import re
import shlex
from collections.abc import Iterator
from pathlib import Path

from titan_recipes.config.cluster import Cluster
from titan_recipes.config.hardware import NO_GPU
from titan_recipes.config.home import expanded
from titan_recipes.config.load import show
from titan_recipes.errors import Problem
from titan_recipes.launch.site_report import Finding
from titan_recipes.launch.slurm_ask import run
from titan_recipes.render.sbatch import share


def file_findings(where: str, cluster: Cluster) -> Iterator[Finding]:
    """What should be on this machine's file systems, which the nodes usually share."""

    def problem(what: str, got: str, cure: str) -> Finding:
        return True, Problem(where, what, got, cure)

    def note(what: str, got: str, cure: str) -> Finding:
        return False, Problem(where, what, got, cure)

    if not cluster.outputs:
        got = "not set: runs go to $TITAN_RECIPES_OUTPUTS, else ./outputs"
        yield note("outputs", got, "set a folder that all nodes see")
    elif not (folder := expanded(cluster.outputs)).is_absolute():
        got = f"got {show(cluster.outputs)}"
        yield problem("outputs", got, "write the whole path, as the nodes see it")
    elif not folder.is_dir():
        yield problem(
            "outputs", f"{folder} is not a folder", f"mkdir -p {shlex.quote(str(folder))}"
        )
    elif not os.access(folder, os.W_OK | os.X_OK):
        yield problem("outputs", f"{folder} can't be written to", "choose another folder")
    for line in cluster.setup:
        if (file := _sourced(line)) and not file.is_file():
            yield problem("setup", f"{file} is not a file", "correct or remove its line")
    if (image := _image_file(cluster)) and not image.exists():
        cure = "build or pull it, or correct the path"
        yield problem("container.image", f"{image} is not there", cure)
    for source in cluster.mounts:
        if not Path(source).exists():
            yield note("mounts", f"{source} is not on this machine", "every node has to have it")


def _sourced(line: str) -> Path | None:
    """The file that a line of setup reads, where it says so in plain words."""
    try:
        words = shlex.split(line, comments=True)
    except ValueError:
        return None
    if len(words) < 2 or words[0] not in ("source", ".") or re.search(r"[$`*]", words[1]):
        return None
    file = expanded(words[1])
    return file if file.is_absolute() else None


def _image_file(cluster: Cluster) -> Path | None:
    """The container image, where it is a file and no reference to a registry."""
    container = cluster.container
    if container.runtime not in ("pyxis", "apptainer") or "://" in container.image:
        return None
    is_file = container.image.startswith(("/", "./", "~")) or container.image.endswith(
        (".sif", ".sqsh", ".img")
    )
    return expanded(container.image) if is_file else None


# --- the last word --------------------------------------------------------------------------------


def trial_command(cluster: Cluster) -> list[str]:
    """`sbatch --test-only` for a whole node with the profile's options: it submits nothing."""
    have, mine = cluster.hardware, cluster.slurm
    asked: dict[str, str | int | bool] = {"ntasks-per-node": 1, "requeue": True}
    if "nodelist" not in mine:  # which says itself how many
        asked["nodes"] = 1
    gpus = 0 if have.gpu == NO_GPU else have.gpus_per_node
    if gpus:
        asked["gpus-per-node"] = gpus
    words = [
        f"--{name}" if value is True else f"--{name}={value}"
        for name, value in {**asked, **share(cluster.site, gpus), **mine}.items()
        if value is not False
    ]
    return ["sbatch", "--test-only", *words, "--wrap=true"]


def trial(where: str, cluster: Cluster) -> tuple[str, list[Problem]]:
    """(what sbatch says of a job with the profile's options, the problem if it refuses it)."""
    command = trial_command(cluster)
    done = run(*command)
    lines = [line.removeprefix("sbatch: ").strip() for line in done.stderr.splitlines()]
    said = " / ".join(line for line in lines if line) or f"exit {done.returncode}"
    if done.returncode == 0:
        return said, []
    return "", [Problem(where, "sbatch --test-only", said, f"try: {shlex.join(command)}")]
