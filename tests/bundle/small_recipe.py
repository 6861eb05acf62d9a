"""A small valid recipe as text files, and how to write them."""

from pathlib import Path


def write(folder: Path, files: dict[str, str]) -> Path:
    """Write text files below a folder."""
    for name, text in files.items():
        path = folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text, encoding="utf-8")
    return folder


TINY = {
    "recipe.toml": """\
[recipe]
name = "tiny"
version = "0.1.0"
summary = "A small one"
default_plan = "cpu2"
requires = ">=0.1"

[assets]
tokenizer = "tokenizer.model"
""",
    "model.toml": """\
[model]
family = "llama3"
dim = 256
n_layers = 6
n_heads = 16
n_kv_heads = 16
head_dim = 16
ffn_dim = 768
vocab_size = 2048
""",
    "train.toml": """\
[optimizer]
lr = 2e-3

[lr_scheduler]
warmup_steps = 20

[training]
dataset = "stdlib"
seq_len = 512
steps = 200
""",
    "plans/cpu1.toml": "[plan]\ngpus_per_node = 1\n",
    "plans/cpu2.toml": "[plan]\ngpus_per_node = 2\n\n[training]\nlocal_batch_size = 2\n",
    "README.md": "# tiny\n",
}
