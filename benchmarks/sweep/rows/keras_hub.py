"""Backbones and tasks of KerasHub, from small configurations; nothing is downloaded."""

import keras
import keras_hub
import numpy as np

from benchmarks.sweep.case import Case, by_labels, by_squares, floats, integers, row

hub = keras_hub.models
LENGTH, WORDS, CLASSES = 6, 24, 3
SIZES = {"vocabulary_size": WORDS, "num_layers": 2, "hidden_dim": 16, "intermediate_dim": 24}
HEADS = {**SIZES, "num_heads": 2, "max_sequence_length": LENGTH}
GROUPED = {**SIZES, "num_query_heads": 2, "num_key_value_heads": 1}


def tokens(**more):
    """Tokens without padding."""
    ids = integers(WORDS, LENGTH)
    return {"token_ids": ids, "padding_mask": np.ones_like(ids), **more}


def segments():
    """Tokens of one segment."""
    return tokens(segment_ids=np.zeros((24, LENGTH), "int32"))


def _jit_off(model, **options):
    options.setdefault("jit_compile", False)  # KerasHub's tasks would use XLA.
    by_labels(model, **options)


def causal(name, backbone, variants=()):
    """Registers a causal language model."""

    def make():
        model = getattr(hub, f"{name}CausalLM")(backbone(), preprocessor=None)
        ids = integers(WORDS, LENGTH)
        return Case(model, tokens(), np.roll(ids, -1, axis=1), _jit_off)

    make.__module__ = __name__
    row("KerasHub: decoders", variants, f"{name}CausalLM")(make)


causal("GPT2", lambda: hub.GPT2Backbone(**HEADS), ["magnitude", "block_4x1", "executions"])
causal("OPT", lambda: hub.OPTBackbone(**HEADS))
causal("Llama", lambda: hub.LlamaBackbone(**GROUPED), ["snip", "jit"])
causal("Mistral", lambda: hub.MistralBackbone(**GROUPED))
causal("Gemma", lambda: hub.GemmaBackbone(**GROUPED, head_dim=8), ["2:4"])
causal("Qwen", lambda: hub.QwenBackbone(**GROUPED))
causal("Falcon", lambda: hub.FalconBackbone(**SIZES, num_attention_heads=2))
causal("Bloom", lambda: hub.BloomBackbone(**SIZES, num_heads=2))
causal("GPTNeoX", lambda: hub.GPTNeoXBackbone(**HEADS))
causal("Mixtral", lambda: hub.MixtralBackbone(**GROUPED, num_experts=2, top_k=1), ["magnitude"])
causal(
    "Qwen3Moe",
    lambda: hub.Qwen3MoeBackbone(
        **GROUPED, moe_intermediate_dim=24, num_experts=2, top_k=1, head_dim=8
    ),
)
causal("GptOss", lambda: hub.GptOssBackbone(**GROUPED, num_experts=2, top_k=1, head_dim=8))


def classifier(name, backbone, data, task="TextClassifier", variants=()):
    """Registers a text classifier."""

    def make():
        model = getattr(hub, f"{name}{task}")(backbone(), num_classes=CLASSES, preprocessor=None)
        return Case(model, data(), integers(CLASSES), _jit_off)

    make.__module__ = __name__
    row("KerasHub: encoders", variants, f"{name}{task}")(make)


classifier("Bert", lambda: hub.BertBackbone(**HEADS), segments, variants=["snip", "2:4"])
classifier("Roberta", lambda: hub.RobertaBackbone(**HEADS), tokens)
classifier("DistilBert", lambda: hub.DistilBertBackbone(**HEADS), tokens)
classifier("DebertaV3", lambda: hub.DebertaV3Backbone(**HEADS, bucket_size=8), tokens)
classifier("Albert", lambda: hub.AlbertBackbone(**HEADS, embedding_dim=8), segments)
classifier(
    "FNet",
    lambda: hub.FNetBackbone(**SIZES, max_sequence_length=LENGTH),
    lambda: {n: a for n, a in segments().items() if n != "padding_mask"},
)


