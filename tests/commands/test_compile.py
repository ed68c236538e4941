"""Programs for devices that are not there: counts of known programs, the steps of configurations, clear refusals."""

import importlib.util
import json
import runpy

import jax
import jax.numpy as jnp
import pytest

from shike_jax.cluster import compiled_program, topology
from shike_jax.commands import compile as command
from shike_jax.config.loading import parse_config
from shike_jax.errors import UserError
from shike_jax.training.ahead_of_time import PUBLISHED, Steps, published_sizes
from tests.conftest import ROOT

table = runpy.run_path(str(ROOT / "docs" / "compiled_table.py"))["table"]
pytestmark = pytest.mark.usefixtures("quickly_compiled")

# As XLA prints an optimised program: a fusion with a gather of whole images (64 slices of 3,072 values) and one of
# pixels (65,536 slices of 3), a scatter of single values, an asynchronous all-reduce of 1,000 floats, and a loop.
TEXT = """\
HloModule jit_call, is_scheduled=true, num_partitions=2

%fused (param_0: u8[500,32,32,3], param_1: s32[64,1]) -> u8[64,32,32,3] {
  %param_0 = u8[500,32,32,3]{3,2,1,0:T(8,128)(4,1)} parameter(0)
  %param_1 = s32[64,1]{1,0} parameter(1)
  %g.1 = u8[64,32,32,3]{3,2,1,0:T(8,128)(4,1)} gather(%param_0, %param_1), offset_dims={1,2,3}, slice_sizes={1,32,32,3}
  %i = s32[64,32,32,2]{3,2,1,0} iota(), iota_dimension=0
  ROOT %g.2 = u8[64,32,32,3]{3,2,1,0} gather(%g.1, %i), offset_dims={3}, slice_sizes={1,1,3}, metadata={op_name="x"}
}

%body (state: (s32[], f32[1000])) -> (s32[], f32[1000]) {
  %state = (s32[], f32[1000]{0}) parameter(0)
  %v = f32[1000]{0} get-tuple-element(%state), index=1
  %u = f32[2048]{0} constant({...})
  %z = s32[2048,1]{1,0} iota(), iota_dimension=0
  %s = f32[1000]{0} scatter(%v, %z, %u), update_window_dims={}, inserted_window_dims={0}, to_apply=%sum
  ROOT %t = (s32[], f32[1000]{0}) tuple(%v, %s)
}

ENTRY %main (a: u8[500,32,32,3], b: s32[64,1]) -> f32[1000] {
  %a = u8[500,32,32,3]{3,2,1,0} parameter(0)
  %b = s32[64,1]{1,0} parameter(1)
  %f = u8[64,32,32,3]{3,2,1,0} fusion(%a, %b), kind=kCustom, calls=%fused
  %c = f32[1000]{0:T(1024)S(1)} custom-call(%f), custom_call_target="x"
  %r = (f32[1000]{0:T(1024)}, f32[1000]{0:T(1024)}) all-reduce-start(%c), replica_groups={{0,1}}, to_apply=%sum
  %d = f32[1000]{0} all-reduce-done(%r)
  %w = (s32[], f32[1000]{0}) while(%d), condition=%stop, body=%body
  ROOT %o = f32[1000]{0} get-tuple-element(%w), index=1
}
"""


class Text:
    """A compiled program that only has a text."""

    def as_text(self):
        return TEXT

    def cost_analysis(self):
        return None

    def memory_analysis(self):
        return None


def test_counts_of_a_program_written_by_hand():
    found = compiled_program.analyse(Text(), pixels=32 * 32)
    assert found["gathers"] == {"count": 2, "of_pixels": 1}
    assert found["scatters"] == {"count": 1, "of_pixels": 1}  # 2,048 updates of one value each
    assert found["collectives"] == {"all-reduce": {"count": 1, "bytes": 4000}}
    assert found["kernels"] == {
        "fusion": 1,
        "custom-call": 1,
        "all-reduce-start": 1,
        "while": 1,
        "iota": 1,
        "scatter": 1,
    }
    assert found["kernels_in_loops"] == {"iota": 1, "scatter": 1}
    assert found["loops"] == 1 and found["flops"] is None and found["memory"] is None
    assert compiled_program.analyse(Text(), pixels=4096)["scatters"]["of_pixels"] == 0  # fewer updates than pixels


