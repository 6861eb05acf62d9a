"""Every optimizer: against torch's own or plain AdamW, sharded, resumed, and on steps that fail."""

import shutil
from pathlib import Path

import pytest
import torch
from flavors import flavor_overrides
from parity import difference, parity_job, train_all
from torch import Tensor, nn
from training import column, small_job, train_here

from titan_recipes.config.job import Job
from titan_recipes.config.schema import Optimizer, ParameterGroup
from titan_recipes.errors import CheckpointError, NumericsError
from titan_recipes.trainer.optimizer import build_optimizer, set_lr, step_if_finite

pytestmark = [
    # torchao names what it was built without.
    pytest.mark.filterwarnings("ignore::DeprecationWarning:torchao"),
    pytest.mark.filterwarnings("ignore:torch.distributed is disabled, unavailable:UserWarning"),
]

IN_BACKWARD = ("optimizer.early_step_in_backward=true",)
NOT_CLIPPED = ("training.max_norm=0",)
GROUPS = (
    "optimizer.groups=[{pattern='norm', weight_decay=0.0}, {pattern='^tok_emb', lr_scale=0.5}]",
)
KINDS: dict[str, tuple[str, ...]] = {
    "muon": ("optimizer.name='Muon'", *GROUPS),
    "8bit": ("optimizer.state_dtype='8bit'", *GROUPS),
    "bfloat16": ("optimizer.state_dtype='bfloat16'",),
    "offload": ("optimizer.enable_cpu_offload=true",),
    "in backward": (*IN_BACKWARD, *NOT_CLIPPED),
}


class Tiny(nn.Module):
    """Parameters with the names of a decoder's: a tall, a wide and a square matrix, a norm."""

    def __init__(self) -> None:
        super().__init__()
        generator = torch.Generator().manual_seed(0)
        self.layers = nn.ModuleDict({"0": nn.Module()})
        shapes = {"wide": (64, 256), "tall": (256, 64), "square": (64, 64), "norm": (64,)}
        for name, shape in shapes.items():
            child = nn.Module()
            child.weight = nn.Parameter(torch.randn(shape, generator=generator))
            self.layers["0"].add_module(name, child)
        self.tok_embeddings = nn.Embedding(128, 256)
        nn.init.normal_(self.tok_embeddings.weight, generator=generator)

    def give_gradients(self, step: int) -> None:
        """Random ones, the same for a step of any model."""
        generator = torch.Generator().manual_seed(step + 1)
        for parameter in self.parameters():
            parameter.grad = torch.randn(parameter.shape, generator=generator)


def _values(model: nn.Module) -> list[Tensor]:
    return [parameter.detach().clone() for parameter in model.parameters()]


def _trained(config: Optimizer, steps: int = 5) -> list[Tensor]:
    model = Tiny()
    optimizer = build_optimizer(model, config)
    for step in range(steps):
        model.give_gradients(step)
        optimizer.step()
    return _values(model)


# --- against torch and torchao --------------------------------------------------------------------


def test_muon_equals_torchs_for_matrices_of_blocks_and_adamw_for_the_rest() -> None:
    found = _trained(Optimizer(name="Muon", lr=0.02, muon_momentum=0.9))
    model = Tiny()
    names = [name for name, _ in model.named_parameters()]
    matrices = [p for n, p in model.named_parameters() if n.startswith("layers.") and p.ndim == 2]
    assert len(matrices) == 3
    others = [p for p in model.parameters() if all(p is not matrix for matrix in matrices)]
    rest = {"lr": 0.02, "weight_decay": 0.1}
    muon = torch.optim.Muon(matrices, momentum=0.9, adjust_lr_fn="match_rms_adamw", **rest)
    adamw = torch.optim.AdamW(others, betas=(0.9, 0.95), fused=True, **rest)
    for step in range(5):
        model.give_gradients(step)
        muon.step()
        adamw.step()
    for name, ours, theirs in zip(names, found, _values(model), strict=True):
        # Products of a batch of matrices may round otherwise than those of one, in bfloat16.
        bound = 2e-3 if name.startswith("layers.") and ours.ndim == 2 else 0
        assert (ours - theirs).abs().max() <= bound, name
        assert (ours - dict(Tiny().named_parameters())[name]).abs().max() > 0.05, name


