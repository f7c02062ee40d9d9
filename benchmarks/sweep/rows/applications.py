"""The smallest model of each family of `keras.applications`, with random weights."""

import keras

from benchmarks.sweep.case import Case, floats, integers, row

CLASSES = 3
# Families: the model, the smallest size of its images, more arguments, and variants.
FAMILIES = {
    "ConvNeXtTiny": (32, {}, []),
    "DenseNet121": (32, {}, []),
    "EfficientNetB0": (32, {}, []),
    "EfficientNetV2B0": (32, {}, []),
    "InceptionResNetV2": (75, {}, []),
    "InceptionV3": (75, {}, []),
    "MobileNet": (32, {"alpha": 0.25}, ["magnitude", "snip", "block_4x1", "2:4", "float16"]),
    "MobileNetV2": (32, {"alpha": 0.35}, []),
    "MobileNetV3Small": (32, {}, []),
    "NASNetMobile": (32, {}, []),
    "ResNet50": (32, {}, ["magnitude"]),
    "ResNet50V2": (32, {}, []),
    "VGG16": (32, {}, []),
    "VGG19": (32, {}, []),
    "Xception": (71, {}, []),
}


def family(name, size, options, variants):
    """Registers the model of a family, without its head of 1000 classes."""

    def make():
        shape = (size, size, 3)
        network = getattr(keras.applications, name)(
            include_top=False, weights=None, input_shape=shape, pooling="avg", **options
        )
        outputs = keras.layers.Dense(CLASSES, name="logits")(network.output)
        model = keras.Model(network.input, outputs, name=network.name)
        return Case(model, floats(*shape), integers(CLASSES))

    make.__module__ = __name__
    row("keras.applications", variants, name)(make)


for _name, _arguments in FAMILIES.items():
    family(_name, *_arguments)
