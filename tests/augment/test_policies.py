"""The drawn operations and arguments have the policies' probabilities (100,000 draws of parameters, no images)."""

import collections

import jax
import numpy as np
import pytest
from scipy.stats import chi2, chisquare, kstest, norm

from shike_jax.augment import policies

DRAWS = 100_000

# The published sub-policies, transcribed apart from the package: two times operation, tenths of probability, level
# ("-": the operation has none).
PUBLISHED = """
Invert 1 - Contrast 2 6; Rotate 7 2 TranslateX 3 9; Sharpness 8 1 Sharpness 9 3; ShearY 5 8 TranslateY 7 9;
AutoContrast 5 - Equalize 9 -; ShearY 2 7 Posterize 3 7; Color 4 3 Brightness 6 7; Sharpness 3 9 Brightness 7 9;
Equalize 6 - Equalize 5 -; Contrast 6 7 Sharpness 6 5; Color 7 7 TranslateX 5 8; Equalize 3 - AutoContrast 4 -;
TranslateY 4 3 Sharpness 2 6; Brightness 9 6 Color 2 8; Solarize 5 2 Invert 0 -; Equalize 2 - AutoContrast 6 -;
Equalize 2 - Equalize 6 -; Color 9 9 Equalize 6 -; AutoContrast 8 - Solarize 2 8; Brightness 1 3 Color 7 0;
Solarize 4 5 AutoContrast 9 -; TranslateY 9 9 TranslateY 7 9; AutoContrast 9 - Solarize 8 3; Equalize 8 - Invert 1 -;
TranslateY 7 9 AutoContrast 9 -
"""
SIGNED = {"shear_x", "shear_y", "translate_x", "translate_y", "color", "contrast", "sharpness", "brightness"}


def test_autoaugment_table_is_the_published_one():
    rows = [row.split() for row in PUBLISHED.split(";")]
    assert len(rows) == len(policies.AUTOAUGMENT_CIFAR) == 25
    for row, pair in zip(rows, policies.AUTOAUGMENT_CIFAR, strict=True):
        for (name, tenths, level), ours in zip((row[:3], row[3:]), pair, strict=True):
            assert ours[1].replace("_", "") == name.lower()
            assert ours[0] == int(tenths) / 10
            assert level == "-" or ours[2] == int(level)


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
    policy = policies.randaugment(32, 48, np.full(3, 128 / 255), layers=2, prob=prob)
    drawn = draw_many(policy, 4)
    pairs = [operation_names(jax.tree.map(lambda leaf, layer=layer: leaf[:, layer], drawn)) for layer in range(2)]
    chances = {"identity": 1 - prob} | {name: prob / 15 for name, _, _ in policies.RANDAUGMENT}
    seen = collections.Counter(zip(*pairs, strict=True))
    expected = {(first, second): chances[first] * chances[second] for first in chances for second in chances}
    assert set(seen) == set(expected)
    assert chisquare([seen[o] for o in expected], [DRAWS * expected[o] for o in expected]).pvalue > 1e-3


def test_randaugment_magnitudes_are_clipped_normal():
    policy = policies.randaugment(32, 32, np.full(3, 128 / 255), layers=1, magnitude=9.0, magnitude_std=0.8, prob=1.0)
    drawn = jax.tree.map(lambda leaf: leaf[:, 0], draw_many(policy, 5))
    names = operation_names(drawn)
    shear = drawn.matrix[names == "ShearX", 1] / 0.03
    level, sign = np.abs(shear), np.sign(shear)
    assert level.max() == pytest.approx(10, abs=1e-5)
    inside = level[level < 9.9999]
    assert abs(len(inside) / len(level) - 0.89435) < 0.015  # P(N(9, 0.8) < 10)
    assert kstest(inside, lambda x: np.minimum(norm.cdf((x - 9) / 0.8) / 0.89435, 1)).pvalue > 1e-3
    statistic = (np.sum(sign) ** 2) / len(sign)
    assert chi2.sf(statistic, 1) > 1e-3
    cubic = drawn.cubic[names == "ShearX"]
    assert chi2.sf((2 * cubic.sum() - len(cubic)) ** 2 / len(cubic), 1) > 1e-3


def test_randaugment_at_full_magnitude():
    """At full magnitude without noise the arguments are those of the table's end."""
    policy = policies.randaugment(20, 40, np.full(3, 128 / 255), layers=1, magnitude=10, magnitude_std=0, prob=1.0)
    drawn = jax.tree.map(lambda leaf: leaf[:, 0], draw_many(policy, 6))
    names = operation_names(drawn)
    ends = {"Posterize": 4, "Solarize": 256, "SolarizeAdd": 110, "Color": 1.9, "Brightness": 1.9}
    for name, end in ends.items():
        np.testing.assert_allclose(drawn.value[names == name], end, rtol=1e-6)
    np.testing.assert_allclose(np.abs(drawn.matrix[names == "TranslateXRel", 2]), 0.45 * 40, rtol=1e-6)
    np.testing.assert_allclose(np.abs(drawn.matrix[names == "TranslateYRel", 5]), 0.45 * 20, rtol=1e-6)
    np.testing.assert_allclose(np.abs(drawn.matrix[names == "Rotate", 1]), 0.5, rtol=1e-6)
