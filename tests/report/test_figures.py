"""Figures are drawn, not blank, and count what they say."""

import matplotlib.image
import numpy as np
import pytest

from shike_jax.errors import UserError
from shike_jax.report import curves, figures, style
from tests.report import made


@pytest.fixture(scope="module")
def cifar():
    return made.results()


@pytest.fixture(scope="module")
def summary(cifar):
    return made.summary(cifar)


def check(path, colours):
    """A PNG of print size that holds each colour in some pixels and is mostly paper."""
    pixels = matplotlib.image.imread(path)[..., :3]
    assert pixels.shape[1] == style.WIDTH * style.DPI
    assert 0.5 < (pixels.min(-1) > 0.95).mean() < 0.99
    for colour in colours:
        wanted = np.array([int(colour[i : i + 2], 16) / 255 for i in (1, 3, 5)])
        assert (np.abs(pixels - wanted).max(-1) < 0.02).sum() > 50, colour


def test_every_figure_is_drawn(cifar, summary, tmp_path):
    model = cifar["config"]["model"]
    curve = curves.Curve("SHIKE", np.arange(1, 6), np.full((2, 5), 2.0), np.arange(10.0).reshape(2, 5), (3,))
    drawn = {
        "count": lambda path: figures.accuracy_by_count(cifar, path),
        "best": lambda path: figures.best_expert_per_class(summary, model, path),
        "shares": lambda path: figures.best_expert_shares(summary, model, path),
    }
    for name, draw in drawn.items():
        path = tmp_path / f"{name}.png"
        assert draw(path) == path
        check(path, style.COLOURS[:3])
    two = {"plain network": summary, "SHIKE": summary}
    check(figures.hardest_negatives(two, tmp_path / "negatives.png"), style.COLOURS[:2])
    check(figures.reliability(two, tmp_path / "reliability.png"), style.COLOURS[:2])
    check(figures.training_curves([curve, curve], tmp_path / "training.png"), style.COLOURS[:2])


def test_one_expert_and_few_classes(tmp_path):
    plain = made.results("digits_lt.py", ("model.depths=(1,)", "model.fusion=False"), data="digits")
    check(figures.accuracy_by_count(plain, tmp_path / "count.png"), ["#000000"])
    check(figures.reliability({"plain": made.summary(plain)}, tmp_path / "reliability.png"), style.COLOURS[:1])


def test_more_experts_than_colours(tmp_path):
    found = made.results("digits_lt.py", (f"model.depths={(1,) * 9}",), data="digits")
    about, model = made.summary(found), found["config"]["model"]
    for draw in (figures.best_expert_per_class, figures.best_expert_shares):
        assert draw(about, model, tmp_path / "experts.png").is_file()
    assert figures.accuracy_by_count(found, tmp_path / "count.png").is_file()


def test_absent_classes_are_left_out(tmp_path):
    found = made.results("digits_lt.py", data="digits")
    found["per_class"][2] = None
    for row in found["experts_per_class"]:
        row[2] = None
    check(figures.accuracy_by_count(found, tmp_path / "count.png"), style.COLOURS[:3])


@pytest.mark.parametrize(
    ("low", "high", "expected"),
    [
        (3, 600, [5, 10, 20, 50, 100, 200, 500]),
        (7.1, 14.6, [8, 10, 12, 14]),
        (0.515, 0.565, [0.52, 0.53, 0.54, 0.55, 0.56]),
    ],
)
def test_a_logarithmic_axis_has_numbers_however_short(low, high, expected):
    _, axes = style.figure(2.0)
    axes.set(yscale="log", ylim=(low, high))
    style.log_ticks(axes.yaxis, low, high)
    assert axes.yaxis.get_majorticklocs() == pytest.approx(expected)


def test_shares_by_hand():
    summary = {
        "checkpoint": {"heads": "classifier"},
        "data": {"divisions": {"many": [0, 1], "medium": [2], "few": [3]}},
        "heads": {"classifier": {"experts_per_class": [[90, 50, 10, None], [80, 50, 30, None]]}},
    }
    shares = figures.expert_shares(summary)
    # Class 0 belongs to expert 1, class 1 half to each, class 2 to expert 2; class 3 has no test image.
    assert {name: values.tolist() for name, values in shares.items()} == {"many": [75, 25], "medium": [0, 100]}


def test_curves_of_a_resumed_run_count_each_epoch_once(tmp_path):
    folder = tmp_path / "run"
    changes = ("stages.representation.epochs=3", "stages.classifier.epochs=2")
    made.write_run(folder, evaluation=False, changes=changes)
    with (folder / "metrics.jsonl").open("a") as file:
        file.write('{"step": 9, "stage": "representation", "epoch": 1, "epoch_loss": 7.0}\n{"step": 1, "sta')
    from shike_jax.report.runs import by_dataset, collect

    [[group]] = by_dataset(collect([tmp_path])[0]).values()
    curve = curves.of_group(group)
    np.testing.assert_allclose(curve.loss, [[5, 7, 5 / 3, 5, 2.5]])
    np.testing.assert_allclose(curve.top1, [[5, np.nan, 7, 5, 6]])
    assert curve.stage_starts == (3,)


def test_reference_curves(tmp_path):
    path = tmp_path / "public.csv"
    path.write_text("seed,epoch,stage,train_loss,test_top1\n0,0,1,9,1\n0,1,2,8,2\n1,0,1,7,3\n1,1,2,6,4\n")
    curve = curves.of_csv(path)
    assert curve.loss.tolist() == [[9, 8], [7, 6]]
    assert curve.stage_starts == (1,)
    path.write_text("a,b\n1,2\n")
    with pytest.raises(UserError, match=r"public\.csv: not a CSV file with seed, epoch"):
        curves.of_csv(path)


@pytest.mark.parametrize(("length", "columns"), [(5, 2), (55, 1)])
def test_a_legend_stays_on_the_page(length, columns):
    drawn, axes = style.figure(2.0)
    for letter in "ab":
        axes.plot([0, 1], label=letter * length)
    style.legend_below(drawn, axes, 2)
    drawn.draw_without_rendering()
    [legend] = drawn.legends
    assert legend.get_window_extent().x0 >= 0
    assert legend.get_window_extent().x1 <= drawn.bbox.width
    assert legend._ncols == columns
