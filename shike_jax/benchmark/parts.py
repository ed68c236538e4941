"""`benchmark parts`: the convolutions and batch normalisations of a step one by one, in turns with PyTorch's."""

from __future__ import annotations

import argparse
import collections
import contextlib
import functools
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np

from shike_jax import models
from shike_jax.benchmark import measure, workload
from shike_jax.cluster import cpu, parallel
from shike_jax.common.parser import Parser
from shike_jax.models.calling import onednn
from shike_jax.models.layers import BatchNorm, Conv, convolve
from shike_jax.models.resnet import relu
from shike_jax.training.compiled_steps import gains_by_onednn

_EPILOG = """\
Each kind of convolution is timed forward, with respect to its input (but for the first: nobody asks for the gradient
of the images) and with respect to its weights; batch normalisation with a ReLU after it, forward and backward at once.
A kind's time in a step is the sum of its medians times how often the network has it. What fusion across layers gains or
costs, additions, classifiers, losses and the update are not in it.

examples:
  taskset -c 0 python -m shike_jax benchmark parts --batch=64 --against=torch --json=parts.json
  python -m shike_jax benchmark parts --batch=4 --width=4 --blocks=1,1,1 --image_size=16 --repeats=1      a quick try
"""


# Part of a layer to a function of the round's number that runs it once and returns when it is done.
Parts = dict[str, Callable[[int], Any]]


