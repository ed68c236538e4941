"""The file pipeline: order, determinism, sharding and what becomes of unreadable images."""

import dataclasses
import os
import time

import jax
import numpy as np
import pytest
from PIL import Image

from shike_jax import config as schema
from shike_jax.data import sampling, sources
from shike_jax.data.host_pipeline import HostPipeline
from shike_jax.errors import UserError

BATCH = 32


@pytest.fixture(scope="module")
def config(shared):
    made = schema.base()
    made.data.update({"source": "folder", "root": str(shared / "data" / "caltech101_lt"), "profile": "natural"})
    made.data.update({"image_size": 32, "resize": 40})
    made.augment.crop = "random_resized"
    return made


@pytest.fixture(scope="module")
def source(config):
    return sources.load(config.data)


def epoch(source, config, seed=5, first=0, steps=6, shares=1):
    """The epoch's batches from step `first` on, assembled from as many processes as there are shares."""
    labels = source.split.parts["train"].labels
    plan = sampling.epoch_plan("shuffle", jax.random.key(seed), 0, labels, BATCH, True)
    plan = {name: values[:steps] for name, values in plan.items()}
    plan["position"] = np.broadcast_to(np.arange(BATCH), plan["mask"].shape)
    columns = np.split(np.arange(BATCH), shares)
    parts = [
        list(HostPipeline(source, "train", config).batches({name: v[:, mine] for name, v in plan.items()}, first, seed))
        for mine in columns
    ]
    return [{name: np.concatenate([b[name] for b in step]) for name in step[0]} for step in zip(*parts, strict=True)]


def same(one, other):
    pairs = zip(one, other, strict=True)
    return len(one) == len(other) and all(np.array_equal(a[name], b[name]) for a, b in pairs for name in a)


def test_folder_counts(source):
    split = source.split
    assert {name: len(part) for name, part in split.parts.items()} == {"train": 3876, "test": 1000}
    assert [len(found) for found in split.divisions.values()] == [8, 42, 50]
    assert (split.num_classes, split.class_counts.max(), split.class_counts.min()) == (100, 200, 2)
    assert source.report.lines() == []


def test_batches_are_a_function_of_seed_and_step(source, config):
    whole = epoch(source, config)
    assert whole[0]["image"].shape == (BATCH, 32, 32, 3)
    assert whole[0]["image"].dtype == np.uint8
    assert same(whole, epoch(source, config))
    assert same(whole[4:], epoch(source, config, first=4))
    assert same(whole, epoch(source, config, shares=2))
    assert same(whole, epoch(source, config, shares=4))
    assert not same(whole, epoch(source, config, seed=6))


def test_views_of_one_image_differ_between_steps_and_positions(source, config):
    plan = {"index": np.full((2, 2), 7, np.int32), "mask": np.ones((2, 2), np.float32)}
    plan["position"] = np.broadcast_to(np.arange(2), (2, 2))
    batches = list(HostPipeline(source, "train", config).batches(plan, 0, 1))
    views = {batch["image"][i].tobytes() for batch in batches for i in range(2)}
    assert len(views) == 4


def test_evaluation_follows_the_order_and_torchvisions_recipe(source, config):
    plan = sampling.in_order(1000, 64)
    plan = {name: values[-2:] for name, values in plan.items()}
    [_, last] = HostPipeline(source, "test", config).batches(plan, 0, None)
    part = source.split.parts["test"]
    np.testing.assert_array_equal(last["mask"], [1.0] * (1000 - 15 * 64) + [0.0] * (16 * 64 - 1000))
    np.testing.assert_array_equal(last["label"][:40], part.labels[960:])
    assert not last["image"][40:].any()
    for i in (0, 17, 39):
        with Image.open(f"{config.data.root}/{part.members[960 + i]}") as image:
            short, size = min(image.size), 40
            assert short < 4 * size  # larger ones would be decoded at half size
            resized = image.convert("RGB").resize(
                tuple(int(size * side / short) for side in image.size), Image.Resampling.BILINEAR
            )
        left, top = (round((side - 32) / 2) for side in resized.size)
        expected = np.asarray(resized.crop((left, top, left + 32, top + 32)))
        difference = np.abs(last["image"][i].astype(int) - expected)
        # Pillow keeps the crop's corner in single precision: a few pixels round the other way.
        assert difference.max() <= 1
        assert (difference > 0).mean() < 0.005


def test_paired_plans_give_partners(source, config):
    labels = source.split.parts["train"].labels
    plan = sampling.epoch_plan("paired", jax.random.key(0), 0, labels, BATCH, True)
    plan = {name: values[:1] for name, values in plan.items()}
    plan["position"] = np.arange(BATCH)[None]
    [batch] = HostPipeline(source, "train", config).batches(plan, 0, 3)
    np.testing.assert_array_equal(batch["partner"]["label"], labels[plan["partner"][0]])
    assert batch["partner"]["image"].shape == batch["image"].shape


