"""Every field of a configuration, with its unit and default.

A run is a list of stages (`config.run` names them in order, `config.stages` holds them). Each stage names its sampler,
its losses and weights, which parameters train, how batch normalisation behaves, its schedule and its length; a method
is nothing but such a list. Files under `configs/` start from `base()` and change fields; the command line changes
fields once more (`--config.stages.classifier.epochs=4`).
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

from ml_collections import ConfigDict

from shike_jax.methods import LOSSES, default_of

CIFAR_MEAN, CIFAR_STD = (0.4914, 0.4822, 0.4465), (0.2023, 0.1994, 0.2010)
IMAGENET_MEAN, IMAGENET_STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)


def base() -> ConfigDict:
    """Returns a configuration that holds every field at its default; no stage is listed yet."""
    config = ConfigDict()
    config.name = "run"
    config.seed = 0  # of the weights, the order of examples and the augmentation
    config.seeds = ()  # several in one program, each a run in WORKDIR/seedN, for accelerators; empty: `seed` alone
    config.dtype = "float32"  # of the computation; weights, BN statistics and losses stay float32 (float64: all of it)
    # Warm start: a checkpoint (path or URL) or a PyTorch file of the backbone; fresh classifiers for other classes.
    config.init_from = ""
    config.log = "info"

    config.data = ConfigDict()
    config.data.source = "digits"
    config.data.name = ""  # tfds name (cifar100, ...), or the name reports use for lists and folders
    config.data.data_dir = ""  # tfds folder; empty: $TFDS_DATA_DIR, else ~/tensorflow_datasets
    # Image folder ({train,test}/CLASS/*, CLASS/*, or the base of list files and tables), or the exported file.
    config.data.root = ""
    config.data.train_list = ""  # list files `path label`
    config.data.val_list = ""
    config.data.test_list = ""
    config.data.table = ""  # CSV or JSON Lines file with path, label and perhaps part; paths under root, else beside it
    config.data.test_part = "test"  # the part that is evaluated during and after training, unless validation is set
    # Training images held out, to be evaluated during and after training instead of test_part: a share of each class,
    # from 1 on images of each class; 0: none. Chosen by subset_seed and the images' names.
    config.data.validation = 0.0
    config.data.test_share = 0.2  # where folders or a table name no parts: what is held out for testing, likewise
    config.data.profile = "exponential"
    config.data.imbalance_factor = 1.0  # largest class count over smallest; ignored by profile `natural`
    config.data.subset = "first"  # which images of a class are kept
    config.data.subset_seed = 0  # of random subsets and of images held out
    config.data.divisions = "shots"  # many > 100, medium 20..100, few < 20; or H2T's head/medium/tail ranges
    config.data.test_per_class = 30  # digits only: balanced test images per class
    config.data.image_size = 32  # side in pixels of what the network sees
    config.data.resize = 0  # file pipeline, evaluation: short side before the centre crop; 0: image_size * 8 / 7
    config.data.mean, config.data.std = CIFAR_MEAN, CIFAR_STD
    config.data.threads = 0  # that decode images, in each process; 0: the cores it may use
    config.data.bad_image = "skip"  # unreadable images: skip (count, report) or stop
    config.data.bad_line = "stop"  # bad lines of list files, missing files included: skip (count, report) or stop
    config.data.bad_image_limit = 0.01  # share of unreadable images, or bad lines, beyond which even `skip` stops

    config.augment = ConfigDict()
    config.augment.crop = "pad"
    config.augment.pad = 4  # pixels
    config.augment.scale = (0.08, 1.0)  # of the area, random_resized only
    config.augment.flip = True
    config.augment.policy = "none"
    config.augment.randaugment = ConfigDict({"layers": 2, "magnitude": 10.0, "magnitude_std": 0.5, "prob": 0.5})
    config.augment.place = "auto"  # of the policy: device, host (images decoded there), auto: host for these on TPUs
    config.augment.cutout = 0  # side of the erased square in pixels; 0: off

    config.model = ConfigDict()
    config.model.backbone = "resnet32"
    config.model.depths = (1, 2, 1)  # one expert each: the shared stage whose features it fuses (sec. 3.2)
    config.model.fusion = True  # depth-wise knowledge fusion; False: experts classify their deep features alone
    config.model.shortcut = "B"  # CIFAR networks: A (zero padding) or B (1x1 convolution)
    config.model.width = 0  # channels of the stem; 0: the backbone's own (16 or 64)
    config.model.blocks = ()  # blocks per stage; empty: the backbone's own
    config.model.head = "cosine"
    config.model.head_scale = 30.0  # of the cosine
    config.model.second_head = "fresh"  # second set of classifiers: own weights, or `scaled`: factors over the first
    config.model.align_last_relu = False  # ReLU after the last alignment convolution too

    config.run = ()
    config.stages = ConfigDict()

    config.train = ConfigDict()
    config.train.steps_per_call = 0  # training steps per compiled call; 0: an epoch on accelerators, 1 on the CPU
    config.train.sync_bn = True  # BN statistics over the global batch; False: per device
    config.train.eval_every_epochs = 1  # 0: only at the end of a stage
    config.train.checkpoint_every_epochs = 1  # 0: only at the end of a stage
    config.train.checkpoint_every_steps = 0  # in addition; 0: off
    config.train.keep_checkpoints = 2  # newest ones; the end of each stage is always kept
    config.train.log_every_steps = 50
    config.train.tensorboard = True  # event files in WORKDIR/tensorboard; False: TensorFlow stays out, a quicker start
    config.train.pictures = 16  # augmented training images that TensorBoard gets from each stage's first step; 0: off
    config.train.profile = ""  # STEP:COUNT, counted over the run: those steps are traced into WORKDIR/profile
    config.train.backend = "pmap"  # how a step is compiled over devices: pmap, or jit over shard_map
    config.train.cpu_devices = 0  # XLA devices on a CPU; 0: one for each core, as far as batches divide
    config.train.peer_timeout = 60  # seconds without a sign of life after which a multi-process run stops

    config.eval = ConfigDict()
    config.eval.batch_size = 500
    return config


def stage(**changes: Any) -> ConfigDict:
    """Returns one stage at its defaults (representation learning with cross-entropy), with `changes` applied."""
    one = ConfigDict()
    one.epochs = 180
    one.max_steps = 0  # ends the stage after that many steps; 0: off
    one.batch_size = 128  # global
    one.keep_last = True  # keep the last partial batch of an epoch, as the authors do
    one.sampler = "shuffle"
    one.heads = "representation"  # the set of classifiers that the losses and predictions use
    # A weight for each registered loss (0: off), and the parameters that registered losses declare. SHIKE's: ce, nt
    # (alpha of eq. 10), mu (beta of eq. 10), balanced (eq. 11); `form` is that of nt and mu.
    one.loss = ConfigDict({name: 0.0 for name in LOSSES})
    one.loss.update({name: default_of(declared) for name, declared in LOSSES.parameters().items()})
    one.loss.ce = 1.0
    one.mixup = 0.0  # alpha of the Beta distribution; 0: off
    one.cutmix = 0.0  # likewise; with both, each step takes one of the two with equal probability
    one.exchange = 0.0  # share of feature-map channels taken from the partner image (sampler `paired`); 0: off
    one.train = (".*",)  # regular expressions over parameter paths: what trains
    one.bn_trunk = "batch"  # statistics used and updated (batch) or inference mode (running)
    one.bn_experts = "batch"
    one.schedule = "warmup_cosine"
    one.lr = 0.15  # peak
    one.warmup_lr = 0.05
    one.warmup_epochs = 5
    one.optimizer = "sgd"  # registered, or any of optax that takes a learning rate
    one.optimizer_options = ConfigDict()  # its further arguments; to be set in a configuration file
    one.momentum = 0.9
    one.weight_decay = 5e-4
    one.sam_rho = 0.0  # sharpness-aware minimisation: radius of the uphill step, 0.05 to 0.1; 0: off; twice the work
    one.average = "none"  # of the weights, evaluated and handed over instead of the last ones: none, ema or uniform
    one.average_decay = 0.999  # of `ema`, for each step
    one.average_epochs = 10  # `uniform` averages the last ones
    one.decay_frozen = False  # let frozen weights decay too, as the authors' pinned PyTorch does in its second stage
    one.update(changes)
    return one


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
    """Returns the configuration as nested dicts, tuples as lists: what JSON holds and what runs are compared by."""
    if isinstance(config, ConfigDict):
        config = config.to_dict()
    return {k: _plain_value(v) for k, v in sorted(config.items())}


def _plain_value(value: Any) -> Any:
    if isinstance(value, Mapping):
        return to_plain(value)
    if isinstance(value, tuple | list):
        return [_plain_value(item) for item in value]
    return value
