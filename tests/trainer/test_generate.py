"""Generation: the cache computes what the whole model does; drawing; texts; refusals."""

import json
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from training import small_job, train_here

from titan_recipes.config.schema import LatentAttention, Model, MoE
from titan_recipes.trainer.data.tokenizer import load_tokenizer
from titan_recipes.trainer.generate import Sampling, generate, main, text_pieces
from titan_recipes.trainer.model.cache import CachedDecoder
from titan_recipes.trainer.model.decoder import Decoder
from titan_recipes.trainer.model.init import init_weights

LENGTH = 24
PLAIN = Model(
    family="llama3", dim=32, n_layers=3, n_heads=4, n_kv_heads=2, head_dim=8, ffn_dim=64,
    vocab_size=50,
)  # fmt: skip
MODELS = {
    "grouped": PLAIN,
    "window": replace(PLAIN, sliding_window=5, global_every=3, rope_theta_local=1e4),
    "soft_cap": replace(PLAIN, attention_soft_cap=2.0, output_soft_cap=3.0, tie_embeddings=True),
    "sinks": replace(PLAIN, attention_sinks=True, sliding_window=7),
    "latent": replace(
        PLAIN, n_kv_heads=4, head_dim=12,
        mla=LatentAttention(kv_lora_rank=16, rope_head_dim=4, v_head_dim=8),
    ),
    "experts": replace(
        PLAIN, ffn_dim=0, moe=MoE(num_experts=4, experts_per_token=2, ffn_dim=16),
    ),
}  # fmt: skip


def _model(sizes: Model) -> Decoder:
    model = Decoder(sizes, LENGTH)
    init_weights(model, seed=0)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if name.endswith("sinks"):
                parameter.copy_(torch.linspace(-1, 2, len(parameter)))
    return model.eval()


@pytest.mark.parametrize("name", list(MODELS))
def test_cached_logits_are_those_of_the_whole_text(name: str) -> None:
    torch.manual_seed(0)
    tokens_BS = torch.randint(0, 50, (2, LENGTH))
    with torch.no_grad():
        expected_BSV = _model(MODELS[name])(tokens_BS)
    cached = CachedDecoder(_model(MODELS[name]))
    first = 0
    for length in (9, 1, 1, 6, 1, 1, 5):
        found_BV = cached.next_logits(tokens_BS[:, first : first + length])
        first += length
        assert torch.allclose(found_BV, expected_BSV[:, first - 1], rtol=1e-4, atol=1e-5), first
    assert first == LENGTH


def test_greedy_continuation_is_the_likeliest_token_each_time() -> None:
    model = _model(PLAIN)
    ids = [1, 2, 3]
    expected = list(ids)
    with torch.no_grad():
        while len(expected) < 15:
            expected.append(int(model(torch.tensor([expected]))[0, -1].argmax()))
    greedy = Sampling(temperature=0, top_k=0, top_p=1)
    generator = torch.Generator()
    assert list(generate(_model(PLAIN), ids, 12, greedy, set(), generator)) == expected[3:]
    stop = expected[8]
    stopped = list(generate(_model(PLAIN), ids, 12, greedy, {stop}, generator))
    assert stopped == expected[3 : 3 + expected[3:].index(stop)]


def _draws(sampling: Sampling, count: int = 4000) -> torch.Tensor:
    """Shares of four tokens of probability 0.5, 0.3, 0.15 and 0.05 among the draws."""
    logits_V = torch.tensor([0.15, 0.5, 0.05, 0.3]).log()
    generator = torch.Generator().manual_seed(0)
    drawn = torch.tensor([sampling.draw(logits_V.clone(), generator) for _ in range(count)])
    return drawn.bincount(minlength=4) / count


@pytest.mark.parametrize(
    ("sampling", "expected"),
    [
        (Sampling(1.0, 0, 1.0), [0.15, 0.5, 0.05, 0.3]),
        (Sampling(0.0, 0, 1.0), [0.0, 1.0, 0.0, 0.0]),
        (Sampling(1.0, 2, 1.0), [0.0, 0.625, 0.0, 0.375]),
        (Sampling(1.0, 0, 0.79), [0.0, 0.625, 0.0, 0.375]),
        (Sampling(1.0, 0, 0.81), [0.15 / 0.95, 0.5 / 0.95, 0.0, 0.3 / 0.95]),
        (Sampling(1.0, 0, 0.01), [0.0, 1.0, 0.0, 0.0]),
        (Sampling(0.5, 0, 1.0), [0.0225 / 0.365, 0.25 / 0.365, 0.0025 / 0.365, 0.09 / 0.365]),
    ],
)
def test_draws_have_the_shares_that_were_asked_for(
    sampling: Sampling, expected: list[float]
) -> None:
    shares = _draws(sampling)
    assert shares.tolist() == pytest.approx(expected, abs=0.03)
    assert [share == 0 for share in shares.tolist()] == [share == 0 for share in expected]


