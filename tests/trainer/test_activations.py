"""What backward needs of a block: recomputed, kept by operator, or waiting in host memory."""

from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor
from training import column, small_job, train_here

from titan_recipes.config.job import Job
from titan_recipes.config.schema import ActivationCheckpoint
from titan_recipes.errors import ConfigError
from titan_recipes.trainer.model.decoder import Decoder
from titan_recipes.trainer.model.init import init_weights
from titan_recipes.trainer.parallel import activation_offload
from titan_recipes.trainer.parallel.activation_checkpoint import (
    apply_activation_checkpoint,
    saved_ops,
)
from titan_recipes.trainer.parallel.activation_offload import Kept, offload_activations

AC = "activation_checkpoint."


def kept_bytes(job: Job, config: ActivationCheckpoint, backend: str = "") -> int:
    """Bytes that a forward of the job's model keeps for backward, parameters left out.

    backend: of torch.compile; "" = eager.
    """
    model = Decoder(job.model, job.training.seq_len)
    init_weights(model, 0)
    parameters = {p.untyped_storage().data_ptr() for p in model.parameters()}
    apply_activation_checkpoint(model, config)
    for block in model.layers.values() if backend else ():
        block.compile(backend=backend, fullgraph=True)
    found: dict[int, int] = {}

    def pack(tensor: Tensor) -> Tensor:
        storage = tensor.untyped_storage()
        if storage.data_ptr() not in parameters:
            found[storage.data_ptr()] = storage.nbytes()
        return tensor

    tokens = torch.zeros((2, job.training.seq_len), dtype=torch.int64)
    with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
        h = model.tok_embeddings(tokens).detach().requires_grad_()
        for name, block in model.layers.items():
            h = block(h, model.rope(int(name)))
    return sum(found.values())


def test_each_mode_keeps_less_than_the_one_before(corpus: Path) -> None:
    job = small_job(corpus)
    sizes = [
        kept_bytes(job, ActivationCheckpoint(mode="none")),
        kept_bytes(job, ActivationCheckpoint(mode="selective", selective_ac_option="2")),
        kept_bytes(job, ActivationCheckpoint(mode="full")),
    ]
    assert sizes[0] > 1.5 * sizes[1] > 2 * sizes[2] > 0


@pytest.mark.filterwarnings("ignore:.torch.jit.script_method. is deprecated:DeprecationWarning")
@pytest.mark.filterwarnings("ignore:.*Function.* should not be instantiated:DeprecationWarning")
def test_compiler_keeps_to_the_memory_budget(corpus: Path) -> None:
    import torch._functorch.config as functorch

    job, sizes = small_job(corpus), list[int]()
    with functorch.patch(activation_memory_budget=1.0):
        for budget in (1.0, 0.5, 0.0):
            torch._dynamo.reset()
            config = ActivationCheckpoint(mode="memory_budget", memory_budget=budget)
            sizes.append(kept_bytes(job, config, "aot_eager_decomp_partition"))
    assert sizes[0] > 1.2 * sizes[1] > 1.2 * sizes[2] > 0


def test_save_list_decides_what_is_computed_again() -> None:
    counts: dict[str, int] = {}
    for ops in ((), ("aten.mm",), ("aten.max",)):
        config = ActivationCheckpoint(mode="selective", selective_ac_option="op", save_ops=ops)
        counts[" ".join(ops)] = matmuls_in_backward(config)
    # 7 linears: in backward two products each, and those of the forward that were not kept. w2's
    # output is no input of anything that backward needs.
    assert counts == {"aten.mm": 14, "": 14 + 3, "aten.max": 14 + 7}


def matmuls_in_backward(config: ActivationCheckpoint) -> int:
    """How many matrix products the backward of one block takes."""
    from torch.utils._python_dispatch import TorchDispatchMode
    from training import find_bundle

    class Count(TorchDispatchMode):
        matmuls = 0

        def __torch_dispatch__(self, func, types, args=(), kwargs=None):  # type: ignore[no-untyped-def]
            self.matmuls += func is torch.ops.aten.mm.default
            return func(*args, **(kwargs or {}))

    job = find_bundle("llama3_debug").resolve(overrides=["model.n_layers=1"]).job
    model = Decoder(job.model, 16)
    init_weights(model, 0)
    apply_activation_checkpoint(model, config)
    h = torch.randn(1, 16, job.model.dim, requires_grad=True)
    out = model.layers["0"](h, model.rope(0))
    with Count() as count:
        out.sum().backward()
    return count.matmuls


def test_operator_that_torch_lacks_is_refused() -> None:
    with pytest.raises(ConfigError) as error:
        saved_ops(("aten.mm", "aten.matmull"))
    assert str(error.value) == (
        'job.toml: activation_checkpoint.save_ops: torch has no operator "aten.matmull"; '
        'name them as "aten.mm"'
    )


@pytest.mark.parametrize("mode", ["none", "full"])
def test_activations_wait_in_host_memory_and_give_the_same_gradients(
    corpus: Path, mode: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    job = small_job(corpus)
    monkeypatch.setattr(activation_offload, "LEAST_BYTES", 1024)
    taken: list[int] = []
    take = Kept.take

    def counted(kept: Kept) -> Tensor:
        tensor = take(kept)
        taken.append(tensor.numel() * tensor.element_size())
        return tensor

    sent: list[Kept] = []
    make = Kept.__init__

    def made(kept: Kept, *args: Any) -> None:
        make(kept, *args)
        sent.append(kept)

    monkeypatch.setattr(Kept, "take", counted)
    monkeypatch.setattr(Kept, "__init__", made)
    grads: list[list[Tensor]] = []
    for offload in (False, True):
        model = Decoder(job.model, 64)
        init_weights(model, 0)
        apply_activation_checkpoint(model, ActivationCheckpoint(mode=mode))
        if offload:
            offload_activations(model)
        tokens = torch.arange(128).view(2, 64)
        model(tokens).square().mean().backward()
        grads.append([p.grad for p in model.parameters() if p.grad is not None])
        assert len(grads[-1]) == len(list(model.parameters()))
    torch.testing.assert_close(grads[0], grads[1], rtol=0, atol=0)
    if mode == "full":  # of each block its input
        assert taken == [2 * 64 * job.model.dim * 4] * job.model.n_layers
    else:  # what three or two products of a block share made the journey once
        assert len(taken) > 10 * job.model.n_layers
        assert len(sent) < 0.8 * len(taken)


def test_run_goes_on_with_activations_offloaded_as_if_they_were_not(
    tmp_path: Path, corpus: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(activation_offload, "LEAST_BYTES", 1024)
    train_here(tmp_path / "plain", small_job(corpus, "training.steps=4"))
    schedule = "lr_scheduler.total_steps=4"
    train_here(tmp_path / "run", small_job(corpus, "training.steps=2", schedule))
    options = (f"{AC}mode='full'", f"{AC}enable_offload=true")
    train_here(tmp_path / "run", small_job(corpus, "training.steps=4", *options))
    assert column(tmp_path / "run", "loss") == column(tmp_path / "plain", "loss")
