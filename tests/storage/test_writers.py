"""Curves, images and settings in TensorBoard without TensorFlow, Weights & Biases and MLflow, all of them offline."""

import json
import re
import sys
import time
import types

import numpy as np
import pytest

from shike_jax.common.extras import optional
from shike_jax.config.loading import parse_config
from shike_jax.errors import UserError
from shike_jax.storage import writers
from shike_jax.storage.logs import RunLog
from shike_jax.storage.workdir import discard_untrained


def record(log):
    """What a short run records: two epochs, images, a histogram, its settings."""
    for step, top1 in ((10, 20.0), (20, 35.5)):
        log.scalars(step, {"top1": top1, "experts": [1.0, 2.0]}, stage="one", epoch=step // 10)
    log.images(10, "augmented", np.random.default_rng(0).random((2, 8, 8, 3)))
    log.histogram(20, "accuracies", np.arange(5.0))
    log.hyperparameters({"seed": 3, "name": "digits"}, {"final/top1": 35.5})
    log.close()


def test_tensorboard_without_tensorflow(tmp_path):
    pytest.importorskip("tensorboardX")
    events = pytest.importorskip("tensorboard.backend.event_processing.event_accumulator")
    record(RunLog(tmp_path, "quiet", True))
    found = events.EventAccumulator(str(tmp_path / "tensorboard"))
    found.Reload()
    assert [(event.step, event.value) for event in found.Scalars("one/top1")] == [(10, 20.0), (20, 35.5)]
    assert found.Tags()["images"] and found.Tags()["histograms"] == ["accuracies"]
    assert [event.value for event in found.Scalars("final/top1")] == [35.5]


def test_weights_and_biases_offline(tmp_path, monkeypatch):
    pytest.importorskip("wandb")
    for name, value in (("MODE", "offline"), ("SILENT", "true"), ("PROJECT", "tests")):
        monkeypatch.setenv(f"WANDB_{name}", value)
    record(RunLog(tmp_path, "quiet", True, tensorboard=False, loggers=("wandb",)))
    [run] = (tmp_path / "wandb").glob("offline-run-*")
    [file] = run.glob("*.wandb")
    until = time.monotonic() + 30  # a process of its own writes it
    while b"one/top1" not in file.read_bytes() and time.monotonic() < until:
        time.sleep(0.1)
    assert b"one/top1" in file.read_bytes() and (tmp_path / "wandb.id").read_text().strip() in run.name
    assert list(run.glob("files/media/images/augmented_*.png"))


class Wandb(types.ModuleType):
    """Hands out the run that is open, as wandb documents, unless it is told to make another one."""

    def __init__(self):
        super().__init__("wandb")
        self.runs = []

    def init(self, *, id, name, reinit="return_previous", **_):
        if not self.runs or reinit == "create_new":
            self.runs.append(types.SimpleNamespace(id=id, name=name, step=0, logged=[], finish=lambda: None))
            self.runs[-1].log = lambda values, step, run=self.runs[-1]: run.logged.append((step, values))
        return self.runs[-1]


def test_seeds_of_one_process_are_runs_of_their_own(tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "wandb", wandb := Wandb())
    logs = []
    for seed in (0, 1):
        (tmp_path / f"seed{seed}").mkdir()
        logs.append(RunLog(tmp_path / f"seed{seed}", "quiet", True, tensorboard=False, loggers=("wandb",)))
    for seed, log in enumerate(logs):
        log.scalars(1, {"top1": 10.0 + seed})
        log.close()
    assert [(run.name, run.logged) for run in wandb.runs] == [
        ("seed0", [(1, {"top1": 10.0})]),
        ("seed1", [(1, {"top1": 11.0})]),
    ]


def test_mlflow_continues_a_run_that_has_moved_without_writing_where_it_was(tmp_path, monkeypatch):
    """A bucket's run has another local folder at each start; MLflow keeps the first one's as the place of images."""
    kept = {"images": []}

    class Client:
        def __init__(self, place):
            self.get_experiment_by_name = lambda title: None

        def create_experiment(self, title, files):
            kept["files"] = f"{files}/1/artifacts"

        def create_run(self, experiment, run_name):
            return self.get_run("7")

        def get_run(self, run):
            return types.SimpleNamespace(info=types.SimpleNamespace(run_id="7", artifact_uri=kept["files"]))

        def log_image(self, run, sheet, key, step):
            kept["images"].append((run, step))

    monkeypatch.delenv("MLFLOW_TRACKING_URI", raising=False)
    monkeypatch.setitem(sys.modules, "mlflow", types.SimpleNamespace(MlflowClient=Client))
    for step, (folder, note) in enumerate((("first", False), ("first", True), ("second", True))):
        (tmp_path / folder).mkdir(exist_ok=True)
        if note:
            (tmp_path / folder / "mlflow.id").write_text("7\n")
        writers.MLflow(tmp_path / folder, "run").write_images(step, {"x": np.zeros((1, 2, 2, 3))})
    assert kept["images"] == [("7", 0), ("7", 1)]


def test_what_loggers_wrote_goes_with_a_run_that_saved_nothing(tmp_path):
    """Else the next command would take the folder for something else's."""
    for name in ("config.json", "log.txt", "wandb.id", "wandb/latest", "mlflow.id", "mlflow.db", "mlflow_files/0"):
        (tmp_path / "run" / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / "run" / name).write_text("{}")
    discard_untrained(tmp_path / "run")
    assert not (tmp_path / "run").exists()


@pytest.mark.filterwarnings("ignore::DeprecationWarning")
def test_mlflow_in_a_file(tmp_path, monkeypatch):
    mlflow = pytest.importorskip("mlflow")
    pytest.importorskip("sqlalchemy")
    pytest.importorskip("alembic")
    monkeypatch.delenv("MLFLOW_TRACKING_URI", raising=False)
    (tmp_path / "elsewhere").mkdir()
    monkeypatch.chdir(tmp_path / "elsewhere")
    log = RunLog(tmp_path, "quiet", True, tensorboard=False, loggers=("mlflow",))
    log.scalars(10, {"top1": 20.0}, stage="one")
    log.close()
    record(RunLog(tmp_path, "quiet", True, tensorboard=False, loggers=("mlflow",)))  # the same run, continued
    client = mlflow.MlflowClient(f"sqlite:///{tmp_path / 'mlflow.db'}")
    [run] = client.search_runs([client.get_experiment_by_name("shike_jax").experiment_id])
    assert list((tmp_path / "mlflow_files").rglob("*.png")) and not (tmp_path / "elsewhere" / "mlruns").exists()
    assert run.data.params["seed"] == "3" and run.data.metrics["one/top1"] == 35.5 and run.info.status == "FINISHED"


def test_every_writer_has_the_interface():
    names = {name for name in vars(writers.Writer) if name.startswith(("write_", "close"))}
    for kind in (writers.WeightsAndBiases, writers.MLflow, writers.TensorBoardX):
        assert names <= set(vars(kind))


@pytest.mark.parametrize("name", ["wandb", "mlflow"])
def test_a_logger_that_is_not_installed_is_named_before_training(name, tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, name, None)
    with pytest.raises(UserError, match=re.escape(f"pip install '.[{name}]'")):
        RunLog(tmp_path, "quiet", True, tensorboard=False, loggers=(name,))


def test_without_any_of_them_one_quiet_line_says_so(tmp_path, monkeypatch, capsys):
    def absent(module, use):
        raise UserError(use) if module != "nothing" else optional(module, use)

    monkeypatch.setattr(writers, "optional", absent)
    RunLog(tmp_path, "info", True).close()
    assert capsys.readouterr().out == "no TensorBoard files (the extra tensorboard writes them)\n"


def test_loggers_are_chosen_by_name():
    config, _ = parse_config(["--config=digits_lt", "--config.train.loggers=('wandb',)"])
    assert json.dumps(config.train.loggers) == '["wandb"]'
    with pytest.raises(UserError, match="wandb"):
        parse_config(["--config=digits_lt", "--config.train.loggers=('comet',)"])
