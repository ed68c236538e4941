"""Every field of a configuration, declared once: default, meaning, unit, range, and whether it may change on resume.

A run is a list of stages (`config.run` names them in order, `config.stages` holds them). Each stage names its sampler,
its losses and weights, which parameters train, how batch normalisation behaves, its schedule and its length; a method
is nothing but such a list. Files under `configs/` start from `base()` and change fields; the command line changes
fields once more (`--config.stages.classifier.epochs=4`). Checks, messages, the list of fields that `--fields` prints,
and the rules of the work directory and of reports follow from the tables below.
"""

from __future__ import annotations

import math
import re
from collections.abc import Callable, Iterable, Mapping
from typing import Any

from flax.traverse_util import flatten_dict, unflatten_dict
from ml_collections import ConfigDict

from shike_jax.common.colours import CIFAR_MEAN, CIFAR_STD
from shike_jax.config.field import Field
from shike_jax.errors import UserError
from shike_jax.methods import AVERAGES, FEATURE_HOOKS, LOSSES, MIXINGS, SAMPLERS, SCHEDULES
from shike_jax.methods.tables import NETWORKS, POLICIES, SOURCES


def _is_name(text: str) -> bool:
    """Whether a text can name a file in a folder: printable, not `.` or `..`, without `/` and `\\`, short enough."""
    short = 0 < len(text.encode(errors="replace")) <= 150
    return short and text.isprintable() and text not in (".", "..") and not set(text) & set("/\\")


def _is_pattern(text: str) -> bool:
    try:
        re.compile(text)
    except re.error:
        return False
    return True


_AMOUNT = (
    lambda value: 0 <= value < 1 or (value >= 1 and float(value).is_integer()),
    "0, a share below 1, or a whole number of images for each class",
)
_NAME = (_is_name, "a name of at most 150 bytes without /, \\ and control characters")
_STAGES = (_is_name, "names of config.stages")
_PATTERNS = (_is_pattern, "regular expressions over parameter paths")
_PROFILE = (re.compile(r"(\d{1,9}:0*[1-9]\d{0,8})?").fullmatch, "STEP:COUNT, such as 20:5, counted over the whole run")
# What comes with the package, in rooms above this one that may not have been imported yet.
_SOURCES = ("digits", "tfds", "archive", "arrays", "folder", "lists", "table", "npz")
_POLICIES = ("none", "autoaugment_cifar", "randaugment")
_SEED: dict[str, Any] = {"low": 0, "high": 2**32 - 1}  # JAX's keys and NumPy's seeds tell so many apart
_COLOURS: dict[str, Any] = {"items": float, "length": (1, 4096)}

