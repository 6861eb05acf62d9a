"""`python -m titan_recipes.trainer.generate PLACE --prompt TEXT`: a checkpoint continues a text.

One process on one device. PLACE is a run directory, whose newest good checkpoint is taken, or a
checkpoint. The text is written as it comes; what is told besides goes to stderr.
"""

import argparse
import json
import os
import sys
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from titan_recipes.config.job import Job, decode
from titan_recipes.errors import ConfigError, Problem, TitanRecipesError
from titan_recipes.trainer.checkpoint import commit
from titan_recipes.trainer.checkpoint.commit import Stored
from titan_recipes.trainer.checkpoint.weights import StoredWeights, job_of
from titan_recipes.trainer.data.chat import ChatFormat, Message
from titan_recipes.trainer.data.tokenizer import Tokenizer, load_job_tokenizer
from titan_recipes.trainer.model.cache import CachedDecoder
from titan_recipes.trainer.model.decoder import Decoder
from titan_recipes.trainer.parallel.precision import DTYPES
from titan_recipes.trainer.verb import tell


@dataclass(frozen=True, slots=True)
class Sampling:
    """How a token is drawn; temperature 0 = the likeliest, top_k 0 and top_p 1 = out of all."""

    temperature: float
    top_k: int
    top_p: float

    def draw(self, logits_V: Tensor, generator: torch.Generator) -> int:
        """One token id."""
        if self.temperature == 0:
            return int(logits_V.argmax())
        logits_V = logits_V.float() / self.temperature
        if 0 < self.top_k < len(logits_V):
            logits_V[logits_V < logits_V.topk(self.top_k).values[-1]] = -torch.inf
        sorted_V, order_V = logits_V.softmax(dim=-1).sort(descending=True)
        # The likeliest tokens that make up top_p together (arXiv:1904.09751), one at least.
        sorted_V[sorted_V.cumsum(dim=-1) - sorted_V >= self.top_p] = 0.0
        return int(order_V[torch.multinomial(sorted_V, 1, generator=generator)])


def main(arguments: list[str] | None = None) -> int:
    """Generate; returns the exit code."""
    options = _parser().parse_args(arguments)
    try:
        _run(options)
    except TitanRecipesError as error:
        return tell(error)
    except KeyboardInterrupt:
        print(file=sys.stderr)
        return 130
    except BrokenPipeError:
        # Whoever read the text has enough of it.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
    return 0


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="titan-recipes generate")
    parser.add_argument("place", type=Path)
    parser.add_argument("--prompt", required=True)
    parser.add_argument("--job", default="", help="as titan_recipes.config.job.encode writes it")
    parser.add_argument("--max-new-tokens", type=int, default=200)
    parser.add_argument("--temperature", type=float, default=0.8)
    parser.add_argument("--top-k", type=int, default=0)
    parser.add_argument("--top-p", type=float, default=1.0)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--device", default="")
    parser.add_argument("--chat", action="store_true")
    parser.add_argument("--json", action="store_true")
    return parser


def _run(options: argparse.Namespace) -> None:
    stored = newest_checkpoint(options.place)
    job = decode(options.job) if options.job else job_of(stored)
    tokenizer = load_job_tokenizer(job)
    prompt, stops = encode_prompt(options.prompt, job, tokenizer, chat=options.chat)
    device = _device(options.device)
    _say(f"{stored.path}, on {device}")
    if len(prompt) + options.max_new_tokens > job.training.seq_len:
        longest = len(prompt) + options.max_new_tokens
        _say(
            f"up to {longest:,} tokens, trained on {job.training.seq_len:,}: it may lose the thread"
        )

    model = load_model(job, stored.path, device, seq_len=len(prompt) + options.max_new_tokens)
    sampling = Sampling(options.temperature, options.top_k, options.top_p)
    generator = torch.Generator(device).manual_seed(options.seed)
    tokens = generate(model, prompt, options.max_new_tokens, sampling, stops, generator)
    started = time.perf_counter()
    ids: list[int] = []
    pieces: list[str] = []
    if not options.json and not options.chat:
        sys.stdout.write(options.prompt)
    for piece in text_pieces(tokens, tokenizer, ids):
        pieces.append(piece)
        if not options.json:
            sys.stdout.write(piece)
            sys.stdout.flush()
    seconds = time.perf_counter() - started
    if options.json:
        ended = "stop" if len(ids) < options.max_new_tokens else "length"
        answer: dict[str, Any] = {
            "checkpoint": str(stored.path),
            "step": stored.step,
            "prompt": options.prompt,
            "text": "".join(pieces),
            "num_prompt_tokens": len(prompt),
            "num_new_tokens": len(ids),
            "finish": ended,
            "seconds": seconds,
        }
        print(json.dumps(answer))
        return
    print()
    _say(f"{len(ids):,} tokens in {seconds:.1f} s, {len(ids) / max(seconds, 1e-9):,.1f} a second")


