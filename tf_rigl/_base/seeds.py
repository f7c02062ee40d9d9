"""Seeds of the weights of a model, made of the model's seed."""

import numpy as np


def mixed(seed, number) -> int:
    """Returns the seed of a weight, an int that TensorFlow takes as int32.

    The sum of both would give weight 1 under seed 0 the random numbers of weight 0 under seed 1,
    so that runs with neighbouring seeds would not be independent.

    Args:
        seed: int, at least 0, the seed of the model.
        number: int, at least 0, the number of the weight.

    Example:

    >>> len({mixed(seed, number) for seed in range(50) for number in range(50)})
    2500
    """
    state = np.random.SeedSequence(seed, spawn_key=(number,)).generate_state(1)
    return int(state[0]) % 2**31
