"""What the trainer honours today, what is dormant, and which settings contradict each other.

A key that would be ignored is refused by name, unless it is dormant: a setting that only matters
under a condition that does not hold (pipeline keys at degree 1) is legal, and `validate` notes it.
"""

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

from titan_recipes.config.datasets import asked_datasets
from titan_recipes.config.hardware import NO_GPU
from titan_recipes.config.load import show
from titan_recipes.config.lora import uses_lora
from titan_recipes.config.quantize import FLOAT8, MX, gathers_float8, quantize_contradictions
from titan_recipes.config.schema import Config
from titan_recipes.errors import Problem

HONOURED: dict[str, tuple[Any, ...]] = {
    "parallelism.pipeline_parallel_expert_parallel_overlap": (False,),
    "parallelism.expert_tensor_parallel_degree": (1,),
    "parallelism.expert_parallel_comm_backend": ("standard",),
    "checkpoint.initial_load_in_hf_quantized": (False,),
    "checkpoint.async_mode": ("disabled", "async"),
    "comm.mode": ("default",),
    "fault_tolerance.enable": (False,),
}
"""The values honoured of each key that has others; keys not listed are honoured in full."""


@dataclass(frozen=True, slots=True)
class Dormancy:
    """Keys, as dotted prefixes, that matter only while `awake` holds.

    why completes "has no effect: ..."; switch is the key that wakes them, never dormant itself.
    """

    keys: tuple[str, ...]
    awake: Callable[[Config], bool]
    why: str
    switch: str = ""


