"""Matrices, sequence and vocabulary split over ranks: the same training as in one process."""

import shutil
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
import torch.distributed as dist
from flavors import FAMILIES, flavor_overrides
from parity import difference, parity_job, train_all
from torch import nn
from torch.distributed.device_mesh import DeviceMesh, init_device_mesh
from torch.distributed.tensor import DTensor, Replicate, Shard
from torch.testing._internal.distributed.fake_pg import FakeStore
from training import rows

from titan_recipes.bundle.find import find_bundle
from titan_recipes.config.job import Job
from titan_recipes.trainer.model.decoder import Decoder
from titan_recipes.trainer.parallel.tensor_parallel import apply_tensor_parallel

TP = "parallelism.tensor_parallel_degree="
COPIES = "parallelism.data_parallel_replicate_degree=2"
WHOLE_LOGITS = "parallelism.disable_loss_parallel=true"
BY_OP = ("activation_checkpoint.mode='selective'", "activation_checkpoint.selective_ac_option='op'")
EAGER_GRAPHS = ("compile.enable=true", "compile.backend='aot_eager'")


@pytest.mark.slow
def test_layouts_equal_one_process(tmp_path: Path, corpus: Path) -> None:
    # Latent attention and shared experts; sinks, biases and experts; tied embeddings, soft caps,
    # norms after, heads normed.
    families = ("llama3", "deepseek_v3", "gpt_oss", "gemma3")
    short = "training.steps=5"  # `make parity` has the full length
    train_all(
        tmp_path, {name: parity_job(corpus, *flavor_overrides(name), short) for name in families}
    )
    layouts = {
        # A compiled block that takes an embedding still under way loses its gradient in silence.
        "llama3, tp 2, compiled": (2, (TP + "2", *EAGER_GRAPHS)),
        "deepseek_v3, tp 2": (2, (TP + "2",)),
        "gpt_oss, tp 2, recomputed, whole logits": (2, (TP + "2", *BY_OP, WHOLE_LOGITS)),
        "gemma3, tp 2, copies": (2, (TP + "2", COPIES)),
    }
    jobs = {
        name: parity_job(
            corpus, *flavor_overrides(name.split(",")[0]), short, *settings, ranks=4, dp=dp
        )
        for name, (dp, settings) in layouts.items()
    }
    train_all(tmp_path, jobs)
    for name in jobs:
        assert difference(tmp_path / name.split(",")[0], tmp_path / name) <= 1e-5, name


@pytest.mark.slow
def test_checkpoint_goes_on_under_any_other_layout(tmp_path: Path, corpus: Path) -> None:
    def job(steps: int, *settings: str, ranks: int = 1, dp: int = 1) -> Job:
        # 6 heads: of 3 sinks on a rank FSDP keeps 2 and 1.
        sizes = (*flavor_overrides("gpt_oss"), "model.n_heads=6", "model.n_kv_heads=2")
        run = ("checkpoint.enable=true", "lr_scheduler.total_steps=9", f"training.steps={steps}")
        checks = ("validation.enable=true", "validation.freq=9", "validation.steps=2")
        # The same 16 sequences at any dp.
        length = ("validation.seq_len=64", f"validation.local_batch_size={8 // dp}")
        return parity_job(corpus, *sizes, *run, *checks, *length, *settings, ranks=ranks, dp=dp)

    train_all(tmp_path, {"split": job(3, TP + "2", ranks=4, dp=2)})
    shutil.copytree(tmp_path / "split", tmp_path / "joined")
    train_all(tmp_path, {"one": job(9), "joined": job(6)})
    jobs = {"joined": job(9, TP + "2", ranks=4, dp=2), "split": job(9, ranks=4, dp=4)}
    train_all(tmp_path, jobs)
    for name in jobs:
        assert difference(tmp_path / "one", tmp_path / name) <= 1e-5, name
        validated = [rows(tmp_path / run, "validation.jsonl")[-1] for run in ("one", name)]
        assert validated[0]["step"] == validated[1]["step"] == 9
        assert validated[1]["loss"] == pytest.approx(validated[0]["loss"], rel=1e-5)


@pytest.fixture
def tp_mesh() -> Iterator[DeviceMesh]:
    """Rank 1 of two that exchange nothing."""
    dist.init_process_group("fake", store=FakeStore(), rank=1, world_size=2)
    yield init_device_mesh("cpu", (2,), mesh_dim_names=("tp",))
    dist.destroy_process_group()


def split_decoder(family: str, mesh: DeviceMesh) -> Decoder:
    """A family's decoder on the meta device, split."""
    job = find_bundle("llama3_debug").resolve(overrides=flavor_overrides(family)).job
    with torch.device("meta"):
        model = Decoder(job.model, 64)
    apply_tensor_parallel(model, mesh, enable_async=False)
    return model


@pytest.mark.parametrize("family", FAMILIES)
def test_every_parameter_but_experts_lies_on_the_mesh(family: str, tp_mesh: DeviceMesh) -> None:
    model = split_decoder(family, tp_mesh)
    for name, parameter in model.named_parameters():
        if ".experts." in name:
            continue
        assert isinstance(parameter, DTensor), name
        (placement,) = parameter.placements
        if isinstance(placement, Shard):
            assert parameter.to_local().shape[placement.dim] * 2 == parameter.shape[placement.dim]
        else:
            assert placement == Replicate()
            assert name.endswith(("norm.weight", "wo.bias", "wq_a.weight", "wkv_a.weight")) or (
                ".gate." in name
            )
    if model.sizes.tie_embeddings:
        names = [name for name, _ in model.named_parameters(remove_duplicate=False)]
        found = dict(model.named_parameters(remove_duplicate=False))
        assert {"tok_embeddings.weight", "output.weight"} <= set(names)
        assert found["tok_embeddings.weight"] is found["output.weight"]


def test_layers_share_their_classes_so_that_compile_meets_each_once(tp_mesh: DeviceMesh) -> None:
    model = split_decoder("llama3", tp_mesh)
    first, last = model.layers["0"], model.layers["3"]
    pairs = list(zip(first.modules(), last.modules(), strict=True))
    assert len(pairs) > 10
    for one, other in pairs:
        assert type(one) is type(other)
        hooks = [list(m._forward_pre_hooks.values()) for m in (one, other)]
        assert hooks[0] == hooks[1]


def test_parameter_without_a_placement_is_not_split_by_guess(tp_mesh: DeviceMesh) -> None:
    job = find_bundle("llama3_debug").resolve(overrides=flavor_overrides("llama3")).job
    with torch.device("meta"):
        model = Decoder(job.model, 64)
        model.layers["0"].attention.register_module("extra", nn.Linear(4, 4))
    with pytest.raises(AssertionError, match=r"no placement for layers\.0\.attention\.extra"):
        apply_tensor_parallel(model, tp_mesh, enable_async=False)
