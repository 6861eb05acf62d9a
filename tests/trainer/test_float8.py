"""Training in eight bits, emulated: close to bf16 at every layout, unseen by checkpoints."""

import shutil
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
import torch.distributed as dist
from flavors import FAMILIES, flavor_overrides
from parity import TINY, difference, train_all
from torch import Tensor, nn
from torch.distributed.checkpoint.filesystem import FileSystemReader
from torch.distributed.checkpoint.metadata import TensorStorageMetadata
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.tensor import DTensor, Shard
from training import column, largest_difference, rows, small_job, train_here

from titan_recipes.config.job import Job
from titan_recipes.config.quantize import choose, linears
from titan_recipes.errors import ConfigError
from titan_recipes.trainer.model.decoder import Decoder
from titan_recipes.trainer.model.grouped import grouped_mm
from titan_recipes.trainer.model.grouped_float8 import cast_rows, emulated_mm
from titan_recipes.trainer.quantize import check_device, convert, own_memory, stored

CLOSE = 0.02
"""Bound on the loss against bf16's, over all steps."""

SAME_WEIGHTS = 5e-4
"""Bound on the loss, over 12 steps, between weights cast before they are gathered, from float32,
and after, from bf16 (seen: 6e-5)."""

P, L = "parallelism.", "quantize.linear.float8."
SHORT = (
    *TINY,
    "training.mixed_precision_param='bfloat16'",
    "model.n_layers=2",
    "training.global_batch_size=4",
    "training.steps=12",
    "optimizer.lr=3e-3",
)
FLOAT8 = ("model.converters=['float8']", f"{L}emulate=true", f"{L}skip_small=false")
MX = ("model.converters=['mx']", "quantize.linear.mx.recipe_name='mxfp8_emulated'")
EXPERTS = (*flavor_overrides("mixtral"), "model.n_layers=2")
DYNAMIC = f"{L}precompute_float8_dynamic_scale_for_fsdp=false"
ROWWISE = f"{L}recipe_name='rowwise'"


def job_of(corpus: Path, *settings: str, ranks: int = 1, dp: int = 1) -> Job:
    """A short job; dp: ranks that read different data."""
    batch = f"training.local_batch_size={4 // dp}"
    return small_job(corpus, *SHORT, batch, *settings, ranks=ranks)


# --- what is converted ----------------------------------------------------------------------------


@pytest.mark.parametrize("family", FAMILIES)
def test_linears_are_the_decoders(family: str, corpus: Path) -> None:
    job = small_job(corpus, *flavor_overrides(family))
    with torch.device("meta"):
        model = Decoder(job.model, 64)
    found = {
        name: tuple(module.weight.shape)
        for name, module in model.named_modules()
        if isinstance(module, nn.Linear)
    }
    told = linears(job.model, 1)
    assert {each.name: (each.out_features, each.in_features) for each in told} == found


def test_conversion_changes_the_chosen_linears_and_no_other(corpus: Path) -> None:
    from torchao.float8.float8_linear import Float8Linear

    job = job_of(corpus, *EXPERTS, *FLOAT8, "quantize.grouped_mm.float8.fqns=['layers.1.']")
    with torch.device("meta"):
        model = Decoder(job.model, 64)
    names = set(model.state_dict())
    convert(model, job, torch.device("cpu"))
    converted = {name for name, each in model.named_modules() if isinstance(each, Float8Linear)}
    assert converted == {each.name for each in choose(job).converted}
    assert len(converted) == 8
    assert set(model.state_dict()) == names
    experts = [model.get_submodule(f"layers.{layer}.moe.experts") for layer in range(2)]
    assert [each.grouped_mm for each in experts] == [grouped_mm, emulated_mm]


@pytest.mark.parametrize(
    ("asked", "message"),
    [
        (FLOAT8[0], '"float8" needs a GPU with float8 products'),
        (MX[0], '"mx" needs a Blackwell GPU (B200)'),
    ],
)
def test_a_machine_without_eight_bits_is_refused_at_start(
    asked: str, message: str, corpus: Path
) -> None:
    job = job_of(corpus, asked, FLOAT8[2], "plan.gpu='any'")
    with pytest.raises(ConfigError) as caught:
        check_device(job, torch.device("cpu"))
    assert message in str(caught.value)
    assert "but this machine computes on the CPU" in str(caught.value)


