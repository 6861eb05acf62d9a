"""torchtitan 0.2.2 under measurement: its train.Trainer with its JobConfig and its model."""

import dataclasses
import importlib
import importlib.util
import os
import socket
import sys
import types
from collections.abc import Callable, Iterator
from typing import Any

import torch
from peers import Peer
from torch import Tensor
from workload import LOG_FREQ, initial_weights


class TorchTitan(Peer):
    """torchtitan's Trainer with a TrainSpec of its Llama 3 at our sizes, registered as it offers.

    Its tokenizer and dataloader are left out: `train_step` gets the same tokens as the others.
    """

    packages = ("torch", "torchtitan")

    def build(self) -> None:
        os.environ |= {"RANK": "0", "LOCAL_RANK": "0", "WORLD_SIZE": "1"}
        os.environ |= {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(_free_port())}
        if self.device.type == "cpu":
            self._stand_in_for_a_gpu()
        if importlib.util.find_spec("triton") is None:
            self._leave_out_expert_kernels()
        train: Any = importlib.import_module("torchtitan.train")
        config = self._config(importlib.import_module("torchtitan.config"))
        self._register()
        self._trainer = train.Trainer(config)
        adapter = self._spec.state_dict_adapter(self._trainer.model_args, None)
        weights = adapter.from_hf(initial_weights(self.job, self.device))
        self.model().load_state_dict(_named_like(self.model(), weights))
        self._observe()
        self._batches = self._trainer.batch_generator(self._pairs())

    def train(self, steps: int) -> None:
        trainer = self._trainer
        for _ in range(steps):
            # What its `train` does in each round of its loop, with validation and profiling off.
            trainer.step += 1
            trainer.gc_handler.run(trainer.step)
            trainer.train_step(self._batches)
            trainer.checkpointer.save(trainer.step, last_step=False)

    def model(self) -> torch.nn.Module:
        return self._trainer.model_parts[0]

    def optimizers(self) -> list[torch.optim.Optimizer]:
        return list(self._trainer.optimizers)

    def _pairs(self) -> Iterator[tuple[dict[str, Tensor], Tensor]]:
        while True:
            tokens_BS, labels_BS = self.tokens.pair()
            yield {"input": tokens_BS}, labels_BS

    def _observe(self) -> None:
        """See what it logs, beside what it does with it."""
        processor = self._trainer.metrics_processor
        log = processor.log

        def observed(step: int, loss: float, most: float, norm: float, **more: Any) -> None:
            self.logged[step] = (float(loss), float(norm))
            log(step, loss, most, norm, **more)

        processor.log = observed

    def _config(self, titan: Any) -> Any:
        """Its JobConfig with what our job says."""
        config, job = titan.JobConfig(), self.job
        config.job.dump_folder = str(self.folder)
        config.model.name, config.model.flavor = "llama3_ours", "ours"
        config.metrics.log_freq = LOG_FREQ
        training = ("local_batch_size", "global_batch_size", "seq_len", "max_norm", "steps")
        for key in (*training, "dtype", "mixed_precision_param", "gc_freq"):
            setattr(config.training, key, getattr(job.training, key))
        for key in ("lr", "beta1", "beta2", "eps", "weight_decay", "implementation"):
            setattr(config.optimizer, key, getattr(job.optimizer, key))
        for key in ("warmup_steps", "decay_ratio"):
            setattr(config.lr_scheduler, key, getattr(job.lr_scheduler, key))
        for key in ("mode", "selective_ac_option"):
            setattr(config.activation_checkpoint, key, getattr(job.activation_checkpoint, key))
        config.compile.enable = job.compile.enable
        return config

    def _register(self) -> None:
        """Its Llama 3 at our sizes: only numbers differ from the flavors it has."""
        llama: Any = importlib.import_module("torchtitan.models.llama3")
        numbers: Any = importlib.import_module("torchtitan.models.llama3.model.args")
        specs: Any = importlib.import_module("torchtitan.protocols.train_spec")
        sizes, scaling = self.job.model, self.job.model.rope_scaling
        rope = numbers.RoPEScalingArgs(scaling_factor=1.0)  # It always scales: by 1 is none.
        if scaling is not None:
            rope = numbers.RoPEScalingArgs(
                scaling_factor=scaling.factor,
                low_freq_factor=scaling.low_freq_factor,
                high_freq_factor=scaling.high_freq_factor,
                original_max_position_embeddings=scaling.original_max_seq_len,
            )
        multiple = sizes.ffn_dim & -sizes.ffn_dim
        arguments = llama.TransformerModelArgs(
            dim=sizes.dim,
            n_layers=sizes.n_layers,
            n_heads=sizes.n_heads,
            n_kv_heads=sizes.n_kv_heads,
            vocab_size=sizes.vocab_size,
            # Its width is int(multiplier * (8 dim // 3)), rounded up to a multiple.
            multiple_of=multiple,
            ffn_dim_multiplier=(sizes.ffn_dim - multiple / 2) / (8 * sizes.dim // 3),
            norm_eps=sizes.norm_eps,
            rope_theta=sizes.rope_theta,
            rope_scaling_args=rope,
        )
        spec = self._spec = llama.get_train_spec()
        specs.register_train_spec(
            "llama3_ours",
            dataclasses.replace(
                spec,
                model_args={"ours": arguments},
                build_tokenizer_fn=None,
                build_dataloader_fn=None,
            ),
        )

    def _stand_in_for_a_gpu(self) -> None:
        """It asks torch for an accelerator's module; torch.cpu lacks a few of the functions."""
        import torch._utils as torch_utils

        class Cpu(types.ModuleType):
            def __getattr__(self, name: str) -> Any:
                return getattr(torch.cpu, name)

        pages = os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
        shim: Any = Cpu("torch.cpu with an accelerator's functions")
        for name in ("set_device", "reset_peak_memory_stats", "empty_cache", "synchronize"):
            setattr(shim, name, _answering(None))
        shim.current_device = _answering(0)
        shim.get_device_name = _answering("CPU")
        shim.get_device_properties = _answering(types.SimpleNamespace(total_memory=pages))
        shim.memory_stats = _answering({})
        untyped: Any = torch_utils
        untyped._get_available_device_type = _answering("cpu")
        untyped._get_device_module = _answering(shim)
        self.patches.append("torch.cpu stands in for a GPU's module (device name, memory figures)")

    def _leave_out_expert_kernels(self) -> None:
        """Importing its package imports triton for them, which a CPU build of torch lacks."""
        name = "torchtitan.models.moe.kernels"
        kernels: Any = types.ModuleType(name)
        kernels.generate_permute_indices = None
        sys.modules[name] = kernels
        self.patches.append("its mixture-of-experts kernels are left out: there is no triton")


def _answering(value: Any) -> Callable[..., Any]:
    """A function that returns one thing, whatever it is asked."""

    def answer(*_: Any) -> Any:
        return value

    return answer


def _free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]


def _named_like(model: torch.nn.Module, weights: dict[str, Tensor]) -> dict[str, Tensor]:
    """The weights by the names that a model has under checkpointing wrappers."""
    plain = {
        name.replace("_checkpoint_wrapped_module.", "").replace("_orig_mod.", ""): name
        for name in model.state_dict()
    }
    return {plain.get(name, name): value for name, value in weights.items()}
