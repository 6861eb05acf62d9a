"""What a cluster profile tells a job's scheduler: a site's placement, containers and preflight.

These tables of the profile travel in the job, so that its component can be run where no profile is.
Secrets are named and never held: a name leads to the submitter's environment or to a file.
"""

import re
from collections.abc import Iterator, Mapping
from dataclasses import field
from typing import Literal

from titan_recipes.config.kubernetes import (
    FROM_SECRET,
    Kubernetes,
    kubernetes_problems,
    secret_reference,
)
from titan_recipes.config.load import did_you_mean, show
from titan_recipes.config.schema import NonNegative, NonNegativeFloat, section
from titan_recipes.config.slurm_time import limit_seconds
from titan_recipes.errors import Problem

ENV_NAME = re.compile(r"[A-Za-z_][A-Za-z0-9_]*")
SECRET_NAME = re.compile(r".*(_TOKEN|_KEY|SECRET.*|PASSWORD.*)|TOKEN", re.IGNORECASE)
FROM_ENV = "env"
"""A secret's source: the environment of whoever submits."""
FROM_FILE = "file:"
"""A secret's source: this, and the path of a file that only its owner can read."""

OPTION_NAME = re.compile(r"[a-z][a-z0-9]*(-[a-z0-9]+)*")
PROTECTED = (
    "array", "chdir", "dependency", "error", "export", "export-file", "gpus", "gpus-per-node",
    "gpus-per-task", "input", "job-name", "kill-on-invalid-dep", "no-kill", "no-requeue", "nodes",
    "ntasks", "ntasks-per-gpu", "ntasks-per-node", "open-mode", "output", "parsable", "requeue",
    "signal", "test-only", "wait", "wrap",
)  # fmt: skip
"""sbatch options that follow from the plan, or that stopping, requeueing and logs rest on."""
FREE = (
    "account", "acctg-freq", "bb", "bbf", "begin", "cluster-constraint", "clusters", "comment",
    "constraint", "container", "contiguous", "core-spec", "cores-per-socket", "cpu-freq",
    "cpus-per-gpu", "cpus-per-task", "deadline", "delay-boot", "distribution", "exclude",
    "exclusive", "extra-node-info", "get-user-env", "gid", "gpu-bind", "gpu-freq", "gres",
    "gres-flags", "hint", "hold", "ignore-pbs", "licenses", "mail-type", "mail-user", "mcs-label",
    "mem", "mem-bind", "mem-per-cpu", "mem-per-gpu", "mincpus", "network", "nice", "no-step-tmpfs",
    "nodefile", "nodelist", "oom-kill-step", "overcommit", "oversubscribe", "partition", "power",
    "prefer", "priority", "profile", "propagate", "qos", "quiet", "reboot", "reservation", "resv",
    "resv-ports", "segment", "sockets-per-node", "spread-job", "stepmgr", "switches", "thread-spec",
    "threads-per-core", "time", "time-min", "tmp", "tres-bind", "tres-per-task", "use-min-nodes",
    "verbose", "wait-all-nodes", "wckey",
)  # fmt: skip
"""sbatch's other long options (SLURM 22.05 to 24.11); a site's plugins may add more."""


@section
class Hardware:
    """[hardware]: what the machines are. Plans are checked against `gpu` and `gpus_per_node`."""

    gpu: str = ""
    """GPU model as in the hardware table; "" = unknown."""
    gpus_per_node: NonNegative = 0
    """GPUs in one machine; 0 = unknown."""
    cpus: NonNegative = 0
    """Cores in one machine; a job asks for its GPUs' share of them. 0 = unknown."""
    memory_gib: NonNegativeFloat = 0.0
    """Host memory of one machine; a job asks for its GPUs' share of it. 0 = unknown."""
    interconnect: str = ""
    """What joins the machines, for people."""


