"""The trainer, in reading order: set up, `train`, `train_step`, `forward_backward_step`.

    world -> model on meta -> checkpointing, compile, sharding -> init -> optimizer -> load -> loop

One optimizer step takes `global_batch_size` sequences, in `gradient_accumulation_steps` passes on
each rank. The loss is a sum over tokens, divided by the tokens of the whole step, and gradients are
summed over passes and ranks: the same numbers however the batch is split.
"""

import contextlib
import gc
from collections.abc import Generator
from dataclasses import asdict
from typing import Any

import torch
from torch import Tensor

from titan_recipes.config.job import Job
from titan_recipes.config.layout import RunLayout
from titan_recipes.config.lora import uses_lora
from titan_recipes.errors import NumericsError
from titan_recipes.trainer.allocator import keep_pages
from titan_recipes.trainer.build import build_model_parts, introduction
from titan_recipes.trainer.checkpoint.store import Checkpointer
from titan_recipes.trainer.compiled import Compilations
from titan_recipes.trainer.data.loader import (
    Batch,
    TrainingData,
    open_training_data,
    open_validation_data,
)
from titan_recipes.trainer.data.prepare import Prepared
from titan_recipes.trainer.data.read_ahead import read_ahead
from titan_recipes.trainer.expert_load import ExpertLoad
from titan_recipes.trainer.figures import StepFigures
from titan_recipes.trainer.hf.convert import export_last
from titan_recipes.trainer.loss import IGNORED
from titan_recipes.trainer.metrics import MetricsLog, RankEvents, StepTimer, device_peak
from titan_recipes.trainer.numerics import FiniteCheck, attention_kernels, set_determinism
from titan_recipes.trainer.optim.in_backward import StepInBackward
from titan_recipes.trainer.optimizer import (
    build_optimizer,
    clip_grads,
    global_grad_norm,
    lr_factor,
    set_lr,
    step_if_finite,
)
from titan_recipes.trainer.parallel.mesh import World, tighten_timeouts
from titan_recipes.trainer.parallel.sequence_split import sequence_split, take_part
from titan_recipes.trainer.parallel.tied import counted_parameters
from titan_recipes.trainer.profiling import profiled
from titan_recipes.trainer.quantize import precompute_scales
from titan_recipes.trainer.state import (
    base_state,
    load_optimizer_state,
    load_rng_state,
    model_state,
    optimizer_state,
    rng_state,
)
from titan_recipes.trainer.stop import StopSignal


