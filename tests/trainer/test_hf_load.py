"""Hugging Face folders: sharded loads, training from them, and what is said of a wrong one."""

import json
import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file

from tests.trainer.hf_models import SIZES, make_peer
from titan_recipes.errors import CheckpointError, ConfigError
from titan_recipes.trainer.hf.load import load_into
from titan_recipes.trainer.hf.weights import INDEX, SINGLE, ModelWeights
from titan_recipes.trainer.model.decoder import Decoder

SPECIAL = ("llama3", "mixtral", "deepseek_v3", "gpt_oss")
"""Families that show every way of storing: tied, one by one, in pairs, fused and transposed."""


def test_sharded_ranks_read_their_own_slices(tmp_path: Path):
    for family in SPECIAL:
        make_peer(family, tmp_path / family)
    launcher = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node=4"]
    program = Path(__file__).with_name("hf_program.py")
    folders = [str(tmp_path / family) for family in SPECIAL]
    root = program.parents[2]
    command = [*launcher, "-m", "tests.trainer.hf_program", *folders]
    done = subprocess.run(command, capture_output=True, text=True, timeout=300, cwd=root)
    assert (done.returncode, done.stdout) == (0, "all equal\n"), done.stderr


@pytest.fixture
def llama(tmp_path: Path) -> Path:
    make_peer("llama2", tmp_path / "llama2")
    return tmp_path / "llama2"


def load(folder: Path, family: str = "llama2") -> list[str]:
    return load_into(Decoder(SIZES[family], 1).state_dict(), SIZES[family], folder)


def edit(folder: Path, changes: dict[str, torch.Tensor | None]) -> None:
    tensors = load_file(folder / SINGLE)
    for name, tensor in changes.items():
        if tensor is None:
            del tensors[name]
        else:
            tensors[name] = tensor
    save_file(tensors, folder / SINGLE, metadata={"format": "pt"})


def test_wrong_tensors_are_named_all_at_once(llama: Path):
    changes = {
        "model.layers.2.self_attn.q_proj.weight": None,
        "model.layers.10.extra.weight": torch.zeros(3),
        "model.norm.weight": torch.zeros(63),
        "lm_head.weight": torch.zeros(160, 64, dtype=torch.int8),
    }
    edit(llama, changes)
    with pytest.raises(CheckpointError) as caught:
        load(llama)
    assert str(caught.value) == (
        f"{llama} does not hold this llama2 model:\n"
        "  lm_head.weight: of type I8; wanted one of F64, F32, BF16, F16\n"
        "  model.layers.2.self_attn.q_proj.weight: missing; wanted (64, 64)\n"
        "  model.layers.10.extra.weight: shape (3,); the model has no such tensor\n"
        "  model.norm.weight: shape (63,); wanted (64,)"
    )
    assert caught.value.exit_code == 3


def test_nothing_is_changed_by_a_folder_that_does_not_fit(llama: Path):
    edit(llama, {"model.norm.weight": torch.zeros(63)})
    state = Decoder(SIZES["llama2"], 1).state_dict()
    before = {name: value.clone() for name, value in state.items()}
    with pytest.raises(CheckpointError):
        load_into(state, SIZES["llama2"], llama)
    assert all(torch.equal(state[name], before[name]) for name in state)


def test_derived_buffers_are_left_out_by_name(llama: Path):
    name = "model.layers.0.self_attn.rotary_emb.inv_freq"
    edit(llama, {name: torch.zeros(8)})
    assert load(llama) == [name]


def test_a_tied_output_is_accepted_if_it_is_equal(tmp_path: Path):
    make_peer("llama3", tmp_path)
    embedding = load_file(tmp_path / SINGLE)["model.embed_tokens.weight"]
    edit(tmp_path, {"lm_head.weight": embedding.clone()})
    assert load(tmp_path, "llama3") == ["lm_head.weight"]
    embedding[159, 63] += 1
    edit(tmp_path, {"lm_head.weight": embedding})
    with pytest.raises(CheckpointError, match="and it differs from"):
        load(tmp_path, "llama3")