# Fields that are `free` say how a run is watched, how its step is compiled and where its data lie. Another number of
# steps per call or of devices, or another backend, adds float32 numbers in another order, which training amplifies:
# such a run is as valid as an undisturbed one, but not equal to it bit for bit. results.json lists the starts of a run
# with these numbers.
FIELDS: dict[str, Field] = {
    "name": Field("run", "of the run, in logs and reports", rule=_NAME),
    "seed": Field(0, "of the weights, the order of examples and the augmentation", **_SEED),
    "seeds": Field((), "several runs in one program, each in WORKDIR/seedN; empty: seed alone", items=int, **_SEED),
    "dtype": Field(
        "float32",
        "of the computation; weights, BN statistics and losses stay float32 (float64: all of it)",
        choices=("float32", "bfloat16", "float64"),
    ),
    "init_from": Field(
        "",
        "warm start: a checkpoint (path or URL) or a PyTorch file of the backbone; fresh classifiers for others",
        start=True,
    ),
    "log": Field("info", "how much the run says", choices=("quiet", "info", "debug"), free=True),
    "data.source": Field("digits", "where the images come from", choices=lambda: dict.fromkeys((*_SOURCES, *SOURCES))),
    "data.name": Field("", "tfds name (cifar100, cifar100:3.0.2), or the name reports use for lists and folders"),
    "data.train_split": Field("", "tfds: split expression of the part, such as train[:90%]; empty: the data set's own"),
    "data.val_split": Field("", "as train_split"),
    "data.test_split": Field("", "as train_split"),
    "data.try_gcs": Field(False, "tfds: what is not in data_dir is read from tfds's public bucket", free=True),
    "data.data_dir": Field("", "tfds folder; empty: $TFDS_DATA_DIR, else ~/tensorflow_datasets", free=True),
    "data.root": Field(
        "",
        "image folder ({train,test}/CLASS/*, CLASS/*, or the base of list files and tables), exported file or archive",
        free=True,
    ),
    "data.verify": Field(True, "source archive: only the official archives, by their SHA-256", free=True),
    "data.train_list": Field("", "list file of lines `path label`"),
    "data.val_list": Field("", "as train_list"),
    "data.test_list": Field("", "as train_list"),
    "data.table": Field(
        "",
        "CSV or JSON Lines file with path, label and perhaps part; paths under root, else from the table's folder",
        free=True,
    ),
    "data.npz.train": Field("", "source npz: a file with features (or images) [N,...] and labels [N]", free=True),
    "data.npz.test": Field("", "as npz.train", free=True),
    "data.npz.val": Field("", "as npz.train", free=True),
    "data.test_part": Field("test", "the part evaluated during and after training, unless validation is set"),
    "data.validation": Field(
        0.0,
        "training images held out and evaluated instead of test_part, chosen by subset_seed and the images' names: a"
        " share of each class, from 1 on images of each class; 0: none",
        rule=_AMOUNT,
    ),
    "data.test_share": Field(
        0.2, "where folders or a table name no parts: what is held out for testing, as for validation", rule=_AMOUNT
    ),
    "data.profile": Field("exponential", "of the class counts", choices=("exponential", "step", "natural")),
    "data.imbalance_factor": Field(1.0, "largest class count over smallest; ignored by profile natural", low=1),
    "data.subset": Field("first", "which images of a class are kept", choices=("first", "random", "h2t")),
    "data.subset_seed": Field(0, "of random subsets and of images held out", **_SEED),
    "data.divisions": Field(
        "shots", "many > 100, medium 20..100, few < 20 images; or H2T's head, medium and tail", choices=("shots", "h2t")
    ),
    "data.test_per_class": Field(30, "digits only: balanced test images of each class", low=1, high=10**6),
    "data.image_size": Field(32, "side of what the network sees", "pixels", low=8, high=4096),
    "data.resize": Field(
        0, "evaluation of files: short side before the centre crop; 0: image_size * 8 / 7", "pixels", low=0, high=8192
    ),
    "data.mean": Field(CIFAR_MEAN, "of the RGB values in 0..1", low=0, high=1, **_COLOURS),
    "data.std": Field(CIFAR_STD, "of the RGB values in 0..1", above=0, high=1, **_COLOURS),
    "data.threads": Field(
        0, "that decode images, in each process; 0: the cores it may use", low=0, high=1024, free=True
    ),
    "data.bad_image": Field("skip", "unreadable images: skip (count, report) or stop", choices=("skip", "stop")),
    "data.bad_line": Field(
        "stop", "bad lines of lists, missing files included: skip (count, report) or stop", choices=("skip", "stop")
    ),
    "data.bad_image_limit": Field(
        0.01, "share of unreadable images, or bad lines, beyond which even skip stops", low=0, high=1
    ),
    "augment.crop": Field("pad", "of training images", choices=("pad", "random_resized", "none")),
    "augment.pad": Field(4, "border of crop pad", "pixels", low=0, high=4096),
    "augment.scale": Field(
        (0.08, 1.0), "random_resized: smallest and largest share of area", items=float, length=(2, 2), above=0, high=1
    ),
    "augment.flip": Field(True, "mirror with probability 1/2"),
    "augment.policy": Field("none", "colours and shapes", choices=lambda: dict.fromkeys((*_POLICIES, *POLICIES))),
    "augment.randaugment.layers": Field(2, "operations for each image", low=0, high=100),
    "augment.randaugment.magnitude": Field(10.0, "mean strength", low=0, high=10),
    "augment.randaugment.magnitude_std": Field(0.5, "standard deviation of the strength", low=0, high=10),
    "augment.randaugment.prob": Field(0.5, "of each operation", low=0, high=1),
    "augment.place": Field(
        "auto",
        "of the policy: device, host (images decoded there), auto: host for these on TPUs",
        choices=("auto", "device", "host"),
    ),
    "augment.cutout": Field(0, "side of the erased square; 0: off", "pixels", low=0, high=4096),
    "model.backbone": Field("resnet32", "the network, such as resnet32 or resnet50"),
    "model.depths": Field(
        (1, 2, 1), "of each expert: the shared stage that it fuses (sec. 3.2)", items=int, length=(1, 64), low=1, high=9
    ),
    "model.fusion": Field(True, "depth-wise knowledge fusion; False: experts classify their deep features alone"),
    "model.shortcut": Field("B", "CIFAR networks: A (zero padding) or B (1x1 convolution)", choices=("A", "B")),
    "model.width": Field(0, "of the stem; 0: the backbone's own (16 or 64)", "channels", low=0, high=1024),
    "model.blocks": Field((), "blocks of each stage; empty: the backbone's own", items=int, low=1, high=1000),
    "model.head": Field("cosine", "kind of the classifiers", choices=("cosine", "linear")),
    "model.head_scale": Field(30.0, "of the cosine", above=0, high=1000),
    "model.second_head": Field(
        "fresh",
        "second set of classifiers: own weights, factors over the first (scaled), or DisAlign (aligned)",
        choices=("fresh", "scaled", "aligned"),
    ),
    "model.align_last_relu": Field(False, "ReLU after the last alignment convolution too"),
    "run": Field((), "names of the stages, in order", items=str, length=(1, math.inf), rule=_STAGES),
    "train.steps_per_call": Field(
        0, "training steps per compiled call; 0: an epoch on accelerators, 1 on the CPU", low=0, free=True
    ),
    "train.sync_bn": Field(True, "BN statistics over the global batch; False: per device"),
    "train.bn_group": Field(0, "with sync_bn: neighbouring devices that share BN statistics; 0: all", low=0),
    "train.eval_every_epochs": Field(1, "0: only at the end of a stage", low=0, free=True),
    "train.checkpoint_every_epochs": Field(1, "0: only at the end of a stage", low=0, free=True),
    "train.checkpoint_every_steps": Field(0, "in addition; 0: off", low=0, free=True),
    "train.keep_checkpoints": Field(2, "newest ones; the end of each stage is always kept", low=1, free=True),
    "train.keep_every_steps": Field(0, "checkpoints at its multiples stay too; 0: off", low=0, free=True),
    "train.log_every_steps": Field(50, "0: off", low=0, free=True),
    "train.tensorboard": Field(
        True, "event files in WORKDIR/tensorboard, by tensorboardX if installed, else by TensorFlow", free=True
    ),
    "train.loggers": Field((), "where curves go too", items=str, choices=("wandb", "mlflow"), length=(0, 2), free=True),
    "train.pictures": Field(
        16, "augmented images of each stage's first step that TensorBoard gets; 0: off", low=0, high=10**4, free=True
    ),
    "train.profile": Field("", "steps that are traced into WORKDIR/profile", rule=_PROFILE, free=True),
    "train.profile_all": Field(False, "every process is traced, not the first alone", free=True),
    "train.backend": Field(
        "pmap", "how a step is compiled: pmap, or jit over shard_map", choices=("pmap", "shard_map"), free=True
    ),
    "train.cpu_devices": Field(
        0, "XLA devices on a CPU; 0: one, which computes with all cores", low=0, high=1024, free=True
    ),
    "train.onednn": Field(
        True, "oneDNN computes the convolutions of large batches on one CPU device, where JAX can call it", free=True
    ),
    "train.peer_timeout": Field(
        60, "without a sign of life after which a multi-process run stops", "seconds", low=1, high=86_400, free=True
    ),
    "eval.batch_size": Field(500, "images at once", low=1, high=2**20, free=True),
    "eval.mirror": Field(
        False, "evaluate: also score the mean of each image's and its mirror image's logits; twice the work", free=True
    ),
}