@row("KerasHub: encoders", ["magnitude"], "BertMaskedLM")
def bert_masked():
    """Predicts hidden words."""
    places = np.tile(np.arange(2, dtype="int32"), (24, 1))
    x = {**segments(), "mask_positions": places}
    model = hub.BertMaskedLM(hub.BertBackbone(**HEADS), preprocessor=None)
    return Case(model, x, integers(WORDS, 2), _jit_off)


@row("KerasHub: encoders", name="BertBackbone with a head")
def bert_with_head():
    """A backbone in a functional model."""
    backbone = hub.BertBackbone(**HEADS)
    outputs = keras.layers.Dense(CLASSES)(backbone(backbone.input)["pooled_output"])
    return Case(keras.Model(backbone.input, outputs), segments(), integers(CLASSES))


def _pairs(layers_of_batch):
    ids = integers(WORDS, LENGTH)
    ones = np.ones_like(ids)
    x = {"encoder_token_ids": ids, "encoder_padding_mask": ones}
    return {**x, "decoder_token_ids": ids[::-1].copy(), "decoder_padding_mask": ones}


@row("KerasHub: encoder-decoders", ["magnitude"], "BartSeq2SeqLM")
def bart():
    """An encoder, and a decoder that attends to it."""
    model = hub.BartSeq2SeqLM(hub.BartBackbone(**HEADS), preprocessor=None)
    return Case(model, _pairs(None), integers(WORDS, LENGTH), _jit_off)


@row("KerasHub: encoder-decoders", name="T5Backbone with a head")
def t_five():
    """Relative positions, gated layers."""
    backbone = hub.T5Backbone(**{**SIZES, "num_heads": 2})
    hidden = backbone(backbone.input)["decoder_sequence_output"]
    model = keras.Model(backbone.input, keras.layers.Dense(WORDS)(hidden))
    return Case(model, _pairs(None), integers(WORDS, LENGTH))


@row("KerasHub: encoder-decoders", name="WhisperBackbone with a head")
def whisper():
    """Sound in, words out."""
    backbone = hub.WhisperBackbone(
        **SIZES,
        num_heads=2,
        num_mels=8,
        max_encoder_sequence_length=16,
        max_decoder_sequence_length=LENGTH,
    )
    hidden = backbone(backbone.input)["decoder_sequence_output"]
    model = keras.Model(backbone.input, keras.layers.Dense(WORDS)(hidden))
    pairs = _pairs(None)
    x = {name: array for name, array in pairs.items() if name.startswith("decoder")}
    x["encoder_features"] = floats(16, 8)
    return Case(model, x, integers(WORDS, LENGTH))


def images(name, backbone, size=32, task="ImageClassifier", variants=()):
    """Registers an image classifier."""

    def make():
        model = getattr(hub, f"{name}{task}")(backbone(), num_classes=CLASSES, preprocessor=None)
        return Case(model, floats(size, size, 3), integers(CLASSES), _jit_off)

    make.__module__ = __name__
    row("KerasHub: vision", variants, f"{name}{task}")(make)


def resnet():
    """Two stages of two blocks."""
    return hub.ResNetBackbone(
        input_conv_filters=[64],
        input_conv_kernel_sizes=[3],
        stackwise_num_filters=[64, 32],
        stackwise_num_blocks=[2, 2],
        stackwise_num_strides=[1, 2],
        block_type="basic_block",
        image_shape=(32, 32, 3),
    )


