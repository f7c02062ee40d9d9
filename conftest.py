"""What every docstring example finds: `tf_rigl`, `keras`, `np` and `tf`, and a fresh start."""

import pytest


@pytest.fixture(autouse=True)
def names_for_doctests(request):
    """Seeds everything and supplies the names, for docstring examples only."""
    if not isinstance(request.node, pytest.DoctestItem):
        return
    import keras
    import numpy as np
    import tensorflow as tf

    import tf_rigl

    keras.backend.clear_session(free_memory=False)
    keras.utils.set_random_seed(0)
    namespace = request.getfixturevalue("doctest_namespace")
    namespace.update(tf_rigl=tf_rigl, keras=keras, np=np, tf=tf)
    # Examples may write files.
    request.getfixturevalue("monkeypatch").chdir(request.getfixturevalue("tmp_path"))
