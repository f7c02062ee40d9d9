"""The names of the models to experiment with. Strings only: nothing here imports Keras."""

from tf_rigl._base.registry import Entry


def _entry(name, summary):
    return Entry("tf_rigl.experiments.models", name, summary)


MODELS = {
    "lenet-300-100": _entry("lenet_300_100", "two hidden layers of 300 and 100 units"),
    "lenet-300-100-normalized": _entry(
        "lenet_300_100_normalized", "the same, each pixel normalised first"
    ),
    "lenet-5": _entry("lenet_5", "two 5x5 convolutions, then 120 and 84 units"),
    "mlp-1024": _entry("mlp_1024", "three hidden layers of 1024 units"),
    "small-cnn": _entry("small_cnn", "three 3x3 convolutions of 32 to 128 channels"),
    "small-vgg": _entry("small_vgg", "six 3x3 convolutions of 32 to 128 channels"),
    "small-mobilenet": _entry(
        "small_mobilenet", "eight depthwise-separable convolutions of 64 to 512 channels"
    ),
    "wide-resnet-22-2": _entry("wide_resnet_22_2", "Wide ResNet of depth 22 and width 2"),
    "resnet-50": _entry("resnet_50", "ResNet-50 v1.5"),
}
