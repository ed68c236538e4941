"""Names in scripts that matplotlib's own font lacks: an installed font, else numbers; never a warning or a box."""

import warnings

import pytest
from matplotlib import font_manager
from matplotlib.figure import Figure

from shike_jax.report import figures, fonts, style
from tests.report import made

NAMES = ["ant", "蟻", "벌", "$x$ and $y"]


@pytest.fixture
def only_the_usual_font(monkeypatch):
    mine = [entry for entry in font_manager.fontManager.ttflist if entry.name == "DejaVu Sans"]
    monkeypatch.setattr(font_manager.fontManager, "ttflist", mine)
    fonts._substitutes.cache_clear()
    yield
    fonts._substitutes.cache_clear()


def test_numbers_where_no_font_has_the_characters(only_the_usual_font):
    assert fonts.names_or_numbers(NAMES) == ["ant", "1", "2", "$x$ and $y"]


def test_figures_of_any_names_are_drawn_without_warnings(only_the_usual_font, tmp_path):
    results = made.results(config="digits_lt.py", data="digits")
    results["split"]["name"] = "蟻 data $x$"
    summary = made.summary(results)
    summary["data"]["class_names"] = [*NAMES, "蜂", "é"]
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        figures.accuracy_by_count(results, tmp_path / "a.png")
        figures.best_expert_per_class(summary, results["config"]["model"], tmp_path / "b.png")


def test_an_installed_font_is_used_where_it_is_needed(tmp_path, monkeypatch):
    """A font with the characters stands in: here a monospaced one, for a character that is taken from the usual one."""
    usual = fonts._usual()
    monkeypatch.setattr(fonts, "_usual", lambda: (usual[0], usual[1] - {"é"}))
    fonts._substitutes.cache_clear()
    drawn = Figure()
    title = drawn.subplots().set_title("né")
    fonts.fit(drawn)
    fonts._substitutes.cache_clear()
    assert title.get_text() == "né"
    assert len(title.get_fontfamily()) == 2 and not title.get_fontfamily()[1].startswith("Last Resort")


def test_what_no_font_has_is_escaped_and_dollars_are_no_formula(only_the_usual_font, tmp_path):
    drawn = Figure()
    axes = drawn.subplots()
    axes.set_title("蟻 $a_$")
    axes.set(yscale="log", ylim=(1, 1000))
    style.save(drawn, tmp_path / "x.png")
    assert axes.get_title() == "\\u87fb $a_$"
    assert all(label.get_parse_math() for label in axes.get_yticklabels())
