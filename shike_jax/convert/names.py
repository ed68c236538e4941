"""PyTorch's tensor names and layouts, and ours: one table of rules per family, both directions."""

from __future__ import annotations

import dataclasses
import functools
import re
from collections.abc import Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax.traverse_util import flatten_dict, unflatten_dict

from shike_jax.common import colours
from shike_jax.errors import UserError
from shike_jax.models import DEFAULTS, build_model

Rules = tuple[tuple[str, str], ...]

_COMMON: Rules = (
    (r"^(params|batch_stats)/", ""),
    (r"^trunk/", ""),
    (r"stage(\d+)/block(\d+)/", r"layer\1.\2."),
    (r"/(kernel|scale)$", ".weight"),
    (r"/bias$", ".bias"),
    (r"/(mean|var)$", r".running_\1"),
)
_TORCHVISION: Rules = (
    (r"expert0/stage", "stage"),
    (r"shortcut_conv", "downsample.0"),
    (r"shortcut_bn", "downsample.1"),
    (r"heads/\w+/expert0", "fc"),  # the one classifier fills both sets
)
_AUTHORS: Rules = (
    (r"expert(\d+)/stage3/block(\d+)/", r"layer3s.\1.\2."),
    (r"expert(\d+)/align/conv(\d+)", r"shallow_exps.\1.convs.StridedConv\2.conv.0"),
    (r"expert(\d+)/align/bn(\d+)", r"shallow_exps.\1.convs.StridedConv\2.conv.1"),
    (r"shortcut_conv", "shortcut.0"),
    (r"shortcut_bn", "shortcut.1"),
    (r"heads/representation/expert(\d+)", r"classifiers.\1"),
    (r"heads/classifier/expert(\d+)", r"rt_classifiers.\1"),
)


@dataclasses.dataclass(frozen=True)
class Family:
    """PyTorch networks that share names and layouts.

    Attributes:
      rules: regular expressions, applied in order to our path, that give PyTorch's name (the common ones follow).
      classifier: the matrix whose shape tells the number of classes.
      classes_axis: its axis of classes; 1 is our own layout [F,C], 0 is transposed on the way.
      image_size, resize, mean, std: what the networks were trained on (side, and short side before the central crop, in
        pixels; RGB values in 0..1).
    """

    rules: Rules
    classifier: str
    classes_axis: int
    image_size: int
    resize: int
    mean: tuple[float, ...]
    std: tuple[float, ...]


_AUTHORS_CIFAR = Family(_AUTHORS, "classifiers.0.weight", 1, 32, 32, colours.CIFAR_MEAN, colours.CIFAR_STD)
_IMAGENET = Family(_TORCHVISION, "fc.weight", 0, 224, 256, colours.IMAGENET_MEAN, colours.IMAGENET_STD)
_PLAIN = {"depths": (1,), "fusion": False, "head": "linear"}

# timm's ResNets of the same names have the same tensors, those with a `d` after the number have not.
TORCHVISION = ("resnet18", "resnet34", "resnet50", "resnext50_32x4d", "resnet152")

# name: its family and what differs from `models.DEFAULTS`
MODELS: dict[str, tuple[Family, dict[str, Any]]] = {
    "shike_resnet32_cifar": (_AUTHORS_CIFAR, {"backbone": "resnet32", "depths": (1, 2, 1)}),
    **{name: (_IMAGENET, {"backbone": name, **_PLAIN}) for name in TORCHVISION},
}


def family_of(name: str) -> Family:
    """The family of a model name; `UserError` for an unknown one."""
    if name not in MODELS:
        raise UserError(f"--model={name}: expected one of {', '.join(MODELS)}")
    return MODELS[name][0]


def model_settings(name: str) -> dict[str, Any]:
    """The fields of `config.model`, as a plain dict, that build the network called `name`."""
    family_of(name)
    return {**DEFAULTS, **MODELS[name][1]}


@functools.lru_cache(maxsize=8)
def _template(name: str, num_classes: int) -> dict[str, tuple[int, ...]]:
    """Our path -> shape, found by tracing the network's initialisation (nothing is computed)."""
    network = build_model(model_settings(name), num_classes)
    images = jnp.zeros((1, 32, 32, 3))  # parameters do not depend on the image size
    tree = jax.eval_shape(lambda key: network.init(key, images), jax.random.key(0))
    return {path: leaf.shape for path, leaf in flatten_dict(tree, sep="/").items()}


def torch_name(family: Family, path: str) -> str:
    """PyTorch's name of our path, such as `params/trunk/stage1/block0/conv1/kernel` -> `layer1.0.conv1.weight`."""
    for pattern, replacement in family.rules + _COMMON:
        path = re.sub(pattern, replacement, path)
    return path


def _axes(family: Family, rank: int) -> tuple[int, ...]:
    """The transposition from PyTorch's layout to ours: OIHW to HWIO, and matrices as the family has them."""
    if rank == 4:
        return (2, 3, 1, 0)
    return (1, 0) if rank == 2 and family.classes_axis == 0 else tuple(range(rank))


def _torch_shape(family: Family, shape: tuple[int, ...]) -> tuple[int, ...]:
    axes = _axes(family, len(shape))
    return tuple(shape[axes.index(axis)] for axis in range(len(shape)))


