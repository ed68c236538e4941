"""Images held out for testing and validation: how many of each class, which, and that they never train."""

import csv
import hashlib
import json

import numpy as np
import pytest
from PIL import Image

from shike_jax import config as schema
from shike_jax.cluster import preemption
from shike_jax.commands import train as main
from shike_jax.data import sources
from shike_jax.data.held_out import draw, evaluated_part, write_csv
from shike_jax.data.splits import Part
from shike_jax.errors import UserError

pytestmark = pytest.mark.usefixtures("quickly_compiled")


def part_of(**counts):
    names = [f"{name}/{i}.jpg" for name, count in counts.items() for i in range(count)]
    labels = [c for c, count in enumerate(counts.values()) for _ in range(count)]
    return Part(np.array(names, dtype=object), np.array(labels, np.int32))


@pytest.mark.parametrize(
    ("amount", "expected"),
    [
        (0.1, [10, 1, 1, 1, 0]),  # of 100, 14, 3, 2 and 1 images: round(10), round(1.4), at least one, one, none
        (0.5, [50, 7, 2, 1, 0]),  # round(1.5) = 2 leaves one
        (0.9, [90, 13, 2, 1, 0]),
        (5, [5, 5, 1, 1, 0]),  # half of the class stays at least
        (20, [20, 7, 1, 1, 0]),
        (0, [0, 0, 0, 0, 0]),
    ],
)
def test_how_many_of_each_class(amount, expected):
    part = part_of(a=100, b=14, c=3, d=2, e=1)
    drawn = draw(part, amount, 0, "test")
    assert np.bincount(part.labels[drawn], minlength=5).tolist() == expected
    assert (np.diff(drawn) > 0).all()


def test_which_depends_on_seed_and_names_alone():
    part = part_of(a=30, b=10)
    names = set(part.members[draw(part, 0.3, 0, "test")])
    turned = Part(part.members[::-1].copy(), part.labels[::-1].copy())
    assert set(turned.members[draw(turned, 0.3, 0, "test")]) == names
    assert set(part.members[draw(part, 0.3, 1, "test")]) != names
    assert set(part.members[draw(part, 0.3, 0, "validation")]) != names
    # Independently of this package: the names of class a whose SHA-256 come first.
    order = sorted(part.members[:30], key=lambda name: hashlib.sha256(f"test\0{0}\0{name}".encode()).hexdigest())
    assert set(order[:9]) == {name for name in names if name.startswith("a/")}
    more = part_of(a=31, b=10)  # a new image moves one of the others at most
    kept = {name for name in more.members[draw(more, 0.3, 0, "test")] if name.startswith("a/")}
    assert len(kept & set(order[:9])) >= 8


def loaded(**changes):
    data = schema.base().data
    data.update(changes)
    return sources.load(data), data


def test_validation_from_digits_keeps_images_with_their_labels():
    before, _ = loaded(image_size=8, imbalance_factor=20.0)
    after, data = loaded(image_size=8, imbalance_factor=20.0, validation=0.25)
    assert evaluated_part(data) == "val" and list(after.split.parts) == ["train", "val", "test"]
    members = [after.split.parts[name].members.tolist() for name in ("train", "val")]
    assert sorted(members[0] + members[1]) == sorted(before.split.parts["train"].members.tolist())
    place = {member: i for i, member in enumerate(before.split.parts["train"].members.tolist())}
    for name in ("train", "val"):
        positions = [place[member] for member in after.split.parts[name].members.tolist()]
        np.testing.assert_array_equal(after.images[name], before.images["train"][positions])
        np.testing.assert_array_equal(after.split.parts[name].labels, before.split.parts["train"].labels[positions])
    np.testing.assert_array_equal(after.images["test"], before.images["test"])
    assert after.split.class_counts.sum() == len(members[0]) < before.split.class_counts.sum()
    assert after.split.hash != before.split.hash and after.split.name != before.split.name
    assert loaded(image_size=8, imbalance_factor=20.0, validation=0.25, subset_seed=1)[0].split.hash != after.split.hash


