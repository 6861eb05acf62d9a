"""The schema: every key that a TOML file may hold, with its default and meaning.

Section and key names are those of torchtitan v0.2.2, and so are the defaults, except where they
would break a promise of ours (checkpoints on, TensorBoard on, a seed). Keys of our own join the
section they belong to and are marked `ours`. TOML has no null, so "not set" is "" for text and -1
for numbers, and every value can be written out. `titan_recipes.config.support` says which values
the trainer honours today.

Standard library only: `titan_recipes.config.load` gives it to pydantic.
"""

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Annotated, Any, Literal, TypeVar, dataclass_transform

SCHEMA_VERSION = 1


@dataclass(frozen=True, slots=True)
class Bounds:
    """Limits of a number, inclusive unless the name says otherwise; used inside `Annotated`."""

    ge: float | None = None
    gt: float | None = None
    le: float | None = None

    def __get_pydantic_core_schema__(self, source: Any, handler: Callable[[Any], Any]) -> Any:
        limits = {"ge": self.ge, "gt": self.gt, "le": self.le}
        return handler(source) | {k: v for k, v in limits.items() if v is not None}


Positive = Annotated[int, Bounds(ge=1)]
NonNegative = Annotated[int, Bounds(ge=0)]
MinusOneOrMore = Annotated[int, Bounds(ge=-1)]
PositiveFloat = Annotated[float, Bounds(gt=0)]
NonNegativeFloat = Annotated[float, Bounds(ge=0)]
Fraction = Annotated[float, Bounds(ge=0, le=1)]


T = TypeVar("T")


@dataclass_transform(frozen_default=True, kw_only_default=True)
def section(cls: type[T]) -> type[T]:
    """A frozen dataclass that pydantic reads strictly: exact types, no unknown keys, no nan."""
    made = dataclass(frozen=True, slots=True, kw_only=True)(cls)
    made.__pydantic_config__ = {"extra": "forbid", "strict": True, "allow_inf_nan": False}  # type: ignore[attr-defined]
    return made


@section
class Recipe:
    """[recipe] in recipe.toml (ours): what the bundle is."""

    name: str
    """The recipe's name; equal to its directory's."""
    version: str
    """Semantic version, MAJOR.MINOR.PATCH; any change of the bundle raises it."""
    summary: str
    """One line for `titan-recipes list`."""
    default_plan: str
    """The plan used where `--plan` is not given: a file name in plans/, without .toml."""
    requires: str = ">=0.1.0"
    """The titan-recipes versions this bundle works with, as a Python version specifier."""
    tags: tuple[str, ...] = ()
    """Words to search by."""
    deprecated: str = ""
    """Why not to use it any more and what to use instead; "" = not deprecated."""


@section
class Assets:
    """[assets] in recipe.toml (ours): files the recipe needs that may not lie in the bundle."""

    tokenizer: str = ""
    """Tokenizer file or directory: absolute, below `~`, or relative to the bundle. tiktoken
    `.model`, Hugging Face `tokenizer.json` or sentencepiece `.model`, told apart by content."""
    hf_repo: str = ""
    """The Hugging Face repository that publishes weights and tokenizer."""


@section
class RopeScaling:
    """[model.rope_scaling] (ours): Llama 3.1's frequency-dependent stretching of RoPE.

    Source: Llama 3.1's reference code, `apply_scaling`; arXiv:2407.21783, section 3.2.
    """

    factor: PositiveFloat = 8.0
    """How much long wavelengths are stretched."""
    low_freq_factor: PositiveFloat = 1.0
    """Wavelengths above original_max_seq_len / low_freq_factor are stretched in full."""
    high_freq_factor: PositiveFloat = 4.0
    """Wavelengths below original_max_seq_len / high_freq_factor stay as they are."""
    original_max_seq_len: Positive = 8192
    """Sequence length the frequencies were first trained for, in tokens."""


