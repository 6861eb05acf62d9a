"""The programs that `versus.py` compares, each driven through its own training step.

    ours         titan_recipes.trainer.train.Trainer
    bare         our model in a loop one would write by hand: the floor of what a trainer costs
    hf           transformers' LlamaForCausalLM in a loop with accelerate, as its documentation says
    torchtitan   torchtitan 0.2.2, its train.Trainer (torchtitan_peer.py)

A peer runs unmodified, or names in `patches` what was changed. Each begins with our weights, reads
the same tokens in the same order and logs each fifth step, which is where losses come from.
"""

import gc
import importlib
import json
from abc import ABC, abstractmethod
from collections.abc import Iterator
from importlib.metadata import version
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor
from workload import LOG_FREQ, RandomTokens, Workload, initial_weights

import titan_recipes
from titan_recipes.config.job import Job
from titan_recipes.config.layout import RunLayout


class Peer(ABC):
    """A program under measurement.

    logged: step -> (loss, gradient norm before clipping), of the steps it logged. patches: what
    was changed in the program, in words. versions: of the packages it stands on.
    """

    packages: tuple[str, ...] = ()

    def __init__(self, workload: Workload, job: Job, device: torch.device, folder: Path) -> None:
        """folder: scratch, empty. Builds the model; raises whatever the program raises."""
        self.workload, self.job, self.device, self.folder = workload, job, device, folder
        self.logged: dict[int, tuple[float, float]] = {}
        self.patches: list[str] = []
        self.tokens = RandomTokens(job, pin=device.type == "cuda")
        self.step = 0
        self.build()

    @property
    def versions(self) -> dict[str, str]:
        """Package -> version."""
        return {package: version_of(package) for package in self.packages}

    @abstractmethod
    def build(self) -> None:
        """Make the model with our initial weights, and all that a step needs."""

    @abstractmethod
    def train(self, steps: int) -> None:
        """So many optimizer steps, as the program's own loop takes them."""

    @abstractmethod
    def model(self) -> torch.nn.Module:
        """What is trained."""

    @abstractmethod
    def optimizers(self) -> list[torch.optim.Optimizer]:
        """What updates it."""

    def large_tensors(self) -> Iterator[Tensor]:
        """Weights and optimizer state: what can be given back between two stretches."""
        yield from self.model().parameters()
        for optimizer in self.optimizers():
            for state in optimizer.state.values():
                yield from (
                    value for value in state.values() if type(value) is Tensor and value.dim()
                )

    def is_logged(self) -> bool:
        """Whether this step is one that programs log."""
        return self.step == 1 or self.step % LOG_FREQ == 0

    def note(self, loss: float, norm: float) -> None:
        """Keep what a logged step showed."""
        self.logged[self.step] = (loss, norm)


class Ours(Peer):
    """Our trainer, in this process."""

    packages = ("torch", "titan-recipes")

    def build(self) -> None:
        from titan_recipes.trainer.metrics import RankEvents
        from titan_recipes.trainer.parallel.mesh import join_world
        from titan_recipes.trainer.train import Trainer

        layout = RunLayout(self.folder / "run")
        layout.logs.mkdir(parents=True)
        world = join_world(self.job, layout.root)
        events = RankEvents(layout, 0)
        self.trainer = Trainer(self.job, layout, world, events, data=self.tokens)
        self._rows = layout.metrics
        gc.disable()  # As Trainer.train does: collect_garbage chooses when.

    def train(self, steps: int) -> None:
        for _ in range(steps):
            self.trainer.stop.poll()
            self.trainer.train_step()
            self.trainer.collect_garbage()

    def read_log(self) -> None:
        """Take the logged steps from metrics.jsonl."""
        for line in self._rows.read_text().splitlines():
            row = json.loads(line)
            self.logged[row["step"]] = (row["loss"], row["grad_norm"])

    def model(self) -> torch.nn.Module:
        return self.trainer.model_parts[0]

    def optimizers(self) -> list[torch.optim.Optimizer]:
        return list(self.trainer.optimizers)


class Loop(Peer):
    """A program that is a loop of ours around one model and one optimizer."""

    _model: Any
    _optimizer: torch.optim.Optimizer

    def model(self) -> torch.nn.Module:
        return self._model

    def optimizers(self) -> list[torch.optim.Optimizer]:
        return [self._optimizer]