def test_bytes_of_types():
    assert (
        compiled_program.array_bytes("(f32[2,3]{1,0:T(8,128)}, u8[4], pred[5], bf16[], s64[2])") == 24 + 4 + 5 + 2 + 16
    )


def test_counts_of_a_compiled_product():
    """XLA's own count of a product of matrices is 2 n^3, its arguments are two matrices of float32."""
    side = jax.ShapeDtypeStruct((64, 64), jnp.float32)
    found = compiled_program.analyse(jax.jit(jnp.dot).lower(side, side).compile())
    assert found["flops"] == 2 * 64**3
    assert found["memory"]["arguments"] == 2 * 64 * 64 * 4
    assert found["collectives"] == {}


@pytest.fixture(scope="module")
def here():
    return topology.Topology("here", "cpu", jax.devices()[:1], 10**9)


@pytest.mark.parametrize("name", ["digits_lt", "h2t_cifar"])
def test_steps_are_those_of_a_configuration(here, name):
    small = ["--config.model.width=4", "--config.model.blocks=(1,1,1)", "--config.eval.batch_size=8"]
    config, _ = parse_config([f"--config={name}", *small])
    said = []
    found = command.compile_steps(
        config,
        here,
        stages=config.run[-1:],
        batch_per_device=4,
        classes=10 if "digits" in name else 0,
        tell=said.append,
    )
    train, evaluate = found["programs"]
    assert train["what"] == f"train {config.run[-1]}" and train["batch_per_device"] == 4
    assert train["fits"] and evaluate["fits"]
    assert evaluate["flops"] > 0 and train["memory"]["total"] > 0
    assert "fits" in said[0] and "traffic" in said[1]


def test_a_call_of_several_steps_is_a_loop(here):
    small = ["--config=digits_lt:width=4", "--config.model.depths=(1,)", "--config.model.blocks=(1,1,1)"]
    config, _ = parse_config([*small, "--config.train.steps_per_call=3"])
    found = command.compile_steps(config, here, batch_per_device=4, with_evaluation=False)
    (one,) = found["programs"]
    assert found["steps_per_call"] == 3 and one["loops"] >= 1 and sum(one["kernels_in_loops"].values()) > 50


def test_images_from_the_host_come_one_batch_a_call(here):
    config, _ = parse_config(["--config=imagenet_lt", "--config.train.steps_per_call=2"])
    with pytest.raises(UserError, match="steps_per_call=2: expected 0 or 1"):
        command.compile_steps(config, here)


def test_a_large_image_comes_as_a_batch_and_a_small_one_by_index(here):
    for name, expected in (("imagenet_lt", {"image", "label", "mask"}), ("cifar_lt", {"index", "mask"})):
        config, _ = parse_config([f"--config={name}"])
        steps = Steps(config, published_sizes(config), here.devices, here.platform)
        assert set(steps._inputs(4, "batch")) == expected


def test_sizes_are_those_of_the_long_tailed_set():
    config, _ = parse_config(["--config=cifar_lt:imbalance_factor=100"])
    sizes = published_sizes(config)
    assert (sizes.train, sizes.class_counts[0], sizes.class_counts[-1]) == (10_847, 500, 5)
    config, _ = parse_config(["--config=inat18"])
    assert published_sizes(config).train == 437_513 and len(published_sizes(config).class_counts) == 8142
    assert set(PUBLISHED) >= {"cifar10", "imagenet_lt", "places_lt"}


