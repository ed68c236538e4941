"""A trained or converted checkpoint, ready to classify: the network, its variables and its view of an image."""

from __future__ import annotations

import dataclasses
import functools
import os
import sys
from collections.abc import Callable, Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from etils import epath
from jax.typing import ArrayLike

from shike_jax.cluster.parallel import find_devices, to_host
from shike_jax.common.paths import given_path, given_text
from shike_jax.common.text import say
from shike_jax.data.views import make_eval_transform
from shike_jax.errors import UserError, naming
from shike_jax.methods.own_files import require
from shike_jax.models import HEAD_SETS, build_model
from shike_jax.models.calling import has_features, name_of, pooled
from shike_jax.storage import hub_form
from shike_jax.storage.weights import load_weights

PyTree = Any
BATCH = 128  # images on the device at once


@dataclasses.dataclass(frozen=True, repr=False)
class Classifier:
    """What `load` returns: `classifier(images)` gives logits.

    Attributes:
      network: a Flax module without a device axis: it runs on one device.
      variables: {`params`, `batch_stats`}, on the device.
      heads: the set of classifiers, `representation` or `classifier`.
      class_names: C names; the class numbers where the checkpoint has none.
      image_size, resize: side of the square that the network saw, and short side before the central crop (pixels).
      mean, std: of the RGB values in 0..1.
      meta: of the checkpoint, with `heads` and `mirror`; `scores` only where they are those of both.
      dtype: of the computation.
      mirror: logits are the means of an image's and its mirror image's.
    """

    network: Any
    variables: PyTree
    heads: str
    class_names: tuple[str, ...]
    image_size: int
    resize: int
    mean: tuple[float, ...]
    std: tuple[float, ...]
    meta: dict[str, Any]
    dtype: Any
    mirror: bool = False

    def __call__(self, images: ArrayLike) -> np.ndarray:
        """Logits float32 [M,N,C] of the M experts.

        Args:
          images: [N,S,S,3] of the trained size: uint8, or float32 and normalised (other floats get a remark on stderr).

        Raises:
          UserError: another dtype or size.

        >>> load("run")(np.zeros((5, 16, 16, 3), np.uint8)).shape
        (3, 5, 10)
        """
        return self._called(self._logits, images)

    def predict(self, images: ArrayLike) -> tuple[np.ndarray, np.ndarray]:
        """Classes int64 [N] (indices into `class_names`) and probabilities float32 [N,C]; images as for a call.

        The probabilities are the softmax of the experts' mean logits.

        >>> classes, probabilities = load("run").predict(np.zeros((5, 16, 16, 3), np.uint8))
        >>> classes.shape, probabilities.shape
        ((5,), (5, 10))
        """
        mean = self(images).mean(0)
        return mean.argmax(-1), softmax(mean)

    def features(self, images: ArrayLike) -> np.ndarray:
        """The pooled features float32 [M,N,F] that each expert's classifier receives; images as for a call.

        >>> load("run").features(np.zeros((5, 16, 16, 3), np.uint8)).shape
        (3, 5, 16)
        """
        self._require_features()
        return self._called(self._pooled, images)

    def save(self, folder: str | os.PathLike[str]) -> None:
        """Writes the classifier into a new folder, from which `load` reads it: safetensors, config.json and a card.

        Raises:
          UserError: the folder is not empty, or cannot be written.

        >>> load("run").save("digits")
        >>> load("digits")
        <classifier of 10 classes: 3 experts, 16 x 16 pixels>
        """
        place = epath.Path(given_path(folder, "save: folder"))
        with naming(f"save: {place}"):
            if place.exists() and not (place.is_dir() and not any(place.iterdir())):
                raise UserError(f"save: {place} is not empty; expected a new folder")
            hub_form.save(place, to_host(self.variables), self.meta)

    def push(self, name: str, *, private: bool = False) -> str:
        """Writes the classifier to Hugging Face's hub, from which `load("hf://OWNER/NAME")` reads it.

        Needs the extra `hub` and a login of its own (`hf auth login`).

        Args:
          name: OWNER/NAME; made where it is missing, with a new version where it is there.
          private: of a new one: whether only its owner sees it.

        Returns:
          The address, for `load`.

        Raises:
          UserError: another name, no login, or the hub cannot be reached.
        """
        return hub_form.push(name, to_host(self.variables), self.meta, private)

    @functools.cached_property
    def _logits(self) -> Callable[[PyTree, ArrayLike], jax.Array]:
        return jax.jit(self.apply)

    @functools.cached_property
    def _pooled(self) -> Callable[[PyTree, ArrayLike], jax.Array]:
        def of_images(variables: PyTree, images: jax.Array) -> jax.Array:
            fused = self.network.apply(variables, self._normalised(images), method="features")["fused"]
            return pooled(fused).astype(jnp.float32)

        return jax.jit(of_images)

    def __repr__(self) -> str:
        shape = self.input.shape
        seen = f"{shape[0]} x {shape[1]} pixels" if self.is_of_images else f"arrays {self.input.dtype} {shape}"
        return f"<classifier of {len(self.class_names)} classes: {self.experts} experts, {seen}>"

    @functools.cached_property
    def experts(self) -> int:
        """M, how many experts give logits."""
        if hasattr(self.network, "depths"):
            return len(self.network.depths)
        one = jax.ShapeDtypeStruct((1, *self.input.shape), self.input.dtype)
        return jax.eval_shape(self.apply, self.variables, one).shape[0]

    @property
    def input(self) -> jax.ShapeDtypeStruct:
        """Shape and dtype of one example: uint8 [S,S,3], or what a source of arrays has."""
        about = self.meta.get("example") or {"shape": (self.image_size, self.image_size, 3), "dtype": "uint8"}
        return jax.ShapeDtypeStruct(tuple(about["shape"]), jnp.dtype(about["dtype"]))

    @property
    def is_of_images(self) -> bool:
        """Whether it takes RGB images, which pictures can be made into."""
        return len(self.input.shape) == 3 and self.input.shape[-1] == 3 and self.input.dtype == jnp.uint8

    def _called(self, call: Callable[[PyTree, ArrayLike], jax.Array], images: ArrayLike) -> np.ndarray:
        pixels, one = np.asarray(images), self.input
        kinds = (np.uint8, np.float32) if self.is_of_images else (one.dtype,)
        if pixels.ndim == 0 or pixels.shape[1:] != one.shape or pixels.dtype not in kinds:
            named = "uint8 or normalised float32" if self.is_of_images else str(one.dtype)
            expected = f"{named} ({', '.join(map(str, ('N', *one.shape)))}{',' if not one.shape else ''})"
            raise UserError(f"images {pixels.dtype} {pixels.shape}: expected {expected}")
        self.remark(pixels)
        return _in_batches(call, self.variables, pixels, min(BATCH, max(len(pixels), 1)))

    def apply(self, variables: PyTree, images: jax.Array) -> jax.Array:
        """Images [B,H,W,3], uint8 or float and normalised, to logits float32 [M,B,C]; pure, for `jax.jit`."""
        views = mirrored(self._normalised(images), self.mirror)
        logits = [self.network.apply(variables, view, heads=self.heads).astype(jnp.float32) for view in views]
        return sum(logits[1:], logits[0]) / len(logits)

    def feature_maps(self, images: np.ndarray) -> dict[str, Any]:
        """`ExpertNetwork.features` of images [B,H,W,3] as for a call.

        `shared`: [B,H,W,C] of each shared stage; `deep`, `aligned` (with fusion), `fused`: [B,h,w,F] of each expert.
        """
        self._require_features()
        self.remark(images)
        return self.network.apply(self.variables, self._normalised(jnp.asarray(images)), method="features")

    def _require_features(self) -> None:
        if not has_features(self.network):
            raise UserError(f"network {name_of(self.network)!r} has no method `features`")

    def remark(self, images: np.ndarray) -> None:
        """Says on stderr when floats can hardly be normalised as the network was trained; they are used as they are."""
        if images.dtype == np.uint8 or not self.is_of_images:
            return
        values = images[np.isfinite(images)]
        mean, std = np.array(self.mean), np.array(self.std)
        low, high = float((-mean / std).min()), float(((1 - mean) / std).max())
        if not len(values) or (values.min() < 0 and low - 0.5 <= values.min() and values.max() <= high + 0.5):
            return
        found = f"floats from {values.min():.4g} to {values.max():.4g} are used as they are"
        expected = f"normalised pixels, (x / 255 - mean) / std, lie in {low:.3g} to {high:.3g} (uint8 needs no more)"
        say(f"{found}; {expected}", file=sys.stderr)

    def _normalised(self, images: jax.Array) -> jax.Array:
        if images.dtype != jnp.uint8 and self.is_of_images:
            return images
        return make_eval_transform(mean=self.mean, std=self.std, dtype=self.dtype)(images)


