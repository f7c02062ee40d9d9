"""Data sets: embedded, prepared from files, and not to be had."""

import gzip

import numpy as np
import pytest
import tensorflow_datasets as tfds

from tf_rigl import data


@pytest.fixture
def raw_fashion_mnist(tmp_path):
    """A folder of raw files as Debian's package has them, with few examples."""
    rng = np.random.default_rng(0)
    folder = tmp_path / "raw"
    folder.mkdir()
    arrays = {}
    for prefix, count in (("train", 20), ("t10k", 10)):
        images = rng.integers(0, 256, (count, 28, 28), np.uint8)
        labels = rng.integers(0, 10, count).astype(np.uint8)
        arrays[prefix] = images, labels
        for array, kind in ((images, "images-idx3"), (labels, "labels-idx1")):
            header = bytes([0, 0, 8, array.ndim]) + np.array(array.shape, ">i4").tobytes()
            with gzip.open(folder / f"{prefix}-{kind}-ubyte.gz", "wb") as file:
                file.write(header + array.tobytes())
    return folder, arrays


def collect(dataset):
    batches = list(dataset.as_numpy_iterator())
    return np.concatenate([b[0] for b in batches]), np.concatenate([b[1] for b in batches])


def test_digits_are_embedded():
    digits = data.load("digits", batch_size=100)
    assert (digits.input_shape, digits.num_classes) == ((8, 8, 1), 10)
    images, labels = collect(digits.train)
    test_images, test_labels = collect(digits.test)
    assert len(images) == len(labels) == 1437
    assert len(test_images) == len(test_labels) == 360
    assert images.dtype == np.float32
    assert images.min() == 0
    assert images.max() == 1
    assert set(labels) == set(test_labels) == set(range(10))


def test_arrays_are_the_same_examples_in_a_fixed_order():
    digits, again = data.arrays("digits"), data.arrays("digits")
    assert (digits.name, digits.input_shape, digits.num_classes) == ("digits", (8, 8, 1), 10)
    for one, other in zip(digits.train + digits.test, again.train + again.test, strict=True):
        np.testing.assert_array_equal(one, other)
    loaded = data.load("digits", batch_size=100)
    for (images, labels), batches in ((digits.train, loaded.train), (digits.test, loaded.test)):
        found = collect(batches)
        assert (images.shape, labels.dtype) == (found[0].shape, np.int32)
        orders = [np.lexsort([*x.reshape(len(x), -1).T, y]) for x, y in ((images, labels), found)]
        np.testing.assert_array_equal(images[orders[0]], found[0][orders[1]])
        np.testing.assert_array_equal(labels[orders[0]], found[1][orders[1]])


def test_length_is_known_and_order_follows_the_seed():
    first, second, other = (data.load("digits", 64, seed=seed) for seed in (1, 1, 2))
    assert len(first.train) == 23
    labels = [collect(d.train)[1] for d in (first, second, other)]
    np.testing.assert_array_equal(labels[0], labels[1])
    assert np.any(labels[0] != labels[2])


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"batch_size": 0}, "`batch_size` must be an integer of at least 1.*batch_size=0"),
        ({"batch_size": 2.5}, "`batch_size` must be an integer"),
        ({"batch_size": None}, "`batch_size` must be an integer"),
        ({"seed": -1}, "`seed` must be an integer of at least 0"),
        ({"seed": "0"}, "`seed` must be an integer"),
        ({"name": 3}, "`name` must be 'digits' or the name of a data set.*name=3"),
        ({"name": None}, "`name` must be 'digits'"),
        ({"data_dir": 3}, "`data_dir` must be a path.*data_dir=3"),
    ],
)
def test_wrong_arguments_are_named(arguments, message):
    with pytest.raises(ValueError, match=message):
        data.load(**arguments)


def test_training_examples_are_shuffled_anew_each_epoch():
    train = data.load("digits", 64).train
    assert np.any(collect(train)[1] != collect(train)[1])


def test_fashion_mnist_from_raw_files(raw_fashion_mnist, tmp_path, monkeypatch):
    folder, arrays = raw_fashion_mnist
    monkeypatch.setattr(data, "_DEBIAN_FASHION_MNIST", folder)
    fashion = data.load("fashion_mnist", batch_size=8, data_dir=tmp_path / "tfds")
    assert (fashion.input_shape, fashion.num_classes) == ((28, 28, 1), 10)
    images, labels = collect(fashion.test)
    np.testing.assert_array_equal(labels, arrays["t10k"][1])
    np.testing.assert_allclose(images[..., 0], arrays["t10k"][0] / 255, rtol=1e-6)
    assert sorted(collect(fashion.train)[1]) == sorted(arrays["train"][1])


def test_a_prepared_data_set_is_found_again(raw_fashion_mnist, tmp_path, monkeypatch):
    folder, _ = raw_fashion_mnist
    monkeypatch.setattr(data, "_DEBIAN_FASHION_MNIST", folder)
    data.load("fashion_mnist", data_dir=tmp_path / "tfds")
    monkeypatch.setattr(data, "_DEBIAN_FASHION_MNIST", tmp_path / "gone")
    assert len(collect(data.load("fashion_mnist", data_dir=tmp_path / "tfds").test)[1]) == 10


def test_another_process_may_be_first(raw_fashion_mnist, tmp_path, monkeypatch):
    folder, _ = raw_fashion_mnist
    monkeypatch.setattr(data, "_DEBIAN_FASHION_MNIST", folder)
    read = data._read_idx

    def meanwhile(path):
        monkeypatch.setattr(data, "_read_idx", read)
        data.load("fashion_mnist", data_dir=tmp_path / "tfds")
        return read(path)

    monkeypatch.setattr(data, "_read_idx", meanwhile)
    assert len(collect(data.load("fashion_mnist", data_dir=tmp_path / "tfds").test)[1]) == 10
    assert not list(tmp_path.rglob(".incomplete*"))


def test_broken_raw_files_leave_nothing_behind(raw_fashion_mnist, tmp_path, monkeypatch):
    folder, _ = raw_fashion_mnist
    (folder / "t10k-labels-idx1-ubyte.gz").write_bytes(b"not gzip")
    monkeypatch.setattr(data, "_DEBIAN_FASHION_MNIST", folder)
    with pytest.raises(OSError, match="gzip"):
        data.load("fashion_mnist", data_dir=tmp_path / "tfds")
    assert not [p for p in (tmp_path / "tfds").rglob("*") if p.is_file()]


def test_no_data_at_all_says_what_to_run(tmp_path, monkeypatch):
    def no_network(self, **kwargs):
        raise ConnectionError("no route to host")

    monkeypatch.setattr(data, "_DEBIAN_FASHION_MNIST", tmp_path / "absent")
    monkeypatch.setattr(tfds.core.DatasetBuilder, "download_and_prepare", no_network)
    with pytest.raises(FileNotFoundError, match="apt-get install dataset-fashion-mnist"):
        data.load("fashion_mnist", data_dir=tmp_path)
    with pytest.raises(FileNotFoundError, match=r"tfds.load\('mnist'\)"):
        data.load("mnist", data_dir=tmp_path)


def test_unknown_names_offer_the_closest():
    with pytest.raises(ValueError, match=r"'fashion_mnist'.*Received: name='fashion-mnist'"):
        data.load("fashion-mnist")


def test_data_sets_without_images_and_labels_are_refused(tmp_path, monkeypatch):
    monkeypatch.setattr(data, "_prepared", lambda builder, name, data_dir: builder)
    with pytest.raises(ValueError, match=r"images of one size.*imdb_reviews"):
        data.load("imdb_reviews", data_dir=tmp_path)
