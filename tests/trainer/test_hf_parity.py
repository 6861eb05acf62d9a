"""Every family computes what `transformers` does: logits, gradients, and weights both ways."""

from dataclasses import replace
from pathlib import Path

import pytest
import torch
import torch.distributed.checkpoint as dcp
from safetensors import safe_open
from torch import Tensor
from torch.nn.functional import cross_entropy

from tests.trainer.hf_models import SIZES, make_peer
from titan_recipes.bundle.find import find_bundle
from titan_recipes.config.job import Job
from titan_recipes.config.schema import Model
from titan_recipes.errors import ConfigError
from titan_recipes.trainer.checkpoint.writer import CommittingWriter
from titan_recipes.trainer.hf.convert import export_checkpoint, import_checkpoint, newest_checkpoint
from titan_recipes.trainer.hf.load import load_into
from titan_recipes.trainer.model.decoder import Decoder
from titan_recipes.trainer.model.init import init_weights

TOKENS_BS = torch.randint(160, (2, 33), generator=torch.Generator().manual_seed(3))


def load(family: str, folder: Path) -> Decoder:
    model = Decoder(SIZES[family], TOKENS_BS.shape[1])
    init_weights(model, seed=0)
    assert load_into(model.state_dict(), SIZES[family], folder) == []
    return model.eval()


def job_of(sizes: Model, folder: Path) -> Job:
    """A job of this model, without a tokenizer."""
    job = find_bundle("llama3_debug").resolve().job
    return replace(job, model=replace(sizes, tokenizer_path=str(folder / "no-tokenizer")))


def read(checkpoint: Path, sizes: Model) -> dict[str, Tensor]:
    """The weights of a checkpoint of ours."""
    state = Decoder(sizes, 1).state_dict()
    dcp.load({"model": state}, checkpoint_id=checkpoint, no_dist=True)
    return state


def stored_names(folder: Path) -> list[str]:
    """The tensors in a folder's safetensors files."""
    files = folder.glob("*.safetensors")
    return sorted(name for file in files for name in safe_open(file, "pt").keys())  # noqa: SIM118


@pytest.mark.parametrize("family", SIZES)
def test_logits_and_gradients_equal_those_of_transformers(family: str, tmp_path: Path):
    peer = make_peer(family, tmp_path)
    model = load(family, tmp_path)
    theirs_BSV = peer(TOKENS_BS).logits
    ours_BSV = model(TOKENS_BS)
    assert theirs_BSV.std() > 0.05
    torch.testing.assert_close(ours_BSV, theirs_BSV, atol=1e-4, rtol=0)
    for logits_BSV in (ours_BSV, theirs_BSV):
        cross_entropy(logits_BSV[:, :-1].flatten(0, 1), TOKENS_BS[:, 1:].flatten()).backward()
    ours, theirs = model.tok_embeddings.weight.grad, peer.get_input_embeddings().weight.grad
    torch.testing.assert_close(ours, theirs, atol=1e-3 * theirs.abs().max().item(), rtol=0)


@pytest.mark.filterwarnings("ignore:torch.distributed is disabled, unavailable")
@pytest.mark.parametrize("family", SIZES)
def test_import_and_export_are_exact_and_transformers_loads_the_export(family: str, tmp_path: Path):
    from transformers import AutoModelForCausalLM

    peer, sizes = make_peer(family, tmp_path / "published"), SIZES[family]
    path, ignored = import_checkpoint(sizes, tmp_path / "published", tmp_path / "imported")
    assert (path, ignored) == (tmp_path / "imported" / "step-00000000", [])
    stored = newest_checkpoint(tmp_path / "imported")
    assert (stored.step, stored.path) == (0, path)
    export_checkpoint(job_of(sizes, tmp_path), stored, tmp_path / "out", max_shard_bytes=150_000)

    loaded, report = AutoModelForCausalLM.from_pretrained(
        tmp_path / "out", attn_implementation="eager", output_loading_info=True
    )
    assert {key: list(found) for key, found in report.items() if found} == {}
    assert len(list((tmp_path / "out").glob("*.safetensors"))) > 1
    with torch.no_grad():
        assert torch.equal(loaded(TOKENS_BS).logits, peer(TOKENS_BS).logits)
    assert stored_names(tmp_path / "out") == stored_names(tmp_path / "published")
    import_checkpoint(sizes, tmp_path / "out", tmp_path / "again")
    first, second = read(path, sizes), read(tmp_path / "again" / path.name, sizes)
    assert first.keys() == second.keys() == Decoder(sizes, 1).state_dict().keys()
    assert all(torch.equal(first[name], second[name]) for name in first)


@pytest.mark.filterwarnings("ignore:torch.distributed is disabled, unavailable")
def test_selection_bias_begins_at_zero_and_is_not_lost_in_silence(tmp_path: Path):
    make_peer("mixtral", tmp_path / "published")
    plain = SIZES["mixtral"]
    assert plain.moe is not None
    sizes = replace(plain, moe=replace(plain.moe, load_balance_coeff=1e-3))
    path, _ = import_checkpoint(sizes, tmp_path / "published", tmp_path / "imported")
    biases = {name: bias for name, bias in read(path, sizes).items() if "selection" in name}
    assert len(biases) == sizes.n_layers
    assert all(torch.equal(bias, torch.zeros(8)) for bias in biases.values())

    def export(step: int) -> None:
        stored = newest_checkpoint(tmp_path / "imported")
        assert stored.step == step
        export_checkpoint(job_of(sizes, tmp_path), stored, tmp_path / f"out{step}")

    export(0)
    state = read(path, sizes)
    state["layers.2.moe.router.selection_bias"][5] = 0.5
    writer = CommittingWriter(
        tmp_path / "imported", step=1, world_size=1, model_only=True, on_commit=lambda _: None
    )
    dcp.save({"model": state}, storage_writer=writer, no_dist=True)
    with pytest.raises(ConfigError, match=r"layers\.2\.moe\.router\.selection_bias: is not zero"):
        export(1)
    assert not (tmp_path / "out1").exists()
