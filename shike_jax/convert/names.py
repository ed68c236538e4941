"""PyTorch's tensor names and layouts, and ours: one table of rules per family, both directions.

A network is given as `model`: a name of `MODELS`, or the fields of `config.model` of any network of this package, whose
names are the authors', continued to other backbones.
"""

from __future__ import annotations

import dataclasses
import functools
import json
import re
from collections.abc import Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax.traverse_util import flatten_dict, unflatten_dict

from shike_jax.common import colours
from shike_jax.errors import UserError
from shike_jax.models import BACKBONES, DEFAULTS, build_model
from shike_jax.storage.trees import check_arrays

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
    (r"expert(\d+)/stage(\d+)/block(\d+)/", r"layer\2s.\1.\3."),
    (r"expert(\d+)/align/conv(\d+)", r"shallow_exps.\1.convs.StridedConv\2.conv.0"),
    (r"expert(\d+)/align/bn(\d+)", r"shallow_exps.\1.convs.StridedConv\2.conv.1"),
    (r"shortcut_conv", "shortcut.0"),
    (r"shortcut_bn", "shortcut.1"),
    (r"heads/representation/expert(\d+)", r"classifiers.\1"),
    (r"heads/classifier/expert(\d+)/confidence", r"rt_classifiers.\1.confidence"),
    (r"heads/classifier/expert(\d+)", r"rt_classifiers.\1"),
)


@dataclasses.dataclass(frozen=True)
class Family:
    """PyTorch networks that share names and layouts, and the images that they were trained on."""

    rules: Rules  # regular expressions, applied in order to our path, that give PyTorch's name (the common ones follow)
    classifier: str  # the matrix whose shape tells the number of classes
    classes_axis: int  # its axis of classes; 1 is our own layout [F,C], 0 is transposed on the way
    image_size: int  # side in pixels
    resize: int  # short side before the central crop, in pixels
    mean: tuple[float, ...]  # of the RGB values in 0..1
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


Model = str | Mapping[str, Any]


def family_of(model: Model) -> Family:
    """The family of a network; `UserError` for an unknown name."""
    if not isinstance(model, str):
        if model["backbone"] not in BACKBONES:
            raise UserError(f"{model['backbone']} is no network of this package: its PyTorch form is not known")
        axis = 1 if model["head"] == "cosine" else 0
        return dataclasses.replace(_AUTHORS_CIFAR, classes_axis=axis)
    if model not in MODELS:
        raise UserError(f"--model={model}: expected one of {', '.join(MODELS)}")
    return MODELS[model][0]


def model_settings(model: Model) -> dict[str, Any]:
    """The fields of `config.model`, as a plain dict, that build a network."""
    family_of(model)
    return {**DEFAULTS, **(MODELS[model][1] if isinstance(model, str) else model)}


def named(settings: Mapping[str, Any]) -> Model:
    """The name in `MODELS` of a network with these fields of `config.model`; the fields themselves without one."""
    known = (name for name in MODELS if all(_has(settings, *field) for field in model_settings(name).items()))
    return next(known, settings)


def _has(settings: Mapping[str, Any], field: str, value: Any) -> bool:
    """Whether a field has a value; JSON makes lists of tuples, and older checkpoints lack newer fields."""
    found = settings.get(field, DEFAULTS.get(field))
    return tuple(found) == tuple(value) if isinstance(value, list | tuple) else found == value


def _template(model: Model, num_classes: int) -> dict[str, tuple[int, ...]]:
    """Our path -> shape."""
    return _traced(json.dumps(model_settings(model)), num_classes)


@functools.lru_cache(maxsize=8)
def _traced(settings: str, num_classes: int) -> dict[str, tuple[int, ...]]:
    """Traces the network's initialisation: nothing is computed."""
    network = build_model(json.loads(settings), num_classes)
    images = jnp.zeros((1, 32, 32, 3))  # parameters do not depend on the image size
    tree = jax.eval_shape(network.init, jax.random.key(0), images)
    return {path: leaf.shape for path, leaf in flatten_dict(tree, sep="/").items()}


def _called(model: Model) -> str:
    return model if isinstance(model, str) else f"this network of {model['backbone']}"


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


def without_head(model: Model, state: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
    """The tensors of a backbone's own modules, without classifiers of any shape, projections, prototypes."""
    family = family_of(model)
    own = {torch_name(family, path).partition(".")[0] for path in _template(model, 1) if "/heads/" not in path}
    return {key: array for key, array in state.items() if key.partition(".")[0] in own}


def has_head(model: Model, state: Mapping[str, np.ndarray]) -> bool:
    """Whether the state has the classifiers of the family, and nothing else next to the backbone."""
    family = family_of(model)
    heads = {torch_name(family, path) for path in _template(model, 1) if "/heads/" in path}
    matrix = state.get(family.classifier)
    return state.keys() - without_head(model, state).keys() == heads and matrix is not None and matrix.ndim == 2


def to_variables(
    model: Model,
    state: Mapping[str, np.ndarray],
    num_classes: int | None = None,
    dtype: Any = np.float32,
    head: bool = True,
) -> tuple[dict[str, Any], int]:
    """A PyTorch state dict of any float dtype as variables {`params`, `batch_stats`}, and C.

    `num_classes` is C; None takes it from the classifier's shape. Without `head` neither state nor variables have
    classifiers (`without_head`), and C is 1. A single classifier (torchvision) fills both sets of heads. `UserError`
    for an unknown model; missing, unexpected, misshapen tensors; tensors that are not of a float dtype.
    """
    family = family_of(model)
    num_classes = num_classes if head else 1
    if num_classes is None:
        matrix = state.get(family.classifier)
        if matrix is None or matrix.ndim != 2:
            raise UserError(f"these are not the tensors of {_called(model)}: missing: the matrix {family.classifier}")
        num_classes = matrix.shape[family.classes_axis]
    if num_classes < 1:
        raise UserError(f"--num_classes={num_classes}: expected a positive number")
    template = {path: shape for path, shape in _template(model, num_classes).items() if head or "/heads/" not in path}
    shapes = {path: np.array(shape)[np.argsort(_axes(family, len(shape)))] for path, shape in template.items()}
    expected = {torch_name(family, path): tuple(shape.tolist()) for path, shape in shapes.items()}
    check_arrays(state, expected, f"these are not the tensors of {_called(model)}")
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


def to_state_dict(model: Model, variables: Mapping[str, Any], head: str | None = None) -> dict[str, np.ndarray]:
    """The inverse of `to_variables`, bit for bit; `UserError` for an unknown model or variables of another network.

    `head` is the set of classifiers to write where PyTorch's network has only one; needed if the two differ.
    """
    family = family_of(model)
    flat = {path: np.asarray(leaf) for path, leaf in flatten_dict(variables, sep="/").items()}
    kernel_path = "heads/representation/expert0/kernel"
    kernel = flat.get(f"params/{kernel_path}")
    if kernel is None:
        raise UserError(f"the checkpoint is not one of {_called(model)}: it has no {kernel_path}")
    template = _template(model, kernel.shape[-1])
    check_arrays(flat, template, f"these are not the tensors of {_called(model)}")
    state: dict[str, np.ndarray] = {}
    for path in sorted(template, key=lambda path: head is not None and f"/heads/{head}/" not in path):
        key, array = torch_name(family, path), flat[path]
        array = np.ascontiguousarray(array.transpose(np.argsort(_axes(family, array.ndim))))
        if key not in state:
            state[key] = array
        elif head is None and array.tobytes() != state[key].tobytes():
            raise UserError(f"the two sets of classifiers differ and {_called(model)} has one: choose it by --head")
    return state