@pytest.mark.parametrize("name", ["Adam", "AdamW"])
def test_8_bit_state_gives_torchaos_bits(name: str) -> None:
    from torchao.optim import Adam8bit, AdamW8bit

    found = _trained(Optimizer(name=name, state_dtype="8bit", lr=0.02))  # pyright: ignore
    model = Tiny()
    kind = {"Adam": Adam8bit, "AdamW": AdamW8bit}[name]
    wide = model.layers["0"].get_submodule("wide").weight
    # Its blocks, 256 neighbours of a flat shard, are ours where a row has 256 numbers.
    parameters = [wide, model.tok_embeddings.weight]
    optimizer = kind(parameters, lr=0.02, betas=(0.9, 0.95), weight_decay=0.1)
    with torch.compiler.set_stance("force_eager"):
        for step in range(5):
            model.give_gradients(step)
            optimizer.step()
    by_shape = {value.shape: value for value in found}
    for parameter in parameters:
        assert torch.equal(by_shape[parameter.shape], parameter)


def test_8_bit_state_is_a_code_for_each_number_and_a_scale_for_each_block() -> None:
    model = Tiny()
    optimizer = build_optimizer(model, Optimizer(state_dtype="8bit"))
    model.give_gradients(0)
    optimizer.step()
    wide, tall = (model.layers["0"].get_submodule(name).weight for name in ("wide", "tall"))
    for parameter, scales in ((wide, (64, 1)), (tall, (256, 1))):
        for name in ("exp_avg", "exp_avg_sq"):
            state = optimizer.state[parameter]
            assert (state[name].dtype, state[name].shape) == (torch.uint8, parameter.shape)
            assert state[f"{name}_scale"].shape == scales
    assert optimizer.state[model.layers["0"].get_submodule("norm").weight]["exp_avg"].ndim == 1


def test_bfloat16_state_is_bfloat16_and_stays_near_adamw() -> None:
    plain = _trained(Optimizer(lr=0.02))
    found = _trained(Optimizer(lr=0.02, state_dtype="bfloat16"))
    for a, b in zip(plain, found, strict=True):
        assert 0 < (a - b).abs().max() <= 0.02 * 5 * 2**-7
    model = Tiny()
    optimizer = build_optimizer(model, Optimizer(state_dtype="bfloat16"))
    model.give_gradients(0)
    optimizer.step()
    for state in optimizer.state.values():
        assert state["exp_avg"].dtype == state["exp_avg_sq"].dtype == torch.bfloat16


def test_offloaded_update_gives_the_bits_of_the_one_on_the_device() -> None:
    for name in ("Adam", "AdamW"):
        plain = _trained(Optimizer(name=name, lr=0.02))
        found = _trained(Optimizer(name=name, lr=0.02, enable_cpu_offload=True))
        assert all(torch.equal(a, b) for a, b in zip(plain, found, strict=True))


def test_offloaded_update_notices_that_a_parameter_was_loaded() -> None:
    model = Tiny()
    optimizer = build_optimizer(model, Optimizer(enable_cpu_offload=True, lr=0.02))
    model.give_gradients(0)
    optimizer.step()
    norm = model.layers["0"].get_submodule("norm").weight
    with torch.no_grad():
        norm.fill_(7.0)
    model.give_gradients(1)
    optimizer.step()
    assert (norm - 7.0).abs().max() < 0.1


CONFIGS = (
    Optimizer(),
    Optimizer(implementation="foreach"),
    Optimizer(name="Muon"),
    Optimizer(name="Muon", implementation="for-loop"),
    Optimizer(state_dtype="8bit"),
    Optimizer(state_dtype="bfloat16"),
    Optimizer(enable_cpu_offload=True),
)


@pytest.mark.parametrize("config", CONFIGS, ids=str)
def test_step_that_is_not_finite_changes_nothing(config: Optimizer) -> None:
    model = Tiny()
    optimizer = build_optimizer(model, config)

    def step(*, finite: bool) -> None:
        model.give_gradients(0)
        if not finite:
            for parameter in model.parameters():
                assert parameter.grad is not None
                parameter.grad.fill_(torch.nan)
        step_if_finite([optimizer], torch.tensor(finite))

    def everything() -> list[Tensor]:
        state = [value.clone() for of_one in optimizer.state.values() for value in of_one.values()]
        return [*_values(model), *state]

    step(finite=True)
    before = everything()
    step(finite=False)
    assert all(torch.equal(a, b) for a, b in zip(before, everything(), strict=True))
    step(finite=True)
    assert not any(torch.equal(a, b) for a, b in zip(before[:4], everything()[:4], strict=True))