def test_multi_token_prediction_of_deepseek_is_left_out_by_name(tmp_path: Path):
    make_peer("deepseek_v3", tmp_path)
    edit(tmp_path, {"model.layers.4.eh_proj.weight": torch.zeros(2)})
    assert load(tmp_path, "deepseek_v3") == ["model.layers.4.eh_proj.weight"]
    edit(tmp_path, {"model.layers.3.eh_proj.weight": torch.zeros(2)})
    with pytest.raises(CheckpointError, match=r"model\.layers\.3\.eh_proj\.weight: shape \(2,\)"):
        load(tmp_path, "deepseek_v3")


def test_quantized_weights_are_refused(llama: Path):
    name = "model.layers.0.self_attn.q_proj.weight"
    changes = {name: torch.zeros(64, 64).to(torch.float8_e4m3fn)}
    edit(llama, changes | {f"{name}_scale_inv": torch.ones(1, 1)})
    with pytest.raises(CheckpointError) as caught:
        load(llama)
    assert f"{name}: of type F8_E4M3; wanted" in str(caught.value)
    assert f"{name}_scale_inv: shape (1, 1); the model has no such tensor: quantized" in str(
        caught.value
    )


def test_every_number_that_differs_is_named(llama: Path):
    path = llama / "config.json"
    config = json.loads(path.read_text())
    config |= {"hidden_size": 128, "rms_norm_eps": 1e-6, "tie_word_embeddings": True}
    config["rope_parameters"] = {"rope_type": "llama3", "rope_theta": 500000, "factor": 8.0}
    path.write_text(json.dumps(config | {"mlp_bias": True}))
    with pytest.raises(ConfigError) as caught:
        load(llama)
    assert caught.value.exit_code == 2
    assert [str(problem) for problem in caught.value.problems] == [
        f"{path}: hidden_size: got 128; model.dim makes it 64",
        f"{path}: mlp_bias: got true; the decoder has only false",
        f"{path}: rms_norm_eps: got 1e-06; model.norm_eps makes it 1e-05",
        f'{path}: rope_scaling.rope_type: got "llama3"; model.rope_scaling.kind makes it "default"',
        f"{path}: rope_theta: got 500000; model.rope_theta makes it 1000000.0",
        f"{path}: tie_word_embeddings: got true; model.tie_embeddings makes it false",
    ]


def test_another_architecture_is_refused_before_its_numbers(llama: Path):
    with pytest.raises(ConfigError) as caught:
        load(llama, "gpt_oss")
    got = f'{llama / "config.json"}: model_type: got "llama"; gpt_oss is "gpt_oss"'
    assert str(caught.value) == got


@pytest.mark.parametrize(
    ("spoil", "error", "said"),
    [
        (lambda f: (f / "config.json").unlink(), ConfigError, "config.json: no such file"),
        (lambda f: (f / "config.json").write_text("{"), ConfigError, "config.json: can't be read"),
        (lambda f: (f / "config.json").write_text("[]"), ConfigError, "not a JSON object"),
        (lambda f: (f / SINGLE).rename(f / "pytorch.bin"), ConfigError, "there is: config.json"),
        (lambda f: (f / SINGLE).write_bytes(b"torn"), CheckpointError, "model.safetensors: can't"),
        (lambda f: (f / INDEX).write_text("{}"), CheckpointError, "index.json: can't be read"),
        (
            lambda f: (f / INDEX).write_text('{"weight_map": {"a": "gone.safetensors"}}'),
            CheckpointError,
            "gone.safetensors: can't be read",
        ),
    ],
)
def test_an_unreadable_folder_says_which_file(llama: Path, spoil: Any, error: Any, said: str):
    spoil(llama)
    with pytest.raises(error, match=re.escape(said)):
        load(llama)


def test_no_such_folder_is_the_users_mistake(tmp_path: Path):
    with pytest.raises(ConfigError, match="nowhere: no such directory"):
        load(tmp_path / "nowhere")


def test_bf16_weights_are_read_into_fp32(llama: Path):
    tensors = {name: value.bfloat16() for name, value in load_file(llama / SINGLE).items()}
    save_file(tensors, llama / SINGLE, metadata={"format": "pt"})
    state = Decoder(SIZES["llama2"], 1).state_dict()
    assert load_into(state, SIZES["llama2"], llama) == []
    wanted = tensors["model.layers.3.mlp.down_proj.weight"].float()
    assert torch.equal(state["layers.3.feed_forward.w2.weight"], wanted)
    assert ModelWeights(llama, SIZES["llama2"]).dtype("output.weight") == torch.bfloat16