class Trainer:
    """One rank's share of a training run."""

    def __init__(
        self,
        job: Job,
        layout: RunLayout,
        world: World,
        events: RankEvents,
        prepared: Prepared | None = None,
        data: TrainingData | None = None,
    ) -> None:
        """prepared: where the token shards are; data: what to train on, instead of the job's."""
        self.job, self.layout, self.world, self.events = job, layout, world, events
        self.step = 0
        self.schedule_step = 0
        set_determinism(job.debug)
        keep_pages(world.device)
        self.sequence_split = sequence_split(job, world)
        self.model_parts = build_model_parts(job, world)
        self.parameters = [p for part in self.model_parts for p in part.parameters()]
        self.counted = counted_parameters(self.model_parts)
        self.optimizers = [build_optimizer(part, job.optimizer) for part in self.model_parts]
        self.in_backward = (
            StepInBackward(self.optimizers, world.device)
            if job.optimizer.early_step_in_backward
            else None
        )
        coeff = job.model.moe.load_balance_coeff if job.model.moe else 0.0
        self.expert_load = ExpertLoad(self.model_parts, world, coeff)
        can_skip = self.in_backward is None
        self.finite_check = FiniteCheck(world, log=self.say, can_skip=can_skip)
        self.pipeline = None
        if world.pp_mesh is not None:
            from titan_recipes.trainer.parallel.pipeline import Pipeline

            self.pipeline = Pipeline(self.model_parts, job, world)
        mine: dict[str, Any] = {"dp_rank": world.dp_rank, "dp_degree": job.dp_degree}
        self.data = data or read_ahead(
            open_training_data(job, **mine, prepared=prepared), job, world.device
        )
        self.validation_data = (
            open_validation_data(job, **mine, prepared=prepared) if job.validation.enable else ()
        )
        self.checkpointer = (
            Checkpointer(
                job.checkpoint, layout.root / job.checkpoint.folder, log=self.say, sizes=job.model
            )
            if job.checkpoint.enable
            else None
        )
        self.stop = StopSignal(layout.stop, world)
        self.compilations = Compilations(job)
        self.attention_kernels = attention_kernels(world.device)
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
            peak_tflops=device_peak(world.device, job.training.mixed_precision_param, self.say),
        )
        self.figures = StepFigures(
            job,
            world,
            metrics=self.metrics,
            events=events,
            timer=self.timer,
            finite_check=self.finite_check,
        )

    def say(self, line: str) -> None:
        """A line for people, on rank 0; on every rank an event for machines."""
        self.events.write("log", line=line)
        if self.world.rank == 0:
            print(line, flush=True)

    # --- the loop -----------------------------------------------------------------------------

    def train(self) -> None:
        """Train until the last step or until a stop is asked for; then save."""
        job = self.job
        for line in introduction(job, self.world, self.model_parts):
            self.say(line)
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
        with profiling as profile_step, self.closed_on_fault():
            while self.step < job.training.steps:
                if self.stop.poll():
                    break
                self.train_step()
                self.tell_compiled(first_step)
                if self.step == first_step and self.world.mesh is not None:
                    group = self.checkpointer.group if self.checkpointer else None
                    tighten_timeouts(job.comm.train_timeout_seconds, self.world, but=group)
                profile_step()
                self.collect_garbage()
                if job.validation.enable and self.is_due(job.validation.freq):
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
        set_lr(self.optimizers, lr)
        batches = [self.data.next_batch() for _ in range(derived.gradient_accumulation_steps)]
        num_tokens = self.count_tokens(batches)
        self.expert_load.begin_step(num_tokens)

        local_loss = torch.zeros((), device=self.world.device)
        with self.attention_kernels():
            for batch in batches:
                local_loss += self.forward_backward_step(batch, num_tokens)
        if self.pipeline is not None:
            self.pipeline.sum_tied_gradients()
        if self.in_backward is not None:
            grad_norm, local_norm = self.in_backward.take_norm()
        else:
            grad_norm, local_norm = global_grad_norm(
                self.counted, self.world.device, self.world.pp_group
            )
        loss = self.world.sum_over(local_loss, "dp", "cp", "pp")
        finite = loss.isfinite() & grad_norm.isfinite()
        if job.training.max_norm > 0:
            clip_grads(self.parameters, grad_norm, job.training.max_norm)
        if self.in_backward is None:
            step_if_finite(self.optimizers, finite)
        precompute_scales(self.model_parts, job)
        for optimizer in self.optimizers:
            optimizer.zero_grad()
        self.figures.note(
            self.step,
            lr,
            log=self.is_due(job.metrics.log_freq) or self.step == 1,
            loss=loss,
            grad_norm=grad_norm,
            local_loss=local_loss,
            local_norm=local_norm,
            **self.expert_load.end_step(update=finite),
        )

    def forward_backward_step(self, batch: Batch, num_tokens: Tensor) -> Tensor:
        """Forward and backward of one pass; returns this rank's share of the step's mean loss."""
        if self.pipeline is not None:
            return self.pipeline.forward_backward(self.on_device(batch), num_tokens)
        loss = self.summed_loss(batch) / num_tokens
        loss.backward()
        return loss.detach()

    def summed_loss(self, batch: Batch) -> Tensor:
        """The loss over this rank's tokens of a batch, summed."""
        batch = self.on_device(batch)
        if self.pipeline is not None:
            return self.pipeline.evaluate(batch)
        return self.model_parts[0](batch.tokens_BS, batch.documents_BS, batch.labels_BS)

    def on_device(self, batch: Batch) -> Batch:
        """This rank's part of a batch's tokens, on its device."""
        return take_part(batch, self.sequence_split).to(self.world.device)

    def count_tokens(self, batches: list[Batch]) -> Tensor:
        """Tokens of this step whose label counts, over all ranks, as a scalar on the device."""
        count = sum(int((batch.labels_BS != IGNORED).sum()) for batch in batches)
        total = torch.tensor(float(count), dtype=torch.float64)
        total = total.to(self.world.device, non_blocking=True)
        return self.world.sum_over(total, "dp").float()

    def validate(self) -> None:
        """Mean loss per token over the validation data, into validation.jsonl."""
        self.figures.settle()  # the step's own time, before the pause
        with self.timer.paused():
            self.metrics.log_validation(self.step, loss=self.validation_loss())
        self.compilations.new()  # without gradients graphs are others

    @torch.no_grad()
    def validation_loss(self) -> float:
        for part in self.model_parts:
            part.eval()
        loss = torch.zeros((), dtype=torch.float64, device=self.world.device)
        num_tokens = loss.clone()
        for batch in self.validation_data:
            with self.attention_kernels():
                loss += self.summed_loss(batch)
            num_tokens += (batch.labels_BS != IGNORED).sum()
        loss = self.world.sum_over(loss, "dp", "cp", "pp")
        num_tokens = self.world.sum_over(num_tokens, "dp")
        for part in self.model_parts:
            part.train()
        return (loss / num_tokens).item()

    def tell_compiled(self, first_step: int) -> None:
        """Say what torch.compile made in this step: nothing, after the first, or time is lost."""
        if graphs := self.compilations.new():
            why = "" if self.step == first_step else "; TORCH_LOGS=recompiles tells why"
            self.say(f"step {self.step}: torch.compile made {graphs} graphs{why}")

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
        skipped = self.finite_check.skipped_in_a_row
        return {
            "model": model_state(self.model_parts),
            "optimizer": optimizer_state(self.model_parts, self.optimizers),
            "lr_scheduler": {"step": self.schedule_step},
            "dataloader": self.data.state_dict(),
            "rng": rng_state(self.world.device),
            "progress": {"step": self.step, "skipped_in_a_row": skipped},
        }

    def save(self, *, model_only: bool = False) -> None:
        """Save a checkpoint of the current step, if checkpoints are on."""
        self.figures.settle()
        if self.checkpointer is None:
            return
        with self.timer.paused():
            self.checkpointer.save(self.step, self.state(), model_only=model_only)

    def resume(self) -> None:
        """Load the newest valid checkpoint, if there is one, and go on from its step."""
        loaded = 0
        if self.checkpointer is not None:
            has_base = uses_lora(self.job)
            if has_base:
                self.checkpointer.load_initial({"model": base_state(self.model_parts)})
            # Asking a fresh optimizer for its state makes it take a step with zero gradients.
            state = self.state()
            loaded = self.checkpointer.load(state, initial=not has_base) or 0
            self.restore(state, loaded)
        precompute_scales(self.model_parts, self.job)
        self.metrics.truncate_after(self.step)

    def restore(self, state: dict[str, Any], loaded: int) -> None:
        """Take over a loaded state, weights excepted, which were loaded in place.

        loaded: the step it is of; 0 = nothing but weights, if that.
        """
        excluded = self.job.checkpoint.exclude_from_loading
        if loaded == 0 or "optimizer" in excluded:
            for optimizer in self.optimizers:
                optimizer.state.clear()
        else:
            load_optimizer_state(self.model_parts, self.optimizers, state["optimizer"])
        if loaded == 0:
            return
        if "dataloader" not in excluded:
            self.data.load_state_dict(state["dataloader"])
        self.step = loaded
        self.schedule_step = state["lr_scheduler"]["step"]
        self.finite_check.skipped_in_a_row = state["progress"]["skipped_in_a_row"]
        load_rng_state(state["rng"], self.world.device)
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
        if done and self.job.checkpoint.last_save_in_hf and self.world.rank == 0:
            self.say(export_last(self.job, self.layout, self.step))

    @contextlib.contextmanager
    def closed_on_fault(self) -> Generator[None]:
        """Finish the save under way before a fault that ends the run for good is told."""
        try:
            yield
        except NumericsError:
            self.close()
            raise

    def close(self) -> None:
        """Finish the save under way and write out what is buffered."""
        if self.checkpointer is not None:
            self.checkpointer.close()
        self.data.close()
        self.metrics.close()
        gc.enable()
