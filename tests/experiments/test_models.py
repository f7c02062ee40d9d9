"""The models on offer."""

import numpy as np
import pytest

from tf_rigl import models


@pytest.mark.parametrize("name", models.NAMES)
@pytest.mark.parametrize("shape", [(8, 8, 1), (28, 28, 1), (32, 32, 3)])
def test_images_to_logits(name, shape):
    model = models.get(name)(shape, 10)
    assert model.output_shape == (None, 10)
    assert np.all(np.isfinite(model(np.zeros((2, *shape), "float32"))))


def test_published_sizes():
    """LeNet-300-100 has 266,610 parameters; WRN-22-2 about 1.08 million."""
    assert models.lenet_300_100((28, 28, 1), 10).count_params() == 266_610
    kernels = [
        w for w in models.wide_resnet_22_2((32, 32, 3), 10).weights if w.path.endswith("kernel")
    ]
    # 22 convolutions, those of the three shortcuts counted, and the logits.
    assert len(kernels) == 22 + 1
    assert 1.0e6 < sum(int(np.prod(w.shape)) for w in kernels) < 1.1e6


def test_unknown_names_offer_the_closest():
    with pytest.raises(ValueError, match=r"Did you mean 'small-cnn'.*Received: model='small_cnn'"):
        models.get("small_cnn")
