"""What is written down while training: rows, TensorBoard, Weights & Biases, lines, rank events.

Rank 0 writes `metrics.jsonl`, one row per logged step and `validation.jsonl` likewise, and prints
each row twice: for people, and after METRICS_MARK for a launcher that sees only the log. A resumed
run first removes the rows past the step it loaded, so that every step appears once. Unknown and
non-finite values are null. `StepTimer` makes the throughput that the rows report.
"""

import json
import math
import os
import secrets
import sys
import time
from collections.abc import Callable, Generator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any, NamedTuple

import torch

from titan_recipes.config.hardware import peak_tflops
from titan_recipes.config.layout import METRICS_MARK, RunLayout, replace_file
from titan_recipes.config.schema import Metrics
from titan_recipes.errors import ConfigError, Problem

_BOLD, _CYAN, _GREEN, _RESET = "\x1b[1m", "\x1b[36m", "\x1b[32m", "\x1b[0m"


class MetricsLog:
    """The records of one run. Every rank makes one; ranks other than 0 write TensorBoard at most.

    total_steps: steps of the whole training, for progress and ETA.
    run_config: shown with the run in Weights & Biases.
    Raises ConfigError where metrics.enable_wandb is set and wandb isn't installed.
    """

    def __init__(
        self,
        config: Metrics,
        layout: RunLayout,
        *,
        rank: int,
        total_steps: int,
        run_config: Mapping[str, Any] | None = None,
    ) -> None:
        self.config = config
        self.layout = layout
        self.rank = rank
        self.total_steps = total_steps
        self.color = not config.disable_color_printing and sys.stdout.isatty()
        self._purge_step: int | None = None
        self._first: tuple[int, float] | None = None
        self._tensorboard: Any = None
        self._wandb: Any = None
        if config.enable_wandb and rank == 0:
            self._wandb = _start_wandb(layout.root, dict(run_config or {}))

    def truncate_after(self, step: int) -> None:
        """Before the first row of an attempt: forget rows past the step that it goes on from."""
        self._purge_step = step + 1
        if self.rank == 0:
            truncate_rows(self.layout.metrics, step)
            truncate_rows(self.layout.validation, step)

    def log(self, step: int, **values: float | None) -> None:
        """One training step, column by column: loss, grad_norm, lr, tokens_per_second (per device),
        mfu (a fraction of 1), memory_gib, and what else there is.

        The row's `time` is in seconds since 1970.
        """
        self._record(self.layout.metrics, "train", step, values)
        if self.rank == 0:
            _print(self._line(step, values))

    def log_validation(self, step: int, *, loss: float | None) -> None:
        """The validation loss after a step."""
        self._record(self.layout.validation, "validation", step, {"loss": loss})
        if self.rank == 0:
            _print(f"validation {step}/{self.total_steps}  loss {_number(loss, '.4f')}")

    def close(self) -> None:
        """Write out what is buffered."""
        if self._tensorboard is not None:
            self._tensorboard.close()
        if self._wandb is not None:
            self._wandb.finish()

    def _record(
        self, path: Path, prefix: str, step: int, values: Mapping[str, float | None]
    ) -> None:
        finite = {name: _finite(value) for name, value in values.items()}
        known = {f"{prefix}/{name}": v for name, v in finite.items() if v is not None}
        if self.rank == 0:
            row = json.dumps({"step": step, **finite, "time": time.time()}, allow_nan=False)
            append_line(path, row)
            if prefix == "train":
                _print(METRICS_MARK + row)
        if self._wandb is not None:
            self._wandb.log(known, step=step)
        writer = self._writer()
        if writer is not None:
            for tag, value in known.items():
                writer.add_scalar(tag, value, step)
            # A killed rank takes its buffer along, and a resumed one doesn't repeat the step.
            writer.flush()

    def _writer(self) -> Any:
        """TensorBoard's writer, made at the first row; None where this rank has none."""
        everywhere = self.config.save_for_all_ranks
        if not self.config.enable_tensorboard or (self.rank != 0 and not everywhere):
            return None
        if self._tensorboard is None:
            from torch.utils.tensorboard import SummaryWriter

            folder = self.layout.root / self.config.save_tb_folder
            self._tensorboard = SummaryWriter(
                str(folder / f"rank-{self.rank}" if everywhere else folder),
                purge_step=self._purge_step,
            )
        return self._tensorboard

    def _line(self, step: int, values: Mapping[str, float | None]) -> str:
        bold, cyan, green, reset = (
            (_BOLD, _CYAN, _GREEN, _RESET) if self.color else ("", "", "", "")
        )
        parts = [
            f"{bold}step {step}/{self.total_steps}{reset}",
            f"{green}loss {_number(values['loss'], '.4f')}{reset}",
            f"grad_norm {_number(values['grad_norm'], '.3g')}",
            f"lr {_number(values['lr'], '.1e')}",
            f"{cyan}{_number(values['tokens_per_second'], ',.0f')} tok/s/device{reset}",
        ]
        if values["mfu"] is not None:
            parts.append(f"mfu {values['mfu']:.1%}")
        parts.append(f"{_number(values['memory_gib'], '.2f')} GiB")
        eta = self._eta(step)
        return "  ".join([*parts, f"eta {eta}"] if eta else parts)

    def _eta(self, step: int) -> str:
        """Time to the last step at the pace since the first logged one, all pauses included."""
        now = time.monotonic()
        if self._first is None:
            self._first = (step, now)
        first_step, first_time = self._first
        if step <= first_step:
            return ""
        return format_seconds((self.total_steps - step) * (now - first_time) / (step - first_step))


