"""Dense models to experiment with; `tf_rigl.sparsify` makes them sparse.

The outputs of all are logits, one for each class. `model_names.MODELS` lists them.
"""

import keras
from keras import layers

from tf_rigl._base.arguments import unknown_name
from tf_rigl.experiments.model_names import MODELS


def lenet_300_100(input_shape, num_classes) -> keras.Model:
    """Two hidden layers of 300 and 100 units.

    Args:
        input_shape: tuple of int, (height, width, channels).
        num_classes: int.

    Returns:
        A `keras.Model` from images to logits of shape (batch, num_classes).

    Reference:

    - LeCun et al., Gradient-based learning applied to document recognition, 1998.
    """
    return keras.Sequential(
        [
            keras.Input(input_shape),
            layers.Flatten(),
            layers.Dense(300, activation="relu", name="hidden_1"),
            layers.Dense(100, activation="relu", name="hidden_2"),
            layers.Dense(num_classes, name="logits"),
        ],
        name="lenet_300_100",
    )


def lenet_300_100_normalized(input_shape, num_classes) -> keras.Model:
    """LeNet-300-100 with every pixel normalised to zero mean and unit variance first.

    The gradient of a first-layer weight is proportional to its pixel. Without normalisation,
    RigL therefore grows connections to bright pixels rather than to informative ones.
    Arguments and result are those of `lenet_300_100`.
    """
    plain = lenet_300_100(input_shape, num_classes)
    # Epsilon keeps pixels that hardly ever change small.
    normalize = layers.BatchNormalization(center=False, scale=False, epsilon=0.01)
    inputs = keras.Input(input_shape)
    flatten, *others = plain.layers
    outputs = normalize(flatten(inputs))
    for layer in others:
        outputs = layer(outputs)
    return keras.Model(inputs, outputs, name="lenet_300_100_normalized")


def mlp_1024(input_shape, num_classes) -> keras.Model:
    """Three hidden layers of 1024 units. Arguments and result are those of `lenet_300_100`."""
    hidden = [layers.Dense(1024, activation="relu", name=f"hidden_{n}") for n in (1, 2, 3)]
    logits = layers.Dense(num_classes, name="logits")
    stack = [keras.Input(input_shape), layers.Flatten(), *hidden, logits]
    return keras.Sequential(stack, name="mlp_1024")


def lenet_5(input_shape, num_classes) -> keras.Model:
    """Two 5x5 convolutions of 6 and 16 channels with max pooling, then 120 and 84 units.

    Arguments and result are those of `lenet_300_100`.

    Reference:

    - LeCun et al., Gradient-based learning applied to document recognition, 1998.
    """
    return keras.Sequential(
        [
            keras.Input(input_shape),
            layers.Conv2D(6, 5, padding="same", activation="relu", name="conv_1"),
            layers.MaxPooling2D(2, padding="same"),
            layers.Conv2D(16, 5, padding="same", activation="relu", name="conv_2"),
            layers.MaxPooling2D(2, padding="same"),
            layers.Flatten(),
            layers.Dense(120, activation="relu", name="hidden_1"),
            layers.Dense(84, activation="relu", name="hidden_2"),
            layers.Dense(num_classes, name="logits"),
        ],
        name="lenet_5",
    )


def small_cnn(input_shape, num_classes) -> keras.Model:
    """Three 3x3 convolutions of 32, 64 and 128 channels with batch normalisation.

    Max pooling follows the first two. Arguments and result are those of `lenet_300_100`.
    """
    inputs = x = keras.Input(input_shape)
    for number, channels in enumerate((32, 64, 128)):
        name = f"conv_{number + 1}"
        x = layers.Conv2D(channels, 3, padding="same", use_bias=False, name=name)(x)
        x = layers.BatchNormalization()(x)
        x = layers.ReLU()(x)
        if number < 2:
            x = layers.MaxPooling2D(2, padding="same")(x)
    x = layers.GlobalAveragePooling2D()(x)
    return keras.Model(inputs, layers.Dense(num_classes, name="logits")(x), name="small_cnn")


def small_vgg(input_shape, num_classes) -> keras.Model:
    """Six 3x3 convolutions of 32 to 128 channels with batch normalisation, as in VGG.

    Max pooling follows the second and the fourth, global average pooling the last. Arguments
    and result are those of `lenet_300_100`.

    Reference:

    - [Very Deep Convolutional Networks](https://arxiv.org/abs/1409.1556), table 1.
    """
    inputs = x = keras.Input(input_shape)
    for number, channels in enumerate((32, 32, 64, 64, 128, 128), start=1):
        x = layers.Conv2D(channels, 3, padding="same", use_bias=False, name=f"conv_{number}")(x)
        x = layers.BatchNormalization(name=f"norm_{number}")(x)
        x = layers.ReLU()(x)
        if number in (2, 4):
            x = layers.MaxPooling2D(2, padding="same")(x)
    x = layers.GlobalAveragePooling2D()(x)
    return keras.Model(inputs, layers.Dense(num_classes, name="logits")(x), name="small_vgg")