def touch(root, **classes):
    for name, count in classes.items():
        folder = root.joinpath(*name.split("_"))
        folder.mkdir(parents=True)
        for i in range(count):
            (folder / f"{i}.jpg").write_text(f"{name} {i}")


def folder(root, **changes):
    return loaded(source="folder", root=str(root), profile="natural", **changes)[0]


def test_class_folders_alone_are_parted(tmp_path):
    touch(tmp_path / "one", cat=10, dog=2, eel=1)
    source = folder(tmp_path / "one")
    assert source.split.class_names == ("cat", "dog", "eel") and source.drawn
    assert source.split.class_counts.tolist() == [8, 1, 1]
    assert np.bincount(source.split.parts["test"].labels, minlength=3).tolist() == [2, 1, 0]
    notes = " ".join(source.report.lines())
    assert "20 % of each class held out for testing" in notes and "1 classes have no image in part test" in notes
    touch(tmp_path / "two", eel=1, dog=2, cat=10)
    assert folder(tmp_path / "two").split.hash == source.split.hash  # wherever it lies
    assert folder(tmp_path / "two", subset_seed=1).split.hash != source.split.hash
    both = folder(tmp_path / "one", validation=3)
    assert both.split.class_counts.tolist() == [5, 1, 1]
    for part, one in both.split.parts.items():  # each index leads to its own file, whichever part it was drawn from
        for i, member in enumerate(one.members):
            assert both.read(part, [i]) == [(tmp_path / "one" / member).read_bytes()]


def test_validation_of_a_folder_with_parts(tmp_path):
    touch(tmp_path, train_a=10, train_b=4, test_a=1, test_b=1)
    source = folder(tmp_path, validation=0.2)
    assert source.split.class_counts.tolist() == [8, 3] and len(source.split.parts["val"]) == 3
    assert not folder(tmp_path).drawn
    touch(tmp_path, val_a=1)
    with pytest.raises(UserError, match=r"validation=0\.2: .* has a part val already"):
        folder(tmp_path, validation=0.2)


def test_validation_instead_of_a_test_part(tmp_path):
    touch(tmp_path, train_a=10, train_b=4)
    assert "test" not in folder(tmp_path, validation=0.2).split.parts
    with pytest.raises(UserError, match=r"has train; expected one of its parts, or config\.data\.validation=0\.1"):
        folder(tmp_path)


def test_a_part_without_images_is_refused_before_training(tmp_path):
    touch(tmp_path, train_a=2, train_b=2)
    (tmp_path / "test" / "a").mkdir(parents=True)
    (tmp_path / "test" / "a" / "0.txt").write_text("no image")
    with pytest.raises(UserError, match=r"part test is empty .*expected images to evaluate on"):
        folder(tmp_path)
    touch(tmp_path / "single", train_a=1, train_b=1)
    with pytest.raises(UserError, match=r"part val is empty .every class has a single training image"):
        folder(tmp_path / "single", validation=0.5)


def test_a_profile_says_how_many_images_it_leaves_out(tmp_path):
    touch(tmp_path, train_a=6, train_b=1, test_a=1, test_b=1)
    source, _ = loaded(source="folder", root=str(tmp_path))
    assert source.split.class_counts.tolist() == [1, 1]
    assert "2 of 7 training images stay (config.data.profile='natural' keeps all)" in " ".join(source.report.lines())
    assert not folder(tmp_path).report.lines()


@pytest.mark.parametrize("names", [("training", "valid", "testing"), ("Train", "validation", "Test")])
def test_parts_may_have_the_other_names_that_people_give_them(tmp_path, names):
    train, val, test = names
    touch(tmp_path, **{f"{train}_a": 2, f"{train}_b": 2, f"{val}_a": 1, f"{val}_b": 1, f"{test}_a": 1, f"{test}_b": 1})
    source = folder(tmp_path)
    assert {name: len(part) for name, part in source.split.parts.items()} == {"train": 4, "val": 2, "test": 2}
    assert source.split.class_names == ("a", "b") and not source.drawn
    assert source.split.parts["val"].members.tolist() == [f"{val}/a/0.jpg", f"{val}/b/0.jpg"]


