"""The parity matrix: every layout of ranks that the trainer offers, and on which model it is tried.

A case is a model and a layout; its run must equal one process's. The bound is on the largest
relative difference of loss and gradient norm over all steps.
"""

from collections.abc import Iterator
from dataclasses import dataclass, field, replace
from pathlib import Path

from chat_corpora import VOCAB_SIZE, write_chat, write_tokenizer
from flavors import FAMILIES, flavor_overrides
from parity import parity_job

from titan_recipes.config.job import Job

DATA = 1e-6
"""Bound where ranks only share the batch: the same sums in another order."""
SPLIT = 1e-5
"""Bound where matrices, layers, sequences or experts are split."""

P = "parallelism."
SCHEDULES = (
    "GPipe",
    "1F1B",
    "Interleaved1F1B",
    "LoopedBFS",
    "InterleavedZeroBubble",
    "ZBVZeroBubble",
    "DualPipeV",
)
FAST_SCHEDULES = ("1F1B", "ZBVZeroBubble", "DualPipeV")
FAST_FAMILIES = ("gemma2", "gpt_oss")
"""In `make test`, beside llama3 and deepseek_v3: soft caps and two norms, sinks and windows."""
EXPERT_FAMILIES = ("mixtral", "qwen3_moe", "deepseek_v2", "deepseek_v3", "gpt_oss")


@dataclass(frozen=True, slots=True, kw_only=True)
class Layout:
    """How many ranks share the work, and how; what the other degrees leave is dp_shard."""

    ranks: int
    dp_replicate: int = 1
    tp: int = 1
    pp: int = 1
    cp: int = 1
    ep: int = 1
    settings: tuple[str, ...] = ()
    fast: bool = False
    """Also in `make test`."""

    @property
    def dp(self) -> int:
        """Ranks that read different data."""
        return self.ranks // (self.tp * self.pp * self.cp)

    @property
    def bound(self) -> float:
        """The largest difference allowed."""
        return DATA if self.tp * self.pp * self.cp * self.ep == 1 else SPLIT

    def overrides(self) -> tuple[str, ...]:
        """The `--set` arguments of the layout."""
        return (
            f"{P}data_parallel_replicate_degree={self.dp_replicate}",
            f"{P}tensor_parallel_degree={self.tp}",
            f"{P}pipeline_parallel_degree={self.pp}",
            f"{P}context_parallel_degree={self.cp}",
            f"{P}expert_parallel_degree={self.ep}",
            *self.settings,
        )


def _schedule(name: str) -> tuple[str, ...]:
    return (f"{P}pipeline_parallel_schedule='{name}'",)


DENSE: dict[str, Layout] = {
    "DDP 2": Layout(ranks=2, dp_replicate=2, fast=True),
    "FSDP 2": Layout(ranks=2, fast=True),
    "FSDP 2, always reshard": Layout(
        ranks=2, settings=(f"{P}fsdp_reshard_after_forward='always'",)
    ),
    "FSDP 2, never reshard": Layout(ranks=2, settings=(f"{P}fsdp_reshard_after_forward='never'",)),
    "FSDP 2, CPU offload": Layout(ranks=2, settings=("training.enable_cpu_offload=true",)),
    "TP 2": Layout(ranks=2, tp=2, fast=True),
    "TP 2, whole logits": Layout(ranks=2, tp=2, settings=(f"{P}disable_loss_parallel=true",)),
    "CP 2": Layout(ranks=2, cp=2, fast=True),
    "CP 2, in order": Layout(ranks=2, cp=2, settings=(f"{P}context_parallel_load_balancer=''",)),
    "CP 2, ring": Layout(
        ranks=2, cp=2, settings=(f"{P}context_parallel_rotate_method='alltoall'",)
    ),
    **{
        f"PP 2, {name}": Layout(
            ranks=2, pp=2, settings=_schedule(name), fast=name in FAST_SCHEDULES
        )
        for name in SCHEDULES
    },
    "PP 2, microbatches of 2": Layout(
        ranks=2, pp=2, settings=(f"{P}pipeline_parallel_microbatch_size=2",)
    ),
    "DDP 4": Layout(ranks=4, dp_replicate=4),
    "FSDP 4": Layout(ranks=4),
    "HSDP 2 x 2": Layout(ranks=4, dp_replicate=2, fast=True),
    "TP 4": Layout(ranks=4, tp=4),
    "CP 4": Layout(ranks=4, cp=4),
    "CP 4, ring": Layout(
        ranks=4, cp=4, settings=(f"{P}context_parallel_rotate_method='alltoall'",)
    ),
    "PP 4, 1F1B": Layout(ranks=4, pp=4),
    "FSDP 2 x TP 2": Layout(ranks=4, tp=2, fast=True),
    "FSDP 2 x CP 2": Layout(ranks=4, cp=2, fast=True),
    "TP 2 x CP 2": Layout(ranks=4, tp=2, cp=2),
    "TP 2 x PP 2": Layout(ranks=4, tp=2, pp=2, fast=True),
    "PP 2 x CP 2": Layout(ranks=4, pp=2, cp=2),
    **{
        f"FSDP 2 x PP 2, {name}": Layout(ranks=4, pp=2, settings=_schedule(name))
        for name in SCHEDULES
    },
    "FSDP 8": Layout(ranks=8),
    "HSDP 2 x 4": Layout(ranks=8, dp_replicate=2),
    "HSDP 2 x 2 x TP 2": Layout(ranks=8, dp_replicate=2, tp=2),
    "FSDP 4 x TP 2": Layout(ranks=8, tp=2),
    "FSDP 2 x TP 4": Layout(ranks=8, tp=4),
    "FSDP 2 x PP 4": Layout(ranks=8, pp=4),
    "FSDP 2 x TP 2 x PP 2": Layout(ranks=8, tp=2, pp=2, fast=True),
    "FSDP 2 x TP 2 x PP 2, Interleaved1F1B": Layout(
        ranks=8, tp=2, pp=2, settings=_schedule("Interleaved1F1B")
    ),
    "FSDP 2 x TP 2 x PP 2, ZBVZeroBubble": Layout(
        ranks=8, tp=2, pp=2, settings=_schedule("ZBVZeroBubble")
    ),
    "FSDP 2 x TP 2 x CP 2": Layout(ranks=8, tp=2, cp=2),
    "TP 2 x PP 2 x CP 2": Layout(ranks=8, tp=2, pp=2, cp=2),
}
"""Tried on llama3."""

