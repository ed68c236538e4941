"""Where a run's curves, images and settings go in addition to its own files: one interface, a few lines for each place.

The interface is that of clu's writers. A place of a user's own needs the five methods of `Writer`.
"""

from __future__ import annotations

import os
import secrets
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, Protocol

import numpy as np

from shike_jax.common.extras import optional
from shike_jax.errors import UserError

Arrays = Mapping[str, np.ndarray]
CONTINUED_BY = ("wandb.id", "mlflow.id", "mlflow.db")  # what a run's next start needs of those that `LOGGERS` wrote
FOLDERS = ("wandb", "mlflow_files")  # what else they write into the work directory


class Writer(Protocol):
    """What receives numbers and images of a run; steps are those of the whole run."""

    def write_scalars(self, step: int, scalars: Mapping[str, float]) -> None:
        """Numbers by name."""

    def write_images(self, step: int, images: Arrays) -> None:
        """Images float [N,H,W,3] in 0..1 by name."""

    def write_histograms(self, step: int, arrays: Arrays) -> None:
        """Values by name, of which a histogram is drawn."""

    def write_hparams(self, hparams: Mapping[str, Any]) -> None:
        """The settings of a finished run."""

    def close(self) -> None:
        """Everything is where it belongs afterwards."""


def tensorboard(folder: Path) -> Writer:
    """TensorBoard's event files, by tensorboardX where it is installed, else by clu, which imports TensorFlow."""
    try:
        return TensorBoardX(folder)
    except UserError:
        metric_writers = optional("clu.metric_writers", "no TensorBoard files")
        return metric_writers.AsyncWriter(metric_writers.SummaryWriter(str(folder)))


class TensorBoardX:
    """Event files without TensorFlow; `UserError` where tensorboardX is not installed."""

    def __init__(self, folder: Path) -> None:
        self._writer = optional("tensorboardX", "no TensorBoard files").SummaryWriter(str(folder))

    def write_scalars(self, step: int, scalars: Mapping[str, float]) -> None:
        for name, value in scalars.items():
            self._writer.add_scalar(name, value, step)

    def write_images(self, step: int, images: Arrays) -> None:
        for name, values in images.items():
            self._writer.add_images(name, np.asarray(values), step, dataformats="NHWC")

    def write_histograms(self, step: int, arrays: Arrays) -> None:
        for name, values in arrays.items():
            self._writer.add_histogram(name, np.asarray(values), step)

    def write_hparams(self, hparams: Mapping[str, Any]) -> None:
        """Writes the run's line of the table of runs, into the same file as its curves."""
        from tensorboardX.summary import hparams as summaries

        for summary in summaries(dict(hparams), {}):
            self._writer.file_writer.add_summary(summary)

    def close(self) -> None:
        self._writer.close()


class WeightsAndBiases:
    """A run of Weights & Biases, continued by its id; $WANDB_PROJECT, $WANDB_MODE=offline and so on are obeyed."""

    def __init__(self, folder: Path, name: str) -> None:
        self._wandb = optional("wandb", "config.train.loggers: wandb")
        note = folder / "wandb.id"
        known = note.read_text(encoding="utf-8").strip() if note.exists() else secrets.token_hex(4)
        note.write_text(known + "\n", encoding="utf-8")
        # Runs of several seeds are open in one process, where wandb would otherwise hand out the first one again.
        options = {"resume": "allow", "reinit": "create_new"}
        self._run = self._wandb.init(dir=str(folder), name=name, id=known, **options)

    def _log(self, step: int, values: dict[str, Any]) -> None:
        self._run.log(values, step=max(step, self._run.step))

    def write_scalars(self, step: int, scalars: Mapping[str, float]) -> None:
        self._log(step, dict(scalars))

    def write_images(self, step: int, images: Arrays) -> None:
        self._log(step, {name: list(map(self._wandb.Image, np.asarray(values))) for name, values in images.items()})

    def write_histograms(self, step: int, arrays: Arrays) -> None:
        self._log(step, {name: self._wandb.Histogram(np.asarray(values)) for name, values in arrays.items()})

    def write_hparams(self, hparams: Mapping[str, Any]) -> None:
        self._run.config.update(dict(hparams), allow_val_change=True)

    def close(self) -> None:
        self._run.finish()


class MLflow:
    """A run of MLflow, continued by its id, at $MLFLOW_TRACKING_URI or in a file next to the run; no histograms."""

    def __init__(self, folder: Path, name: str) -> None:
        mlflow = optional("mlflow", "config.train.loggers: mlflow")
        named = os.environ.get("MLFLOW_TRACKING_URI")
        self._client = mlflow.MlflowClient(named or f"sqlite:///{folder.absolute() / 'mlflow.db'}")
        files = None if named else (folder.absolute() / "mlflow_files").as_uri()  # else images go to where one stands
        note = folder / "mlflow.id"
        if not note.exists():
            title = os.environ.get("MLFLOW_EXPERIMENT_NAME", "shike_jax")
            found = self._client.get_experiment_by_name(title)
            experiment = found.experiment_id if found else self._client.create_experiment(title, files)
            note.write_text(self._client.create_run(experiment, run_name=name).info.run_id + "\n", encoding="utf-8")
        self._id = note.read_text(encoding="utf-8").strip()
        # A run that has moved, as between starts in a bucket, would write its images where it began.
        self._takes_images = files is None or self._client.get_run(self._id).info.artifact_uri.startswith(files)

    def write_scalars(self, step: int, scalars: Mapping[str, float]) -> None:
        for name, value in scalars.items():
            self._client.log_metric(self._id, name, value, step=step)

    def write_images(self, step: int, images: Arrays) -> None:
        """Logs each name's images next to each other; does nothing where the run began in another folder."""
        for name, values in images.items() if self._takes_images else ():
            sheet = (np.concatenate(list(np.asarray(values)), axis=1) * 255).astype(np.uint8)
            self._client.log_image(self._id, sheet, key=name, step=step)

    def write_histograms(self, step: int, arrays: Arrays) -> None:
        """Does nothing: there is no place for them."""

    def write_hparams(self, hparams: Mapping[str, Any]) -> None:
        """Logs parameters, which cannot change: those of a continued run are known already."""
        known = self._client.get_run(self._id).data.params
        for name, value in hparams.items():
            if name not in known:
                self._client.log_param(self._id, name, value)

    def close(self) -> None:
        self._client.set_terminated(self._id)


LOGGERS: dict[str, Callable[[Path, str], Writer]] = {"wandb": WeightsAndBiases, "mlflow": MLflow}
