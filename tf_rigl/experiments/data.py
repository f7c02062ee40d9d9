"""Data sets as `tf.data` pipelines: any image classification set of TensorFlow Datasets (TFDS).

"digits" (scikit-learn's, 8x8 pixels) needs neither network nor files. "fashion_mnist" is
prepared from the files of Debian's package `dataset-fashion-mnist` if that is installed;
otherwise TFDS downloads it.
"""

import difflib
import gzip
import pathlib
import shutil
import tempfile
from typing import NamedTuple

import numpy as np
import tensorflow as tf

from tf_rigl._base.arguments import check_integer, check_path

_IN_MEMORY = 200 * 2**20  # Bytes. Smaller data sets are cached in the first epoch.
_DEBIAN_FASHION_MNIST = pathlib.Path("/usr/share/datasets/fashion-mnist")


class Data(NamedTuple):
    """A data set ready for `fit`.

    Attributes:
        name: str.
        train, test: `tf.data.Dataset` of batches (images, labels): images float32 in
            [0, 1] of shape (batch, height, width, channels), labels int32 of shape
            (batch,). `train` is shuffled anew in each epoch; the last batch may be
            smaller.
        input_shape: tuple of int, (height, width, channels).
        num_classes: int.
    """

    name: str
    train: tf.data.Dataset
    test: tf.data.Dataset
    input_shape: tuple[int, int, int]
    num_classes: int


def load(name="digits", batch_size=128, *, seed=0, data_dir=None) -> Data:
    """Loads a data set.

    Args:
        name: str, "digits", or the name of a data set of TensorFlow Datasets whose
            examples are an image and a class label.
        batch_size: int, examples in a batch.
        seed: int, for the order of the training examples.
        data_dir: str or path, the folder of prepared TFDS data sets. Defaults to that of TFDS
            (environment variable `TFDS_DATA_DIR`, or `~/tensorflow_datasets`).

    Returns:
        A `Data`.

    Raises:
        ValueError: if there is no such data set, it has no images and labels, or a number is out
            of range.
        FileNotFoundError: if its files are missing and cannot be downloaded; the message
            says what to run.

    Example:

    >>> data = load("digits", batch_size=64)
    >>> data.input_shape, data.num_classes, len(data.train)
    ((8, 8, 1), 10, 23)
    """
    batch_size = check_integer("batch_size", batch_size, 1)
    seed = check_integer("seed", seed, 0)
    train, test, shape, classes = _examples(name, data_dir)
    buffer = max(1, min(int(train.cardinality()), 100_000))
    train = train.shuffle(buffer, seed=seed, reshuffle_each_iteration=True)
    return Data(
        name,
        train.batch(batch_size).prefetch(tf.data.AUTOTUNE),
        test.batch(batch_size).prefetch(tf.data.AUTOTUNE),
        shape,
        classes,
    )


def arrays(name="digits", *, data_dir=None) -> Data:
    """Loads a data set into memory, in stored order.

    Args:
        name, data_dir: as for `load`, which raises the same errors.

    Returns:
        A `Data` whose `train` and `test` are tuples of two arrays: images, float32 in [0, 1],
        and labels, int32.

    Example:

    >>> x, y = arrays("digits").train
    >>> x.shape, y.shape
    ((1437, 8, 8, 1), (1437,))
    """
    train, test, shape, classes = _examples(name, data_dir)

    def whole(part):
        batches = part.batch(1000).as_numpy_iterator()
        return tuple(np.concatenate(each) for each in zip(*batches, strict=True))

    return Data(name, whole(train), whole(test), shape, classes)


def _examples(name, data_dir):
    """Returns training and test examples, the shape of an image, and the number of classes."""
    if not isinstance(name, str):
        raise ValueError(
            "Argument `name` must be 'digits' or the name of a data set of TensorFlow Datasets. "
            f"Received: name={name!r}"
        )
    if data_dir is not None:
        check_path("data_dir", data_dir)
    if name == "digits":
        train, test = _digits()
        shape, classes = (8, 8, 1), 10
    else:
        train, test, shape, classes = _from_tfds(name, data_dir)

    brightest = 16 if name == "digits" else 255

    def scale(image, label):
        return tf.cast(image, tf.float32) / brightest, tf.cast(label, tf.int32)

    def pipeline(examples):
        examples = examples.map(scale, num_parallel_calls=tf.data.AUTOTUNE)
        size = int(examples.cardinality())
        small = 0 < size * int(np.prod(shape)) * 4 < _IN_MEMORY
        return examples.cache() if small else examples

    return pipeline(train), pipeline(test), shape, classes