class Layer(NamedTuple):
    """A kind of layer: a convolution, or batch normalisation with a ReLU where there is no kernel."""

    inputs: tuple[int, ...]  # its shape, [B,H,W,C]
    kernel: tuple[int, ...] = ()  # [size,size,C/groups,F], or empty
    stride: int = 1
    groups: int = 1
    first: bool = False  # its input is the images

    def __str__(self) -> str:
        size = " x ".join(map(str, self.inputs[1:]))
        if not self.kernel:
            return f"batch normalisation, ReLU of {size}"
        strided = f", stride {self.stride}" if self.stride > 1 else ""
        grouped = f", {self.groups} groups" if self.groups > 1 else ""
        return f"convolution {self.kernel[0]}x{self.kernel[1]} of {size} to {self.kernel[3]}{strided}{grouped}"

    @property
    def flops(self) -> int:
        """Operations of the convolution forward; each of its gradients has about as many."""
        if not self.kernel:
            return 0
        batch, height, width, _ = self.inputs
        return 2 * batch * -(-height // self.stride) * -(-width // self.stride) * int(np.prod(self.kernel))


def main(argv: Sequence[str]) -> None:
    """Runs the command."""
    args = _parse(argv)
    if args.against:
        measure.peer("pytorch", "--against=torch").require_torch()
    measure.check_writable(args.json)
    result = {
        "device": measure.device(),
        **compare(args),
        **measure.origin("python -m shike_jax benchmark parts", argv),
    }
    print(_text(result))
    measure.write(result, args.json)


def _parse(argv: Sequence[str]) -> argparse.Namespace:
    parser = Parser(
        "python -m shike_jax benchmark parts", "Times the layers of a training step of SHIKE one by one.", _EPILOG
    )
    workload.add_arguments(parser, batch=64)
    parser.add_argument("--repeats", type=measure.positive, default=20, help="rounds that count")
    parser.add_argument("--against", choices=("torch",), help="the same in PyTorch, channels-last, in turns")
    parser.add_argument("--json", type=Path, metavar="FILE")
    return parser.parse_args(argv)


def compare(args: argparse.Namespace) -> dict[str, Any]:
    """Times every kind of layer of the network in float32 and returns the result without its origin."""
    cpu.prepare()
    work = workload.make(args.model, batch=args.batch, image_size=args.image_size, width=args.width, blocks=args.blocks)
    by_onednn = gains_by_onednn((work.batch, *work.images.shape[1:])) and jax.device_count() == 1 and onednn.usable()
    makers: dict[str, Callable[[Layer], Parts]] = {"ours": functools.partial(our_parts, by_onednn=by_onednn)}
    if args.against:
        makers["torch"] = measure.peer("pytorch", "--against=torch").layer_parts
    layers: list[dict[str, Any]] = []
    in_a_step = dict.fromkeys(makers, 0.0)
    for layer, count in layers_of(work).items():
        sides = {name: make(layer) for name, make in makers.items()}
        medians: dict[str, dict[str, float]] = {}
        for part in sides["ours"]:
            seconds = measure.in_turns({name: parts[part] for name, parts in sides.items()}, args.repeats)
            medians[part] = {name: measure.describe(found, 1)["median_ms"] for name, found in seconds.items()}
            for name, median in medians[part].items():
                in_a_step[name] += count * median
        layers.append(
            {"layer": str(layer), "times_in_a_step": count, "gflop": round(layer.flops / 1e9, 4), "median_ms": medians}
        )
    return {
        "workload": {key: getattr(args, key) for key in ("model", "batch", "image_size", "width", "blocks", "repeats")},
        "layers": layers,
        "in_a_step_ms": {name: round(total, 1) for name, total in in_a_step.items()},
    }


def layers_of(work: workload.Workload) -> dict[Layer, int]:
    """The kinds of layers of a workload's network and how often each occurs, in the order of the forward pass."""
    network = models.build_model(work.model, work.classes)
    found: collections.Counter[Layer] = collections.Counter()

    def watch(call: Callable, args: tuple, kwargs: dict, context: Any) -> Any:
        module = context.module
        called = context.method_name == "__call__"
        if called and isinstance(module, Conv):
            shape = (module.size, module.size, args[0].shape[-1] // module.groups, module.features)
            found[Layer(args[0].shape, shape, module.stride, module.groups, first=not found)] += 1
        elif called and isinstance(module, BatchNorm):
            found[Layer(args[0].shape)] += 1
        return call(*args, **kwargs)

    images = jax.ShapeDtypeStruct((work.batch, *work.images.shape[1:]), jnp.float32)
    training = functools.partial(network.apply, train_trunk=True, train_experts=True, mutable=["batch_stats"])
    with nn.intercept_methods(watch):
        jax.eval_shape(training, work.variables, images)
    return dict(found)


def our_parts(layer: Layer, by_onednn: bool = False) -> Parts:
    """Runs each part on the first device, compiled as a training step is; `by_onednn` as `compile_train` has it."""
    random = np.random.default_rng(0)

    def draw(shape: tuple[int, ...]) -> jax.Array:
        return jnp.asarray(random.normal(size=shape), jnp.float32)

    def timed(function: Callable, *arguments: Any) -> Callable[[int], Any]:
        with contextlib.ExitStack() as held:
            if by_onednn:
                held.enter_context(onednn.chosen())
                held.enter_context(onednn.unkept())
            compiled = jax.jit(function, compiler_options=dict(parallel.compiler_options())).lower(*arguments).compile()
        return lambda _: jax.block_until_ready(compiled(*arguments))

    x = draw(layer.inputs)
    if not layer.kernel:
        norm = BatchNorm()
        variables = norm.init(jax.random.key(0), x, train=True)

        def forward(params: Any, x: jax.Array) -> jax.Array:
            return relu(norm.apply({**variables, "params": params}, x, train=True, mutable=["batch_stats"])[0])

        def both(params: Any, x: jax.Array, grad: jax.Array) -> Any:
            out, backward = jax.vjp(forward, params, x)
            return out, backward(grad)

        return {"forward and backward": timed(both, variables["params"], x, draw(x.shape))}
    kernel, form = draw(layer.kernel), functools.partial(convolve, stride=layer.stride, groups=layer.groups)
    grad = draw(jax.eval_shape(form, x, kernel).shape)
    parts = {
        "forward": timed(lambda x, k: jax.vjp(form, x, k)[0], x, kernel),  # as in training: the form may differ
        "to the input": timed(lambda x, k, g: jax.vjp(lambda x: form(x, k), x)[1](g), x, kernel, grad),
        "to the weights": timed(lambda x, k, g: jax.vjp(lambda k: form(x, k), k)[1](g), x, kernel, grad),
    }
    if layer.first:
        del parts["to the input"]
    return parts


def _text(result: dict[str, Any]) -> str:
    """A table for a person."""
    sides = list(result["in_a_step_ms"])
    lines = [f"{'a step has':>10}  {'layer':<48} {'part':<22}" + "".join(f"{side + ', ms':>12}" for side in sides)]
    for layer in result["layers"]:
        for part, median in layer["median_ms"].items():
            times = "".join(f"{median[side]:>12.2f}" for side in sides)
            lines.append(f"{layer['times_in_a_step']:>10}  {layer['layer']:<48} {part:<22}{times}")
    total = "".join(f"{result['in_a_step_ms'][side]:>12.1f}" for side in sides)
    return "\n".join([*lines, f"{'':>10}  {'all of them':<48} {'':<22}{total}"])
