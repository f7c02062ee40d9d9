"""Models with custom layers load in a new process, in which their sublayers have other names."""

import pathlib
import subprocess
import sys

import keras
import numpy as np
import pytest

import tf_rigl
from tests.helpers import compiled

# What the new process does: other layers have taken the first names.
LOAD = """
import sys
import keras, numpy as np
from tests.convert import test_loading
for _ in range(int(sys.argv[3])):
    keras.layers.Dense(3).build((None, 2))
model = keras.models.load_model(sys.argv[1])
with np.load(sys.argv[2]) as file:
    kept = dict(file)
np.testing.assert_allclose(model.predict(kept["x"], verbose=0), kept["y"], atol=1e-5)
for number, item in enumerate(model.masked_weights):
    np.testing.assert_array_equal(item.mask.numpy(), kept[str(number)])
model.fit(kept["x"], kept["labels"], batch_size=8, verbose=0)
for item in model.masked_weights:
    assert np.all(item.weight.numpy()[~item.mask.numpy()] == 0)
"""


@keras.saving.register_keras_serializable(package="test_loading")
class Block(keras.layers.Layer):
    """A block of a Transformer in the manner of keras.io: none of its layers has a name."""

    def __init__(self, width=8, **kwargs):
        super().__init__(**kwargs)
        self.width = width
        self.attention = keras.layers.MultiHeadAttention(2, width // 2)
        self.ffn = keras.Sequential(
            [keras.layers.Dense(2 * width, activation="relu"), keras.layers.Dense(width)]
        )
        self.norm = keras.layers.LayerNormalization()

    def build(self, input_shape):
        self.attention.build(input_shape, input_shape)
        self.ffn.build(input_shape)
        self.norm.build(input_shape)

    def call(self, inputs):
        x = self.norm(inputs + self.attention(inputs, inputs))
        return x + self.ffn(x)

    def get_config(self):
        return {**super().get_config(), "width": self.width}


def transformer():
    """Two equal blocks: what is the path of one's layer in this process is the other's there."""
    inputs = keras.Input((4, 8))
    x = Block()(Block()(inputs))
    return keras.Model(inputs, keras.layers.Dense(3)(keras.layers.Flatten()(x)))


@pytest.mark.parametrize("others", [0, 2])
def test_a_graph_of_custom_layers_loads_in_a_new_process(others, tmp_path):
    for _ in range(3):  # So that names differ from those of the new process.
        transformer()
    method = tf_rigl.methods.RigL(update_interval=2, end_step=100)
    sparse = compiled(tf_rigl.sparsify(transformer(), method, 0.7, seed=1), run_eagerly=True)
    rng = np.random.default_rng(0)
    x, labels = rng.normal(size=(40, 4, 8)).astype("float32"), rng.integers(0, 3, 40)
    sparse.fit(x, labels, batch_size=8, verbose=0)
    sparse.save(tmp_path / "model.keras")
    masks = {str(n): item.mask.numpy() for n, item in enumerate(sparse.masked_weights)}
    kept = tmp_path / "kept.npz"
    np.savez(kept, x=x, labels=labels, y=sparse.predict(x, verbose=0), **masks)
    command = [sys.executable, "-c", LOAD, str(tmp_path / "model.keras"), str(kept), str(others)]
    root = pathlib.Path(__file__).parents[2]
    done = subprocess.run(command, cwd=root, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
