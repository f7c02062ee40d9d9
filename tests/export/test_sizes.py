"""Estimates of file sizes, against files."""

import os
import warnings

import keras
import pytest

import tf_rigl
from tests.helpers import random_data, sparsify
from tf_rigl.export.sizes import weight_bytes


def stack():
    layers = [keras.layers.Dense(256, activation="relu") for _ in range(2)]
    return keras.Sequential([keras.Input((64,)), *layers, keras.layers.Dense(3)])


def files(model, folder):
    """The sizes of a model's files, and what the warnings say."""
    sizes, texts = {}, {}
    for name in ("float32", "float16", "dynamic", "int8"):
        data = random_data((64,), batches=1)[0] if name == "int8" else None
        quantization = None if name == "float32" else name
        with warnings.catch_warnings(record=True) as caught:
            warnings.simplefilter("always")
            tf_rigl.export_tflite(
                model, folder / name, quantization=quantization, representative_dataset=data
            )
        sizes[name] = os.path.getsize(folder / name)
        texts[name] = " ".join(str(w.message) for w in caught if w.category is UserWarning)
    return sizes, texts


@pytest.mark.parametrize(("pattern", "best"), [("unstructured", "float16"), ("block_16x1", "int8")])
def test_the_smallest_file_is_named(pattern, best, tmp_path):
    model = sparsify(stack(), "static", 0.9, pattern=pattern)
    sizes, texts = files(model, tmp_path)
    estimates = weight_bytes(tf_rigl.strip(model))
    for name, size in sizes.items():
        overhead = size - estimates[name]
        assert 0 < overhead < 8000, name
    assert min(sizes, key=sizes.get) == min(estimates, key=estimates.get) == best
    advice = tf_rigl.export.advise(model)
    assert advice.sizes == advice.to_dict()["sizes"] == estimates
    assert f"Smallest: quantization='{best}'." in str(advice)
    if pattern == "unstructured":
        assert sizes["int8"] > sizes["float32"] > sizes["float16"]
        named = "The smallest file is that of quantization='float16': its weights take about"
        assert named in texts["int8"]
        assert named in texts["dynamic"]
    else:
        assert "quantization='int8': its weights" in texts["dynamic"]
        assert texts["int8"] == ""
