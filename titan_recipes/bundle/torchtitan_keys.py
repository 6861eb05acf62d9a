"""What became of torchtitan's TOML keys: the facts that `titan-recipes import` goes by.

Sources: torchtitan's config_manager.py of v0.1.0 and job_config.py of v0.2.2, and its release notes
for the names before those. Keys that are not here have the same name and meaning in our schema.
"""

OLD_KEYS = {
    "activation_checkpoint.selective_ac_type": "activation_checkpoint.selective_ac_option",
    "checkpoint.enable_checkpoint": "checkpoint.enable",
    "checkpoint.initial_load_model_weights_only": "checkpoint.initial_load_model_only",
    "checkpoint.last_save_model_weights_only": "checkpoint.last_save_model_only",
    "checkpoint.model_weights_only": "checkpoint.last_save_model_only",
    "experimental.context_parallel_degree": "parallelism.context_parallel_degree",
    "experimental.context_parallel_rotate_method": "parallelism.context_parallel_rotate_method",
    "experimental.enable_async_tensor_parallel": "parallelism.enable_async_tensor_parallel",
    "experimental.pipeline_parallel_degree": "parallelism.pipeline_parallel_degree",
    "experimental.pipeline_parallel_schedule": "parallelism.pipeline_parallel_schedule",
    "experimental.pipeline_parallel_schedule_csv": "parallelism.pipeline_parallel_schedule_csv",
    "float8.emulate": "quantize.linear.float8.emulate",
    "float8.enable_fsdp_float8_all_gather": "quantize.linear.float8.enable_fsdp_float8_all_gather",
    "float8.filter_fqns": "quantize.linear.float8.filter_fqns",
    "float8.precompute_float8_dynamic_scale_for_fsdp": (
        "quantize.linear.float8.precompute_float8_dynamic_scale_for_fsdp"
    ),
    "float8.recipe_name": "quantize.linear.float8.recipe_name",
    "lr_scheduler.lr_min": "lr_scheduler.min_lr_factor",
    "mx.filter_fqns": "quantize.linear.mx.filter_fqns",
    "mx.recipe_name": "quantize.linear.mx.recipe_name",
    "mx.use_fp8_dim1_cast_triton_kernel": "quantize.linear.mx.mxfp8_dim1_cast_kernel_choice",
    "training.batch_size": "training.local_batch_size",
    "training.compile": "compile.enable",
    "training.data_parallel_degree": "parallelism.data_parallel_shard_degree",
    "training.data_parallel_replicate_degree": "parallelism.data_parallel_replicate_degree",
    "training.data_parallel_shard_degree": "parallelism.data_parallel_shard_degree",
    "training.deterministic": "debug.deterministic",
    "training.disable_loss_parallel": "parallelism.disable_loss_parallel",
    "training.fsdp_reshard_after_forward": "parallelism.fsdp_reshard_after_forward",
    "training.seed": "debug.seed",
    "training.tensor_parallel_degree": "parallelism.tensor_parallel_degree",
    "training.warmup_steps": "lr_scheduler.warmup_steps",
}
"""Key of v0.1.0 or before -> its name in v0.2.2 and here; finding one tells that a file is old."""

CONVERTERS = {
    "quantize.linear.float8": "float8",
    "quantize.grouped_mm.float8": "float8",
    "quantize.linear.mx": "mx",
    "quantize.grouped_mm.mx": "mx",
}
"""v0.2.2's names in model.converters -> ours."""

AUTO_FILTER = "auto_filter_small_kn"
"""In filter_fqns no name, but a switch; here quantize.linear.float8.skip_small."""

OLD_ONLY = (
    *OLD_KEYS,
    "experimental.pipeline_parallel_split_points",
    "parallelism.enable_compiled_autograd",
    "parallelism.pipeline_parallel_split_points",
    "float8.force_recompute_fp8_weight_in_bwd",
    "job.print_args",
    "job.use_for_integration_test",
    "memory_estimation.enabled",
)
"""Every key by which a file is known to be of v0.1.0 or before."""

DROPPED = {
    "experimental.custom_args_module": "a bundle holds no Python",
    "experimental.custom_import": "a bundle holds no Python",
    "fault_tolerance.fragment_sync_delay": "torchft's DiLoCo options are not in v0.2.2 either",
    "fault_tolerance.fragment_update_alpha": "torchft's DiLoCo options are not in v0.2.2 either",
    "fault_tolerance.should_quantize": "torchft's DiLoCo options are not in v0.2.2 either",
    "fault_tolerance.sync_steps": "torchft's DiLoCo options are not in v0.2.2 either",
    "float8.force_recompute_fp8_weight_in_bwd": "gone since v0.2: FSDP recomputes by itself",
    "job.config_file": "the bundle is the configuration",
    "job.custom_config_module": "a bundle holds no Python",
    "job.dump_folder": "each run has its own directory: `launch --outputs DIR`",
    "job.print_args": "`titan-recipes show --resolved` prints every value",
    "job.print_config": "`titan-recipes show --resolved` prints every value",
    "job.save_config_file": "each run keeps its job.toml",
    "job.use_for_integration_test": "a mark of upstream's own tests",
    "memory_estimation.disable_fake_mode": "not part of a training configuration here",
    "memory_estimation.enable": "not part of a training configuration here",
    "memory_estimation.enabled": "not part of a training configuration here",
    "parallelism.enable_compiled_autograd": "gone since v0.2",
}
"""Key -> why it has no place here."""

FLAVORS = {
    "debugmodel": "llama3_debug",
    "1B": "llama3_1b",
    "3B": "llama3_3b",
    "8B": "llama3_8b",
    "70B": "llama3_70b",
    "405B": "llama3_405b",
}
"""model.flavor of model.name = "llama3" -> the packaged recipe with these numbers."""

OURS = ("recipe.", "assets.", "model.", "plan.", "expect.", "data.")
"""Starts of keys that torchtitan does not have, but for MODEL_KEYS."""

MODEL_KEYS = (
    "model.converters",
    "model.hf_assets_path",
    "model.print_after_conversion",
    "model.tokenizer_path",
)
"""The keys of [model] that both have."""

PATHS = (
    "checkpoint.initial_load_path",
    "model.hf_assets_path",
    "model.tokenizer_path",
    "training.dataset_path",
    "validation.dataset_path",
)
"""Keys that hold a path, which upstream takes from its working directory."""

IN_PLAN = ("parallelism.", "activation_checkpoint.", "compile.", "quantize.", "model.converters")
"""Starts of the keys that go into the plan, since they depend on the hardware."""

V022_ROPE_SCALING = {
    "factor": 8.0,
    "low_freq_factor": 1.0,
    "high_freq_factor": 4.0,
    "original_max_seq_len": 8192,
}
"""v0.2.2 stretches RoPE like this in every llama3 flavor; v0.1.0 in none."""
