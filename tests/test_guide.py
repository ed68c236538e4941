"""The pages that show how to use the package run from top to bottom: Python blocks in one namespace, commands through
their mains.
"""

import io
import re
import runpy
import shlex

import numpy as np
import pytest
from PIL import Image

from shike_jax.commands.program import main
from shike_jax.config.loading import parse_config
from shike_jax.data import sources
from tests import events
from tests.conftest import ROOT

pytestmark = pytest.mark.usefixtures("quickly_compiled")

# Shorter than the guide's own training; the default configuration trains for longer.
SHORT = [
    "--config.stages.representation.epochs=6",
    "--config.stages.classifier.epochs=3",
    "--config.train.eval_every_epochs=0",
]
BLOCK = re.compile(r"^```(python|bash)\n(.*?)^```$", re.MULTILINE | re.DOTALL)


@pytest.fixture(scope="module")
def tour(tmp_path_factory):
    """What the Python blocks of docs/guide.md leave, and the folder that it ran in."""
    return run_page("guide.md", tmp_path_factory.mktemp("guide"))


def run_page(page, folder):
    """Runs a page of docs/ in a folder; returns what its Python blocks left, and the folder."""
    (folder / "configs").symlink_to(ROOT / "configs")
    names = {}
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)
        for kind, text in BLOCK.findall((ROOT / "docs" / page).read_text()):
            if kind == "python":
                exec(compile(text, f"docs/{page}", "exec"), names)
            else:
                for command in text.strip().splitlines():
                    _run(command)
    return names, folder


def _run(command):
    python, flag, package, *arguments = shlex.split(command)
    assert (python, flag, package) == ("python", "-m", "shike_jax")
    assert not main(arguments + (SHORT if arguments[0] == "train" else []))


def test_training_learns_and_the_third_stage_keeps_it(tour):
    names, folder = tour
    # Chance is 10, with a standard deviation of 1.7 on 300 images.
    assert names["results"]["top1"] > 16
    assert names["polished"]["top1"] > 16
    assert [stage["name"] for stage in names["polished"]["stages"]] == ["polish"]
    assert (folder / "runs" / "digits" / "card.md").read_text().startswith("# digits_lt: a classifier of 10 classes")


def test_experts_agree_with_the_results_of_training(tour):
    names, _ = tour
    assert 100 * names["together"].mean() == pytest.approx(names["results"]["top1"], abs=0.4)
    assert 100 * names["alone"].mean(1) == pytest.approx(names["results"]["experts"], abs=0.4)


def test_features_are_those_that_the_predictions_come_from(tour):
    """Their mean over experts of the classifiers' logits gives the predictions of the section before."""
    names, _ = tour
    classifier, found = names["classifier"], names["found"]
    logits = classifier.network.apply(classifier.variables, found["fused"], classifier.heads, method="classify")
    np.testing.assert_allclose(logits, names["logits"][:, :2], rtol=1e-3, atol=1e-3)


def test_pictures_were_predicted_and_the_export_agrees(tour):
    names, folder = tour
    rows = (folder / "predictions.csv").read_text().splitlines()
    assert rows[0] == "file,class_1,probability_1,class_2,probability_2" and len(rows) == 4
    assert names["probabilities"].shape == (7, 10)
    assert names["probabilities"].sum(1) == pytest.approx([1] * 7, abs=1e-5)


def test_configuration_of_the_second_section(tour):
    names, _ = tour
    assert names["config"].run == ("rare",)
    assert names["rare"]["config"]["stages"]["rare"]["loss"]["poly"] == 0.5
    assert names["rare"]["worst"] == min(names["rare"]["per_class"])


def test_tensorboard_gets_curves_images_and_accuracies_of_classes(tour):
    _, folder = tour
    found = events.read(folder / "runs" / "digits" / "tensorboard")
    expected = {
        "augmented",
        *(
            f"{stage}/{name}"
            for stage in ("representation", "classifier")
            for name in ("epoch_loss", "learning_rate", "top1", "few", "per_class_top1")
        ),
    }
    assert expected <= events.tags(found)
    if "augmented" not in found.Tags()["tensors"]:  # tensorboardX lays the pictures side by side
        return

    # Each stage's first batch as the network saw it. Stage one mixes its pictures; every one of stage two is a digit,
    # at most two pixels from its place.
    digits = sources.load(parse_config([f"--config={ROOT}/configs/digits_lt.py"])[0].data).images["train"]
    padded = np.pad(digits[..., 0].astype(int), ((0, 0), (2, 2), (2, 2)))
    shifted = np.stack([padded[:, y : y + 16, x : x + 16] for y in range(5) for x in range(5)])  # [25, N, 16, 16]
    first, second = (event.tensor_proto.string_val[2:] for event in found.Tensors("augmented"))
    places = set()
    for encoded in second:
        picture = np.asarray(Image.open(io.BytesIO(encoded)).convert("L")).astype(int)
        shift, index = np.nonzero(np.abs(shifted - picture).max((2, 3)) <= 1)
        assert len(index)
        places.add(int(shift[0]))
    assert len(first) == len(second) == 16 and len(places) > 5


def test_the_page_on_the_library(tmp_path, capsys):
    names, _ = run_page("library.md", tmp_path)
    assert names["scores"]["per_class"] == names["results"]["per_class"]
    assert "images uint8 (5, 8, 16, 3): expected uint8 or normalised float32 (N, 16, 16, 3)" in capsys.readouterr().out
    assert names["logits"].shape == (3, 5, 10) and names["features"].shape == (3, 5, 16)
    np.testing.assert_array_equal(
        names["sj"].load(tmp_path / "digits_classifier")(names["data"].test.images[:5]), names["logits"]
    )
    gradients = names["gradients"]["heads"]
    assert all(np.abs(one["kernel"]).max() > 0 for one in gradients["representation"].values())
    for name in names["sj"].__all__:
        assert f"`sj.{name}" in (ROOT / "docs" / "library.md").read_text()


def test_the_example_trains_shike_with_public_names_alone():
    text = (ROOT / "docs" / "example.py").read_text()
    assert len(text.splitlines()) <= 150
    assert re.findall(r"^(?:import|from) .*", text, re.MULTILINE) == [
        "import jax",
        "import optax",
        "import shike_jax as sj",
    ]
    found = runpy.run_path(str(ROOT / "docs" / "example.py"))["main"](epochs=12, classifier_epochs=6)
    # Chance is 10, with a standard deviation of 1.7; the balanced softmax lifts the classes with few images.
    assert found["representation"]["top1"] > 16
    assert found["classifier"]["few"] > found["representation"]["few"]