# Of each stage, `config.stages.NAME`: representation learning with cross-entropy. `loss` comes from the registry.
_STAGE: dict[str, Field] = {
    "epochs": Field(180, "length of the stage", low=1, high=10**6),
    "max_steps": Field(0, "ends the stage after that many steps; 0: off", low=0, high=2**31 - 1),
    "batch_size": Field(128, "global", low=1, high=2**20),
    "keep_last": Field(True, "keep the last partial batch of an epoch, as the authors do"),
    "sampler": Field("shuffle", "order of the examples", choices=lambda: SAMPLERS),
    "heads": Field(
        "representation",
        "the set of classifiers that the losses and predictions use",
        choices=("representation", "classifier"),
    ),
    "train": Field((".*",), "what trains", items=str, rule=_PATTERNS),
    "bn_trunk": Field(
        "batch", "statistics used and updated (batch) or inference mode (running)", choices=("batch", "running")
    ),
    "bn_experts": Field("batch", "as bn_trunk", choices=("batch", "running")),
    "schedule": Field("warmup_cosine", "of the learning rate", choices=lambda: SCHEDULES),
    "lr": Field(0.15, "peak learning rate", low=0),
    "warmup_lr": Field(0.05, "learning rate that a warm-up starts from", low=0),
    "warmup_epochs": Field(5, "length of the warm-up", low=0, high=10**6),
    "warmup_steps": Field(
        0, "length of a warm-up of any schedule, rising every step, instead of warmup_epochs; 0: off", low=0
    ),
    "lr_scaling": Field(
        "none",
        "of lr and warmup_lr by batch_size / base_batch_size: as it is (linear) or its root (sqrt)",
        choices=("none", "linear", "sqrt"),
    ),
    "base_batch_size": Field(0, "the batch that lr is meant for; 0: that of the configuration file", low=0, high=2**20),
    "optimizer": Field("sgd", "registered, or any of optax that takes a learning rate"),
    "optimizer_options": Field({}, "its further arguments; to be set in a configuration file"),
    "momentum": Field(0.9, "of sgd", low=0, below=1),
    "weight_decay": Field(5e-4, "joins the gradient", low=0),
    "sam_rho": Field(
        0.0, "sharpness-aware minimisation: radius of the uphill step, 0.05 to 0.1; 0: off; twice the work", low=0
    ),
    "average": Field(
        "none", "of the weights, evaluated and handed over in place of the last", choices=lambda: ("none", *AVERAGES)
    ),
    "average_decay": Field(0.999, "of average ema, for each step", above=0, below=1),
    "average_epochs": Field(10, "average uniform takes the last ones", low=1, high=10**6),
    "decay_frozen": Field(
        False, "let frozen weights decay too, as the authors' pinned PyTorch does in its second stage"
    ),
}


