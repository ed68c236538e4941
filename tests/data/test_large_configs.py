"""The configurations of the large data sets on small stand-ins of their folders and list files."""

import json
import re
import sys
import time

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax.traverse_util import flatten_dict
from PIL import Image

from shike_jax import config as schema
from shike_jax import models
from shike_jax.cluster import preemption
from shike_jax.commands import train as main
from shike_jax.config.loading import parse_config
from shike_jax.convert.checkpoint import convert
from shike_jax.convert.reader import write_state_dict
from shike_jax.data import sources
from shike_jax.data.host_pipeline import HostPipeline
from shike_jax.errors import UserError
from shike_jax.storage.weights import load_weights, save_weights
from shike_jax.training import setup as run
from tests.conftest import ROOT
from tests.convert.weights import fill, torchvision_shapes
from tests.jobs import Job, recorded_steps

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
    config, _ = parse_config([f"--config={ROOT}/configs/{name}.py:root={tmp_path}{extra}"])
    source = sources.load(config.data)
    assert source.split.class_counts.tolist() == [1, 1]
    for part, seed in (("train", 0), (config.data.test_part, None)):
        count = len(source.split.parts[part])
        plan = {"index": np.arange(count)[None], "mask": np.ones((1, count)), "position": np.arange(count)[None]}
        [batch] = HostPipeline(source, part, config).batches(plan, 0, seed)
        assert batch["mask"].all()
        assert batch["image"].shape == (count, 224, 224, 3)
        np.testing.assert_allclose(batch["image"][0, 100, 100], [0, 128, 0], atol=2)


def test_places_lt_asks_for_its_weights():
    with pytest.raises(UserError, match="weights is missing"):
        parse_config([f"--config={ROOT}/configs/places_lt.py"])


def test_places_lt_freezes_its_trunk():
    config, _ = parse_config([f"--config={ROOT}/configs/places_lt.py:weights=w"])
    assert config.init_from == "w"
    stage = config.stages.representation
    assert not any("trunk" in pattern or pattern == ".*" for pattern in stage.train)
    assert {config.stages[name].bn_trunk for name in config.run} == {"running"}


def test_folder_config_grows_with_the_folder(tmp_path):
    def chosen(root, arguments=""):
        return parse_config([f"--config={ROOT}/configs/folder_lt.py:root={root}{arguments}"])[0]

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


# --- from folders and list files to a checkpoint and on, through main ------------------------------------------------


def stand_in(root, name):
    """The published layout with noise for images: 7 of class 0 and 3 of each other one, in each list."""
    draw = np.random.default_rng(0)
    for listed, lines in LAYOUTS[name].items():
        copies = [line.replace(".", f"_{i}.") for line in lines for i in range(7 if line.endswith("0") else 3)]
        (root / f"{listed}.txt").write_text("\n".join(copies) + "\n")
        for line in copies:
            path = root / line.split()[0]
            path.parent.mkdir(parents=True, exist_ok=True)
            Image.fromarray(draw.integers(0, 256, (48, 64, 3), np.uint8)).save(path, "JPEG")


def few_steps(name, root, steps, arguments=""):
    """Flags of main: 32 px, batches of 4 (the third of an epoch is half empty), `steps` steps and 2 of stage two."""
    stages = {"representation": steps, "classifier": 2}
    small = [
        f"--config.stages.{stage}.{change}"
        for stage, n in stages.items()
        for change in (f"max_steps={n}", "batch_size=4")
    ]
    rare = ["--config.train.checkpoint_every_steps=2", "--config.train.log_every_steps=1", "--config.eval.batch_size=4"]
    return [
        f"--config={ROOT}/configs/{name}.py:root={root}{arguments}",
        "--config.data.image_size=32",
        "--config.data.resize=36",
        *small,
        *rare,
    ]


def assert_all_there(workdir, stages):
    """The stages with their steps are in the results, on two classes of 7 and 3 images; every loss is a number."""
    results = json.loads((workdir / "results.json").read_text())
    assert {stage["name"]: stage["steps"] for stage in results["stages"]} == stages
    assert results["split"]["class_counts"] == [7, 3]
    lines = [json.loads(line) for line in (workdir / "metrics.jsonl").read_text().splitlines()]
    losses = [line["loss"] for line in lines if "loss" in line]
    assert len(losses) >= sum(stages.values()) and np.isfinite(losses).all()


def count_moved_experts(workdir, weights):
    """Stem and shared stages, running averages included, are those of `weights`; each expert's last stage has moved."""
    plain = flatten_dict(load_weights(weights)[0], sep="/")
    trained = flatten_dict(load_weights(workdir)[0], sep="/")
    trunk = [path for path in trained if "/trunk/" in path]
    assert trunk and all(np.array_equal(trained[path], plain[path]) for path in trunk)
    moved = [path for path in trained if "/expert" in path and path.endswith("/block0/conv1/kernel")]
    for path in moved:
        assert not np.array_equal(trained[path], plain[re.sub(r"expert\d", "expert0", path)]), path
    return len(moved)