# --- groups ---------------------------------------------------------------------------------------


def test_first_matching_group_sets_decay_and_rate_of_a_parameter() -> None:
    groups = (
        ParameterGroup(pattern="norm", weight_decay=0.0),
        ParameterGroup(pattern=r"layers\..*(norm|wide)", lr_scale=0.5),
    )
    model = Tiny()
    optimizer = build_optimizer(model, Optimizer(name="Muon", groups=groups))
    set_lr([optimizer], 0.25)
    names = {parameter: name for name, parameter in model.named_parameters()}
    found = {
        names[parameter]: (group["lr"], group["weight_decay"], group["is_muon"])
        for group in optimizer.param_groups
        for parameter in group["params"]
    }
    assert found == {
        "layers.0.wide.weight": (0.125, 0.1, True),
        "layers.0.tall.weight": (0.25, 0.1, True),
        "layers.0.square.weight": (0.25, 0.1, True),
        "layers.0.norm.weight": (0.25, 0.0, False),
        "tok_embeddings.weight": (0.25, 0.1, False),
    }


# --- the trainer ----------------------------------------------------------------------------------


def _job(corpus: Path, kind: str, *settings: str, ranks: int = 1) -> Job:
    """20 steps, a checkpoint after 10; one pass in each step where updates are in backward."""
    checkpoints = ("checkpoint.enable=true", "checkpoint.interval=10")
    passes = (f"training.local_batch_size={16 // ranks}",) if kind == "in backward" else ()
    of_kind = KINDS.get(kind, ())
    return parity_job(corpus, *of_kind, *passes, *checkpoints, *settings, ranks=ranks, dp=ranks)


@pytest.fixture(scope="module")
def runs(tmp_path_factory: pytest.TempPathFactory, corpus: Path, session_cache: Path) -> Path:
    """Each kind in one process: <kind>; on two ranks: <kind>, fsdp 2."""
    root = tmp_path_factory.mktemp("optimizers")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("TITAN_RECIPES_CACHE", str(session_cache))
        for kind in KINDS:
            train_here(root / kind, _job(corpus, kind))
        train_all(root, {f"{kind}, fsdp 2": _job(corpus, kind, ranks=2) for kind in KINDS})
    return root


@pytest.mark.parametrize("kind", KINDS)
def test_two_ranks_equal_one_process(runs: Path, kind: str) -> None:
    assert len(column(runs / kind, "loss")) == 20
    assert difference(runs / kind, runs / f"{kind}, fsdp 2") <= 1e-6


@pytest.mark.parametrize("kind", KINDS)
def test_resumed_run_repeats_bit_for_bit(
    runs: Path, tmp_path: Path, corpus: Path, kind: str
) -> None:
    shutil.copytree(runs / kind, tmp_path / "run")
    train_here(tmp_path / "run", _job(corpus, kind, "checkpoint.load_step=10"))
    for name in ("loss", "grad_norm"):
        assert column(tmp_path / "run", name) == column(runs / kind, name)


@pytest.mark.parametrize("kind", ["muon", "8bit", "offload"])
def test_checkpoint_of_two_ranks_goes_on_in_one_process(
    runs: Path, tmp_path: Path, corpus: Path, kind: str
) -> None:
    shutil.copytree(runs / f"{kind}, fsdp 2", tmp_path / "run")
    train_here(tmp_path / "run", _job(corpus, kind, "checkpoint.load_step=10"))
    assert difference(runs / kind, tmp_path / "run") <= 1e-6


def test_low_precision_state_hardly_changes_the_losses(
    runs: Path, tmp_path: Path, corpus: Path
) -> None:
    train_here(tmp_path / "plain", _job(corpus, "plain", *GROUPS))
    train_here(tmp_path / "plain, no groups", _job(corpus, "plain"))
    # 8 bits keep about 2 digits of a moment, bfloat16 as well; updates differ by as much.
    assert 0 < difference(tmp_path / "plain", runs / "8bit") <= 2e-3
    assert 0 < difference(tmp_path / "plain, no groups", runs / "bfloat16") <= 2e-4
    assert difference(tmp_path / "plain, no groups", runs / "offload") == 0
    assert difference(tmp_path / "plain, no groups", tmp_path / "plain") > 1e-4
    pair = column(tmp_path / "plain", "loss"), column(runs / "muon", "loss")
    assert pair[0][-1] != pair[1][-1] < pair[1][0] - 0.1