@pytest.mark.parametrize(
    ("capability", "asked", "fits"),
    [((8, 0), FLOAT8[0], False), ((8, 9), FLOAT8[0], True), ((9, 0), MX[0], False)],
)
def test_a_gpu_is_asked_for_its_capability(
    capability: tuple[int, int],
    asked: str,
    fits: bool,
    corpus: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    gpu = SimpleNamespace(
        get_device_capability=lambda device: capability, get_device_name=lambda device: "Card X"
    )
    monkeypatch.setattr(torch, "cuda", gpu)
    job = job_of(corpus, asked, FLOAT8[2], "plan.gpu='any'")
    if fits:
        check_device(job, torch.device("cuda"))
        return
    with pytest.raises(ConfigError, match=r"this is Card X \(capability "):
        check_device(job, torch.device("cuda"))


# --- numbers --------------------------------------------------------------------------------------


def test_grouped_products_are_rowwise_float8_with_exact_weight_gradients() -> None:
    torch.manual_seed(0)
    x, w = torch.randn(48, 32), torch.randn(3, 64, 32)
    x[5], w[1, 7] = 1e4 * x[5], 1e-4 * w[1, 7]  # rows of their own size
    x[6] = 0
    ends, grad = torch.tensor([10, 10, 48], dtype=torch.int32), torch.randn(48, 64)

    def products(multiply: Callable[..., Tensor]) -> list[Tensor]:
        a, b = x.clone().requires_grad_(), w.clone().requires_grad_()
        out = multiply(a, b, ends)
        out.backward(grad)
        assert a.grad is not None
        assert b.grad is not None
        return [out.detach(), a.grad, b.grad]

    for exact, found, bound in zip(
        products(grouped_mm), products(emulated_mm), (0.06, 0.06, 0.0), strict=True
    ):
        length = torch.linalg.vector_norm(exact, dim=-1).clamp(min=1e-9)
        off = (torch.linalg.vector_norm(found - exact, dim=-1) / length).amax().item()
        assert off <= bound
        assert (off > 0.01) == (bound > 0), "as if nothing had been cast"


def test_rows_cast_to_float8_use_its_range_by_powers_of_two() -> None:
    x = torch.tensor([[0.5, -3.0], [0.0, 0.0], [448.0, 1.0]])
    cast, factor = cast_rows(x)
    # 3 * 128 = 384 is the largest below 448.
    assert cast.float().tolist() == [[64.0, -384.0], [0.0, 0.0], [448.0, 1.0]]
    assert factor[[0, 2]].tolist() == [1 / 128, 1.0]


ONE_PROCESS = {
    "tensorwise": FLOAT8,
    "rowwise": (*FLOAT8, ROWWISE),
    "rowwise_with_gw_hp": (*FLOAT8, f"{L}recipe_name='rowwise_with_gw_hp'"),
    "mx": MX,
}


@pytest.fixture(scope="module")
def bf16(tmp_path_factory: pytest.TempPathFactory, corpus: Path) -> list[float]:
    """The losses of the run that no converter touched."""
    directory = tmp_path_factory.mktemp("bf16")
    train_here(directory, job_of(corpus, "training.steps=50"))
    return column(directory, "loss")


@pytest.mark.parametrize("name", ONE_PROCESS)
def test_each_recipe_trains_as_bf16_does(
    name: str, tmp_path: Path, corpus: Path, bf16: list[float]
) -> None:
    train_here(tmp_path, job_of(corpus, *ONE_PROCESS[name], "training.steps=50"))
    losses = column(tmp_path, "loss")
    assert 0 < largest_difference(bf16, losses) < CLOSE
    assert bf16[-1] < 0.9 * bf16[0], "nothing was learnt that could differ"


TWO_RANKS: dict[str, tuple[int, tuple[str, ...]]] = {
    "bf16": (2, ()),
    "gathered": (2, FLOAT8),
    "gathered, scales at each gather": (2, (*FLOAT8, DYNAMIC)),
    "gathered, recomputed": (2, (*FLOAT8, "activation_checkpoint.mode='full'")),
    "gathered, compiled": (
        2,
        (*FLOAT8, "compile.enable=true", "compile.backend='aot_eager'"),
    ),
    "bf16 gathered": (2, (*FLOAT8, f"{L}enable_fsdp_float8_all_gather=false")),
    "offloaded": (2, (*FLOAT8, "training.enable_cpu_offload=true")),
    "tp": (1, (*FLOAT8, f"{P}tensor_parallel_degree=2")),
    "pp": (1, (*FLOAT8, f"{P}pipeline_parallel_degree=2")),
    "first half": (
        2,
        (
            *FLOAT8,
            "training.steps=6",
            "lr_scheduler.total_steps=12",
            "checkpoint.enable=true",
        ),
    ),
}
"""On two ranks: ranks that read different data, settings."""


@pytest.fixture(scope="module")
def two_ranks(tmp_path_factory: pytest.TempPathFactory, corpus: Path) -> Path:
    """All of TWO_RANKS, trained by one start."""
    root = tmp_path_factory.mktemp("two")
    train_all(
        root,
        {
            name: job_of(corpus, *settings, ranks=2, dp=dp)
            for name, (dp, settings) in TWO_RANKS.items()
        },
    )
    return root


@pytest.mark.slow
def test_float8_on_two_ranks_trains_as_bf16_does(two_ranks: Path) -> None:
    expected = column(two_ranks / "bf16", "loss")
    for name in TWO_RANKS.keys() - {"bf16", "first half"}:
        found = largest_difference(expected, column(two_ranks / name, "loss"))
        assert 0 < found < CLOSE, name


@pytest.mark.slow
def test_scales_computed_once_a_step_are_those_of_each_gather(two_ranks: Path) -> None:
    # Stale scales, of weights before the last step, would differ from the second step on.
    gathered = two_ranks / "gathered"
    assert difference(gathered, two_ranks / "gathered, scales at each gather") == 0.0
    assert difference(gathered, two_ranks / "gathered, recomputed") == 0.0
    assert difference(gathered, two_ranks / "gathered, compiled") == 0.0
    assert difference(two_ranks / "bf16 gathered", two_ranks / "offloaded") == 0.0
    losses = (column(two_ranks / name, "loss") for name in ("gathered", "bf16 gathered"))
    assert 0 < largest_difference(*losses) < SAME_WEIGHTS


def test_stored_state_is_the_weights_own_memory_without_torchaos_type(tmp_path: Path) -> None:
    from torchao.float8 import Float8LinearConfig
    from torchao.float8.float8_linear import Float8Linear

    config = Float8LinearConfig(enable_fsdp_float8_all_gather=True, emulate=True)
    linear = nn.Linear(16, 32, bias=False)
    memory = linear.weight.data_ptr()
    weight = Float8Linear.from_float(linear, config).weight
    assert type(own_memory(weight)) is nn.Parameter
    dist.init_process_group("gloo", init_method=f"file://{tmp_path}/group", rank=0, world_size=1)
    try:
        mesh = init_device_mesh("cpu", (1,))
        state = {"w": DTensor.from_local(weight.detach(), mesh, [Shard(0)]), "step": 1}
        saved = stored(state)
    finally:
        dist.destroy_process_group()
    assert saved["step"] == 1
    assert type(saved["w"].to_local()) is Tensor
    assert saved["w"].to_local().data_ptr() == memory
    assert saved["w"].placements == (Shard(0),)


@pytest.mark.slow
def test_checkpoints_of_weights_gathered_in_float8_are_plain(two_ranks: Path, corpus: Path) -> None:
    """They go on as if the run had not stopped, and load where float8 is off."""
    resumed = two_ranks / "resumed"
    shutil.copytree(two_ranks / "first half", resumed)
    saved = resumed / "checkpoints" / "step-00000006"
    metadata = FileSystemReader(saved).read_metadata().state_dict_metadata
    weight = metadata["model.layers.0.attention.wq.weight"]
    assert isinstance(weight, TensorStorageMetadata)
    assert weight.properties.dtype == torch.float32

    jobs = {"resumed": job_of(corpus, *FLOAT8, "checkpoint.enable=true", ranks=2, dp=2)}
    for name, settings in (("without", ()), ("with", FLOAT8)):
        jobs[f"weights {name}"] = job_of(
            corpus,
            *settings,
            "training.steps=1",
            "checkpoint.enable=true",
            f"checkpoint.initial_load_path='{saved}'",
            ranks=2,
            dp=2,
        )
    train_all(two_ranks, jobs)
    assert difference(two_ranks / "gathered", resumed) == 0.0
    plain, quantized = (rows(two_ranks / f"weights {w}")[0]["loss"] for w in ("without", "with"))
    assert quantized == pytest.approx(plain, rel=CLOSE)
    # The batch is the first again, the weights are not: far from a fresh start.
    assert plain < 0.97 * rows(two_ranks / "gathered")[0]["loss"]


FOUR_RANKS: dict[str, tuple[int, tuple[str, ...]]] = {
    "hsdp": (4, (f"{P}data_parallel_replicate_degree=2",)),
    "fsdp, tp": (2, (f"{P}tensor_parallel_degree=2",)),
    "experts": (
        4,
        (*EXPERTS, f"{P}expert_parallel_degree=2", "quantize.grouped_mm.float8.fqns=['experts']"),
    ),
}


COMPILED_BY_OP = (
    "compile.enable=true",
    "compile.backend='aot_eager'",
    "activation_checkpoint.mode='selective'",
    "activation_checkpoint.selective_ac_option='op'",
)


@pytest.mark.slow
def test_float8_on_four_ranks_trains_as_bf16_does(tmp_path: Path, corpus: Path) -> None:
    kinds: dict[str, tuple[str, ...]] = {"": FLOAT8, " bf16": ()}
    runs = {(name, kind): settings for name in FOUR_RANKS for kind, settings in kinds.items()}
    runs["hsdp", " dynamic"] = (*FLOAT8, DYNAMIC)
    runs["fsdp, tp", " compiled"] = (*FLOAT8, *COMPILED_BY_OP)
    jobs: dict[str, Job] = {}
    for (name, kind), converted in runs.items():
        dp, layout = FOUR_RANKS[name]
        settings = (*layout, *converted, "training.steps=3")
        jobs[f"{name}{kind}"] = job_of(corpus, *settings, ranks=4, dp=dp)
    train_all(tmp_path, jobs)
    for name in FOUR_RANKS:
        bf16, float8 = (column(tmp_path / f"{name}{kind}", "loss") for kind in (" bf16", ""))
        assert 0 < largest_difference(bf16, float8) < CLOSE, name
    assert difference(tmp_path / "hsdp", tmp_path / "hsdp dynamic") == 0.0
    assert difference(tmp_path / "fsdp, tp", tmp_path / "fsdp, tp compiled") < 1e-5
