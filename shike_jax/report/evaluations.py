"""Evaluations that figures and tables need: read where they lie, else computed from the run's weights and kept."""

from __future__ import annotations

import hashlib
import json
from pathlib import Path
from typing import Any

import numpy as np

from shike_jax.common.buckets import downloaded
from shike_jax.common.text import parse_json, slug
from shike_jax.config.loading import checkpoint_config
from shike_jax.errors import UserError, naming
from shike_jax.evaluation.checkpoint import evaluate_as_trained, meta_of, save
from shike_jax.evaluation.classifier import load
from shike_jax.report.runs import Run


def evaluation(run: Run, folder: Path, compute: bool) -> tuple[dict[str, Any], dict[str, np.ndarray]]:
    """The summary of a run's test part, and what is known of each image: arrays as `evaluate --output` names them.

    Looked for in `RUN/evaluation.npz`, which `evaluate --output` may have written, then in `folder`; computed ones are
    kept there. UserError where there is none and it cannot be computed (no weights, no data) or may not be (`compute`).
    """
    known = hashlib.sha256(json.dumps([str(run.path), run.results], sort_keys=True).encode()).hexdigest()[:12]
    cached = folder / f"{slug(run.results['name'])}-seed{run.seed}-{known}.npz"
    for path in (run.path / "evaluation.npz", cached):
        if path.exists():
            return _read(path, run)
    if not compute:
        raise UserError("not evaluated (--no-evaluate)")
    classifier = load(run.path)
    save(cached, *evaluate_as_trained(classifier, checkpoint_config(classifier.meta)))
    return _read(cached, run)


def _read(path: Path, run: Run) -> tuple[dict[str, Any], dict[str, np.ndarray]]:
    with naming(path, "an evaluation"), downloaded(path) as local, np.load(local) as file:
        summary = parse_json(str(file["summary"]))
        arrays = {name: file[name] for name in file.files if name != "summary"}
        split, part = summary["data"]["hash"], summary["data"].get("part", "test")
    if split != run.results["split"]["hash"]:
        raise UserError(f"{path}: of another split than the run's")
    if part != (expected := run.results.get("part", "test")):
        raise UserError(f"{path}: of part {part!r}; expected an evaluation of {expected!r}, which the run reports")
    try:
        weights = meta_of(run.path)["digest"]
    except UserError:  # the run has not kept any that can be read
        weights = None
    scored = summary.get("checkpoint", {}).get("digest")
    if weights is not None and scored != weights:
        raise UserError(
            f"{path}: of other weights ({str(scored)[:12]}) than the run's ({weights[:12]}); expected an evaluation of "
            f"{run.path}; remove the file, or write it again with python -m shike_jax evaluate"
        )
    return summary, arrays
