"""A run starts from torchvision's file as it is: recipe, features, and what a wrong file is answered with."""

import json

import jax
import numpy as np
import pytest
from PIL import Image

from shike_jax.cluster import preemption
from shike_jax.commands import train as main
from shike_jax.config.loading import parse_config
from shike_jax.convert.pretrained import read_pretrained
from shike_jax.convert.reader import read_state_dict
from shike_jax.convert.warm import warm_start
from shike_jax.errors import UserError
from shike_jax.models import build_model, init_variables
from shike_jax.storage.weights import load_weights
from tests.conftest import GOLDEN
from tests.convert.test_names import golden_shapes
from tests.convert.weights import fill, shapes_of, write_torch_file

pytestmark = pytest.mark.usefixtures("quickly_compiled")


@pytest.fixture(scope="module")
def resnet50(tmp_path_factory):
    """A .pth whose weights the golden numbers belong to; its path, its tensors and those numbers."""
    with np.load(GOLDEN / "torchvision_resnet50.npz") as file:
        golden = dict(file)
        state = fill(golden_shapes(file), int(golden["weights_seed"]))
    return write_torch_file(tmp_path_factory.mktemp("w") / "resnet50-1a2b3c4d.pth", state), state, golden


def test_the_file_is_read_as_pytorch_would(resnet50):
    path, state, _ = resnet50
    read = read_state_dict(path)
    assert read.keys() == state.keys()
    assert all(np.array_equal(read[name], state[name]) for name in state)


def test_features_of_the_warm_started_network_are_the_backbones(resnet50):
    """The shared stages, and the last one in every expert, against numbers of torchvision's network in PyTorch."""
    path, _, golden = resnet50
    config, _ = parse_config([f"--config=folder_lt:weights={path}"])
    assert (config.model.backbone, config.data.image_size, config.init_from) == ("resnet50", 224, str(path))
    network = build_model(config.model, 5)
    merged, report = warm_start(read_pretrained(str(path), "resnet50")[0], init_variables(network, 0, 64))
    assert not any("align" in name or "heads" in name for name in report.loaded)
    seed = int(golden["weights_seed"])
    images = np.random.RandomState(seed + 1).standard_normal((2, 64, 64, 3)).astype(np.float32)
    found = jax.jit(lambda v, x: network.apply(v, x, method="features"))(merged, images)
    maps = {f"stage{i + 1}_mean": shared for i, shared in enumerate(found["shared"])}
    for name, one in maps.items():
        mean = np.asarray(one, np.float64).mean((1, 2))
        np.testing.assert_allclose(mean, golden[name], atol=1e-5 * np.abs(golden[name]).max())
    for deep in found["deep"]:
        largest = np.abs(golden["stage4_mean"]).max()
        np.testing.assert_allclose(
            np.asarray(deep, np.float64).mean((1, 2)), golden["stage4_mean"], atol=1e-5 * largest
        )


def test_recipe_of_fine_tuning(resnet50):
    path, _, _ = resnet50
    frozen, _ = parse_config([f"--config=folder_lt:weights={path}"])
    free, _ = parse_config([f"--config=folder_lt:weights={path},frozen=false,epochs=3"])
    stage = frozen.stages.representation
    assert stage.train == (r"expert\d+/.*", "heads/representation/.*") and stage.bn_trunk == "running"
    assert (stage.lr, stage.epochs, stage.batch_size, stage.schedule) == (0.01, 30, 64, "cosine")
    assert free.stages.representation.train == (".*",) and free.stages.representation.bn_trunk == "batch"
    assert free.stages.representation.epochs == 3
    assert parse_config(["--config=folder_lt:weights=a/resnet18.a1_in1k.safetensors"])[0].model.backbone == "resnet18"
    assert parse_config(["--config=folder_lt:weights=x.pth,backbone=resnet152"])[0].model.backbone == "resnet152"


