"""LoRA: the base model stays as it is, small matrices beside its linears are trained.

W x becomes W x + (alpha / rank) B A x, with A [rank, in] random and B [out, rank] zero at first, so
that training begins at the base model (arXiv:2106.09685). Base weights keep their names: what
loads them knows nothing of the adapters, which are `<linear>.lora_a` and `<linear>.lora_b`.
"""

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from titan_recipes.config.job import Job
from titan_recipes.config.lora import lora_targets
from titan_recipes.config.schema import Lora

A, B = "lora_a", "lora_b"


class LoraLinear(nn.Linear):
    """A linear with an adapter; takes the base's parameters over."""

    def __init__(self, base: nn.Linear, config: Lora) -> None:
        super().__init__(base.in_features, base.out_features, device="meta")
        self.weight, self.bias, weight = base.weight, base.bias, base.weight
        self.scale = config.alpha / config.rank
        self.lora_a = nn.Parameter(weight.new_empty(config.rank, base.in_features))
        self.lora_b = nn.Parameter(weight.new_empty(base.out_features, config.rank))

    def forward(self, input: Tensor) -> Tensor:
        added = F.linear(F.linear(input, self.lora_a), self.lora_b)
        return super().forward(input) + added * self.scale


def add_adapters(model: nn.Module, config: Lora, targets: Sequence[str]) -> None:
    """Freeze a model and put adapters beside the linears of these names, in place.

    model: its blocks are in `layers`; nothing else is adapted.
    """
    model.requires_grad_(False)
    for module in list(model.get_submodule("layers").modules()):
        for name in targets:
            linear = getattr(module, name, None)
            if isinstance(linear, nn.Linear):
                setattr(module, name, LoraLinear(linear, config))


def init_adapter(full: Tensor, leaf: str, generator: torch.Generator) -> None:
    """Fill an adapter's matrix: A uniform up to 1 / sqrt(in), as in the authors' code, B zero."""
    if leaf == B:
        full.zero_()
    else:
        bound = full.shape[1] ** -0.5
        full.uniform_(-bound, bound, generator=generator)


def merge_lora(model_state: dict[str, Tensor], job: Job) -> dict[str, Tensor]:
    """The weights of a plain model that computes the same: adapters added to their linears.

    model_state: base weights and adapters by name. Sums are taken in float32 and have the base
    weight's type. Weights without adapters are passed on as they are.
    """
    scale = job.lora.alpha / job.lora.rank
    merged: dict[str, Tensor] = {}
    for name, value in model_state.items():
        module, _, leaf = name.rpartition(".")
        if leaf in (A, B):
            continue
        if leaf == "weight" and f"{module}.{A}" in model_state:
            a, b = model_state[f"{module}.{A}"].float(), model_state[f"{module}.{B}"].float()
            value = (value.float() + scale * (b @ a)).type_as(value)
        merged[name] = value
    return merged


def is_adapter(name: str) -> bool:
    """Whether a parameter of this name is part of an adapter."""
    return name.rpartition(".")[2] in (A, B)


def adapter_names(name: str, job: Job) -> tuple[str, ...]:
    """The names of the adapters of a weight, by the weight's; () = it has none."""
    module, _, leaf = name.rpartition(".")
    if leaf != "weight" or module.rpartition(".")[2] not in lora_targets(job):
        return ()
    return f"{module}.{A}", f"{module}.{B}"
