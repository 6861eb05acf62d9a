"""LoRA: starts at the base model, trains adapters only, resumes, merges; the same on any ranks."""

from pathlib import Path

import pytest
import torch
import torch.distributed.checkpoint as dcp
from parity import difference, parity_job, train_all
from torch.distributed.checkpoint.default_planner import DefaultLoadPlanner
from training import column, train_here

from titan_recipes.bundle.find import find_bundle
from titan_recipes.config.job import Job
from titan_recipes.config.lora import lora_targets
from titan_recipes.errors import CheckpointError, ConfigError
from titan_recipes.trainer.checkpoint.commit import Stored
from titan_recipes.trainer.checkpoint.weights import StoredWeights
from titan_recipes.trainer.hf.convert import export_checkpoint
from titan_recipes.trainer.model.decoder import Decoder
from titan_recipes.trainer.model.init import init_weights
from titan_recipes.trainer.model.lora import LoraLinear, add_adapters, merge_lora

STEPS = 20


@pytest.fixture(scope="module")
def base(tmp_path_factory: pytest.TempPathFactory, corpus: Path, session_cache: Path) -> Path:
    """A run of three full steps: the base model."""
    root = tmp_path_factory.mktemp("base")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("TITAN_RECIPES_CACHE", str(session_cache))
        settings = ("training.steps=3", "checkpoint.enable=true")
        train_here(root / "base", parity_job(corpus, *settings))
    return root / "base"


def lora_job(corpus: Path, base: Path, *overrides: str, **ranks: int) -> Job:
    settings = (
        'model.converters=["lora"]',
        "lora.rank=4",
        "checkpoint.enable=true",
        "checkpoint.interval=1000",
        f"checkpoint.initial_load_path='{base}'",
    )
    return parity_job(corpus, *settings, *overrides, **ranks)


@pytest.fixture(scope="module")
def one_process(
    base: Path, tmp_path_factory: pytest.TempPathFactory, corpus: Path, session_cache: Path
) -> Path:
    """20 steps of adapters in one process."""
    directory = tmp_path_factory.mktemp("lora") / "one"
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("TITAN_RECIPES_CACHE", str(session_cache))
        train_here(directory, lora_job(corpus, base))
    return directory


def _checkpoint(run: Path, step: int = STEPS) -> Path:
    return run / "checkpoints" / f"step-{step:08d}"


def test_first_step_is_the_base_models_and_the_loss_falls(
    one_process: Path, base: Path, corpus: Path, tmp_path: Path
) -> None:
    settings = ("checkpoint.enable=true", f"checkpoint.initial_load_path='{base}'")
    train_here(tmp_path / "full", parity_job(corpus, *settings, "training.steps=1"))
    assert column(one_process, "loss")[0] == column(tmp_path / "full", "loss")[0]

    train_here(tmp_path / "fast", lora_job(corpus, base, "optimizer.lr=2e-2"))
    losses = column(tmp_path / "fast", "loss")
    assert sum(losses[-5:]) / 5 < sum(losses[:5]) / 5 - 0.3


@pytest.mark.slow
def test_fsdp2_and_context_parallelism_equal_one_process(
    one_process: Path, base: Path, corpus: Path, tmp_path: Path
) -> None:
    full_ac = "activation_checkpoint.mode='full'"
    cp = "parallelism.context_parallel_degree=2"
    jobs = {
        "fsdp": lora_job(corpus, base, ranks=2, dp=2),
        "recomputed": lora_job(corpus, base, full_ac, ranks=2, dp=2),
        "cp": lora_job(corpus, base, cp, ranks=2),
    }
    train_all(tmp_path, jobs)
    assert difference(one_process, tmp_path / "fsdp") <= 1e-6
    assert difference(one_process, tmp_path / "recomputed") <= 1e-6
    assert difference(one_process, tmp_path / "cp") <= 1e-5


def test_resume_continues_as_if_never_stopped(
    one_process: Path, base: Path, corpus: Path, tmp_path: Path
) -> None:
    span = "lr_scheduler.total_steps=20"
    train_here(tmp_path / "run", lora_job(corpus, base, "training.steps=8", span))
    train_here(tmp_path / "run", lora_job(corpus, base, span))
    for name in ("loss", "grad_norm"):
        assert column(tmp_path / "run", name) == column(one_process, name)


def test_checkpoint_holds_adapters_only_and_merges_into_the_base(
    one_process: Path, base: Path, corpus: Path
) -> None:
    from torch.distributed.checkpoint.filesystem import FileSystemReader

    job = lora_job(corpus, base)
    known = FileSystemReader(_checkpoint(one_process)).read_metadata().state_dict_metadata
    weights = {name for name in known if name.startswith("model.")}
    assert len(weights) == 4 * 7 * 2
    assert all(name.endswith((".lora_a", ".lora_b")) for name in weights)
    moments = {name for name in known if name.startswith("optimizer.state.")}
    assert all(".lora_" in name for name in moments)

    merged = StoredWeights(job, _checkpoint(one_process))
    plain = StoredWeights(parity_job(corpus), _checkpoint(base, 3))
    changed = {
        name
        for name in merged.names
        if not torch.equal(merged.load([name])[name], plain.load([name])[name])
    }
    linears = ("wq", "wk", "wv", "wo", "w1", "w2", "w3")
    assert {name.split(".")[-2] for name in changed} == set(linears)
    assert len(changed) == 4 * 7


