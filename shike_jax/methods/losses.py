"""Every loss as a plain function of logits and labels (`sj.losses`): SHIKE's, and those that it is compared with.

The arguments are, where a function does not say otherwise,

* `logits`: float [B,C] of one network or [M,B,C] of M experts,
* `labels`: int [B], classes 0..C-1,
* `class_counts`: [C] training images of each class, all positive,

and what the paper names besides; lists and NumPy arrays serve as well as JAX's. The result is float [B], in nats,
summed over the experts: M = 1 gives the published loss of one network. All raise UserError for shapes or dtypes that do
not fit, and for an unknown form. Configurations reach them through `loss_registry`.

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
    "expert_diversity",
    "focal",
    "gaussian_clouded",
    "generalized_reweight",
    "grand_teacher",
    "label_aware_smoothing",
    "ldam",
    "logit_adjusted",
    "mutual_distillation",
    "non_target_distillation",
    "shike",
    "skill_diverse",
]

Array = jax.Array
FORMS = ("official", "paper")
WEIGHTS = {"official": (10.0, 1.0), "paper": (1.0, 1.0)}  # of L_nt and L_mu: the authors' settings, and ones
STUDENT_TARGET_LOGIT = -30.0  # official form only


def cross_entropy(logits: ArrayLike, labels: ArrayLike) -> Array:
    """Cross-entropy (the L_ce of eq. 10).

    >>> print(cross_entropy([[0.0, 0.0]], [1]))  # log 2
    [0.6931472]
    """
    logits, labels = checked(logits, labels)
    return -jnp.sum(at_label(jax.nn.log_softmax(logits), labels), 0)


def balanced_softmax(logits: ArrayLike, labels: ArrayLike, class_counts: ArrayLike) -> Array:
    """Balanced softmax (eq. 11; Ren et al. 2020): cross-entropy of z + log n.

    >>> print(balanced_softmax([[0.0, 0.0]], [1], [3, 1]))  # log 4
    [1.3862944]
    """
    logits, labels = checked(logits, labels)
    return cross_entropy(logits + jnp.log(checked_counts(class_counts, logits)), labels)


def mutual_distillation(logits: ArrayLike, form: str = "official") -> Array:
    """Mutual distillation (L_mu, eq. 4): the sum of KL(p^j, p^k) over all ordered pairs of different experts.

    It is 0 for one network. `official` divides by C and differentiates through the teacher p^j; `paper` does neither.

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

    When the hardest negative is sought, the target entry is left out (`paper`) or a logit of 0 (`official`).

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
    """Distillation over the non-target classes (L_nt, eqs. 5 to 9): KL(grand teacher, expert), summed over the experts.

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

    `nt_weight` and `mu_weight` are alpha and beta; None: 10 and 1 (`official`), 1 and 1 (`paper`).

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
    """Focal loss (Lin et al. 2017, eq. 4, without alpha): -(1 - p_y)^gamma log p_y; gamma 0 is cross-entropy.

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

    beta runs from 0 (no weights) to below 1.

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

    The label's cosine loses the margin Delta_c = C' / n_c^(1/4), scaled so that the largest is `margin`; the logits are
    cosines times `scale`. Where `reweighted`, bool [], is true (late in training), images are weighted by their class's
    inverse effective number.

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

    >>> print(logit_adjusted([[0.0, 0.0]], [1], [3, 1]))  # log 4
    [1.3862944]
    """
    logits, labels = checked(logits, labels)
    return cross_entropy(logits + tau * _log_prior(class_counts, logits), labels)


def balanced_experts(
    logits: ArrayLike, labels: ArrayLike, class_counts: ArrayLike, low: float = 0.0, high: float = 2.0
) -> Array:
    """Experts with different priors (BalPoE, Aimar et al. 2023, sec. 3): cross-entropy of z^m + tau_m log pi.

    tau_m runs in equal steps from `low` (the first expert) to `high` (the last one). With a mean of 1, as 0, 1, 2 have,
    the average of the experts is unbiased.

    >>> print(balanced_experts([[[0.0, 0.0]], [[0.0, 0.0]]], [1], [3, 1], high=1.0))  # log 2 + log 4
    [2.0794415]
    """
    logits, labels = checked(logits, labels)
    taus = jnp.linspace(low, high, len(logits))
    return cross_entropy(logits + taus[:, None, None] * _log_prior(class_counts, logits), labels)


def label_aware_smoothing(
    logits: ArrayLike, labels: ArrayLike, class_counts: ArrayLike, head: float = 0.4, tail: float = 0.1
) -> Array:
    """Label-aware smoothing (MiSLAS, Zhong et al. 2021, sec. 3.3): (1 - e_y) CE + e_y (mean over classes of -log p).

    e_c = tail + (head - tail) sin(pi (n_c - n_min) / (2 (n_max - n_min))): the networks are most overconfident where
    they have seen most; with equal class counts, e is `tail`. As in the authors' code, the smoothed part goes to all C
    classes, the label's included.

    >>> print(label_aware_smoothing([[0.0, 0.0]], [1], [3, 1]))  # both parts are log 2
    [0.6931472]
    """
    logits, labels = checked(logits, labels)
    counts = checked_counts(class_counts, logits)
    share = (counts - jnp.min(counts)) / jnp.maximum(jnp.max(counts) - jnp.min(counts), 1)
    smoothing = (tail + (head - tail) * jnp.sin(share * (jnp.pi / 2)))[labels]
    rest = -jnp.sum(jnp.mean(jax.nn.log_softmax(logits), -1), 0)
    return (1 - smoothing) * cross_entropy(logits, labels) + smoothing * rest


def generalized_reweight(logits: ArrayLike, labels: ArrayLike, class_counts: ArrayLike, rho: float = 1.2) -> Array:
    """Cross-entropy weighted by n_y^-rho, of mean 1 over the classes (DisAlign, Zhang et al. 2021, eqs. 9 and 10).

    rho = 0 weights all images alike, 1 all classes; the authors use 1.2 on ImageNet-LT. The layer of DisAlign is
    `model.second_head=aligned`.

    >>> print(generalized_reweight([[0.0, 0.0]], [1], [3, 1], rho=1.0))  # 3/2 log 2
    [1.0397208]
    """
    logits, labels = checked(logits, labels)
    counts = checked_counts(class_counts, logits)
    weights = (counts / jnp.max(counts)) ** -rho
    return (weights / jnp.mean(weights))[labels] * cross_entropy(logits, labels)


def gaussian_clouded(
    logits: ArrayLike,
    labels: ArrayLike,
    class_counts: ArrayLike,
    noise: ArrayLike,
    strength: float = 0.5,
    margin: float = 0.0,
    scale: float = 30.0,
) -> Array:
    """Gaussian clouded logit adjustment (GCL, Li et al. 2022, eqs. 7 to 9), by the size of the noise as the authors do.

    Class c loses scale * strength * abs(noise) * (log n_max - log n_c) / (log n_max - log n_min), and the label's class
    scale * margin besides: more noise widens the space that features of rare classes take. With equal class counts
    there is no cloud. The logits are cosines times `scale`, the noise [B,C] is the same for all experts; the authors
    use the strength 0.5 on CIFAR100-LT.

    >>> print(gaussian_clouded([[0.0, 0.0]], [1], [9, 1], [[1.0, 1.0]], strength=0.1, scale=10))  # log(1 + e)
    [1.3132616]
    """
    logits, labels = checked(logits, labels)
    rarity = -jnp.log(checked_counts(class_counts, logits))
    rarity = rarity - jnp.min(rarity)
    rarity = rarity / jnp.maximum(jnp.max(rarity), 1e-12)
    is_label = jax.nn.one_hot(labels, logits.shape[-1], dtype=logits.dtype)
    lowered = strength * jnp.abs(jnp.asarray(noise)) * rarity + margin * is_label
    return cross_entropy(logits - scale * lowered.astype(logits.dtype), labels)


def expert_diversity(
    logits: ArrayLike, class_counts: ArrayLike, temperature: float = 1.0, reweighting: float = 0.05
) -> Array:
    """Diversity of the experts (RIDE, Wang et al. 2021, eq. 3, in the authors' form): at most 0, less as they differ.

    -mean(T)^2 KL(p^mean / T || p^m / T) summed over the experts, with a temperature for each class,
    T_c = temperature * r_c / max(r) with r_c = reweighting * C * n_c / n + 1 - reweighting: smaller for rare classes,
    so that experts agree less there (`reweighting` from 0: not at all, to 1). The experts' mean is a constant; one
    network gets 0. The authors' weight of the loss is 0.2, and 0.45 with LDAM.

    >>> print(-expert_diversity([[[0.0, 0.0]], [[0.0, 0.0]]], [3, 1]))  # experts that agree
    [0.]
    """
    values = as_experts(logits)
    counts = checked_counts(class_counts, values)
    shares = counts / jnp.sum(counts)
    factors = reweighting * len(counts) * shares + 1 - reweighting
    temperatures = temperature * factors / jnp.max(factors)
    mean = jax.lax.stop_gradient(jnp.mean(values, 0))
    log_mean = jax.nn.log_softmax(mean / temperatures)
    log_own = jax.nn.log_softmax(values / temperatures)
    divergence = jnp.sum(jnp.exp(log_mean) * (log_mean - log_own), (0, 2))
    return -(jnp.mean(temperatures) ** 2) * divergence


def skill_diverse(logits: ArrayLike, labels: ArrayLike, class_counts: ArrayLike, tau: float = 2.0) -> Array:
    """Softmax, balanced and inverse softmax, one for each of three experts (SADE, Zhang et al. 2022, eqs. 1 to 3).

    The first expert learns the training distribution, the second a uniform one (z + log pi), the third an inverse one
    (z + log pi - tau log pi', where pi' gives the rarest class the share of the most frequent one and so on). tau says
    how far it is pushed towards the rare classes. Another number of experts is a UserError.

    >>> print(skill_diverse([[[0.0, 0.0]]] * 3, [1], [3, 1]))  # log 2, log 4 and log 28
    [5.411646]
    """
    values, labels = checked(logits, labels)
    if len(values) != 3:
        raise UserError(f"loss 'sade': {len(values)} experts; expected 3, such as config.model.depths=(1, 2, 1)")
    log_prior = _log_prior(class_counts, values)
    rank = jnp.argsort(jnp.argsort(log_prior))
    log_inverse = jnp.sort(log_prior)[::-1][rank]
    shifts = jnp.stack([jnp.zeros_like(log_prior), log_prior, log_prior - tau * log_inverse])
    return cross_entropy(values + shifts[:, None].astype(values.dtype), labels)


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
    """Logits as an array [M,B,C] of float32, or of float64: class counts are added up in the same type."""
    values = jnp.asarray(logits)
    if values.ndim not in (2, 3):
        raise UserError(f"logits {values.shape}: expected [B,C] of one network or [M,B,C] of M experts")
    values = values.astype(jnp.promote_types(values.dtype, jnp.float32))
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
