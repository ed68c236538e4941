"""Names from outside: what reaches a terminal, a Markdown page and a spreadsheet."""

import json
import math

import pytest

from shike_jax.common.text import code, markdown, printable, spreadsheet, to_json


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("ant", "ant"),
        ("Ameise, fourmi, 蟻, ‍é", "Ameise, fourmi, 蟻, ‍é"),
        ("\x1b[31mred\x07", "\\x1b[31mred\\x07"),
        ("a\nb\tc\r", "a\\nb\\tc\\r"),
        ("\u202egpj.exe", "\\u202egpj.exe"),
        ("caf\udce9", "caf\\udce9"),
        ("\x9b2J", "\\x9b2J"),
        ("no\xa0break", "no\xa0break"),
    ],
)
def test_control_characters_become_readable(text, expected):
    assert printable(text) == expected
    assert printable(text).encode("utf-8")


def test_kept_characters_stay():
    assert printable("a\n\x1bb", keep="\n") == "a\n\\x1bb"


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("cifar100_lt_if100, lr=0.1", "cifar100_lt_if100, lr=0.1"),
        ("<script>alert(1)</script>", "&lt;script&gt;alert(1)&lt;/script&gt;"),
        ("a|b", "a\\|b"),
        ("[x](http://y) *b* `c` _d_", "\\[x](http://y) \\*b\\* \\`c\\` \\_d\\_"),
        ("A&amp;B\n# title", "A&amp;amp;B\\\\n# title"),
    ],
)
def test_markdown(text, expected):
    assert markdown(text) == expected


@pytest.mark.parametrize(
    ("text", "expected"),
    [("ab", "`ab`"), ("a|b", "`a\\|b`"), ("a`b", "``a`b``"), ("`", "`` ` ``"), ("\x1b", "`\\x1b`")],
)
def test_code_spans(text, expected):
    assert code(text) == expected


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("ant", "ant"),
        ("=1+1", "'=1+1"),
        ("@SUM(A1)", "'@SUM(A1)"),
        ("-x", "'-x"),
        ("+cmd|' /C calc'!A0", "'+cmd|' /C calc'!A0"),
        ("-1", "-1"),
        ("+2.5e-3", "+2.5e-3"),
        ("-1+1", "'-1+1"),
        ("\t=1", "\\t=1"),
    ],
)
def test_formulas(text, expected):
    assert spreadsheet(text) == expected


def test_json_has_no_word_for_numbers_that_are_not_finite():
    value = {"a": math.nan, "b": [1.5, (math.inf, 2)], "c": {"d": -math.inf, "e": None, "f": True}}
    expected = {"a": None, "b": [1.5, [None, 2]], "c": {"d": None, "e": None, "f": True}}
    assert json.loads(to_json(value, indent=1), parse_constant=pytest.fail) == expected