@pytest.mark.slow
def test_places_lt_starts_stops_and_continues_on_a_frozen_trunk(tmp_path, monkeypatch):
    """A slim ResNet-152 with one expert, from saved weights: stage one, stopped after three steps, started again."""
    slim = {"width": 8, "blocks": (1, 1, 1, 1)}
    plain = {**schema.base().model, **slim, "backbone": "resnet152", "depths": (1,), "fusion": False, "head": "linear"}
    network, draw = models.build_model(plain, 17), np.random.default_rng(3)
    image = jax.ShapeDtypeStruct((1, 32, 32, 3), jnp.float32)
    shapes = jax.eval_shape(lambda x: network.init(jax.random.key(0), x), image)
    variables = jax.tree.map(lambda x: draw.uniform(0.05, 0.15, x.shape).astype(np.float32), dict(shapes))
    save_weights(tmp_path / "slim", variables, {"model": plain, "num_classes": 17})
    stand_in(tmp_path, "places_lt")
    flags = few_steps("places_lt", tmp_path, 5, f",weights={tmp_path / 'slim'}")
    flags += [f"--config.model.{field}={value}" for field, value in {**slim, "depths": "(3,)"}.items()]
    flags += [f"--config.stages.representation.loss.{term}=0.0" for term in ("nt", "mu")]
    flags += ["--config.run=('representation',)"]
    monkeypatch.setitem(
        sys.modules, "clu.metric_writers", None
    )  # no TensorBoard files: TensorFlow takes seconds to come
    monkeypatch.setattr(preemption, "listen", lambda: None)
    calls = iter(range(1000))
    monkeypatch.setattr(run.StopRequest, "requested", lambda self: next(calls) == 2)
    workdir = tmp_path / "w"
    assert main.main([*flags, f"--workdir={workdir}"]) == preemption.EXIT_STATUS
    assert [p.name for p in (workdir / "checkpoints").iterdir() if p.name.isdigit()] != []
    assert main.main([*flags, f"--workdir={workdir}"]) == 0
    said = (workdir / "log.txt").read_text()
    assert "fresh: " in said and "expert0/align" in said
    assert "continuing in stage representation at step 3" in said
    assert_all_there(workdir, {"representation": 5})
    assert count_moved_experts(workdir, tmp_path / "slim") == 1


@pytest.fixture(scope="module")
def resnet152(tmp_path_factory):
    """Generated weights under torchvision's names, converted."""
    folder = tmp_path_factory.mktemp("resnet152")
    write_state_dict(folder / "w.safetensors", fill(torchvision_shapes("resnet152", 1000), seed=1))
    convert("resnet152", folder / "w.safetensors", folder / "converted")
    return folder / "converted"


@pytest.mark.slow
@pytest.mark.parametrize(
    ("name", "backbone"),
    [
        ("imagenet_lt", "resnet50"),
        ("imagenet_lt", "resnext50_32x4d"),
        ("inat18", "resnet50"),
        ("places_lt", "resnet152"),
    ],
)
def test_large_configs_train_at_full_depth(name, backbone, tmp_path, request):
    """The networks as published, in bfloat16, in processes of their own: SIGTERM after two steps, then to the end."""
    stand_in(tmp_path, name)
    weights = request.getfixturevalue("resnet152") if name == "places_lt" else None
    flags = few_steps(name, tmp_path, 12, f",backbone={backbone}" + (f",weights={weights}" if weights else ""))
    workdir = tmp_path / "w"
    began = time.time()
    job = Job(workdir, flags)
    while recorded_steps(workdir) < 2:
        assert job.processes[0].poll() is None, job.output()[-2000:]
        time.sleep(0.05)
    job.processes[0].terminate()
    assert job.wait(1800) == [75], job.output()[-2000:]
    step = int(re.search(r"stopped in stage representation at step (\d+)", job.output()).group(1))
    stopped, job = time.time(), Job(workdir, flags)
    assert job.wait(1800) == [0], job.output()[-2000:]
    assert f"continuing in stage representation at step {step}" in job.output()
    assert_all_there(workdir, {"representation": 12, "classifier": 2})
    found = json.loads((workdir / "results.json").read_text())
    print(
        f"\n{name} {backbone}: {found['num_parameters']:,} parameters, stopped at step {step} after "
        f"{stopped - began:.0f} s, finished after {time.time() - stopped:.0f} s more"
    )
    if weights:
        assert count_moved_experts(workdir, weights) == 3


# Parameters with 1,000 classes, as torchvision's documentation states them.
PUBLISHED = {"resnet50": 25_557_032, "resnext50_32x4d": 25_028_904, "resnet152": 60_192_808}


@pytest.mark.parametrize("backbone", PUBLISHED)
def test_full_networks_have_the_derived_number_of_parameters(backbone):
    """Trunk once, last stage three times, alignment from 256, 512 and 1,024 channels to 2,048, two sets of heads."""
    shapes = {name: shape for name, shape in torchvision_shapes(backbone, 1000).items() if "running" not in name}

    def size(prefix):
        return sum(int(np.prod(shape)) for name, shape in shapes.items() if name.startswith(prefix))

    assert size("") == PUBLISHED[backbone]
    trunk = PUBLISHED[backbone] - size("layer4") - 2048 * 1000 - 1000
    halvings = {c: 9 * c * 2 * c + 2 * 2 * c for c in (256, 512, 1024)}  # 3x3 convolution; scale and bias of its BN
    align = sum(count for first in (256, 512, 1024) for c, count in halvings.items() if c >= first)
    heads = 2 * 3 * 2048 * 1000  # two sets, three experts, no bias
    config, _ = parse_config([f"--config={ROOT}/configs/imagenet_lt.py:backbone={backbone}"])
    network = models.build_model(config.model, 1000)
    images = jax.ShapeDtypeStruct((1, 224, 224, 3), jnp.float32)
    variables = jax.eval_shape(lambda x: network.init(jax.random.key(0), x), images)
    assert models.num_parameters(variables["params"]) == trunk + 3 * size("layer4") + align + heads
