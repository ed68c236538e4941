"""Reading a configuration: by name, from the command line (the same way in every command), or a checkpoint's."""

from __future__ import annotations

import argparse
import functools
import os
import sys
import traceback
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from absl import flags
from ml_collections import ConfigDict, config_flags

from shike_jax.common.paths import expanded, given_text
from shike_jax.config.checks import validate
from shike_jax.config.fields import GONE, base, fields_of, gone_line, may_change, without_gone
from shike_jax.config.recipes import stated
from shike_jax.errors import UserError, causes, nearest
from shike_jax.methods.own_files import require

_HERE = Path(__file__).resolve().parents[1]
# An installed package carries `configs/` inside, a clone has it at the top.
SHIPPED = _HERE / "configs" if (_HERE / "configs").is_dir() else _HERE.parent / "configs"


def parse_config(argv: Sequence[str]) -> tuple[ConfigDict, list[str]]:
    """Reads `--config=FILE[:arguments]` and any `--config.field=value`, of which the last counts for each field.

    FILE is a path, or else `configs/NAME.py` or `NAME` of a configuration that comes with the package. Gives the
    validated configuration, and the arguments that do not concern it. UserError for no or an unreadable file, an
    unknown field, and a value of another type or out of range.
    """
    mine, rest = split_arguments(argv)
    path = next((a.partition("=")[2] for a in reversed(mine) if a.startswith("--config=")), "")
    if not path:
        misspelt = next((name for name in (item.partition("=")[0] for item in rest) if nearest(name, ["--config"])), "")
        meant = f"{nearest(misspelt, ['--config'])} ({misspelt} is unknown)" if misspelt else ""
        raise UserError(f"--config is missing: expected --config=configs/NAME.py[:arguments]{meant}")
    mine = [_with_found_file(item) if item.startswith("--config=") else item for item in mine]
    root = next((a.partition("=")[2] for a in reversed(mine) if a.startswith("--config.data.root=")), "")
    with stated(root=root):  # files that look into the folder look at the one that will be used
        return _parsed(functools.partial(config_flags.DEFINE_config_file, "config"), mine, path), rest


def parse_command(parser: argparse.ArgumentParser, argv: Sequence[str]) -> tuple[ConfigDict, argparse.Namespace]:
    """The configuration and the options of a command. Its help page, which gets --config too, needs none."""
    about = "configuration; --config.FIELD=VALUE changes a field"
    parser.add_argument("--config", metavar="FILE[:ARGUMENTS]", help=about)
    if {"-h", "--help"} & set(argv):
        parser.parse_args(argv)
    config, rest = parse_config(argv)
    return config, parser.parse_args(rest)


def load_config(name: str | os.PathLike[str], **arguments: Any) -> ConfigDict:
    """A configuration, to be changed and given to `train` or `load_data`.

    Args:
      name: one that comes with the package (`cifar_lt`), or the path of a configuration file, which is run.
      arguments: what stands after the colon on the command line: `preset="paper"`, `imbalance_factor=50`.

    Raises:
      UserError: no such file or argument, a value of another type or out of range.

    >>> config = load_config("cifar_lt", preset="paper", imbalance_factor=50)
    >>> config.run
    ('representation', 'classifier')
    >>> config.stages.representation.lr, config.data.imbalance_factor
    (0.05, 50.0)
    >>> config.stages.representation.lr = 0.1
    """
    name = given_text(name, "load_config: name")
    find_config(name.partition(":")[0], "load_config: ")
    words = [str(arguments.pop("preset"))] if "preset" in arguments else []
    words += [f'{key}="{value}"' if "," in str(value) else f"{key}={value}" for key, value in arguments.items()]
    return parse_config([f"--config={name}{':' if words else ''}{','.join(words)}"])[0]


