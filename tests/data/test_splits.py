"""Split rules against the published sizes and against hand-made cases."""

import dataclasses

import numpy as np
import pytest

from shike_jax.data.splits import Part, Split, feasible_longtail_counts, longtail_counts, longtail_subset
from shike_jax.errors import UserError


def make_split(counts, **changes):
    labels = np.repeat(np.arange(len(counts)), counts).astype(np.int32)
    fields = {
        "name": "made",
        "rule": "by hand",
        "seed": 0,
        "class_names": tuple(f"c{i}" for i in range(len(counts))),
        "parts": {"train": Part(np.arange(len(labels)), labels), "test": Part(np.arange(3), np.zeros(3, np.int32))},
    }
    return Split(**fields | changes)


@pytest.mark.parametrize(
    ("largest", "classes", "factor", "total", "smallest"),
    [(500, 100, 100, 10847, 5), (500, 100, 50, 12608, 10), (500, 100, 10, 19573, 50), (5000, 10, 100, 12406, 50)],
)
def test_exponential_profile_has_the_published_sizes(largest, classes, factor, total, smallest):
    counts = longtail_counts(largest, classes, factor, "exponential")
    assert counts.sum() == total
    assert (counts[0], counts[-1]) == (largest, smallest)
    assert np.all(np.diff(counts) <= 0)


def test_step_profile_halves_the_classes():
    np.testing.assert_array_equal(longtail_counts(500, 4, 100, "step"), [500, 500, 5, 5])


def test_counts_survive_floating_point():
    # 49 * (1 / 49) is 0.9999999999999999 in double precision.
    assert longtail_counts(49, 5, 49, "exponential")[-1] == 1


def test_impossible_imbalance_factor_is_named():
    with pytest.raises(UserError, match=r"imbalance_factor=1000.*at most 500"):
        longtail_counts(500, 100, 1000, "exponential")


def test_a_factor_that_unequal_classes_cannot_have():
    with pytest.raises(
        UserError, match=r"imbalance_factor=150: no exponential profile fits classes of 200 to 1 images"
    ):
        feasible_longtail_counts(np.array([200, 10, 5, 1]), 150, "exponential")
    with pytest.raises(UserError, match=r"imbalance_factor=250.*expected at most 200"):
        feasible_longtail_counts(np.array([200, 10, 5, 1]), 250, "exponential")


def test_names_need_not_be_utf8():
    """As Python reads such file names: with surrogates."""

    def named(name):
        train = Part(np.array([f"{name}/1.jpg", "a/1.jpg"], object), np.array([1, 0], np.int32))
        return make_split([1, 1], class_names=("a", name), parts={"train": train})

    assert named("caf\udce9").hash == named("caf\udce9").hash != named("cafe").hash


def test_feasible_counts_keep_factor_and_rank():
    available = np.array([30, 200, 8, 100])
    counts = feasible_longtail_counts(available, 8, "exponential")
    assert np.all(counts <= available)
    # By hand: L/2 <= 100, L/4 <= 30 and L/8 <= 8 (rounded down) allow L = 71 for the frequent class.
    np.testing.assert_array_equal(counts, [17, 71, 8, 35])


def test_first_keeps_the_first_of_each_class():
    labels = np.array([1, 0, 1, 0, 0, 1])
    np.testing.assert_array_equal(longtail_subset(labels, [2, 1], "first", 0), [0, 1, 3])


def test_random_subset_depends_on_the_seed_alone():
    labels, counts = np.repeat(np.arange(4), 50), [20, 10, 5, 2]
    kept = longtail_subset(labels, counts, "random", 7)
    np.testing.assert_array_equal(np.bincount(labels[kept]), counts)
    np.testing.assert_array_equal(kept, longtail_subset(labels, counts, "random", 7))
    assert not np.array_equal(kept, longtail_subset(labels, counts, "random", 8))
    # A class's choice does not depend on the other classes' counts.
    np.testing.assert_array_equal(kept[:20], longtail_subset(labels, [20, 50, 50, 50], "random", 7)[:20])


def test_h2t_subset_follows_numpys_global_generator():
    labels, counts = np.tile(np.arange(5), 40), [30, 20, 10, 5, 1]
    np.random.seed(0)
    expected = []
    for c, count in enumerate(counts):
        index = np.where(labels == c)[0]
        np.random.shuffle(index)
        expected += index[:count].tolist()
    np.testing.assert_array_equal(longtail_subset(labels, counts, "h2t", 3), sorted(expected))


def test_subset_of_a_class_that_is_too_small():
    with pytest.raises(UserError, match=r"class 1 has 1 images.*needs 2"):
        longtail_subset(np.array([0, 0, 1]), [2, 2], "first", 0)


def test_divisions_at_their_borders():
    split = make_split([101, 100, 20, 19])
    found = {name: classes.tolist() for name, classes in split.divisions.items()}
    assert found == {"many": [0], "medium": [1, 2], "few": [3]}


def test_h2t_divisions():
    split = make_split([1] * 100, division_rule="h2t")
    assert [(found[0], found[-1]) for found in split.divisions.values()] == [(0, 35), (36, 70), (71, 99)]
    with pytest.raises(UserError, match="100 classes; made has 4"):
        make_split([1] * 4, division_rule="h2t")


def test_hash_tells_splits_apart():
    split = make_split([3, 2])
    train = split.parts["train"]
    others = [
        dataclasses.replace(split, rule="another"),
        dataclasses.replace(split, seed=1),
        dataclasses.replace(split, class_names=("c0", "x")),
        dataclasses.replace(split, parts=split.parts | {"train": Part(train.members + 1, train.labels)}),
        dataclasses.replace(split, parts=split.parts | {"train": Part(train.members, train.labels[::-1])}),
        dataclasses.replace(split, parts=split.parts | {"val": split.parts["test"]}),
    ]
    assert len({split.hash, *(other.hash for other in others)}) == len(others) + 1
    assert make_split([3, 2], name="renamed").hash == split.hash
    narrow = Part(train.members.astype(np.int32), train.labels.astype(np.int64))
    assert dataclasses.replace(split, parts=split.parts | {"train": narrow}).hash == split.hash


def test_broken_splits_are_refused():
    with pytest.raises(UserError, match=r"1 classes have no training image: 1 \(c1\)"):
        make_split([3, 0, 2])
    with pytest.raises(UserError, match=r"part test: labels 0\.\.0, expected 0\.\.-1"):
        make_split([])
