"""Activation checkpointing: recompute a block's activations in backward instead of keeping them.

"full" recomputes every block (arXiv:1604.06174); "selective" with a number n every n-th; with "op"
each block keeps the outputs of the costly operations (half of the matmuls, attention, collectives)
and recomputes the rest, which costs little time for most of the memory. With "memory_budget" the
compiler decides for each compiled block, as a knapsack of run time over memory.
"""

import functools
from collections import defaultdict
from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import nn
from torch.distributed.algorithms._checkpoint.checkpoint_wrapper import checkpoint_wrapper
from torch.utils.checkpoint import (
    SAC_IGNORED_OPS,
    CheckpointPolicy,
    create_selective_checkpoint_contexts,
)

from titan_recipes.config.schema import ActivationCheckpoint
from titan_recipes.errors import ConfigError, Problem
from titan_recipes.trainer.model.decoder import Decoder

MATMULS = frozenset({"aten.mm", "aten._scaled_mm"})
SAVED_OPS = MATMULS | {
    "aten._grouped_mm",
    "aten._scaled_grouped_mm",
    "titan_recipes.looped_mm",
    "aten._scaled_dot_product_flash_attention",
    "aten._scaled_dot_product_efficient_attention",
    "aten._scaled_dot_product_cudnn_attention",
    "aten._scaled_dot_product_flash_attention_for_cpu",
    "titan_recipes.context_parallel_attention",
    "flex_attention",
    "inductor_compiled_code",
    "torch_attn._varlen_attn",
    "aten.max",  # of float8 scales
    "_c10d_functional.reduce_scatter_tensor",
    "_c10d_functional.all_to_all_single",
}
"""What "op" keeps, unless the job names its own."""


# Labels for the profiler, which FSDP writes a different number of times when a block is recomputed.
SAC_IGNORED_OPS.update(
    {
        torch.ops.profiler._record_function_enter_new.default,
        torch.ops.profiler._record_function_exit._RecordFunction,
    }
)


def apply_activation_checkpoint(model: Decoder, config: ActivationCheckpoint) -> None:
    """Wrap the model's blocks in place, as `mode` and `selective_ac_option` say.

    Raises ConfigError for an operator that torch does not have.
    """
    if config.mode == "none":
        return
    if config.mode == "memory_budget":
        set_memory_budget(config)
        return
    options: dict[str, Any] = {
        "preserve_rng_state": config.preserve_rng_state,
        "determinism_check": config.determinism_check,
        "early_stop": config.early_stop,
        "debug": config.debug,
    }
    by_op = config.mode == "selective" and config.selective_ac_option == "op"
    every = 1 if by_op or config.mode == "full" else int(config.selective_ac_option)
    saved = saved_ops(config.save_ops)
    for index, (name, block) in enumerate(model.layers.items()):
        if index % every:
            continue
        if by_op:
            recomputed = _weight_shapes(
                block, f"layers.{name}", config.per_op_sac_force_recompute_mm_shapes_by_fqns
            )
            options["context_fn"] = _selective_contexts(saved, recomputed)
        model.layers[name] = checkpoint_wrapper(block, **options)


def set_memory_budget(config: ActivationCheckpoint) -> None:
    """Have the compiler keep this share of what it would keep by itself."""
    # Here, as it imports torch's compiler, which other jobs can do without.
    import torch._functorch.config as functorch

    functorch.activation_memory_budget = config.memory_budget
    functorch.visualize_memory_budget_pareto = config.visualize_memory_budget_pareto


def saved_ops(names: Sequence[str]) -> frozenset[str]:
    """The operators that "op" keeps. Raises ConfigError for one that torch does not have."""
    for name in names:
        namespace, _, op = name.rpartition(".")
        if not hasattr(getattr(torch.ops, namespace or "higher_order"), op):
            problem = Problem(
                "job.toml",
                "activation_checkpoint.save_ops",
                f'torch has no operator "{name}"',
                'name them as "aten.mm"',
            )
            raise ConfigError([problem])
    return frozenset(names) if names else SAVED_OPS


@functools.cache
def op_name(op: Any) -> str:
    """ "aten.mm" of aten.mm.default, "flex_attention" of a higher-order operator."""
    return str(getattr(op, "overloadpacket", op))


def _weight_shapes(block: nn.Module, prefix: str, fqns: tuple[str, ...]) -> set[torch.Size]:
    """Shapes [in, out], as a matmul sees them, of the linears with one of `fqns` in their name."""
    return {
        torch.Size((linear.in_features, linear.out_features))
        for name, linear in block.named_modules()
        if isinstance(linear, nn.Linear) and any(fqn in f"{prefix}.{name}" for fqn in fqns)
    }


def _selective_contexts(
    saved: frozenset[str], recomputed_shapes: set[torch.Size]
) -> Callable[[], Any]:
    def contexts() -> Any:
        matmuls: dict[bool, int] = defaultdict(int)

        def policy(context: Any, op: Any, *args: Any, **kwargs: Any) -> CheckpointPolicy:
            name = op_name(op)
            keep = name in saved
            if keep and name in MATMULS:
                if args[1].shape in recomputed_shapes:
                    return CheckpointPolicy.PREFER_RECOMPUTE
                # Every second matmul: the pairs of a gated feed-forward cost the most memory.
                matmuls[context.is_recompute] += 1
                keep = saved is not SAVED_OPS or matmuls[context.is_recompute] % 2 == 1
            return CheckpointPolicy.MUST_SAVE if keep else CheckpointPolicy.PREFER_RECOMPUTE

        return create_selective_checkpoint_contexts(policy)

    return contexts
