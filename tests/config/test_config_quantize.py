"""What is converted to eight bits, and what can't be, told on the laptop."""

import pytest
from flavors import flavor_overrides

from titan_recipes.bundle.find import find_bundle
from titan_recipes.config.quantize import choose, gathers_float8, grouped_layers, quantize_lines
from titan_recipes.config.resolve import Resolution
from titan_recipes.errors import ConfigError

ON = "model.converters=['float8']"
MX = "model.converters=['mx']"
L, G = "quantize.linear.float8.", "quantize.grouped_mm.float8.fqns"
ALL_GATHER = f"{L}enable_fsdp_float8_all_gather"


def resolve(recipe: str, *settings: str) -> Resolution:
    """A packaged recipe under its default plan."""
    return find_bundle(recipe).resolve(overrides=settings)


def refusals(recipe: str, *settings: str) -> list[str]:
    """What is said against it."""
    try:
        resolve(recipe, *settings)
    except ConfigError as error:
        return [str(problem) for problem in error.problems]
    return []


def test_float8_alone_is_tensorwise_gathered_in_float8_with_scales_once_a_step() -> None:
    resolution = resolve("llama3_8b", ON)
    lines = quantize_lines(resolution.job)
    assert lines == [
        "float8 (tensorwise): 160 of 225 linears; weights gathered in float8, scales computed once "
        "a step",
        "float8 leaves out 64 (wk, wv): too small to gain from tensorwise; "
        "1 (output): the loss multiplies by its weight itself",
    ]
    assert set(lines) <= set(resolution.notes)


@pytest.mark.parametrize(
    ("settings", "second"),
    [
        (
            (f"{L}recipe_name='rowwise'",),
            "64 (wk, wv): too small to gain from rowwise; "
            "1 (output): the loss multiplies by its weight itself",
        ),
        (
            (f"{L}filter_fqns=['attention']",),
            "128 (wq, wk, wv, wo): filter_fqns; "
            "1 (output): the loss multiplies by its weight itself",
        ),
        (
            (f"{L}skip_small=false",),
            "1 (output): the loss multiplies by its weight itself",
        ),
        (
            # 4,096 / 8 = 512 rows of wq: what one rank multiplies is what must be large.
            ("parallelism.tensor_parallel_degree=8", "training.global_batch_size=-1"),
            "96 (wq, wk, wv): too small to gain from tensorwise; "
            "1 (output): the loss multiplies by its weight itself",
        ),
        (
            ("model.ffn_dim=14344",),
            "64 (wk, wv): too small to gain from tensorwise; "
            "96 (w1, w2, w3): sides not multiples of 16; "
            "1 (output): the loss multiplies by its weight itself",
        ),
    ],
)
def test_linears_left_out_are_named_by_reason(settings: tuple[str, ...], second: str) -> None:
    job = resolve("llama3_8b", ON, *settings).job
    assert quantize_lines(job)[1] == f"float8 leaves out {second}"


def test_experts_are_converted_where_asked_and_routers_never() -> None:
    job = resolve("mixtral_8x7b", ON, f"{G}=['layers.0.', 'layers.31.moe.experts']").job
    assert grouped_layers(job) == ("layers.0.moe.experts", "layers.31.moe.experts")
    assert "and the experts of 2 layers" in quantize_lines(job)[0]
    gates = {name: why for name, why in choose(job).skipped.items() if name.endswith(".gate")}
    assert len(gates) == 32
    assert set(gates.values()) == {"routers choose by small differences"}


@pytest.mark.parametrize(
    ("settings", "why"),
    [
        ((), ""),
        ((f"{L}recipe_name='rowwise'",), "whose scales are not of whole matrices"),
        (("training.enable_cpu_offload=true",), "keeps the scales on the host"),
        ((f"{ALL_GATHER}=false",), "enable_fsdp_float8_all_gather = false"),
    ],
)
def test_weights_are_gathered_in_float8_where_they_can_be(
    settings: tuple[str, ...], why: str
) -> None:
    job = resolve("llama3_8b", ON, *settings).job
    assert gathers_float8(job) == (why == "")
    assert why in quantize_lines(job)[0]


