"""`benchmark step`: the compiled training step, measured in turns with plain Flax and PyTorch."""

from __future__ import annotations

import argparse
import functools
import math
import os
import resource
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from shike_jax.benchmark import measure
from shike_jax.common.parser import Parser
from shike_jax.errors import UserError

OTHERS = ("plain", "torch", "torch_compiled")
_EPILOG = """\
sides:
  ours            what a run compiles: the real step, data on the device
  plain           nn.Conv, nn.BatchNorm, textbook losses, optax.sgd under jit, as anybody would write it first
  torch           the same network, losses and optimiser in PyTorch: eager, channels-last, AMP with bfloat16
  torch_compiled  the same under torch.compile

All sides get the same weights and images; in every round each makes --steps_per_call steps and is waited for.
Compilation is timed apart. Model FLOPs: convolutions and matrix products of the forward pass, counted from its
trace, three times (forward, both gradients; once for the classifier stage, whose network is frozen). The floor is
their time at the rate of a large matrix product, measured in the same run after the sides.

examples:
  python -m shike_jax benchmark step --against=plain,torch --json=step.json
  python -m shike_jax benchmark step --model=shike_resnet50 --batch=256 --classes=1000 --dtype=bfloat16 \\
      --against=torch,torch_compiled --peak_tflops=790
  python -m shike_jax benchmark step --batch=4 --width=4 --blocks=1,1,1 --image_size=16      a quick try
"""


def main(argv: Sequence[str]) -> None:
    """Runs the command."""
    args = _parse(argv)
    if {"torch", "torch_compiled"} & set(args.against):
        measure.peer("pytorch", "--against=torch").require_torch()
    measure.check_writable(args.json)
    # Both frameworks use one GPU in turns: neither may take all of its memory. Before JAX wakes it.
    os.environ.setdefault("XLA_PYTHON_CLIENT_PREALLOCATE", "false")
    result = {**compare(args), **measure.origin("python -m shike_jax benchmark step", argv)}
    print(_text(result))
    measure.write(result, args.json)


def _parse(argv: Sequence[str]) -> argparse.Namespace:
    from shike_jax.benchmark import workload

    parser = Parser(
        "python -m shike_jax benchmark step",
        "Times one training step of SHIKE with synthetic images that lie on the device.",
        _EPILOG,
    )
    workload.add_arguments(parser, batch=128)
    parser.add_argument("--classes", type=measure.positive, default=100)
    parser.add_argument("--dtype", choices=("float32", "bfloat16"), default="float32", help="of the computation")
    parser.add_argument("--stage", choices=workload.STAGES, default="representation")
    parser.add_argument(
        "--augment",
        choices=("none", "autoaugment_cifar", "randaugment"),
        default="none",
        help="inside our step; adds a side without it, to see its share",
    )
    parser.add_argument(
        "--steps_per_call", type=measure.positive, help="steps between waits; default 1 on the CPU, else 50"
    )
    parser.add_argument("--repeats", type=measure.positive, default=10, help="rounds that count")
    parser.add_argument(
        "--against", type=functools.partial(_names, OTHERS), default=(), metavar="SIDE,...", help=", ".join(OTHERS)
    )
    parser.add_argument("--seeds", type=measure.positive, default=1, help="adds a side that trains so many at once")
    parser.add_argument("--compile_mode", default="default", help="of torch.compile")
    parser.add_argument("--peak_tflops", type=float, help="matrix peak that the share is stated of")
    parser.add_argument("--profile", metavar="DIR", help="also trace two calls of ours for TensorBoard's profiler")
    parser.add_argument("--json", type=Path, metavar="FILE")
    return parser.parse_args(argv)