@pytest.mark.parametrize(
    ("arguments", "told"),
    [
        (["--topology=tpu:v5e:4x4"], 'pip install "jax[tpu]=='),
        (["--topology=gpu:h100"], 'pip install "jax[cuda13]=='),
        (["--topology=tpu:v9:4x4"], "expected tpu:v5e:4x4"),
        (["--topology=gpu:a1"], "expected tpu:v5e:4x4"),
        (["--topology=gpu:h100", "--batch-per-device=-1"], "--batch-per-device=-1"),
    ],
)
def test_what_cannot_be_compiled_is_said_in_one_line(arguments, told, monkeypatch):
    monkeypatch.setattr(importlib.util, "find_spec", lambda name, package=None: None)
    with pytest.raises(UserError, match=told.replace("[", r"\[")):
        command.main(["--config=cifar_lt", *arguments])


def test_unknown_stage_and_uneven_batch(here):
    config, _ = parse_config(["--config=cifar_lt"])
    with pytest.raises(UserError, match="--stages=nothing: expected some of representation,classifier"):
        command.compile_steps(config, here, stages=["nothing"])
    steps = Steps(config, published_sizes(config), here.devices * 3, "cpu")
    with pytest.raises(UserError, match=r"config.stages.representation.batch_size=128: expected a multiple of the 3"):
        steps.train("representation", 128)


def test_table_of_compiled_programs(tmp_path):
    counted = {
        "what": "train representation",
        "batch_per_device": 8,
        "fits": True,
        "memory": {"total": 2_260_000_000},
        "flops": 5.66e9,
        "bytes_accessed": None,
        "collectives": {"all-reduce": {"count": 72, "bytes": 5_077_176}},
        "gathers": {"count": 13, "of_pixels": 2},
        "scatters": {"count": 1, "of_pixels": 0},
        "seconds": {"lower": 16.2, "compile": 235.0},
    }
    too_large = {
        "what": "train classifier",
        "batch_per_device": 512,
        "fits": False,
        "error": "x",
        "seconds": {"compile": 9.6},
    }
    one = {"topology": "tpu:v5e:4x4", "dtype": "float32", "devices": 16}
    path = tmp_path / "results" / "n.json"
    path.parent.mkdir()
    path.write_text(json.dumps({**one, "device_memory": 16 << 30, "programs": [counted, too_large]}))
    assert table([path], tmp_path).splitlines()[2:] == [
        "| [n](results/n.json) | tpu:v5e:4x4 | 128 (8) | float32 | 2.26 of 17.2 | yes | 5.7 | - |"
        " 72 all-reduce of 5.1 MB | 13 (2), 1 (0) | 235 |",
        "| [n](results/n.json) classifier | tpu:v5e:4x4 | 8192 (512) | float32 |"
        " more than all of 17.2 | no | - | - | - | - | 10 |",
    ]
    path.write_text("{}")
    with pytest.raises(UserError, match=r"n\.json.*expected a file that shike-jax compile"):
        table([path], tmp_path)


def test_the_table_of_the_page_on_pods_is_that_of_its_files():
    page = (ROOT / "docs" / "notes" / "pods.md").read_text()
    files = sorted((ROOT / "docs" / "results" / "compiled").glob("*.json"))
    assert files and table(files, ROOT / "docs" / "notes") in page


def test_the_estimate_is_the_longer_of_work_and_traffic():
    """A v5e chip does 197 TFLOP and moves 819 GB in a second."""
    chip = topology.Topology("tpu:v5e:1x1", "tpu", [], 0, peaks=topology.TPUS["v5e"][1:])
    assert chip.least_seconds(197e9, 1e6) == pytest.approx(1e-3)
    assert chip.least_seconds(1e6, 819e6) == pytest.approx(1e-3)
    assert chip.least_seconds(None, 819e6) is None
    assert topology.Topology("here", "cpu", [], 0).least_seconds(1.0, 1.0) is None
