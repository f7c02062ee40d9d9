"""What holds for every test: a quiet TensorFlow, and the same start."""

import gc
import itertools
import os

os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")

import keras
import pytest

pytest.register_assert_rewrite("tests.helpers")

TESTS = itertools.count()


@pytest.fixture(autouse=True)
def fresh_start():
    """Clears names and state that Keras keeps between models, and seeds everything."""
    keras.backend.clear_session(free_memory=False)  # Collecting garbage takes its time.
    if next(TESTS) % 20 == 0:
        # What lives on is not searched again by collections to come: LiteRT's converter and
        # refused files ask for many, and what was imported is half a million objects.
        gc.collect()
        gc.freeze()
    keras.utils.set_random_seed(0)


def pytest_configure(config):
    """A model that cannot be copied is an error, except where a test expects it."""
    config.addinivalue_line("filterwarnings", "error:Keras cannot clone")
