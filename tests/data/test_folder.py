"""Image folders: what they must look like, and a requested imbalance factor."""

import numpy as np
import pytest

from shike_jax import config as schema
from shike_jax.data import sources
from shike_jax.errors import UserError


def make(root, **classes):
    """Writes empty files: `train_cat=3` makes train/cat/0.jpg, 1.jpg, 2.jpg."""
    for name, count in classes.items():
        folder = root.joinpath(*name.split("_"))
        folder.mkdir(parents=True)
        for i in range(count):
            (folder / f"{i}.jpg").touch()


def load(root, **changes):
    data = schema.base().data
    data.update({"source": "folder", "root": str(root), "profile": "natural", **changes})
    return sources.load(data)


def test_classes_are_sorted_and_members_are_relative_paths(tmp_path):
    make(tmp_path, train_dog=2, train_cat=1, test_dog=1, test_cat=1)
    split = load(tmp_path).split
    assert split.class_names == ("cat", "dog")
    assert split.parts["train"].members.tolist() == ["train/cat/0.jpg", "train/dog/0.jpg", "train/dog/1.jpg"]
    assert split.parts["train"].labels.tolist() == [0, 1, 1]
    assert split.hash == load(tmp_path).split.hash


def test_the_hash_does_not_depend_on_where_the_folder_lies(tmp_path):
    for name in ("one", "two"):
        make(tmp_path / name, train_dog=2, train_cat=1, test_dog=1, test_cat=1)
    assert load(tmp_path / "one").split.hash == load(tmp_path / "two").split.hash


def test_a_requested_imbalance_factor(tmp_path):
    make(tmp_path, train_a=10, train_b=40, train_c=20, test_a=1, test_b=1, test_c=1)
    split = load(tmp_path, profile="exponential", imbalance_factor=4.0).split
    # Ranked b, c, a: L, L/2 <= 20 and L/4 <= 10 allow all of b.
    np.testing.assert_array_equal(split.class_counts, [10, 40, 20])
    split = load(tmp_path, profile="exponential", imbalance_factor=2.0).split
    np.testing.assert_array_equal(split.class_counts, [10, 21, 14])  # L/2 <= 10 rounded down: L = 21
    assert split.parts["train"].members[0] == "train/a/0.jpg"


@pytest.mark.parametrize(
    ("classes", "line"),
    [
        ({}, r"/train: No such file.*expected \{train,test\}/CLASS"),
        ({"train_a": 1, "test_a": 1, "test_b": 1}, r"/test/b has no counterpart in .*/train"),
        ({"train_a": 1, "train_b": 0, "test_a": 1, "test_b": 1}, r"/train/b holds no image"),
        ({"train_a": 1}, "test_part='test'.*has train; expected one of its parts"),
        # Flat: nothing names a class.
        ({"Train": 2, "Test": 2}, r"/Train holds no class folder; expected .*/Train/CLASS"),
        ({"train": 2, "test": 2, "valid": 1}, "/train holds no class folder"),
    ],
)
def test_impossible_folders(tmp_path, classes, line):
    make(tmp_path, **classes)
    with pytest.raises(UserError, match=line):
        load(tmp_path)


def test_remarks_about_harmless_oddities(tmp_path):
    make(tmp_path, train_a=1, train_b=2, test_a=1)
    (tmp_path / "train" / "a" / "notes.txt").touch()
    (tmp_path / "train" / "a" / ".hidden").touch()
    lines = load(tmp_path).report.lines()
    assert any("1 entries in" in line and "train/a/notes.txt" in line for line in lines)
    assert any("1 classes have no image in" in line for line in lines)
    assert len(lines) == 2


def test_an_empty_root_is_asked_for():
    with pytest.raises(UserError, match=r"config\.data\.root is empty"):
        load("")
