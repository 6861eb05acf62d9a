"""Resolve: schema defaults < bundle < plan < cluster (env only) < `--set`, into one frozen Job."""

import dataclasses
import tomllib
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from titan_recipes.config.cluster import Cluster, check_fits, check_time
from titan_recipes.config.datasets import dataset_problems
from titan_recipes.config.folders import folder_problems
from titan_recipes.config.job import Derived, Job, Origin, to_toml
from titan_recipes.config.load import (
    Layer,
    Provenance,
    all_keys,
    check_layer,
    merge,
    parse_overrides,
    read_section,
    validate,
)
from titan_recipes.config.plan import derive
from titan_recipes.config.schema import Config
from titan_recipes.config.support import contradictions, sleeping, unsupported
from titan_recipes.errors import ConfigError, Problem

IDENTITY = {"recipe": "recipe.toml", "expect": "the plan"}
"""Sections that say what the recipe is and was measured to do -> their file; no --set for them."""

FILE_OF_SECTION = {"recipe": "recipe.toml", "assets": "recipe.toml", "model": "model.toml"}


@dataclass(frozen=True, slots=True)
class Resolution:
    """A job and what to say of it."""

    job: Job
    notes: tuple[str, ...]
    """What was changed: settings that were clipped to each other."""
    dormant: tuple[str, ...]
    """Settings that were written but have no effect in this job, and why."""
    provenance: Provenance
    """Dotted key -> the layer that set it."""

    def where_of(self, key: str) -> str:
        """Where a key was set, for messages."""
        return self.provenance.get(key, "defaults")


def resolve(
    layers: Sequence[Layer],
    *,
    digest: str,
    bundle: str,
    plan: str,
    overrides: Sequence[str] = (),
    cluster: Cluster | None = None,
    cluster_name: str = "",
) -> Resolution:
    """Resolve a bundle's layers, the plan last, into a job. Raises ConfigError with all problems.

    bundle: the bundle's directory, "" for a packaged recipe; plan, cluster_name: their names;
    overrides: `section.key=value` as typed.
    """
    cluster = cluster or Cluster()
    changes = parse_overrides(Config, overrides)
    _refuse_identity(overrides)
    problems = [p for layer in (*layers, *changes) for p in check_layer(Config, layer)]
    data, provenance = merge([*layers, *changes])
    try:
        config = _validated(data, provenance, layers)
        problems += check_fits(config.plan, cluster, provenance.get("plan.gpu", plan))
        grace, key = config.fault_tolerance.grace_seconds, "fault_tolerance.grace_seconds"
        problems += check_time(grace, cluster, provenance.get(key, "defaults"))
        derived, notes = check(config, provenance)
    except ConfigError as error:
        raise ConfigError(dict.fromkeys([*problems, *error.problems])) from None
    if problems:
        raise ConfigError(problems)
    origin = Origin(
        digest=digest, bundle=bundle, plan=plan, cluster=cluster_name, overrides=tuple(overrides)
    )
    sections = {f.name: getattr(config, f.name) for f in dataclasses.fields(config)}
    job = Job(**sections, origin=origin, derived=derived, env=cluster.env, site=cluster.site)
    return Resolution(job, tuple(notes), tuple(_dormant(config, provenance)), provenance)


def _refuse_identity(overrides: Sequence[str]) -> None:
    """Raises ConfigError for a `--set` of what describes the recipe and not the training."""
    keys = [override.partition("=")[0].strip() for override in overrides]
    problems = [
        Problem(
            "--set",
            key,
            "can't be set for one run: it says what the recipe is",
            f"fork the recipe and edit {file}",
        )
        for key in keys
        if (file := IDENTITY.get(key.split(".")[0].strip()))
    ]
    if problems:
        raise ConfigError(problems)


def _validated(data: dict[str, object], provenance: Provenance, layers: Sequence[Layer]) -> Config:
    """The config, every missing key blamed on the file that should hold it."""
    blamed = dict(provenance)
    for name, file in FILE_OF_SECTION.items():
        for layer in layers:
            if layer.where.endswith(file):
                blamed.setdefault(name, layer.where)
    return validate(Config, data, blamed, layers[0].where if layers else "--set")


def check(
    config: Config, provenance: Provenance, default: str = "defaults"
) -> tuple[Derived, list[str]]:
    """All the checks on a config of the right shape; the derived integers, and what was clipped.

    default names where a key comes from that no layer set.
    """

    def where_of(key: str) -> str:
        return provenance.get(key, default)

    problems: list[Problem] = [
        *unsupported(config, where_of),
        *dataset_problems(config, where_of),
        *folder_problems(config, where_of),
        *contradictions(config, lambda key: key in provenance, where_of),
    ]
    try:
        derived, notes = derive(config, where_of)
    except ConfigError as error:
        raise ConfigError([*problems, *error.problems]) from None
    if problems:
        raise ConfigError(problems)
    return derived, notes


def _dormant(config: Config, provenance: Provenance) -> Iterator[str]:
    for key in all_keys(Config):
        if key in provenance and (why := sleeping(config, key)):
            yield f"{provenance[key]}: {key} has no effect: {why}"


def with_overrides(job: Job, overrides: Sequence[str]) -> Job:
    """The job with some settings changed and everything derived anew. Raises ConfigError."""
    data = tomllib.loads(to_toml(job))
    for name in ("origin", "derived", "env", "site"):
        data.pop(name)
    merged, _ = merge([Layer("job.toml", data), *parse_overrides(Config, overrides)])
    config = read_section(Config, merged, "--set")
    typed = dict.fromkeys((o.partition("=")[0].strip() for o in overrides), "--set")
    derived, _ = check(config, typed, default="job.toml")
    sections = {f.name: getattr(config, f.name) for f in dataclasses.fields(config)}
    origin = dataclasses.replace(job.origin, overrides=(*job.origin.overrides, *overrides))
    return Job(**sections, origin=origin, derived=derived, env=job.env, site=job.site)