def softmax(logits: np.ndarray) -> np.ndarray:
    """Probabilities over the last axis, in the dtype of the logits."""
    shifted = np.exp(logits - logits.max(-1, keepdims=True))
    return shifted / shifted.sum(-1, keepdims=True)


def mirrored(images: jax.Array, mirror: bool) -> list[jax.Array]:
    """The views [B,...] whose logits are averaged: the images [B,H,W,C], and with `mirror` their mirror images."""
    return [images, images[:, :, ::-1]] if mirror else [images]


def check_mirror(meta: Mapping[str, Any]) -> None:
    """Raises UserError where a checkpoint's network was trained without flips: it does not know mirror images."""
    if not (meta.get("config") or {}).get("augment", {}).get("flip", True):
        raise UserError("mirror images: this network was trained without them (config.augment.flip=False)")


def load(path: str | os.PathLike[str], heads: str = "", *, mirror: bool | None = None) -> Classifier:
    """A classifier from a run or converted weights.

    Args:
      path: a run's work directory, its weights/STAGE, converted weights, what `Classifier.save` wrote, or
        `hf://OWNER/NAME[@REVISION]` (extra `hub`).
      heads: the set of classifiers; empty: the one that the checkpoint's stage trained, else `classifier`.
      mirror: see the attribute; for networks that were trained with flips. Twice the work. None: as it was saved, and
        without mirror images where nothing says so.

    Raises:
      UserError: no checkpoint, a damaged one, unknown heads, mirror images that the network does not know, no device of
        the platform asked for.

    >>> classifier = load("run")
    >>> classifier
    <classifier of 10 classes: 3 experts, 16 x 16 pixels>
    >>> classifier.class_names[:3]
    ('0', '1', '2')
    """
    find_devices()
    variables, meta = load_weights(given_text(path, "load: path"))
    scored = meta.get("heads"), meta.get("mirror", False)
    heads = heads or meta.get("heads") or "classifier"
    mirror = meta.get("mirror", False) if mirror is None else mirror
    if heads not in HEAD_SETS:
        raise UserError(f"head {heads!r}: expected {' or '.join(HEAD_SETS)}")
    trained_in = (meta.get("config") or {}).get("dtype", "float32")
    # float64 serves comparisons of training; nothing is lost by predicting in float32.
    dtype = jnp.bfloat16 if trained_in == "bfloat16" else jnp.float32
    if mirror:
        check_mirror(meta)
    if (heads, mirror) != scored:
        meta.pop("scores", None)
    return make_classifier({**meta, "heads": heads, "mirror": mirror}, variables, dtype, path)


