"""Networks that are given away: the files, the metadata, what a damaged one says, and the hub's calls."""

import json
import shutil
import sys
import types

import numpy as np
import pytest
import yaml
from etils import epath
from safetensors.numpy import load_file

import shike_jax as sj
from shike_jax.commands.program import main
from shike_jax.common.command import run_main
from shike_jax.storage import hub_form
from shike_jax.storage.weights import load_weights
from tests.tiny import CLASSES, write_checkpoint

pytestmark = pytest.mark.usefixtures("quickly_compiled")
IMAGES = np.random.default_rng(0).integers(0, 256, (4, 16, 16, 3)).astype(np.uint8)


@pytest.fixture(scope="module")
def given(tmp_path_factory):
    """A checkpoint, and the folder that it was given away in."""
    place = tmp_path_factory.mktemp("given")
    config = {"name": "ants", "data": {"root": "/home/me/ants", "name": "ants"}}
    write_checkpoint(place / "run", scores={"top1": 61.25, "few": 30.0}, class_counts=[50, 20, 4], config=config)
    sj.load(place / "run").save(place / "saved")
    return place / "run", place / "saved"


def test_the_files_are_those_of_a_hub_and_give_the_same_logits(given):
    run, saved = given
    assert sorted(path.name for path in saved.iterdir()) == ["README.md", "config.json", "model.safetensors"]
    np.testing.assert_array_equal(sj.load(saved)(IMAGES), sj.load(run)(IMAGES))
    kernel = load_file(saved / "model.safetensors")["params.trunk.conv1.kernel"]
    np.testing.assert_array_equal(kernel, load_weights(run)[0]["params"]["trunk"]["conv1"]["kernel"])
    facts = json.loads((saved / "config.json").read_text())
    assert (facts["class_names"], facts["heads"]) == (list(CLASSES), "classifier")
    assert facts["config"]["data"]["root"] == ""  # no path of the machine that it comes from


def test_the_card_begins_with_metadata(given):
    _, head, body = (given[1] / "README.md").read_text().split("---\n", 2)
    described = yaml.safe_load(head)
    assert (described["library_name"], described["pipeline_tag"]) == ("shike_jax", "image-classification")
    [result] = described["model-index"][0]["results"]
    assert result["metrics"] == [{"type": "accuracy", "value": 0.6125}]
    assert "# ants" in body and "74 images, 50 to 4 of a class" in body and "| 61.25 | 30.00 |" in body


def test_the_card_says_on_which_images_the_accuracies_were_measured(tmp_path):
    config = {"name": "ants", "data": {"name": "ants", "validation": 0.2, "test_part": "test"}}
    write_checkpoint(tmp_path / "run", scores={"top1": 61.25}, config=config)
    sj.load(tmp_path / "run").save(tmp_path / "saved")
    _, head, body = (tmp_path / "saved" / "README.md").read_text().split("---\n", 2)
    assert yaml.safe_load(head)["model-index"][0]["results"][0]["dataset"]["split"] == "val"
    assert "Accuracy in percent on part `val`, held out of the training images." in body


def test_every_command_takes_the_folder(given, tmp_path, capsys):
    np.save(tmp_path / "images.npy", IMAGES)
    main(["predict", f"--checkpoint={given[1]}", f"--images={tmp_path / 'images.npy'}"])
    assert "images.npy" in capsys.readouterr().out
    main(["save", f"--checkpoint={given[1]}", f"--output={tmp_path / 'again'}", "--head=representation"])
    assert sj.load(tmp_path / "again").heads == "representation"


def test_scores_are_given_away_with_the_classifiers_that_have_them_only(given, tmp_path):
    """The 61.25 % of the fixture are those of the set `classifier` without mirror images."""
    for name, options in {"heads": {"heads": "representation"}, "mirror": {"mirror": True}}.items():
        sj.load(given[0], **options).save(tmp_path / name)
        card, facts = ((tmp_path / name / file).read_text() for file in ("README.md", "config.json"))
        assert "61.25" not in card + facts and "model-index" not in card
    sj.load(tmp_path / "heads", "classifier").save(tmp_path / "back")
    assert "61.25" not in (tmp_path / "back" / "README.md").read_text()


def test_mirror_images_are_given_away_too(given, tmp_path):
    sj.load(given[0], mirror=True).save(tmp_path / "mirror")
    twice = (sj.load(given[0])(IMAGES) + sj.load(given[0])(IMAGES[:, :, ::-1])) / 2
    np.testing.assert_allclose(sj.load(tmp_path / "mirror")(IMAGES), twice, rtol=1e-5, atol=1e-5)
    assert "and its mirror image's" in (tmp_path / "mirror" / "README.md").read_text()
    assert not sj.load(tmp_path / "mirror", mirror=False).mirror and not sj.load(given[1]).mirror


