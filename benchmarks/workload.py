"""What is trained in a benchmark: a recipe's model, a shape, a precision; and the tokens for it.

The tokens are random, made from a seed before the clock starts: no tokenizer, no files, no network,
the same for every program that is compared, and no time of the step is spent on them.
"""

import contextlib
import dataclasses
import json
import os
from collections.abc import Generator, Iterator
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from titan_recipes.bundle.find import find_bundle
from titan_recipes.config.job import Job
from titan_recipes.trainer.data.loader import Batch
from titan_recipes.trainer.hf.key_map import key_map
from titan_recipes.trainer.model.decoder import Decoder
from titan_recipes.trainer.model.init import init_weights

LOG_FREQ = 5
"""Steps from one logged step to the next, in every program that is timed."""
GIB = 2**30
_RING = 8


@dataclass(frozen=True, slots=True, kw_only=True)
class Workload:
    """One training step's work, on one device where nothing else is said.

    flavor: the recipe is llama3_<flavor>. n_layers: -1 = as many as the recipe has. batch:
    sequences of each rank. settings: further overrides of the recipe, as `--set` takes them. The
    output is never tied to the embedding: torchtitan 0.2.2's Llama 3 can't be.
    """

    flavor: str = "debug"
    n_layers: int = -1
    seq_len: int = 512
    batch: int = 2
    precision: str = "bf16"
    enable_compile: bool = False
    ac: str = "none"
    device: str = "cpu"
    ranks: int = 1
    settings: tuple[str, ...] = ()

    def job(self) -> Job:
        """The recipe as a job on one node, at a constant rate. Raises ConfigError."""
        settings = [
            f"plan.gpu='{'cpu' if self.device == 'cpu' else 'any'}'",
            "plan.nodes=1",
            f"plan.gpus_per_node={self.ranks}",
            "model.tie_embeddings=false",
            f"training.seq_len={self.seq_len}",
            f"training.local_batch_size={self.batch}",
            f"training.global_batch_size={self.batch * self.ranks}",
            f"training.mixed_precision_param='{_TYPES[self.precision]}'",
            "training.steps=1000000",
            "optimizer.lr=1e-4",
            "lr_scheduler.warmup_steps=0",
            "lr_scheduler.decay_ratio=0.0",
            f"metrics.log_freq={LOG_FREQ}",
            "checkpoint.enable=false",
            "validation.enable=false",
            f"activation_checkpoint.mode='{self.ac}'",
            "activation_checkpoint.selective_ac_option='op'",
            f"compile.enable={str(self.enable_compile).lower()}",
        ]
        if self.n_layers > 0:
            settings.append(f"model.n_layers={self.n_layers}")
        bundle = find_bundle(f"llama3_{self.flavor}")
        return bundle.resolve(overrides=[*settings, *self.settings]).job

    @property
    def name(self) -> str:
        """For tables: "1b", or "8b, 8 layers"."""
        return self.flavor + (f", {self.n_layers} layers" if self.n_layers > 0 else "")

    @property
    def tokens_per_step(self) -> int:
        """Tokens of one optimizer step, over all ranks."""
        return self.batch * self.seq_len * self.ranks

    def changed(self, **fields: Any) -> "Workload":
        """The same but for some fields."""
        return dataclasses.replace(self, **fields)

    def to_json(self) -> str:
        """One line that `from_json` reads."""
        return json.dumps(dataclasses.asdict(self))

    @classmethod
    def from_json(cls, text: str) -> "Workload":
        """What `to_json` wrote."""
        fields: dict[str, Any] = json.loads(text)
        fields["settings"] = tuple(fields["settings"])
        return cls(**fields)


_TYPES = {"bf16": "bfloat16", "fp32": "float32"}


