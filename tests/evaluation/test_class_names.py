"""Classes are matched by name: by evaluation, by warm starts and on the way through split.csv."""

import csv
import dataclasses
import json
import os

import jax
import numpy as np
import pytest
from PIL import Image

from shike_jax import models
from shike_jax.commands import evaluate
from shike_jax.common import class_names
from shike_jax.config import base, stage, to_plain
from shike_jax.config.loading import checkpoint_config
from shike_jax.convert.warm import warm_start
from shike_jax.data import sources
from shike_jax.data.held_out import write_csv
from shike_jax.errors import UserError
from shike_jax.evaluation.checkpoint import evaluate as score_part
from shike_jax.evaluation.classifier import load
from shike_jax.storage.weights import load_weights
from tests import tiny

pytestmark = pytest.mark.usefixtures("quickly_compiled")


def test_matching_names():
    found = class_names.match(("9", "10", "cafe\u0301"), ("10", "caf\u00e9", "9"))  # é in two characters and in one
    assert found.places == [1, 2, 0]
    found = class_names.match(("a", "b", "x"), ("a", "b", "c", "d"))
    assert (found.places, found.missing, found.extra) == ([], ["c", "d"], ["x"])
    assert found.differences() == "2 missing: 'c', 'd'; 1 extra: 'x'"
    # Names that only differ in their form stay two classes.
    assert class_names.match(("e\u0301", "\u00e9"), ("\u00e9", "e\u0301")).places == [1, 0]


