"""`import shike_jax as sj`: the names that stay, what they answer, and what they say to wrong input."""

import ast
import asyncio
import doctest
import importlib
import json
import logging
import os
import signal
import subprocess
import sys
import warnings

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from PIL import Image

import shike_jax as sj
from shike_jax import models
from shike_jax.config.fields import FIELDS
from tests.conftest import ROOT

pytestmark = pytest.mark.usefixtures("quickly_compiled")

# A change to this list is a change of what users' programs rely on: it belongs into CHANGELOG.md.
NAMES = ["UserError", "create_model", "evaluate", "list_models", "load", "load_config", "load_data", "losses", "train"]
DOCUMENTED = ("methods.losses", "models", "config.loading", "data.datasets", "evaluation.functions")
PIXELS = np.random.default_rng(0).integers(0, 256, (5, 16, 16, 3)).astype(np.uint8)


def examples(module):
    """Runs the examples in a module's docstrings."""
    found = importlib.import_module(f"shike_jax.{module}")
    names = {name: getattr(sj, name) for name in ("load", "load_config", "load_data", "train")}
    assert doctest.testmod(found, globs={**vars(found), **names}).failed == 0
    return found


def settings():
    """What a library must leave as it was."""
    return {
        "jax": dict(jax.config.values),
        "signals": [signal.getsignal(number) for number in (signal.SIGTERM, signal.SIGINT)],
        "warnings": list(warnings.filters),
        "logging": (logging.getLogger().level, list(logging.getLogger().handlers)),
        "hooks": (sys.excepthook, sys.unraisablehook),
        "environment": dict(os.environ),
    }


@pytest.fixture(scope="module")
def place(tmp_path_factory):
    """A folder in which the examples of `train` have made `run`, while an event loop runs as in a notebook."""
    folder = tmp_path_factory.mktemp("library")

    async def cell():
        before = settings()
        examples("training.loop")
        return before, settings()

    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)
        before, after = asyncio.run(cell())
        (folder / "changed").write_text(" ".join(name for name in before if before[name] != after[name]))
        yield folder


@pytest.fixture(scope="module")
def digits():
    return sj.load_data("digits_lt", imbalance_factor=20)


# --- the names ------------------------------------------------------------------------------------------------------


def test_the_names_are_complete_typed_and_described():
    assert sj.__all__ == NAMES and {*NAMES, "__version__"} <= set(dir(sj))
    stub = ast.parse((ROOT / "shike_jax" / "__init__.pyi").read_text())
    assert sorted(alias.asname for node in stub.body for alias in node.names) == sorted([*NAMES, "__version__"])
    assert all(getattr(sj, name).__doc__ for name in NAMES)
    # A module of the same name would take the name over when it is imported.
    assert not set(NAMES) & {path.stem for path in (ROOT / "shike_jax").iterdir()}
    with pytest.raises(AttributeError, match=r"no attribute 'evaluation_of'; it has .*evaluate"):
        _ = sj.evaluation_of


def test_importing_takes_no_jax():
    code = "import sys, shike_jax as sj; sj.UserError, dir(sj); print(*{'jax', 'numpy', 'flax'} & set(sys.modules))"
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=True)
    assert done.stdout == "\n"


@pytest.mark.parametrize("module", DOCUMENTED)
def test_examples_of_the_docstrings(module):
    examples(module)


def test_every_name_has_an_example():
    documented = [getattr(sj, name) for name in NAMES if name not in ("UserError", "losses")]
    documented += [getattr(sj.losses, name) for name in sj.losses.__all__]
    assert [function.__name__ for function in documented if ">>>" not in function.__doc__] == []


def test_defaults_of_networks_are_those_of_configurations():
    declared = {path.removeprefix("model."): field for path, field in FIELDS.items() if path.startswith("model.")}
    named = {"backbone", "depths"}  # `create_model` has arguments for them
    assert {name: field.default for name, field in declared.items() if name not in named} == models.DEFAULTS
    assert {name: field.choices for name, field in declared.items() if field.choices} == models.CHOICES
    assert sj.create_model("resnet32", 5) == models.build_model(sj.load_config("cifar_lt").model, 5)


# --- data -----------------------------------------------------------------------------------------------------------


def test_class_counts_follow_the_formula(digits):
    by_hand = [int(144 * 20 ** (-c / 9)) for c in range(10)]
    assert digits.class_counts.tolist() == np.bincount(digits.train.labels).tolist() == by_hand
    assert {name: list(classes) for name, classes in digits.divisions.items()} == {
        "many": [0, 1],
        "medium": [2, 3, 4, 5],
        "few": [6, 7, 8, 9],
    }
    assert repr(digits) == "<digits_lt_if20: train 489, test 300; 10 classes of 144 to 7 training images>"
    assert repr(digits.test) == "<part 'test': 300 images of 10 classes>"


