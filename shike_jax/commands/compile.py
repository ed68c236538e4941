"""`shike-jax compile`: a configuration's training and evaluation step, compiled for devices that are not there."""

from __future__ import annotations

import functools
import math
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import jax
from ml_collections import ConfigDict

from shike_jax.cluster import compiled_program, topology
from shike_jax.common import atomic
from shike_jax.common.parser import Parser
from shike_jax.common.provenance import code_version, commit, versions
from shike_jax.common.text import to_json
from shike_jax.config.loading import parse_command
from shike_jax.errors import UserError
from shike_jax.training.ahead_of_time import Steps, published_sizes

_EPILOG = """\
examples:
  python -m shike_jax compile --config=cifar_lt --topology=tpu:v5e:4x4
  python -m shike_jax compile --config=imagenet_lt --config.dtype=bfloat16 --topology=gpu:h200 --json=inlt.json

No such device is needed, and no data are read. One program takes one to ten minutes of one CPU core. All figures are
for one device, and they are the compiler's estimates, not measurements. It counts the body of a loop once
(--config.train.steps_per_call=N makes a loop of N training steps), and a run may need more memory than the program
itself. Only one process at a time can compile for TPUs.
"""


def compile_steps(
    config: ConfigDict,
    where: topology.Topology,
    *,
    stages: Sequence[str] = (),
    batch_per_device: int = 0,
    with_evaluation: bool = True,
    classes: int = 0,
    images: int = 0,
    tell: Callable[[str], None] = lambda line: None,
) -> dict[str, Any]:
    """Compiles the training step of stages (empty: the first) and the evaluation, with the last one's classifiers.

    `config.train.steps_per_call` training steps make a call (0: one), several as a loop whose body is counted once.
    A `batch_per_device` of 0 is the configuration's batch, shared out; `classes` and `images` are as for
    `published_sizes`. `tell` gets a line as each program is done. Gives what --json holds: in `programs` for each what
    `compiled_program.analyse` counts, and seconds of lowering and compiling.
    """
    steps = Steps(config, published_sizes(config, classes, images), where.devices, where.platform)
    count, side = len(where.devices), config.data.image_size
    jobs: list[tuple[str, int, Callable[[int], jax.stages.Lowered]]] = []
    for stage in stages or config.run[:1]:
        if stage not in config.run:
            raise UserError(f"--stages={stage}: expected some of {','.join(config.run)}")
        batch = batch_per_device * count or config.stages[stage].batch_size
        jobs.append((f"train {stage}", batch, functools.partial(steps.train, stage)))
    if with_evaluation:
        heads = config.stages[config.run[-1]].heads
        batch = math.ceil(config.eval.batch_size / count) * count
        jobs.append(("evaluate", batch, functools.partial(steps.evaluate, heads)))
    programs = []
    for what, batch, lower in jobs:
        one = {"what": what, "batch_per_device": batch // count, **_compile(lower, batch, side**2, where.memory)}
        programs.append(one)
        tell(describe(one, where))
    return {
        "name": config.name,
        "backbone": config.model.backbone,
        "dtype": config.dtype,
        "topology": where.text,
        "devices": count,
        "device_kind": where.devices[0].device_kind,
        "device_memory": where.memory,
        "steps_per_call": steps.steps_per_call,
        "programs": programs,
        "commit": commit(),
        "code": code_version(),
        "versions": {**versions(), "compiler": where.compiler},
    }


def _compile(lower: Callable[[int], jax.stages.Lowered], batch: int, pixels: int, memory: int) -> dict[str, Any]:
    began = time.perf_counter()
    lowered = lower(batch)
    middle = time.perf_counter()
    try:
        compiled = lowered.compile()
    except jax.errors.JaxRuntimeError as error:
        text = " ".join(str(error).split())
        if "RESOURCE_EXHAUSTED" not in text and "out of memory" not in text:
            raise
        return {"fits": False, "error": text[:400], "seconds": {"compile": round(time.perf_counter() - middle, 1)}}
    seconds = {"lower": round(middle - began, 1), "compile": round(time.perf_counter() - middle, 1)}
    counts = compiled_program.analyse(compiled, pixels)
    fits = counts["memory"]["total"] <= memory if counts["memory"] else None
    return {"fits": fits, **counts, "seconds": seconds}


def describe(one: dict[str, Any], where: topology.Topology) -> str:
    """The lines that a person reads of one program."""
    size = f"{where.memory / 1e9:.1f} GB of one {where.devices[0].device_kind}"
    head = f"{one['what']}, {one['batch_per_device']} images on each of {len(where.devices)} devices"
    if "error" in one:
        return f"{head}: does not fit the {size}: {one['error']}"
    memory, seconds = one["memory"], one["seconds"]
    lines = {"work": _amount(one["flops"], "FLOP"), "traffic": _amount(one["bytes_accessed"], "B")}
    if memory:
        parts = ", ".join(
            f"{part} {memory[part] / 1e9:.3f}" for part in ("arguments", "results", "temporaries", "code")
        )
        verdict = "fits" if one["fits"] else "does not fit"
        lines = {"memory": f"{memory['total'] / 1e9:.3f} GB ({parts}): {verdict} the {size}", **lines}
    if (least := where.least_seconds(one["flops"], one["bytes_accessed"])) is not None:
        lines["estimate"] = f"at least {1e3 * least:.2f} ms at the chip's published peaks, which is no measurement"
    collectives = [f"{v['count']} {k} of {v['bytes'] / 1e6:.2f} MB" for k, v in one["collectives"].items()]
    lines["collectives"] = ", ".join(collectives) or "none"
    for name in ("gathers", "scatters"):
        lines[name] = f"{one[name]['count']}, of single pixels {one[name]['of_pixels']}"
    kernels = [f"{count} {kind}" for kind, count in one["kernels"].items()]
    more = ", ..." if len(kernels) > 6 else ""
    lines["kernels"] = f"{sum(one['kernels'].values())}: {', '.join(kernels[:6])}{more}"
    if one["loops"]:
        inside = sum(one["kernels_in_loops"].values())
        lines["loops"] = f"{one['loops']}, their bodies counted once: {inside} of the kernels"
    head += f" ({seconds['lower']:.0f} s to trace, {seconds['compile']:.0f} s to compile)"
    return "\n".join([head, *(f"  {name:<12} {text}" for name, text in lines.items())])


def _amount(value: float | None, unit: str) -> str:
    return f"{value / 1e9:.2f} G{unit}" if value is not None else "not stated by this compiler"


def main(argv: Sequence[str]) -> None:
    """Runs the command."""
    parser = Parser("python -m shike_jax compile", __doc__.partition(": ")[2], _EPILOG)
    parser.add_argument("--topology", required=True, metavar="DEVICES", help=f"one of {topology.EXPECTED}")
    parser.add_argument("--json", type=Path, metavar="FILE", help="write all counts there")
    parser.add_argument("--stages", default="", metavar="NAMES", help="comma-separated; default: the first of the run")
    about = "default: the configuration's batch"
    parser.add_argument("--batch-per-device", type=int, default=0, metavar="N", help=about)
    parser.add_argument("--no-evaluation", action="store_true", help="leave the evaluation step out")
    about = "of data of your own; default: as published"
    parser.add_argument("--classes", type=int, default=0, metavar="C", help=about)
    parser.add_argument("--images", type=int, default=0, metavar="N", help="training images of data of your own")
    config, args = parse_command(parser, argv)
    for name in ("batch_per_device", "classes", "images"):
        if getattr(args, name) < 0:
            raise UserError(f"--{name.replace('_', '-')}={getattr(args, name)}: expected a number of at least 1")
    where = topology.describe(args.topology)
    result = compile_steps(
        config,
        where,
        stages=[name for name in args.stages.split(",") if name],
        batch_per_device=args.batch_per_device,
        with_evaluation=not args.no_evaluation,
        classes=args.classes,
        images=args.images,
        tell=lambda line: print(line, flush=True),
    )
    if args.json:
        result = {"command": ["shike-jax", "compile", *argv], **result}
        with atomic.output(args.json, f"--json={args.json}") as partial:
            partial.write_text(to_json(result, indent=1) + "\n", encoding="utf-8")
