"""What is expected to be refused, and in which words. Anything else that is refused has failed."""

import re

_NO_OPERATOR = "LiteRT has no operator for tf."
_STRINGS = "LiteRT files of models with inputs of strings are not supported"
_QUANTIZED = "must hold no quantized layers"
_CAUSAL = "(Llama|Mistral|Gemma|Qwen|Falcon|Mixtral|Qwen3Moe|GptOss)CausalLM"

# A regular expression for the names of rows, the stage, and words of the message. The first
# expression that fits a row and a stage counts.
EXPECTED = (
    ("wide and deep", "LiteRT", _STRINGS),
    ("text with vectorization", "LiteRT", _STRINGS),
    ("text with vectorization", "plan", "must give every axis a size"),
    ("text with vectorization", "report", "must give every axis a size"),
    ("subclass without configuration", "save", "no `get_config` that returns the arguments"),
    ("a model in two places", "load", "objects could not be loaded"),  # In plain Keras too.
    ("int8 of a sparse model", "fit", "cannot be quantized: no mask would fit"),
    ("int8 before sparsify", "plan", _QUANTIZED),
    ("int8 before sparsify", "report", _QUANTIZED),
    ("int8 before sparsify", "LiteRT", "cannot make a LiteRT file of the model"),
    ("grouped query attention", "LiteRT", f"{_NO_OPERATOR}Einsum"),
    ("volumes", "LiteRT", f"{_NO_OPERATOR}MaxPool3D"),
    ("hashed features", "LiteRT", f"{_NO_OPERATOR}AsString"),
    (_CAUSAL, "LiteRT", f"{_NO_OPERATOR}StridedSlice"),
    ("T5Backbone with a head", "LiteRT", f"{_NO_OPERATOR}StridedSlice"),
    ("CLIPBackbone", "LiteRT", f"{_NO_OPERATOR}StridedSlice"),
    ("DebertaV3TextClassifier", "LiteRT", f"{_NO_OPERATOR}Abs"),
    ("FNetTextClassifier", "LiteRT", f"{_NO_OPERATOR}Complex"),
)


def expected(label, stage):
    """Returns words of the message with which a stage of a row is to be refused, or None."""
    for pattern, where, words in EXPECTED:
        if where == stage and re.fullmatch(f"{pattern}(, .*)?", label):
            return words
    return None