def test_text_comes_in_whole_characters() -> None:
    from titan_recipes.config.data_root import data_root

    tokenizer = load_tokenizer(data_root() / "recipes" / "llama3_debug" / "tokenizer.model")
    text = "a \N{SNOWMAN} b \N{GRINNING FACE}"
    ids: list[int] = []
    given = tokenizer.encode(text)
    pieces = list(text_pieces(iter(given), tokenizer, ids))
    assert "".join(pieces) == text
    assert ids == given
    assert len(pieces) < len(given)  # the snowman's bytes are tokens of their own
    assert all("\N{REPLACEMENT CHARACTER}" not in piece for piece in pieces)


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory, corpus: Path, session_cache: Path) -> Path:
    """A run of a few steps with checkpoints at 4 and 8."""
    directory = tmp_path_factory.mktemp("outputs") / "small"
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("TITAN_RECIPES_CACHE", str(session_cache))
        settings = ("training.steps=8", "checkpoint.interval=4", "model.dim=64", "model.ffn_dim=64")
        train_here(directory, small_job(corpus, *settings))
    return directory


def _generate(place: Path, *options: str) -> list[str]:
    return [str(place), "--prompt", "def main(", "--max-new-tokens", "12", "--json", *options]


def test_run_continues_a_text_and_repeats_it_with_the_same_seed(
    run: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    answers = []
    for options in (["--seed", "1"], ["--seed", "1"], ["--seed", "2"]):
        assert main(_generate(run, *options)) == 0
        answers.append(json.loads(capsys.readouterr().out))
    first, again, other = answers
    assert first["checkpoint"] == str(run / "checkpoints" / "step-00000008")
    assert (first["step"], first["num_new_tokens"], first["finish"]) == (8, 12, "length")
    assert first["text"] == again["text"] != other["text"]
    assert main(_generate(run / "checkpoints" / "step-00000004")) == 0
    assert json.loads(capsys.readouterr().out)["step"] == 4


def test_text_is_streamed_after_the_prompt(run: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main([a for a in _generate(run, "--temperature", "0") if a != "--json"]) == 0
    shown = capsys.readouterr()
    assert main(_generate(run, "--temperature", "0")) == 0
    text = json.loads(capsys.readouterr().out)["text"]
    assert shown.out == f"def main({text}\n"
    assert "12 tokens in" in shown.err


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["nowhere", "--prompt", "x"], "nowhere: no such run or directory"),
        ([".", "--prompt", "x"], ".: no checkpoints here"),
        (["RUN", "--prompt", " \n"], "--prompt: empty; give some text"),
        (["RUN", "--prompt", "x", "--device", "tpu9"], '--device: "tpu9": '),
        (["RUN", "--prompt", "x", "--chat"], 'data.chat_template: "llama3" needs <|start_header'),
    ],
)
def test_bad_input_is_one_error(
    run: Path, capsys: pytest.CaptureFixture[str], arguments: list[str], message: str
) -> None:
    assert main([str(run) if a == "RUN" else a for a in arguments]) == 2
    lines = capsys.readouterr().err.splitlines()
    assert [line for line in lines if line.startswith("error: ")] == lines[-1:]
    assert lines[-1].startswith(f"error: {message}") or message in lines[-1]


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["nope", "--prompt", "x"], "error: no run 'nope'"),
        ([".", "--prompt", "x", "--top-p", "1.5"], "'--top-p': 1.5 is not in the range"),
        ([".", "--prompt", "x", "--temperature", "-1"], "'--temperature': -1"),
        ([".", "--prompt", "x", "--max-new-tokens", "0"], "'--max-new-tokens': 0"),
        ([".", "--prompt=-x", "--set", "training.steps=1"], "error: --set says how --recipe is"),
    ],
)
def test_command_refuses_bad_options(options: list[str], message: str) -> None:
    command = [sys.executable, "-m", "titan_recipes.cli", "generate", *options]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 2
    assert message in done.stderr
    assert "Traceback" not in done.stderr