@section
class Container:
    """[container]: what the nodes run the trainer in."""

    runtime: Literal["none", "pyxis", "apptainer", "docker"] = "none"
    """"none" = the launcher's own Python, which must be on a file system that all nodes see."""
    image: str = ""
    """The image, in the runtime's own words."""
    python: str = "python"
    """Python inside the image."""


@section
class Preflight:
    """[preflight]: checks inside the job, on all its nodes, before the trainer starts."""

    enable: bool = False
    """Check the nodes first; a bad one ends the job with its name."""
    exclude_bad_nodes: bool = False
    """Requeue without the bad nodes instead of ending."""
    min_shm_gib: NonNegativeFloat = 1.0
    """Free space that /dev/shm must have."""
    max_clock_skew_seconds: NonNegativeFloat = 5.0
    """How far the nodes' clocks may be apart."""
    min_bandwidth_gib: NonNegativeFloat = 0.0
    """Bus bandwidth that an all-reduce over all ranks must reach, in GiB/s; 0 = any."""


@section
class Site:
    """[site] of a job: what its cluster profile says beside scheduler and env."""

    outputs: str = ""
    """Where run directories go, as the job sees it; "" = $TITAN_RECIPES_OUTPUTS, else ./outputs.

    Under Kubernetes a path in the pods, on one of their volumes; "" = /outputs.
    """
    hardware: Hardware = field(default_factory=Hardware)
    slurm: dict[str, str | int | bool] = field(default_factory=dict[str, str | int | bool])
    """sbatch options by their own long names; true = a flag, false = left out."""
    setup: tuple[str, ...] = ()
    """Shell lines that each job runs first, such as `module load`."""
    container: Container = field(default_factory=Container)
    mounts: dict[str, str] = field(default_factory=dict[str, str])
    """Folder of the host -> folder in the container; ":ro" at the end = read-only."""
    secrets: dict[str, str] = field(default_factory=dict[str, str])
    """Environment variable -> "env" (the submitter's), "file:PATH" or "secret:SECRET/KEY"."""
    preflight: Preflight = field(default_factory=Preflight)
    kubernetes: Kubernetes = field(default_factory=Kubernetes)


# --- checks ---------------------------------------------------------------------------------------


def site_problems(site: Site, where: str) -> Iterator[Problem]:
    """What in a profile's tables no scheduler could take."""
    for name, value in site.slurm.items():
        yield from _option_problems(name, value, where)
    for line in site.setup:
        if not is_one_line(line):
            yield Problem(where, "setup", f"got {show(line)}", "must be lines of one line each")
    container = site.container
    if container.runtime != "none" and not container.image:
        key, got = "container.image", f'not set, with runtime = "{container.runtime}"'
        yield Problem(where, key, got, "name the image")
    for key in ("image", "python"):
        if not is_one_line(value := getattr(container, key)):
            yield Problem(where, f"container.{key}", f"got {show(value)}", "must be one line")
    yield from _mount_problems(site.mounts, where)
    for name, source in site.secrets.items():
        key = f"secrets.{name}"
        if not ENV_NAME.fullmatch(name):
            cure = "use letters, digits and '_', no digit first"
            yield Problem(where, key, "not the name of an environment variable", cure)
        elif not _is_source(source):
            # The value may be the secret itself: it is not repeated.
            cure = (
                f'use "{FROM_ENV}", "{FROM_FILE}" and a path, or under Kubernetes '
                f'"{FROM_SECRET}NAME/KEY"; the secret itself goes nowhere'
            )
            yield Problem(where, key, "does not say where the secret is", cure)
    yield from kubernetes_problems(site.kubernetes, where)