def stage_fields() -> dict[str, Field]:
    """The fields of a stage: the fixed ones, those of mixings and feature hooks, weights and parameters of the losses.

    SHIKE's losses are `ce`, `nt` (its weight is alpha of eq. 10), `mu` (beta of eq. 10) and `balanced` (eq. 11).
    """
    fields = dict(_STAGE)
    entries: tuple[Any, ...] = (*MIXINGS.entries(), *FEATURE_HOOKS.entries())
    for entry in entries:
        if entry.name in fields or entry.name == "loss":
            taken = f"config.stages.NAME.{entry.name} is a field already"
            raise UserError(f"{entry.name!r}: {taken}; expected another name")
        fields[entry.name] = Field(0.0, entry.options["about"], low=0, high=entry.options["high"])
    for name in LOSSES:
        fields[f"loss.{name}"] = Field(float(name == "ce"), f"weight of the loss {name}; 0: off", low=0)
    for name, declared in LOSSES.parameters().items():
        fields[f"loss.{name}"] = Field.declared(declared, "parameter of a loss")
    return fields


def fields_of(stages: Iterable[str]) -> dict[str, Field]:
    """Every field, by its dotted path, of a configuration with stages of these names."""
    each = stage_fields()
    return {**_run_fields(), **{f"stages.{name}.{path}": field for name in stages for path, field in each.items()}}