def test_batches_hold_each_image_once(digits):
    normalised = ((digits.train.images / 255 - 0.3) / 0.35).astype(np.float32)

    def epoch(**how):
        found = [*digits.train.batches(32, **how)]
        assert [len(labels) for _, labels in found] == [32] * 15 + [9]
        assert all(x.dtype == np.float32 and y.dtype == np.int32 for x, y in found)
        return (np.concatenate(both) for both in zip(*found, strict=True))

    images, labels = epoch()
    np.testing.assert_allclose(images, normalised, atol=1e-5)
    np.testing.assert_array_equal(labels, digits.train.labels)

    orders = []
    for seed in (1, 1, 2):
        shuffled, labels = epoch(seed=seed)
        # Digits are all different: each shuffled image is nearest to one original.
        flat, known = shuffled.reshape(489, -1), normalised.reshape(489, -1)
        distance = (flat**2).sum(1)[:, None] + (known**2).sum(1) - 2 * flat @ known.T
        orders.append(distance.argmin(1))
        assert np.abs(flat - known[orders[-1]]).max() < 1e-5 and sorted(orders[-1]) == [*range(489)]
        np.testing.assert_array_equal(labels, digits.train.labels[orders[-1]])
    assert (orders[0] == orders[1]).all() and (orders[0] != orders[2]).mean() > 0.9

    augmented, labels = epoch(seed=1, augment=True)
    np.testing.assert_array_equal(labels, digits.train.labels[orders[0]])
    assert np.abs(augmented - normalised[orders[0]]).max((1, 2, 3)).astype(bool).mean() > 0.8  # moved by up to 2 pixels


def test_images_of_files_are_read_when_they_are_taken_out(tmp_path):
    for part in ("train", "test"):
        for name, colour in (("ant", (250, 0, 0)), ("bee", (0, 250, 0))):
            (tmp_path / part / name).mkdir(parents=True)
            for i in range(3):
                Image.new("RGB", (40, 30), colour).save(tmp_path / part / name / f"{i}.png")
    config = sj.load_config("folder_lt", root=str(tmp_path))
    config.data.update({"image_size": 16, "resize": 20})
    data = sj.load_data(config)
    assert data.class_names == ("ant", "bee") and data.class_counts.tolist() == [3, 3]
    images = data.test.images
    assert images.shape == (6, 16, 16, 3) and images.dtype == np.uint8 and len(images) == 6
    assert images[-1].tolist() == np.broadcast_to((0, 250, 0), (16, 16, 3)).tolist()
    assert images[1:5][:, 0, 0].tolist() == [[250, 0, 0]] * 2 + [[0, 250, 0]] * 2
    found, labels = next(data.test.batches(4))
    mean, std = np.array(config.data.mean), np.array(config.data.std)
    assert labels.tolist() == [0, 0, 0, 1]
    np.testing.assert_allclose(found[3, 0, 0], ((0, 250 / 255, 0) - mean) / std, rtol=1e-5)
    (tmp_path / "test" / "ant" / "0.png").write_bytes(b"no picture")
    with pytest.raises(sj.UserError, match=r"unreadable images left out: 1 \(test 1\)"):
        _ = sj.load_data(config).test.images[0]


# --- scores ---------------------------------------------------------------------------------------------------------


def test_scores_of_handmade_logits(digits):
    """Two experts that are right for different classes; their mean is right where the surer one is."""
    labels, seen = digits.test.labels, []

    def predict(images):
        start = sum(seen)
        mine = np.resize(labels[start : start + len(images)], len(images))
        seen.append(len(images))
        logits = np.zeros((2, len(images), 10))
        for i, label in enumerate(mine):
            logits[0, i, label if label < 5 else 0] = 2  # right for classes 0 to 4
            logits[1, i, label if label in (5, 6) else 1] = 3  # right for 1, 5 and 6
        return logits

    scores = sj.evaluate(predict, digits.test, batch_size=128)
    assert seen == [128, 128, 128] and scores["examples"] == 300  # one shape, and padding does not count
    assert scores["per_class"] == [0, 100, 0, 0, 0, 100, 100, 0, 0, 0]
    assert scores["experts"] == [50, 30]
    assert (scores["top1"], scores["many"], scores["medium"], scores["few"]) == (30, 50, 25, 25)


# --- a trained classifier -------------------------------------------------------------------------------------------


def test_training_leaves_the_callers_settings(place):
    assert (place / "changed").read_text() == ""


