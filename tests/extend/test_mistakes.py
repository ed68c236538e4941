"""What people get wrong in a file of their own: one line that names the thing, before anything is lost."""

import shutil
from pathlib import Path

import numpy as np
import pytest

from shike_jax import augment, data, methods, models  # noqa: F401  (what comes with the package registers itself)
from shike_jax.commands.program import main
from shike_jax.errors import UserError
from shike_jax.methods import tables

pytestmark = pytest.mark.usefixtures("quickly_compiled")

FILE = Path(__file__).with_name("everything.py").read_text()
LOSS, STAGE = "stages.first.loss.mine=1.0", "stages.first"


def loss(body, options="", arguments="inputs"):
    return f"@LOSSES.register('mine'{options})\ndef mine({arguments}):\n    {body}\n"


def module(body, options=", module=True"):
    text = "\n        ".join(body.split("; "))
    return (
        f"@LOSSES.register('mine'{options})\nclass Mine(nn.Module):\n    @nn.compact\n    def __call__(self, inputs):\n"
        f"        {text}\n"
    )


def network(body, keywords="heads='representation', **mode"):
    return (
        "class Mine(nn.Module):\n    classes: int\n    @nn.compact\n"
        f"    def __call__(self, images, {keywords}):\n        {body}\n"
        "@NETWORKS.register('mine')\ndef mine(model, num_classes, *, dtype, axis_name):\n    return Mine(num_classes)\n"
    )


def of(table, body, name="mine", options="", arguments="inputs"):
    return f"@{table}.register({name!r}{options})\ndef mine({arguments}):\n    {body}\n"


PLAIN = "return jnp.stack([nn.Dense(self.classes)(images.reshape(images.shape[0], -1))])"
OWN = "model.backbone=mine"
ALONE = ("stages.first.loss.centred=0.0", "stages.second.loss.centred=0.0", "stages.second.shaken=0.0")
LINE = r"mine\.py:\d+"