EVERY_FAMILY: dict[str, Layout] = {
    "FSDP 2": Layout(ranks=2),
    "TP 2 x PP 2": Layout(ranks=4, tp=2, pp=2),
}
"""Tried on each family."""

EXPERTS: dict[str, Layout] = {
    "FSDP 4 x EP 2": Layout(ranks=4, ep=2),
    "FSDP 2 x EP 4 x TP 2": Layout(ranks=4, ep=4, tp=2),
}
"""Tried on each family with experts."""

MORE_EXPERTS: dict[str, Layout] = {
    "FSDP 4": Layout(ranks=4),
    "FSDP 4 x EP 4": Layout(ranks=4, ep=4),
    "HSDP 2 x 2 x EP 2": Layout(ranks=4, dp_replicate=2, ep=2),
    "FSDP 2 x TP 2": Layout(ranks=4, tp=2),
    "FSDP 2 x CP 2 x EP 4": Layout(ranks=4, cp=2, ep=4),
    "FSDP 2 x PP 2 x EP 2": Layout(ranks=4, pp=2, ep=2, fast=True),
    "FSDP 2 x TP 2 x PP 2 x EP 4": Layout(ranks=8, tp=2, pp=2, ep=4),
}
"""Tried on deepseek_v3, which has every switch of experts."""


VARIANTS: dict[str, tuple[str, ...]] = {
    "llama3, documents": ("data.document_mask=true",),
    "llama3, layernorm": ("model.norm='layernorm'",),
    "llama3, np_layernorm": ("model.norm='np_layernorm'",),
    "llama3, chat": (),
}
"""Models with a switch that no family's flavor has on, and what turns it on; chat: see `settings`.
"""

EVERY_VARIANT: dict[str, Layout] = {
    "FSDP 2": Layout(ranks=2),
    "CP 2": Layout(ranks=2, cp=2),
    "TP 2 x PP 2": Layout(ranks=4, tp=2, pp=2),
}
"""Tried on each variant."""


def settings(model: str, corpus: Path) -> list[str]:
    """The `--set` arguments that make the debug recipe's model a family's, or a variant."""
    family, _, variant = model.partition(", ")
    overrides = [*flavor_overrides(family), *VARIANTS.get(model, ())]
    if variant == "chat":  # packed conversations, of which only the answers are trained
        folder = corpus.parent / "chat"
        overrides += [
            "training.dataset='chat'",
            f"training.dataset_path='{write_chat(folder / 'chat.jsonl', rows=400)}'",
            f"assets.tokenizer='{write_tokenizer(folder / 'tokenizer.json')}'",
            f"model.vocab_size={VOCAB_SIZE}",
        ]
    return overrides


@dataclass(frozen=True, slots=True)
class Case:
    """One model, a family or a variant of one, under one layout."""

    family: str
    name: str
    layout: Layout = field(hash=False)

    @property
    def directory(self) -> str:
        """A directory's name for the run."""
        return f"{self.family}--{self.name}".replace(" ", "_").replace(",", "")

    def job(self, corpus: Path) -> Job:
        """The job, resolved."""
        layout = self.layout
        overrides = (*settings(self.family, corpus), *layout.overrides())
        return parity_job(corpus, *overrides, ranks=layout.ranks, dp=layout.dp)


def cases() -> Iterator[Case]:
    """All of the matrix."""
    for name, layout in DENSE.items():
        yield Case("llama3", name, layout)
    for family in FAMILIES:
        if family != "llama3":
            for name, layout in EVERY_FAMILY.items():
                fast = layout.ranks == 2 and family in FAST_FAMILIES
                yield Case(family, name, replace(layout, fast=fast))
    for family in EXPERT_FAMILIES:
        for name, layout in EXPERTS.items():
            yield Case(family, name, layout)
    for name, layout in MORE_EXPERTS.items():
        yield Case("deepseek_v3", name, layout)
    for variant in VARIANTS:
        for name, layout in EVERY_VARIANT.items():
            yield Case(variant, name, layout)


def one_process(model: str, corpus: Path) -> Job:
    """What a model's cases are compared with."""
    return parity_job(corpus, *settings(model, corpus))