@pytest.mark.parametrize(
    ("recipe", "settings", "message"),
    [
        (
            "llama3_8b",
            ("model.converters=['float9']",),
            "no converter float9; use float8, mx, lora",
        ),
        ("llama3_8b", ("model.converters=['float8', 'mx']",), 'both "float8" and "mx"; keep one'),
        (
            "llama3_8b_lora",
            ("model.converters=['lora', 'float8']",),
            '"float8" does not go with "lora" yet; keep one',
        ),
        (
            "llama3_8b",
            (ON, "plan.gpu='a100'"),
            '"float8" needs a GPU with float8 products (H100, L40S, B200, MI300X), but plan.gpu = '
            '"a100"; leave it out, or set quantize.linear.float8.emulate = true',
        ),
        ("llama3_8b", (ON, "plan.gpu='cpu'"), 'but plan.gpu = "cpu"; leave it out, or set'),
        (
            "llama3_8b",
            (MX,),
            '"mx" needs a Blackwell GPU (B200), but plan.gpu = "h100"; use "float8", or set '
            'quantize.linear.mx.recipe_name = "mxfp8_emulated"',
        ),
        (
            "mixtral_8x7b",
            (MX, "plan.gpu='b200'", "quantize.grouped_mm.mx.fqns=['experts']"),
            "grouped products in mx are not supported yet; leave it out",
        ),
        (
            "mixtral_8x7b",
            (ON, "plan.gpu='l40s'", "quantize.grouped_mm.float8.fqns=['experts']"),
            "grouped float8 products are of H100, H200 and B200, but "
            'plan.gpu = "l40s"; leave it out',
        ),
        (
            "llama3_debug",
            (ON, f"{L}emulate=true"),
            '"float8" would leave out all 43 linears (42: too small to gain from tensorwise; 1: the'
            " loss multiplies by its weight itself); leave it out, or set quantize.linear.float8."
            "skip_small = false",
        ),
        (
            "llama3_8b",
            (ON, "training.seq_len=8200"),
            '8200 tokens in a pass of one rank, which "float8" needs in multiples of 16',
        ),
        (
            "llama3_8b",
            (ON, f"{L}recipe_name='rowwise'", f"{ALL_GATHER}=true"),
            'contradicts recipe_name = "rowwise", whose scales are not of whole matrices; leave it',
        ),
        (
            "llama3_8b",
            (ON, "training.enable_cpu_offload=true", f"{ALL_GATHER}=true"),
            "contradicts training.enable_cpu_offload = true, which keeps the scales on the host",
        ),
        (
            "llama3_8b",
            (ON, "plan.nodes=3", "training.global_batch_size=-1"),
            "24 shards do not divide wq of 4096 rows, wo of 4096 rows, w1 of 14336 rows, w2 of "
            "4096 rows, w3 of 14336 rows; set it to false, or name them in filter_fqns",
        ),
        ("llama3_8b", (ON, f"{G}=['experts']"), "the model has no experts; leave it out"),
        (
            "mixtral_8x7b",
            (ON, f"{G}=['expert_']"),
            'no layer\'s experts match expert_; use "experts" for all of them',
        ),
        (
            "mixtral_8x7b",
            (ON, f"{G}=['experts']", "model.moe.ffn_dim=14344"),
            "model.moe.ffn_dim = 14344: not a multiple of 16",
        ),
    ],
)
def test_what_cannot_be_converted_is_refused_with_its_cure(
    recipe: str, settings: tuple[str, ...], message: str
) -> None:
    said = refusals(recipe, *settings)
    assert any(message in line for line in said), said


def test_keys_of_the_other_converter_are_dormant() -> None:
    said = resolve(
        "llama3_8b",
        ON,
        f"{L}precompute_float8_dynamic_scale_for_fsdp=true",
        f"{ALL_GATHER}=false",
        "quantize.linear.mx.filter_fqns=['wo']",
    ).dormant
    assert sorted(said) == [
        "--set: quantize.linear.float8.precompute_float8_dynamic_scale_for_fsdp has no effect: "
        "weights are not gathered in float8",
        '--set: quantize.linear.mx.filter_fqns has no effect: model.converters has no "mx"',
    ]


@pytest.mark.parametrize("family", ["llama3", "deepseek_v3"])
def test_mx_leaves_out_what_is_not_of_whole_blocks(family: str) -> None:
    # 80 is a multiple of float8's 16, but not of a block's 32.
    settings = [*flavor_overrides(family), "model.ffn_dim=80", MX, "plan.gpu='b200'"]
    job = resolve("llama3_debug", *settings, "training.seq_len=64").job
    skipped = {name.rpartition(".")[2] for name, why in choose(job).skipped.items() if "32" in why}
    assert skipped >= {"w1", "w2", "w3"}
