"""Training under `MirroredStrategy`: the masks are those of one device, on every replica."""

import json
import os
import pathlib
import subprocess
import sys

# Logical devices have to be made before TensorFlow starts: hence a process of its own.
SCRIPT = """
import json, sys
import keras, numpy as np, tensorflow as tf
tf.config.set_logical_device_configuration(
    tf.config.list_physical_devices("CPU")[0], [tf.config.LogicalDeviceConfiguration()] * 2
)
import tf_rigl
from tests.helpers import compiled, mlp, random_data, sparsify

STEPS = 12
x, y = random_data(batches=STEPS)


def copies(variable):
    return [v.numpy() for v in getattr(variable.value, "values", [variable.value])]


class Record(keras.callbacks.Callback):
    def __init__(self, replicas):
        super().__init__()
        self.replicas, self.masks = replicas, []

    def on_train_batch_end(self, batch, logs=None):
        for item in self.model.masked_weights:
            masks, weights = copies(item.mask), copies(item.weight)
            assert len(masks) == len(weights) == self.replicas
            for mask, weight in zip(masks, weights):
                np.testing.assert_array_equal(mask, masks[0])
                np.testing.assert_array_equal(weight, weights[0])
                assert (weight[~mask] == 0).all()
        self.masks.append(self.model.masks)


def train(strategy, method, optimizer):
    keras.utils.set_random_seed(0)
    with strategy.scope():
        model = compiled(sparsify(mlp(), method), optimizer())
    record = Record(strategy.num_replicas_in_sync)
    data = tf.data.Dataset.from_tensor_slices((x, y)).batch(8)
    model.fit(data, verbose=0, callbacks=[record])
    assert model.step == STEPS
    return record.masks, [w.numpy() for w in model.trainable_weights]


def compare(cls, optimizer):
    method = cls(0.5, update_interval=3, end_step=STEPS)
    masks, weights = train(tf.distribute.get_strategy(), method, optimizer)
    mirrored = tf.distribute.MirroredStrategy(["CPU:0", "CPU:1"])
    other_masks, other_weights = train(mirrored, method, optimizer)
    same = lambda a, b: all((a[path] == b[path]).all() for path in a)
    return {
        "updates": [t for t in range(1, STEPS) if not same(masks[t - 1], masks[t])],
        "equal": sum(same(a, b) for a, b in zip(masks, other_masks)),
        "difference": max(float(np.abs(a - b).max()) for a, b in zip(weights, other_weights)),
    }


print(json.dumps([
    compare(tf_rigl.methods.RigL, lambda: keras.optimizers.SGD(0.1, momentum=0.9)),
    compare(tf_rigl.methods.SET, lambda: keras.optimizers.Adam(0.01)),
]))
"""


def test_two_replicas_have_the_masks_of_one_device():
    """At each of 12 steps, RigL and SET; weights are equal up to the order of sums."""
    root = str(pathlib.Path(__file__).parents[1])
    environment = {**os.environ, "TF_CPP_MIN_LOG_LEVEL": "3", "PYTHONPATH": root}
    command = [sys.executable, "-c", SCRIPT]
    done = subprocess.run(command, env=environment, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    for result in json.loads(done.stdout.splitlines()[-1]):
        assert result["updates"] == [3, 6, 9]
        assert result["equal"] == 12
        assert result["difference"] < 1e-4
