"""The job: recipe, plan and cluster resolved into one frozen value, and its text forms.

`job.toml` in the run directory holds every value and is all that the trainer reads. On a command
line a job travels as one argument: base64 of the zlib-compressed TOML. No secret is in it.
"""

import base64
import binascii
import dataclasses
import zlib
from pathlib import Path
from typing import Any, cast

import tomli_w

from titan_recipes.config.load import loads, read_section
from titan_recipes.config.schema import SCHEMA_VERSION, Config, section
from titan_recipes.config.site import Site
from titan_recipes.errors import ConfigError, Problem


@section
class Origin:
    """[origin]: what was resolved into this job."""

    schema_version: int = SCHEMA_VERSION
    """Version of the job's own format."""
    digest: str
    """sha256 over the bundle's sorted files."""
    bundle: str
    """The bundle's directory; "" = the packaged recipe of that name."""
    plan: str
    """Name of the plan."""
    cluster: str
    """Name of the cluster profile; "" = none."""
    overrides: tuple[str, ...] = ()
    """The `--set` arguments, as typed."""


@section
class Derived:
    """[derived]: every integer that follows from the rest; computed once, in `config.plan`."""

    world_size: int
    """Ranks in all."""
    dp_replicate: int
    """Copies of the model."""
    dp_shard: int
    """Ranks that shard one copy."""
    cp: int
    """Context-parallel degree."""
    tp: int
    """Tensor-parallel degree."""
    pp: int
    """Pipeline-parallel degree."""
    ep: int
    """Expert-parallel degree."""
    global_batch_size: int
    """Sequences in one optimizer step."""
    gradient_accumulation_steps: int
    """Forward-backward passes of each rank in one optimizer step."""
    tokens_per_step: int
    """Tokens in one optimizer step."""
    warmup_steps: int
    """lr_scheduler.warmup_steps, clipped to the schedule."""
    decay_steps: int
    """Steps that decay, at the end of the schedule."""
    schedule_steps: int
    """Steps that the schedule spans."""
    num_params: int
    """Parameters of the model, tied matrices counted once."""
    flops_per_token: int
    """Forward and backward FLOPs of one trained token at training.seq_len."""


@section
class Job(Config):
    """A resolved job: the whole config, where it comes from and what follows from it."""

    origin: Origin
    derived: Derived
    env: dict[str, str] = dataclasses.field(default_factory=dict[str, str])
    """Environment of every rank, from the cluster profile."""
    site: Site = dataclasses.field(default_factory=Site)
    """Where and in what it runs, from the cluster profile."""

    @property
    def recipe_id(self) -> str:
        """`name@version`."""
        return f"{self.recipe.name}@{self.recipe.version}"

    @property
    def dp_degree(self) -> int:
        """Ranks that read different data."""
        return self.derived.dp_replicate * self.derived.dp_shard


def _without_none(table: dict[str, Any]) -> dict[str, Any]:
    """TOML has no null: the one table that may be missing, model.rope_scaling, is left out."""
    kept: dict[str, Any] = {}
    for key, value in table.items():
        if isinstance(value, dict):
            kept[key] = _without_none(cast(dict[str, Any], value))
        elif value is not None:
            kept[key] = value
    return kept


def to_toml(job: Job) -> str:
    """The text of job.toml, every value explicit."""
    return tomli_w.dumps(_without_none(dataclasses.asdict(job)))


def from_toml(text: str, where: str) -> Job:
    """Read job.toml. Raises ConfigError; `where` names the text in it."""
    try:
        data = loads(text)
    except ValueError as error:
        raise ConfigError([Problem(where, "", f"not TOML: {error}")]) from error
    return read_section(Job, data, where)


def read_job(path: Path) -> Job:
    """Read a job.toml file. Raises ConfigError."""
    try:
        text = path.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise ConfigError([Problem(str(path), "", f"can't be read: {error}")]) from error
    return from_toml(text, str(path))


def encode(job: Job) -> str:
    """One command-line argument that holds the job: base64url of compressed TOML."""
    return base64.urlsafe_b64encode(zlib.compress(to_toml(job).encode(), level=9)).decode()


def decode(text: str) -> Job:
    """The job that `encode` wrote. Raises ConfigError where the text was damaged on its way."""
    try:
        toml = zlib.decompress(base64.urlsafe_b64decode(text)).decode()
    except (binascii.Error, zlib.error, UnicodeDecodeError) as error:
        problem = Problem(
            "--job", "", f"not an encoded job ({error})", "render the component again"
        )
        raise ConfigError([problem]) from error
    return from_toml(toml, "--job")