def test_two_folders_for_one_part_are_refused_and_other_folders_are_named(tmp_path):
    touch(tmp_path, train_a=2, train_b=2, test_a=1, test_b=1, unlabelled=3)
    assert f"folders of {tmp_path} that are no parts are left out: unlabelled" in folder(tmp_path).report.notes
    touch(tmp_path, testing_a=1)
    with pytest.raises(UserError, match=r"holds test and testing: expected one folder for the part test"):
        folder(tmp_path)


def test_training_and_validation_images_alone(tmp_path):
    """The hint names what then works; `validation` would be refused, as there is a part val."""
    touch(tmp_path, train_a=2, train_b=2, valid_a=1, valid_b=1)
    with pytest.raises(UserError, match=r"has train, val; expected config\.data\.test_part='val'$"):
        folder(tmp_path)
    assert len(folder(tmp_path, test_part="val").split.parts["val"]) == 2


def test_folders_inside_a_class_and_twins_in_unicode_are_remarked_on(tmp_path):
    touch(tmp_path, train_Plantae_1=1, train_Plantae_2=1, train_Aves_3=1, test_Plantae_1=1, test_Aves_3=1)
    source = folder(tmp_path)
    assert source.split.class_names == ("Aves", "Plantae")
    said = "each class folder is one class with all below it; 1 hold folders, such as Plantae (1, 2)"
    assert source.report.notes == [said]
    twins = {"train_caf\u00e9": 1, "train_cafe\u0301": 1, "test_caf\u00e9": 1, "test_cafe\u0301": 1}
    touch(tmp_path / "twins", **twins)
    [note] = folder(tmp_path / "twins").report.notes
    assert note == "classes that differ only in blanks or in their Unicode form: 'cafe\\u0301' and 'caf\\xe9'"
    touch(tmp_path / "moved", **{"train_caf\u00e9": 1, "train_b": 1, "test_cafe\u0301": 1, "test_b": 1})
    with pytest.raises(UserError, match=r"has no counterpart .* it is there in another Unicode form: rename one"):
        folder(tmp_path / "moved")


def test_a_class_may_be_called_train(tmp_path):
    touch(tmp_path, train=5, ship=5)
    assert folder(tmp_path).split.class_names == ("ship", "train")


@pytest.mark.parametrize("amount", [-0.1, 1.5])
def test_impossible_amounts(amount):
    config = schema.base()
    config.data.validation = amount
    with pytest.raises(UserError, match=rf"config\.data\.validation={amount}: expected 0, a share below 1, or a whole"):
        schema.validate(config)


# --- a table --------------------------------------------------------------------------------------------------------


def table(tmp_path, text, name="t.csv", **changes):
    for file in ("a/1.jpg", "a/2.jpg", "a/3.jpg", "b/4.jpg", "b/5.jpg"):
        (tmp_path / file).parent.mkdir(exist_ok=True)
        (tmp_path / file).write_text(file)
    (tmp_path / name).write_text(text)
    return loaded(source="table", table=str(tmp_path / name), profile="natural", **changes)[0]


CSV = "path,label,part\na/1.jpg,cat,train\na/2.jpg,cat,test\nb/4.jpg,dog,train\nb/5.jpg,dog,val\na/3.jpg,cat,train\n"


def test_table_with_parts(tmp_path):
    source = table(tmp_path, CSV)
    assert source.split.class_names == ("cat", "dog") and not source.drawn
    assert source.split.parts["train"].members.tolist() == ["a/1.jpg", "b/4.jpg", "a/3.jpg"]
    assert source.split.parts["train"].labels.tolist() == [0, 1, 0]
    assert source.read("val", [0]) == [b"b/5.jpg"]
    rows = [json.dumps(row) for row in csv.DictReader(CSV.splitlines())]
    assert table(tmp_path, "\n".join(rows), "t.jsonl").split.hash == source.split.hash


