"""The drawn operations and arguments have the policies' probabilities (100,000 draws of parameters, no images)."""

import collections

import jax
import numpy as np
import pytest
from scipy.stats import chi2, chisquare, kstest

from shike_jax.augment import policies

DRAWS = 100_000
SIGNED = {"shear_x", "shear_y", "translate_x", "translate_y", "color", "contrast", "sharpness", "brightness"}


def draw_many(policy, seed):
    keys = jax.random.split(jax.random.key(seed), DRAWS)
    return jax.tree.map(np.asarray, jax.jit(jax.vmap(policy.draw))(keys))


def signature(kind, choice):
    """What tells two outcomes apart: the operation and the argument that it uses."""
    if kind in ("identity", "autocontrast", "equalize", "invert"):
        return kind
    used = {"nearest": choice.fixed, "interpolated": choice.matrix}.get(kind, choice.value)
    return kind, tuple(np.ravel(used).tolist())


def test_autoaugment_outcomes_have_their_probabilities():
    policy = policies.autoaugment_cifar(32, 32)
    expected = collections.Counter()
    for pair in policies.AUTOAUGMENT_CIFAR:
        outcomes = [{}, {}]
        for layer, (chance, name, level) in enumerate(pair):
            outcomes[layer] = collections.Counter({"identity": 1 - chance})
            for sign in (-1, 1):
                kind, choice = policies.autoaugment_choice(name, level, sign, 32, 32)
                outcomes[layer][signature(kind, choice)] += chance / 2
        for first, chance in outcomes[0].items():
            for second, other in outcomes[1].items():
                expected[first, second] += chance * other / 25

    drawn = draw_many(policy, 3)
    layers = [jax.tree.map(lambda leaf, layer=layer: leaf[:, layer], drawn) for layer in range(2)]
    seen = collections.Counter()
    for index in range(DRAWS):
        one = [jax.tree.map(lambda leaf, index=index: leaf[index], layer) for layer in layers]
        seen[tuple(signature(policy.kinds[k][one[k].kind], one[k]) for k in range(2))] += 1

    assert set(seen) <= {outcome for outcome, chance in expected.items() if chance > 0}
    outcomes = [outcome for outcome, chance in expected.items() if chance > 0]
    assert len(outcomes) > 80
    test = chisquare([seen[o] for o in outcomes], [DRAWS * expected[o] for o in outcomes])
    assert test.pvalue > 1e-3


def test_autoaugment_signs_follow_the_recipe():
    for name in policies.AUTOAUGMENT_LEVELS:
        left, right = (signature(*policies.autoaugment_choice(name, 5, sign, 32, 32)) for sign in (-1, 1))
        assert (left != right) == (name in SIGNED)


def operation_names(drawn):
    """The entry of RANDAUGMENT that each drawn choice is: [N] strings, "identity" where none is applied."""
    kinds = np.asarray(policies.RANDAUGMENT_KINDS)[drawn.kind]
    matrix = drawn.matrix
    names = dict((kind, name) for name, kind, _ in policies.RANDAUGMENT)
    geometric = np.select(
        [(matrix[:, 1] != 0) & (matrix[:, 3] != 0), matrix[:, 1] != 0, matrix[:, 3] != 0, matrix[:, 2] != 0],
        ["Rotate", "ShearX", "ShearY", "TranslateXRel"],
        "TranslateYRel",
    )
    return np.where(kinds == "interpolated", geometric, [names.get(kind, kind) for kind in kinds])


@pytest.mark.parametrize("prob", [0.5, 0.9])
def test_randaugment_operations_are_uniform(prob):
    policy = policies.randaugment(32, 48, np.full(3, 128), layers=2, prob=prob)
    drawn = draw_many(policy, 4)
    pairs = [operation_names(jax.tree.map(lambda leaf, layer=layer: leaf[:, layer], drawn)) for layer in range(2)]
    chances = {"identity": 1 - prob} | {name: prob / 15 for name, _, _ in policies.RANDAUGMENT}
    seen = collections.Counter(zip(*pairs, strict=True))
    expected = {(first, second): chances[first] * chances[second] for first in chances for second in chances}
    assert set(seen) == set(expected)
    assert chisquare([seen[o] for o in expected], [DRAWS * expected[o] for o in expected]).pvalue > 1e-3


def test_randaugment_magnitudes_are_clipped_normal():
    policy = policies.randaugment(32, 32, np.full(3, 128), layers=1, magnitude=9.0, magnitude_std=0.8, prob=1.0)
    drawn = jax.tree.map(lambda leaf: leaf[:, 0], draw_many(policy, 5))
    names = operation_names(drawn)
    shear = drawn.matrix[names == "ShearX", 1] / 0.03
    level, sign = np.abs(shear), np.sign(shear)
    assert level.max() == pytest.approx(10, abs=1e-5)
    inside = level[level < 9.9999]
    assert abs(len(inside) / len(level) - 0.89435) < 0.015  # P(N(9, 0.8) < 10)
    cut = lambda x: np.minimum(normal_cdf((x - 9) / 0.8) / 0.89435, 1)  # noqa: E731
    assert kstest(inside, cut).pvalue > 1e-3
    statistic = (np.sum(sign) ** 2) / len(sign)
    assert chi2.sf(statistic, 1) > 1e-3
    cubic = drawn.cubic[names == "ShearX"]
    assert chi2.sf((2 * cubic.sum() - len(cubic)) ** 2 / len(cubic), 1) > 1e-3


def normal_cdf(x):
    from scipy.stats import norm

    return norm.cdf(x)


def test_randaugment_takes_the_same_level_for_all_operations_of_a_draw():
    """At full magnitude without noise the arguments are those of the table's end."""
    policy = policies.randaugment(20, 40, np.full(3, 128), layers=1, magnitude=10, magnitude_std=0, prob=1.0)
    drawn = jax.tree.map(lambda leaf: leaf[:, 0], draw_many(policy, 6))
    names = operation_names(drawn)
    ends = {"Posterize": 4, "Solarize": 256, "SolarizeAdd": 110, "Color": 1.9, "Brightness": 1.9}
    for name, end in ends.items():
        np.testing.assert_allclose(drawn.value[names == name], end, rtol=1e-6)
    np.testing.assert_allclose(np.abs(drawn.matrix[names == "TranslateXRel", 2]), 0.45 * 40, rtol=1e-6)
    np.testing.assert_allclose(np.abs(drawn.matrix[names == "TranslateYRel", 5]), 0.45 * 20, rtol=1e-6)
    np.testing.assert_allclose(np.abs(drawn.matrix[names == "Rotate", 1]), 0.5, rtol=1e-6)
