"""Losses as pure functions of logits and labels: SHIKE's, and those that long-tailed recognition compares with.

Every function takes logits [B,C] of one network or [M,B,C] of M experts, labels [B], and what its paper names besides;
lists and NumPy arrays serve as well as JAX's. The result is float [B], in nats, summed over the experts: M = 1
gives the published loss of one network. Configurations reach them through `loss_registry`.

Two forms of SHIKE's distillation terms exist. `paper` is the printed equations. `official` is the authors' code, which

* divides both KL terms by the number of classes too (`kl_div` with the mean over all elements),
* keeps the target entry in both softmaxes of the non-target term: logit 0 in the teacher's, -30 in the student's, and
  looks for the hardest negative among all entries with the target's set to 0,
* lets gradients flow through the teachers. The `paper` form treats teachers as constants, as distillation usually does.
"""

from __future__ import annotations

import jax
import jax.numpy as jnp
from jax import lax
from jax.typing import ArrayLike

from shike_jax.errors import UserError

__all__ = [
    "balanced_experts",
    "balanced_softmax",
    "class_balanced",
    "cross_entropy",
    "focal",
    "grand_teacher",
    "ldam",
    "logit_adjusted",
    "mutual_distillation",
    "non_target_distillation",
    "shike",
]

Array = jax.Array
FORMS = ("official", "paper")
WEIGHTS = {"official": (10.0, 1.0), "paper": (1.0, 1.0)}  # of L_nt and L_mu: the authors' settings, and ones
STUDENT_TARGET_LOGIT = -30.0  # official form only


def cross_entropy(logits: ArrayLike, labels: ArrayLike) -> Array:
    """Cross-entropy (the L_ce of eq. 10).

    Args:
      logits: float [B,C] or [M,B,C].
      labels: int [B], classes 0..C-1.

    Returns:
      float [B].

    Raises:
      UserError: of all functions here: shapes or dtypes that do not fit, an unknown form.

    >>> print(cross_entropy([[0.0, 0.0]], [1]))  # log 2
    [0.6931472]
    """
    logits, labels = checked(logits, labels)
    return -jnp.sum(at_label(jax.nn.log_softmax(logits), labels), 0)


def balanced_softmax(logits: ArrayLike, labels: ArrayLike, class_counts: ArrayLike) -> Array:
    """Balanced softmax (eq. 11; Ren et al. 2020): cross-entropy of z + log n.

    Args:
      logits, labels: as in `cross_entropy`.
      class_counts: [C] training images of each class, all positive.

    >>> print(balanced_softmax([[0.0, 0.0]], [1], [3, 1]))  # log 4
    [1.3862944]
    """
    logits, labels = checked(logits, labels)
    return cross_entropy(logits + jnp.log(checked_counts(class_counts, logits)), labels)


def mutual_distillation(logits: ArrayLike, form: str = "official") -> Array:
    """KL(p^j || p^k) summed over all ordered pairs of different experts (L_mu, eq. 4).

    Args:
      logits: float [M,B,C]; the result is 0 for M = 1 or [B,C].
      form: `official` divides by C and differentiates through the teacher p^j; `paper` does neither.

    >>> print(mutual_distillation([[[0.0, 0.0]], [[0.0, 0.0]]]))  # experts that agree
    [0.]
    """
    logits = as_experts(logits)
    _check_form(form)
    log_p = jax.nn.log_softmax(logits)
    if form == "official":
        # sum_jk p_j (log p_j - log p_k) without a double loop; the terms j = k are 0.
        pairs = jnp.exp(log_p) * (len(logits) * log_p - jnp.sum(log_p, 0))
        return jnp.sum(pairs, (0, 2)) / logits.shape[-1]
    teacher = lax.stop_gradient(log_p)
    return jnp.sum(jnp.exp(teacher) * (len(logits) * teacher - jnp.sum(log_p, 0)), (0, 2))


def grand_teacher(logits: ArrayLike, labels: ArrayLike, form: str = "paper") -> tuple[Array, Array]:
    """The grand teacher's logits and the consensus hardest negative (eqs. 5-7).

    Args:
      logits, labels: as in `cross_entropy`.
      form: how the target entry is treated when the hardest negative is sought: left out (`paper`) or a logit of 0.

    Returns:
      float [B,C]: the maximum over experts, but their mean at the hardest negative; the target entry means nothing.
      int [B]: the hardest negative class.

    >>> teacher, hardest = grand_teacher([[[9.0, 1.0, 0.0]], [[9.0, 2.0, 4.0]]], [0])
    >>> print(teacher[0, 1:], hardest)  # class 2 is the hardest negative: the experts' mean
    [2. 2.] [2]
    """
    logits, labels = checked(logits, labels)
    _check_form(form)
    target = jax.nn.one_hot(labels, logits.shape[-1], dtype=bool)
    mean = jnp.mean(logits, 0)
    hardest = jnp.argmax(jnp.where(target, 0.0 if form == "official" else -jnp.inf, mean), -1)
    is_hardest = jax.nn.one_hot(hardest, logits.shape[-1], dtype=bool)
    return jnp.where(is_hardest, mean, jnp.max(logits, 0)), hardest