DORMANT: tuple[Dormancy, ...] = (
    Dormancy(
        ("parallelism.pipeline_parallel_", "parallelism.module_fqns_per_model_part"),
        lambda c: c.parallelism.pipeline_parallel_degree > 1,
        "pipeline_parallel_degree is 1",
        switch="parallelism.pipeline_parallel_degree",
    ),
    Dormancy(
        ("optimizer.muon_momentum",), lambda c: c.optimizer.name == "Muon", 'name is not "Muon"'
    ),
    Dormancy(
        ("optimizer.implementation",),
        lambda c: c.optimizer.state_dtype == "parameter" and not c.optimizer.enable_cpu_offload,
        "updates of low-precision or offloaded state have one implementation",
    ),
    Dormancy(
        ("parallelism.pipeline_parallel_expert_parallel_overlap",),
        lambda c: (
            c.parallelism.pipeline_parallel_schedule == "DualPipeV"
            and c.parallelism.expert_parallel_degree > 1
        ),
        'the schedule is not "DualPipeV" with expert_parallel_degree > 1',
    ),
    Dormancy(
        ("parallelism.pipeline_parallel_schedule",),
        lambda c: not c.parallelism.pipeline_parallel_schedule_csv,
        "pipeline_parallel_schedule_csv is the schedule",
        switch="parallelism.pipeline_parallel_schedule_csv",
    ),
    Dormancy(
        tuple(
            f"parallelism.pipeline_parallel_{key}"
            for key in ("first_stage_less_layers", "last_stage_less_layers", "layers_per_stage")
        ),
        lambda c: not c.parallelism.module_fqns_per_model_part,
        "module_fqns_per_model_part says what is in each stage",
    ),
    Dormancy(
        ("parallelism.context_parallel_",),
        lambda c: c.parallelism.context_parallel_degree > 1,
        "context_parallel_degree is 1",
        switch="parallelism.context_parallel_degree",
    ),
    Dormancy(
        ("parallelism.disable_loss_parallel", "parallelism.enable_async_tensor_parallel"),
        lambda c: c.parallelism.tensor_parallel_degree > 1,
        "tensor_parallel_degree is 1",
    ),
    Dormancy(
        ("parallelism.expert_parallel_comm_backend",),
        lambda c: c.parallelism.expert_parallel_degree > 1,
        "expert_parallel_degree is 1",
    ),
    Dormancy(
        (
            "training.dataloader.persistent_workers",
            "training.dataloader.prefetch_factor",
        ),
        lambda c: c.training.dataloader.num_workers > 0,
        "training.dataloader.num_workers is 0",
    ),
    Dormancy(
        ("validation.dataloader.persistent_workers", "validation.dataloader.prefetch_factor"),
        lambda c: c.validation.dataloader.num_workers > 0,
        "validation.dataloader.num_workers is 0",
    ),
    Dormancy(
        ("training.loss_chunk_tokens",),
        lambda c: c.training.loss_kernel == "torch",
        'training.loss_kernel is "liger", which chooses its own',
    ),
    Dormancy(
        ("training.dataloader.", "data.num_proc"),
        lambda c: not c.data.streaming,
        "data.streaming is true",
    ),
    Dormancy(
        tuple(
            f"activation_checkpoint.{key}"
            for key in ("early_stop", "preserve_rng_state", "determinism_check", "debug")
        ),
        lambda c: c.activation_checkpoint.mode in ("full", "selective"),
        "activation_checkpoint.mode is not full or selective",
    ),
    Dormancy(
        (
            "parallelism.fsdp_reshard_after_forward",
            "quantize.linear.float8.enable_fsdp_float8_all_gather",
            "comm.",
        ),
        lambda c: c.plan.nodes * c.plan.gpus_per_node > 1,
        "the job has one rank",
    ),
    Dormancy(
        ("comm.trace_buf_size", "comm.save_traces_"),
        lambda c: c.plan.gpu != NO_GPU,
        'plan.gpu is "cpu"',
    ),
    Dormancy(
        ("debug.moe_force_load_balance",),
        lambda c: c.model.moe is not None,
        "the model has no experts",
    ),
    Dormancy(
        ("checkpoint.",),
        lambda c: c.checkpoint.enable,
        "checkpoint.enable is false",
        switch="checkpoint.enable",
    ),
    Dormancy(
        ("checkpoint.initial_load_",),
        lambda c: bool(c.checkpoint.initial_load_path),
        "checkpoint.initial_load_path is not set",
        switch="checkpoint.initial_load_path",
    ),
    Dormancy(
        ("checkpoint.initial_load_in_hf_quantized",),
        lambda c: c.checkpoint.initial_load_in_hf,
        "checkpoint.initial_load_in_hf is false",
    ),
    Dormancy(
        ("checkpoint.export_dtype", "checkpoint.last_save_in_hf"),
        lambda c: c.checkpoint.last_save_model_only,
        "checkpoint.last_save_model_only is false",
    ),
    Dormancy(
        ("checkpoint.enable_ft_dataloader_checkpoints",),
        lambda c: c.fault_tolerance.enable,
        "fault_tolerance.enable is false",
    ),
    Dormancy(
        tuple(
            f"fault_tolerance.{key}"
            for key in ("process_group", "replica_id", "group_size", "min_replica", "semi_sync")
        ),
        lambda c: c.fault_tolerance.enable,
        "fault_tolerance.enable is false",
    ),
    Dormancy(
        ("validation.",),
        lambda c: c.validation.enable,
        "validation.enable is false",
        switch="validation.enable",
    ),
    Dormancy(
        ("compile.",),
        lambda c: c.compile.enable,
        "compile.enable is false",
        switch="compile.enable",
    ),
    Dormancy(
        ("data.chat_template",),
        lambda c: any(asked.is_chat for asked in asked_datasets(c)),
        'no dataset is "chat"',
    ),
    Dormancy(
        ("quantize.linear.float8.", "quantize.grouped_mm.float8."),
        lambda c: FLOAT8 in c.model.converters,
        'model.converters has no "float8"',
    ),
    Dormancy(
        ("quantize.linear.mx.", "quantize.grouped_mm.mx."),
        lambda c: MX in c.model.converters,
        'model.converters has no "mx"',
    ),
    Dormancy(
        ("quantize.linear.float8.precompute_",),
        gathers_float8,
        "weights are not gathered in float8",
    ),
    Dormancy(("lora.",), uses_lora, 'model.converters has no "lora"'),
    Dormancy(
        ("model.print_after_conversion",),
        lambda c: bool(c.model.converters),
        "model.converters is empty",
    ),
    Dormancy(
        ("activation_checkpoint.selective_ac_option",),
        lambda c: c.activation_checkpoint.mode == "selective",
        "activation_checkpoint.mode is not selective",
    ),
    Dormancy(
        ("activation_checkpoint.per_op_sac_", "activation_checkpoint.save_ops"),
        lambda c: (
            c.activation_checkpoint.mode == "selective"
            and c.activation_checkpoint.selective_ac_option == "op"
        ),
        'activation_checkpoint is not selective by "op"',
    ),
    Dormancy(
        ("activation_checkpoint.memory_budget", "activation_checkpoint.visualize_memory_"),
        lambda c: c.activation_checkpoint.mode == "memory_budget",
        "activation_checkpoint.mode is not memory_budget",
    ),
    Dormancy(
        ("profiling.save_traces_folder", "profiling.profiler_"),
        lambda c: c.profiling.enable_profiling,
        "profiling.enable_profiling is false",
    ),
    Dormancy(
        ("profiling.profile_freq",),
        lambda c: c.profiling.enable_profiling or c.profiling.enable_memory_snapshot,
        "profiling is off",
    ),
    Dormancy(
        ("profiling.save_memory_snapshot_folder",),
        lambda c: c.profiling.enable_memory_snapshot,
        "profiling.enable_memory_snapshot is false",
    ),
    Dormancy(
        ("metrics.save_tb_folder", "metrics.save_for_all_ranks"),
        lambda c: c.metrics.enable_tensorboard,
        "metrics.enable_tensorboard is false",
    ),
    Dormancy(
        ("debug.deterministic_warn_only",),
        lambda c: c.debug.deterministic,
        "debug.deterministic is false",
    ),
)


