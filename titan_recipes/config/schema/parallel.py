"""How the work is split and computed: degrees, recomputation, compile, low precision."""

from dataclasses import field
from typing import Literal

from titan_recipes.config.schema.fields import (
    Fraction,
    MinusOneOrPositive,
    NonNegative,
    Positive,
    section,
)


@section
class Parallelism:
    """[parallelism]: degrees multiply to the world size."""

    data_parallel_replicate_degree: Positive = 1
    """Copies of the model (DDP, HSDP)."""
    data_parallel_shard_degree: MinusOneOrPositive = -1
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
    pipeline_parallel_layers_per_stage: MinusOneOrPositive = -1
    """Layers of one stage; -1 = as many as make one stage a rank (two for looped schedules)."""
    pipeline_parallel_schedule: str = "1F1B"
    """The pipeline schedule's name in torch.distributed.pipelining."""
    pipeline_parallel_schedule_csv: str = ""
    """A schedule read from a CSV file."""
    pipeline_parallel_microbatch_size: Positive = 1
    """Sequences in one microbatch."""
    pipeline_parallel_expert_parallel_overlap: bool = False
    """Overlap expert dispatch with compute in DualPipeV; not built, so that it must be false."""
    context_parallel_degree: Positive = 1
    """Ranks that split each sequence."""
    context_parallel_load_balancer: Literal["headtail", ""] = "headtail"
    """How a sequence is dealt out: "headtail" gives each rank an early and a late chunk, which
    evens out the work; "" = in order."""
    context_parallel_rotate_method: Literal["allgather", "alltoall"] = "allgather"
    """How keys and values travel: one all-gather, or hop by hop (ring attention)."""
    expert_parallel_degree: Positive = 1
    """Ranks that hold different experts."""
    expert_tensor_parallel_degree: Positive = 1
    """Ranks that split each expert's matrices."""
    expert_parallel_comm_backend: Literal["standard", "deepep"] = "standard"
    """What moves tokens to experts."""


@section
class ActivationCheckpoint:
    """[activation_checkpoint]: recompute activations in backward instead of keeping them."""

    mode: Literal["selective", "full", "memory_budget", "none"] = "selective"
    """What is recomputed."""
    selective_ac_option: str = "2"
    """"op" = all but the costly ops; a number n = every n-th block in full."""
    per_op_sac_force_recompute_mm_shapes_by_fqns: tuple[str, ...] = ("moe.router.gate",)
    """Linears recomputed under "op" whatever they cost, by name."""
    save_ops: tuple[str, ...] = ()
    """Operators kept under "op" (ours), such as "aten.mm"; () = every second matmul, attention and
    collectives."""
    enable_offload: bool = False
    """What backward needs of a block waits in host memory (ours), in any mode."""
    early_stop: bool = False
    """Stop recomputing a block once all that backward needs is there."""
    memory_budget: Fraction = 0.5
    """Share of the activations kept (mode "memory_budget")."""
    visualize_memory_budget_pareto: bool = False
    """Plot run time over memory for each budget."""
    preserve_rng_state: bool = True
    """Restore the random state before recomputing."""
    determinism_check: Literal["default", "none"] = "default"
    """How recomputed tensors are compared."""
    debug: bool = False
    """Trace what is recomputed (slow)."""


@section
class Compile:
    """[compile]: torch.compile, block by block."""

    enable: bool = False
    """Compile."""
    components: tuple[Literal["model", "loss"], ...] = ("model", "loss")
    """What is compiled."""
    backend: str = "inductor"
    """torch.compile's backend."""
    cache_dir: str = ""
    """Where compiled code is kept from run to run (ours); "" = titan-recipes/compile in the user's
    cache."""


@section
class Float8Linear:
    """[quantize.linear.float8]."""

    enable_fsdp_float8_all_gather: bool = True
    """Have FSDP gather converted weights in float8, half of bfloat16's bytes; tensorwise only."""
    precompute_float8_dynamic_scale_for_fsdp: bool = True
    """One all-reduce for the scales of all gathered weights, after each step."""
    recipe_name: Literal["", "tensorwise", "rowwise", "rowwise_with_gw_hp"] = ""
    """Scaling recipe; "" = tensorwise. rowwise: a scale for each row and column, closer and slower;
    rowwise_with_gw_hp: the same, with weight gradients in mixed_precision_param."""
    filter_fqns: tuple[str, ...] = ()
    """Linears left as they are, by part of their name; `output` and routers always are."""
    skip_small: bool = True
    """Ours: leave linears as they are whose products are too small to gain (torchao's table)."""
    emulate: bool = False
    """Compute in float32 what float8 would give (GPUs without it, CPU)."""


@section
class MXLinear:
    """[quantize.linear.mx]: microscaled float8, blocks of 32 numbers with a scale each."""

    mxfp8_dim1_cast_kernel_choice: Literal["triton", "cuda", "torch"] = "triton"
    """Kernel of the cast along dim 1."""
    recipe_name: Literal["mxfp8_cublas", "mxfp8_cublas_rceil", "mxfp8_emulated"] = "mxfp8_cublas"
    """mxfp8_cublas rounds scales down, _rceil up (no overflow); _emulated: any device, slowly."""
    filter_fqns: tuple[str, ...] = ("output",)
    """Linears left as they are, by part of their name; `output` and routers always are."""


@section
class Float8GroupedMM:
    """[quantize.grouped_mm.float8]: experts' products in float8 (rowwise), with "float8" in
    model.converters; their weight gradients stay in mixed_precision_param."""

    fqns: tuple[str, ...] = ()
    """Expert modules converted, by part of their name; "experts" = all."""


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