def _digits():
    """Loads scikit-learn's digits: 1,437 examples for training, 360 for testing."""
    from sklearn.datasets import load_digits

    digits = load_digits()
    order = np.random.default_rng(0).permutation(len(digits.target))
    images, labels = digits.images[order, :, :, None], digits.target[order]
    split = int(0.8 * len(labels))
    return tuple(
        tf.data.Dataset.from_tensor_slices((images[part].astype("float32"), labels[part]))
        for part in (slice(None, split), slice(split, None))
    )


def _from_tfds(name, data_dir):
    import tensorflow_datasets as tfds

    try:
        builder = tfds.builder(name, data_dir=data_dir)
    except (tfds.core.DatasetNotFoundError, ValueError) as error:
        names = ["digits", *tfds.list_builders(with_community_datasets=False)]
        close = difflib.get_close_matches(name, names, n=3)
        hint = f" Did you mean {' or '.join(map(repr, close))}?" if close else ""
        raise ValueError(
            "Argument `name` must be 'digits' or the name of a data set of TensorFlow "
            f"Datasets.{hint} Received: name={name!r}"
        ) from error
    builder = _prepared(builder, name, data_dir)

    features = dict(builder.info.features.items())
    keys = builder.info.supervised_keys or ("image", "label")
    image, label = (features.get(key) for key in keys[:2])
    if (
        not isinstance(image, tfds.features.Image)
        or not isinstance(label, tfds.features.ClassLabel)
        or None in image.shape
    ):
        raise ValueError(
            "Argument `name` must be a data set of images of one size with class labels. "
            f"Received: name={name!r} with features {sorted(features)}"
        )
    has_test = "test" in builder.info.splits
    splits = ("train", "test") if has_test else ("train[:90%]", "train[90%:]")
    train, test = (
        builder.as_dataset(split=split, shuffle_files=False).map(
            lambda example: (example[keys[0]], example[keys[1]])
        )
        for split in splits
    )
    return train, test, tuple(image.shape), label.num_classes


def _prepared(builder, name, data_dir):
    """Returns the builder of a data set, after preparing or downloading missing files."""
    import tensorflow_datasets as tfds

    if pathlib.Path(builder.data_dir).exists():
        return builder
    if name == "fashion_mnist" and _DEBIAN_FASHION_MNIST.is_dir():
        _prepare_fashion_mnist(_DEBIAN_FASHION_MNIST, builder)
        return tfds.builder(name, data_dir=data_dir)
    try:
        builder.download_and_prepare()
    # Without network, the error depends on where the files are: `requests` raises OSErrors,
    # cloud storage raises TensorFlow's errors, and TFDS its own.
    except (OSError, tf.errors.OpError, tfds.download.DownloadError, AssertionError) as error:
        debian = " or install Debian's package: apt-get install dataset-fashion-mnist"
        raise FileNotFoundError(
            f"The data set {name!r} is not on this machine and could not be downloaded "
            f'({type(error).__name__}: {error}). With network access, run: python -c "import '
            f"tensorflow_datasets as tfds; tfds.load('{name}')\""
            f"{debian if name == 'fashion_mnist' else ''}; the data set 'digits' needs neither. "
            f"Searched: {builder.data_dir}"
        ) from error
    return builder


def _prepare_fashion_mnist(source, builder):
    """Prepares Fashion-MNIST from its raw files, in a few minutes."""
    import tensorflow_datasets as tfds

    def examples(prefix):
        images = _read_idx(source / f"{prefix}-images-idx3-ubyte.gz")
        labels = _read_idx(source / f"{prefix}-labels-idx1-ubyte.gz")
        return tf.data.Dataset.from_tensor_slices(
            {"image": images[..., None], "label": labels.astype(np.int64)}
        )

    print(f"Preparing Fashion-MNIST from {source} (once, one to three minutes) ...", flush=True)
    target = pathlib.Path(builder.data_dir)
    target.parent.mkdir(parents=True, exist_ok=True)
    scratch = pathlib.Path(tempfile.mkdtemp(prefix=".incomplete-", dir=target.parent))
    try:
        tfds.dataset_builders.store_as_tfds_dataset(
            name="fashion_mnist",
            version=str(builder.version),
            features=builder.info.features,
            split_datasets={"train": examples("train"), "test": examples("t10k")},
            data_dir=scratch,
            disable_shuffling=True,
        )
        try:
            (scratch / "fashion_mnist" / str(builder.version)).rename(target)
        except OSError:
            if not target.exists():  # Else another process was first.
                raise
    finally:
        shutil.rmtree(scratch, ignore_errors=True)


def _read_idx(path):
    """Reads unsigned bytes from a file in MNIST's IDX format."""
    with gzip.open(path, "rb") as file:
        content = file.read()
    axes = content[3]
    shape = np.frombuffer(content, ">i4", axes, offset=4)
    return np.frombuffer(content, np.uint8, offset=4 + 4 * axes).reshape(shape)
