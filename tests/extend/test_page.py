"""docs/extend.md: its file trains and its commands run; docs/make_features.py writes what features_lt reads."""

import re
import runpy
import shlex
import sys

import numpy as np
import pytest

from shike_jax.commands.program import main
from tests.conftest import ROOT

pytestmark = pytest.mark.usefixtures("quickly_compiled")

PAGE = (ROOT / "docs" / "extend.md").read_text()
SHORT = {
    "train": ["--config.stages.only.max_steps=3", "--config.train.tensorboard=False"],
    "sweep": ["--config.stages.only.max_steps=1", "--dry-run"],
}


def test_the_file_of_the_page_goes_through_its_commands(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    [text] = re.findall(r"^```python\n(.*?)^```$", PAGE, re.MULTILINE | re.DOTALL)
    (tmp_path / "prototypes.py").write_text(text)
    [commands] = re.findall(r"^```bash\n(.*?)^```$", PAGE, re.MULTILINE | re.DOTALL)
    for line in commands.strip().splitlines():
        python, flag, package, command, *arguments = shlex.split(line)
        assert (python, flag, package) == ("python", "-m", "shike_jax")
        assert not main([command, *arguments, *SHORT.get(command, [])])
    said = capsys.readouterr().out
    assert "losses/prototypes" in said and "300 examples" in said and said.count("--config.seed=") == 3


def test_a_folder_of_pictures_becomes_features(tmp_path, monkeypatch, capsys):
    for name, count in (("bee", 6), ("ant", 3)):
        (tmp_path / "photos" / name).mkdir(parents=True)
        for i in range(count):
            (tmp_path / "photos" / name / f"{i}.JPG").touch()
        (tmp_path / "photos" / name / "notes.txt").touch()
    script = runpy.run_path(str(ROOT / "docs" / "make_features.py"), run_name="script")

    def features_of(model, transform, files, batch):
        assert (model, transform, batch) == ("some", "thing", 64)
        return np.array([[file.parent.name == "bee", int(file.stem)] for file in files], np.float32)

    monkeypatch.setitem(script["main"].__globals__, "features_of", features_of)
    monkeypatch.setitem(script["LOADERS"], "timm", lambda name: ("some", "thing"))
    output = tmp_path / "features.npz"
    argv = ["make_features.py", f"--images={tmp_path / 'photos'}", f"--output={output}", "--model=timm:any"]
    monkeypatch.setattr(sys, "argv", argv)
    script["main"]()
    with np.load(output) as file:
        assert file["features"].tolist() == [[0, i] for i in range(3)] + [[1, i] for i in range(6)]
        assert file["labels"].tolist() == [0] * 3 + [1] * 6
    capsys.readouterr()
    main(["inspect", f"--config=features_lt:train={output},test={output}"])
    said = capsys.readouterr().out
    assert "arrays float32 [2]" in said and "training images of a class: 6 to 3" in said
