"""The benchmark compares like with like, and its commands answer."""

import contextlib
import json

import numpy as np
import pytest

from shike_jax.benchmark import measure, step, workload
from shike_jax.benchmark.flops import forward_flops
from shike_jax.benchmark.ours import Ours
from shike_jax.commands import benchmark as command
from shike_jax.errors import UserError
from tests.peers import augmentation
from tests.peers.plain import Plain

pytestmark = pytest.mark.usefixtures("quickly_compiled")

TINY = {"batch": 6, "image_size": 16, "classes": 5, "width": 4, "blocks": (1, 1, 1)}


@pytest.fixture(scope="module", params=workload.STAGES)
def work(request):
    """Two steps: the second loss also depends on the first one's gradients and update."""
    return workload.make("shike_resnet32_cifar", stage=request.param, steps=2, **TINY)


@pytest.fixture(scope="module")
def ours(work):
    return Ours(work).run()


def test_plain_flax_computes_the_same(work, ours):
    assert Plain(work).run() == pytest.approx(ours, rel=1e-5)


def test_pytorch_computes_the_same(work, ours):
    pytest.importorskip("torch", reason="PyTorch is optional and absent: nothing to compare with")
    from tests.peers.pytorch import Torch

    assert Torch(work).run() == pytest.approx(ours, rel=1e-5)


def test_operations_are_those_counted_by_hand():
    work = workload.make("shike_resnet32_cifar", **TINY)
    stem, stage1 = 9 * 3 * 4 * 256, 2 * 9 * 4 * 4 * 256
    stage2 = (9 * 4 * 8 + 9 * 8 * 8 + 4 * 8) * 64
    stage3 = (9 * 8 * 16 + 9 * 16 * 16 + 8 * 16) * 16
    align1, align2 = 9 * 4 * 8 * 64 + 9 * 8 * 16 * 16, 9 * 8 * 16 * 16
    heads = 16 * 5
    once = stem + stage1 + stage2 + 3 * (stage3 + heads) + 2 * align1 + align2
    assert forward_flops(work) == 2 * 6 * once


def test_rounds_take_turns_and_the_first_does_not_count():
    order, now = [], iter(range(100))
    sides = {"a": lambda number: order.append(("a", number)), "b": lambda number: order.append(("b", number))}
    seconds = measure.in_turns(sides, 2, clock=lambda: next(now))
    assert order == [("a", 0), ("b", 0), ("a", 1), ("b", 1), ("a", 2), ("b", 2)]
    assert seconds == {"a": [1, 1], "b": [1, 1]}
    described = measure.describe([0.5, 0.1, 0.2], 100)
    assert (described["median_ms"], described["images_per_second"]) == (200.0, 500.0)


def test_step_writes_what_it_measured(tmp_path, capsys):
    target = tmp_path / "new" / "step.json"
    command.main(
        [
            "step",
            "--stage=classifier",
            "--batch=6",
            "--image_size=16",
            "--classes=5",
            "--width=4",
            "--blocks=1,1,1",
            "--repeats=2",
            "--against=plain",
            "--seeds=2",
            "--peak_tflops=2",
            f"--json={target}",
        ]
    )
    found = json.loads(target.read_text())
    assert found["command"].startswith("python -m shike_jax benchmark step --stage=classifier --batch=6")
    assert {"commit", "date", "versions", "cores", "load_average"} <= found.keys()
    ours, plain = found["sides"]["ours"], found["sides"]["plain"]
    assert len(ours["samples_ms"]) == 2 and ours["memory_bytes"] > 0
    assert ours["first_call_loss"] == pytest.approx(plain["first_call_loss"], rel=1e-5)
    twice = found["sides"]["ours, 2 seeds at once"]
    assert twice["first_call_loss"] == pytest.approx(ours["first_call_loss"], rel=1e-5) and twice["seeds"] == 2
    assert found["speed_of_ours_over"]["plain"] == pytest.approx(plain["median_ms"] / ours["median_ms"], abs=1e-3)
    rate = found["model_flops_per_step"] / ours["median_ms"] / 1e9
    assert ours["share_of_peak"] == pytest.approx(rate / 2, abs=1e-3)
    assert "img/s" in capsys.readouterr().out


def test_parts_are_the_layers_of_the_network(tmp_path, monkeypatch):
    """Counts by hand: one block a stage; experts at depths 1, 2 and 1 have 2, 1 and 2 alignment convolutions."""
    monkeypatch.setenv("GLIBC_TUNABLES", "glibc.malloc.hugetlb=1")
    target = tmp_path / "parts.json"
    argv = ["parts", "--batch=2", "--width=4", "--blocks=1,1,1", "--image_size=16", "--repeats=1", f"--json={target}"]
    command.main(argv)
    found = json.loads(target.read_text())
    assert found["environment"]["GLIBC_TUNABLES"] == "glibc.malloc.hugetlb=1"
    layers = {layer["layer"]: layer for layer in found["layers"]}
    counts = {name: layer["times_in_a_step"] for name, layer in layers.items()}
    assert counts == {
        "convolution 3x3 of 16 x 16 x 3 to 4": 1,
        "convolution 3x3 of 16 x 16 x 4 to 4": 2,
        "convolution 3x3 of 16 x 16 x 4 to 8, stride 2": 1 + 2,
        "convolution 1x1 of 16 x 16 x 4 to 8, stride 2": 1,
        "convolution 3x3 of 8 x 8 x 8 to 8": 1,
        "convolution 3x3 of 8 x 8 x 8 to 16, stride 2": 3 + 3,
        "convolution 1x1 of 8 x 8 x 8 to 16, stride 2": 3,
        "convolution 3x3 of 4 x 4 x 16 to 16": 3,
        "batch normalisation, ReLU of 16 x 16 x 4": 3,
        "batch normalisation, ReLU of 8 x 8 x 8": 3 + 2,
        "batch normalisation, ReLU of 4 x 4 x 16": 3 * 3 + 3,
    }
    assert sorted(layers["convolution 3x3 of 16 x 16 x 3 to 4"]["median_ms"]) == ["forward", "to the weights"]
    assert layers["convolution 3x3 of 4 x 4 x 16 to 16"]["gflop"] == round(2 * 2 * 16 * 9 * 16 * 16 / 1e9, 4)
    total = sum(
        layer["times_in_a_step"] * sum(t["ours"] for t in layer["median_ms"].values()) for layer in layers.values()
    )
    assert found["in_a_step_ms"]["ours"] == pytest.approx(total, abs=0.06)


