"""Networks that are pruned and never trained, see `benchmarks/pruning_alone.py`."""

import itertools

import numpy as np
import pytest

from benchmarks import pruning_alone


@pytest.mark.parametrize(("rule", "few", "many"), [("one from many", 8, 64), ("subset sum", 4, 10)])
def test_more_candidates_come_nearer(rule, few, many):
    found = [pruning_alone.errors(rule, n, np.random.default_rng(0)) for n in (few, many)]
    assert np.median(found[1]) < np.median(found[0]) / 4


def test_a_subset_is_the_best_of_all():
    rng = np.random.default_rng(0)
    for _ in range(20):
        products, wanted = rng.normal(size=5), rng.normal()
        subsets = itertools.chain.from_iterable(
            itertools.combinations(products, size) for size in range(6)
        )
        best = min(abs(sum(subset) - wanted) for subset in subsets)
        kept = pruning_alone.subset_sum(products, wanted)
        np.testing.assert_allclose(abs(products[kept].sum() - wanted), best)


def test_the_network_computes_the_sums_of_its_products():
    """In floats of another model: the masked random network, against loops."""
    rng = np.random.default_rng(1)
    target = [rng.uniform(-0.5, 0.5, (3, 2)), rng.uniform(-0.5, 0.5, (2, 2))]
    sparse = pruning_alone.approximated(target, 4, "subset sum", seed=1)
    kernels = [item.dense().numpy() for item in sparse.masked_weights]
    x = expected = rng.normal(size=(5, 3)).astype("float32")
    for number, kernel in enumerate(target):
        first, second = kernels[2 * number : 2 * number + 2]
        total = np.zeros((5, kernel.shape[1]))
        for j, h, i in itertools.product(*map(range, (len(first), *second.shape))):
            total[:, i] += np.maximum(expected[:, j] * first[j, h], 0) * second[h, i]
        expected = np.maximum(total, 0) if number == 0 else total
        assert (np.count_nonzero(first, axis=0) <= 1).all()  # A candidate has one input.
    np.testing.assert_allclose(sparse(x), expected, rtol=1e-4, atol=1e-5)