def secret_problems(site: Site, scheduler: str, where: str) -> Iterator[Problem]:
    """Secrets whose source a scheduler's jobs can't reach."""
    for name, source in site.secrets.items():
        if scheduler == "kubernetes" and not source.startswith(FROM_SECRET):
            got = "pods can't see the submitter's environment and files"
            key = re.sub(r"[^a-z0-9]+", "-", name.lower()).strip("-") or "token"
            # The value is read from the input: a command line is seen by everybody and kept.
            cure = (
                f"kubectl --namespace {site.kubernetes.namespace} create secret generic {key} "
                "--from-file=value=/dev/stdin (type the value, then Ctrl-D twice), then "
                f'{name} = "{FROM_SECRET}{key}/value"'
            )
            yield Problem(where, f"secrets.{name}", got, cure)
        elif scheduler != "kubernetes" and source.startswith(FROM_SECRET):
            got = f'has no effect with scheduler = "{scheduler}"'
            cure = f'use "{FROM_ENV}", or "{FROM_FILE}" and a path'
            yield Problem(where, f"secrets.{name}", got, cure)


def _is_source(source: str) -> bool:
    """Whether this is where a secret can be."""
    if source.startswith(FROM_FILE):
        return is_one_line(source)
    return source == FROM_ENV or secret_reference(source) is not None


def _option_problems(name: str, value: str | int | bool, where: str) -> Iterator[Problem]:
    key = f"slurm.{name}"
    if name in PROTECTED:
        cure = "it follows from the plan, or stopping and requeueing rest on it; remove it"
        yield Problem(where, key, "can't be set", cure)
    elif not OPTION_NAME.fullmatch(name):
        wanted = name.replace("_", "-").lower()
        cure = did_you_mean(wanted, FREE) or "use the long name without its dashes: partition"
        yield Problem(where, key, "not the name of an sbatch option", cure)
    elif name not in FREE and (near := did_you_mean(name, FREE, cutoff=0.8)):
        yield Problem(where, key, "unknown sbatch option", near)
    elif isinstance(value, str) and not is_one_line(value):
        yield Problem(where, key, f"got {show(value)}", "must be one line without NUL")
    elif name in ("time", "time-min"):
        yield from _time_problems(key, value, where)
    elif isinstance(value, str) and ('"' in value or "\\" in value):
        yield Problem(where, key, f"got {show(value)}", 'sbatch has no way to take " or \\')


def _time_problems(key: str, value: str | int | bool, where: str) -> Iterator[Problem]:
    try:
        if not isinstance(value, bool):
            limit_seconds(str(value))
    except ValueError:
        forms = '"90" is minutes; "4:00:00", "1-12" and "1-12:30:00" begin with hours or days'
        yield Problem(where, key, f"got {show(value)}", forms)


def _mount_problems(mounts: Mapping[str, str], where: str) -> Iterator[Problem]:
    for source, target in mounts.items():
        inside = target.removesuffix(":ro")
        for path in (source, inside):
            if not path.startswith("/") or re.search(r"[\x00-\x1f:,]", path):
                got = f"got {show(path)}"
                cure = "use absolute folders without colons and commas, host = container"
                yield Problem(where, f"mounts.{source}", got, cure)
                break


def is_one_line(text: str) -> bool:
    """Whether a text has no newline and no other control character but tab."""
    return not re.search(r"[\x00-\x08\x0a-\x1f\x7f]", text)


def env_problems(env: Mapping[str, str], where: str) -> Iterator[Problem]:
    """What in [env] no shell or script could set, and what should not be in a file."""
    for name, value in env.items():
        key = f"env.{name}"
        if not ENV_NAME.fullmatch(name):
            cure = "use letters, digits and '_', no digit first"
            yield Problem(where, key, "not the name of an environment variable", cure)
        elif SECRET_NAME.fullmatch(name):
            got = "a secret in a profile would be written into job.toml"
            forms = f'"{FROM_ENV}", "{FROM_FILE}PATH" or "{FROM_SECRET}NAME/KEY"'
            yield Problem(where, key, got, f"move it to [secrets]: {name} = {forms}")
        elif "\0" in value or "\n" in value:
            yield Problem(where, key, f"got {show(value)}", "must be one line without NUL")