CASES = {
    # losses: what is traced, what they get, what they return
    "a Python branch": (
        loss("return inputs.logits.sum((0, 2)) if inputs.progress > 0.5 else inputs.logits.max((0, 2))"),
        [LOSS],
        rf"^loss 'mine' \({LINE}\) asks for the value of an array while the step is compiled: expected jnp.where",
    ),
    "NumPy": (loss("return jnp.asarray(np.log(inputs.logits)).sum((0, 2))"), [LOSS], rf"^loss 'mine' \({LINE}\) asks"),
    "a mask by indexing": (
        loss("return inputs.logits[:, inputs.mask > 0].sum((0, 2))"),
        [LOSS],
        "^loss 'mine' .* asks",
    ),
    "a scalar": (
        loss("return inputs.logits.mean()"),
        [LOSS],
        r"^loss 'mine' returned float32 \(\): expected a float for",
    ),
    "rows of all devices": (
        loss("return inputs.gather(inputs.logits).mean((0, 2)).repeat(2)"),
        [LOSS],
        r"^loss 'mine' returned float32 \(8,\): expected a float for each image of the batch, \(4,\)",
    ),
    "an unknown input": (
        loss("return inputs.images.mean((1, 2))"),
        [LOSS],
        "uses inputs.images: expected one of logits",
    ),
    "its own error": (
        loss("return inputs.logits[0] @ inputs.features[0, 0]"),
        [LOSS],
        rf"^loss 'mine' \({LINE}\) failed: TypeError: dot_general requires contracting dim",
    ),
    "not finite": (
        loss("return jnp.log(inputs.labels - 10.0)"),
        [LOSS],
        "^the loss mine is not finite in stage first, epoch 0, by step 1",
    ),
    # losses: how they are registered
    "not a module": (
        loss("return 1", ", module=True"),
        [],
        "loss 'mine' is no subclass of flax.linen.Module: expected mod",
    ),
    "a module": (module("return 1", ""), [], "loss 'mine' is a Flax module: expected module=True"),
    "no views": (loss("return 1", ", views=0"), [], "loss 'mine': views=0, expected a whole number from 1 to 16"),
    "an option": (loss("return 1", ", view=2"), [], "loss 'mine': unknown options view"),
    "undeclared": (loss("return rate", arguments="inputs, rate"), [], "loss 'mine': parameter rate is not declared"),
    "untaken": (loss("return 1", ", parameters={'rate': 1.0}"), [], "loss 'mine': declares rate, but the function's"),
    "no arguments": (
        loss("return 1", arguments=""),
        [],
        r"loss 'mine' takes 0 arguments: expected \(inputs: LossInputs",
    ),
    "misspelt": (loss("return 1"), ["stages.first.loss.min=1.0"], "stages.first.loss.min.*no field 'min'"),
    # losses that are modules
    "another dtype": (
        module(
            "steps = self.variable('memory', 'steps', jnp.zeros, (), jnp.int32); "
            "steps.value = steps.value if self.is_initializing() else steps.value + 1.0; "
            "return inputs.logits.sum((0, 2))"
        ),
        [LOSS],
        r"^loss 'mine' makes float32 \(\) of its variable memory/steps: expected int32 \(\)",
    ),
    "a queue that grows": (
        module(
            "queue = self.variable('memory', 'queue', jnp.zeros, (0, 4)); "
            "queue.value = jnp.concatenate([queue.value, inputs.logits[0]]); return inputs.logits.sum((0, 2))"
        ),
        [LOSS],
        r"^loss 'mine' makes float32 \(\d+, 4\) of its variable memory/queue: expected float32 \(\d+, 4\)",
    ),
    "frozen by its pattern": (
        module("return nn.Dense(1, name='out')(inputs.features[0])[:, 0]"),
        [LOSS, "stages.second.train=('losses/mine/.*',)"],
        r"train pattern 'losses/mine/\.\*' matches only losses/mine/\*, which the stage does not use",
    ),
    # networks
    "no network": (
        network(PLAIN).replace("return Mine(num_classes)", "return len"),
        [OWN],
        "^network 'mine' is a builtin_function_or_method: expected a Flax module",
    ),
    "a factory that fails": (
        network(PLAIN).replace("return Mine(num_classes)", "return model.layers"),
        [OWN],
        rf"^network 'mine' \({LINE}\) failed: AttributeError: .*layers",
    ),
    "logits of one expert": (
        network("return nn.Dense(self.classes)(images.mean(1))"),
        [OWN, *ALONE],
        r"^network 'mine' returned float32 \(1, 4\): expected logits \(experts, 1, 4\)",
    ),
    "other classes": (
        network("return nn.Dense(7)(images.mean(1))[None]"),
        [OWN, *ALONE],
        r"^network 'mine' returned float32 \(1, 1, 7\): expected logits \(experts, 1, 4\)",
    ),
    "logits and more": (
        network("maps = images.mean(1); return nn.Dense(self.classes)(maps)[None], maps"),
        [OWN, *ALONE],
        r"^network 'mine' returned a tuple: expected logits \(experts, 1, 4\) alone",
    ),
    "keywords": (network(PLAIN, "heads=''"), [OWN, *ALONE], "^network 'mine' .* unexpected keyword argument"),
    "another kind of variables": (
        network("self.variable('cache', 'x', jnp.zeros, ()); " + PLAIN),
        [OWN, *ALONE],
        "^network 'mine' has variables 'cache': expected only params and batch_stats",
    ),
    "features of a network without": (
        network(PLAIN) + loss("return inputs.features.sum((0, 2))"),
        [OWN, LOSS, *ALONE],
        "^loss 'mine' uses inputs.features: network 'mine' has no methods `features` and `classify`",
    ),
    "views of a network without": (
        network(PLAIN),
        [OWN, ALONE[1], ALONE[2]],
        "^loss 'centred' asks for views=2: network 'mine' has no methods",
    ),
    "a hook of a network without": (
        network(PLAIN),
        [OWN, *ALONE[:2]],
        "^config.stages.second.shaken: network 'mine' has no methods `features` and `classify`",
    ),
    # the rest
    "no source": (
        of("SOURCES", "return {}", arguments="data"),
        ["data.source=mine"],
        "^data source 'mine' returned a dict",
    ),
    "a source of lists": (
        of("SOURCES", "s = waves(data, 0.1); s.images['test'] = s.images['test'].tolist(); return s", arguments="data"),
        ["data.source=mine"],
        "^data source 'mine', part test: list; expected NumPy numbers",
    ),
    "a source of two shapes": (
        of("SOURCES", "s = waves(data, 0.1); s.images['test'] = s.images['test'][:, :5]; return s", arguments="data"),
        ["data.source=mine"],
        r"^data source 'mine', part test: examples float32 \(5, 2\); expected float32 \(12, 2\)",
    ),
    "a policy's shape": (
        of("POLICIES", "return image[:5]", arguments="key, image"),
        ["augment.policy=mine"],
        r"^augmentation policy 'mine' returned float32 \(5, 2\): expected float32 \(12, 2\), as it got",
    ),
    "a policy on the host": (
        of("POLICIES", "return image", arguments="key, image"),
        ["augment.policy=mine", "augment.place=host"],
        "^config.augment.place='host': expected",
    ),
    "a crop of no image": (
        "",
        ["augment.crop=pad"],
        r"^arrays of shape \(12, 2\): expected config.augment.crop='none'",
    ),
    "RandAugment of no image": ("", ["augment.policy=randaugment"], r"^policy 'randaugment' needs images uint8"),
    "a mixing's weight": (
        of("MIXINGS", "return inputs.images"),
        [f"{STAGE}.mine=0.5", f"{STAGE}.onto=0", f"{STAGE}.sampler=shuffle"],
        "^mixing 'mine' returned a .*: expected images and a weight",
    ),
    "a mixing without pairs": (
        "",
        [f"{STAGE}.sampler=shuffle"],
        r"^config.stages.first.sampler='shuffle': expected a sampler of pairs \(.*with_rare.*\) with onto > 0",
    ),
    "a hook's shape": (
        of("FEATURE_HOOKS", "return [x[:, :2] for x in inputs.maps]"),
        [f"{STAGE}.mine=0.5"],
        r"^feature hook 'mine' returned \[\(16, 2\), \(16, 2\)\]: expected a list of maps \[\(16, 6\), \(16, 6\)\]",
    ),
    "a field that is there": (of("MIXINGS", "return 1", "lr"), [], "'lr': config.stages.NAME.lr is a field already"),
    "a sampler that fails": (
        of("SAMPLERS", "return key[3]", arguments="key, labels"),
        [f"{STAGE}.sampler=mine", f"{STAGE}.onto=0"],
        rf"^sampler 'mine' \({LINE}\) failed: ",
    ),
    "a schedule that branches": (
        of("SCHEDULES", "return 0.1 if step < 3 else 0.01", arguments="step, stage"),
        [f"{STAGE}.schedule=mine"],
        rf"^schedule 'mine' \({LINE}\) asks for the value of an array",
    ),
    "parameters that nobody passes": (
        of("SAMPLERS", "return 1", options=", parameters={'rate': 1}", arguments="key, labels"),
        [],
        r"sampler 'mine': parameters=\['rate'\]: this kind has none",
    ),
    "a score that fails": (
        of("SCORES", "return predictions.logits", arguments="predictions"),
        [],
        rf"^score 'mine' \({LINE}",
    ),
    "a score of each class": (
        of("SCORES", "return predictions.class_accuracy()", arguments="predictions"),
        [],
        r"^score 'mine' returned float64 \(4,\): expected a number or None",
    ),
    "a name that is taken": (
        of("LOSSES", "return 1", "ce"),
        [],
        "loss 'ce' is registered already, by .*loss_registry.py",
    ),
}