def test_table_without_parts_is_parted(tmp_path):
    bare = "label,path,extra\n10,a/1.jpg,x\n10,a/2.jpg,x\n10,a/3.jpg,x\n9,b/4.jpg,x\n9,b/5.jpg,x\n"
    source = table(tmp_path, bare)
    assert source.split.class_names == ("9", "10")  # by value
    assert source.split.class_counts.tolist() == [1, 2] and source.drawn


@pytest.mark.parametrize(
    ("text", "line"),
    [
        ("file,class\na/1.jpg,cat\n", r"t\.csv: no column 'path'; expected path,label"),
        (CSV + "b/9.jpg,dog,train\n", r"t\.csv:7: 'b/9\.jpg' is not under"),
        (CSV + "a/1.jpg,dog,train\n", r"t\.csv:7: 'a/1\.jpg' is listed already in line 2"),
        (CSV + "./a//1.jpg,dog,train\n", r"t\.csv:7: 'a/1\.jpg' is listed already in line 2"),
        (CSV + "b/6.jpg,,train\n", r"t\.csv:7: 'b/6\.jpg' has no label"),
        (CSV + "b/6.jpg,dog,holdout\n", r"t\.csv:7: part 'holdout' .* expected train, val, test"),
        (CSV + "b/6.jpg,dog,\n", r"t\.csv:7: no part, but other lines have one"),
        (CSV + "../x.jpg,dog,train\n", r"t\.csv:7: '\.\./x\.jpg' leaves"),
        (CSV + "b/6.jpg,emu,test\n", r"t\.csv:7: 'b/6\.jpg' is not under"),
        (CSV.replace("dog,train", "dog,test"), r"1 classes have no training image: 1 \(dog\)"),
        ('{"path": "a/1.jpg", "label": "cat"}\n{"path": \n', r"t\.csv:2: not JSON"),
        ('{"path": "a/1.jpg", "label": "\\ud83d"}\n', r"t\.csv:1: '\\ud83d' is no text that a file could"),
        ("path,label\n", r"no usable line"),
        (CSV + 'b/6.jpg,"dog,train\nb/7.jpg,dog,train\n', r"t\.csv:\d+: not CSV \(unexpected end of data\)"),
    ],
)
def test_impossible_tables(tmp_path, text, line):
    with pytest.raises(UserError, match=line):
        table(tmp_path, text)


@pytest.mark.parametrize("column", ["split", "set", "subset", "Part"])
def test_the_column_of_the_parts_may_have_another_name(tmp_path, column):
    words = CSV.replace("part", column, 1).replace(",train", ",training").replace(",val", ",Validation")
    assert table(tmp_path, words).split.hash == table(tmp_path, CSV).split.hash
    rows = [json.dumps(row) for row in csv.DictReader(words.splitlines())]
    assert table(tmp_path, "\n".join(rows), "t.jsonl").split.hash == table(tmp_path, CSV).split.hash


def test_a_column_that_might_name_parts_is_never_passed_over(tmp_path):
    with pytest.raises(UserError, match=r"t\.csv:2: part 'a' of .*expected train, val, test in a column part, split"):
        table(tmp_path, "path,label,set\na/1.jpg,cat,A\na/2.jpg,cat,B\n")
    with pytest.raises(UserError, match=r"t\.csv:2: columns split and set; expected one that names the parts, `part`"):
        table(tmp_path, "path,label,split,set\na/1.jpg,cat,train,1\n")
    both = CSV.replace("part\n", "part,set\n", 1).replace("train\n", "train,7\n")
    assert table(tmp_path, both).split.hash == table(tmp_path, CSV).split.hash  # `part` counts