images(
    "ViT",
    lambda: hub.ViTBackbone(
        image_shape=(16, 16, 3),
        patch_size=8,
        num_layers=2,
        num_heads=2,
        hidden_dim=16,
        mlp_dim=24,
    ),
    size=16,
    variants=["snip", "magnitude"],
)
images("ResNet", resnet, variants=["block_4x1"])
images("DenseNet", lambda: hub.DenseNetBackbone([2, 2], image_shape=(32, 32, 3), growth_rate=8))
images(
    "Xception",
    lambda: hub.XceptionBackbone([[8], [8, 16]], [False, True], image_shape=(32, 32, 3)),
)


@row("KerasHub: vision", name="VGGBackbone with a head")
def vgg():
    """A backbone in a functional model."""
    backbone = hub.VGGBackbone([1, 2], [8, 16], image_shape=(32, 32, 3))
    x = keras.layers.GlobalAveragePooling2D()(backbone(backbone.input))
    model = keras.Model(backbone.input, keras.layers.Dense(CLASSES)(x))
    return Case(model, floats(32, 32, 3), integers(CLASSES))


@row("KerasHub: segmentation", ["magnitude"], "SegFormerImageSegmenter")
def segformer():
    """A transformer for images, and a head for pixels."""
    mit = hub.MiTBackbone(
        layerwise_depths=[1, 1],
        num_layers=2,
        layerwise_num_heads=[1, 2],
        layerwise_sr_ratios=[2, 1],
        max_drop_path_rate=0.1,
        layerwise_patch_sizes=[7, 3],
        layerwise_strides=[4, 2],
        hidden_dims=[8, 16],
        image_shape=(32, 32, 3),
    )
    backbone = hub.SegFormerBackbone(mit, projection_filters=8)
    model = hub.SegFormerImageSegmenter(backbone, num_classes=CLASSES, preprocessor=None)
    labels = integers(CLASSES, 32, 32)
    return Case(model, floats(32, 32, 3), labels, _jit_off)


@row("KerasHub: segmentation", name="DeepLabV3ImageSegmenter")
def deeplab():
    """Dilated convolutions over the features of a ResNet."""
    encoder = hub.ResNetBackbone(
        input_conv_filters=[64],
        input_conv_kernel_sizes=[7],
        stackwise_num_filters=[64, 32, 32, 32],
        stackwise_num_blocks=[1, 1, 1, 1],
        stackwise_num_strides=[1, 2, 2, 2],
        block_type="bottleneck_block",
        image_shape=(64, 64, 3),
    )
    backbone = hub.DeepLabV3Backbone(
        image_encoder=encoder,
        spatial_pyramid_pooling_key="P5",
        low_level_feature_key="P2",
        upsampling_size=8,
        dilation_rates=[2, 4],
        projection_filters=8,
        image_shape=(64, 64, 3),
    )
    model = hub.DeepLabV3ImageSegmenter(backbone, num_classes=CLASSES, preprocessor=None)
    return Case(model, floats(64, 64, 3), integers(CLASSES, 64, 64), _jit_off)


@row("KerasHub: several kinds of input", name="CLIPBackbone")
def clip():
    """Images and words in one space."""
    vision = hub.CLIPVisionEncoder(
        patch_size=8,
        hidden_dim=16,
        num_layers=1,
        num_heads=2,
        intermediate_dim=24,
        intermediate_activation="quick_gelu",
        image_shape=(16, 16, 3),
    )
    text = hub.CLIPTextEncoder(
        vocabulary_size=WORDS,
        embedding_dim=16,
        hidden_dim=16,
        num_layers=1,
        num_heads=2,
        intermediate_dim=24,
        intermediate_activation="quick_gelu",
        max_sequence_length=LENGTH,
    )
    backbone = hub.CLIPBackbone(vision, text, projection_dim=8)
    x = {"images": floats(16, 16, 3), "token_ids": integers(WORDS, LENGTH)}
    logits = backbone(backbone.input)["vision_logits"]
    pooled = keras.ops.mean(logits, axis=-1, keepdims=True)
    model = keras.Model(backbone.input, pooled)
    return Case(model, x, floats(1), by_squares, fit={"batch_size": 4})
