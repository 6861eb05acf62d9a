"""What [optimizer] can't be combined with, told on the laptop; parameters by name."""

import pytest
import torch
from flavors import FAMILIES, flavor_overrides

from titan_recipes.bundle.find import find_bundle
from titan_recipes.config.job import Job
from titan_recipes.config.optimizer import moment_bytes, parameter_names, trained_names
from titan_recipes.errors import ConfigError
from titan_recipes.trainer.model.decoder import Decoder
from titan_recipes.trainer.model.lora import add_adapters

LORA = (
    "model.converters=['lora']",
    "checkpoint.initial_load_path='base'",
    "lora.target_modules=['wq', 'w2']",
)


def resolve(*settings: str) -> Job:
    """llama3_debug on two CPU ranks."""
    ranks = ("plan.gpu='cpu'", "plan.gpus_per_node=2", "training.global_batch_size=-1")
    return find_bundle("llama3_debug").resolve(overrides=[*ranks, *settings]).job


def said(*settings: str) -> list[str]:
    """What is said against it."""
    try:
        resolve(*settings)
    except ConfigError as error:
        return [str(problem) for problem in error.problems]
    return []


@pytest.mark.parametrize("family", FAMILIES)
def test_parameter_names_are_those_of_the_model_in_its_order(family: str) -> None:
    job = resolve(*flavor_overrides(family))
    with torch.device("meta"):
        model = Decoder(job.model, 64)
    assert parameter_names(job.model) == [name for name, _ in model.named_parameters()]


def test_trained_names_are_those_of_adapters() -> None:
    job = resolve(*LORA)
    with torch.device("meta"):
        model = Decoder(job.model, 64)
        add_adapters(model, job.lora, job.lora.target_modules)
    trained = [name for name, p in model.named_parameters() if p.requires_grad]
    assert sorted(trained_names(job)) == sorted(trained) != []