def make_classifier(meta: dict[str, Any], variables: PyTree, dtype: Any, where: Any) -> Classifier:
    """The classifier that the facts of a checkpoint or an export (at `where`) describe; computes in `dtype`.

    UserError where its network was registered by a file that has not been given.
    """
    require(meta, where, f"network {meta['model']['backbone']}")
    return Classifier(
        network=build_model(meta["model"], meta["num_classes"], dtype=dtype),
        variables=jax.device_put(variables),
        heads=meta["heads"],
        class_names=tuple(meta.get("class_names") or map(str, range(meta["num_classes"]))),
        image_size=meta["image_size"],
        resize=meta.get("resize") or meta["image_size"],
        mean=tuple(meta["mean"]),
        std=tuple(meta["std"]),
        meta=meta,
        dtype=dtype,
        mirror=meta.get("mirror", False),
    )


class BatchedLogits:
    """Logits of batches of at most one size: smaller ones are padded, so each image shape compiles once."""

    def __init__(self, classifier: Classifier, batch_size: int) -> None:
        self._variables, self._batch_size = classifier.variables, batch_size
        self._apply, self._remark = jax.jit(classifier.apply), classifier.remark
        self._seen = False

    def __call__(self, images: np.ndarray) -> np.ndarray:
        """Images [b,H,W,3], uint8 or float and normalised (b <= batch size), to logits float32 [M,b,C], on the host."""
        if not self._seen:  # the first batch tells how the images come
            self._remark(images)
            self._seen = True
        return _in_batches(self._apply, self._variables, images, self._batch_size)


def _in_batches(
    call: Callable[[PyTree, ArrayLike], jax.Array], variables: PyTree, images: np.ndarray, size: int
) -> np.ndarray:
    """A compiled function's results [M,N,...], computed in batches of one size, so that it compiles once."""
    found = []
    for start in range(0, max(len(images), 1), size):
        part = images[start : start + size]
        padding = [(0, size - len(part)), *[(0, 0)] * (part.ndim - 1)]
        found.append(np.asarray(call(variables, np.pad(part, padding)))[:, : len(part)])
    return np.concatenate(found, 1)
