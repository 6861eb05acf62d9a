"""Chat: conversations become windows of tokens, of which only the assistant's are trained on.

    {"messages": [{"role": "user", "content": "..."}, {"role": "assistant", "content": "..."}]}
    {"prompt": "...", "completion": "..."}            the same with one message of each

A template says which special tokens surround a message. What the assistant writes, and the token
that ends its turn, is marked as trained; everything else is read only. Conversations are packed
whole into windows of seq_len + 1 tokens (arXiv:2107.02027), the rest of a window is padding; each
attends to itself only, by document masks. A conversation longer than a window loses its end.
"""

from collections import Counter
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from typing import Any

from titan_recipes.errors import ConfigError, DataError, Problem
from titan_recipes.trainer.data.documents import Chunk, Row, read_rows
from titan_recipes.trainer.data.shards import TokenShards
from titan_recipes.trainer.data.tokenizer import Tokenizer

ROLES = ("system", "user", "assistant", "tool")
OPEN_WINDOWS = 16
"""Windows filled at once. Of windows of 4,096 tokens, 99.7 % is filled with conversations of 30 to
3,000 tokens, evenly spread by magnitude; with one window 81 %, and 64 give no more than 16."""


@dataclass(frozen=True, slots=True)
class Message:
    """One turn of a conversation."""

    role: str
    content: str


@dataclass(frozen=True, slots=True)
class Template:
    """What surrounds a message: begin, then of each message open role close gap content end after.

    begin, open, close and end are names of special tokens, gap and after plain text; "" = none.
    """

    begin: str
    open: str
    close: str
    gap: str
    end: str
    after: str
    tool_role: str
    strip: bool
    """Whether white space around a message's content is dropped."""


TEMPLATES = {
    # As ChatFormat in Meta's llama-models, models/llama3/chat_format.py.
    "llama3": Template(
        begin="<|begin_of_text|>",
        open="<|start_header_id|>",
        close="<|end_header_id|>",
        gap="\n\n",
        end="<|eot_id|>",
        after="",
        tool_role="ipython",
        strip=True,
    ),
    # OpenAI's chatml.md; Qwen's models use it.
    "chatml": Template(
        begin="",
        open="<|im_start|>",
        close="",
        gap="\n",
        end="<|im_end|>",
        after="\n",
        tool_role="tool",
        strip=False,
    ),
}


class ChatFormat:
    """A template in the ids of one tokenizer."""

    def __init__(self, name: str, tokenizer: Tokenizer) -> None:
        """Raises ConfigError where the tokenizer lacks a special token of the template."""
        self._template = template = TEMPLATES[name]
        self._tokenizer = tokenizer
        names = [n for n in (template.begin, template.open, template.close, template.end) if n]
        self._special: dict[str, list[int]] = {"": []}
        for special in names:
            if (id := tokenizer.special_id(special)) is not None:
                self._special[special] = [id]
        if missing := [n for n in names if n not in self._special]:
            got = f'"{name}" needs {", ".join(missing)}, which {tokenizer.path} does not have'
            others = " or ".join(f'"{other}"' for other in TEMPLATES if other != name)
            cure = f"use {others}, or the tokenizer of a model that was made for this template"
            raise ConfigError([Problem("train.toml", "data.chat_template", got, cure)])
        self.end_id = self._special[template.end][0]

    def conversation(self, messages: Iterable[Message]) -> tuple[list[int], list[bool]]:
        """The ids of a conversation, and of each whether it is trained on."""
        template = self._template
        ids = list(self._special[template.begin])
        trained = [False] * len(ids)
        for message in messages:
            header = self._header(message.role)
            content = message.content.strip() if template.strip else message.content
            body = [*self._tokenizer.encode(content), self.end_id]
            after = self._tokenizer.encode(template.after)
            ids += [*header, *body, *after]
            is_answer = message.role == "assistant"
            trained += [False] * len(header) + [is_answer] * len(body) + [False] * len(after)
        return ids, trained

    def prompt(self, messages: Iterable[Message]) -> list[int]:
        """The ids after which the assistant's answer to a conversation begins."""
        return [*self.conversation(messages)[0], *self._header("assistant")]

    def _header(self, role: str) -> list[int]:
        template = self._template
        name = template.tool_role if role == "tool" else role
        return [
            *self._special[template.open],
            *self._tokenizer.encode(name),
            *self._special[template.close],
            *self._tokenizer.encode(template.gap),
        ]