def small_mobilenet(input_shape, num_classes) -> keras.Model:
    """Eight depthwise-separable convolutions of 64 to 512 channels, as in MobileNet.

    On images of 3 channels, XNNPACK runs all its layers sparse: see `tf_rigl.export.advise`.
    Arguments and result are those of `lenet_300_100`.

    Reference:

    - [MobileNets](https://arxiv.org/abs/1704.04861), table 1.
    """
    inputs = keras.Input(input_shape)
    x = layers.ZeroPadding2D(1)(inputs)
    x = layers.Conv2D(32, 3, strides=2, use_bias=False, name="stem")(x)
    x = layers.ReLU(6.0)(layers.BatchNormalization()(x))
    for number, channels in enumerate((64, 128, 128, 256, 256, 512, 512, 512), start=1):
        if number in (2, 4, 6):
            x = layers.ZeroPadding2D(1)(x)
            convolve = layers.DepthwiseConv2D(3, strides=2, use_bias=False)
        else:
            convolve = layers.DepthwiseConv2D(3, padding="same", use_bias=False)
        x = layers.ReLU(6.0)(layers.BatchNormalization()(convolve(x)))
        x = layers.Conv2D(channels, 1, use_bias=False, name=f"pointwise_{number}")(x)
        x = layers.ReLU(6.0)(layers.BatchNormalization()(x))
    x = layers.GlobalAveragePooling2D()(x)
    return keras.Model(inputs, layers.Dense(num_classes, name="logits")(x), name="small_mobilenet")


def wide_resnet_22_2(input_shape, num_classes) -> keras.Model:
    """Wide ResNet of depth 22 and width 2, with normalisation before each convolution.

    Arguments and result are those of `lenet_300_100`.

    Reference:

    - [Wide Residual Networks](https://arxiv.org/abs/1605.07146), the network of the
      RigL paper's CIFAR-10 experiments.
    """

    def convolve(x, channels, name, size=3, stride=1):
        return layers.Conv2D(
            channels, size, strides=stride, padding="same", use_bias=False, name=name
        )(x)

    def activate(x):
        return layers.ReLU()(layers.BatchNormalization()(x))

    inputs = keras.Input(input_shape)
    x = convolve(inputs, 16, "stem")
    for group, (channels, first_stride) in enumerate(((32, 1), (64, 2), (128, 2)), start=1):
        for block in range(1, 4):
            name, stride = f"group_{group}_block_{block}", first_stride if block == 1 else 1
            y = activate(x)
            shortcut = convolve(y, channels, f"{name}_shortcut", 1, stride) if block == 1 else x
            y = convolve(y, channels, f"{name}_conv_1", stride=stride)
            y = convolve(activate(y), channels, f"{name}_conv_2")
            x = layers.Add()([shortcut, y])
    x = layers.GlobalAveragePooling2D()(activate(x))
    return keras.Model(inputs, layers.Dense(num_classes, name="logits")(x), name="wide_resnet_22_2")


def resnet_50(input_shape, num_classes) -> keras.Model:
    """ResNet-50 v1.5: downsampling blocks have the stride in the 3x3 convolution.

    Arguments and result are those of `lenet_300_100`. Papers report the figures of
    `resnet_50((224, 224, 3), 1000)`.

    Reference:

    - [Deep Residual Learning](https://arxiv.org/abs/1512.03385), table 1; the position of
      the stride is that of [Goyal et al.](https://arxiv.org/abs/1706.02677), section 5.1.
    """

    def convolve(x, channels, name, size=1, stride=1):
        x = layers.Conv2D(
            channels, size, strides=stride, padding="same", use_bias=False, name=name
        )(x)
        return layers.BatchNormalization()(x)

    inputs = keras.Input(input_shape)
    x = layers.ReLU()(convolve(inputs, 64, "stem", 7, 2))
    x = layers.MaxPooling2D(3, strides=2, padding="same")(x)
    for group, (channels, blocks) in enumerate(((64, 3), (128, 4), (256, 6), (512, 3)), start=1):
        for block in range(1, blocks + 1):
            name, stride = f"group_{group}_block_{block}", 2 if group > 1 and block == 1 else 1
            shortcut = x
            if block == 1:
                shortcut = convolve(x, 4 * channels, f"{name}_shortcut", stride=stride)
            y = layers.ReLU()(convolve(x, channels, f"{name}_conv_1"))
            y = layers.ReLU()(convolve(y, channels, f"{name}_conv_2", 3, stride))
            y = convolve(y, 4 * channels, f"{name}_conv_3")
            x = layers.ReLU()(layers.Add()([shortcut, y]))
    x = layers.GlobalAveragePooling2D()(x)
    return keras.Model(inputs, layers.Dense(num_classes, name="logits")(x), name="resnet_50")


NAMES = {name: globals()[entry.name] for name, entry in MODELS.items()}


def get(identifier):
    """Looks up a model.

    Args:
        identifier: "lenet-300-100", "lenet-300-100-normalized", "lenet-5", "mlp-1024",
            "small-cnn", "small-mobilenet", "small-vgg", "wide-resnet-22-2", "resnet-50", or a
            function of `(input_shape, num_classes)` that returns a `keras.Model`.

    Returns:
        The function.

    Raises:
        ValueError: if the name is unknown; the message offers the closest ones.
    """
    if callable(identifier):
        return identifier
    if isinstance(identifier, str) and identifier in NAMES:
        return NAMES[identifier]
    raise unknown_name("model", identifier, NAMES, or_object="a function that makes one")
