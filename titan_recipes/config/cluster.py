"""The cluster profile: a site's facts, one TOML per cluster, never part of a bundle.

Found as a path, or by name in `$TITAN_RECIPES_CLUSTERS` and `~/.config/titan-recipes/clusters/`.
Without `--cluster` the profile named `default` is used where there is one, else an empty one; what
a profile does not say is not checked.
"""

import os
from dataclasses import field
from pathlib import Path
from typing import Literal

from titan_recipes.config.hardware import ANY_GPU, GPUS, NO_GPU
from titan_recipes.config.load import did_you_mean, read_section, read_toml
from titan_recipes.config.schema import NonNegative, NonNegativeFloat, Plan, section
from titan_recipes.errors import BundleError, ConfigError, Problem

LATER = ("slurm", "kubernetes", "container", "mounts", "secrets", "preflight")


@section
class Hardware:
    """[hardware]: what plans are checked against."""

    gpu: str = ""
    """GPU model as in the hardware table; "" = unknown."""
    gpus_per_node: NonNegative = 0
    """GPUs in one machine; 0 = unknown."""
    cpus: NonNegative = 0
    """Cores in one machine; 0 = unknown."""
    memory_gib: NonNegativeFloat = 0.0
    """Host memory of one machine; 0 = unknown."""
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
    """Environment of every rank."""


def _folders() -> list[Path]:
    listed = os.environ.get("TITAN_RECIPES_CLUSTERS", "")
    home = Path(os.environ.get("XDG_CONFIG_HOME") or "~/.config").expanduser()
    return [Path(part) for part in listed.split(os.pathsep) if part] + [
        home / "titan-recipes" / "clusters"
    ]


def find_cluster(name: str | None) -> tuple[str, Cluster]:
    """(name, profile) of `--cluster NAME|PATH`; ("", an empty one) where none is asked for or set.

    Raises BundleError where a named profile is missing, ConfigError where it can't be read.
    """
    if name and (os.sep in name or name.endswith(".toml")):
        path = Path(name).expanduser()
        return path.stem, read_cluster(path)
    known = {path.stem: path for folder in reversed(_folders()) for path in folder.glob("*.toml")}
    if name is None and "default" not in known:
        return "", Cluster()
    wanted = name or "default"
    if wanted not in known:
        looked = ", ".join(str(folder) for folder in _folders())
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
    return cluster


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
