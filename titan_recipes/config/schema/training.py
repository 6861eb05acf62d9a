"""How the numbers are trained: optimizer, schedule, batches, precision, validation."""

from dataclasses import field
from typing import Annotated, Literal

from titan_recipes.config.schema.fields import (
    Bounds,
    Fraction,
    MinusOneOrFraction,
    MinusOneOrPositive,
    NonNegative,
    NonNegativeFloat,
    Positive,
    PositiveFloat,
    section,
)

Beta = Annotated[float, Bounds(ge=0, lt=1)]
MinusOneOrDecay = Annotated[float, Bounds(ge=0, or_minus_one=True)]


@section
class ParameterGroup:
    """[[optimizer.groups]] (ours): parameters with settings of their own."""

    pattern: str
    """A regular expression found anywhere in a parameter's name, "layers.0.ffn_norm.weight"."""
    weight_decay: MinusOneOrDecay = -1.0
    """Their weight decay; -1 = optimizer.weight_decay."""
    lr_scale: PositiveFloat = 1.0
    """Their learning rate, as a share of the schedule's."""


@section
class Optimizer:
    """[optimizer]."""

    name: Literal["Adam", "AdamW", "Muon"] = "AdamW"
    """AdamW decouples weight decay from the gradient; Adam adds it to the gradient. "Muon" (ours):
    orthogonalized momentum for the blocks' matrices, AdamW for all else."""
    lr: PositiveFloat = 8e-4
    """Peak learning rate."""
    beta1: Beta = 0.9
    """Decay of the first moment."""
    beta2: Beta = 0.95
    """Decay of the second moment."""
    eps: PositiveFloat = 1e-8
    """Added to the root of the second moment."""
    weight_decay: NonNegativeFloat = 0.1
    """Weight decay, for every parameter that is in no group with its own."""
    implementation: Literal["for-loop", "foreach", "fused"] = "fused"
    """How the update is computed."""
    early_step_in_backward: bool = False
    """Apply each parameter's update as soon as its gradient is there, and free the gradient."""
    muon_momentum: Beta = 0.95
    """Decay of Muon's momentum (ours)."""
    state_dtype: Literal["parameter", "bfloat16", "8bit"] = "parameter"
    """How Adam and AdamW keep their moments (ours): as the parameters, in bfloat16, or in 8 bits
    with a scale for each 256. The arithmetic is float32 in all but the first."""
    enable_cpu_offload: bool = False
    """Keep the moments of Adam and AdamW in host memory and update there (ours); parameters and
    gradients stay on the device."""
    groups: tuple[ParameterGroup, ...] = ()
    """Parameters with settings of their own (ours); the first group that matches a name has it."""


@section
class LRScheduler:
    """[lr_scheduler]: linear warmup, a stable stretch, then decay."""

    warmup_steps: NonNegative = 200
    """Steps from 0 to the peak rate."""
    total_steps: MinusOneOrPositive = -1
    """Steps the schedule spans; -1 = training.steps. Past them the rate stays as it is."""
    decay_ratio: MinusOneOrFraction = -1.0
    """Share of the schedule that decays, at its end; -1 = all after warmup, 0 = none."""
    decay_type: Literal["linear", "sqrt", "cosine"] = "linear"
    """Shape of the decay."""
    min_lr_factor: Fraction = 0.0
    """The rate at the end, as a share of the peak."""


@section
class DataLoader:
    """[training.dataloader]: torch DataLoader's own options."""

    num_workers: NonNegative = 0
    """Processes that read batches; 0 = the trainer itself (shards need no more)."""
    persistent_workers: bool = False
    """Keep the workers between epochs."""
    pin_memory: bool = False
    """Batches in page-locked memory."""
    prefetch_factor: MinusOneOrPositive = -1
    """Batches read ahead by each worker; -1 = torch's default."""


@section
class Training:
    """[training]."""

    dataset: str = "c4_test"
    """The data by name: "stdlib", "text", "chat", "c4", "c4_test", "hub", each also
    "..._validation"."""
    dataset_path: str = ""
    """Where the dataset is: a file, directory or glob of jsonl, parquet or txt; for "hub" the
    repository. "" = the dataset's own place. "chat" reads rows of messages."""
    local_batch_size: Positive = 8
    """Sequences in one forward pass of one data-parallel rank."""
    global_batch_size: MinusOneOrPositive = -1
    """Sequences in one optimizer step over all ranks; -1 = local_batch_size x dp degree."""
    seq_len: Positive = 2048
    """Tokens in one sequence."""
    max_norm: NonNegativeFloat = 1.0
    """Gradients are scaled down to this global norm; 0 = never."""
    steps: Positive = 10000
    """Optimizer steps in the whole training."""
    enable_cpu_offload: bool = False
    """Keep parameters, gradients and optimizer state in host memory (FSDP)."""
    dtype: Literal["bfloat16", "float32"] = "float32"
    """Type of parameters and optimizer state."""
    mixed_precision_param: Literal["bfloat16", "float32"] = "bfloat16"
    """Type that parameters are cast to for compute."""
    mixed_precision_reduce: Literal["float32"] = "float32"
    """Type that gradients are reduced in."""
    loss_chunk_tokens: Annotated[int, Bounds(ge=-1)] = -1
    """Tokens whose logits exist at once (ours): -1 = as many as take 512 MiB, 0 = all."""
    loss_kernel: Literal["torch", "liger"] = "torch"
    """What computes the loss (ours); "liger" = liger-kernel, where installed, on CUDA."""
    z_loss_weight: NonNegativeFloat = 0.0
    """Weight of the squared log-sum of each token's logits in the training loss (ours)."""
    gc_freq: Positive = 50
    """Steps from one garbage collection to the next; Python's own is off."""
    gc_debug: bool = False
    """Look for reference cycles: collect everything at each collection and log what was found."""
    dataloader: DataLoader = field(default_factory=DataLoader)


@section
class Validation:
    """[validation]: loss on held-out text, into validation.jsonl."""

    enable: bool = False
    """Validate."""
    dataset: str = "c4_validation"
    """The data by name, as in training.dataset."""
    dataset_path: str = ""
    """Where it is, as in training.dataset_path."""
    local_batch_size: Positive = 8
    """Sequences in one forward pass of one data-parallel rank."""
    seq_len: Positive = 2048
    """Tokens in one sequence."""
    freq: Positive = 10
    """Training steps from one validation to the next; the last step validates too."""
    steps: MinusOneOrPositive = -1
    """Batches of each validation; -1 = the whole dataset."""
    dataloader: DataLoader = field(default_factory=DataLoader)


@section
class Lora:
    """[lora] (ours): adapters on a frozen model (arXiv:2106.09685); model.converters "lora"."""

    rank: Positive = 16
    """Inner width of an adapter."""
    alpha: PositiveFloat = 32.0
    """What an adapter adds is multiplied by alpha / rank."""
    target_modules: tuple[
        Literal["wq", "wk", "wv", "wo", "wq_a", "wq_b", "wkv_a", "wkv_b", "w1", "w2", "w3"], ...
    ] = ()
    """The linears that get one, in every block; () = all (arXiv:2305.14314, section 4)."""


@section
class Debug:
    """[debug]."""

    seed: Annotated[int, Bounds(ge=0, le=2**63 - 1)] = 0
    """Seed of initialization, data order and every random number."""
    deterministic: bool = False
    """Only algorithms that give the same bits each time."""
    deterministic_warn_only: bool = False
    """... warn where there is none, instead of failing."""
    moe_force_load_balance: bool = False
    """Route tokens evenly, whatever the router says (mixture of experts)."""