def non_target_distillation(logits: ArrayLike, labels: ArrayLike, form: str = "official") -> Array:
    """KL(grand teacher || expert) over the non-target classes (L_nt, eqs. 8-9).

    Args:
      logits, labels: as in `cross_entropy`.
      form: see the module's docstring.

    >>> print(non_target_distillation([[[0.0, 1.0, 1.0]], [[5.0, 1.0, 1.0]]], [0], form="paper"))  # negatives agree
    [0.]
    """
    logits, labels = checked(logits, labels)
    teacher, _ = grand_teacher(logits, labels, form)
    target = jax.nn.one_hot(labels, logits.shape[-1], dtype=bool)
    if form == "official":
        log_t = jax.nn.log_softmax(jnp.where(target, 0.0, teacher))
        log_s = jax.nn.log_softmax(jnp.where(target, STUDENT_TARGET_LOGIT, logits))
        return jnp.sum(jnp.exp(log_t) * (log_t - log_s), (0, 2)) / logits.shape[-1]
    log_t = _log_softmax_without(lax.stop_gradient(teacher), target)
    log_s = _log_softmax_without(logits, target)
    return jnp.sum(jnp.where(target, 0.0, jnp.exp(log_t)) * (log_t - log_s), (0, 2))


def shike(
    logits: ArrayLike,
    labels: ArrayLike,
    form: str = "official",
    *,
    nt_weight: float | None = None,
    mu_weight: float | None = None,
) -> Array:
    """The whole loss of SHIKE's first stage: L_ce + alpha L_nt + beta L_mu (eq. 10).

    Args:
      logits, labels: as in `cross_entropy`.
      form: see the module's docstring.
      nt_weight, mu_weight: alpha and beta; None: 10 and 1 (`official`), 1 and 1 (`paper`).

    >>> import numpy as np
    >>> print(shike(np.zeros((3, 1, 2)), [1], form="paper"))  # experts that agree: three times log 2
    [2.0794415]
    """
    _check_form(form)
    alpha, beta = (
        default if given is None else given
        for given, default in zip((nt_weight, mu_weight), WEIGHTS[form], strict=True)
    )
    distilled = alpha * non_target_distillation(logits, labels, form) + beta * mutual_distillation(logits, form)
    return cross_entropy(logits, labels) + distilled


def focal(logits: ArrayLike, labels: ArrayLike, gamma: float = 2.0) -> Array:
    """Focal loss (Lin et al. 2017, eq. 4, without alpha): -(1 - p_y)^gamma log p_y.

    Args:
      logits, labels: as in `cross_entropy`.
      gamma: at least 0; 0 is cross-entropy.

    >>> print(focal([[0.0, 0.0]], [1]))  # log 2 / 4
    [0.1732868]
    """
    logits, labels = checked(logits, labels)
    log_p = at_label(jax.nn.log_softmax(logits), labels)
    # 1 - p_y; never 0, where a power below 1 has no finite gradient.
    miss = jnp.maximum(-jnp.expm1(log_p), 1e-7)
    return -jnp.sum(miss**gamma * log_p, 0)


def class_balanced(logits: ArrayLike, labels: ArrayLike, class_counts: ArrayLike, beta: float = 0.9999) -> Array:
    """Cross-entropy weighted by the inverse effective number of images (Cui et al. 2019, eqs. 2 and 12).

    Args:
      logits, labels, class_counts: as in `balanced_softmax`.
      beta: from 0 (no weights) to below 1.

    >>> print(class_balanced([[0.0, 0.0]], [1], [3, 1], beta=0.0))  # no weights: log 2
    [0.6931472]
    """
    logits, labels = checked(logits, labels)
    return effective_number_weights(checked_counts(class_counts, logits), beta)[labels] * cross_entropy(logits, labels)


def ldam(
    logits: ArrayLike,
    labels: ArrayLike,
    class_counts: ArrayLike,
    margin: float = 0.5,
    scale: float = 30.0,
    beta: float = 0.9999,
    reweighted: ArrayLike = False,
) -> Array:
    """Label-distribution-aware margins with deferred re-weighting (Cao et al. 2019, eq. 13 and algorithm 1).

    The label's cosine loses the margin Delta_c = C' / n_c^(1/4), scaled so that the largest is `margin`.

    Args:
      logits: float [B,C] or [M,B,C]: cosines times `scale`.
      labels, class_counts: as in `balanced_softmax`.
      beta, reweighted: where `reweighted` is true (the later part of training, bool []), images are weighted by their
        class's inverse effective number.

    >>> print(ldam([[0.0, 0.0]], [0], [16, 1], margin=0.5, scale=2.0))  # Delta_0 = 0.25: log(1 + e^0.5)
    [0.974077]
    """
    logits, labels = checked(logits, labels)
    counts = checked_counts(class_counts, logits)
    margins = counts.astype(jnp.float32) ** -0.25
    margins = margins * (margin / jnp.max(margins))
    is_label = jnp.arange(logits.shape[-1]) == labels[:, None]
    weights = jnp.where(jnp.asarray(reweighted), effective_number_weights(counts, beta)[labels], 1.0)
    return weights * cross_entropy(logits - jnp.where(is_label, scale * margins, 0.0), labels)


