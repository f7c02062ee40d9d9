"""Tasks and backbones of KerasHub: copied with their class, trained sparse, saved, generating."""

import pathlib
import subprocess
import sys

import keras
import keras_hub
import numpy as np
import pytest

import tf_rigl
from tests.helpers import BATCH, CLASSES, check_invariants, random_data, rigl
from tf_rigl.convert import copies

LENGTH, WORDS = 6, 24
SIZES = {"vocabulary_size": WORDS, "num_layers": 1, "hidden_dim": 16, "intermediate_dim": 24}
HEADS = {**SIZES, "num_heads": 2, "max_sequence_length": LENGTH}
GROUPED = {**SIZES, "num_query_heads": 2, "num_key_value_heads": 1}
hub = keras_hub.models


def vit():
    sizes = {"num_heads": 2, "hidden_dim": 16, "mlp_dim": 24, "num_layers": 1, "patch_size": 8}
    return hub.ViTBackbone(image_shape=(16, 16, 3), **sizes)


def bart():
    return hub.BartBackbone(**HEADS)


TASKS = {
    "GPT2": lambda: hub.GPT2CausalLM(hub.GPT2Backbone(**HEADS)),
    "OPT": lambda: hub.OPTCausalLM(hub.OPTBackbone(**HEADS)),
    "Llama": lambda: hub.LlamaCausalLM(hub.LlamaBackbone(**GROUPED)),
    "Mistral": lambda: hub.MistralCausalLM(hub.MistralBackbone(**GROUPED)),
    "Gemma": lambda: hub.GemmaCausalLM(hub.GemmaBackbone(**GROUPED, head_dim=8)),
    "Mixtral": lambda: hub.MixtralCausalLM(hub.MixtralBackbone(**GROUPED, num_experts=2, top_k=1)),
    "Bert": lambda: hub.BertTextClassifier(hub.BertBackbone(**HEADS), num_classes=CLASSES),
    "Bart": lambda: hub.BartSeq2SeqLM(bart()),
    "ViT": lambda: hub.ViTImageClassifier(vit(), num_classes=CLASSES),
    "backbone": bart,
}


@pytest.mark.parametrize("name", TASKS)
def test_copies_share_nothing_and_are_of_the_same_class(name):
    model = TASKS[name]()
    copy = copies.copied(model)
    assert type(copy) is type(model)
    assert not {id(v) for v in model.variables} & {id(v) for v in copy.variables}
    for one, other in zip(model.weights, copy.weights, strict=True):
        np.testing.assert_array_equal(one.numpy(), other.numpy())
    if hasattr(model, "backbone"):
        assert type(copy.backbone) is type(model.backbone)
        assert len(copy.weights) == len({id(v) for v in copy.weights})


def speaker():
    """A language model that speaks words of one letter."""
    words = ["<|endoftext|>", "uv", *"abcdefghijklmnopqrstuv"]
    vocabulary = {word: number for number, word in enumerate(words)}
    tokenizer = hub.GPT2Tokenizer(vocabulary=vocabulary, merges=["u v"])
    preprocessor = hub.GPT2CausalLMPreprocessor(tokenizer, sequence_length=LENGTH)
    return hub.GPT2CausalLM(hub.GPT2Backbone(**HEADS, dropout=0.0), preprocessor)


NEW_PROCESS = """
import sys
import keras, keras_hub
import numpy as np

folder = sys.argv[1]
x = dict(np.load(f"{folder}/x.npz"))
expected = x.pop("expected")
plain = keras.models.load_model(f"{folder}/plain.keras")
assert type(plain) is keras_hub.models.GPT2CausalLM
assert not any(name.startswith("tf_rigl") for name in sys.modules)
np.testing.assert_allclose(plain(x), expected, atol=1e-5)
import tf_rigl
sparse = keras.models.load_model(f"{folder}/sparse.keras")
np.testing.assert_allclose(sparse(x), expected, atol=1e-5)
assert sparse.step == 8 and sparse.sparsity > 0.5
sparse.compile(sampler="greedy", run_eagerly=True)
print(sparse.generate("ab"))
"""


