"""What a bundle is and needs: recipe, assets, model, plan, data."""

from typing import Literal

from titan_recipes.config.schema.fields import (
    MinusOneOrPositive,
    NonNegative,
    NonNegativeFloat,
    Positive,
    PositiveFloat,
    section,
)


@section
class Recipe:
    """[recipe] in recipe.toml (ours): what the bundle is."""

    name: str
    """The recipe's name; equal to its directory's."""
    version: str
    """Semantic version, MAJOR.MINOR.PATCH; any change of the bundle raises it."""
    summary: str
    """One line for `titan-recipes list`."""
    default_plan: str
    """The plan used where `--plan` is not given: a file name in plans/, without .toml."""
    requires: str = ">=0.1.0"
    """The titan-recipes versions this bundle works with, as a Python version specifier."""
    tags: tuple[str, ...] = ()
    """Words to search by."""
    deprecated: str = ""
    """Why not to use it any more and what to use instead; "" = not deprecated."""


@section
class Assets:
    """[assets] in recipe.toml (ours): files the recipe needs that may not lie in the bundle."""

    tokenizer: str = ""
    """Tokenizer file or directory: absolute, below `~`, or relative to the bundle. tiktoken
    `.model`, Hugging Face `tokenizer.json` or sentencepiece `.model`, told apart by content."""
    hf_repo: str = ""
    """The Hugging Face repository that publishes weights and tokenizer."""


@section
class Plan:
    """[plan] in plans/*.toml (ours): the hardware that one parallel plan is made for."""

    nodes: Positive = 1
    """Number of machines."""
    gpus_per_node: Positive = 1
    """Ranks per machine, one for each GPU."""
    gpu: str = "any"
    """GPU model as in the hardware table ("h100"); "cpu" = none is used; "any" = those present."""
    summary: str = ""
    """One line on what the plan is for."""


@section
class Expect:
    """[expect] in plans/*.toml (ours): what the plan is known or predicted to reach."""

    tokens_per_second_per_gpu: NonNegativeFloat = 0.0
    """Trained tokens per second on one GPU; 0 = unknown."""
    peak_memory_gib: NonNegativeFloat = 0.0
    """Highest memory in use on one GPU, in GiB; 0 = unknown."""
    source: Literal["", "measured", "predicted"] = ""
    """Where the figures come from; "" = there are none."""


@section
class DataSource:
    """[[data.sources]] (ours): one source of a weighted mixture."""

    dataset: str
    """A dataset by name, as in training.dataset."""
    path: str = ""
    """Where it is: a file, a directory or a glob; for "hub" the repository."""
    weight: PositiveFloat = 1.0
    """Share of the training samples, relative to the other sources' weights."""


@section
class Data:
    """[data] (ours): how text becomes token shards, and shards become samples."""

    sources: tuple[DataSource, ...] = ()
    """A weighted mixture; () = one source, training.dataset at training.dataset_path."""
    text_key: str = "text"
    """The field of a jsonl, parquet or hub row that holds the text."""
    chat_template: Literal["llama3", "chatml"] = "llama3"
    """What surrounds the messages of dataset "chat"; its special tokens are the tokenizer's."""
    document_mask: bool = False
    """Tokens attend within their own document only, also where one sample holds parts of several;
    conversations always do."""
    shuffle: bool = True
    """Visit samples in a permutation seeded by debug.seed; false = in the order they are stored."""
    streaming: bool = False
    """Tokenize a hub dataset on the fly instead of preparing shards; resumes at equal dp only."""
    read_ahead: NonNegative = 2
    """Batches that a thread has read before the step asks; 0 = they are read in the step."""
    cache_dir: str = ""
    """Where token shards are kept; "" = $TITAN_RECIPES_CACHE, else ~/.cache/titan-recipes."""
    num_proc: MinusOneOrPositive = -1
    """Processes that tokenize; -1 = one for each core."""