def _listed(items: list[str], most: int = 4) -> str:
    return ", ".join(items[:most]) + (f" and {len(items) - most} more" if len(items) > most else "")


def _check(name: str, present: Mapping[str, Any], expected: Mapping[str, tuple[int, ...]]) -> None:
    """`UserError` that names the first missing, unexpected and misshapen arrays."""
    missing = [key for key in expected if key not in present]
    extra = [key for key in present if key not in expected]
    wrong = [
        f"{key} {tuple(present[key].shape)} instead of {shape}"
        for key, shape in expected.items()
        if key in present and tuple(present[key].shape) != shape
    ]
    problems = {"missing": missing, "not expected": extra, "wrong shape": wrong}
    if any(problems.values()):
        most = 4 // sum(map(bool, problems.values()))
        text = "; ".join(f"{problem}: {_listed(items, most)}" for problem, items in problems.items() if items)
        raise UserError(f"these are not the tensors of {name}: {text}")


def without_head(name: str, state: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
    """The tensors of a backbone alone, for a warm start that discards its classifier anyway.

    What lies outside the backbone's own modules goes: classifiers of any shape, projections, prototypes.
    """
    family = family_of(name)
    own = {torch_name(family, path).partition(".")[0] for path in _template(name, 1) if "/heads/" not in path}
    return {key: array for key, array in state.items() if key.partition(".")[0] in own}


def has_head(name: str, state: Mapping[str, np.ndarray]) -> bool:
    """Whether the state has the classifiers of the family, and nothing else next to the backbone."""
    family = family_of(name)
    heads = {torch_name(family, path) for path in _template(name, 1) if "/heads/" in path}
    matrix = state.get(family.classifier)
    return state.keys() - without_head(name, state).keys() == heads and matrix is not None and matrix.ndim == 2


def to_variables(
    name: str,
    state: Mapping[str, np.ndarray],
    num_classes: int | None = None,
    dtype: Any = np.float32,
    head: bool = True,
) -> tuple[dict[str, Any], int]:
    """A PyTorch state dict as variables {`params`, `batch_stats`}.

    Args:
      name: one of `MODELS`.
      state: name -> array in PyTorch's layouts, of any float dtype.
      num_classes: C; None takes it from the classifier's shape.
      dtype: of the variables.
      head: False: neither state nor variables have classifiers (`without_head`), and C is 1.

    Returns:
      The variables, and C. A single classifier (torchvision) fills both sets of heads.

    Raises:
      UserError: unknown model; missing, unexpected, misshapen tensors; tensors that are not of a float dtype.
    """
    family = family_of(name)
    num_classes = num_classes if head else 1
    if num_classes is None:
        matrix = state.get(family.classifier)
        if matrix is None or matrix.ndim != 2:
            raise UserError(f"these are not the tensors of {name}: missing: the matrix {family.classifier}")
        num_classes = matrix.shape[family.classes_axis]
    if num_classes < 1:
        raise UserError(f"--num_classes={num_classes}: expected a positive number")
    template = {path: shape for path, shape in _template(name, num_classes).items() if head or "/heads/" not in path}
    _check(name, state, {torch_name(family, path): _torch_shape(family, shape) for path, shape in template.items()})
    for key, array in state.items():
        if not jnp.issubdtype(array.dtype, jnp.floating):
            raise UserError(f"{key} has dtype {array.dtype}, expected a float dtype")
        if not np.isfinite(array.astype(np.float32)).all():
            raise UserError(f"{key} holds values that are not finite (NaN or infinite)")
    flat = {}
    for path, shape in template.items():
        array = state[torch_name(family, path)].astype(dtype)
        flat[path] = np.ascontiguousarray(array.transpose(_axes(family, len(shape))))
    return unflatten_dict(flat, sep="/"), num_classes


def to_state_dict(name: str, variables: Mapping[str, Any], head: str | None = None) -> dict[str, np.ndarray]:
    """The inverse of `to_variables`, bit for bit.

    Args:
      name: one of `MODELS`.
      variables: {`params`, `batch_stats`}, as trained or converted.
      head: the set of classifiers to write where PyTorch's network has only one; needed if the two differ.

    Raises:
      UserError: unknown model, variables of another network, or a choice of `head` is needed.
    """
    family = family_of(name)
    flat = {path: np.asarray(leaf) for path, leaf in flatten_dict(variables, sep="/").items()}
    kernel = flat.get("params/heads/classifier/expert0/kernel")
    if kernel is None:
        raise UserError(f"the checkpoint is not one of {name}: it has no heads/classifier/expert0/kernel")
    template = _template(name, kernel.shape[-1])
    _check(name, flat, template)
    state: dict[str, np.ndarray] = {}
    chosen_first = sorted(template, key=lambda path: head is not None and f"/heads/{head}/" not in path)
    for path in chosen_first:
        key, array = torch_name(family, path), flat[path]
        array = np.ascontiguousarray(array.transpose(np.argsort(_axes(family, array.ndim))))
        if key not in state:
            state[key] = array
        elif head is None and array.tobytes() != state[key].tobytes():
            raise UserError(f"the two sets of classifiers differ and {name} has one: choose it by --head")
    return state