@section
class Model:
    """[model]: the flavor. Every architecture number, and what is done to the model as a whole."""

    family: Literal["llama3"]
    """ours: which model code reads these numbers."""
    dim: Positive
    """ours: model width."""
    n_layers: Positive
    """ours: number of transformer blocks."""
    n_heads: Positive
    """ours: number of query heads."""
    n_kv_heads: Positive
    """ours: number of key and value heads; n_heads is a multiple of it."""
    head_dim: Positive
    """ours: width of one head."""
    ffn_dim: Positive
    """ours: hidden width of the gated feed-forward."""
    vocab_size: Positive
    """ours: rows of the embedding; at least the tokenizer's size."""
    norm_eps: PositiveFloat = 1e-5
    """ours: epsilon of RMSNorm."""
    rope_theta: PositiveFloat = 500000.0
    """ours: base of the rotary embedding's frequencies."""
    rope_scaling: RopeScaling | None = None
    """ours: a table [model.rope_scaling] stretches RoPE; without the table nothing is stretched."""
    tie_embeddings: bool = False
    """ours: the output projection is the embedding's matrix."""
    hf_assets_path: str = ""
    """Directory with Hugging Face assets, searched for a tokenizer; overrides assets.tokenizer."""
    tokenizer_path: str = ""
    """Tokenizer file or directory; overrides assets.tokenizer."""
    converters: tuple[str, ...] = ()
    """Model converters, in order: "float8", "mx"."""
    print_after_conversion: bool = False
    """Print the model after the converters ran."""


@section
class Plan:
    """[plan] in plans/*.toml (ours): the hardware that one parallel plan is made for."""

    nodes: Positive = 1
    """Number of machines."""
    gpus_per_node: Positive = 1
    """Ranks per machine, one for each GPU."""
    gpu: str = "any"
    """GPU model as in the hardware table ("h100"); "cpu" = none is used; "any" = those present."""
    summary: str = ""
    """One line on what the plan is for."""


@section
class Expect:
    """[expect] in plans/*.toml (ours): what the plan is known or predicted to reach."""

    tokens_per_second_per_gpu: NonNegativeFloat = 0.0
    """Trained tokens per second on one GPU; 0 = unknown."""
    peak_memory_gib: NonNegativeFloat = 0.0
    """Highest memory in use on one GPU, in GiB; 0 = unknown."""
    source: Literal["", "measured", "predicted"] = ""
    """Where the figures come from; "" = there are none."""


@section
class DataSource:
    """[[data.sources]] (ours): one source of a weighted mixture."""

    dataset: str
    """A dataset by name, as in training.dataset."""
    path: str = ""
    """Where it is: a file, a directory or a glob; for "hub" the repository."""
    weight: PositiveFloat = 1.0
    """Share of the training samples, relative to the other sources' weights."""


@section
class Data:
    """[data] (ours): how text becomes token shards, and shards become samples."""

    sources: tuple[DataSource, ...] = ()
    """A weighted mixture; () = one source, training.dataset at training.dataset_path."""
    text_key: str = "text"
    """The field of a jsonl, parquet or hub row that holds the text."""
    shuffle: bool = True
    """Visit samples in a permutation seeded by debug.seed; false = in the order they are stored."""
    streaming: bool = False
    """Tokenize a hub dataset on the fly instead of preparing shards; resumes at equal dp only."""
    cache_dir: str = ""
    """Where token shards are kept; "" = $TITAN_RECIPES_CACHE, else ~/.cache/titan-recipes."""
    num_proc: MinusOneOrMore = -1
    """Processes that tokenize; -1 = one for each core."""


@section
class Profiling:
    """[profiling]: traces of time and memory, below profiles/ in the run directory."""

    enable_profiling: bool = False
    """Record a torch.profiler trace on every rank each profile_freq steps."""
    save_traces_folder: str = "profile_traces"
    """Folder of the traces, below profiles/."""
    profile_freq: Positive = 10
    """Steps from one trace to the next."""
    profiler_active: Positive = 1
    """Steps recorded in each trace."""
    profiler_warmup: NonNegative = 3
    """Steps run under the profiler, unrecorded, before each trace."""
    enable_memory_snapshot: bool = False
    """Save the allocator's history each profile_freq steps and when memory runs out (CUDA)."""
    save_memory_snapshot_folder: str = "memory_snapshot"
    """Folder of the snapshots, below profiles/."""


