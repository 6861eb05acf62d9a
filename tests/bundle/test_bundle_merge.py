"""Comparing and three-way merging of files."""

import tomllib

import pytest

from titan_recipes.bundle.merge import changes, merge3, unified_diff
from titan_recipes.errors import ConfigError

BASE = b"""# theirs
[training]
seq_len = 8192   # tokens
steps = 1000

[optimizer]
lr = 3e-4
"""


def test_changes_when_keys_differ_lists_them_by_value():
    after = BASE.replace(b"8192", b"4096").replace(b"lr = 3e-4", b"eps = 1e-8")
    found = changes({"a.toml": BASE, "b": b"x"}, {"a.toml": after, "c": b"yy"})
    assert [str(change) for change in found] == [
        "a.toml: training.seq_len: 8192 -> 4096",
        "a.toml: optimizer.lr: 0.0003 -> (none)",
        "a.toml: optimizer.eps: (none) -> 1e-08",
        "b: 1 bytes -> (none)",
        "c: (none) -> 2 bytes",
    ]


def test_changes_when_only_type_differs_sees_it():
    found = changes({"a.toml": b"x = 1\n"}, {"a.toml": b"x = 1.0\n"})
    assert [str(change) for change in found] == ["a.toml: x: 1 -> 1.0"]


def test_unified_diff_is_what_diff_prints():
    before, after = {"a": b"1\n2\n", "b": b"\xff", "c": b"="}, {"a": b"1\n3", "b": b"", "c": b"="}
    assert unified_diff(before, after, ("old", "new")) == (
        "--- old/a\n+++ new/a\n@@ -1,2 +1,2 @@\n 1\n-2\n+3\n\\ No newline at end of file\n"
        "b: binary files differ\n"
    )


def test_merge_when_sides_change_different_keys_takes_both_and_keeps_my_text():
    mine = BASE.replace(b"8192   # tokens", b"4096   # mine").replace(b"# theirs", b"# my own")
    theirs = BASE.replace(b"3e-4", b"1e-4").replace(
        b"steps = 1000", b"steps = 1000\nmax_norm = 2.0"
    )
    merged = merge3({"a.toml": BASE}, {"a.toml": mine}, {"a.toml": theirs})
    assert merged.conflicts == []
    assert merged.files == {
        "a.toml": b"# my own\n[training]\nseq_len = 4096   # mine\nsteps = 1000\nmax_norm = 2.0\n\n"
        b"[optimizer]\nlr = 0.0001\n"
    }
    assert [str(change) for change in merged.taken] == [
        "a.toml: training.max_norm: (none) -> 2.0",
        "a.toml: optimizer.lr: 0.0003 -> 0.0001",
    ]


def test_merge_when_i_left_a_file_alone_takes_it_whole_with_comments():
    theirs = BASE.replace(b"# theirs", b"# newer").replace(b"1000", b"2000")
    merged = merge3({"a.toml": BASE, "R": b"1"}, {"a.toml": BASE}, {"a.toml": theirs, "R": b"1"})
    assert merged.files == {"a.toml": theirs}


def test_merge_when_both_changed_a_key_conflicts_unless_told_who_wins():
    mine, theirs = BASE.replace(b"8192", b"4096"), BASE.replace(b"8192", b"2048")
    sides = ({"a.toml": BASE}, {"a.toml": mine}, {"a.toml": theirs})
    merged = merge3(*sides)
    assert [str(conflict) for conflict in merged.conflicts] == [
        "a.toml: training.seq_len: mine 4096, origin 2048 (was 8192)"
    ]
    assert merge3(*sides, "mine").files == {}
    assert merge3(*sides, "origin").files == {"a.toml": theirs}
    assert merge3(*sides, "origin").conflicts == []


def test_merge_when_both_made_the_same_change_has_nothing_to_do():
    new = BASE.replace(b"8192", b"4096")
    extra = new.replace(b"1000", b"5")
    merged = merge3({"a.toml": BASE}, {"a.toml": extra}, {"a.toml": new})
    assert (merged.files, merged.conflicts, merged.taken) == ({}, [], [])


@pytest.mark.parametrize(
    ("base", "mine", "theirs", "files", "conflict"),
    [
        (None, None, b"n", {"f": b"n"}, ""),
        (b"o", b"o", None, {"f": None}, ""),
        (b"o", None, b"o", {}, ""),
        (b"o", b"m", b"o", {}, ""),
        (b"o", b"n", b"n", {}, ""),
        (b"o", b"mm", b"n", {}, "f: mine changed, 2 bytes, origin changed, 1 bytes (was 1 bytes)"),
        (b"o", None, b"n", {}, "f: mine (none), origin changed, 1 bytes (was 1 bytes)"),
        (None, b"m", b"n", {}, "f: mine 1 bytes, origin 1 bytes (was (none))"),
    ],
)
def test_merge_of_a_whole_file(base, mine, theirs, files, conflict):
    def side(content):
        return {} if content is None else {"f": content}

    merged = merge3(side(base), side(mine), side(theirs))
    assert merged.files == files
    assert [str(c) for c in merged.conflicts] == ([conflict] if conflict else [])


