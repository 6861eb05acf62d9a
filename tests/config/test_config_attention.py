"""Where attention backends work, told on the laptop."""

import pytest
from flavors import flavor_overrides

from titan_recipes.bundle.find import find_bundle
from titan_recipes.errors import ConfigError

H100 = ("plan.gpu='h100'", "plan.gpus_per_node=2", "training.global_batch_size=-1")
DOCUMENTS = "data.document_mask=true"
BF16 = "training.mixed_precision_param='bfloat16'"


def resolve(family: str, backend: str, *settings: str) -> list[str]:
    """What is said against it."""
    asked = f"model.attention_backend='{backend}'"
    overrides = [*flavor_overrides(family), *H100, "training.seq_len=64", asked, *settings]
    try:
        find_bundle("llama3_debug").resolve(overrides=overrides)
    except ConfigError as error:
        return [str(problem) for problem in error.problems]
    return []


@pytest.mark.parametrize(
    ("family", "backend", "settings", "message"),
    [
        ("llama3", "flex", ("plan.gpu='cpu'",), 'backward, but plan.gpu = "cpu"'),
        ("llama3", "flex", ("plan.gpu='any'",), 'backward, but plan.gpu = "any"'),
        (
            "llama3",
            "flex",
            ("parallelism.context_parallel_degree=2",),
            "sees one rank's keys only, but context_parallel_degree = 2",
        ),
        ("llama3", "varlen", (BF16,), "is for packed documents"),
        ("gemma2", "varlen", (BF16, DOCUMENTS), "does not know model.attention_soft_cap"),
        ("gpt_oss", "varlen", (BF16, DOCUMENTS), "does not know model.attention_sinks"),
        ("deepseek_v3", "varlen", (BF16, DOCUMENTS), "one width for keys and values"),
        (
            "llama3",
            "varlen",
            (DOCUMENTS, "training.mixed_precision_param='float32'"),
            "computes in 16 bits",
        ),
    ],
)
def test_backend_that_cannot_work_is_refused_by_name(
    family: str, backend: str, settings: tuple[str, ...], message: str
) -> None:
    said = resolve(family, backend, *settings)
    assert any("model.attention_backend" in line and message in line for line in said), said


@pytest.mark.parametrize("family", ["llama3", "gemma2", "gpt_oss", "deepseek_v3"])
def test_flex_goes_with_every_kind_of_attention(family: str) -> None:
    assert resolve(family, "flex", DOCUMENTS) == []


def test_varlen_goes_with_documents_in_16_bits() -> None:
    wide = ("model.head_dim=16",)
    assert resolve("llama3", "varlen", BF16, DOCUMENTS, *wide) == []
