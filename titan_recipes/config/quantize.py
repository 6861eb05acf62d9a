"""Which matrices a job computes in eight bits, which stay as they are, and why; torch-free.

The trainer converts what `choose` names, so that the laptop can refuse a job, or say what becomes
of its linears, before it waits in a queue. Sides of a matrix are those of one rank's part under
tensor parallelism: it is that product which the GPU computes.
"""

from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import dataclass

from titan_recipes.config.flavor import WhereOf, is_moe_layer
from titan_recipes.config.hardware import ANY_GPU, NO_GPU
from titan_recipes.config.lora import LORA, uses_lora
from titan_recipes.config.schema import Config, Model
from titan_recipes.errors import Problem

FLOAT8, MX = "float8", "mx"
"""Their names in model.converters."""

CONVERTERS = (FLOAT8, MX, LORA)
TENSORWISE = "tensorwise"
MX_EMULATED = "mxfp8_emulated"
SIDE = {FLOAT8: 16, MX: 32}
"""A matrix's sides must be multiples: of 16 bytes for float8 products, of a block's 32 for mx."""

WITHOUT_FLOAT8 = ("a100", "a100-40gb", "a10g", "mi250x")
"""GPUs of `hardware.GPUS` that can't multiply float8: before compute capability 8.9, or CDNA 3."""

WITHOUT_GROUPED = ("l40s", "l40", "l4", "mi300x")
"""GPUs that multiply float8, but not grouped: torch's kernels are of capability 9.0 and 10.0, and
of float8 as NVIDIA's GPUs have it."""

BLACKWELL = ("b200",)
"""GPUs of `hardware.GPUS` with microscaled (mx) products."""


def converter(config: Config) -> str:
    """ "float8", "mx" or "": what the linears are converted to."""
    return next((name for name in (FLOAT8, MX) if name in config.model.converters), "")


def recipe(config: Config) -> str:
    """The scaling recipe, written out."""
    return config.quantize.linear.float8.recipe_name or TENSORWISE


def is_emulated(config: Config) -> bool:
    """Whether eight-bit products are computed in float32, which any device can."""
    linear = config.quantize.linear
    kind = converter(config)
    return linear.float8.emulate if kind == FLOAT8 else linear.mx.recipe_name == MX_EMULATED


def gathers_float8(config: Config) -> bool:
    """Whether FSDP gathers converted weights in float8, one byte a number."""
    return (
        converter(config) == FLOAT8
        and config.quantize.linear.float8.enable_fsdp_float8_all_gather
        and not why_not_gathered(config)
    )


def why_not_gathered(config: Config) -> str:
    """Why float8 can't be gathered in float8 whatever the switch says; "" if it can."""
    if recipe(config) != TENSORWISE:
        return f'recipe_name = "{recipe(config)}", whose scales are not of whole matrices'
    if config.training.enable_cpu_offload:
        return "training.enable_cpu_offload = true, which keeps the scales on the host"
    if config.plan.nodes * config.plan.gpus_per_node == 1:
        return "a job of one rank"
    return ""


def precomputes_scales(config: Config) -> bool:
    """Whether all weights' scales are computed at once after each step."""
    asked = config.quantize.linear.float8.precompute_float8_dynamic_scale_for_fsdp
    return asked and gathers_float8(config)


# --- the linears ----------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class Linear:
    """One linear of the model; its sides are those of a rank's part."""

    name: str
    out_features: int
    in_features: int

    def fits(self, multiple: int) -> bool:
        """Whether both sides are multiples of a number."""
        return self.out_features % multiple == 0 and self.in_features % multiple == 0