def test_further_views_are_other_crops_of_the_same_images(damaged):
    """By hand: a view's crop follows from the epoch's seed, the step, and the position plus a multiple of 2**24."""
    source = sources.load(damaged.data)
    index = np.array([[0, 3, 1, 5]], np.int32)
    plan = {"index": index, "mask": np.ones((1, 4), np.float32), "position": np.arange(4)[None]}
    batches = HostPipeline(source, "train", damaged).batches
    [plain], [batch] = batches(plan, 0, 7), batches(plan, 0, 7, 2)
    np.testing.assert_array_equal(batch["image"], plain["image"])
    assert "views" not in plain and len(batch["views"]) == 2
    for number, view in enumerate(batch["views"], 1):
        assert (view != batch["image"]).any((1, 2, 3)).all()
        [moved] = batches({**plan, "position": plan["position"] + number * 2**24}, 0, 7)
        np.testing.assert_array_equal(view, moved["image"])
    columns = {name: values[:, 2:] for name, values in plan.items()}  # as another process would ask
    [share] = batches(columns, 0, 7, 2)
    np.testing.assert_array_equal(share["views"][1], batch["views"][1][2:])


@pytest.fixture
def damaged(tmp_path):
    """Ten tiny photographs of two classes; one training file is cut in half."""
    for part in ("train", "test"):
        for i in range(10):
            path = tmp_path / part / ("a", "b")[i % 2] / f"{i}.png"
            path.parent.mkdir(parents=True, exist_ok=True)
            Image.fromarray(np.random.default_rng(i).integers(0, 255, (20, 20, 3), np.uint8)).save(path)
    broken = tmp_path / "train" / "a" / "4.png"
    broken.write_bytes(broken.read_bytes()[:300])
    made = schema.base()
    made.data.update({"source": "folder", "root": str(tmp_path), "profile": "natural", "image_size": 16})
    made.augment.crop = "random_resized"
    made.data.bad_image_limit = 0.1
    return made


def run_damaged(config):
    source = sources.load(config.data)
    index = np.arange(10, dtype=np.int32)[None]
    plan = {"index": index, "mask": np.ones((1, 10), np.float32), "position": index}
    [batch] = HostPipeline(source, "train", config).batches(plan, 0, 0)
    return batch, source


def test_an_unreadable_image_becomes_padding_and_is_reported(damaged):
    batch, source = run_damaged(damaged)
    bad = source.split.parts["train"].members.tolist().index("train/a/4.png")
    np.testing.assert_array_equal(np.flatnonzero(batch["mask"] == 0), [bad])
    assert not batch["image"][bad].any()
    assert source.report.lines()[0] == "left out: 1"
    assert source.report.lines()[1].startswith("  train/a/4.png: ")


def test_unreadable_images_stop_the_run_when_asked(damaged):
    damaged.data.bad_image = "stop"
    with pytest.raises(UserError, match=r"image train/a/4\.png: .*bad_image=skip"):
        run_damaged(damaged)


def test_too_many_unreadable_images_stop_the_run(damaged):
    damaged.data.bad_image_limit = 0.0
    with pytest.raises(UserError, match=r"1 of 10 images of part train cannot be read, more than .*=0 allows"):
        run_damaged(damaged)


def test_a_file_that_vanished_is_an_unreadable_image(damaged):
    source = sources.load(damaged.data)
    os.remove(f"{damaged.data.root}/train/b/1.png")
    damaged.data.bad_image_limit = 1.0
    plan = {"index": np.arange(10)[None], "mask": np.ones((1, 10), np.float32)}
    [batch] = HostPipeline(source, "train", damaged).batches(plan)
    assert batch["mask"].sum() == 8
    assert source.report.unreadable["train", "train/b/1.png"] == "No such file or directory"


def test_a_source_without_files_cannot_be_read(damaged):
    source = sources.load(damaged.data)
    source.read = None
    with pytest.raises(UserError, match="no image files to read"):
        HostPipeline(source, "train", damaged)


def test_a_policy_on_the_host_is_a_function_of_seed_step_and_position(source, config):
    placed = config.copy_and_resolve_references()
    placed.augment.update({"policy": "randaugment", "place": "host"})
    whole = epoch(source, placed, steps=3)
    assert same(epoch(source, placed, steps=3), whole)
    assert same(epoch(source, placed, first=1, steps=3), whole[1:])
    assert same(epoch(source, placed, steps=3, shares=4), whole)
    bare = epoch(source, config, steps=3)
    changed = [np.any(a["image"] != b["image"], (1, 2, 3)).mean() for a, b in zip(whole, bare, strict=True)]
    assert 0.5 < np.mean(changed) < 0.9  # either of two operations, each with probability 1/2


def test_slow_files_do_not_hold_up_the_threads_that_decode(source, config):
    """64 files that take 0.1 s each, one thread that decodes: read one after the other they would take 6.4 s."""
    read = source.read

    def slowly(part, indices):
        time.sleep(0.1)
        return read(part, indices)

    plan = {"index": np.arange(64, dtype=np.int32).reshape(4, 16), "mask": np.ones((4, 16), np.float32)}
    began = time.monotonic()
    slow = list(HostPipeline(dataclasses.replace(source, read=slowly), "train", config, threads=1).batches(plan))
    assert time.monotonic() - began < 4
    assert same(slow, list(HostPipeline(source, "train", config, threads=1).batches(plan)))