@section
class Metrics:
    """[metrics]: what is written down while training. metrics.jsonl is always written."""

    log_freq: Positive = 10
    """Steps from one logged step to the next; the first and the last are always logged."""
    enable_tensorboard: bool = True
    """Write TensorBoard event files."""
    disable_color_printing: bool = False
    """Plain console lines."""
    save_tb_folder: str = "tb"
    """Folder of the event files, below the run directory."""
    save_for_all_ranks: bool = False
    """Every rank writes event files, not only rank 0."""
    enable_wandb: bool = False
    """Log to Weights & Biases too (extra `wandb`)."""


@section
class Optimizer:
    """[optimizer]."""

    name: Literal["Adam", "AdamW"] = "AdamW"
    """AdamW decouples weight decay from the gradient; Adam adds it to the gradient."""
    lr: PositiveFloat = 8e-4
    """Peak learning rate."""
    beta1: Fraction = 0.9
    """Decay of the first moment."""
    beta2: Fraction = 0.95
    """Decay of the second moment."""
    eps: PositiveFloat = 1e-8
    """Added to the root of the second moment."""
    weight_decay: NonNegativeFloat = 0.1
    """Weight decay, for every parameter."""
    implementation: Literal["for-loop", "foreach", "fused"] = "fused"
    """How the update is computed."""
    early_step_in_backward: bool = False
    """Apply each parameter's update as soon as its gradient is there."""


@section
class LRScheduler:
    """[lr_scheduler]: linear warmup, a stable stretch, then decay."""

    warmup_steps: NonNegative = 200
    """Steps from 0 to the peak rate."""
    total_steps: MinusOneOrMore = -1
    """Steps the schedule spans; -1 = training.steps."""
    decay_ratio: Annotated[float, Bounds(ge=-1, le=1)] = -1.0
    """Share of the steps that decay; -1 = all after warmup."""
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
    prefetch_factor: MinusOneOrMore = -1
    """Batches read ahead by each worker; -1 = torch's default."""


@section
class Training:
    """[training]."""

    dataset: str = "c4_test"
    """The data by name: "stdlib", "text", "c4", "c4_test", "hub", each also "..._validation"."""
    dataset_path: str = ""
    """Where the dataset is: a file, directory or glob of jsonl, parquet or txt; for "hub" the
    repository. "" = the dataset's own place."""
    local_batch_size: Positive = 8
    """Sequences in one forward pass of one data-parallel rank."""
    global_batch_size: MinusOneOrMore = -1
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
    gc_freq: Positive = 50
    """Steps from one garbage collection to the next; Python's own is off."""
    gc_debug: bool = False
    """Look for reference cycles: collect everything at each collection and log what was found."""
    dataloader: DataLoader = field(default_factory=DataLoader)


@section
class Parallelism:
    """[parallelism]: degrees multiply to the world size."""

    data_parallel_replicate_degree: Positive = 1
    """Copies of the model (DDP, HSDP)."""
    data_parallel_shard_degree: MinusOneOrMore = -1
    """Ranks that shard one copy (FSDP2); -1 = all that the other degrees leave."""
    fsdp_reshard_after_forward: Literal["default", "always", "never"] = "default"
    """Free gathered parameters after forward; "default" = yes, unless there is a pipeline."""
    tensor_parallel_degree: Positive = 1
    """Ranks that split each matrix."""
    disable_loss_parallel: bool = False
    """Gather the logits instead of computing the loss on their shards."""
    enable_async_tensor_parallel: bool = False
    """Overlap tensor-parallel collectives with matmuls (compile, CUDA)."""
    pipeline_parallel_degree: Positive = 1
    """Groups of ranks that hold consecutive layers."""
    module_fqns_per_model_part: tuple[tuple[str, ...], ...] = ()
    """Explicit split: the module names of each stage; () = automatic."""
    pipeline_parallel_first_stage_less_layers: NonNegative = 1
    """Layers the embedding counts for in the automatic split."""
    pipeline_parallel_last_stage_less_layers: NonNegative = 1
    """Layers the output projection counts for in the automatic split."""
    pipeline_parallel_layers_per_stage: MinusOneOrMore = -1
    """Layers of one stage; -1 = as many as make one stage a rank (two for looped schedules)."""
    pipeline_parallel_schedule: str = "1F1B"
    """The pipeline schedule's name in torch.distributed.pipelining."""
    pipeline_parallel_schedule_csv: str = ""
    """A schedule read from a CSV file."""
    pipeline_parallel_microbatch_size: Positive = 1
    """Sequences in one microbatch."""
    pipeline_parallel_expert_parallel_overlap: bool = True
    """Overlap expert dispatch with compute in DualPipeV."""
    context_parallel_degree: Positive = 1
    """Ranks that split each sequence."""
    context_parallel_load_balancer: str = "headtail"
    """How a sequence is dealt out; "" = in order."""
    context_parallel_rotate_method: Literal["allgather", "alltoall"] = "allgather"
    """How keys and values travel."""
    expert_parallel_degree: Positive = 1
    """Ranks that hold different experts."""
    expert_tensor_parallel_degree: Positive = 1
    """Ranks that split each expert's matrices."""
    expert_parallel_comm_backend: Literal["standard", "deepep"] = "standard"
    """What moves tokens to experts."""