def test_worker_processes_give_the_views_of_the_pipeline():
    from shike_jax.benchmark.host_input import encode
    from shike_jax.data.host_pipeline import view_seeds
    from shike_jax.data.images import random_resized_crop
    from tests.peers.input_scaling import Workers

    encoded = encode(None, 9)  # more than one chunk
    workers = Workers(encoded, 16, 1)
    try:
        workers(5)
        views = np.ndarray((9, 16, 16, 3), np.uint8, workers.memory.buf).copy()
    finally:
        workers.close()
    [seeds] = view_seeds(5, np.arange(9, dtype=np.int32)[None])
    for view, one, seed in zip(views, encoded, seeds, strict=True):
        np.testing.assert_array_equal(view, random_resized_crop(one, 16, seed))


def test_augment_and_input_write_what_they_measured(tmp_path):
    augmentation.main(["--batch=2", "--large_batch=1", "--repeats=1", f"--json={tmp_path / 'a.json'}"])
    small, large = json.loads((tmp_path / "a.json").read_text())["measurements"]
    assert small["median_ms_per_batch"]["pillow"] > 0 and large["images_per_s"]["jax"] > 0
    command.main(["input", "--count=2", "--rounds=1", "--against", f"--json={tmp_path / 'i.json'}"])
    rates = json.loads((tmp_path / "i.json").read_text())["images_per_second_per_core"]
    assert len(rates) >= 3 and min(rates.values()) > 0


def test_made_up_photographs_are_as_large_as_real_ones():
    from shike_jax.benchmark.host_input import encode

    assert 25_000 < np.mean([len(data) for data in encode(None, 4)]) < 55_000


def test_run_splits_the_wall_time(tmp_path):
    target = tmp_path / "run.json"
    command.main(
        [
            "run",
            "--config=configs/digits_lt.py:width=4,epochs=1,classifier_epochs=1",
            "--config.model.depths=(1,)",
            "--config.data.test_per_class=5",
            "--config.stages.classifier.max_steps=4",
            "--config.run=('classifier',)",
            f"--json={target}",
        ]
    )
    found = json.loads(target.read_text())
    parts = dict(found["seconds"])
    wall = parts.pop("wall")
    assert set(parts) == {"start_up", "compile", "train", "evaluate", "other"}
    assert sum(parts.values()) == pytest.approx(wall, abs=0.1) and min(parts.values()) > 0
    assert [stage["name"] for stage in found["stages"]] == ["classifier"]


@pytest.mark.parametrize("name", ["", *command.COMMANDS])
def test_help_explains(name, capsys):
    with pytest.raises(SystemExit) if name else contextlib.nullcontext():
        command.main([*filter(None, [name]), "--help"])
    page = capsys.readouterr().out
    assert len(page.splitlines()) > 5 and "example" in page.lower()


@pytest.mark.parametrize(
    ("argv", "names"),
    [
        (["stepp"], "stepp"),
        (["step", "--model=shike"], "--model=shike"),
        (["step", "--against=caffe"], "caffe"),
        (["step", "--batch=0"], "--batch"),
        (["step", "--blocks=1,x"], "--blocks"),
        (["step", "--json=README.md/x.json"], "--json"),
        (["input", "--images=configs"], "--images"),
        (["run"], "--config"),
        (["run", "--config=configs/absent.py"], "absent.py"),
    ],
)
def test_mistakes_are_named(argv, names):
    with pytest.raises(UserError, match=names):
        command.main(argv)


def test_sides_are_built_in_the_order_asked():
    args = step._parse(["--against=torch,plain", "--augment=autoaugment_cifar"])
    assert list(step._makers(args, None)) == ["ours", "ours without augmentation", "torch", "plain"]


def test_the_parts_of_a_start_add_up(tmp_path, capsys):
    command.main(["start", "--config=digits_lt:width=4", f"--json={tmp_path / 'start.json'}"])
    found = json.loads((tmp_path / "start.json").read_text())["parts"]
    names = ["imports", "device", "data", "initialisation", "trace", "compile", "first step"]
    assert list(found) == [*names, "all"]
    for clock in ("seconds", "processor_seconds"):
        assert sum(found[name][clock] for name in names) == pytest.approx(found["all"][clock], abs=0.05)
    assert "compile  " in capsys.readouterr().out