class RankEvents:
    """logs/rank-<r>.jsonl: what one rank does, a JSON object a line: time, rank, event, fields."""

    def __init__(self, layout: RunLayout, rank: int) -> None:
        self.path = layout.rank_events(rank)
        self.rank = rank
        self.path.parent.mkdir(parents=True, exist_ok=True)

    def write(self, event: str, **fields: Any) -> None:
        """Append one event; values that JSON lacks are written as text, non-finite ones as null."""
        clean = {k: _finite(v) if isinstance(v, float) else v for k, v in fields.items()}
        row = {"time": time.time(), "rank": self.rank, "event": event, **clean}
        append_line(self.path, json.dumps(row, default=str))


class Throughput(NamedTuple):
    """What a stretch of training steps reached."""

    tokens_per_second: float | None
    """Trained tokens per second on one device; None = no step was timed."""
    mfu: float | None
    """Model FLOPs utilization, a fraction of 1; None = the device's peak is unknown."""


class StepTimer:
    """Throughput of the training steps between two readings.

    Time inside `paused()` (validation, and what a checkpoint keeps the loop waiting) doesn't
    count: the figure is the training's own and doesn't depend on how often one validates or saves.
    Reading and waiting for data does count.

    flops_per_token: forward and backward; peak_tflops: of one device, None = unknown.
    """

    def __init__(self, *, world_size: int, flops_per_token: int, peak_tflops: float | None) -> None:
        self.world_size = world_size
        self.flops_per_token = flops_per_token
        self.peak_tflops = peak_tflops
        self.restart()

    def restart(self) -> None:
        """Begin a new stretch now."""
        self._tokens = 0
        self._paused = 0.0
        self._start = time.perf_counter()

    def add_tokens(self, count: int) -> None:
        """Tokens trained in a step, over all ranks."""
        self._tokens += count

    @contextmanager
    def paused(self) -> Generator[None, None, None]:
        """Leave out the time inside."""
        start = time.perf_counter()
        try:
            yield
        finally:
            self._paused += time.perf_counter() - start

    def read(self) -> Throughput:
        """The throughput since the last reading; begins a new stretch."""
        seconds = time.perf_counter() - self._start - self._paused
        tokens = self._tokens
        self.restart()
        if tokens == 0 or seconds <= 0:
            return Throughput(None, None)
        rate = tokens / seconds / self.world_size
        if self.peak_tflops is None:
            return Throughput(rate, None)
        return Throughput(rate, rate * self.flops_per_token / (self.peak_tflops * 1e12))