def test_a_language_model_trains_saves_strips_exports_and_generates(tmp_path):
    model = speaker()
    before = model.get_weights()
    sparse = tf_rigl.sparsify(model, rigl(), sparsity=0.6, distribution="uniform_all", seed=0)
    assert type(sparse.model) is hub.GPT2CausalLM
    sparse.compile(
        keras.optimizers.Adam(0.01),
        keras.losses.SparseCategoricalCrossentropy(from_logits=True),
        sampler="greedy",
        run_eagerly=True,  # Faster for so few steps; the sweep trains tasks in graphs.
    )
    masks, texts = sparse.masks, ["abcdef", "fedcba"] * 32
    sparse.fit(texts, batch_size=BATCH, verbose=0)  # Its preprocessor makes tokens of them.
    assert sparse.step == 8
    assert all((sparse.masks[path] != masks[path]).any() for path in masks)
    check_invariants(sparse)
    for weight, value in zip(model.weights, before, strict=True):
        np.testing.assert_array_equal(weight.numpy(), value)

    x, _, _ = sparse.preprocessor(texts[:2])
    expected = sparse(x)
    plain = tf_rigl.strip(sparse)
    np.testing.assert_array_equal(plain(x), expected)
    plain.save(tmp_path / "plain.keras")
    sparse.save(tmp_path / "sparse.keras")
    arrays = {name: value.numpy() for name, value in x.items()}
    np.savez(tmp_path / "x.npz", expected=expected, **arrays)
    exported = tf_rigl.export_saved_model(sparse, tmp_path / "saved", check_data=arrays)
    assert exported.max_abs_error < 1e-5
    exported = tf_rigl.export_tflite(sparse, tmp_path / "model.tflite", check_data=arrays)
    assert exported.max_abs_error < 1e-4

    text = sparse.generate("ab")
    assert text.startswith("ab")
    command = [sys.executable, "-c", NEW_PROCESS, str(tmp_path)]
    root = pathlib.Path(tf_rigl.__file__).parents[1]
    done = subprocess.run(command, cwd=root, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert done.stdout.strip() == text


def test_a_backbone_is_sparse_under_a_head_of_ones_own():
    """Also where the head calls the embedding of the backbone once more."""
    backbone = hub.GPT2Backbone(**HEADS)
    hidden = backbone(backbone.input)
    model = keras.Model(backbone.input, backbone.token_embedding(hidden, reverse=True))
    sparse = tf_rigl.sparsify(model, rigl(), sparsity=0.6, distribution="uniform_all", seed=0)
    inner = next(layer for layer in sparse.layers if isinstance(layer, hub.GPT2Backbone))
    assert inner is not backbone
    assert any(layer is inner.token_embedding for layer in sparse.layers)
    assert len(sparse.weights) - len(sparse.masked_weights) == len(model.weights)
    np.testing.assert_array_equal(tf_rigl.strip(sparse)(tokens()), sparse(tokens()))


def tokens():
    ids, _ = random_data((LENGTH,), batches=1, dtype="int32")
    return {"token_ids": ids, "padding_mask": np.ones_like(ids)}


@pytest.mark.filterwarnings("default:`compile..` was not called")  # As for any task of KerasHub.
def test_adapters_in_a_backbone(tmp_path):
    """`enable_lora` of a backbone freezes it; its configuration does not hold the adapters."""
    sparse = tf_rigl.sparsify(TASKS["Gemma"](), rigl(), sparsity=0.6, seed=0)
    sparse.backbone.enable_lora(2)
    sparse.compile(run_eagerly=True, sampler="greedy")
    before = {item.path: item.weight.numpy() for item in sparse.masked_weights}
    x = tokens()
    sparse.fit(x, x["token_ids"], verbose=0)
    for item in sparse.masked_weights:
        np.testing.assert_array_equal(item.weight.numpy(), before[item.path])
    adapters = [v for v in sparse.weights if "lora" in v.name]
    assert len(adapters) == 4
    assert all(np.any(adapter) for adapter in adapters)
    expected = sparse(x)
    np.testing.assert_array_equal(tf_rigl.strip(sparse)(x), expected)
    sparse.save(tmp_path / "model.keras")
    loaded = keras.models.load_model(tmp_path / "model.keras")
    np.testing.assert_array_equal(loaded(x), expected)
    check_invariants(loaded)
    with pytest.raises(ValueError, match=r"masked weights.*strip\(model\)\.quantize"):
        sparse.quantize("int8")