def test_updates_in_backward_are_those_after_it(runs: Path, tmp_path: Path, corpus: Path) -> None:
    after = _job(corpus, "", *NOT_CLIPPED, "training.local_batch_size=16")
    train_here(tmp_path, after)
    assert difference(tmp_path, runs / "in backward") == 0


def test_step_in_backward_that_is_not_finite_ends_the_run_before_its_checkpoint(
    tmp_path: Path, corpus: Path
) -> None:
    settings = ("training.local_batch_size=8", "optimizer.lr=1e38", "lr_scheduler.warmup_steps=0")
    job = small_job(corpus, *IN_BACKWARD, *NOT_CLIPPED, *settings, "checkpoint.interval=2")
    with pytest.raises(NumericsError, match=r"step 2: loss not finite on rank 0.*has damaged the"):
        train_here(tmp_path, job)
    assert not list((tmp_path / "checkpoints").glob("step-*"))


def test_checkpoint_of_another_optimizer_is_refused_with_the_cure(
    runs: Path, tmp_path: Path, corpus: Path
) -> None:
    shutil.copytree(runs / "bfloat16", tmp_path / "run")
    job = _job(corpus, "muon", "training.steps=21")
    cure = r'exclude_from_loading = \["optimizer"\]'
    with pytest.raises(CheckpointError, match=rf"(?s)momentum_buffer: not in the.*{cure}"):
        train_here(tmp_path / "run", job)
    without = "checkpoint.exclude_from_loading=['optimizer']"
    train_here(tmp_path / "run", _job(corpus, "muon", "training.steps=21", without))
    assert len(column(tmp_path / "run", "loss")) == 21


@pytest.mark.slow
def test_matrices_shared_by_copies_tensor_and_expert_parallel_ranks_equal_one_process(
    tmp_path: Path, corpus: Path
) -> None:
    """Bound: singular values near 0 are multiplied by 3.4 in each of five steps, and with them how
    far sums of gradients differ by their order."""
    p = "parallelism."
    layouts = {
        "hsdp 2 x 2": (4, (f"{p}data_parallel_replicate_degree=2",)),
        "fsdp 2 x tp 2 x ep 4": (
            2,
            (f"{p}tensor_parallel_degree=2", f"{p}expert_parallel_degree=4"),
        ),
    }
    model = (*flavor_overrides("deepseek_v3"), "training.steps=8", *KINDS["muon"])
    train_here(tmp_path / "alone", parity_job(corpus, *model))
    jobs = {
        name: parity_job(corpus, *model, *settings, ranks=4, dp=dp)
        for name, (dp, settings) in layouts.items()
    }
    train_all(tmp_path, jobs)
    for name in layouts:
        assert difference(tmp_path / "alone", tmp_path / name) <= 2e-5, name


@pytest.mark.filterwarnings("ignore:.torch.jit.script_method. is deprecated:DeprecationWarning")
def test_graphs_of_an_update_of_many_shapes_equal_the_eager_one(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """On CUDA it is compiled, in one graph for each shape; torch's own limit is 8."""
    import titan_recipes.trainer.optim.low_precision as low_precision

    graphs = torch.compile(
        low_precision._update, fullgraph=True, dynamic=False, backend="aot_eager"
    )
    monkeypatch.setattr(low_precision, "_update_compiled", graphs)
    shapes = [(64 * n, 64) for n in range(1, 11)]
    weights: list[list[torch.Tensor]] = []
    for compiles in (False, True):
        torch._dynamo.reset()
        generator = torch.Generator().manual_seed(0)
        parameters = [nn.Parameter(torch.randn(s, generator=generator)) for s in shapes]
        options = {"lr": 1e-2, "betas": (0.9, 0.95), "eps": 1e-8, "weight_decay": 0.1}
        optimizer = low_precision.LowPrecisionAdam(
            parameters, is_adamw=True, eight_bits=True, **options
        )
        optimizer.compiles = compiles
        for _ in range(2):
            for parameter in parameters:
                parameter.grad = torch.randn(parameter.shape, generator=generator)
            optimizer.step()
        weights.append([parameter.detach() for parameter in parameters])
    torch.testing.assert_close(weights[1], weights[0], rtol=1e-5, atol=1e-6)