def describe_fields(word: str = "") -> list[str]:
    """Two lines for each field whose lines hold `word`: the flag with its default, and what it means and takes."""
    lines: list[str] = []
    for path, field in fields_of(("NAME",)).items():
        resume = " May change when a run continues." if may_change(path) else ""
        both = f"--config.{path}={field.default!r}", f"    {field.about}. Expected: {field.expected()}.{resume}"
        lines += both if word.lower() in "".join(both).lower() else ()
    return lines


def find_config(file: str, said: str = "--config=") -> Path:
    """The configuration that `file` names: a path, else `NAME`, `NAME.py` or `configs/NAME[.py]` as shipped.

    Where there is none, the UserError begins with `said` and names those that come with the package.
    """
    path = Path(file)
    if path.is_file():
        return path
    if path.parent in (Path(), Path("configs")) and path.suffix in ("", ".py"):
        shipped = SHIPPED / f"{path.stem}.py"
        if shipped.is_file():
            return shipped
    known = sorted(found.stem for found in SHIPPED.glob("*.py"))
    expected = f"expected a path or one of {', '.join(known)}{nearest(path.stem, known)}"
    raise UserError(f"{said}{file}: no such file {file}; {expected}")


def _with_found_file(argument: str) -> str:
    file, colon, arguments = argument.removeprefix("--config=").partition(":")
    return f"--config={find_config(expanded(file))}{colon}{arguments}"


def override_config(plain: Mapping[str, Any], argv: Sequence[str]) -> tuple[ConfigDict, list[str]]:
    """Changes a stored configuration by any `--config.field=value`; fields that it lacks get their defaults.

    Returns and raises what `parse_config` does.
    """
    mine, rest = split_arguments(argv)
    config = base()
    config.update(without_gone(plain))
    define = functools.partial(config_flags.DEFINE_config_dict, "config", config)
    return _parsed(define, mine, "(the checkpoint's)", stages=False), rest


_OF_EVALUATION = ("data", "eval")


def checkpoint_config(meta: Mapping[str, Any], arguments: Sequence[str] = ()) -> ConfigDict:
    """The configuration to evaluate a checkpoint with: its own, changed or replaced by --config arguments.

    The view of an image (size, resizing, mean, std) stays the one that the network was trained on. A checkpoint without
    configuration needs --config.
    """
    for item in arguments:
        field = item.partition("=")[0].removeprefix("--config.")
        if not item.startswith("--config=") and field.partition(".")[0] not in _OF_EVALUATION:
            expected = f"fields of {' or '.join(f'config.{room}' for room in _OF_EVALUATION)}"
            raise UserError(f"{item}: has no effect on a network that is trained already; expected {expected}")
    if any(item.startswith("--config=") for item in arguments):
        config, _ = parse_config(arguments)
    elif meta.get("config"):
        require(meta, "to evaluate", f"data source {meta['config']['data']['source']}")
        config, _ = override_config(meta["config"], arguments)
    else:
        raise UserError("the checkpoint has no configuration (converted weights): expected --config=FILE with the data")
    config.data.update({"image_size": meta["image_size"], "resize": meta.get("resize") or 0})
    config.data.update({"mean": tuple(meta["mean"]), "std": tuple(meta["std"])})
    return config


def _parsed(define: Callable[..., Any], arguments: list[str], path: str, stages: bool = True) -> ConfigDict:
    # Of a field that is named twice the last value counts; ml_collections would join those of a tuple.
    arguments = list({item.partition("=")[0]: item for item in arguments}.values())
    arguments = sorted(arguments, key=lambda item: not item.startswith("--config="))  # the file before changes to it
    values = flags.FlagValues()
    # ml_collections executes each file in a module of this name: what an earlier one left there is not this one's.
    sys.modules.pop("config_config", None)
    try:
        define(flag_values=values, sys_argv=["", *arguments])
        recipe = _batch_sizes(define, arguments)
        values(["", *arguments])
        config: Any = values["config"].value
    except UserError:
        raise
    except (AttributeError, KeyError) as error:
        raise UserError(_unknown_field(error, arguments) or explain(error, path)) from error
    except Exception as error:  # flags, ml_collections and the file itself raise many kinds
        raise UserError(explain(error, path)) from error
    if not isinstance(config, ConfigDict):
        kind = type(config).__name__
        raise UserError(f"--config={path}: get_config returned a {kind}; expected a ConfigDict, as schema.base() gives")
    for name, one in config.stages.items() if stages else ():  # those of a checkpoint may lack newer fields
        _for_its_batch(name, one, recipe.get(name, one.batch_size))
    config.init_from = expanded(config.init_from)
    for name in ("root", "data_dir", "train_list", "val_list", "test_list", "table"):
        config.data[name] = expanded(config.data[name])
    config.data.npz.update({part: expanded(path) for part, path in config.data.npz.items()})
    validate(config, stages)
    return config


