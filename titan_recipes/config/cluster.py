"""The cluster profile: a site's facts, one TOML per cluster, never part of a bundle.

Found as a path, or by name in `$TITAN_RECIPES_CLUSTERS` and `~/.config/titan-recipes/clusters/`.
Without `--cluster` the profile named `default` is used where there is one, else an empty one; what
a profile does not say is not checked.
"""

import math
import os
from collections.abc import Iterator, Mapping
from dataclasses import field, fields
from pathlib import Path
from typing import Literal

from titan_recipes.config.hardware import ANY_GPU, GPUS, NO_GPU
from titan_recipes.config.home import expanded, user_folder
from titan_recipes.config.kubernetes import (
    POD_OUTPUTS,
    gang_problems,
    outputs_problems,
    reserved_env_problems,
)
from titan_recipes.config.load import did_you_mean, read_section, read_toml, show
from titan_recipes.config.schema import Plan, section
from titan_recipes.config.site import Site, env_problems, secret_problems, site_problems
from titan_recipes.config.slurm_time import limit_seconds
from titan_recipes.errors import BundleError, ConfigError, Problem

HONOURED_BY = {
    "slurm": ("slurm",),
    "setup": ("slurm",),
    "container": ("slurm", "docker", "kubernetes"),
    "mounts": ("slurm", "docker"),
    "secrets": ("slurm", "docker", "kubernetes"),
    "preflight": ("slurm", "kubernetes"),
    "kubernetes": ("kubernetes",),
}
"""Key of a profile -> the schedulers whose jobs honour it; the others are everybody's."""
EARLY_SECONDS = 60


@section
class Cluster(Site):
    """A cluster profile."""

    scheduler: Literal["local", "docker", "slurm", "kubernetes"] = "local"
    """What runs jobs here."""
    env: dict[str, str] = field(default_factory=dict[str, str])
    """Environment of every rank. No secrets: it is written into job.toml."""

    @property
    def site(self) -> Site:
        """What of it a job carries along."""
        return Site(**{item.name: getattr(self, item.name) for item in fields(Site)})


def profile_folders() -> list[Path]:
    """Where profiles are looked for: the first one of a name counts, the user's own come last."""
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
    known = {
        path.stem: path for folder in reversed(profile_folders()) for path in folder.glob("*.toml")
    }
    if name is None and "default" not in known:
        return "", Cluster()
    wanted = name or "default"
    if wanted not in known:
        looked = (
            ", ".join(str(folder) for folder in profile_folders()) or "any folder (HOME is not set)"
        )
        hint = (
            did_you_mean(wanted, known) or f"profiles there: {', '.join(sorted(known)) or 'none'}"
        )
        raise BundleError(f"no cluster profile {wanted!r} in {looked}; {hint}")
    return wanted, read_cluster(known[wanted])


def read_cluster(path: Path) -> Cluster:
    """Read a profile. Raises ConfigError."""
    data, where = read_toml(path), str(path)
    cluster = read_section(Cluster, data, where)
    problems = [
        *_idle_problems(cluster, data, where),
        *env_problems(cluster.env, where),
        *site_problems(cluster, where),
        *secret_problems(cluster, cluster.scheduler, where),
    ]
    if cluster.scheduler == "kubernetes":
        problems += outputs_problems(
            cluster.outputs or POD_OUTPUTS, cluster.kubernetes, where, "outputs"
        )
        problems += reserved_env_problems(cluster.env, where, "env")
        problems += reserved_env_problems(cluster.secrets, where, "secrets")
        wanted = cluster.preflight.min_shm_gib
        if cluster.preflight.enable and wanted > cluster.kubernetes.shm_gib:
            got = f"{wanted}, but the pods have kubernetes.shm_gib = {cluster.kubernetes.shm_gib}"
            problems.append(Problem(where, "preflight.min_shm_gib", got, "raise shm_gib"))
    gpu = cluster.hardware.gpu
    if gpu and gpu not in GPUS and gpu != NO_GPU:
        cure = did_you_mean(gpu, GPUS) or f"known: {', '.join(GPUS)}"
        problems.append(Problem(where, "hardware.gpu", f'got "{gpu}"', cure))
    if problems:
        raise ConfigError(problems)
    return cluster


def _idle_problems(cluster: Cluster, data: Mapping[str, object], where: str) -> Iterator[Problem]:
    """Keys that the profile's scheduler would not look at."""
    scheduler = cluster.scheduler
    idle = f'has no effect with scheduler = "{scheduler}"'
    for key in data:
        if scheduler not in HONOURED_BY.get(key, (scheduler,)):
            yield Problem(where, key, idle, "remove it")
    runtime = cluster.container.runtime
    if runtime != "none" and scheduler in ("docker", "kubernetes"):
        got = f'got "{runtime}", with scheduler = "{scheduler}"'
        yield Problem(where, "container.runtime", got, "remove it: jobs there are containers")
    if cluster.preflight.exclude_bad_nodes and scheduler == "kubernetes":
        cure = "remove it; kubectl cordon the node that the preflight names"
        yield Problem(where, "preflight.exclude_bad_nodes", idle, cure)


def check_fits(plan: Plan, cluster: Cluster, where: str) -> list[Problem]:
    """What of a plan the cluster can't hold; unknown facts are not checked."""
    have, problems = cluster.hardware, list[Problem]()
    if cluster.scheduler == "kubernetes":
        problems += gang_problems(cluster.kubernetes, plan.nodes, where)
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


def check_time(grace_seconds: float, site: Site, where: str) -> list[Problem]:
    """A time limit that is over before a job has done more than save: it would requeue for ever.

    SLURM may warn a job up to a minute before it was told to.
    """
    time = site.slurm.get("time", False)
    limit = math.inf if isinstance(time, bool) else limit_seconds(str(time)) or math.inf
    if limit > grace_seconds + EARLY_SECONDS:
        return []
    got = f"{grace_seconds} s, which slurm.time = {show(time)} leaves no time to train beside"
    cure = "ask for more time, or for fewer seconds to save in"
    return [Problem(where, "fault_tolerance.grace_seconds", got, cure)]
