"""The schema: every key that a TOML file may hold, with its default and meaning.

Section and key names are those of torchtitan v0.2.2, and so are the defaults, except where they
would break a promise of ours (checkpoints on, TensorBoard on, a seed). Keys of our own join the
section they belong to and are marked `ours`. TOML has no null, so "not set" is "" for text and -1
for numbers, and every value can be written out. `titan_recipes.config.support` says which values
the trainer honours today.

Standard library only: `titan_recipes.config.load` gives it to pydantic.
"""

from dataclasses import field

from titan_recipes.config.schema.bundle import (
    Assets,
    Data,
    DataSource,
    Expect,
    Plan,
    Recipe,
)
from titan_recipes.config.schema.fields import (
    Bounds,
    Fraction,
    NonNegative,
    NonNegativeFloat,
    Positive,
    PositiveFloat,
    section,
)
from titan_recipes.config.schema.model import LatentAttention, Model, MoE, RopeScaling
from titan_recipes.config.schema.parallel import (
    ActivationCheckpoint,
    Compile,
    Float8GroupedMM,
    Float8Linear,
    MXGroupedMM,
    MXLinear,
    Parallelism,
    Quantize,
    QuantizeGroupedMM,
    QuantizeLinear,
)
from titan_recipes.config.schema.running import Checkpoint, Comm, FaultTolerance, Metrics, Profiling
from titan_recipes.config.schema.training import (
    DataLoader,
    Debug,
    Lora,
    LRScheduler,
    Optimizer,
    ParameterGroup,
    Training,
    Validation,
)

__all__ = [
    "SCHEMA_VERSION",
    "ActivationCheckpoint",
    "Assets",
    "Bounds",
    "Checkpoint",
    "Comm",
    "Compile",
    "Config",
    "Data",
    "DataLoader",
    "DataSource",
    "Debug",
    "Expect",
    "FaultTolerance",
    "Float8GroupedMM",
    "Float8Linear",
    "Fraction",
    "LRScheduler",
    "LatentAttention",
    "Lora",
    "MXGroupedMM",
    "MXLinear",
    "Metrics",
    "MoE",
    "Model",
    "NonNegative",
    "NonNegativeFloat",
    "Optimizer",
    "Parallelism",
    "ParameterGroup",
    "Plan",
    "Positive",
    "PositiveFloat",
    "Profiling",
    "Quantize",
    "QuantizeGroupedMM",
    "QuantizeLinear",
    "Recipe",
    "RopeScaling",
    "Training",
    "Validation",
    "section",
]

SCHEMA_VERSION = 1


@section
class Config:
    """Everything a bundle and a plan say together, each value explicit."""

    recipe: Recipe
    model: Model
    plan: Plan = field(default_factory=Plan)
    expect: Expect = field(default_factory=Expect)
    assets: Assets = field(default_factory=Assets)
    data: Data = field(default_factory=Data)
    profiling: Profiling = field(default_factory=Profiling)
    metrics: Metrics = field(default_factory=Metrics)
    optimizer: Optimizer = field(default_factory=Optimizer)
    lr_scheduler: LRScheduler = field(default_factory=LRScheduler)
    training: Training = field(default_factory=Training)
    parallelism: Parallelism = field(default_factory=Parallelism)
    checkpoint: Checkpoint = field(default_factory=Checkpoint)
    activation_checkpoint: ActivationCheckpoint = field(default_factory=ActivationCheckpoint)
    compile: Compile = field(default_factory=Compile)
    quantize: Quantize = field(default_factory=Quantize)
    lora: Lora = field(default_factory=Lora)
    comm: Comm = field(default_factory=Comm)
    fault_tolerance: FaultTolerance = field(default_factory=FaultTolerance)
    validation: Validation = field(default_factory=Validation)
    debug: Debug = field(default_factory=Debug)
