"""Activation checkpointing: recompute a block's activations in backward instead of keeping them.

"full" recomputes every block (arXiv:1604.06174); "selective" with a number n every n-th; with "op"
each block keeps the outputs of the costly operations (half of the matmuls, attention, collectives)
and recomputes the rest, which costs little time for most of the memory.
"""

from collections import defaultdict
from collections.abc import Callable
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
from titan_recipes.trainer.model.decoder import Decoder
from titan_recipes.trainer.model.grouped import LOOPED_MM
from titan_recipes.trainer.parallel.context_parallel import CONTEXT_PARALLEL_ATTENTION

_aten = torch.ops.aten

SAVED_OPS = frozenset(
    {
        _aten.mm.default,
        _aten._grouped_mm.default,
        LOOPED_MM,
        _aten._scaled_dot_product_flash_attention.default,
        _aten._scaled_dot_product_efficient_attention.default,
        _aten._scaled_dot_product_cudnn_attention.default,
        _aten._scaled_dot_product_flash_attention_for_cpu.default,
        CONTEXT_PARALLEL_ATTENTION,
        torch.ops._c10d_functional.reduce_scatter_tensor.default,
        torch.ops._c10d_functional.all_to_all_single.default,
    }
)


# Labels for the profiler, which FSDP writes a different number of times when a block is recomputed.
SAC_IGNORED_OPS.update(
    {
        torch.ops.profiler._record_function_enter_new.default,
        torch.ops.profiler._record_function_exit._RecordFunction,
    }
)


def apply_activation_checkpoint(model: Decoder, config: ActivationCheckpoint) -> None:
    """Wrap the model's blocks in place, as `mode` and `selective_ac_option` say."""
    if config.mode == "none":
        return
    options: dict[str, Any] = {
        "preserve_rng_state": config.preserve_rng_state,
        "determinism_check": config.determinism_check,
        "early_stop": config.early_stop,
        "debug": config.debug,
    }
    every = 1
    if config.mode == "selective" and config.selective_ac_option != "op":
        every = int(config.selective_ac_option)
    for index, (name, block) in enumerate(model.layers.items()):
        if index % every:
            continue
        if config.mode == "selective" and config.selective_ac_option == "op":
            recomputed = _weight_shapes(
                block, f"layers.{name}", config.per_op_sac_force_recompute_mm_shapes_by_fqns
            )
            options["context_fn"] = _selective_contexts(recomputed)
        model.layers[name] = checkpoint_wrapper(block, **options)


def _weight_shapes(block: nn.Module, prefix: str, fqns: tuple[str, ...]) -> set[torch.Size]:
    """Shapes [in, out], as a matmul sees them, of the linears with one of `fqns` in their name."""
    return {
        torch.Size((linear.in_features, linear.out_features))
        for name, linear in block.named_modules()
        if isinstance(linear, nn.Linear) and any(fqn in f"{prefix}.{name}" for fqn in fqns)
    }


def _selective_contexts(recomputed_shapes: set[torch.Size]) -> Callable[[], Any]:
    def contexts() -> Any:
        matmuls: dict[bool, int] = defaultdict(int)

        def policy(context: Any, op: Any, *args: Any, **kwargs: Any) -> CheckpointPolicy:
            keep = op in SAVED_OPS
            if op is _aten.mm.default:
                if args[1].shape in recomputed_shapes:
                    return CheckpointPolicy.PREFER_RECOMPUTE
                # Every second matmul: the pairs of a gated feed-forward cost the most memory.
                matmuls[context.is_recompute] += 1
                keep = matmuls[context.is_recompute] % 2 == 1
            return CheckpointPolicy.MUST_SAVE if keep else CheckpointPolicy.PREFER_RECOMPUTE

        return create_selective_checkpoint_contexts(policy)

    return contexts