@pytest.mark.filterwarnings("ignore:torch.distributed is disabled, unavailable")
def test_export_is_an_ordinary_model_with_the_adapters_added(
    one_process: Path, base: Path, corpus: Path, tmp_path: Path
) -> None:
    from transformers import AutoModelForCausalLM

    job, checkpoint, out = lora_job(corpus, base), _checkpoint(one_process), tmp_path / "hf"
    export_checkpoint(job, Stored(STEPS, checkpoint), out)
    peer, report = AutoModelForCausalLM.from_pretrained(out, output_loading_info=True)
    assert {key: list(found) for key, found in report.items() if found} == {}

    adapted = Decoder(job.model, 64)
    add_adapters(adapted, job.lora, lora_targets(job))
    init_weights(adapted, seed=0)
    state = adapted.state_dict()
    for path in (_checkpoint(base, 3), checkpoint):
        dcp.load(
            {"model": state},
            checkpoint_id=path,
            planner=DefaultLoadPlanner(allow_partial_load=True),
            no_dist=True,
        )
    tokens_BS = torch.arange(128).reshape(2, 64)
    with torch.no_grad():
        expected = adapted(tokens_BS)
        assert torch.allclose(peer(tokens_BS).logits, expected, atol=1e-4, rtol=1e-4)
        for module in adapted.modules():
            if isinstance(module, LoraLinear):
                module.lora_b.zero_()
        assert not torch.allclose(adapted(tokens_BS), expected, atol=1e-2, rtol=1e-2)


def test_checkpoint_of_other_lora_settings_is_refused(
    one_process: Path, base: Path, corpus: Path
) -> None:
    job = lora_job(corpus, base, "lora.target_modules=['wq']")
    for path in (_checkpoint(base, 3), _checkpoint(one_process)):
        with pytest.raises(CheckpointError, match="not the adapters of this job's"):
            StoredWeights(job, path)
    with pytest.raises(CheckpointError, match="is not of this model"):
        StoredWeights(parity_job(corpus), _checkpoint(one_process))


def test_merged_weights_give_equal_logits(corpus: Path, base: Path) -> None:
    job = lora_job(corpus, base, "lora.target_modules=['wq','w2']", "lora.alpha=3.0")
    adapted, plain = Decoder(job.model, 64), Decoder(job.model, 64)
    add_adapters(adapted, job.lora, job.lora.target_modules)
    init_weights(adapted, seed=1)
    with torch.no_grad():
        for module in adapted.modules():
            if isinstance(module, LoraLinear):
                module.lora_b.normal_()
    assert sum(isinstance(module, LoraLinear) for module in adapted.modules()) == 2 * 4
    plain.load_state_dict(merge_lora(adapted.state_dict(), job))
    plain.init_buffers()
    tokens_BS = torch.arange(128).reshape(2, 64)
    with torch.no_grad():
        expected, found = adapted(tokens_BS), plain(tokens_BS)
    assert torch.allclose(found, expected, rtol=1e-4, atol=1e-4)
    unmerged = {k: v for k, v in adapted.state_dict().items() if "lora" not in k}
    plain.load_state_dict(unmerged)
    with torch.no_grad():
        assert not torch.allclose(plain(tokens_BS), expected, rtol=1e-2, atol=1e-2)


def test_adapters_begin_as_the_paper_says_and_the_base_as_without_them(
    corpus: Path, base: Path
) -> None:
    job = lora_job(corpus, base)
    adapted, plain = Decoder(job.model, 64), Decoder(job.model, 64)
    add_adapters(adapted, job.lora, ("wq", "w1"))
    init_weights(adapted, seed=3)
    init_weights(plain, seed=3)
    state = adapted.state_dict()
    assert all(torch.equal(state[name], value) for name, value in plain.state_dict().items())
    a, b = state["layers.1.attention.wq.lora_a"], state["layers.1.attention.wq.lora_b"]
    assert (a.shape, b.shape) == ((4, 64), (64, 4))
    assert (b == 0).all()
    assert 0.1 < a.abs().max() <= 64**-0.5
    assert not torch.equal(a, state["layers.2.attention.wq.lora_a"])
    trained = {name for name, p in adapted.named_parameters() if p.requires_grad}
    assert trained == {name for name in state if ".lora_" in name}


@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        (["checkpoint.initial_load_path=''"], "checkpoint.initial_load_path: not set, with"),
        (["checkpoint.enable=false"], "checkpoint.enable: got false, with model.converters"),
        (["checkpoint.initial_load_model_only=false"], "initial_load_model_only: got false"),
        (["lora.target_modules=['wkv_a']"], "wkv_a: no linear of this model; use wq, wk, wv, wo, "),
        (["lora.target_modules=['q_proj']"], "lora.target_modules"),
        (["lora.rank=0"], "lora.rank"),
        (
            ["parallelism.tensor_parallel_degree=2", "plan.gpus_per_node=2"],
            '"lora" does not go with tensor_parallel_degree = 2 yet',
        ),
        (
            ["parallelism.pipeline_parallel_degree=2", "plan.gpus_per_node=2"],
            '"lora" does not go with pipeline_parallel_degree = 2 yet',
        ),
    ],
)
def test_settings_that_do_not_go_with_lora_are_refused(overrides: list[str], message: str) -> None:
    settings = ['model.converters=["lora"]', "checkpoint.initial_load_path='/base'", *overrides]
    with pytest.raises(ConfigError) as raised:
        find_bundle("llama3_debug").resolve("cpu1", overrides=settings)
    assert message in str(raised.value)
