"""The trainer, in reading order: set up, `train`, `train_step`, `forward_backward_step`.

    world -> model on meta -> checkpointing, compile, sharding -> init -> optimizer -> load -> loop

One optimizer step takes `global_batch_size` sequences, in `gradient_accumulation_steps` passes on
each rank. The loss is a sum over tokens, divided by the tokens of the whole step, and gradients are
summed over passes and ranks: the same numbers however the batch is split.
"""

import contextlib
import gc
import math
from dataclasses import asdict
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor
from torch.distributed.checkpoint.state_dict import (
    StateDictOptions,
    get_model_state_dict,
    get_optimizer_state_dict,
    set_optimizer_state_dict,
)

from titan_recipes.config.hardware import peak_tflops
from titan_recipes.config.job import Job
from titan_recipes.config.layout import RunLayout
from titan_recipes.errors import NumericsError
from titan_recipes.trainer.checkpoint.store import Checkpointer
from titan_recipes.trainer.data.loader import Batch, open_training_data, open_validation_data
from titan_recipes.trainer.data.prepare import Prepared
from titan_recipes.trainer.loss import IGNORED, summed_cross_entropy
from titan_recipes.trainer.metrics import MetricsLog, RankEvents, StepTimer, memory_gib
from titan_recipes.trainer.model.decoder import Decoder
from titan_recipes.trainer.model.init import init_weights
from titan_recipes.trainer.optimizer import (
    build_optimizer,
    clip_grads,
    global_grad_norm,
    local_grad_norm,
    lr_factor,
    set_lr,
)
from titan_recipes.trainer.parallel.apply import DTYPES, parallelize
from titan_recipes.trainer.parallel.mesh import World, tighten_timeouts
from titan_recipes.trainer.profiling import profiled
from titan_recipes.trainer.stop import StopSignal

MAX_SKIPPED_STEPS = 3
"""Steps in a row whose loss or gradient norm may be non-finite before the run ends."""

_FLAT = StateDictOptions(flatten_optimizer_state_dict=True)


