"""TOML that is legal to write and hopeless to read: one error with its file, never a traceback."""

from collections.abc import Callable
from pathlib import Path

import pytest

from titan_recipes.config.load import parse_overrides, read_toml
from titan_recipes.config.schema import Config
from titan_recipes.errors import ConfigError


def message(call: Callable[[], object]) -> str:
    with pytest.raises(ConfigError) as caught:
        call()
    return str(caught.value)


DEEP = "nested deeper than 32 levels"
WIDE = "an integer of more than 64 bits"


@pytest.mark.parametrize(
    ("value", "reason"),
    [
        ("9" * 5000, "Exceeds the limit (4300 digits)"),
        ("9" * 4000, WIDE),
        ("0x" + "f" * 5000, WIDE),
        ("[" * 3000 + "]" * 3000, DEEP),
        ("[" * 40 + "]" * 40, DEEP),
        ("{a = " * 3000 + "1" + "}" * 3000, DEEP),
    ],
    ids=["5000_digits", "4000_digits", "hex", "arrays_3000", "arrays_40", "tables_3000"],
)
def test_value_that_no_setting_can_hold_is_refused_in_file_and_set(
    tmp_path: Path, value: str, reason: str
) -> None:
    file = tmp_path / "train.toml"
    file.write_text(f"[training]\nsteps = {value}\n")
    assert message(lambda: read_toml(file)).startswith(f"{file}: not TOML: {reason}")
    said = message(lambda: parse_overrides(Config, [f"training.steps={value}"]))
    assert said.startswith("--set training.steps=")
    assert f"is not a TOML value ({reason}" in said
    assert len(said) < 700


def test_key_of_three_thousand_parts_is_refused(tmp_path: Path) -> None:
    file = tmp_path / "train.toml"
    file.write_text(".".join("a" * 3000) + " = 1\n")
    assert message(lambda: read_toml(file)) == f"{file}: not TOML: {DEEP}"


def test_integers_of_64_bits_and_byte_order_mark_are_read(tmp_path: Path) -> None:
    file = tmp_path / "train.toml"
    file.write_bytes(b"\xef\xbb\xbfa = 9223372036854775807\r\nb = -9223372036854775808\r\n")
    assert read_toml(file) == {"a": 2**63 - 1, "b": -(2**63)}