def compare(args: argparse.Namespace) -> dict[str, Any]:
    """Builds the sides, measures them in turns and returns the result without its origin."""
    import jax

    from shike_jax.benchmark import workload as workloads
    from shike_jax.benchmark.flops import forward_flops, measure_ceilings
    from shike_jax.cluster import cpu

    cpu.prepare()
    where = measure.device()
    chips = 1 if where["platform"] == "cpu" else where["count"]  # the devices of a CPU share its cores
    if args.batch % where["count"]:
        raise UserError(f"--batch={args.batch}: expected a multiple of the {where['count']} devices")
    if chips > 1 and args.against:
        raise UserError(f"--against={','.join(args.against)}: expected one device, as these sides use, not {chips}")
    steps = args.steps_per_call or (1 if where["platform"] == "cpu" else 50)
    chosen = ("batch", "image_size", "classes", "dtype", "stage", "width", "blocks")
    workload = workloads.make(args.model, steps=steps, **{name: getattr(args, name) for name in chosen})
    sides = {name: make() for name, make in _makers(args, workload).items()}
    losses: dict[str, list[float]] = {name: [] for name in sides}
    runs = {name: lambda _, n=name: losses[n].append(sides[n].run()) for name in sides}
    seconds = measure.in_turns(runs, args.repeats)
    for name, found in losses.items():
        if not all(map(math.isfinite, found)):
            raise UserError(f"the loss of {name} is not finite: its times mean nothing")
    ceilings = measure_ceilings(args.dtype)
    seeds = {name: args.seeds if "at once" in name else 1 for name in sides}  # networks trained in a step
    flops = forward_flops(workload) * (1 if args.stage == "classifier" else 3)
    described = {}
    for name, side in sides.items():
        times = measure.describe([sample / steps for sample in seconds[name]], args.batch * seeds[name])
        rate = round(seeds[name] * flops / 1e9 / times["median_ms"], 4)
        described[name] = {
            **times,
            "seeds": seeds[name],
            "compile_seconds": round(side.compile_seconds, 2),
            "memory_bytes": side.memory_bytes,
            "first_call_loss": losses[name][0],
            "model_tflops_per_second": rate,
        }
        if args.peak_tflops:
            described[name]["share_of_peak"] = round(rate / args.peak_tflops / chips, 4)
    if args.profile:
        with jax.profiler.trace(args.profile):
            for _ in range(2):
                sides["ours"].run()
    return {
        "device": where,
        "workload": {
            **{key: getattr(args, key) for key in ("model", "batch", "classes", "dtype", "stage", "augment")},
            "image_size": workload.images.shape[1],
            "steps_per_call": steps,
            "width": args.width,
            "blocks": list(args.blocks),
        },
        "model_flops_per_step": flops,
        "flops_counted": "convolutions and matrix products of the forward pass, from its trace"
        + ("" if args.stage == "classifier" else ", times 3"),
        "bytes_accessed_by_ours_per_call": sides["ours"].bytes_accessed,
        "peak_tflops_stated": args.peak_tflops,
        "ceilings": ceilings,
        "floor_ms": round(1e3 * flops / 1e12 / ceilings["matrix_tflops"] / chips, 3),
        "memory_counted": "JAX: arguments, results and temporaries of the compiled program; PyTorch: largest "
        "allocation on a GPU, unknown on a CPU",
        "process_peak_bytes": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024,
        "sides": described,
        "speed_of_ours_over": {
            name: round(described[name]["median_ms"] / seeds[name] / described["ours"]["median_ms"], 3)
            for name in sides
            if name != "ours"
        },
    }


def _makers(args: argparse.Namespace, workload: Any) -> dict[str, Callable[[], Any]]:
    """Name to a function that builds that side, ours first."""
    from shike_jax.benchmark.ours import Ours

    makers: dict[str, Callable[[], Any]] = {"ours": lambda: Ours(workload, args.augment)}
    if args.augment != "none":
        makers["ours without augmentation"] = lambda: Ours(workload)
    if args.seeds > 1:
        makers[f"ours, {args.seeds} seeds at once"] = lambda: Ours(workload, args.augment, seeds=args.seeds)

    def torch(*mode: str) -> Any:
        return measure.peer("pytorch", "--against=torch").Torch(workload, *mode)

    others = {
        "plain": lambda: measure.peer("plain", "--against=plain").Plain(workload),
        "torch": torch,
        "torch_compiled": lambda: torch(args.compile_mode),
    }
    return makers | {name: others[name] for name in args.against}


def _text(result: dict[str, Any]) -> str:
    work = result["workload"]
    lines = [
        f"{work['model']}, {work['stage']} stage, batch {work['batch']} of {work['image_size']} px, {work['dtype']}, "
        f"on {result['device']['count']} x {result['device']['kind']}, {result['cores']} cores"
    ]
    for name, side in result["sides"].items():
        ratio = result["speed_of_ours_over"].get(name)
        memory = f"{side['memory_bytes'] / 1e9:7.2f} GB" if side["memory_bytes"] else f"{'-':>7}   "
        share = f"  {100 * side['share_of_peak']:5.1f} % of peak" if "share_of_peak" in side else ""
        lines.append(
            f"  {name:<26} {side['median_ms']:10.2f} ms {side['images_per_second']:10.0f} img/s {memory}  first call "
            f"{side['compile_seconds']:6.1f} s{share}" + (f"  ours is {ratio:.2f} x as fast" if ratio else "")
        )
    ceilings = result["ceilings"]
    lines.append(
        f"  {'floor':<26} {result['floor_ms']:10.2f} ms: {result['model_flops_per_step'] / 1e9:.1f} GFLOP at "
        f"{ceilings['matrix_tflops']:.3f} TFLOP/s (memory: {ceilings['memory_gb_per_second']:.0f} GB/s)"
    )
    return "\n".join(lines)


def _names(known: Sequence[str], text: str) -> tuple[str, ...]:
    names = tuple(dict.fromkeys(filter(None, text.split(","))))
    unknown = [name for name in names if name not in known]
    if unknown:
        raise argparse.ArgumentTypeError(f"{unknown[0]!r}: expected some of {', '.join(known)}")
    return names
