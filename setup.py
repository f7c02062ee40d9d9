"""Packaging of tf_rigl."""

import pathlib
import re

from setuptools import find_packages, setup

HERE = pathlib.Path(__file__).parent
VERSION = re.search(r'__version__ = "(.+?)"', (HERE / "tf_rigl" / "__init__.py").read_text())[1]

DATA = ["tensorflow-datasets>=4.9.7", "importlib_resources", "scikit-learn>=1.3"]
PLOTS = ["matplotlib>=3.7"]
NOTEBOOKS = ["nbclient>=0.10", "nbformat>=5.9", "ipykernel>=6.25"]
CONTROL = ["gymnasium>=1.0"]
RUNTIMES = ["onnxruntime>=1.20", "onnx>=1.17", "tf2onnx>=1.16", "openvino>=2025.0"]
TESTS = [
    "pytest>=8",
    "pytest-xdist>=3.5",
    "hypothesis>=6.100",
    "ruff>=0.12,<0.16",
    "mypy>=1.11",
    "tensorboard>=2.18",  # For the callback of Keras.
    "keras-hub>=0.20",  # 260 MB with what it needs, of which tensorflow-text has 194.
]

setup(
    name="tf_rigl",
    version=VERSION,
    description="Sparse training for Keras 3 on TensorFlow: RigL and its family",
    long_description=(HERE / "README.md").read_text(),
    long_description_content_type="text/markdown",
    license="Apache-2.0",
    packages=find_packages(include=["tf_rigl", "tf_rigl.*"]),
    package_data={"tf_rigl": ["py.typed"]},
    python_requires=">=3.10",
    install_requires=[
        "tensorflow>=2.18",
        "keras>=3.10,<4",
        "tensorflow-model-optimization>=0.8",
        "numpy>=1.26",
        "wrapt>=1.14",
        "ai-edge-litert>=2.0",
        "filelock>=3.12",
        *DATA,
    ],
    extras_require={
        "plots": PLOTS,
        "examples": [*PLOTS, *NOTEBOOKS, *CONTROL],
        "control": CONTROL,  # For `tf_rigl.wann.Control`.
        "runtimes": RUNTIMES,  # For benchmarks/compact.py.
        "tests": [*PLOTS, *NOTEBOOKS, *CONTROL, *TESTS],
    },
    entry_points={"console_scripts": ["tf-rigl=tf_rigl.experiments.cli:main"]},
    classifiers=[
        "Programming Language :: Python :: 3",
        "Topic :: Scientific/Engineering :: Artificial Intelligence",
    ],
)
