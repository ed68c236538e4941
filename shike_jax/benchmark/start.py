"""`benchmark start`: the seconds from the command to the end of a run's first step, by what they go into."""

from __future__ import annotations

import itertools
import os
import time
from collections.abc import Iterator, Sequence
from pathlib import Path

from ml_collections import ConfigDict

from shike_jax.benchmark import measure
from shike_jax.common.parser import Parser
from shike_jax.config.loading import parse_command

_EPILOG = """\
Everything happens in this process, as in `train`, but for checkpoints and logs: imports, waking the device, reading the
data, drawing the weights, tracing the training step, compiling it, and the first step itself. Compiled programs are
kept and found as in `train`; JAX_ENABLE_COMPILATION_CACHE=false shows what a first start costs.

example:
  JAX_ENABLE_COMPILATION_CACHE=false python -m shike_jax benchmark start --config=configs/digits_lt.py --json=start.json
"""


def main(argv: Sequence[str]) -> None:
    """Runs the command."""
    parser = Parser("python -m shike_jax benchmark start", "Times the start of a run by its parts.", _EPILOG)
    parser.add_argument("--json", type=Path, metavar="FILE")
    config, args = parse_command(parser, argv)
    measure.check_writable(args.json)
    clocks, seconds = {"seconds": age, "processor_seconds": time.process_time}, {}
    before = dict.fromkeys(clocks, 0.0)
    for part in parts(config):
        now = {name: clock() for name, clock in clocks.items()}
        seconds[part] = {name: round(now[name] - before[name], 2) for name in clocks}
        before = now
    seconds["all"] = {name: round(value, 2) for name, value in before.items()}
    from shike_jax.cluster import compiled_cache

    for part, of in seconds.items():
        print(f"  {part:<16} {of['seconds']:7.2f} s, {of['processor_seconds']:6.2f} s of the processor")
    kept = compiled_cache.folder_in_use() is not None
    found = {"name": config.name, "device": measure.device(), "compiled_programs_kept": kept, "parts": seconds}
    measure.write({**found, **measure.origin("python -m shike_jax benchmark start", argv)}, args.json)


def age() -> float:
    """Seconds since this process began; where Linux does not say, its processor time."""
    try:
        numbers = Path("/proc/self/stat").read_text(encoding="utf-8").rpartition(")")[2].split()
        began = int(numbers[19]) / os.sysconf("SC_CLK_TCK")
    except OSError:
        return time.process_time()
    return time.clock_gettime(time.CLOCK_BOOTTIME) - began


def parts(config: ConfigDict) -> Iterator[str]:
    """Does one part of a start after the other, and yields its name when it is done."""
    import jax

    from shike_jax.cluster import compiled_cache, cpu, parallel
    from shike_jax.data import sampling, sources
    from shike_jax.data.feeds import make_feeds
    from shike_jax.training import randomness
    from shike_jax.training.compiled_steps import compile_train
    from shike_jax.training.setup import check_devices
    from shike_jax.training.state import start_stage
    from shike_jax.training.task import Task

    parallel.use_backend(config.train.backend)
    yield "imports"
    if config.dtype == "float64":
        jax.config.update("jax_enable_x64", True)
    compiled_cache.use_default_folder()
    cpu.prepare(config.train.cpu_devices)
    check_devices(config)
    yield "device"
    task = Task(config, sources.load(config.data))
    feed = make_feeds(task.source, config)["train"]
    yield "data"
    variables = task.first_variables()
    program, settings = task.stage(0, variables["params"]).program, task.plans[0].settings
    state = parallel.replicate(start_stage(variables, program))
    order = randomness.order_key(program.key)
    rows = sampling.epoch_plan(settings.sampler, order, 0, task.labels, settings.batch_size, settings.keep_last)
    views = randomness.host_seed(config.seed, 0, 0)
    [(_, inputs)] = itertools.islice(feed.calls(rows, 0, 1, views), 1)
    call = compile_train(program, feed.fetch, by_onednn=task.by_onednn(0))
    yield "initialisation"
    lowered = call.lower(state, feed.data, inputs)
    yield "trace"
    call = call.compiled_from(lowered)
    yield "compile"
    jax.block_until_ready(call(state, feed.data, inputs))
    yield "first step"
