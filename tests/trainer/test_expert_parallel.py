"""Experts on different ranks: the numbers of one process, and even load."""

from pathlib import Path

import pytest
import torch
from parity import difference, parity_job, train_all
from torch import nn
from training import column

from titan_recipes.bundle.find import find_bundle
from titan_recipes.config.schema import MoE
from titan_recipes.errors import ConfigError
from titan_recipes.trainer.expert_load import ExpertLoad
from titan_recipes.trainer.model.moe import Moe
from titan_recipes.trainer.parallel.mesh import World

EXPERTS = (
    "model.family='deepseek_v3'",
    "model.ffn_dim=64",
    "model.moe={num_experts=8, experts_per_token=2, ffn_dim=32, num_shared_experts=1,"
    " num_dense_layers=1, score_func='sigmoid', load_balance_coeff=1e-3, aux_loss_weight=1e-2}",
)
EP = "parallelism.expert_parallel_degree="
BACKEND = "parallelism.expert_parallel_comm_backend"
HSDP = "parallelism.data_parallel_replicate_degree=2"


@pytest.mark.slow
def test_experts_on_four_ranks_equal_one_process(tmp_path: Path, corpus: Path) -> None:
    short = "training.steps=5"  # `make parity` has the full length
    train_all(tmp_path, {"one": parity_job(corpus, *EXPERTS, short)})
    layouts = {
        "ep2, copies": (EP + "2", HSDP),
        "ep2, recomputed": (EP + "2", "activation_checkpoint.mode='full'"),
        "ep4, recomputed by op": (
            EP + "4",
            "activation_checkpoint.mode='selective'",
            "activation_checkpoint.selective_ac_option='op'",
        ),
        "ep4, compiled": (
            EP + "4",
            "compile.enable=true",
            "compile.backend='aot_eager'",
            "activation_checkpoint.mode='full'",
        ),
    }
    jobs = {
        name: parity_job(corpus, *EXPERTS, short, *settings, ranks=4, dp=4)
        for name, settings in layouts.items()
    }
    train_all(tmp_path, jobs)
    for name in jobs:
        assert difference(tmp_path / "one", tmp_path / name) <= 1e-6
        # Token counts are whole numbers: the load agrees exactly.
        load = column(tmp_path / "one", "expert_load_max")
        assert column(tmp_path / name, "expert_load_max") == load
        assert min(load) > 1


def alone() -> World:
    return World(0, 1, torch.device("cpu"))


def test_selection_bias_rises_for_starved_experts_and_falls_for_busy_ones() -> None:
    sizes = find_bundle("llama3_debug").resolve().job.model
    moe = Moe(sizes, MoE(num_experts=4, experts_per_token=1, ffn_dim=8, load_balance_coeff=0.5))
    moe.init_buffers()
    load = ExpertLoad([nn.ModuleList([moe])], alone(), 0.5)
    moe.tokens_per_expert_E.copy_(torch.tensor([8, 0, 4, 4]))
    metrics = load.end_step(update=torch.tensor(True))
    assert moe.router.selection_bias is not None
    assert moe.router.selection_bias.tolist() == [-0.5, 0.5, 0.0, 0.0]
    assert {name: value.item() for name, value in metrics.items()} == {
        "expert_load_max": 2.0,
        "experts_idle": 1,
    }
    moe.tokens_per_expert_E.copy_(torch.tensor([8, 0, 4, 4]))
    load.end_step(update=torch.tensor(False))
    assert moe.router.selection_bias.tolist() == [-0.5, 0.5, 0.0, 0.0]
    assert moe.tokens_per_expert_E.tolist() == [0, 0, 0, 0]


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ((EP + "2",), "expert_parallel_degree: got 2, but the model has no experts; use 1"),
        (
            (*EXPERTS, EP + "3"),
            "3 does not divide num_experts = 8; use 1, 2 or 4",
        ),
        (
            (*EXPERTS, EP + "4", HSDP),
            "4 does not divide the dp_shard * cp * tp = 2 ranks of one copy and stage; use 1 or 2",
        ),
        (
            (*EXPERTS, EP + "2", "plan.gpus_per_node=6", "training.local_batch_size=8"),
            "2 leaves 4 experts to dp_shard * cp * tp / ep = 3 ranks, which divides neither them "
            "nor their dim = 256 and moe.ffn_dim = 32; use another number of ranks",
        ),
        (
            (*EXPERTS, EP + "4", f"{BACKEND}='deepep'", "training.local_batch_size=2"),
            'expert_parallel_comm_backend: "deepep" is not supported yet; use "standard"',
        ),
    ],
)
def test_degrees_that_experts_or_ranks_do_not_allow_are_refused(
    settings: tuple[str, ...], message: str
) -> None:
    with pytest.raises(ConfigError, match=message.replace("*", r"\*")):
        find_bundle("llama3_debug").resolve(
            overrides=["plan.gpu='cpu'", "plan.gpus_per_node=4", *settings]
        )


def test_forced_balance_gives_every_expert_as_many_tokens() -> None:
    sizes = find_bundle("llama3_debug").resolve().job.model
    moe = Moe(sizes, MoE(num_experts=4, experts_per_token=3, ffn_dim=8))
    for parameter in moe.parameters():
        nn.init.normal_(parameter, std=0.02)
    moe.init_buffers()
    moe.router.force_balance = True
    moe(torch.randn(2, 6, sizes.dim))
    assert moe.tokens_per_expert_E.tolist() == [9, 9, 9, 9]