class Trainer:
    """One rank's share of a training run."""

    def __init__(
        self,
        job: Job,
        layout: RunLayout,
        world: World,
        events: RankEvents,
        prepared: Prepared | None = None,
    ) -> None:
        self.job, self.layout, self.world, self.events = job, layout, world, events
        self.step = 0
        self.schedule_step = 0
        self.skipped_in_a_row = 0
        self.set_determinism()
        self.model = self.build_model()
        self.parameters = list(self.model.parameters())
        self.optimizer = build_optimizer(self.model, job.optimizer)
        self.loss_fn = summed_cross_entropy
        if job.compile.enable and "loss" in job.compile.components:
            self.loss_fn = torch.compile(self.loss_fn, backend=job.compile.backend)
        mine: dict[str, Any] = {"dp_rank": world.dp_rank, "dp_degree": job.dp_degree}
        self.data = open_training_data(job, **mine, prepared=prepared)
        self.validation_data = (
            open_validation_data(job, **mine, prepared=prepared) if job.validation.enable else ()
        )
        self.checkpointer = (
            Checkpointer(job.checkpoint, layout.root / job.checkpoint.folder, log=self.say)
            if job.checkpoint.enable
            else None
        )
        self.stop = StopSignal(layout.stop, world)
        self.metrics = MetricsLog(
            job.metrics,
            layout,
            rank=world.rank,
            total_steps=job.training.steps,
            run_config=asdict(job),
        )
        self.timer = StepTimer(
            world_size=world.size,
            flops_per_token=job.derived.flops_per_token,
            peak_tflops=self.find_peak(),
        )

    # --- set-up -------------------------------------------------------------------------------

    def set_determinism(self) -> None:
        """Seed every generator; with debug.deterministic allow only bitwise repeatable kernels."""
        torch.manual_seed(self.job.debug.seed)
        debug = self.job.debug
        torch.use_deterministic_algorithms(
            debug.deterministic, warn_only=debug.deterministic_warn_only
        )
        torch.backends.cudnn.deterministic = debug.deterministic

    def build_model(self) -> Decoder:
        """The model, parallel and initialized, on this rank's device."""
        job = self.job
        seq_len = max(job.training.seq_len, job.validation.seq_len * job.validation.enable)
        dtype = DTYPES[job.training.dtype]
        with torch.device("meta"):
            model = Decoder(job.model, seq_len).to(dtype)
        parallelize(model, job, self.world)
        model.to_empty(device=self.world.device)
        model.tie()
        assert sum(p.numel() for p in model.parameters()) == job.derived.num_params
        # The rotary table stays float32 whatever the parameters are.
        model.rope_SH = model.rope_SH.float()
        init_weights(model, job.debug.seed)
        return model.train()

    def find_peak(self) -> float | None:
        """This device's bf16 peak in TFLOP/s, for MFU; where it is unknown a line says so."""
        if self.world.device.type != "cuda":
            return None
        name = torch.cuda.get_device_name(self.world.device)
        if self.job.training.mixed_precision_param != "bfloat16":
            self.say("compute is not in bf16, which the GPU's peak is known for: no MFU")
            return None
        peak = peak_tflops(name)
        if peak is None:
            self.say(f"no peak is known for {name!r}: no MFU")
        return peak

    def say(self, line: str) -> None:
        """A line for people, on rank 0; on every rank an event for machines."""
        self.events.write("log", line=line)
        if self.world.rank == 0:
            print(line, flush=True)

    def introduce(self) -> None:
        """Say what the config became: the derived numbers that a person would check first."""
        job, derived = self.job, self.job.derived
        accumulation = derived.gradient_accumulation_steps
        ranks = f"{derived.world_size} x {self.world.device.type}"
        mesh = f"dp_shard {derived.dp_shard}" if self.world.mesh is not None else "one process"
        # Parameter, gradient and two moments, all of the parameters' type.
        state_bytes = 4 * DTYPES[job.training.dtype].itemsize * derived.num_params
        state_gib = state_bytes / derived.dp_shard / 2**30
        self.say(f"{job.recipe_id}, plan {job.origin.plan}: {ranks}, {mesh}")
        self.say(
            f"parameters {derived.num_params:,}; with gradients and optimizer state "
            f"{state_gib:.2f} GiB a rank; {derived.flops_per_token / 1e9:,.3f} GFLOP per token"
        )
        self.say(
            f"tokens per step = {job.training.local_batch_size} sequences x {job.dp_degree} ranks "
            f"x {accumulation} passes x {job.training.seq_len:,} = {derived.tokens_per_step:,}"
        )

    # --- the loop -----------------------------------------------------------------------------

    def train(self) -> None:
        """Train until the last step or until a stop is asked for; then save."""
        job = self.job
        self.introduce()
        self.resume()
        if job.checkpoint.create_seed_checkpoint:
            self.save()
            self.close()
            return
        if self.step >= job.training.steps:
            self.say(f"step {self.step} of {job.training.steps}: nothing left to train")
        gc.disable()
        first_step = self.step + 1
        self.timer.restart()
        profiling = profiled(
            job.profiling,
            self.layout,
            rank=self.world.rank,
            start_step=self.step,
            device=self.world.device,
        )
        with profiling as profile_step:
            while self.step < job.training.steps:
                if self.stop.poll():
                    break
                self.train_step()
                if self.step == first_step and self.world.mesh is not None:
                    tighten_timeouts(job.comm.train_timeout_seconds, self.world)
                profile_step()
                self.collect_garbage()
                if job.validation.enable and self.is_due(job.validation.freq):
                    with self.timer.paused():
                        self.validate()
                if self.is_checkpoint_due():
                    self.save()
        self.stop.drain()
        self.finish()

    def train_step(self) -> None:
        """One optimizer step: accumulate gradients, clip, update; skipped if not finite."""
        job, derived = self.job, self.job.derived
        self.step += 1
        self.schedule_step += 1
        lr = job.optimizer.lr * lr_factor(self.schedule_step, job)
        set_lr(self.optimizer, lr)
        batches = [self.data.next_batch() for _ in range(derived.gradient_accumulation_steps)]
        num_tokens = self.count_tokens(batches)

        local_loss = torch.zeros((), device=self.world.device)
        for batch in batches:
            local_loss += self.forward_backward_step(batch, num_tokens)
        grad_norm = global_grad_norm(self.parameters)
        loss, norm = torch.stack([self.sum_over_ranks(local_loss), grad_norm]).tolist()
        if finite := math.isfinite(loss) and math.isfinite(norm):
            if job.training.max_norm > 0:
                clip_grads(self.parameters, grad_norm, job.training.max_norm)
            self.optimizer.step()
            self.timer.add_tokens(derived.tokens_per_step)
        if self.is_due(job.metrics.log_freq) or self.step == 1 or not finite:
            self.log(loss, norm, lr)
        self.check_finite(finite, local_loss)
        self.optimizer.zero_grad()

    def forward_backward_step(self, batch: Batch, num_tokens: Tensor) -> Tensor:
        """Forward and backward of one pass; returns this rank's share of the step's mean loss."""
        tokens_BS = batch.tokens_BS.to(self.world.device, non_blocking=True)
        labels_BS = batch.labels_BS.to(self.world.device, non_blocking=True)
        with self.autocast():
            logits_BSV = self.model(tokens_BS)
        loss = self.loss_fn(logits_BSV, labels_BS) / num_tokens
        # Free the logits before backward: at a large vocabulary they are the biggest tensor.
        del logits_BSV
        loss.backward()
        return loss.detach()

    def autocast(self) -> contextlib.AbstractContextManager[Any]:
        """bf16 compute for a single process; under FSDP the sharding's own policy casts."""
        dtype = DTYPES[self.job.training.mixed_precision_param]
        if self.world.mesh is not None or dtype == DTYPES[self.job.training.dtype]:
            return contextlib.nullcontext()
        return torch.autocast(self.world.device.type, dtype=dtype)

    def count_tokens(self, batches: list[Batch]) -> Tensor:
        """Tokens of this step whose label counts, over all ranks, as a scalar on the device."""
        count = sum(int((batch.labels_BS != IGNORED).sum()) for batch in batches)
        total = torch.tensor(float(count), dtype=torch.float64).to(self.world.device)
        if self.world.dp_mesh is not None:
            dist.all_reduce(total, group=self.world.dp_mesh.get_group())
        return total.float()

    def log(self, loss: float, grad_norm: float, lr: float) -> None:
        """Write down one step: the global mean loss per token, the norm before clipping."""
        throughput = self.timer.read()
        self.metrics.log(
            self.step,
            loss=loss,
            grad_norm=grad_norm,
            lr=lr,
            tokens_per_second=throughput.tokens_per_second,
            mfu=throughput.mfu,
            memory_gib=memory_gib(self.world.device),
        )
        self.events.write("step", step=self.step, loss=loss, grad_norm=grad_norm)

    def sum_over_ranks(self, value: Tensor) -> Tensor:
        """The sum of a scalar over the data-parallel ranks, on the device."""
        total = value.clone()
        if self.world.dp_mesh is not None:
            dist.all_reduce(total, group=self.world.dp_mesh.get_group())
        return total

    def check_finite(self, finite: bool, local_loss: Tensor) -> None:
        """Count skipped steps. Raises NumericsError after MAX_SKIPPED_STEPS in a row."""
        self.skipped_in_a_row = 0 if finite else self.skipped_in_a_row + 1
        if finite:
            return
        where = self.find_faulty(local_loss)
        self.say(f"step {self.step}: {where}; the update is skipped")
        if self.skipped_in_a_row >= MAX_SKIPPED_STEPS:
            if self.checkpointer is not None:
                self.checkpointer.close()
            raise NumericsError(
                f"step {self.step}: {where}, {self.skipped_in_a_row} steps in a row; lower "
                "optimizer.lr or resume from an earlier checkpoint (checkpoint.load_step)"
            )

    def find_faulty(self, local_loss: Tensor) -> str:
        """What is not finite, and on which ranks: their loss, else their share of the gradients."""
        norm = local_grad_norm(self.parameters).item()
        own = (math.isfinite(local_loss.item()), math.isfinite(norm))
        every: list[Any] = [own]
        if self.world.mesh is not None:
            every = [None] * self.world.size
            dist.all_gather_object(every, own, group=self.world.host_group)
        for index, what in enumerate(("loss", "gradient")):
            if bad := [str(rank) for rank, finite in enumerate(every) if not finite[index]]:
                return f"{what} not finite on rank {', '.join(bad)}"
        return "gradient norm not finite: its squares overflow"

    @torch.no_grad()
    def validate(self) -> None:
        """Mean loss per token over the validation data, into validation.jsonl."""
        self.model.eval()
        total = torch.zeros(2, dtype=torch.float64, device=self.world.device)
        for batch in self.validation_data:
            labels_BS = batch.labels_BS.to(self.world.device)
            with self.autocast():
                logits_BSV = self.model(batch.tokens_BS.to(self.world.device))
            total[0] += self.loss_fn(logits_BSV, labels_BS)
            total[1] += (labels_BS != IGNORED).sum()
        if self.world.dp_mesh is not None:
            dist.all_reduce(total, group=self.world.dp_mesh.get_group())
        self.model.train()
        self.metrics.log_validation(self.step, loss=(total[0] / total[1]).item())

    def collect_garbage(self) -> None:
        """Collect at the same step on all ranks, so that no rank makes the others wait."""
        if not self.is_due(self.job.training.gc_freq):
            return
        found = gc.collect(2 if self.job.training.gc_debug else 1)
        if self.job.training.gc_debug:
            self.say(f"gc: {found} objects in reference cycles")

    def is_due(self, every: int) -> bool:
        """Whether something done each `every` steps, and at the last, is due now."""
        return self.step % every == 0 or self.step == self.job.training.steps

    # --- checkpoints --------------------------------------------------------------------------

    def is_checkpoint_due(self) -> bool:
        """Whether a periodic checkpoint is due; the last step's is saved by `finish`."""
        config = self.job.checkpoint
        if self.step == self.job.training.steps:
            return False
        first = config.enable_first_step_checkpoint and self.step == 1
        return first or self.step % config.interval == 0

    def state(self) -> dict[str, Any]:
        """The whole training state, as `Checkpointer` saves and loads it."""
        return {
            "model": get_model_state_dict(self.model),
            "optimizer": get_optimizer_state_dict(self.model, self.optimizer, options=_FLAT),
            "lr_scheduler": {"step": self.schedule_step},
            "dataloader": self.data.state_dict(),
            "rng": {"cpu": torch.get_rng_state()}
            | ({"cuda": torch.cuda.get_rng_state()} if self.world.device.type == "cuda" else {}),
            "progress": {"step": self.step, "skipped_in_a_row": self.skipped_in_a_row},
        }

    def save(self, *, model_only: bool = False) -> None:
        """Save a checkpoint of the current step, if checkpoints are on."""
        if self.checkpointer is None:
            return
        with self.timer.paused():
            self.checkpointer.save(self.step, self.state(), model_only=model_only)

    def resume(self) -> None:
        """Load the newest valid checkpoint, if there is one, and go on from its step."""
        loaded = 0
        if self.checkpointer is not None:
            # Asking a fresh optimizer for its state makes it take a step with zero gradients.
            state = self.state()
            loaded = self.checkpointer.load(state) or 0
            self.restore(state, loaded)
        self.metrics.truncate_after(self.step)

    def restore(self, state: dict[str, Any], loaded: int) -> None:
        """Take over a loaded state, weights excepted, which were loaded in place.

        loaded: the step it is of; 0 = nothing but weights, if that.
        """
        excluded = self.job.checkpoint.exclude_from_loading
        if loaded == 0 or "optimizer" in excluded:
            self.optimizer.state.clear()
        else:
            options = [dict(group) for group in self.optimizer.param_groups]
            set_optimizer_state_dict(self.model, self.optimizer, state["optimizer"], options=_FLAT)
            for group, own in zip(self.optimizer.param_groups, options, strict=True):
                group.update({key: own[key] for key in own if key != "params"})
        if loaded == 0:
            return
        if "dataloader" not in excluded:
            self.data.load_state_dict(state["dataloader"])
        self.step = loaded
        self.schedule_step = state["lr_scheduler"]["step"]
        self.skipped_in_a_row = state["progress"]["skipped_in_a_row"]
        torch.set_rng_state(state["rng"]["cpu"])
        if "cuda" in state["rng"] and self.world.device.type == "cuda":
            torch.cuda.set_rng_state(state["rng"]["cuda"])
        self.say(f"resumed after step {loaded}")

    def finish(self) -> None:
        """Save the last checkpoint; leave word if there is more to train."""
        done = self.step >= self.job.training.steps
        self.save(model_only=done and self.job.checkpoint.last_save_model_only)
        if not done:
            self.say(f"stopped after step {self.step} of {self.job.training.steps}")
            if self.world.rank == 0:
                self.layout.requeue.touch()
        self.close()

    def close(self) -> None:
        """Finish the save under way and write out what is buffered."""
        if self.checkpointer is not None:
            self.checkpointer.close()
        self.metrics.close()
        gc.enable()