@pytest.mark.parametrize("head", ["none", "perceptron", "projection"])
def test_a_backbone_without_the_usual_classifier_is_read(head, tmp_path):
    """The classifier is discarded anyway: the same shared stages and experts come out as with it."""
    state = fill(shapes_of("resnet18", 3), seed=4)
    body = {name: array for name, array in state.items() if not name.startswith("fc.")}
    others = {
        "none": {},
        "perceptron": {"fc.0.weight": np.ones((8, 512), np.float32), "fc.2.weight": np.ones((4, 8), np.float32)},
        "projection": {"fc.weight": state["fc.weight"], "projection_head.0.weight": np.ones((8, 512), np.float32)},
    }
    path = write_torch_file(tmp_path / "moco.PTH", {f"module.{k}": v for k, v in {**body, **others[head]}.items()})
    variables, names = read_pretrained(str(path), "resnet18")
    assert names is None and "heads" not in variables["params"]
    kernel = variables["params"]["expert0"]["stage4"]["block1"]["conv2"]["kernel"]
    np.testing.assert_array_equal(kernel, state["layer4.1.conv2.weight"].transpose(2, 3, 1, 0))
    fresh = read_pretrained(str(write_torch_file(tmp_path / "whole.pth", state)), "resnet18")[0]
    merged, report = warm_start(variables, fresh)
    assert sum("heads" in path for path in report.fresh) == 4 and not report.left_out
    np.testing.assert_array_equal(
        merged["params"]["trunk"]["conv1"]["kernel"].transpose(3, 2, 0, 1), state["conv1.weight"]
    )


def test_weights_that_are_not_finite_are_refused(tmp_path):
    for value in (np.nan, np.inf):
        state = fill(shapes_of("resnet18", 3), seed=4)
        state["layer2.0.bn1.running_var"][5] = value
        path = write_torch_file(tmp_path / f"{value}.pth", state)
        with pytest.raises(UserError, match=r"layer2\.0\.bn1\.running_var holds values that are not finite"):
            read_pretrained(str(path), "resnet18")


def test_a_wrong_file_is_one_line(resnet50, tmp_path):
    path, state, _ = resnet50
    with pytest.raises(UserError, match=r"resnet50-1a2b3c4d\.pth: these are not the tensors of resnet152: missing"):
        read_pretrained(str(path), "resnet152")
    with pytest.raises(UserError, match=r"absent\.pth: no such file"):
        read_pretrained(str(tmp_path / "absent.pth"), "resnet50")
    with pytest.raises(UserError, match=r"PyTorch weights of a resnet20 are not known here; expected one of resnet18"):
        read_pretrained(str(path), "resnet20")
    deep_stem = {f"conv1.{i}.weight": np.zeros((32, 3, 3, 3), np.float32) for i in (0, 3, 6)}
    others = {name: array for name, array in state.items() if name != "conv1.weight"}
    with pytest.raises(UserError, match=r"not the tensors of resnet50: missing: conv1\.weight; not expected: conv1\.0"):
        read_pretrained(str(write_torch_file(tmp_path / "resnet50d.pth", {**others, **deep_stem})), "resnet50")


def photographs(folder):
    draw = np.random.default_rng(0)
    for name in ("cat", "dog"):
        (folder / name).mkdir(parents=True)
        for i in range(5):
            Image.fromarray(draw.integers(0, 256, (40, 48, 3), np.uint8)).save(folder / name / f"{i}.jpg")
    return folder


@pytest.mark.slow
def test_one_command_from_the_file_to_a_trained_run(tmp_path, monkeypatch):
    """ResNet-18 in torchvision's format; the shared stages stay as they come, the experts move."""
    monkeypatch.setattr(preemption, "listen", lambda: None)
    state = fill(shapes_of("resnet18", 1000), seed=4)
    weights = write_torch_file(tmp_path / "resnet18.pth", state)
    flags = [
        f"--config=folder_lt:root={photographs(tmp_path / 'photos')},weights={weights},size=32,batch=4",
        "--config.model.depths=(1,)",
        "--config.stages.representation.max_steps=2",
        "--config.stages.classifier.max_steps=1",
        "--config.log=quiet",
    ]
    assert main.main([*flags, f"--workdir={tmp_path / 'run'}"]) == 0
    variables, _ = load_weights(tmp_path / "run")
    params = variables["params"]
    np.testing.assert_array_equal(params["trunk"]["conv1"]["kernel"], state["conv1.weight"].transpose(2, 3, 1, 0))
    deep = params["expert0"]["stage4"]["block1"]["conv2"]["kernel"]
    start = state["layer4.1.conv2.weight"].transpose(2, 3, 1, 0)
    assert not np.array_equal(deep, start)
    assert np.median(np.abs(deep - start)) < 0.01 * np.median(np.abs(start))
    assert json.loads((tmp_path / "run" / "results.json").read_text())["config"]["init_from"] == str(weights)
