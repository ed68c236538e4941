"""Every field is declared once: its check, its message, its help and the rules of resuming follow from that."""

import pytest

from shike_jax import config as schema
from shike_jax.commands import train as main
from shike_jax.common.paths import given_path
from shike_jax.config import to_plain, with_defaults
from shike_jax.config.field import Field
from shike_jax.config.fields import FIELDS, may_change, tells_apart
from shike_jax.config.loading import parse_config
from shike_jax.errors import UserError
from shike_jax.methods import Choice, Number
from shike_jax.storage.workdir import discard_untrained, opened

REFUSED = {  # what was typed: what is expected
    "model.depths=None": "1 to 64 whole numbers from 1 to 9, such as (1, 2, 1)",
    "model.depths=(1.0,2)": "1 to 64 whole numbers from 1 to 9",
    "model.depths=('1','2')": "1 to 64 whole numbers from 1 to 9",
    "model.blocks=(1.5,1,1)": "whole numbers from 1 to 1000",
    "model.blocks=(0,1,1)": "whole numbers from 1 to 1000",
    "model.width=-4": "a whole number from 0 to 1024 (channels)",
    "model.width=1000000": "a whole number from 0 to 1024 (channels)",
    "model.head_scale=0.0": "a number above 0 and at most 1000",
    "data.mean=('a','b','c')": "numbers from 0 to 1",
    "data.std=(None,1,1)": "numbers above 0 and at most 1",
    "data.std=(57.0,57.0,58.0)": "numbers above 0 and at most 1",
    "data.image_size=100000": "a whole number from 8 to 4096 (pixels)",
    "eval.batch_size=1000000000": "a whole number from 1 to 1048576",
    "stages.classifier.lr=nan": "a number of at least 0",
    "stages.classifier.lr=inf": "a number of at least 0",
    "stages.classifier.momentum=1.0": "a number of at least 0 and below 1",
    "stages.classifier.loss.mu=-1.0": "a number of at least 0",
    "stages.classifier.loss.form=x": "one of official, paper",
    "stages.classifier.train=('(',)": "regular expressions over parameter paths",
    "stages.classifier.sampler=none": "one of shuffle, balanced, sqrt, paired",
    "seed=1" + 400 * "0": "a whole number from 0 to 4294967295",
    "run=()": "1 or more names of config.stages",
    "name=../../x": "a name of at most 150 bytes without /",
    "name=..": "a name of at most 150 bytes without /",
}


@pytest.mark.parametrize("typed", REFUSED)
def test_a_value_that_no_field_admits_is_one_line(typed):
    with pytest.raises(UserError) as caught:
        parse_config(["--config=digits_lt", f"--config.{typed}"])
    line = str(caught.value)
    assert line.startswith(f"config.{typed.partition('=')[0]}=") and REFUSED[typed] in line


FINE = ["stages.classifier.weight_decay=1e30", "data.std=(1,1,1)", "model.depths=(2,)", "seeds=(0,1)"]


@pytest.mark.parametrize("typed", FINE)
def test_values_without_a_sensible_limit_pass(typed):
    parse_config(["--config=digits_lt", f"--config.{typed}"])


def test_true_is_no_number_and_a_typing_error_in_a_file_is_named():
    config, _ = parse_config(["--config=digits_lt"])
    config.seed = True  # a bool is an int to Python
    with pytest.raises(UserError, match=r"config\.seed=True: expected a whole number from 0 to 4294967295"):
        schema.validate(config)
    config, _ = parse_config(["--config=digits_lt"])
    with config.unlocked():
        config.stages.classifier = schema.stage(epoch=3)
    with pytest.raises(
        UserError, match=r"stages\.classifier\.epoch=3: .* did you mean config\.stages\.classifier\.epochs"
    ):
        schema.validate(config)
    with config.unlocked():
        config.stages.classifier = schema.stage()
        del config.stages.classifier.lr
    with pytest.raises(UserError, match=r"config\.stages\.classifier\.lr is missing: expected a number of at least 0"):
        schema.validate(config)


