"""The configurations of the large data sets on small stand-ins of their folders and list files."""

import numpy as np
import pytest
from PIL import Image

from shike_jax.data import sources
from shike_jax.data.host_pipeline import make_pipeline
from shike_jax.errors import UserError
from shike_jax.flags import load_config
from tests.conftest import ROOT

LAYOUTS = {
    "imagenet_lt": {
        "ImageNet_LT_train": ["train/n01440764/n01440764_190.JPEG 0", "train/n01443537/n01443537_1.JPEG 1"],
        "ImageNet_LT_val": ["train/n01440764/n01440764_762.JPEG 0"],
        "ImageNet_LT_test": ["val/n01443537/ILSVRC2012_val_00029930.JPEG 1"],
    },
    "inat18": {
        "iNaturalist18_train": ["train_val2018/Aves/0/a.jpg 0", "train_val2018/Insecta/1/b.jpg 1"],
        "iNaturalist18_val": ["train_val2018/Insecta/1/c.jpg 1"],
    },
    "places_lt": {
        "Places_LT_train": ["train/airfield/00004851.jpg 0", "train/arena-hockey/00000001.jpg 1"],
        "Places_LT_val": ["train/airfield/00002049.jpg 0"],
        "Places_LT_test": ["val/airfield/Places365_val_00003597.jpg 0"],
    },
}


@pytest.mark.parametrize("name", LAYOUTS)
def test_large_configs_read_their_published_layout(name, tmp_path):
    for listed, lines in LAYOUTS[name].items():
        (tmp_path / f"{listed}.txt").write_text("\n".join(lines) + "\n")
        for line in lines:
            path = tmp_path / line.split()[0]
            path.parent.mkdir(parents=True, exist_ok=True)
            Image.new("RGB", (300, 260), "green").save(path, "JPEG")
    extra = ",weights=none" if name == "places_lt" else ""
    config, _ = load_config([f"--config={ROOT}/configs/{name}.py:root={tmp_path}{extra}"])
    source = sources.load(config.data)
    assert source.split.class_counts.tolist() == [1, 1]
    for part, seed in (("train", 0), (config.data.test_part, None)):
        count = len(source.split.parts[part])
        plan = {"index": np.arange(count)[None], "mask": np.ones((1, count)), "position": np.arange(count)[None]}
        [batch] = make_pipeline(source, config, part)(plan, 0, seed)
        assert batch["mask"].all()
        assert batch["image"].shape == (count, 224, 224, 3)
        np.testing.assert_allclose(batch["image"][0, 100, 100], [0, 128, 0], atol=2)


def test_places_lt_asks_for_its_weights():
    with pytest.raises(UserError, match="weights is missing"):
        load_config([f"--config={ROOT}/configs/places_lt.py"])


def test_places_lt_freezes_its_trunk():
    config, _ = load_config([f"--config={ROOT}/configs/places_lt.py:weights=w"])
    assert config.init_from == "w"
    stage = config.stages.representation
    assert not any("trunk" in pattern or pattern == ".*" for pattern in stage.train)
    assert {config.stages[name].bn_trunk for name in config.run} == {"running"}


def test_folder_config_grows_with_the_folder(tmp_path):
    def chosen(root, arguments=""):
        return load_config([f"--config={ROOT}/configs/folder_lt.py:root={root}{arguments}"])[0]

    small = tmp_path / "small" / "train" / "a"
    small.mkdir(parents=True)
    (small / "1.jpg").touch()
    large = tmp_path / "large" / "train" / "a"
    large.mkdir(parents=True)
    for i in range(20_001):
        (large / f"{i}.jpg").touch()
    assert (chosen(tmp_path / "small").data.image_size, chosen(tmp_path / "large").data.image_size) == (96, 224)
    assert chosen(tmp_path / "large").augment.policy == "randaugment"
    changed = chosen(tmp_path / "small", ",size=96,epochs=7,batch=16,imbalance_factor=5,backbone=resnet32")
    assert (changed.data.image_size, changed.data.profile, changed.data.imbalance_factor) == (96, "exponential", 5.0)
    assert (changed.stages.representation.epochs, changed.stages.classifier.batch_size) == (7, 16)
    assert (changed.model.width, tuple(changed.model.blocks), tuple(changed.model.depths)) == (0, (), (1, 2, 1))