def device_peak(
    device: torch.device, compute_dtype: str, say: Callable[[str], None]
) -> float | None:
    """A device's bf16 peak in TFLOP/s, for MFU; where a GPU's is unknown a line says so."""
    if device.type != "cuda":
        return None
    name = torch.cuda.get_device_name(device)
    if compute_dtype != "bfloat16":
        say("compute is not in bf16, which the GPU's peak is known for: no MFU")
        return None
    peak = peak_tflops(name)
    if peak is None:
        say(f"no peak is known for {name!r}: no MFU")
    return peak


def memory_gib(device: torch.device) -> float:
    """CUDA: the most memory reserved since the last call. CPU: the resident set now. In GiB."""
    if device.type == "cuda":
        peak = torch.cuda.max_memory_reserved(device)
        torch.cuda.reset_peak_memory_stats(device)
        return peak / 2**30
    pages = int(Path("/proc/self/statm").read_text().split()[1])
    return pages * os.sysconf("SC_PAGE_SIZE") / 2**30


def truncate_rows(path: Path, step: int) -> None:
    """Remove rows past `step`, and lines that are torn or not rows, by one atomic rewrite."""
    if not path.exists():
        return
    lines = path.read_bytes().splitlines(keepends=True)
    kept = [line for line in lines if _row_step(line) in range(step + 1)]
    if kept != lines:
        replace_file(path, b"".join(kept).decode())


def _row_step(line: bytes) -> int:
    """The step of a row; -1 where the line isn't one."""
    try:
        return json.loads(line)["step"] if line.endswith(b"\n") else -1
    except (ValueError, TypeError, KeyError):
        return -1


def append_line(path: Path, line: str) -> None:
    """Append one line by one write, so that readers and a kill see it whole or not at all."""
    with path.open("ab", buffering=0) as file:
        file.write(line.encode() + b"\n")


def format_seconds(seconds: float) -> str:
    """45s, 1m20s, 2h05m, 3d04h."""
    whole = max(0, round(seconds))
    if whole < 60:
        return f"{whole}s"
    if whole < 3600:
        return f"{whole // 60}m{whole % 60:02d}s"
    if whole < 86400:
        return f"{whole // 3600}h{whole % 3600 // 60:02d}m"
    return f"{whole // 86400}d{whole % 86400 // 3600:02d}h"


def _finite(value: float | None) -> float | None:
    return value if value is not None and math.isfinite(value) else None


def _number(value: float | None, form: str) -> str:
    return "-" if value is None else format(value, form)


def _print(line: str) -> None:
    sys.stdout.write(line + "\n")
    sys.stdout.flush()


def _start_wandb(root: Path, run_config: dict[str, Any]) -> Any:
    """The run in Weights & Biases, the same one for every attempt. WANDB_* variables are obeyed."""
    try:
        import wandb
        from wandb.errors import AuthenticationError, UsageError
    except ImportError as error:
        cure = "pip install 'titan-recipes[wandb]', or set metrics.enable_wandb = false"
        problem = Problem("job.toml", "metrics.enable_wandb", "wandb is not installed", cure)
        raise ConfigError([problem]) from error
    id_file = root / "wandb" / "run-id"
    if not id_file.exists():
        id_file.parent.mkdir(parents=True, exist_ok=True)
        replace_file(id_file, secrets.token_hex(4))
    # Steps repeated after a resume are dropped by wandb; they equal the ones it has.
    try:
        return wandb.init(
            project=os.environ.get("WANDB_PROJECT", "titan-recipes"),
            name=root.name,
            id=id_file.read_text(),
            resume="allow",
            dir=str(root),
            config=run_config,
        )
    except (UsageError, AuthenticationError) as error:
        reason = str(error).strip().splitlines()[0].rstrip(".")
        cure = "set WANDB_API_KEY, or WANDB_MODE=offline"
        raise ConfigError([Problem("job.toml", "metrics.enable_wandb", reason, cure)]) from error