def _run_fields() -> dict[str, Field]:
    """The fields that are not a stage's, with the parameters of registered sources, policies and networks."""
    fields = dict(FIELDS)
    for room, table in (("data", SOURCES), ("augment", POLICIES), ("model", NETWORKS)):
        for entry in table.entries():
            if entry.parameters and f"{room}.{entry.name}" in FIELDS:
                taken = f"config.{room}.{entry.name} is a field already"
                raise UserError(f"{table.kind} {entry.name!r}: {taken}; expected another name")
            about = f"parameter of {table.kind} {entry.name}"
            fields |= {f"{room}.{entry.name}.{n}": Field.declared(d, about) for n, d in entry.parameters.items()}
    return fields


def may_change(path: str) -> bool:
    """Whether a run may continue with another value of the field."""
    return path in FIELDS and (FIELDS[path].free or FIELDS[path].start)


def tells_apart(path: str) -> bool:
    """Whether two runs that differ in the field are different settings, not one setting twice."""
    return not (path in FIELDS and FIELDS[path].free)


def base() -> ConfigDict:
    """A configuration that holds every field at its default; no stage is listed yet."""
    config = _with_values(_run_fields())
    config.stages = ConfigDict()
    return config


def stage(**changes: Any) -> ConfigDict:
    """One stage at its defaults (representation learning with cross-entropy), with `changes` applied."""
    one = _with_values(stage_fields())
    one.update(changes)
    return one


def _with_values(fields: Mapping[str, Field]) -> ConfigDict:
    return ConfigDict(unflatten_dict({path: field.default for path, field in fields.items()}, sep="."))


def flat(plain: Mapping[str, Any]) -> dict[str, Any]:
    """Dotted path and value of every field of nested dicts; `optimizer_options` is one field."""
    return flatten_dict(plain, sep=".", is_leaf=lambda path, _: path[-1:] == ("optimizer_options",))


# Speed switches of version 0.1. They never changed a number, so runs and commands that name them go on without them.
GONE = ("model.experts_together", "model.bn_together", "train.updates_together")


def without_gone(plain: Mapping[str, Any], tell: Callable[[str], None] | None = None) -> dict[str, Any]:
    """A stored configuration without the fields of `GONE`; `tell` gets a line for each that was switched on."""
    kept = {room: dict(fields) if isinstance(fields, Mapping) else fields for room, fields in plain.items()}
    for path in GONE:
        room, name = path.split(".")
        if kept.get(room, {}).pop(name, False) and tell:
            tell(gone_line(path))
    return kept


def gone_line(path: str) -> str:
    """What is said of a field of `GONE` that somebody has set."""
    return f"config.{path}: a speed switch of version 0.1 that has no effect any more; results are the same without it"


def with_defaults(plain: Mapping[str, Any], tell: Callable[[str], None] | None = None) -> dict[str, Any]:
    """A stored configuration as today's: with the defaults of newer fields and without those of `GONE` (`tell`)."""
    filled = _filled(without_gone(plain, tell), to_plain(base()))
    stages = {name: _filled(one, to_plain(stage())) for name, one in filled["stages"].items()}
    return {**filled, "stages": stages}


def _filled(plain: Mapping[str, Any], defaults: Mapping[str, Any]) -> dict[str, Any]:
    filled = {**defaults, **plain}
    for key, default in defaults.items():
        if isinstance(default, Mapping) and isinstance(filled[key], Mapping):
            filled[key] = _filled(filled[key], default)
    return dict(sorted(filled.items()))


def to_plain(config: Mapping[str, Any] | ConfigDict) -> dict[str, Any]:
    """The configuration as nested dicts, tuples as lists: what JSON holds and what runs are compared by."""

    def plain(value: Any) -> Any:
        if isinstance(value, Mapping):
            return {key: plain(item) for key, item in sorted(value.items())}
        return [plain(item) for item in value] if isinstance(value, tuple | list) else value

    return plain(config.to_dict() if isinstance(config, ConfigDict) else config)
