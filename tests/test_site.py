"""The documentation site builds without a warning, and the tutorial runs; where what they need is installed."""

import os
import subprocess
import sys

import pytest

from tests.conftest import ROOT

pytestmark = pytest.mark.usefixtures("quickly_compiled")


def test_the_site_builds_without_warnings(tmp_path):
    pytest.importorskip("furo")
    pytest.importorskip("myst_nb")
    command = [sys.executable, "-m", "sphinx", "-W", "--keep-going", "-q", "docs", str(tmp_path / "site")]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    page = (tmp_path / "site" / "api.html").read_text()
    assert "training images of each class, all positive" in page  # of balanced_softmax's docstring
    assert "--config=digits_lt" in (tmp_path / "site" / "generated" / "help.html").read_text()


def test_the_tutorial_runs(tmp_path, monkeypatch):
    nbformat, nbclient = pytest.importorskip("nbformat"), pytest.importorskip("nbclient")
    pytest.importorskip("ipykernel")
    notebook = nbformat.read(ROOT / "docs" / "tutorial.ipynb", 4)
    assert "colab.research.google.com" in notebook.cells[0].source
    cells = [cell for cell in notebook.cells if cell.cell_type == "code"]
    # Each of its cells has been run; here it trains for less time.
    assert all(cell.outputs for cell in cells[1:]) and not any("Error" in str(cell.outputs) for cell in cells)
    [training] = [cell for cell in cells if "epochs=40" in cell.source]
    training.source = training.source.replace("width=8, epochs=40, classifier_epochs=8", "width=4, epochs=1")
    training.source = training.source.replace("width=4, epochs=1", "width=4, epochs=1, classifier_epochs=1")
    monkeypatch.setenv("PYTHONPATH", os.pathsep.join([str(ROOT), os.environ.get("PYTHONPATH", "")]))
    client = nbclient.NotebookClient(notebook, timeout=300, resources={"metadata": {"path": str(tmp_path)}})
    client.execute()
    assert (tmp_path / "digits_classifier" / "model.safetensors").is_file()