def _say(line: str) -> None:
    print(line, file=sys.stderr, flush=True)


def newest_checkpoint(place: Path) -> Stored:
    """The checkpoint that a path means: itself, or the newest whose files have the right sizes.

    Contents are not hashed, which for a large model would take longer than the text. Raises
    ConfigError.
    """
    problem = "no checkpoints here" if place.is_dir() else "no such run or directory"
    for stored in commit.find_checkpoints(place) if place.is_dir() else ():
        problems = commit.verify_checkpoint(stored.path, hash_content=False)
        if not problems:
            return stored
        problem = f"no good checkpoint: {stored.path.name}: {'; '.join(problems)}"
    raise ConfigError([Problem(str(place), "", problem)])


def encode_prompt(
    text: str, job: Job, tokenizer: Tokenizer, *, chat: bool
) -> tuple[list[int], set[int]]:
    """The ids that the model starts with, and those that end its text. Raises ConfigError."""
    if not text.strip():
        raise ConfigError([Problem("--prompt", "", "empty", "give some text")])
    stops = {*tokenizer.after}
    if chat:
        format = ChatFormat(job.data.chat_template, tokenizer)
        return format.prompt([Message("user", text)]), {*stops, format.end_id}
    return [*tokenizer.before, *tokenizer.encode(text)], stops


def _device(name: str) -> torch.device:
    if not name:
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")
    try:
        device = torch.device(name)
        torch.empty(0, device=device)
    except (RuntimeError, AssertionError) as error:
        reason = next(iter(str(error).splitlines()), "")
        got = f'"{name}": {reason}'
        raise ConfigError([Problem("--device", "", got, "cpu or cuda")]) from error
    return device


def load_model(job: Job, checkpoint: Path, device: torch.device, *, seq_len: int) -> Decoder:
    """The model with a checkpoint's weights, ready to compute texts of up to seq_len tokens.

    On a GPU parameters have the type that training computed in, on a CPU they are float32: many
    CPUs take ten times as long in bf16.
    """
    dtype = DTYPES[job.training.mixed_precision_param] if device.type == "cuda" else torch.float32
    with torch.device("meta"):
        model = Decoder(job.model, seq_len).to(dtype)
    model.to_empty(device=device)
    model.tie()
    model.init_buffers()
    weights = StoredWeights(job, checkpoint)
    target = model.state_dict()
    for name in weights.names:
        # One at a time: a large model is in memory once.
        target[name].copy_(weights.load([name])[name])
    return model.eval()


def generate(
    model: Decoder,
    prompt: list[int],
    max_new_tokens: int,
    sampling: Sampling,
    stops: set[int],
    generator: torch.Generator,
) -> Iterator[int]:
    """New token ids, up to a stop, which is not given out, or max_new_tokens."""
    cached = CachedDecoder(model)
    device = generator.device
    new = prompt
    for _ in range(max_new_tokens):
        logits_V = cached.next_logits(torch.tensor([new], device=device))[0]
        token = sampling.draw(logits_V, generator)
        if token in stops:
            return
        yield token
        new = [token]


def text_pieces(tokens: Iterator[int], tokenizer: Tokenizer, ids: list[int]) -> Iterator[str]:
    """The text of tokens as they come, whole characters only; `ids` collects them."""
    shown = ""
    for token in tokens:
        ids.append(token)
        text = tokenizer.decode(ids)
        # A character may take several tokens; until its last it decodes to U+FFFD.
        if not text.endswith("\N{REPLACEMENT CHARACTER}"):
            yield text[len(shown) :]
            shown = text
    if ids and (rest := tokenizer.decode(ids)[len(shown) :]):
        yield rest


if __name__ == "__main__":
    sys.exit(main())