# B batch, S sequence
class RandomTokens:
    """A ring of random batches: training data for our trainer, an iterator for the others."""

    def __init__(self, job: Job, *, pin: bool) -> None:
        """pin: in page-locked memory, which a GPU reads while the host goes on."""
        generator = torch.Generator().manual_seed(job.debug.seed)
        shape = (job.training.local_batch_size, job.training.seq_len + 1)
        self._ring: list[tuple[Tensor, Tensor]] = []
        for _ in range(_RING):
            window = torch.randint(job.model.vocab_size, shape, generator=generator)
            pair = window[:, :-1].contiguous(), window[:, 1:].contiguous()
            self._ring.append((pair[0].pin_memory(), pair[1].pin_memory()) if pin else pair)
        self._position = 0

    def pair(self) -> tuple[Tensor, Tensor]:
        """The next tokens_BS and labels_BS."""
        self._position += 1
        return self._ring[(self._position - 1) % _RING]

    def next_batch(self) -> Batch:
        """The same as our trainer reads it."""
        return Batch(*self.pair())

    def state_dict(self) -> dict[str, Any]:
        """Where the next batch begins."""
        return {"position": self._position}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Go on from a state."""
        self._position = state["position"]

    def close(self) -> None:
        """There is nothing to end."""


def initial_weights(job: Job, device: torch.device) -> dict[str, Tensor]:
    """The weights that our trainer begins with, by Hugging Face's names, on `device`."""
    with torch.device("meta"):
        model = Decoder(job.model, job.training.seq_len)
    model.to_empty(device=device)
    init_weights(model, job.debug.seed, device)
    ours: dict[str, Tensor] = model.state_dict()
    found: dict[str, Tensor] = {}
    for name, parts in key_map(job.model).items():
        for part in parts:
            stored = torch.empty(part.stored_shape(ours[name].shape), device=device)
            part.put(ours[name], stored)
            found[part.name] = stored
    return found


@contextlib.contextmanager
def quiet() -> Generator[None]:
    """Without what the trainer prints."""
    with open(os.devnull, "w") as nowhere, contextlib.redirect_stdout(nowhere):
        yield


# --- the device -------------------------------------------------------------------------------


def synchronize(device: torch.device) -> None:
    """Wait until the device has done all it was given."""
    if device.type == "cuda":
        torch.cuda.synchronize(device)


def restart_peak(device: torch.device) -> None:
    """Forget the peak of memory until now."""
    if device.type == "cuda":
        torch.cuda.reset_peak_memory_stats(device)
        return
    try:
        with open("/proc/self/clear_refs", "w") as control:
            control.write("5")
    except OSError:
        pass  # Then the peak is the process's from its start.


def peak_gib(device: torch.device) -> dict[str, float]:
    """The peak since `restart_peak`: what tensors took and what the allocator held, or the RSS."""
    if device.type == "cuda":
        return {
            "allocated": torch.cuda.max_memory_allocated(device) / GIB,
            "reserved": torch.cuda.max_memory_reserved(device) / GIB,
        }
    return {"rss": _peak_rss_kib() / 2**20}


def _peak_rss_kib() -> int:
    with open("/proc/self/status") as status:
        line = next(line for line in status if line.startswith("VmHWM:"))
    return int(line.split()[1])


def free_storages(tensors: Iterator[Tensor]) -> list[tuple[Tensor, int]]:
    """Give the memory of tensors back; returns them with their sizes in bytes, for `refill`."""
    freed: list[tuple[Tensor, int]] = []
    for tensor in tensors:
        storage = tensor.untyped_storage()
        freed.append((tensor, storage.nbytes()))
        storage.resize_(0)
    torch.cuda.empty_cache()
    return freed


@torch.no_grad()
def refill(freed: list[tuple[Tensor, int]], trained: set[int]) -> None:
    """Take the memory back: trained tensors (by id) get new random numbers, others zeros."""
    for tensor, size in freed:
        tensor.untyped_storage().resize_(size)
        value = tensor.detach()
        if id(tensor) not in trained:
            value.zero_()
        elif value.dim() > 1:
            value.normal_(std=0.02)
        else:
            value.fill_(1.0)