@section
class Checkpoint:
    """[checkpoint]."""

    enable: bool = True
    """Save checkpoints, and resume from the newest."""
    enable_ft_dataloader_checkpoints: bool = True
    """Save each replica group's data position (fault_tolerance)."""
    folder: str = "checkpoints"
    """Folder of the checkpoints, below the run directory."""
    interval: Positive = 500
    """Steps from one checkpoint to the next; the last step and a stop always save."""
    initial_load_path: str = ""
    """A checkpoint to start from where the run has none of its own."""
    initial_load_model_only: bool = True
    """Take only the weights from initial_load_path, not optimizer, schedule and data position."""
    initial_load_in_hf: bool = False
    """initial_load_path holds Hugging Face safetensors."""
    initial_load_in_hf_quantized: bool = False
    """... in a quantized format."""
    last_save_model_only: bool = False
    """The last checkpoint holds weights only, in export_dtype: such a run can't be continued."""
    last_save_in_hf: bool = False
    """The last checkpoint is saved as Hugging Face safetensors."""
    export_dtype: Literal["float16", "bfloat16", "float32"] = "float32"
    """Type of the weights in a model-only checkpoint."""
    async_mode: Literal["disabled", "async", "async_with_pinned_mem"] = "disabled"
    """Write while training goes on."""
    keep_latest_k: NonNegative = 10
    """Newest checkpoints kept; 0 = all."""
    load_step: MinusOneOrMore = -1
    """Resume from this step; -1 = the newest that verifies."""
    exclude_from_loading: tuple[str, ...] = ()
    """Parts not loaded from a checkpoint: "optimizer", "lr_scheduler", "dataloader", "rng"."""
    enable_first_step_checkpoint: bool = False
    """Save after step 1 too, to find out early whether saving works."""
    create_seed_checkpoint: bool = False
    """Save the freshly initialized model as step 0 and stop (one rank)."""
    load_only: bool = False
    """Load, but never save."""


@section
class ActivationCheckpoint:
    """[activation_checkpoint]: recompute activations in backward instead of keeping them."""

    mode: Literal["selective", "full", "memory_budget", "none"] = "selective"
    """What is recomputed."""
    selective_ac_option: str = "2"
    """"op" = all but the costly ops; a number n = every n-th block in full."""
    per_op_sac_force_recompute_mm_shapes_by_fqns: tuple[str, ...] = ("moe.router.gate",)
    """Linears recomputed under "op" whatever they cost, by name."""
    early_stop: bool = False
    """Stop recomputing a block once all that backward needs is there."""
    memory_budget: Fraction = 0.5
    """Share of the activations kept (mode "memory_budget")."""
    visualize_memory_budget_pareto: bool = False
    """Plot run time over memory for each budget."""
    preserve_rng_state: bool = True
    """Restore the random state before recomputing."""
    determinism_check: str = "default"
    """How recomputed tensors are compared: "default" or "none"."""
    debug: bool = False
    """Trace what is recomputed (slow)."""


@section
class Compile:
    """[compile]: torch.compile, block by block."""

    enable: bool = False
    """Compile."""
    components: tuple[str, ...] = ("model", "loss")
    """What is compiled: "model", "loss"."""
    backend: str = "inductor"
    """torch.compile's backend."""