def linears(model: Model, tp: int) -> Iterator[Linear]:
    """Every linear of a decoder, by its name there."""
    for layer in range(model.n_layers):
        block = f"layers.{layer}"
        yield from _attention(model, f"{block}.attention", tp)
        if not is_moe_layer(model, layer):
            yield from _feed_forward(model, f"{block}.feed_forward", model.ffn_dim // tp)
            continue
        moe = model.moe
        assert moe is not None
        yield Linear(f"{block}.moe.router.gate", moe.num_experts, model.dim)
        if moe.num_shared_experts:
            hidden = moe.num_shared_experts * moe.ffn_dim // tp
            yield from _feed_forward(model, f"{block}.moe.shared", hidden)
    yield Linear("output", model.vocab_size // tp, model.dim)


def _attention(model: Model, name: str, tp: int) -> Iterator[Linear]:
    heads, mla, dim = model.n_heads // tp, model.mla, model.dim
    if mla is None:
        kv_width = model.n_kv_heads // tp * model.head_dim
        yield Linear(f"{name}.wq", heads * model.head_dim, dim)
        yield Linear(f"{name}.wk", kv_width, dim)
        yield Linear(f"{name}.wv", kv_width, dim)
        yield Linear(f"{name}.wo", dim, heads * model.head_dim)
        return
    if mla.q_lora_rank:
        yield Linear(f"{name}.wq_a", mla.q_lora_rank, dim)
        yield Linear(f"{name}.wq_b", heads * model.head_dim, mla.q_lora_rank)
    else:
        yield Linear(f"{name}.wq", heads * model.head_dim, dim)
    kv_width = heads * (model.head_dim - mla.rope_head_dim + mla.v_head_dim)
    yield Linear(f"{name}.wkv_a", mla.kv_lora_rank + mla.rope_head_dim, dim)
    yield Linear(f"{name}.wkv_b", kv_width, mla.kv_lora_rank)
    yield Linear(f"{name}.wo", dim, heads * mla.v_head_dim)


def _feed_forward(model: Model, name: str, hidden: int) -> Iterator[Linear]:
    yield Linear(f"{name}.w1", hidden, model.dim)
    yield Linear(f"{name}.w2", model.dim, hidden)
    yield Linear(f"{name}.w3", hidden, model.dim)


# --- the choice -----------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class Choice:
    """What becomes of each linear. skipped: the reason of each name that stays as it is."""

    converted: tuple[Linear, ...]
    skipped: dict[str, str]


def choose(config: Config) -> Choice:
    """Which linears are converted, in a job that converts any."""
    converted, skipped = list[Linear](), dict[str, str]()
    for linear in linears(config.model, config.parallelism.tensor_parallel_degree):
        if reason := _why_skipped(linear, config):
            skipped[linear.name] = reason
        else:
            converted.append(linear)
    return Choice(tuple(converted), skipped)


def _why_skipped(linear: Linear, config: Config) -> str:
    kind = converter(config)
    settings = config.quantize.linear.float8 if kind == FLOAT8 else config.quantize.linear.mx
    if linear.name == "output":
        return "the loss multiplies by its weight itself"
    if linear.name.endswith(".gate"):
        return "routers choose by small differences"
    if any(part in linear.name for part in settings.filter_fqns):
        return "filter_fqns"
    if not linear.fits(SIDE[kind]):
        return f"sides not multiples of {SIDE[kind]}"
    if kind == FLOAT8 and config.quantize.linear.float8.skip_small and _is_small(linear, config):
        return f"too small to gain from {recipe(config)}"
    return ""


def _is_small(linear: Linear, config: Config) -> bool:
    """Whether casting costs more time than the faster product saves.

    torchao 0.18's thresholds (`_auto_filter_for_recipe`), taken from H100; it has none for
    rowwise_with_gw_hp, which gets rowwise's.
    """
    out, inner = linear.out_features, linear.in_features
    if recipe(config) == TENSORWISE:
        return inner <= 4096 and out <= 1024
    return out <= 2048 or inner <= 1024 or (out <= 4096 and inner <= 2048)


def grouped_layers(config: Config) -> tuple[str, ...]:
    """The names of the expert modules whose grouped products are converted."""
    grouped, model = config.quantize.grouped_mm, config.model
    fqns = {FLOAT8: grouped.float8.fqns, MX: grouped.mx.fqns, "": ()}[converter(config)]
    names = [
        f"layers.{layer}.moe.experts"
        for layer in range(model.n_layers)
        if is_moe_layer(model, layer)
    ]
    return tuple(name for name in names if any(fqn in name for fqn in fqns))


def quantize_lines(config: Config) -> list[str]:
    """What is converted and what is not, for people; nothing where nothing is asked for."""
    if not (kind := converter(config)):
        return []
    choice = choose(config)
    how = recipe(config) if kind == FLOAT8 else config.quantize.linear.mx.recipe_name
    converted, total = len(choice.converted), len(choice.converted) + len(choice.skipped)
    line = f"{kind} ({how}{', emulated' if is_emulated(config) else ''}): "
    line += f"{converted} of {total} linears"
    if experts := grouped_layers(config):
        line += f", and the experts of {len(experts)} layers"
    if kind == FLOAT8:
        line += f"; {_gathering(config)}"
    reasons = [f"{_shown(choice, reason)}: {reason}" for reason in Counter(choice.skipped.values())]
    return [line, f"{kind} leaves out {'; '.join(reasons)}"]


def _gathering(config: Config) -> str:
    if not gathers_float8(config):
        why = why_not_gathered(config) or "enable_fsdp_float8_all_gather = false"
        return f"weights gathered in {config.training.mixed_precision_param} ({why})"
    scales = "once a step" if precomputes_scales(config) else "at each gather"
    return f"weights gathered in float8, scales computed {scales}"


def _shown(choice: Choice, reason: str) -> str:
    """'64 (wk, wv)': how many linears are left out for a reason, and their own names."""
    names = [name for name, why in choice.skipped.items() if why == reason]
    leaves = dict.fromkeys(name.rpartition(".")[2] for name in names)
    return f"{len(names)} ({', '.join(leaves)})"


# --- what can't work ------------------------------------------------------------------------------


def quantize_problems(config: Config, where_of: WhereOf) -> Iterator[Problem]:
    """Everything wrong with a job's converters."""
    key, names = "model.converters", config.model.converters
    unknown = [name for name in names if name not in CONVERTERS]
    if unknown:
        got = f"no converter {', '.join(unknown)}"
        yield Problem(where_of(key), key, got, f"use {', '.join(CONVERTERS)}")
    if {FLOAT8, MX} <= {*names}:
        yield Problem(where_of(key), key, 'got both "float8" and "mx"', "keep one")
    elif converter(config):
        checks = (_device_problems, _size_problems, _expert_problems)
        for problems in checks:
            yield from problems(config, where_of)


def _device_problems(config: Config, where_of: WhereOf) -> Iterator[Problem]:
    key, kind = "model.converters", converter(config)
    if uses_lora(config):
        got = f'"{kind}" does not go with "lora" yet'
        yield Problem(where_of(key), key, got, "keep one")
    if missing := device_problem(config, config.plan.gpu):
        yield Problem(where_of(key), key, *missing)
    experts = "quantize.grouped_mm.float8.fqns"
    if grouped_layers(config) and not is_emulated(config) and config.plan.gpu in WITHOUT_GROUPED:
        yield Problem(where_of(experts), experts, *needs_grouped(f'plan.gpu = "{config.plan.gpu}"'))
    if config.quantize.grouped_mm.mx.fqns and kind == MX:
        key = "quantize.grouped_mm.mx.fqns"
        got = "grouped products in mx are not supported yet"
        yield Problem(where_of(key), key, got, "leave it out")


def device_problem(config: Config, gpu: str) -> tuple[str, str] | None:
    """(got, cure) where a GPU of the table, or "cpu", can't compute what is asked; else None."""
    kind = converter(config)
    if is_emulated(config) or gpu == ANY_GPU:
        return None
    if kind == FLOAT8 and gpu in (NO_GPU, *WITHOUT_FLOAT8):
        return needs_float8(f'plan.gpu = "{gpu}"')
    if kind == MX and gpu not in BLACKWELL:
        return needs_blackwell(f'plan.gpu = "{gpu}"')
    return None


def needs_float8(found: str) -> tuple[str, str]:
    """(got, cure) where float8 is asked of a device that has none."""
    return (
        f'"float8" needs a GPU with float8 products (H100, L40S, B200, MI300X), but {found}',
        "leave it out, or set quantize.linear.float8.emulate = true to try its numbers, slowly",
    )


def needs_grouped(found: str) -> tuple[str, str]:
    """(got, cure) where experts' products are asked for in float8 of a device that has none."""
    return f"grouped float8 products are of H100, H200 and B200, but {found}", "leave it out"


def needs_blackwell(found: str) -> tuple[str, str]:
    """(got, cure) where mx is asked of a device that has none."""
    return (
        f'"mx" needs a Blackwell GPU (B200), but {found}',
        'use "float8", or set quantize.linear.mx.recipe_name = "mxfp8_emulated" to try its numbers',
    )


def _size_problems(config: Config, where_of: WhereOf) -> Iterator[Problem]:
    key, kind, choice = "model.converters", converter(config), choose(config)
    if not choice.converted and not grouped_layers(config):
        counts = Counter(choice.skipped.values())
        reasons = "; ".join(f"{count}: {reason}" for reason, count in counts.items())
        got = f'"{kind}" would leave out all {len(choice.skipped)} linears ({reasons})'
        too_small = any(reason.startswith("too small") for reason in counts)
        cure = "leave it out"
        if too_small:
            cure += ", or set quantize.linear.float8.skip_small = false"
        yield Problem(where_of(key), key, got, cure)
    if gathers_float8(config):
        yield from _shard_problems(config, choice, where_of)
    multiple, rows = SIDE[kind], _rows(config)
    if not is_emulated(config) and rows % multiple:
        key = "training.seq_len"
        got = (
            f'{rows} tokens in a pass of one rank, which "{kind}" needs in multiples of {multiple}'
        )
        yield Problem(where_of(key), key, got, f"use a multiple of {multiple} * cp")


def _rows(config: Config) -> int:
    """Tokens of one product: of a pass, or of a pipeline's microbatch."""
    p, training = config.parallelism, config.training
    is_piped = p.pipeline_parallel_degree > 1
    sequences = p.pipeline_parallel_microbatch_size if is_piped else training.local_batch_size
    return sequences * training.seq_len // p.context_parallel_degree


def _shard_problems(config: Config, choice: Choice, where_of: WhereOf) -> Iterator[Problem]:
    """FSDP shards rows; a last shard shorter than the others can't be gathered in float8."""
    p, plan = config.parallelism, config.plan
    others = p.data_parallel_replicate_degree * p.tensor_parallel_degree
    shards = max(plan.nodes * plan.gpus_per_node // (others * p.pipeline_parallel_degree), 1)
    if p.data_parallel_shard_degree > 0:
        shards = p.data_parallel_shard_degree * p.context_parallel_degree
    uneven = {
        f"{linear.name.rpartition('.')[2]} of {linear.out_features} rows": None
        for linear in choice.converted
        if linear.out_features % shards
    }
    if uneven:
        key = "quantize.linear.float8.enable_fsdp_float8_all_gather"
        got = f"{shards} shards do not divide {', '.join(uneven)}"
        yield Problem(where_of(key), key, got, "set it to false, or name them in filter_fqns")


def _expert_problems(config: Config, where_of: WhereOf) -> Iterator[Problem]:
    key, model = "quantize.grouped_mm.float8.fqns", config.model
    fqns = config.quantize.grouped_mm.float8.fqns
    if not fqns or converter(config) != FLOAT8:
        return
    if model.moe is None:
        yield Problem(where_of(key), key, "the model has no experts", "leave it out")
        return
    if not grouped_layers(config):
        got, cure = f"no layer's experts match {', '.join(fqns)}", 'use "experts" for all of them'
        yield Problem(where_of(key), key, got, cure)
    sides = {"model.dim": model.dim, "model.moe.ffn_dim": model.moe.ffn_dim}
    if uneven := [f"{name} = {side}" for name, side in sides.items() if side % SIDE[FLOAT8]]:
        got = f"{', '.join(uneven)}: not a multiple of {SIDE[FLOAT8]}"
        yield Problem(where_of(key), key, got, "leave it out")


def quantize_contradictions(
    config: Config, explicit: Callable[[str], bool]
) -> Iterator[tuple[str, str, str]]:
    """(key, what it contradicts, cure) of switches that were asked for and can't be had."""
    key = "quantize.linear.float8.enable_fsdp_float8_all_gather"
    asked = config.quantize.linear.float8.enable_fsdp_float8_all_gather and explicit(key)
    one_rank = config.plan.nodes * config.plan.gpus_per_node == 1
    if converter(config) == FLOAT8 and asked and not one_rank and (why := why_not_gathered(config)):
        yield key, why, "leave it out: weights are then gathered in mixed_precision_param"
