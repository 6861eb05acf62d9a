"""What a run writes and survives: metrics, profiles, checkpoints, timeouts, restarts."""

from typing import Literal

from titan_recipes.config.schema.fields import MinusOneOrMore, NonNegative, Positive, section


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
    """The last checkpoint is written as Hugging Face safetensors too, in a folder beside it."""
    export_dtype: Literal["float16", "bfloat16", "float32"] = "float32"
    """Type of the weights in a model-only checkpoint."""
    async_mode: Literal["disabled", "async", "async_with_pinned_mem"] = "disabled"
    """Write while training goes on."""
    keep_latest_k: NonNegative = 10
    """Newest checkpoints kept; 0 = all."""
    load_step: MinusOneOrMore = -1
    """Resume from this step; -1 = the newest that verifies."""
    exclude_from_loading: tuple[Literal["optimizer", "lr_scheduler", "dataloader", "rng"], ...] = ()
    """Parts not loaded from a checkpoint."""
    enable_first_step_checkpoint: bool = False
    """Save after step 1 too, to find out early whether saving works."""
    create_seed_checkpoint: bool = False
    """Save the freshly initialized model as step 0 and stop (one rank)."""
    load_only: bool = False
    """Load, but never save."""


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
