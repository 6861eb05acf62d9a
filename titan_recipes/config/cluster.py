"""The cluster profile: a site's facts, one TOML per cluster, never part of a bundle.

Found as a path, or by name in `$TITAN_RECIPES_CLUSTERS` and `~/.config/titan-recipes/clusters/`.
Without `--cluster` the profile named `default` is used where there is one, else an empty one; what
a profile does not say is not checked.
"""

import os
import re
from collections.abc import Iterator, Mapping
from dataclasses import field
from pathlib import Path
from typing import Literal

from titan_recipes.config.hardware import ANY_GPU, GPUS, NO_GPU
from titan_recipes.config.home import expanded, user_folder
from titan_recipes.config.load import did_you_mean, read_section, read_toml, show
from titan_recipes.config.schema import NonNegative, NonNegativeFloat, Plan, section
from titan_recipes.errors import BundleError, ConfigError, Problem

LATER = ("slurm", "kubernetes", "container", "mounts", "secrets", "preflight")
ENV_NAME = re.compile(r"[A-Za-z_][A-Za-z0-9_]*")
SECRET_NAME = re.compile(r".*(_TOKEN|_KEY|SECRET.*|PASSWORD.*)|TOKEN", re.IGNORECASE)


@section
class Hardware:
    """[hardware]: what the machines are. Plans are checked against `gpu` and `gpus_per_node`."""

    gpu: str = ""
    """GPU model as in the hardware table; "" = unknown."""
    gpus_per_node: NonNegative = 0
    """GPUs in one machine; 0 = unknown."""
    cpus: NonNegative = 0
    """Cores in one machine, for people: nothing is checked against it; 0 = unknown."""
    memory_gib: NonNegativeFloat = 0.0
    """Host memory of one machine, for people: nothing is checked against it; 0 = unknown."""
    interconnect: str = ""
    """What joins the machines, for people."""


@section
class Cluster:
    """A cluster profile."""

    scheduler: Literal["local", "docker", "slurm", "kubernetes"] = "local"
    """What runs jobs here."""
    outputs: str = ""
    """Where run directories go, as the job sees it; "" = $TITAN_RECIPES_OUTPUTS, else ./outputs."""
    hardware: Hardware = field(default_factory=Hardware)
    env: dict[str, str] = field(default_factory=dict[str, str])
    """Environment of every rank. No secrets: it is written into job.toml."""


def _folders() -> list[Path]:
    listed = os.environ.get("TITAN_RECIPES_CLUSTERS", "")
    folders = [expanded(part) for part in listed.split(os.pathsep) if part]
    if home := user_folder("XDG_CONFIG_HOME", ".config"):
        folders.append(home / "titan-recipes" / "clusters")
    return folders


def find_cluster(name: str | None) -> tuple[str, Cluster]:
    """(name, profile) of `--cluster NAME|PATH`; ("", an empty one) where none is asked for or set.

    Raises BundleError where a named profile is missing, ConfigError where it can't be read.
    """
    if name == "":
        raise BundleError("--cluster: empty; give a profile's name or path, or leave it out")
    if name and (os.sep in name or name.endswith(".toml")):
        path = expanded(name)
        return path.stem, read_cluster(path)
    known = {path.stem: path for folder in reversed(_folders()) for path in folder.glob("*.toml")}
    if name is None and "default" not in known:
        return "", Cluster()
    wanted = name or "default"
    if wanted not in known:
        looked = ", ".join(str(folder) for folder in _folders()) or "any folder (HOME is not set)"
        hint = (
            did_you_mean(wanted, known) or f"profiles there: {', '.join(sorted(known)) or 'none'}"
        )
        raise BundleError(f"no cluster profile {wanted!r} in {looked}; {hint}")
    return wanted, read_cluster(known[wanted])


def read_cluster(path: Path) -> Cluster:
    """Read a profile. Raises ConfigError."""
    data = read_toml(path)
    later = [
        Problem(str(path), key, "not supported yet", "remove it") for key in data if key in LATER
    ]
    if later:
        raise ConfigError(later)
    cluster = read_section(Cluster, data, str(path))
    gpu = cluster.hardware.gpu
    if gpu and gpu not in GPUS and gpu != NO_GPU:
        cure = did_you_mean(gpu, GPUS) or f"known: {', '.join(GPUS)}"
        raise ConfigError([Problem(str(path), "hardware.gpu", f'got "{gpu}"', cure)])
    if problems := list(_env_problems(cluster.env, str(path))):
        raise ConfigError(problems)
    return cluster


def _env_problems(env: Mapping[str, str], where: str) -> Iterator[Problem]:
    """What in [env] no shell or script could set, and what should not be in a file."""
    for name, value in env.items():
        key = f"env.{name}"
        if not ENV_NAME.fullmatch(name):
            cure = "use letters, digits and '_', no digit first"
            yield Problem(where, key, "not the name of an environment variable", cure)
        elif SECRET_NAME.fullmatch(name):
            got = "a secret in a profile would be written into job.toml"
            yield Problem(where, key, got, "export it in your shell instead: ranks inherit it")
        elif "\0" in value or "\n" in value:
            yield Problem(where, key, f"got {show(value)}", "must be one line without NUL")


def check_fits(plan: Plan, cluster: Cluster, where: str) -> list[Problem]:
    """What of a plan the cluster's hardware can't hold; unknown facts are not checked."""
    have, problems = cluster.hardware, list[Problem]()
    if plan.gpu == NO_GPU:
        return problems
    if have.gpu and plan.gpu not in (ANY_GPU, have.gpu):
        got = f'"{plan.gpu}", but the cluster has {have.gpu}'
        problems.append(Problem(where, "plan.gpu", got, "choose another plan or --set plan.gpu"))
    if have.gpus_per_node and plan.gpus_per_node > have.gpus_per_node and plan.gpu != ANY_GPU:
        got = f"{plan.gpus_per_node} > the cluster's {have.gpus_per_node} per node"
        cure = f"--set plan.gpus_per_node={have.gpus_per_node} and more nodes"
        problems.append(Problem(where, "plan.gpus_per_node", got, cure))
    return problems