def test_the_card_of_a_network_of_arrays_speaks_of_arrays(given, tmp_path):
    tree, meta = load_weights(given[0])
    hub_form.save(epath.Path(tmp_path / "arrays"), tree, {**meta, "example": {"shape": [64], "dtype": "float32"}})
    text = (tmp_path / "arrays" / "README.md").read_text()
    assert "input arrays float32 [64]." in text and "predict(arrays)  # float32 [N, 64]" in text
    assert not any(word in text for word in ("RGB", "image", "uint8"))
    assert "uint8 [N, 16, 16, 3]" in (given[1] / "README.md").read_text()


def test_damage_is_named(given, tmp_path):
    def broken(change):
        folder = tmp_path / change.__name__
        shutil.copytree(given[1], folder)
        change(folder)
        return folder

    def shortened(folder):
        path = folder / "model.safetensors"
        path.write_bytes(path.read_bytes()[:-5])

    def flipped(folder):
        path = folder / "model.safetensors"
        data = bytearray(path.read_bytes())
        data[-3] ^= 1
        path.write_bytes(data)

    def without_config(folder):
        (folder / "config.json").unlink()

    def of_timm(folder):
        (folder / "config.json").write_text('{"architecture": "resnet50", "num_classes": 1000}')

    def of_a_list(folder):
        (folder / "config.json").write_text("[]")

    for change, said in (
        (shortened, "not a whole safetensors file"),
        (flipped, "do not match their digest"),
        (without_config, r"no config\.json"),
        (of_timm, r"not of this package; expected what `save` writes"),
        (of_a_list, r"not of this package; expected what `save` writes"),
    ):
        with pytest.raises(sj.UserError, match=said):
            sj.load(broken(change))


class Hub(types.ModuleType):
    """Answers as huggingface_hub does, from a folder."""

    def __init__(self, folder):
        super().__init__("huggingface_hub")
        self.folder, self.calls = folder, []

    def create_repo(self, place, *, private, exist_ok):
        self.calls.append((place, private, exist_ok))

    def upload_folder(self, *, repo_id, folder_path, commit_message):
        shutil.copytree(folder_path, self.folder / repo_id)

    def snapshot_download(self, place, *, revision, allow_patterns):
        if not (self.folder / place).exists():
            raise RuntimeError(f"404\nno {place} at {revision}")
        return str(self.folder / place)


def test_what_is_pushed_is_loaded_by_its_address(given, tmp_path, monkeypatch, capsys):
    hub = Hub(tmp_path)
    monkeypatch.setitem(sys.modules, "huggingface_hub", hub)
    main(["save", f"--checkpoint={given[0]}", "--push=me/ants", "--private"])
    assert hub.calls == [("me/ants", True, True)] and "hf://me/ants" in capsys.readouterr().out
    np.testing.assert_array_equal(sj.load("hf://me/ants")(IMAGES), sj.load(given[0])(IMAGES))
    with pytest.raises(sj.UserError, match=r"hf://me/bees: cannot be loaded \(404 no me/bees at v2\)"):
        sj.load("hf://me/bees@v2")
    with pytest.raises(sj.UserError, match="hf://ants: expected hf://OWNER/NAME"):
        sj.load("hf://ants")


def test_without_the_extra_one_line_names_it(monkeypatch, capsys):
    monkeypatch.setitem(sys.modules, "huggingface_hub", None)
    with pytest.raises(SystemExit):
        run_main(main, ["predict", "--checkpoint=hf://me/ants", "--images=x"])
    assert "pip install '.[hub]'" in capsys.readouterr().err


def test_the_calls_are_those_of_the_library():
    hub = pytest.importorskip("huggingface_hub")
    import inspect

    for name, given_names in (
        ("create_repo", {"private", "exist_ok"}),
        ("upload_folder", {"repo_id", "folder_path", "commit_message"}),
        ("snapshot_download", {"revision", "allow_patterns"}),
    ):
        assert given_names <= set(inspect.signature(getattr(hub, name)).parameters)


def test_older_folders_without_a_digest_load(given, tmp_path):
    tree, meta = load_weights(given[0])
    hub_form.save(epath.Path(tmp_path / "plain"), tree, meta)
    facts = json.loads((tmp_path / "plain" / "config.json").read_text())
    del facts["digest"]
    (tmp_path / "plain" / "config.json").write_text(json.dumps(facts))
    assert load_weights(tmp_path / "plain")[1]["num_classes"] == 3
