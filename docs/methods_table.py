"""Prints a Markdown table of finished runs: accuracies, size, work and time of each, from what they wrote.

python docs/methods_table.py docs/results/methods/cifar100
"""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT))

import jax  # noqa: E402
import jax.numpy as jnp  # noqa: E402
import numpy as np  # noqa: E402

from shike_jax import models  # noqa: E402
from shike_jax.benchmark.flops import matrix_flops  # noqa: E402
from shike_jax.common.command import run_main  # noqa: E402
from shike_jax.errors import UserError  # noqa: E402

SCORES = ("top1", "many", "medium", "few")


def size_and_work(config: dict[str, Any], classes: int) -> tuple[int, float]:
    """Parameters that a prediction uses, and its FLOPs for one image: convolutions and matrix products, from the trace.

    Args:
      config: of the run; its last stage says which set of classifiers predicts.
    """
    model, heads = config["model"], config["stages"][config["run"][-1]]["heads"]
    network, side = models.build_model(model, classes), config["data"]["image_size"]
    image = jax.ShapeDtypeStruct((1, side, side, 3), jnp.float32)
    shapes = jax.eval_shape(lambda key, x: network.init(key, x), jax.random.key(0), image)
    trace = jax.make_jaxpr(lambda variables, x: network.apply(variables, x, heads))(shapes, image)
    params = dict(shapes["params"])
    params["heads"] = dict(params["heads"])
    if heads == "representation" or model["second_head"] == "fresh":  # others correct the first set's logits
        params["heads"] = {heads: params["heads"][heads]}
    return models.num_parameters(params), matrix_flops(trace.jaxpr)


def rows(folder: Path) -> list[str]:
    """One row for each method below a folder: METHOD/results.json, or METHOD/seedN/results.json and their spread."""
    found: dict[str, list[Path]] = {}
    for path in sorted(folder.rglob("results.json")):
        found.setdefault(path.relative_to(folder).parts[0], []).append(path)
    if not found:
        raise UserError(f"{folder}: no results.json below it")
    return [_row(name, paths) for name, paths in found.items()]


def _row(name: str, paths: list[Path]) -> str:
    runs = [json.loads(path.read_text()) for path in paths]
    scores = [_spread([run[key] for run in runs]) for key in SCORES]
    parameters, flops = size_and_work(runs[0]["config"], len(runs[0]["split"]["class_counts"]))
    seconds = [one for path, run in zip(paths, runs, strict=True) for one in epoch_seconds(path, run)]
    time = f"{np.median(seconds):.2g}" if seconds else ""
    cells = [f"`{name}`", str(len(runs)), *scores, f"{parameters:,}", f"{flops / 1e6:.2f}", time]
    return f"| {' | '.join(cells)} |"


def epoch_seconds(results: Path, run: dict[str, Any]) -> list[float]:
    """Seconds of each epoch of stage one, from the rates in metrics.jsonl; empty where there is no such file."""
    metrics = results.with_name("metrics.jsonl")
    if not metrics.is_file():
        return []
    lines = [json.loads(line) for line in metrics.read_text().splitlines()]
    images, first = sum(run["split"]["class_counts"]), run["stages"][0]["name"]
    return [images / line["images_per_second"] for line in lines if "epoch_loss" in line and line["stage"] == first]


def _spread(values: list[float]) -> str:
    if any(value is None for value in values):
        return "-"
    return f"{np.mean(values):.2f}" + (f" ± {np.std(values, ddof=1):.2f}" if len(values) > 1 else "")


def main(argv: list[str]) -> None:
    """Prints the table of each folder."""
    for folder in argv:
        print("| method | seeds | top-1 | many | medium | few | parameters | MFLOP an image | s an epoch |")
        print("|---|---|---|---|---|---|---|---|---|")
        print("\n".join(rows(Path(folder))))


if __name__ == "__main__":
    run_main(main)