def photographs(root, counts, parts=("train", "test")):
    """Each class in a colour of its own, named as in `counts`."""
    draws = np.random.default_rng(0)
    for part in parts:
        for name, (train, test) in counts.items():
            folder = root / part / name
            folder.mkdir(parents=True)
            for i in range(test if part == "test" else train):
                colour = np.array([hash_of(name) % 200, hash_of(name) // 3 % 200, 90])
                pixels = np.clip(colour + draws.normal(0, 40, (20, 20, 3)), 0, 255).astype(np.uint8)
                Image.fromarray(pixels).save(folder / f"{i}.png")
    return root


def hash_of(name):
    return sum(map(ord, name)) * 37


@pytest.fixture(scope="module")
def scored(tmp_path_factory):
    """A checkpoint of ant, bee, cat that trained on 5, 4 and 3 images, the photographs, and its own evaluation."""
    folder = tmp_path_factory.mktemp("classes")
    root = photographs(folder / "photos", {"ant": (5, 3), "bee": (4, 2), "cat": (3, 4)})
    config = base()
    config.run, config.stages.representation = ("representation",), stage()
    config.data.update({"source": "folder", "root": str(root), "profile": "natural"})
    config.data.update({"image_size": tiny.SIZE, "resize": tiny.RESIZE})
    split = sources.load(config.data).split
    meta = {"config": to_plain(config), "split_hash": split.hash, "class_counts": split.class_counts.tolist()}
    checkpoint = tiny.write_checkpoint(folder / "weights", **meta)
    return checkpoint, root, score(load(str(checkpoint)))[0]


def score(classifier, **changes):
    config = checkpoint_config(classifier.meta)
    config.data.update(changes)
    source = sources.load(config.data)
    return score_part(classifier, config, source, "test", ("classifier",), True)


def test_reordered_classes_give_the_same_scores(scored, tmp_path):
    """The same images in a table that numbers its classes otherwise: only the order of the columns would change."""
    checkpoint, root, own = scored
    named = {"ant": "10", "bee": "9", "cat": "8"}  # the table sorts by value: 8, 9, 10
    rows = [f"{p.relative_to(root)},{named[p.parent.name]},{p.parts[-3]}" for p in sorted(root.glob("*/*/*.png"))]
    (tmp_path / "t.csv").write_text("\n".join(["path,label,part", *rows]) + "\n")
    classifier = load(str(checkpoint))
    numbered = dataclasses.replace(classifier, meta={**classifier.meta, "class_names": ["10", "9", "8"]})
    summary, found = score(numbered, source="table", table=str(tmp_path / "t.csv"), root=str(root))
    assert summary["heads"] == own["heads"]
    assert summary["data"]["class_names"] == ["10", "9", "8"] and summary["data"]["class_counts"] == [5, 4, 3]
    assert np.bincount(found[""]["label"]).tolist() == [3, 2, 4]


def test_other_classes_are_refused(scored, tmp_path):
    checkpoint, _, _ = scored
    other = photographs(tmp_path / "other", {"ant": (2, 1), "bee": (2, 1), "dog": (2, 1)})
    with pytest.raises(UserError, match=r"other classes than the checkpoint.*1 missing: 'cat'; 1 extra: 'dog'"):
        score(load(str(checkpoint)), root=str(other))


def test_without_names_classes_go_by_number_and_it_is_said(scored, capsys):
    checkpoint, _, own = scored
    classifier = load(str(checkpoint))
    nameless = dataclasses.replace(classifier, meta={**classifier.meta, "class_names": None})
    summary, _ = score(nameless)
    assert summary["heads"] == own["heads"]
    assert "matched by number" in evaluate.describe(summary) and "matched by number" not in evaluate.describe(own)


def test_divisions_go_by_the_images_that_trained(scored, tmp_path):
    """Other data with other training counts: the checkpoint's 500, 50, 5 decide on many, medium and few."""
    checkpoint, _, _ = scored
    root = photographs(tmp_path / "more", {"ant": (1, 1), "bee": (2, 1), "cat": (3, 1)})
    classifier = load(str(checkpoint))
    trained = dataclasses.replace(classifier, meta={**classifier.meta, "class_counts": [500, 50, 5]})
    data = score(trained, root=str(root))[0]["data"]
    assert data["divisions"] == {"many": [0], "medium": [1], "few": [2]} and data["class_counts"] == [500, 50, 5]
    older = dataclasses.replace(classifier, meta={k: v for k, v in classifier.meta.items() if k != "class_counts"})
    assert score(older, root=str(root))[0]["data"]["class_counts"] == [1, 2, 3]


def test_a_folder_of_class_folders_is_scored_whole(scored, tmp_path, capsys):
    checkpoint, _, _ = scored
    photographs(tmp_path, {"ant": (5, 5), "bee": (6, 6), "cat": (7, 7)}, parts=("test",))
    summary = command(checkpoint, f"--config.data.root={tmp_path / 'test'}", tmp_path)
    assert summary["data"]["examples"] == 18 and summary["heads"]["classifier"]["examples_per_class"] == [5, 6, 7]
    assert summary["data"]["class_counts"] == [5, 4, 3]  # of the checkpoint
    assert "names no parts: all its 18 images are scored" in capsys.readouterr().out
    # Asked for, the part is what the configuration holds out: a fifth of each class, at least one.
    assert (
        command(checkpoint, f"--config.data.root={tmp_path / 'test'}", tmp_path, "--part=test")["data"]["examples"] == 3
    )


def command(checkpoint, data, folder, *more):
    out = folder / "scores.json"
    evaluate.main([f"--checkpoint={checkpoint}", data, f"--output={out}", *more])
    return json.loads(out.read_text())


def test_a_run_keeps_to_what_it_held_out(tmp_path):
    """A run that drew its test images is never scored on those that trained, wherever its folder lies now."""
    for place in ("one", "two"):
        photographs(tmp_path / place, {"ant": (5, 5), "bee": (6, 6), "cat": (7, 7)}, parts=("test",))
    config = base()
    config.run, config.stages.representation = ("representation",), stage()
    config.data.update({"source": "folder", "root": str(tmp_path / "one" / "test"), "profile": "natural"})
    config.data.update({"image_size": tiny.SIZE, "resize": tiny.RESIZE})
    meta = {"config": to_plain(config), "split_hash": sources.load(config.data).split.hash}
    checkpoint = tiny.write_checkpoint(tmp_path / "weights", **meta)
    for place in ("one", "two"):
        assert command(checkpoint, f"--config.data.root={tmp_path / place / 'test'}", tmp_path)["data"]["examples"] == 3


def test_warm_starts_match_classifiers_by_name(tmp_path):
    variables, _ = load_weights(tiny.write_checkpoint(tmp_path / "weights"))
    heads = variables["params"]["heads"]
    zeros = jax.tree.map(np.zeros_like, heads)
    fresh = {**variables, "params": {**variables["params"], "heads": zeros}}
    source = np.asarray(heads["classifier"]["expert0"]["kernel"])

    def start(names, wanted):
        merged, report = warm_start(variables, fresh, names, wanted)
        return merged["params"]["heads"]["classifier"]["expert0"]["kernel"], report.summary()

    kernel, said = start(("ant", "bee", "cat"), ("cat", "ant", "bee"))
    np.testing.assert_array_equal(kernel, source[:, [2, 0, 1]])
    assert "classifiers: taken over by the names of their classes" in said
    kernel, said = start(("ant", "bee", "cat"), ("ant", "bee", "dog"))
    assert not np.any(kernel)
    assert "classifiers: fresh, as the source has other classes (1 missing: 'dog'; 1 extra: 'cat')" in said
    kernel, said = start(None, ("ant", "bee", "dog"))
    np.testing.assert_array_equal(kernel, source)
    assert "classifiers: taken over by the numbers of their classes: the source does not name them" in said


def test_a_network_of_fewer_experts_starts_from_one_with_more():
    """The arrays of the surplus expert are no classifiers, and have no classes to be put in order."""

    def variables_of(depths, fill):
        model = {**to_plain(base().model), "backbone": "resnet20", "width": 4, "depths": depths}
        network = models.build_model(model, 20)
        shapes = jax.eval_shape(network.init, jax.random.key(0), np.zeros((1, 32, 32, 3), np.float32))
        return jax.tree.map(fill, dict(shapes))

    classes = [f"class {c:02}" for c in range(20)]
    draw = np.random.default_rng(0)
    source = variables_of((1, 2, 1), lambda leaf: draw.standard_normal(leaf.shape))
    fresh = variables_of((1, 2), lambda leaf: np.zeros(leaf.shape))
    merged, report = warm_start(source, fresh, classes, classes[::-1])
    found, heads = (one["params"]["heads"]["classifier"]["expert1"]["kernel"] for one in (merged, source))
    np.testing.assert_array_equal(found, heads[:, ::-1])
    assert not report.fresh and any("expert2" in path for path in report.left_out)


NAMES = (" before", "after ", "new\rline", os.fsdecode(b"caf\xe9"), "a,b", 'say "x"', "line\u2028x", "nel\x85", "plain")


def test_names_survive_split_csv(tmp_path):
    """Names of folders with blanks at their ends, a carriage return, Latin-1: the table has the same classes."""
    for name in NAMES:
        (tmp_path / "photos" / name).mkdir(parents=True)
        for i in range(3):
            (tmp_path / "photos" / name / f"{i}.png").write_text(f"{name!a}{i}")
    data = base().data
    data.update({"source": "folder", "root": str(tmp_path / "photos"), "profile": "natural"})
    first = sources.load(data)
    write_csv(tmp_path / "split.csv", first.split)
    data.update({"source": "table", "table": str(tmp_path / "split.csv")})
    second = sources.load(data)
    assert second.split.class_names == first.split.class_names == tuple(sorted(NAMES))
    for part in ("train", "test"):
        one, two = first.split.parts[part], second.split.parts[part]
        assert dict(zip(one.members, one.labels, strict=True)) == dict(zip(two.members, two.labels, strict=True))
        assert second.read(part, [0]) == [(tmp_path / "photos" / two.members[0]).read_bytes()]


def test_an_ordinary_split_csv_is_not_quoted(tmp_path):
    (tmp_path / "photos").mkdir()
    for name in "ab":
        (tmp_path / "photos" / name).mkdir()
        for i in range(2):
            (tmp_path / "photos" / name / f"{i}.png").touch()
    data = base().data
    data.update({"source": "folder", "root": str(tmp_path / "photos"), "profile": "natural"})
    write_csv(tmp_path / "split.csv", sources.load(data).split)
    assert (tmp_path / "split.csv").read_text().startswith("path,label,part\na/")
    (tmp_path / "by_hand.csv").write_text("path , label\na/0.png, a \na/1.png ,a\nb/0.png,b\nb/1.png,b\n")
    data.update({"source": "table", "table": str(tmp_path / "by_hand.csv")})
    assert sources.load(data).split.class_names == ("a", "b")
    assert len(list(csv.reader((tmp_path / "split.csv").open()))) == 5
