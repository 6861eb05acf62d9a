"""Templates: the tokens of a conversation, which of them are trained on; rows that are wrong."""

import json
from pathlib import Path

import pytest
from chat_corpora import write_tokenizer

from titan_recipes.errors import ConfigError, DataError
from titan_recipes.trainer.data.chat import ChatFormat, ConversationPacker, Message, messages_of
from titan_recipes.trainer.data.documents import Row, TextFile, chunks, read_rows
from titan_recipes.trainer.data.tokenizer import Tokenizer, load_tokenizer

MESSAGES = [
    Message("system", "Be brief."),
    Message("user", " Hi\n"),
    Message("assistant", "Hello there "),
    Message("tool", "42"),
    Message("assistant", "Yes."),
]
RENDERED = {
    "llama3": (
        "<|begin_of_text|>"
        "<|start_header_id|>system<|end_header_id|>\n\nBe brief.<|eot_id|>"
        "<|start_header_id|>user<|end_header_id|>\n\nHi<|eot_id|>"
        "<|start_header_id|>assistant<|end_header_id|>\n\nHello there<|eot_id|>"
        "<|start_header_id|>ipython<|end_header_id|>\n\n42<|eot_id|>"
        "<|start_header_id|>assistant<|end_header_id|>\n\nYes.<|eot_id|>"
    ),
    "chatml": (
        "<|im_start|>system\nBe brief.<|im_end|>\n"
        "<|im_start|>user\n Hi\n<|im_end|>\n"
        "<|im_start|>assistant\nHello there <|im_end|>\n"
        "<|im_start|>tool\n42<|im_end|>\n"
        "<|im_start|>assistant\nYes.<|im_end|>\n"
    ),
}
TRAINED = {
    "llama3": "Hello there<|eot_id|>Yes.<|eot_id|>",
    "chatml": "Hello there <|im_end|>Yes.<|im_end|>",
}


@pytest.fixture(scope="module")
def tokenizer(tmp_path_factory: pytest.TempPathFactory) -> Tokenizer:
    return load_tokenizer(write_tokenizer(tmp_path_factory.mktemp("chat") / "tokenizer.json"))


@pytest.mark.parametrize("name", ["llama3", "chatml"])
def test_conversation_has_the_templates_tokens_and_trains_on_answers_only(
    tokenizer: Tokenizer, name: str
) -> None:
    ids, trained = ChatFormat(name, tokenizer).conversation(MESSAGES)
    assert tokenizer.decode(ids) == RENDERED[name]
    assert tokenizer.decode(i for i, t in zip(ids, trained, strict=True) if t) == TRAINED[name]
    assert not trained[0]


def test_special_tokens_in_content_are_text(tokenizer: Tokenizer) -> None:
    format = ChatFormat("chatml", tokenizer)
    plain, _ = format.conversation([Message("user", "")])
    ids, _ = format.conversation([Message("user", "<|im_end|><|im_start|>")])
    assert tokenizer.decode(ids).count("<|im_end|>") == 2
    marks = [tokenizer.special_id("<|im_start|>"), tokenizer.special_id("<|im_end|>")]
    assert [i for i in ids if i in marks] == [i for i in plain if i in marks] == marks


def test_prompt_ends_where_the_answer_begins(tokenizer: Tokenizer) -> None:
    format = ChatFormat("llama3", tokenizer)
    question, answer = Message("user", "Hi"), Message("assistant", "Yes.")
    whole, _ = format.conversation([question, answer])
    prompt = format.prompt([question])
    assert whole[: len(prompt)] == prompt
    assert tokenizer.decode(whole[len(prompt) :]) == "Yes.<|eot_id|>"


def test_template_whose_tokens_the_tokenizer_lacks_is_config_error(tmp_path: Path) -> None:
    path = write_tokenizer(tmp_path / "tokenizer.json", ["<|im_start|>", "<|im_end|>"])
    with pytest.raises(ConfigError) as raised:
        ChatFormat("llama3", load_tokenizer(path))
    assert str(raised.value) == (
        'train.toml: data.chat_template: "llama3" needs <|begin_of_text|>, <|start_header_id|>, '
        f"<|end_header_id|>, <|eot_id|>, which {path} does not have; "
        'use "chatml", or the tokenizer of a model that was made for this template'
    )
    ChatFormat("chatml", load_tokenizer(path))


def _row(value: object) -> Row:
    return Row(value, lambda: "a.jsonl:7")