OPT, T, P = "optimizer.", "training.", "parallelism."
BACKWARD = f"{OPT}early_step_in_backward=true"
MUON, EIGHT = f"{OPT}name='Muon'", f"{OPT}state_dtype='8bit'"
OFFLOAD = f"{OPT}enable_cpu_offload=true"
FSDP_OFFLOAD, ONE_PASS = f"{T}enable_cpu_offload=true", f"{T}max_norm=0"


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        (
            (BACKWARD,),
            "--set: optimizer.early_step_in_backward: updates before the norm of all gradients is "
            "known, but max_norm = 1.0; set training.max_norm = 0",
        ),
        (
            (BACKWARD, ONE_PASS, f"{T}local_batch_size=2", f"{T}global_batch_size=12"),
            "--set: optimizer.early_step_in_backward: updates after one pass, but a step of "
            "global_batch_size 12 with local_batch_size 2 has 3 passes; set "
            "training.global_batch_size = -1, or a larger training.local_batch_size",
        ),
        (
            (BACKWARD, ONE_PASS, f"{P}pipeline_parallel_degree=2"),
            "--set: optimizer.early_step_in_backward: updates after one backward, but "
            "pipeline_parallel_degree = 2 makes many; set parallelism.pipeline_parallel_degree = 1",
        ),
        (
            (BACKWARD, ONE_PASS, MUON),
            "--set: optimizer.early_step_in_backward: updates one matrix at a time, but Muon deals "
            'all of them to the ranks; use "AdamW"',
        ),
        (
            (BACKWARD, ONE_PASS, OFFLOAD),
            "--set: optimizer.early_step_in_backward: would have backward wait for the host, with "
            "optimizer.enable_cpu_offload = true; keep one",
        ),
        (
            (BACKWARD, ONE_PASS, FSDP_OFFLOAD),
            "--set: optimizer.early_step_in_backward: would have backward wait for the host, with "
            "training.enable_cpu_offload = true; keep one",
        ),
        (
            (MUON, EIGHT),
            '--set: optimizer.state_dtype: "8bit" is for Adam\'s two moments; Muon has one, '
            'already half; use "parameter", or name = "AdamW"',
        ),
        (
            (MUON, OFFLOAD),
            "--set: optimizer.enable_cpu_offload: got true, but Muon's matrix products are too "
            'slow for the host; leave it out, or use optimizer.name = "AdamW"',
        ),
        (
            (MUON, FSDP_OFFLOAD),
            "--set: training.enable_cpu_offload: got true, but Muon's matrix products are too "
            'slow for the host; leave it out, or use optimizer.name = "AdamW"',
        ),
        (
            (MUON, *LORA),
            '--set: optimizer.name: got "Muon", but model.converters "lora" leaves it no whole '
            'matrix to train; use "AdamW"',
        ),
        (
            (EIGHT, OFFLOAD),
            '--set: optimizer.state_dtype: "8bit" saves memory of the device, but '
            'optimizer.enable_cpu_offload leaves it none; use "parameter", or '
            "optimizer.enable_cpu_offload = false",
        ),
        (
            (EIGHT, FSDP_OFFLOAD),
            '--set: optimizer.state_dtype: "8bit" saves memory of the device, but '
            'training.enable_cpu_offload leaves it none; use "parameter", or '
            "training.enable_cpu_offload = false",
        ),
        (
            (OFFLOAD, FSDP_OFFLOAD),
            "--set: optimizer.enable_cpu_offload: contradicts training.enable_cpu_offload, under "
            "which all of it is on the host; keep one",
        ),
        (
            (f"{OPT}groups=[{{pattern='nrom'}}]",),
            '--set: optimizer.groups.0.pattern: "nrom" matches no parameter that is trained; names '
            "are like tok_embeddings.weight, layers.0.attention.wq.weight, "
            "layers.0.attention.wk.weight, layers.0.attention.wv.weight",
        ),
        (
            (f"{OPT}groups=[{{pattern='norm'}}, {{pattern='ffn_norm'}}]",),
            '--set: optimizer.groups.1.pattern: "ffn_norm" matches only what groups before it '
            "have; put it before them",
        ),
        (
            (f"{OPT}groups=[{{pattern='(norm'}}]",),
            '--set: optimizer.groups.0.pattern: "(norm" is no regular expression: missing ), '
            "unterminated subpattern at position 0; see Python's re",
        ),
        (
            (f"{OPT}groups=[{{pattern='norm'}}]", *LORA),
            '--set: optimizer.groups.0.pattern: "norm" matches no parameter that is trained; names '
            "are like layers.0.attention.wq.lora_a, layers.0.attention.wq.lora_b, "
            "layers.0.feed_forward.w2.lora_a, layers.0.feed_forward.w2.lora_b",
        ),
    ],
)
def test_what_does_not_go_together_is_refused(settings: tuple[str, ...], message: str) -> None:
    assert said(*settings) == [message]


@pytest.mark.parametrize(
    "settings",
    [
        (BACKWARD, ONE_PASS, EIGHT),
        (BACKWARD, ONE_PASS, *LORA),
        (MUON, f"{P}pipeline_parallel_degree=2"),
        (EIGHT, f"{P}tensor_parallel_degree=2"),
        (OFFLOAD, f"{OPT}groups=[{{pattern='norm|bias', weight_decay=0.0}}]"),
    ],
)
def test_what_goes_together_is_taken(settings: tuple[str, ...]) -> None:
    assert said(*settings) == []


def test_group_keeps_the_decay_of_the_optimizer_where_it_has_none_of_its_own() -> None:
    (group,) = resolve(f"{OPT}groups=[{{pattern='norm'}}]").optimizer.groups
    assert (group.weight_decay, group.lr_scale) == (-1.0, 1.0)
    assert said(f"{OPT}groups=[{{pattern='norm', lr_scale=0.0}}]") != []


@pytest.mark.parametrize(
    ("settings", "expected"),
    [
        ((), 8),
        ((MUON,), 4),
        ((EIGHT,), 2),
        ((f"{OPT}state_dtype='bfloat16'",), 4),
        ((OFFLOAD,), 0),
    ],
)
def test_moments_of_a_float32_number_take_so_many_bytes(
    settings: tuple[str, ...], expected: int
) -> None:
    assert moment_bytes(resolve(*settings).optimizer, itemsize=4) == expected