class Bare(Loop):
    """Our model, torch's fused AdamW, autocast, clipping: nothing else."""

    packages = ("torch",)

    def build(self) -> None:
        from titan_recipes.trainer.model.decoder import Decoder
        from titan_recipes.trainer.model.init import init_weights

        if self.workload.ac != "none":
            raise ValueError("the bare loop has no activation checkpointing")
        with torch.device(self.device):
            self._model = Decoder(self.job.model, self.job.training.seq_len)
        init_weights(self._model, self.job.debug.seed, self.device)
        if self.workload.enable_compile:
            blocks: Any = self._model.layers.values()
            for block in blocks:
                block.compile()
        optimizer = torch.optim.AdamW(self._model.parameters(), **adamw_options(self.job))
        self._optimizer: Any = optimizer

    def train(self, steps: int) -> None:
        bf16 = self.workload.precision == "bf16"
        for _ in range(steps):
            self.step += 1
            tokens_BS, labels_BS = (part.to(self.device) for part in self.tokens.pair())
            with torch.autocast(self.device.type, dtype=torch.bfloat16, enabled=bf16):
                logits = self._model(tokens_BS)
                flat: Any = logits.flatten(0, 1).float()
                loss: Any = F.cross_entropy(flat, labels_BS.flatten())
            del logits, flat
            loss.backward()
            max_norm = self.job.training.max_norm
            norm = torch.nn.utils.clip_grad_norm_(self._model.parameters(), max_norm)
            self._optimizer.step()
            self._optimizer.zero_grad()
            if self.is_logged():
                self.note(loss.item(), norm.item())


class HuggingFace(Loop):
    """transformers' Llama with sdpa attention, prepared by accelerate; compiled region by region.

    Its loss is its own, inside the model; labels come shifted, so that the tokens are the others'.
    """

    packages = ("torch", "transformers", "accelerate")

    def build(self) -> None:
        transformers: Any = importlib.import_module("transformers")
        accelerate: Any = importlib.import_module("accelerate")
        plugins: Any = importlib.import_module("accelerate.utils")
        from titan_recipes.trainer.hf.config import config_of

        if self.workload.ac not in ("none", "full"):
            raise ValueError(f"transformers has no activation checkpointing {self.workload.ac!r}")
        options: dict[str, Any] = {"use_cache": False, "attn_implementation": "sdpa"}
        config = transformers.LlamaConfig(**config_of(self.job.model), **options)
        config.max_position_embeddings = self.job.training.seq_len
        with torch.device(self.device):
            model = transformers.LlamaForCausalLM(config)
        model.load_state_dict(initial_weights(self.job, self.device))
        model.train()
        if self.workload.ac == "full":
            model.gradient_checkpointing_enable({"use_reentrant": False})
        dynamo = None
        if self.workload.enable_compile:
            dynamo = plugins.TorchDynamoPlugin(backend="inductor", use_regional_compilation=True)
        self._accelerator = accelerate.Accelerator(
            mixed_precision="bf16" if self.workload.precision == "bf16" else "no",
            cpu=self.device.type == "cpu",
            dynamo_plugin=dynamo,
        )
        optimizer = torch.optim.AdamW(model.parameters(), **adamw_options(self.job))
        self._optimizer = optimizer
        self._model, self._prepared = self._accelerator.prepare(model, optimizer)

    def train(self, steps: int) -> None:
        for _ in range(steps):
            self.step += 1
            tokens_BS, labels_BS = (part.to(self.device) for part in self.tokens.pair())
            loss = self._model(input_ids=tokens_BS, labels=labels_BS, shift_labels=labels_BS).loss
            self._accelerator.backward(loss)
            max_norm = self.job.training.max_norm
            norm = self._accelerator.clip_grad_norm_(self._model.parameters(), max_norm)
            self._prepared.step()
            self._prepared.zero_grad()
            if self.is_logged():
                self.note(loss.item(), norm.item())


def version_of(package: str) -> str:
    """The installed version; of titan_recipes its own word, since it may run from its tree."""
    return titan_recipes.__version__ if package == "titan-recipes" else version(package)


def adamw_options(job: Job) -> dict[str, Any]:
    """torch's AdamW as the job sets it."""
    config = job.optimizer
    return {
        "lr": config.lr,
        "betas": (config.beta1, config.beta2),
        "eps": config.eps,
        "weight_decay": config.weight_decay,
        "fused": True,
    }