def test_json_lines_keep_line_separators_of_unicode(tmp_path):
    (tmp_path / "a").mkdir()
    (tmp_path / "a" / "x\u2028y.jpg").touch()
    line = '{"path": "a/x\u2028y.jpg", "label": "cat", "part": "train"}\n'
    found = table(
        tmp_path,
        line
        + '{"path": "b/4.jpg", "label": "dog", "part": "train"}\n'
        + ('{"path": "b/5.jpg", "label": "dog", "part": "test"}\n'),
        "t.jsonl",
    )
    assert found.split.parts["train"].members.tolist() == ["a/x\u2028y.jpg", "b/4.jpg"]


def test_labels_in_another_encoding_are_worth_a_remark(tmp_path):
    (tmp_path / "t.csv").write_bytes(CSV.replace("cat", "käse").encode("latin-1"))
    data = {"source": "table", "table": str(tmp_path / "t.csv"), "profile": "natural"}
    table(tmp_path, CSV, "other.csv")  # writes the images
    said = r"t.csv: 1 labels are not in UTF-8, such as 'k\udce4se'; is the table in another encoding?"
    assert any(note.endswith(said) for note in loaded(**data)[0].report.notes)


def test_a_column_without_a_name_and_values_too_many(tmp_path):
    """As pandas writes its index; and a line with one value more than there are columns."""
    numbered = "".join(f"{'' if i == 0 else i},{line}\n" for i, line in enumerate(CSV.splitlines()))
    assert table(tmp_path, numbered).split.hash == table(tmp_path, CSV).split.hash
    assert table(tmp_path, numbered.replace("dog,val", "dog,val,x")).split.hash == table(tmp_path, CSV).split.hash


def test_bad_lines_of_a_table_may_be_skipped(tmp_path):
    source = table(tmp_path, CSV + "b/9.jpg,dog,train\n", bad_line="skip", bad_image_limit=0.2)
    assert len(source.split.parts["train"]) == 3 and "b/9.jpg" in source.report.lines()[-1]


# --- in a run -------------------------------------------------------------------------------------------------------


def test_a_run_lists_its_split_and_never_looks_at_test(tmp_path, monkeypatch):
    monkeypatch.setattr(preemption, "listen", lambda: None)
    draws = np.random.default_rng(0)
    for name, count in (("cat", 12), ("dog", 6), ("eel", 3)):
        (tmp_path / "photos" / name).mkdir(parents=True)
        for i in range(count):
            Image.fromarray(draws.integers(0, 256, (24, 24, 3), np.uint8)).save(tmp_path / "photos" / name / f"{i}.png")
    flags = [
        f"--config=configs/folder_lt.py:root={tmp_path / 'photos'},validation=0.25,size=16,batch=8,backbone=resnet20",
        "--config.model.width=4",
        "--config.model.depths=(1,)",
        "--config.run=('representation',)",
        "--config.stages.representation.epochs=1",
        "--config.log=quiet",
    ]
    assert main.main([*flags, f"--workdir={tmp_path / 'run'}"]) == 0
    rows = list(csv.DictReader((tmp_path / "run" / "split.csv").open()))
    counted = {part: sum(row["part"] == part for row in rows) for part in ("train", "val", "test")}
    results = json.loads((tmp_path / "run" / "results.json").read_text())
    assert results["split"]["sizes"] == counted == {"train": 13, "val": 4, "test": 4}
    assert results["part"] == "val" and results["stages"][-1]["examples"] == 4
    assert "4 images of part `val`" in (tmp_path / "run" / "card.md").read_text()
    # The list is a source itself, of the same parts.
    listed = str(tmp_path / "run" / "split.csv")
    again, _ = loaded(source="table", table=listed, root=str(tmp_path / "photos"), profile="natural")
    assert {name: set(part.members) for name, part in again.split.parts.items()} == {
        part: {row["path"] for row in rows if row["part"] == part} for part in counted
    }
    write_csv(tmp_path / "again.csv", again.split)
    assert sorted((tmp_path / "again.csv").read_text().splitlines()) == sorted(
        (tmp_path / "run" / "split.csv").read_text().splitlines()
    )