def test_merge_when_origin_dropped_a_key_drops_mine_unless_i_changed_it():
    theirs = BASE.replace(b"steps = 1000\n", b"")
    mine = BASE.replace(b"8192", b"1")
    merged = merge3({"a.toml": BASE}, {"a.toml": mine}, {"a.toml": theirs})
    assert merged.files == {"a.toml": mine.replace(b"steps = 1000\n", b"")}
    mine = BASE.replace(b"1000", b"7")
    merged = merge3({"a.toml": BASE}, {"a.toml": mine}, {"a.toml": theirs})
    assert [str(c) for c in merged.conflicts] == [
        "a.toml: training.steps: mine 7, origin (none) (was 1000)"
    ]


def test_merge_when_my_table_became_a_value_says_so():
    mine, theirs = b"new = 5\n" + BASE, BASE + b"[new.x]\ny = 1\n"
    with pytest.raises(ConfigError) as caught:
        merge3({"a.toml": BASE}, {"a.toml": mine}, {"a.toml": theirs})
    assert str(caught.value) == 'a.toml: new.x.y: "new" is not a table; make it one'


ROPE = b"[model]\ndim = 64\n\n[model.rope_scaling]\nfactor = 8.0\nlow_freq_factor = 1.0\n"
NO_ROPE = b"[model]\ndim = 64\n"
EMPTY_ROPE = b"[model]\ndim = 64\n\n[model.rope_scaling]\n"
MINE = b"n_layers = 2\n"


def mine_of(text: bytes) -> bytes:
    return text.replace(b"dim = 64\n", b"dim = 64\n" + MINE)


def test_changes_when_only_an_empty_table_differs_shows_it():
    found = changes({"m.toml": NO_ROPE}, {"m.toml": EMPTY_ROPE})
    assert [str(change) for change in found] == ["m.toml: model.rope_scaling: (none) -> {}"]


@pytest.mark.parametrize(
    ("base", "theirs"),
    [
        (ROPE, NO_ROPE),
        (EMPTY_ROPE, NO_ROPE),
        (NO_ROPE, EMPTY_ROPE),
        (NO_ROPE, ROPE),
        (ROPE, EMPTY_ROPE),
        (EMPTY_ROPE, ROPE),
    ],
)
@pytest.mark.parametrize("bom", [b"", b"\xef\xbb\xbf"])
def test_merge_when_a_table_comes_or_goes_ends_with_the_origins(base, theirs, bom):
    merged = merge3({"m.toml": base}, {"m.toml": bom + mine_of(base)}, {"m.toml": theirs})
    assert merged.conflicts == []
    content = merged.files["m.toml"]
    assert content is not None
    assert tomllib.loads(content.decode()) == tomllib.loads(mine_of(theirs).decode())


@pytest.mark.parametrize(
    ("mine", "theirs", "line"),
    [
        (ROPE + b"high_freq_factor = 2.0\n", NO_ROPE, "mine a changed table, origin (none)"),
        (ROPE.replace(b"8.0", b"4.0"), NO_ROPE, "mine a changed table, origin (none)"),
        (NO_ROPE, ROPE + b"high_freq_factor = 2.0\n", "mine (none), origin a changed table"),
    ],
)
def test_merge_when_one_removed_a_table_that_the_other_changed_conflicts(mine, theirs, line):
    sides = ({"m.toml": ROPE}, {"m.toml": mine_of(mine)}, {"m.toml": theirs})
    merged = merge3(*sides)
    assert [str(c) for c in merged.conflicts] == [
        f"m.toml: model.rope_scaling: {line} (was a table)"
    ]
    assert merge3(*sides, "mine").files == {}
    taken = merge3(*sides, "origin").files["m.toml"]
    assert taken is not None
    assert tomllib.loads(taken.decode()) == tomllib.loads(mine_of(theirs).decode())


def test_merge_when_a_value_is_nan_merges_the_rest():
    base, theirs = b"a = nan\nb = 1\n", b"a = nan\nb = 2\n"
    mine = b"c = 3\n" + base
    merged = merge3({"a.toml": base}, {"a.toml": mine}, {"a.toml": theirs})
    assert merged.files == {"a.toml": b"c = 3\n" + theirs}


def test_diff_when_a_quoted_key_has_a_dot_says_so():
    with pytest.raises(ConfigError) as caught:
        changes({"a.toml": b'"x.y" = 1'}, {"a.toml": b""})
    assert str(caught.value) == (
        'a.toml: "x.y": a dot in a quoted key; no setting has such a name; '
        "write a [table], or no quotes"
    )


def test_merge_when_my_file_is_broken_says_where():
    with pytest.raises(ConfigError) as caught:
        merge3({"a.toml": BASE}, {"a.toml": b"x = "}, {"a.toml": b"y = 1"})
    assert str(caught.value) == "a.toml: not TOML: Invalid value (at end of document)"