@pytest.mark.parametrize(("text", "kind"), [("return 3", "int"), ("pass", "NoneType")])
def test_a_file_that_gives_no_configuration_is_one_line(tmp_path, text, kind):
    (tmp_path / "mine.py").write_text(f"def get_config(text=''):\n    {text}\n")
    with pytest.raises(UserError, match=rf"mine.py: get_config returned a {kind}; expected a ConfigDict"):
        parse_config([f"--config={tmp_path / 'mine.py'}"])


@pytest.mark.parametrize("path", ["", 3, None])
def test_a_path_that_is_none_is_one_line(path):
    with pytest.raises(UserError, match=r"workdir=.*: expected a path"):
        given_path(path, "workdir")


def test_every_default_is_admitted_by_its_own_field():
    for path, field in FIELDS.items():
        assert path == "run" or field.admits(field.default), path


def test_parameters_of_registered_functions_are_fields():
    assert Field.declared(Choice(("a", "b")), "").expected() == "one of a, b"
    number = Field.declared(Number(0.5, low=0, below=1), "")
    assert number.expected() == "a number of at least 0 and below 1"
    assert [number.admits(value) for value in (0, 0.99, 1, -0.1, "x", None)] == [True, True, False, False, False, False]


def test_what_may_change_on_resume_and_what_makes_another_setting():
    """A warm start is read once: it may move afterwards, and yet makes another run."""
    free = {path for path in FIELDS if may_change(path)}
    assert {"log", "train.backend", "data.root", "eval.batch_size", "init_from"} <= free
    assert not free & {"seed", "data.std", "model.depths", "train.sync_bn", "data.bad_image"}
    assert {path for path in free if tells_apart(path)} == {"init_from"}
    assert not may_change("stages.representation.lr") and tells_apart("stages.representation.lr")


def test_the_fields_are_listed_with_what_they_take(capsys):
    assert main.main(["--fields=image_size"]) == 0
    page = capsys.readouterr().out
    assert "--config.data.image_size=32\n    side of what the network sees. Expected: a whole number from 8 to" in page
    with pytest.raises(UserError, match="--fields=zebra: no field's description holds this"):
        main.main(["--fields", "zebra"])


# --- a run that has saved nothing holds no claim --------------------------------------------------------------------


def plain(**changes):
    return with_defaults(to_plain(schema.base()) | changes)


@pytest.mark.parametrize("ends", [UserError, ValueError, MemoryError, KeyboardInterrupt])
def test_a_run_that_ends_before_its_first_save_leaves_nothing(tmp_path, ends):
    with pytest.raises(ends), opened(tmp_path / "w", plain()):
        (tmp_path / "w" / "log.txt").write_text("began")
        (tmp_path / "w" / "checkpoints").mkdir()
        raise ends
    assert not (tmp_path / "w").exists()


def test_a_run_that_was_killed_before_its_first_save_does_not_keep_others_out(tmp_path):
    with opened(tmp_path, plain(seed=1)):  # a kill leaves what lies there now
        (tmp_path / "metrics.jsonl").write_text("{}")
        (tmp_path / "checkpoints" / "5.orbax-checkpoint-tmp").mkdir(parents=True)
    with opened(tmp_path, plain(seed=2)) as finished:
        assert finished is None
        assert [path.name for path in tmp_path.iterdir()] == ["config.json"]
        assert '"seed": 2' in (tmp_path / "config.json").read_text()


def test_what_was_saved_stays_and_keeps_others_out(tmp_path):
    with pytest.raises(ValueError), opened(tmp_path, plain(seed=1)):
        (tmp_path / "checkpoints" / "5").mkdir(parents=True)
        raise ValueError
    with pytest.raises(UserError, match="another configuration: seed differ"), opened(tmp_path, plain(seed=2)):
        pass
    discard_untrained(tmp_path)
    assert (tmp_path / "config.json").exists()
    with opened(tmp_path, plain(seed=1, init_from="moved")) as finished:
        assert finished is None
