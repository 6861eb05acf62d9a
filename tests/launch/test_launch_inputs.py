"""What a launch looks at before it makes a run directory: tokenizer and text."""

from dataclasses import replace
from pathlib import Path

import pytest
from past_runs import debug_job

from titan_recipes.config.job import Job
from titan_recipes.config.schema import DataSource
from titan_recipes.launch.inputs import input_problems


def problems(job: Job, **set_by: str) -> list[str]:
    """Each problem as the user reads it; set_by: dotted keys, with _ for the dots."""
    return [str(p) for p in input_problems(job, lambda key: set_by.get(key.replace(".", "_"), key))]


def reading(dataset: str, path: Path | str, *overrides: str) -> Job:
    data = [f"training.dataset='{dataset}'", f"training.dataset_path='{path}'"]
    return debug_job(*data, "validation.enable=false", *overrides)


def test_inputs_of_the_demo_are_all_here() -> None:
    assert problems(debug_job()) == []


def test_inputs_when_the_tokenizer_is_missing_say_where_to_get_it(tmp_path: Path) -> None:
    job = debug_job(f"assets.tokenizer='{tmp_path}'")
    looked = "looked for tokenizer.json, tokenizer.model, original/tokenizer.model"
    assert problems(job, assets_tokenizer="recipe.toml") == [
        f"recipe.toml: assets.tokenizer: no tokenizer in the directory {tmp_path} ({looked}); "
        "set it to a tokenizer file or its directory"
    ]
    job = replace(job, assets=replace(job.assets, tokenizer="/no", hf_repo="meta/Llama"))
    assert problems(job, assets_tokenizer="recipe.toml") == [
        "recipe.toml: assets.tokenizer: /no does not exist; get it with `hf download meta/Llama "
        "--include '*tokenizer*' --local-dir DIR`, then launch with `--set assets.tokenizer=DIR`"
    ]
    (tmp_path / "original").mkdir()
    (tmp_path / "original" / "tokenizer.model").touch()
    assert problems(debug_job(f"assets.tokenizer='{tmp_path}'")) == []


@pytest.mark.parametrize(
    ("path", "got"),
    [
        ("none.txt", "none.txt does not exist"),
        ("*.jsonl", "no file matches"),
        ("folder", "no text in the directory"),
    ],
)
def test_inputs_when_the_text_is_missing_name_it(tmp_path: Path, path: str, got: str) -> None:
    (tmp_path / "folder").mkdir()
    (tmp_path / "folder" / "picture.png").touch()
    (found,) = problems(reading("text", tmp_path / path), training_dataset_path="--set")
    assert found.startswith("--set: training.dataset_path: ")
    assert got in found


@pytest.mark.parametrize("name", ["a.txt", "b.json.gz", "c.parquet", "deep/d.jsonl.zst"])
def test_inputs_in_a_directory_are_found_by_their_endings(tmp_path: Path, name: str) -> None:
    file = tmp_path / name
    file.parent.mkdir(exist_ok=True)
    file.write_text("x" * 10_000)
    assert problems(reading("text", tmp_path)) == []
    assert problems(reading("text", tmp_path / "**" / "*[a-z]")) == []


def test_inputs_relative_to_the_bundle_and_to_the_working_directory_are_found() -> None:
    assert problems(reading("text", "train.toml", "training.seq_len=8")) == []
    Path("here.txt").write_text("x" * 10_000)
    assert problems(reading("text", "here.txt")) == []


def test_inputs_that_can_not_fill_a_batch_are_refused(tmp_path: Path) -> None:
    # 4 sequences of 512 tokens and one more; a token is a byte at least, a file adds two.
    text = tmp_path / "text.txt"
    text.write_text("x" * 2046)
    (found,) = problems(reading("text", text), training_dataset_path="--set")
    assert found == (
        "--set: training.dataset_path: too little text: at most 2,048 tokens, one batch over all "
        "ranks is global_batch_size 4 x seq_len 512 + 1; "
        "give a file, a directory or a glob of jsonl, parquet or txt"
    )
    text.write_text("x" * 2047)
    assert problems(reading("text", text)) == []
    packed = tmp_path / "text.txt.gz"
    packed.touch()
    assert problems(reading("text", packed)) == []


def test_inputs_when_the_path_can_not_be_looked_at_are_refused() -> None:
    (found,) = problems(reading("text", "x" * 5000), training_dataset_path="--set")
    assert "can't be read: File name too long" in found


def test_inputs_when_the_checkpoint_to_start_from_is_missing_name_it(tmp_path: Path) -> None:
    setting = f"checkpoint.initial_load_path='{tmp_path / 'no'}'"
    assert problems(debug_job(setting), checkpoint_initial_load_path="--set") == [
        f"--set: checkpoint.initial_load_path: {tmp_path / 'no'} does not exist; "
        "give a checkpoint or a run directory"
    ]
    assert problems(debug_job(setting, "checkpoint.enable=false")) == []


def test_inputs_of_a_mixture_and_of_validation_are_all_named() -> None:
    sources = (
        DataSource(dataset="text", path="/no/a"),
        DataSource(dataset="stdlib", path="nopack"),
    )
    job = debug_job()
    job = replace(
        job,
        data=replace(job.data, sources=sources),
        validation=replace(job.validation, dataset="text_validation", dataset_path="/no/b"),
    )
    found = problems(job, data_sources="train.toml", validation_dataset_path="plan.toml")
    assert [line.partition(";")[0] for line in found[::2]] == [
        "train.toml: data.sources.0.path: /no/a does not exist",
        "plan.toml: validation.dataset_path: /no/b does not exist",
    ]
    assert found[1].startswith("train.toml: data.sources.1.path: no Python sources in ")