def test_results_are_those_of_the_work_directory(place, capsys):
    config = sj.load_config("digits_lt", width=4, epochs=1, classifier_epochs=1)
    for stage in config.stages.values():
        stage.max_steps = 2
    assert sj.train(config, place / "run") == json.loads((place / "run" / "results.json").read_text())
    assert "is finished" in capsys.readouterr().out


def test_examples_of_the_classifier(place):
    examples("evaluation.classifier")


def test_logits_features_and_probabilities(place):
    classifier = sj.load(place / "run")
    variables = jax.tree.map(np.asarray, classifier.variables)
    normalised = ((PIXELS / 255 - 0.3) / 0.35).astype(np.float32)
    expected = classifier.network.apply(variables, normalised, "classifier")
    for images in (PIXELS, normalised, jnp.asarray(PIXELS)):
        np.testing.assert_allclose(classifier(images), expected, rtol=1e-4, atol=1e-4)

    features = classifier.features(PIXELS)
    kernels = [variables["params"]["heads"]["classifier"][f"expert{m}"]["kernel"] for m in range(3)]
    cosines = [f / np.linalg.norm(f, axis=1, keepdims=True) @ k for f, k in zip(features, kernels, strict=True)]
    by_hand = 30 * np.stack([c / np.linalg.norm(k, axis=0) for c, k in zip(cosines, kernels, strict=True)])
    np.testing.assert_allclose(classifier(PIXELS), by_hand, rtol=1e-3, atol=1e-3)

    classes, probabilities = classifier.predict(PIXELS)
    exponentials = np.exp(np.float64(expected).mean(0))
    np.testing.assert_allclose(probabilities, exponentials / exponentials.sum(1, keepdims=True), rtol=1e-3)
    np.testing.assert_array_equal(classes, probabilities.argmax(1))

    many = np.resize(PIXELS, (130, 16, 16, 3))  # more than one batch, the last one padded
    np.testing.assert_allclose(classifier(many)[:, -5:], np.roll(expected, -(130 % 5), 1), rtol=1e-3, atol=1e-3)
    assert classifier(PIXELS[:0]).shape == (3, 0, 10)


def test_a_saved_classifier_is_the_same(place, tmp_path):
    classifier = sj.load(place / "run", heads="representation")
    classifier.save(str(tmp_path / "saved"))
    again = sj.load(tmp_path / "saved")
    assert again.heads == "representation" and again.class_names == classifier.class_names
    np.testing.assert_array_equal(again(PIXELS), classifier(PIXELS))
    with pytest.raises(sj.UserError, match="saved is not empty; expected a new folder"):
        classifier.save(tmp_path / "saved")


def test_a_configuration_is_that_of_its_own_file(tmp_path):
    """Another file was read before in the same process: nothing of it is left."""
    (tmp_path / "empty.py").write_text("x = 1\n")
    sj.load_config("cifar_lt")
    with pytest.raises(sj.UserError, match=r"empty\.py: no function get_config in it; expected get_config"):
        sj.load_config(str(tmp_path / "empty.py"))


# --- wrong input ----------------------------------------------------------------------------------------------------

