"""What the trainer costs over a bare PyTorch loop: tokens/s of llama3_debug on one CPU rank.

Both train the same model from the same weights with the same batches, optimizer and clipping, in
float32 as the recipe says, in one process, in interleaved pairs of stretches; the order within a
pair alternates, so that a machine that slows down slows both. The trainer's stretch includes all it
does in a run: data from shards, gradient norm, metrics files, TensorBoard, stop file. The last line
is JSON.

    python benchmarks/trainer_overhead.py [--pairs 9] [--steps 4]
"""

import contextlib
import os
import statistics
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

os.environ.setdefault("OMP_NUM_THREADS", "1")

import torch
import torch.nn.functional as F
from report import argument_parser, finish

from titan_recipes.bundle.find import find_bundle
from titan_recipes.config.job import Job
from titan_recipes.config.layout import RunLayout
from titan_recipes.trainer.data.loader import open_training_data
from titan_recipes.trainer.data.prepare import ensure_prepared
from titan_recipes.trainer.metrics import RankEvents
from titan_recipes.trainer.model.decoder import Decoder
from titan_recipes.trainer.model.init import init_weights
from titan_recipes.trainer.parallel.mesh import join_world
from titan_recipes.trainer.train import Trainer


def debug_job() -> Job:
    """llama3_debug on one CPU rank, without checkpoints and validation, logging each 5th step."""
    settings = ["plan.gpu='cpu'", "checkpoint.enable=false", "validation.enable=false"]
    settings += ["training.steps=1000000", "metrics.log_freq=5"]
    return find_bundle("llama3_debug").resolve("cpu1", overrides=settings).job


def bare_loop(job: Job) -> Callable[[int], None]:
    """The loop one would write by hand: a function that trains a number of steps."""
    model = Decoder(job.model, job.training.seq_len)
    init_weights(model, job.debug.seed)
    config = job.optimizer
    optimizer = torch.optim.AdamW(
        model.parameters(),
        lr=config.lr,
        betas=(config.beta1, config.beta2),
        eps=config.eps,
        weight_decay=config.weight_decay,
        fused=True,
    )
    data = open_training_data(job, dp_rank=0, dp_degree=1)

    def train(steps: int) -> None:
        for _ in range(steps):
            for _ in range(job.derived.gradient_accumulation_steps):
                batch = data.next_batch()
                logits = model(batch.tokens_BS)
                loss = F.cross_entropy(logits.flatten(0, 1).float(), batch.labels_BS.flatten())
                (loss / job.derived.gradient_accumulation_steps).backward()
            torch.nn.utils.clip_grad_norm_(model.parameters(), job.training.max_norm)
            optimizer.step()
            optimizer.zero_grad()

    return train


def our_loop(job: Job, directory: Path) -> Callable[[int], None]:
    """The trainer's own steps, as its loop takes them."""
    layout = RunLayout(directory)
    layout.logs.mkdir(parents=True)
    trainer = Trainer(job, layout, join_world(job, directory), RankEvents(layout, 0))

    def train(steps: int) -> None:
        for _ in range(steps):
            trainer.stop.poll()
            trainer.train_step()
            trainer.collect_garbage()

    return train


def timed(train: Callable[[int], None], steps: int) -> float:
    """Seconds that `steps` steps take."""
    start = time.perf_counter()
    with Path(os.devnull).open("w") as nowhere, contextlib.redirect_stdout(nowhere):
        train(steps)
    return time.perf_counter() - start


def main() -> None:
    """Measure, print a table and, last, one line of JSON."""
    parser = argument_parser(__doc__)
    parser.add_argument("--pairs", type=int, default=9, help="interleaved pairs (at least 7)")
    parser.add_argument("--steps", type=int, default=4, help="optimizer steps in each stretch")
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    job = debug_job()
    ensure_prepared(job)
    tokens = arguments.steps * job.derived.tokens_per_step
    with tempfile.TemporaryDirectory() as directory:
        loops = {"bare": bare_loop(job), "ours": our_loop(job, Path(directory) / "run")}
        for train in loops.values():
            timed(train, 2)
        rates: dict[str, list[float]] = {"bare": [], "ours": []}
        for pair in range(arguments.pairs):
            for name in ("bare", "ours") if pair % 2 else ("ours", "bare"):
                rates[name].append(tokens / timed(loops[name], arguments.steps))
            print(f"pair {pair + 1}: bare {rates['bare'][-1]:,.0f}  ours {rates['ours'][-1]:,.0f}")
    ratio = statistics.median(a / b for a, b in zip(rates["ours"], rates["bare"], strict=True))
    figures = {
        "ratio": round(ratio, 4),
        "ours_tokens_per_second": round(statistics.median(rates["ours"]), 1),
        "bare_tokens_per_second": round(statistics.median(rates["bare"]), 1),
        "pairs": arguments.pairs,
        "torch": torch.__version__,
    }
    finish("trainer_overhead", figures, arguments.write)


if __name__ == "__main__":
    main()
