"""Fine-tuning on conversations, through the real trainer: the same on any ranks, and it answers."""

import json
from pathlib import Path

import pytest
from chat_corpora import VOCAB_SIZE, write_chat, write_tokenizer
from parity import difference, parity_job, train_all
from training import train_here

from titan_recipes.config.job import Job
from titan_recipes.trainer.generate import main


def chat_job(folder: Path, *overrides: str, **ranks: int) -> Job:
    """A tiny job on the folder's conversations."""
    settings = (
        f"assets.tokenizer='{folder}/tokenizer/tokenizer.json'",
        f"model.vocab_size={VOCAB_SIZE}",
        "training.dataset='chat'",
        f"training.dataset_path='{folder}/chat.jsonl'",
        "data.chat_template='chatml'",
        *overrides,
    )
    return parity_job(folder, *settings, **ranks)


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """A tokenizer and 300 conversations."""
    write_tokenizer(tmp_path / "tokenizer" / "tokenizer.json")
    write_chat(tmp_path / "chat.jsonl", rows=300, count=3)
    return tmp_path


def test_packed_conversations_on_two_ranks_equal_one_process(folder: Path) -> None:
    train_here(folder / "one", chat_job(folder))
    cp = "parallelism.context_parallel_degree=2"
    jobs = {"fsdp": chat_job(folder, ranks=2, dp=2), "cp": chat_job(folder, cp, ranks=2)}
    train_all(folder / "two", jobs)
    assert difference(folder / "one", folder / "two" / "fsdp") <= 1e-6
    assert difference(folder / "one", folder / "two" / "cp") <= 1e-5


def test_model_that_learned_an_answer_gives_it(
    folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    rows = [{"prompt": q, "completion": a} for q, a in [("ping", "pong"), ("tic", "tac toe")]]
    (folder / "chat.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows * 200))
    settings = ("checkpoint.enable=true", "training.steps=40", "training.global_batch_size=8")
    train_here(folder / "run", chat_job(folder, *settings, "optimizer.lr=3e-3"))
    capsys.readouterr()
    for row in rows:
        asked = [str(folder / "run"), "--chat", "--json", "--temperature", "0"]
        assert main([*asked, "--prompt", row["prompt"]]) == 0
        answer = json.loads(capsys.readouterr().out)
        assert (answer["text"], answer["finish"]) == (row["completion"], "stop")