def _batch_sizes(define: Callable[..., Any], arguments: Sequence[str]) -> dict[str, int]:
    """The batch size of each stage as the file has it, before changes on the command line."""
    if not any(".batch_size=" in item for item in arguments) or not arguments[0].startswith("--config="):
        return {}
    values = flags.FlagValues()
    define(flag_values=values, sys_argv=["", arguments[0]])
    values(["", arguments[0]])
    config: Any = values["config"].value
    return {name: one.batch_size for name, one in config.stages.items()}


def _for_its_batch(name: str, one: ConfigDict, recipe: int) -> None:
    """Notes the batch that a stage's learning rates are meant for, where they follow it; a remark where they do not."""
    if one.lr_scaling != "none":
        one.base_batch_size = one.base_batch_size or recipe
    elif one.batch_size != recipe:
        said = f"config.stages.{name}.batch_size={one.batch_size}, and {recipe} in the recipe: its learning rates stay"
        print(f"{said} as they are (config.stages.{name}.lr_scaling=linear or sqrt scales them)", file=sys.stderr)


def split_arguments(argv: Sequence[str]) -> tuple[list[str], list[str]]:
    """Separates config arguments, joining `--config VALUE` to one, from all others."""
    mine, rest, items = [], [], list(argv)
    while items:
        item = items.pop(0)
        name = item.split("=")[0]
        if name == "--config" or name.startswith(("--config.", "--config[")):
            if "=" not in item:
                if not items:
                    raise UserError(f"{item}: a value is missing")
                item = f"{item}={items.pop(0)}"
            if name.removeprefix("--config.") in GONE:
                print(gone_line(name.removeprefix("--config.")), file=sys.stderr)
            else:
                mine.append(item)
        else:
            rest.append(item)
    return mine, rest


def _unknown_field(error: Exception, arguments: Sequence[str]) -> str:
    """Names the argument with a field that does not exist; empty when none of them is to blame."""
    text: Any = error
    while isinstance(text, Exception):  # ml_collections wraps one error in another
        text = text.args[0] if text.args else ""
    field, _, suggestion = str(text).partition("\n")  # the name in quotes, perhaps a suggestion
    field = field.strip("\"'")
    blamed = [item for item in arguments if field in item.partition("=")[0].split(".")]
    return f"{blamed[0]}: the configuration has no field {field!r}. {suggestion}".strip() if blamed else ""


def explain(error: Exception, path: str) -> str:
    """One line about what a configuration file raised."""
    for cause in causes(error):  # ml_collections wraps what the file raised, with its whole traceback as text
        if isinstance(cause, UserError):
            return str(cause)
        frames = traceback.extract_tb(cause.__traceback__)
        file = Path(path.partition(":")[0]).name
        own = [frame for frame in frames if Path(frame.filename).name == file]
        if own:
            said = " ".join(str(cause).split())
            kind = "" if isinstance(cause, ValueError) else f"{type(cause).__name__}: "
            return f"--config={path} (line {own[-1].lineno}): {kind}{said}"
    text = " ".join(str(error).split())
    if "has no attribute 'get_config'" in text:
        return f"--config={path}: no function get_config in it; expected get_config(arguments=None)"
    return text if "--config" in text else f"--config={path}: {text}"