def messages_of(row: Row) -> list[Message]:
    """The conversation that a row holds. Raises DataError."""

    def refuse(reason: str) -> DataError:
        return DataError(f"{row.where()}: {reason}")

    value: Any = row.value
    if not isinstance(value, dict):
        raise refuse("no JSON object")
    turns: Any = value.get("messages")
    if turns is None and "prompt" in value and "completion" in value:
        turns = [
            {"role": "user", "content": value["prompt"]},
            {"role": "assistant", "content": value["completion"]},
        ]
    if not isinstance(turns, list) or not turns:
        has = ", ".join(map(repr, value))
        raise refuse(f"no list of turns under 'messages', nor 'prompt' and 'completion' ({has})")
    messages: list[Message] = []
    for number, turn in enumerate(turns):
        role, content = (
            (turn.get("role"), turn.get("content")) if isinstance(turn, dict) else (None, None)
        )
        if role not in ROLES:
            raise refuse(f"turn {number}: role {role!r} is none of {', '.join(ROLES)}")
        if not isinstance(content, str):
            raise refuse(f"turn {number}: content is {type(content).__name__}, not text")
        messages.append(Message(role, content))
    return messages


Document = list[list[int]]
"""A document for `ShardWriter.add`: lists of ids one after the other."""


class ConversationPacker:
    """Fills windows with conversations: each goes where it leaves the least room (best fit).

    Which conversations share a window depends on nothing but their order. A trained token's id has
    the bit `mark` set. counts: conversations kept, cut, left out, and tokens of padding.
    """

    def __init__(self, format: ChatFormat, *, window: int, mark: int) -> None:
        self.counts: Counter[str] = Counter()
        self._format = format
        self._window = window
        self._mark = mark
        self._open: list[list[list[int]]] = []
        self._room: list[int] = []

    def documents(self, chunk: Chunk) -> Iterator[Document]:
        """The documents of the windows that a chunk's rows fill."""
        for row in read_rows(chunk):
            yield from self.add(row)

    def add(self, row: Row) -> Iterator[Document]:
        """The documents of the window that is closed to make room for a row, if one is."""
        ids, trained = self._format.conversation(messages_of(row))
        too_long = len(ids) > self._window
        pairs = zip(ids[: self._window], trained[: self._window], strict=True)
        marked = [id | self._mark * is_trained for id, is_trained in pairs]
        if not any(id & self._mark for id in marked):
            self.counts["left_out"] += 1
            return
        self.counts["conversations"] += 1
        self.counts["cut"] += too_long
        fitting = [i for i, room in enumerate(self._room) if room >= len(marked)]
        if fitting:
            best = min(fitting, key=self._room.__getitem__)
        else:
            if len(self._open) == OPEN_WINDOWS:
                yield from self._close(min(range(OPEN_WINDOWS), key=self._room.__getitem__))
            best = len(self._open)
            self._open.append([])
            self._room.append(self._window)
        self._open[best].append(marked)
        self._room[best] -= len(marked)

    def rest(self) -> Iterator[Document]:
        """The documents of the windows still open."""
        while self._open:
            yield from self._close(0)

    def _close(self, number: int) -> Iterator[Document]:
        conversations, room = self._open.pop(number), self._room.pop(number)
        self.counts["padding"] += room
        # Padding is at the end of a document: nothing that comes before can see it.
        padding = [self._format.end_id] * room
        yield from ([ids] for ids in conversations[:-1])
        yield [conversations[-1], padding]


def packing_report(shards: TokenShards) -> str:
    """What became of the conversations of some shards, in a line."""
    counts, num_windows = shards.counts, shards.num_tokens // shards.window
    filled = 1 - counts["padding"] / max(1, shards.num_tokens)
    parts = [
        f"{counts['conversations']:,} conversations in {num_windows:,} windows of "
        f"{shards.window - 1:,} tokens, {filled:.1%} filled"
    ]
    if counts["cut"]:
        parts.append(f"{counts['cut']:,} were longer and lost their end")
    if counts["left_out"]:
        parts.append(f"{counts['left_out']:,} left out: no answer in the tokens that fit")
    return "; ".join(parts)