LOGITS, LABELS = np.zeros((4, 10)), np.arange(4)
WRONG = {
    "no such network": (lambda: sj.create_model("resnet33", 10), r"name='resnet33': expected one of resnet20.*did you"),
    "no such field": (
        lambda: sj.create_model("resnet20", 10, hed="linear"),
        "unknown field 'hed'.*did you mean 'head'",
    ),
    "no such head": (lambda: sj.create_model("resnet20", 10, head="mlp"), "head='mlp', expected one of cosine, linear"),
    "no such stage": (
        lambda: sj.create_model("resnet20", 10, experts=(3,)),
        r"experts=\(3,\): expected .* from 1 to 2",
    ),
    "no experts": (lambda: sj.create_model("resnet20", 10, experts=()), r"experts=\(\), expected shared stages"),
    "groups of unequal width": (
        lambda: sj.create_model("resnext50_32x4d", 10, width=24),
        "create_model: width=24: expected a multiple of 16 for resnext50_32x4d",
    ),
    "no classes": (lambda: sj.create_model("resnet20", 0), "num_classes=0, expected a whole number of at least 1"),
    "no such configuration": (lambda: sj.load_config("cifar_tl"), "load_config: cifar_tl: .*expected.*did you mean"),
    "no name": (lambda: sj.load_config(3), "name=3: expected a path"),
    "no such argument": (lambda: sj.load_config("cifar_lt", factor=5), "'factor' is unknown; expected one of"),
    "argument of another type": (lambda: sj.load_config("cifar_lt", imbalance_factor="x"), "=x: expected float"),
    "data of a number": (lambda: sj.load_data(3), "name=3: expected a path"),
    "arguments twice": (
        lambda: sj.load_data(sj.load_config("digits_lt"), width=4),
        "width given with a configuration; expected the name of one",
    ),
    "batches of nothing": (lambda: part().batches(0), "batch_size=0, expected a whole number from 1"),
    "half a batch": (lambda: part().batches(1.5), r"batch_size=1\.5, expected a whole number"),
    "seed of a word": (lambda: part().batches(2, seed="a"), "seed='a', expected a whole number from 0 to"),
    "augmented without a seed": (lambda: part().batches(2, augment=True), "expected a seed"),
    "logits of one image": (lambda: sj.losses.focal(LOGITS[0], LABELS), r"logits \(10,\): expected \[B,C\]"),
    "other labels": (
        lambda: sj.losses.shike(LOGITS, LABELS[:3]),
        r"labels int\d+ \(3,\): expected whole numbers \(4,\)",
    ),
    "labels with fractions": (
        lambda: sj.losses.ldam(LOGITS, LABELS / 2, [1] * 10),
        r"labels float\d+ .*expected whole",
    ),
    "other class counts": (
        lambda: sj.losses.balanced_softmax(LOGITS, LABELS, [5] * 9),
        r"class_counts \(9,\): expected",
    ),
    "no such form": (
        lambda: sj.losses.shike(LOGITS, LABELS, "printed"),
        "form='printed': expected one of official, paper",
    ),
    "scores of a data set": (lambda: sj.evaluate(len, None), "None, expected a part of a data set"),
    "too few classes": (
        lambda: sj.evaluate(lambda images: np.zeros((len(images), 9)), part(), batch_size=2),
        r"shape \(2, 9\), expected \(2, 10\) or \(experts, 2, 10\)",
    ),
    "no such folder": (lambda: sj.load("absent"), "checkpoint absent: no such folder"),
    "a folder without weights": (lambda: sj.load(ROOT / "tests"), "neither a work directory with weights/ nor"),
    "loading a number": (lambda: sj.load(3), "path=3: expected a path"),
    "a configuration's name": (lambda: sj.train("digits_lt", "new"), "a str; expected a configuration, such as"),
    "a wrong field": (lambda: sj.train(changed("seed", -1), "new"), "config.seed=-1: expected a whole number"),
    "a run nowhere": (lambda: sj.train(changed("seed", 1), None), "workdir=None: expected a path"),
    "double precision": (lambda: sj.train(changed("dtype", "float64"), "new"), "'float64': expected .*jax_enable_x64"),
}


def part():
    return sj.load_data("digits_lt").test


def changed(field, value):
    config = sj.load_config("digits_lt")
    config[field] = value
    return config


@pytest.mark.parametrize("case", WRONG)
def test_wrong_input_is_one_line(case, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    call, said = WRONG[case]
    with pytest.raises(sj.UserError, match=said) as error:
        call()
    assert "\n" not in str(error.value)
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize(
    "images",
    [
        PIXELS.astype(np.int32),
        PIXELS.astype(np.float64),
        PIXELS[0],
        PIXELS[..., :1],
        np.zeros((5, 40, 40, 3), np.uint8),
        [["a"]],
    ],
    ids=["int32", "float64", "one image", "grey", "too large", "text"],
)
def test_other_images_are_refused(place, images):
    classifier = sj.load(place / "run")
    for call in (classifier, classifier.predict, classifier.features):
        with pytest.raises(sj.UserError, match=r"expected uint8 or normalised float32 \(N, 16, 16, 3\)"):
            call(images)


def test_pixels_as_floats_get_a_remark(place, capsys):
    sj.load(place / "run")(PIXELS.astype(np.float32))
    assert "floats from 0 to 255 are used as they are" in capsys.readouterr().err


# --- calls that do not fit --------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("call", "said"),
    [
        (
            lambda: sj.load("x", hed="classifier"),
            "got an unexpected keyword argument 'hed'; did you mean 'heads'",
        ),
        (lambda: sj.train(None, work_dir="x"), "did you mean 'workdir'"),
        (lambda: sj.create_model("resnet20"), "missing a required argument: 'num_classes'; expected create_model(name"),
        (lambda: sj.losses.shike([[0.0]], [0], fom="paper"), "did you mean 'form'"),
        (lambda: sj.list_models(1), "too many positional arguments"),
    ],
)
def test_wrong_arguments_are_named(call, said):
    with pytest.raises(sj.UserError) as caught:
        call()
    assert said in str(caught.value)