@pytest.fixture(autouse=True)
def registered_as_before(monkeypatch):
    found = [*vars(methods).values(), *vars(tables).values()]
    for table in (value for value in found if isinstance(value, methods.Registry)):
        monkeypatch.setattr(table, "_entries", dict(table._entries))


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """One folder for all: a file may replace what it has registered itself."""
    return tmp_path_factory.mktemp("mistakes")


@pytest.mark.parametrize("case", CASES)
def test_a_mistake_is_one_line(folder, case):
    text, changes, said = CASES[case]
    before, builds, after = FILE.partition("def get_config")
    (folder / "mine.py").write_text(before + text + "\n\n" + builds + after)
    flags = [f"--config.{change}" for change in changes]
    with pytest.raises(UserError, match=said) as error:
        main(["train", f"--config={folder / 'mine.py'}", f"--workdir={folder / 'run'}", *flags])
    left = (folder / "run").exists()
    shutil.rmtree(folder / "run", ignore_errors=True)
    assert "\n" not in str(error.value) and len(str(error.value)) < 500
    assert not left


@pytest.mark.parametrize(
    ("text", "said"),
    [
        (
            "def mine(inputs, tau):\n    return inputs.logits[0]",
            r"^adjustment 'mine' returned float32 \(32, 4\): expected",
        ),
        ("def mine(inputs, tau):\n    return inputs.labels", rf"^adjustment 'mine' \({LINE}\) failed: AttributeError"),
        ("def mine(inputs):\n    return inputs.logits", "adjustment 'mine' takes 1 arguments: expected"),
    ],
)
def test_a_mistake_after_training_is_one_line(folder, text, said):
    (folder / "mine.py").write_text(FILE + f"\n\n@ADJUSTMENTS.register('mine')\n{text}\n")
    if not (folder / "done").exists():
        (folder / "mine.py").with_name("first.py").write_text(FILE)
        (folder / "mine.py").write_text(FILE)
        short = ["--config.run=('second',)", "--config.stages.second.max_steps=1"]
        main(["train", f"--config={folder / 'mine.py'}", f"--workdir={folder / 'done'}", *short])
        (folder / "mine.py").write_text(FILE + f"\n\n@ADJUSTMENTS.register('mine')\n{text}\n")
    with pytest.raises(UserError, match=said) as error:
        main(["evaluate", f"--checkpoint={folder / 'done'}", f"--config={folder / 'mine.py'}", "--adjust=mine"])
    assert "\n" not in str(error.value)