def sleeping(config: Config, key: str) -> str:
    """Why a key has no effect under this config; "" if it has one."""
    for dormancy in DORMANT:
        if key == dormancy.switch:
            continue
        if key.startswith(dormancy.keys) and not dormancy.awake(config):
            return dormancy.why
    return ""


def value_at(config: Any, dotted: str) -> Any:
    """The value of a dotted key; None where a table above it is left out."""
    for part in dotted.split("."):
        config = None if config is None else getattr(config, part)
    return config


def unsupported(config: Config, where_of: Callable[[str], str]) -> Iterator[Problem]:
    """Every awake setting that the trainer does not honour yet."""
    for key, honoured in HONOURED.items():
        value = value_at(config, key)
        if value not in honoured and not sleeping(config, key):
            cure = f"use {', '.join(show(choice) for choice in honoured)}"
            yield Problem(where_of(key), key, f"{show(value)} is not supported yet", cure)


def contradictions(
    config: Config, explicit: Callable[[str], bool], where_of: Callable[[str], str]
) -> Iterator[Problem]:
    """Pairs of settings that can't both be meant. `explicit(key)`: some layer wrote it."""

    def clash(key: str, other: str, cure: str) -> Problem:
        return Problem(where_of(key), key, f"contradicts {other}", cure)

    if config.data.sources:
        for key in ("training.dataset", "training.dataset_path"):
            if explicit(key):
                yield clash(key, "data.sources", "the mixture names its own datasets; keep one")
    budgeted = config.activation_checkpoint.mode == "memory_budget"
    if budgeted and not (config.compile.enable and "model" in config.compile.components):
        cure = 'the compiler keeps to it: set compile.enable = true, with "model" in components'
        yield clash("activation_checkpoint.mode", "blocks that are not compiled", cure)
    if config.training.loss_kernel == "liger":
        split = ("tensor_parallel_degree", "pipeline_parallel_degree")
        others = [f"{key} > 1" for key in split if getattr(config.parallelism, key) > 1]
        if config.plan.gpu == NO_GPU:
            others.append('plan.gpu = "cpu"')
        for other in others:
            cure = 'its kernels are of whole matrices on CUDA; use "torch"'
            yield clash("training.loss_kernel", other, cure)
    if config.model.tokenizer_path and config.model.hf_assets_path:
        yield clash("model.tokenizer_path", "model.hf_assets_path", "keep one")
    if config.data.streaming:
        if config.data.sources:
            yield clash("data.streaming", "data.sources", "a mixture reads prepared shards")
        if explicit("data.shuffle") and config.data.shuffle:
            yield clash("data.streaming", "data.shuffle", "a stream comes in its own order")
        if config.data.document_mask:
            cure = "a stream does not say where documents begin"
            yield clash("data.document_mask", "data.streaming", cure)
    if (config.training.dtype, config.training.mixed_precision_param) == ("bfloat16", "float32"):
        cure = 'parameters in bfloat16 are computed in it; set mixed_precision_param = "bfloat16"'
        yield clash("training.mixed_precision_param", 'training.dtype = "bfloat16"', cure)
    if config.profiling.enable_memory_snapshot and config.plan.gpu == NO_GPU:
        cure = "only CUDA's allocator keeps a history"
        yield clash("profiling.enable_memory_snapshot", 'plan.gpu = "cpu"', cure)
    for key, other, cure in quantize_contradictions(config, explicit):
        yield clash(key, other, cure)
    if config.training.enable_cpu_offload and config.plan.nodes * config.plan.gpus_per_node == 1:
        cure = "offload is FSDP's, and one rank has none; use two ranks or more, or leave it out"
        yield clash("training.enable_cpu_offload", "a job of one rank", cure)
    checkpoint = config.checkpoint
    if checkpoint.load_only and checkpoint.create_seed_checkpoint:
        yield clash("checkpoint.create_seed_checkpoint", "checkpoint.load_only", "keep one")
    if checkpoint.initial_load_in_hf and not checkpoint.initial_load_model_only:
        cure = "such a folder holds weights only"
        yield clash("checkpoint.initial_load_in_hf", "initial_load_model_only = false", cure)
    if checkpoint.create_seed_checkpoint and not checkpoint.enable:
        yield clash("checkpoint.create_seed_checkpoint", "checkpoint.enable = false", "enable it")
    if config.profiling.enable_profiling:
        window = config.profiling.profiler_warmup + config.profiling.profiler_active
        if window > config.profiling.profile_freq:
            yield Problem(
                where_of("profiling.profile_freq"),
                "profiling.profile_freq",
                f"got {config.profiling.profile_freq}",
                f"must be at least profiler_warmup + profiler_active = {window}",
            )