def logit_adjusted(logits: ArrayLike, labels: ArrayLike, class_counts: ArrayLike, tau: float = 1.0) -> Array:
    """Logit-adjusted cross-entropy (Menon et al. 2021, eq. 10): of z + tau log pi, pi being the priors.

    Args:
      logits, labels, class_counts: as in `balanced_softmax`.

    >>> print(logit_adjusted([[0.0, 0.0]], [1], [3, 1]))  # log 4
    [1.3862944]
    """
    logits, labels = checked(logits, labels)
    return cross_entropy(logits + tau * _log_prior(class_counts, logits), labels)


def balanced_experts(
    logits: ArrayLike, labels: ArrayLike, class_counts: ArrayLike, low: float = 0.0, high: float = 2.0
) -> Array:
    """Experts with different priors (BalPoE, Aimar et al. 2023, sec. 3): cross-entropy of z^m + tau_m log pi.

    Args:
      logits, labels, class_counts: as in `balanced_softmax`.
      low, high: tau_m runs in equal steps from `low` (the first expert) to `high` (the last one). With a mean of 1, as
        0, 1, 2 have, the average of the experts is unbiased.

    >>> print(balanced_experts([[[0.0, 0.0]], [[0.0, 0.0]]], [1], [3, 1], high=1.0))  # log 2 + log 4
    [2.0794415]
    """
    logits, labels = checked(logits, labels)
    taus = jnp.linspace(low, high, len(logits))
    return cross_entropy(logits + taus[:, None, None] * _log_prior(class_counts, logits), labels)


def effective_number_weights(class_counts: ArrayLike, beta: float) -> Array:
    """Weights [C] proportional to (1 - beta) / (1 - beta^n_c), of mean 1 over the classes (Cui et al. 2019, sec. 4)."""
    counts = jnp.asarray(class_counts).astype(jnp.float32)
    # beta^n through expm1, because 1 - beta^n loses digits in float32 where n is small.
    effective = -jnp.expm1(counts * jnp.log1p(-jnp.float32(1 - beta)))
    weights = 1 / effective
    return weights / jnp.mean(weights)


def at_label(values: Array, labels: Array) -> Array:
    """values [M,B,C] at each label: [M,B]."""
    return jnp.take_along_axis(values, labels[None, :, None], -1)[..., 0]


def _log_softmax_without(logits: Array, excluded: Array) -> Array:
    """log softmax over the entries that are not excluded; 0 (not -inf, which breaks gradients) where they are."""
    return jnp.where(excluded, 0.0, logits - jax.nn.logsumexp(logits, -1, keepdims=True, where=~excluded))


def _log_prior(class_counts: ArrayLike, logits: Array) -> Array:
    counts = checked_counts(class_counts, logits)
    return jnp.log(counts / jnp.sum(counts))


def as_experts(logits: ArrayLike) -> Array:
    """Logits as a floating array [M,B,C]."""
    values = jnp.asarray(logits)
    if values.ndim not in (2, 3):
        raise UserError(f"logits {values.shape}: expected [B,C] of one network or [M,B,C] of M experts")
    if not jnp.issubdtype(values.dtype, jnp.floating):
        values = values.astype(jnp.float32)
    return values[None] if values.ndim == 2 else values


def checked(logits: ArrayLike, labels: ArrayLike) -> tuple[Array, Array]:
    """Logits [M,B,C] and labels [B] that fit each other."""
    values, classes = as_experts(logits), jnp.asarray(labels)
    if classes.shape != values.shape[1:2] or not jnp.issubdtype(classes.dtype, jnp.integer):
        raise UserError(
            f"labels {classes.dtype} {classes.shape}: expected whole numbers {values.shape[1:2]}, one for each image "
            f"of logits {jnp.shape(logits)}"
        )
    return values, classes


def checked_counts(class_counts: ArrayLike, logits: Array) -> Array:
    """Class counts [C] in the logits' dtype, one for each class of the logits [...,C]."""
    counts = jnp.asarray(class_counts)
    if counts.shape != logits.shape[-1:]:
        raise UserError(f"class_counts {counts.shape}: expected {logits.shape[-1:]}, one for each class of the logits")
    return counts.astype(logits.dtype)


def _check_form(form: str) -> None:
    if form not in FORMS:
        raise UserError(f"form={form!r}: expected one of {', '.join(FORMS)}")
