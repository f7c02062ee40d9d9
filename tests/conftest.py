"""What holds for every test: a quiet TensorFlow, and the same start."""

import os

os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")

import keras
import pytest

pytest.register_assert_rewrite("tests.helpers")


@pytest.fixture(autouse=True)
def fresh_start():
    """Clears names and state that Keras keeps between models, and seeds everything."""
    keras.backend.clear_session(free_memory=False)  # Collecting garbage takes its time.
    keras.utils.set_random_seed(0)


def pytest_configure(config):
    """A model that cannot be copied is an error, except where a test expects it."""
    config.addinivalue_line("filterwarnings", "error:Keras cannot clone")