def test_features_that_do_not_fit(tmp_path):
    good, labels = np.zeros((4, 3), np.float32), np.array([0, 1, 0, 1])
    bad = {
        "features of example 2 are not finite": {"features": np.array([[0.0], [1], [np.nan], [0]]), "labels": labels},
        r"labels int64 \(4,\); expected whole numbers \(3,\)": {"features": good[:3], "labels": labels},
        "it holds x; expected features": {"x": good},
        r"labels float64 \(4,\)": {"features": good, "labels": labels / 2},
        "a label -1": {"features": good, "labels": labels - 1},
        "a label 2000000001; expected labels below 4": {"features": good, "labels": labels + 2_000_000_000},
        r"features <U1 \(4,\); expected numbers": {"features": np.array(list("abcd")), "labels": labels},
    }
    np.savez(tmp_path / "good.npz", features=good, labels=labels)
    for said, arrays in bad.items():
        np.savez(tmp_path / "bad.npz", **arrays)
        with pytest.raises(UserError, match=rf"^config.data.npz.train=.*bad\.npz: .*{said}"):
            main(["inspect", f"--config=features_lt:train={tmp_path}/bad.npz,test={tmp_path}/good.npz"])
    np.savez(tmp_path / "bad.npz", features=good[:, :2], labels=labels)
    with pytest.raises(
        UserError, match=r"npz.test=.*: examples float32 \(2,\); expected float32 \(3,\) as in part train"
    ):
        main(["inspect", f"--config=features_lt:train={tmp_path}/good.npz,test={tmp_path}/bad.npz"])
    (tmp_path / "bad.npz").write_bytes(b"PK\x03\x04")
    for path, said in ((tmp_path / "bad.npz", "not a readable .npz file"), (tmp_path / "none.npz", "No such file")):
        with pytest.raises(UserError, match=said):
            main(["inspect", f"--config=features_lt:train={path},test={tmp_path}/good.npz"])
    with pytest.raises(UserError, match=r"config.data.npz.train is empty: expected a .npz file"):
        main(["inspect", "--config=features_lt"])