def test_prompt_and_completion_are_a_question_and_its_answer() -> None:
    row = _row({"prompt": "2+2?", "completion": "4", "source": "x"})
    assert messages_of(row) == [Message("user", "2+2?"), Message("assistant", "4")]


@pytest.mark.parametrize(
    ("value", "message"),
    [
        ([1], "a.jsonl:7: no JSON object"),
        ({"text": "x", "prompt": "y"}, r"no list of turns .* \('text', 'prompt'\)"),
        ({"messages": []}, "no list of turns"),
        ({"messages": ["hi"]}, "turn 0: role None is none of system, user, assistant, tool"),
        ({"messages": [{"role": "human", "content": "x"}]}, "turn 0: role 'human' is none of"),
        ({"messages": [{"role": "user", "content": None}]}, "turn 0: content is NoneType, not"),
        ({"prompt": "x", "completion": ["y"]}, "turn 1: content is list, not text"),
    ],
)
def test_row_that_is_no_conversation_is_data_error(value: object, message: str) -> None:
    with pytest.raises(DataError, match=message):
        messages_of(_row(value))


@pytest.mark.parametrize("suffix", [".jsonl", ".parquet", ".arrow"])
def test_rows_of_each_format_are_read_whole_and_named(tmp_path: Path, suffix: str) -> None:
    import pyarrow as pa
    import pyarrow.parquet as pq

    rows = [{"messages": [{"role": "user", "content": str(i)}]} for i in range(3)]
    path = tmp_path / f"a{suffix}"
    if suffix == ".jsonl":
        path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    elif suffix == ".parquet":
        pq.write_table(pa.Table.from_pylist(rows), path, row_group_size=2)
    else:
        table = pa.Table.from_pylist(rows)
        with pa.OSFile(str(path), "wb") as file, pa.ipc.new_stream(file, table.schema) as stream:
            stream.write_table(table)
    file = TextFile(path, path.name, path.stat().st_size)
    found = [row for chunk in chunks(file, 1) for row in read_rows(chunk)]
    assert [row.value for row in found] == rows
    places = {".jsonl": [f"{path}:{i}" for i in (1, 2, 3)]}
    assert [row.where() for row in found] == places.get(
        suffix, [f"{path}: row {i}" for i in (1, 2, 3)]
    )


def _pack(tokenizer: Tokenizer, window: int, *conversations: list[Message]):
    packer = ConversationPacker(ChatFormat("chatml", tokenizer), window=window, mark=2**15)
    rows = [
        _row({"messages": [{"role": m.role, "content": m.content} for m in c]})
        for c in conversations
    ]
    made = [document for row in rows for document in packer.add(row)]
    return packer, [*made, *packer.rest()]


def test_conversations_share_windows_where_they_fit_best(tokenizer: Tokenizer) -> None:
    def talk(letters: int) -> list[Message]:
        return [Message("user", "q"), Message("assistant", "z" * letters)]

    format = ChatFormat("chatml", tokenizer)
    base = len(format.conversation(talk(0))[0])
    # Lengths 3/4, 1/2, 1/2 and 1/4 of a window of 4 units: two full windows.
    unit = base + 4
    lengths = [3 * unit, 2 * unit, 2 * unit, unit]
    talks = [talk(length - base) for length in lengths]
    assert [len(format.conversation(t)[0]) for t in talks] == lengths
    packer, documents = _pack(tokenizer, 4 * unit, *talks)
    sizes = [[len(part) for part in document] for document in documents]
    assert sizes == [[3 * unit], [unit, 0], [2 * unit], [2 * unit, 0]]
    assert packer.counts == {"conversations": 4, "cut": 0, "padding": 0}


def test_conversation_longer_than_a_window_loses_its_end_and_is_counted(
    tokenizer: Tokenizer,
) -> None:
    long = [Message("user", "q"), Message("assistant", "z" * 50)]
    no_answer_in_time = [Message("user", "q" * 50), Message("assistant", "z")]
    no_answer = [Message("user", "q")]
    packer, documents = _pack(tokenizer, 30, long, no_answer_in_time, no_answer)
    whole, trained = ChatFormat("chatml", tokenizer).conversation(long)
    assert [[id & (2**15 - 1) for id in part] for part in documents[0]] == [whole[:30], []]
    assert [id >= 2**15 for id in documents[0][0]] == trained[:30]
    assert len(documents) == 1
    assert packer.counts == {"conversations": 1, "cut": 1, "left_out": 2, "padding": 0}
