"""`checkpoint import` and `export`, and training between them: the whole way of a fine-tuning."""

import json
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from tests.training import column, small_job, small_settings, train_here
from titan_recipes.trainer.checkpoint import commit

SMALL = ["model.n_layers=2", "model.tie_embeddings=true"]
MODEL = {
    "model_type": "llama",
    "hidden_size": 256,
    "num_hidden_layers": 2,
    "num_attention_heads": 16,
    "num_key_value_heads": 16,
    "head_dim": 16,
    "intermediate_size": 768,
    "vocab_size": 2048,
    "rms_norm_eps": 1e-5,
    "rope_parameters": {"rope_type": "default", "rope_theta": 500000.0},
    "tie_word_embeddings": True,
    "max_position_embeddings": 4096,
    "bos_token_id": 2046,
    "eos_token_id": [2047, 2045],
    "pad_token_id": 2044,
}


@pytest.fixture(scope="module")
def published(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A model as someone publishes it: bf16, in several files, with token ids of its own."""
    from transformers import AutoConfig, AutoModelForCausalLM

    folder = tmp_path_factory.mktemp("published")
    torch.manual_seed(1)
    model = AutoModelForCausalLM.from_config(AutoConfig.for_model(**MODEL))
    model.to(torch.bfloat16).save_pretrained(folder, max_shard_size="1MB")
    assert len(list(folder.glob("model-*.safetensors"))) > 1
    return folder


def checkpoint(*arguments: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "titan_recipes.cli", "checkpoint", *arguments]
    return subprocess.run(command, capture_output=True, text=True, timeout=300)


def settings(corpus: Path, *more: str) -> list[str]:
    return [*SMALL, "training.steps=3", "metrics.enable_tensorboard=false", *more]


def as_sets(overrides: list[str]) -> list[str]:
    return [word for override in overrides for word in ("--set", override)]


def test_a_run_begins_from_published_weights_and_ends_as_such(
    corpus: Path, published: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
):
    from transformers import AutoModelForCausalLM

    # Straight from the folder; at the end the last checkpoint is exported, too.
    straight = tmp_path / "straight"
    begin = [f"checkpoint.initial_load_path='{published}'", "checkpoint.initial_load_in_hf=true"]
    end = ["checkpoint.last_save_model_only=true", "checkpoint.last_save_in_hf=true"]
    train_here(straight, small_job(corpus, *settings(corpus, *begin, *end)))
    said = capsys.readouterr().out
    assert f"checkpoint: loaded {published}, Hugging Face weights, in " in said

    # By way of a checkpoint of ours.
    sets = as_sets(small_settings(corpus, *SMALL))
    imported = tmp_path / "imported"
    done = checkpoint(
        "import", "llama3_debug", "--from", str(published), "-o", str(imported), *sets
    )
    assert done.returncode == 0, done.stderr
    assert done.stdout.startswith(f"imported 2,229,504 parameters into {imported}/step-00000000\n")
    assert "importing: 0.01 of 0.01 GB" in done.stderr
    around = tmp_path / "around"
    begin = [f"checkpoint.initial_load_path='{imported}'"]
    train_here(around, small_job(corpus, *settings(corpus, *begin)))
    assert column(straight, "loss") == column(around, "loss")
    assert column(straight, "grad_norm") == column(around, "grad_norm")

    # The export of the one at its end, and of the other by hand, are the same.
    by_itself, by_hand = straight / "checkpoints/step-00000003-hf", tmp_path / "by_hand"
    assert f"exported the last checkpoint to {by_itself}" in said
    done = checkpoint("export", str(around), "-o", str(by_hand), "--max-shard-size", "3MB")
    assert done.returncode == 0, done.stderr
    step = around / "checkpoints/step-00000003"
    assert done.stdout == f"exported {step} (step 3, 0.01 GB) to {by_hand}\n"
    one = load_file(by_itself / "model.safetensors")
    several = [load_file(path) for path in sorted(by_hand.glob("*.safetensors"))]
    other = {name: tensor for tensors in several for name, tensor in tensors.items()}
    assert len(several) > 1
    assert one.keys() == other.keys()
    assert all(torch.equal(one[name], other[name]) for name in one)
    total = sum(tensor.nbytes for tensor in other.values())
    index = json.loads((by_hand / "model.safetensors.index.json").read_text())
    assert index["metadata"] == {"total_size": total}
    assert index["weight_map"].keys() == other.keys()

    # What the published folder said of tokens is kept; what training changed is not.
    config = json.loads((by_itself / "config.json").read_text())
    kept = ("bos_token_id", "eos_token_id", "pad_token_id", "max_position_embeddings")
    assert {key: config[key] for key in kept} == {key: MODEL[key] for key in kept}
    generation = json.loads((by_itself / "generation_config.json").read_text())
    assert generation["eos_token_id"] == [2047, 2045]
    loaded, report = AutoModelForCausalLM.from_pretrained(by_hand, output_loading_info=True)
    assert {key: list(found) for key, found in report.items() if found} == {}
    after = loaded.state_dict()
    before = {
        name: tensor.float()
        for path in published.glob("*.safetensors")
        for name, tensor in load_file(path).items()
    }
    assert before.keys() == after.keys() - {"lm_head.weight"}
    assert not any(torch.equal(before[name], after[name]) for name in before)


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory, corpus: Path) -> Path:
    directory = tmp_path_factory.mktemp("runs") / "run"
    train_here(directory, small_job(corpus, *settings(corpus)))
    return directory


def test_export_casts_weights_and_copies_the_tokenizer(run: Path, tmp_path: Path):
    done = checkpoint("export", str(run), "-o", str(tmp_path / "out"), "--dtype", "bfloat16")
    assert done.returncode == 0, done.stderr
    tensors = load_file(tmp_path / "out/model.safetensors")
    assert {tensor.dtype for tensor in tensors.values()} == {torch.bfloat16}
    config = json.loads((tmp_path / "out/config.json").read_text())
    assert (config["torch_dtype"], config["max_position_embeddings"]) == ("bfloat16", 64)
    assert (tmp_path / "out/tokenizer.model").is_file()


def test_export_of_a_checkpoint_outside_of_a_run_wants_the_recipe(
    run: Path, tmp_path: Path, corpus: Path
):
    alone = tmp_path / "alone" / "step-00000003"
    alone.parent.mkdir()
    (run / "checkpoints/step-00000003").rename(alone)
    try:
        done = checkpoint("export", str(alone), "-o", str(tmp_path / "out"))
        assert (done.returncode, done.stdout) == (2, "")
        assert done.stderr == (
            f"error: {alone}: in no run directory, so nothing says which model it is; "
            "name the recipe: --recipe NAME\n"
        )
        sets = as_sets(small_settings(corpus, *SMALL))
        named = ["--recipe", "llama3_debug", *sets]
        done = checkpoint("export", str(alone), "-o", str(tmp_path / "out"), *named)
        assert done.returncode == 0, done.stderr
        wrong = ["--recipe", "llama3_debug", *sets, "--set", "model.ffn_dim=512"]
        done = checkpoint("export", str(alone), "-o", str(tmp_path / "wrong"), *wrong)
        assert done.returncode == 3
        assert (
            "layers.1.feed_forward.w2.weight: (256, 768) there, (256, 512) in the model"
        ) in done.stderr
        assert not (tmp_path / "wrong").exists()
    finally:
        alone.rename(run / "checkpoints/step-00000003")


def test_export_refuses_what_is_there_and_what_is_damaged(run: Path, tmp_path: Path):
    done = checkpoint("export", str(run), "-o", str(tmp_path))
    assert done.returncode == 2
    assert done.stderr == f"error: {tmp_path}: exists already; name a new folder\n"
    manifest = run / "checkpoints/step-00000003" / commit.MANIFEST
    text = manifest.read_text()
    manifest.write_text("{}")
    try:
        done = checkpoint("export", str(run), "-o", str(tmp_path / "out"))
    finally:
        manifest.write_text(text)
    assert done.returncode == 3
    assert "no checkpoint that can be exported" in done.stderr
    done = checkpoint("export", str(run), "-o", str(tmp_path / "out"), "--max-shard-size", "5")
    assert done.returncode == 2
    assert "'5' is not a size such as 5GB or 500MB" in done.stderr
    done = checkpoint("export", str(run), "-o", str(tmp_path / "out"), "--set", "model.dim=1")
    assert done.returncode == 2
    assert "--set says how --recipe is resolved" in done.stderr


def test_import_of_another_model_names_the_numbers_and_leaves_nothing(
    published: Path, tmp_path: Path
):
    where, out = str(published), tmp_path / "out"
    done = checkpoint("import", "llama3_debug", "--from", where, "-o", str(out))
    assert (done.returncode, done.stdout) == (2, "")
    config = published / "config.json"
    assert done.stderr == (
        f"error: {config}: num_hidden_layers: got 2; model.n_layers makes it 6\n"
        f"error: {config}: tie_word_embeddings: got true; model.tie_embeddings makes it false\n"
    )
    assert list(tmp_path.iterdir()) == []
