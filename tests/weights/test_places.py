"""Files know masked weights by their place among all variables, older ones by a number."""

import keras
import pytest

from tests.helpers import Experts, mlp, sparsify
from tf_rigl.weights import places

k = keras.layers


def network():
    """Weights that older versions did not mask stand before one that they did."""
    inputs = keras.Input((3, 4, 4, 2))
    x = k.Flatten()(k.ConvLSTM2D(2, 3, name="film", return_sequences=True)(inputs))
    x = k.Dense(24, name="first")(x)
    x = k.Flatten()(Experts(24, name="experts")(k.Reshape((6, 4))(x)))
    return keras.Model(inputs, k.Dense(24, name="second")(x))


def test_a_place_is_found_again():
    sparse = sparsify(network())
    stored = places.entries(sparse, sparse.masked_weights)
    renamed = [{**entry, "path": "other"} for entry in stored]
    found = places.find(network(), renamed)
    assert [each.path for each in found] == list(sparse.masks)
    assert len(found) == 6


def test_lora_moves_no_place():
    sparse = sparsify(mlp())
    before = places.entries(sparse, sparse.masked_weights)
    sparse.get_layer("hidden").enable_lora(2)
    assert places.entries(sparse, sparse.masked_weights) == before


def test_older_files_number_the_weights_that_could_be_masked_then():
    model = network()
    shapes = [[24, 24], [24, 24]]
    stored = [{"path": "x", "number": n, "shape": shape} for n, shape in enumerate(shapes)]
    assert [each.path for each in places.find(model, stored)] == ["first/kernel", "second/kernel"]


def test_a_path_is_the_second_choice():
    entry = {"path": "head/kernel", "place": 0, "shape": [8, 3]}
    assert [each.path for each in places.find(mlp(), [entry])] == ["head/kernel"]
    with pytest.raises(ValueError, match="a mask for 'tail/kernel', but the model has no such"):
        places.find(mlp(), [{**entry, "path": "tail/kernel"}])
