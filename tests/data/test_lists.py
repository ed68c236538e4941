"""List files: the published ones counted, and every fault answered by one line."""

import gzip
import time

import numpy as np
import pytest

from shike_jax import config as schema
from shike_jax.data import lists, sources
from shike_jax.data.types import Report
from shike_jax.errors import UserError


@pytest.mark.parametrize(
    ("name", "images", "classes"),
    [
        ("ImageNet_LT_val", 20000, 1000),
        ("ImageNet_LT_test", 50000, 1000),
        ("Places_LT_train", 62500, 365),
        ("Places_LT_val", 7300, 365),
        ("Places_LT_test", 36500, 365),
        ("iNaturalist18_val", 24426, 8142),
    ],
)
def test_published_lists(shared, name, images, classes):
    began = time.process_time()
    parsed = lists.parse_list(str(shared / "data" / "lists" / f"{name}.txt.gz"))
    assert time.process_time() - began < 2
    assert len(parsed.members) == len(set(parsed.members)) == images
    np.testing.assert_array_equal(np.unique(parsed.labels), np.arange(classes))


def test_places_lt_as_a_split(shared):
    data = schema.base().data
    data.update({"source": "lists", "name": "places_lt", "profile": "natural"})
    for part in ("train", "val", "test"):
        data[f"{part}_list"] = str(shared / "data" / "lists" / f"Places_LT_{part}.txt")  # found as .txt.gz
    source = sources.load(data)
    assert [len(source.split.parts[part]) for part in ("train", "val", "test")] == [62500, 7300, 36500]
    assert (source.split.class_counts.max(), source.split.class_counts.min()) == (4980, 5)
    # Counted with `cut -d/ -f2 | sort | uniq -c` on the list.
    assert [len(source.split.divisions[name]) for name in ("many", "medium", "few")] == [131, 163, 71]
    assert source.split.class_names[:2] == ("airfield", "airplane_cabin")
    assert source.read is None


def test_a_list_as_long_as_inaturalists_parses_in_two_seconds(tmp_path):
    path = tmp_path / "train.txt"
    path.write_text("".join(f"train_val2018/Aves/{i % 8142}/{i:032x}.jpg {i % 8142}\n" for i in range(437_513)))
    began = time.process_time()
    assert len(lists.parse_list(str(path)).labels) == 437_513
    assert time.process_time() - began < 2


def write(folder, name, *lines):
    path = folder / f"{name}.txt"
    path.write_text("\n".join(lines) + "\n")
    return str(path)


GOOD = ("train/cat/1.jpg 0", "train/cat/2.jpg 0", "train/dog one/3.jpg 1")


@pytest.mark.parametrize(
    ("line", "reason"),
    [
        ("train/cat/9.jpg", r"train\.txt:4: 'train/cat/9\.jpg' has no label"),
        ("train/cat/9.jpg zero", r"train\.txt:4: label 'zero'.*integer"),
        ("train/cat/9.jpg -1", r"train\.txt:4: label '-1'.*at least 0"),
        ("train/cat/9.jpg 1.0", r"train\.txt:4: label '1\.0'"),
        ("train/cat/9.jpg ²", r"train\.txt:4: label '²'"),
        ("train/../../secret.jpg 0", r"train\.txt:4: .*leaves config\.data\.root"),
        ("train/./../../secret.jpg 0", r"train\.txt:4: .*leaves config\.data\.root"),
        ("..\\secret.jpg 0", r"train\.txt:4: .*leaves config\.data\.root"),
        ("/etc/passwd 0", r"train\.txt:4: '/etc/passwd' is an absolute path"),
        ("C:\\photos\\1.jpg 0", r"train\.txt:4: .*absolute path"),
        ("train/cat/2.jpg 0", r"train\.txt:4: 'train/cat/2\.jpg' is listed already in line 2"),
        ("./train//cat/2.jpg 0", r"train\.txt:4: 'train/cat/2\.jpg' is listed already in line 2"),
    ],
)
def test_bad_lines_stop_or_are_reported(tmp_path, line, reason):
    path = write(tmp_path, "train", *GOOD, line)
    with pytest.raises(UserError, match=reason):
        lists.parse_list(path)
    report = Report(skip_bad_lines=True, limit=0.25)
    parsed = lists.parse_list(path, report)
    assert parsed.members.tolist() == ["train/cat/1.jpg", "train/cat/2.jpg", "train/dog one/3.jpg"]
    assert parsed.labels.tolist() == [0, 0, 1]
    assert list(report.skipped) == [f"{path}:4"]
    with pytest.raises(UserError, match=r"1 of 4 lines are bad, more than config\.data\.bad_image_limit=0 allows"):
        lists.parse_list(path, Report(skip_bad_lines=True))


def load(folder, train, test=("test/cat/7.jpg 0",), root=""):
    data = schema.base().data
    data.update({"source": "lists", "profile": "natural", "root": str(root)})
    data.update({"train_list": write(folder, "train", *train), "test_list": write(folder, "test", *test)})
    return sources.load(data)


def test_blank_lines_and_carriage_returns_are_harmless(tmp_path):
    path = tmp_path / "train.txt.gz"
    path.write_bytes(gzip.compress(b"\r\na b/1.jpg 0\r\n\r\n\ta/2.jpg\t1  \r\n"))
    parsed = lists.parse_list(str(path))
    assert parsed.members.tolist() == ["a b/1.jpg", "a/2.jpg"]
    assert parsed.lines.tolist() == [2, 4]


