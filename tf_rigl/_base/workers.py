"""Training in several processes: which one writes files, and what must be equal in all."""

import random
import zlib

import numpy as np
import tensorflow as tf

from tf_rigl._base.arguments import check_integer


def are_several(strategy=None) -> bool:
    """Returns True if a strategy, by default the present one, trains in several processes."""
    strategy = strategy or tf.distribute.get_strategy()
    resolver = strategy.cluster_resolver
    if not isinstance(strategy, tf.distribute.MultiWorkerMirroredStrategy) or resolver is None:
        return False
    cluster = resolver.cluster_spec()
    # An evaluator forms its own cluster.
    jobs = ("evaluator",) if resolver.task_type == "evaluator" else ("chief", "worker")
    return sum(cluster.num_tasks(job) for job in jobs if job in cluster.jobs) > 1


def is_chief(strategy) -> bool:
    """Returns True if this is the process that writes files for all processes."""
    resolver = strategy.cluster_resolver
    if not are_several(strategy) or resolver is None:
        return True
    has_chief = "chief" in resolver.cluster_spec().jobs
    return resolver.task_type == "chief" or (not has_chief and resolver.task_id == 0)


def resolve_seed(seed):
    """Returns `seed` as an int; for None, an int drawn from Python's `random`.

    `keras.utils.set_random_seed` seeds that generator too. All workers get the seed that the
    first one draws.
    """
    if seed is not None:
        return check_integer("seed", seed, 0)
    drawn = random.randrange(2**31)
    strategy = tf.distribute.get_strategy()
    return _gather(strategy, [drawn])[0] if are_several(strategy) else drawn


def check_equal(model):
    """Raises unless all workers begin at the same step with the same weights and masks."""
    strategy = model.distribute_strategy
    if not are_several(strategy):
        return
    digest = 0
    for variable in model.weights:
        digest = zlib.crc32(np.ascontiguousarray(variable.numpy()).tobytes(), digest)
    found = _gather(strategy, [model.step, digest])
    steps, digests = found[::2], found[1::2]
    if len(set(steps)) > 1 or len(set(digests)) > 1:
        raise ValueError(
            "All workers must begin at the same step with the same weights and masks. Make the "
            "model within the strategy's scope, and load files that all workers can read (for "
            f"backups, share `backup_dir`). Received: steps of the workers={steps}"
        )


def _gather(strategy, numbers):
    """Returns the numbers of all workers, in worker order, repeated for each of their devices."""
    values = strategy.experimental_distribute_values_from_function(
        lambda context: tf.constant(numbers, tf.int64)
    )
    return strategy.gather(values, axis=0).numpy().tolist()