@section
class Float8Linear:
    """[quantize.linear.float8]."""

    enable_fsdp_float8_all_gather: bool = False
    """Gather parameters in float8 (tensorwise)."""
    precompute_float8_dynamic_scale_for_fsdp: bool = False
    """One all-reduce for all scales after each step."""
    recipe_name: Literal["", "tensorwise", "rowwise", "rowwise_with_gw_hp"] = ""
    """Scaling recipe; "" = tensorwise with the options above."""
    filter_fqns: tuple[str, ...] = ()
    """Linears left as they are, by part of their name."""
    emulate: bool = False
    """Compute in float32 what float8 would give (GPUs without it, CPU)."""


@section
class MXLinear:
    """[quantize.linear.mx]."""

    mxfp8_dim1_cast_kernel_choice: Literal["triton", "cuda", "torch"] = "triton"
    """Kernel of the cast along dim 1."""
    recipe_name: str = "mxfp8_cublas"
    """Scaling recipe."""
    filter_fqns: tuple[str, ...] = ("output",)
    """Linears left as they are, by part of their name."""


@section
class Float8GroupedMM:
    """[quantize.grouped_mm.float8]."""

    fqns: tuple[str, ...] = ()
    """Expert modules converted, by part of their name."""


@section
class MXGroupedMM:
    """[quantize.grouped_mm.mx]."""

    recipe_name: Literal["mxfp8"] = "mxfp8"
    """Scaling recipe."""
    fqns: tuple[str, ...] = ()
    """Expert modules converted, by part of their name."""


@section
class QuantizeLinear:
    """[quantize.linear]."""

    float8: Float8Linear = field(default_factory=Float8Linear)
    mx: MXLinear = field(default_factory=MXLinear)


@section
class QuantizeGroupedMM:
    """[quantize.grouped_mm]."""

    float8: Float8GroupedMM = field(default_factory=Float8GroupedMM)
    mx: MXGroupedMM = field(default_factory=MXGroupedMM)


@section
class Quantize:
    """[quantize]."""

    linear: QuantizeLinear = field(default_factory=QuantizeLinear)
    grouped_mm: QuantizeGroupedMM = field(default_factory=QuantizeGroupedMM)


@section
class Comm:
    """[comm]."""

    init_timeout_seconds: Positive = 300
    """Longest wait for a collective until the first step is done."""
    train_timeout_seconds: Positive = 100
    """Longest wait for a collective after it."""
    trace_buf_size: NonNegative = 20000
    """Entries of NCCL's flight recorder; 0 = off."""
    save_traces_folder: str = "comm_traces"
    """Folder of the flight recorder's dumps, below the run directory."""
    save_traces_file_prefix: str = "rank_"
    """Start of the dumps' file names."""
    mode: Literal["default", "fake_backend", "local_tensor"] = "default"
    """"default" = real collectives."""


@section
class FaultTolerance:
    """[fault_tolerance]: restarts (ours), and torchft's replica groups (upstream's)."""

    max_restarts: NonNegative = 3
    """ours: failures in a row that are retried; a new checkpoint between them resets the count."""
    grace_seconds: Positive = 300
    """ours: time a stopped run has to write its checkpoint before it is killed."""
    enable: bool = False
    """torchft: replica groups that outlive each other."""
    process_group: str = "gloo"
    """torchft: backend between the groups."""
    process_group_timeout_ms: Positive = 10000
    """torchft: longest wait between the groups."""
    replica_id: NonNegative = 0
    """torchft: number of this group."""
    group_size: NonNegative = 0
    """torchft: number of groups."""
    min_replica_size: Positive = 1
    """torchft: fewest groups that train."""
    semi_sync_method: str = ""
    """torchft: "local_sgd", "diloco"."""


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
    steps: MinusOneOrMore = -1
    """Batches of each validation; -1 = the whole dataset."""
    dataloader: DataLoader = field(default_factory=DataLoader)


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
    comm: Comm = field(default_factory=Comm)
    fault_tolerance: FaultTolerance = field(default_factory=FaultTolerance)
    validation: Validation = field(default_factory=Validation)
    debug: Debug = field(default_factory=Debug)