def test_labels_with_gaps(tmp_path):
    with pytest.raises(UserError, match=r"train\.txt: 2 labels below the largest have no image, the first is 2"):
        load(tmp_path, (*GOOD, "train/owl/4.jpg 4"))


def test_label_out_of_range_in_the_test_list(tmp_path):
    with pytest.raises(UserError, match=r"test\.txt:2: label 2 of 'test/owl/8.jpg'; the training list .* has 0\.\.1"):
        load(tmp_path, GOOD, ("test/cat/7.jpg 0", "test/owl/8.jpg 2"))


def test_image_in_both_lists(tmp_path):
    with pytest.raises(UserError, match=r"1 images are in .*train\.txt too, the first is 'train/cat/2\.jpg'"):
        load(tmp_path, GOOD, ("train/cat/2.jpg 0",))


def test_list_and_folder_disagree(tmp_path):
    train = [f"train/{name}/{i}.jpg {label}" for label, name in enumerate(("cat", "dog")) for i in range(100)]
    train[150] = "train/dog/50.jpg 0"
    with pytest.raises(UserError, match=r"train\.txt:151: 'train/dog/50\.jpg' has label 0, but .* 'dog' have label 1"):
        load(tmp_path, train)


def test_folders_that_do_not_name_classes_are_no_disagreement(tmp_path):
    source = load(tmp_path, ("all/1.jpg 0", "all/2.jpg 1", "all/3.jpg 1"), ("all/4.jpg 1",))
    assert source.split.class_names == ("0", "1")
    assert source.split.class_counts.tolist() == [1, 2]
    assert not any("folders" in note for note in source.report.notes)


def test_as_many_folders_as_classes_that_do_not_match_are_worth_a_remark(tmp_path):
    train = [
        f"train/{name}/{i}.jpg {(label + (i < 30)) % 2}"
        for label, name in enumerate(("cat", "dog"))
        for i in range(100)
    ]
    source = load(tmp_path, train)
    assert source.split.class_names == ("0", "1")
    [note] = [note for note in source.report.notes if "folders" in note]
    assert "only 141 of 201 lines have the label" in note  # 70 of each folder, and the one for testing


def test_missing_files(tmp_path):
    for name in ("train/cat/1.jpg", "train/cat/2.jpg", "test/cat/7.jpg"):
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_bytes(name.encode())
    with pytest.raises(UserError, match=r"train\.txt:3: 'train/dog one/3\.jpg' is not under .*1 are missing"):
        load(tmp_path, GOOD, root=tmp_path)
    two = ["train/cat/1.jpg 0", "train/cat/2.jpg 1"]
    source = load(tmp_path, two, root=tmp_path)
    assert source.read("train", [1, 0]) == [b"train/cat/2.jpg", b"train/cat/1.jpg"]
    with pytest.raises(UserError, match=r"none of its 2 images is under .*/elsewhere"):
        load(tmp_path, two, root=tmp_path / "elsewhere")


@pytest.mark.parametrize(
    ("content", "line"), [(b"", "no usable line"), (b"\x1f\x8bbroken", "list file"), (b"\xff\xfe 0\n", "not text")]
)
def test_files_that_are_no_lists(tmp_path, content, line):
    path = tmp_path / "train.txt"
    path.write_bytes(content)
    with pytest.raises(UserError, match=line):
        lists.parse_list(str(path))
    with pytest.raises(UserError, match=r"absent\.txt: No such file"):
        lists.parse_list(str(tmp_path / "absent.txt"))


def test_lists_that_number_the_classes_differently(tmp_path):
    """In each list folders name the classes, but a label of the one is another class in the other."""
    train = [f"train/{name}/{i}.jpg {label}" for label, name in enumerate(("cat", "dog", "owl")) for i in range(9)]
    test = [f"test/{name}/{i}.jpg {label}" for label, name in enumerate(("dog", "cat", "owl")) for i in range(3)]
    with pytest.raises(UserError, match=r"test\.txt: folder '(cat|dog)' has label [01], but [01] in .*\(2 such"):
        load(tmp_path, train, test)
    flat = [f"val/{i}.jpg {i % 3}" for i in range(9)]  # no folders of classes: nothing to compare
    assert load(tmp_path, train, flat).split.class_names == ("0", "1", "2")
    # However few lines a flat list has next to the others, it contradicts none of them.
    assert load(tmp_path, train, flat[:3]).split.class_names == ("cat", "dog", "owl")


def test_a_name_may_hold_what_unicode_takes_for_a_line_end(tmp_path):
    names = ("a\u2028b.jpg", "c\x85d.jpg", "e\x0cf.jpg")
    path = tmp_path / "train.txt"
    path.write_bytes("".join(f"x/{name} {i}\r\n" for i, name in enumerate(names)).encode())
    assert lists.parse_list(str(path)).members.tolist() == [f"x/{name}" for name in names]


def test_classes_without_test_images_are_worth_a_remark(tmp_path):
    source = load(tmp_path, GOOD)  # the test list has an image of class 0 alone
    assert "1 classes have no image in part test: their accuracy cannot be measured" in source.report.notes
