"""The private names of Keras and TensorFlow that `keras_internals` uses; a test goes by them."""

# Owner -> name -> (what it is for, versions tried). Versions are those of Keras, or of TensorFlow
# where the owner is its. A name that came later than the lowest version that the package allows
# begins with the version that brought it.
NAMES = {
    # Layers.
    "keras.layers.Layer": {
        "_flatten_layers": ("lists all layers in a layer", "3.10-3.15"),
        "_layers": ("tracks a layer that is outside the graph of its model", "3.10-3.15"),
        "_trainable": ("freezes a layer without its sublayers", "3.10-3.15"),
        "_trainable_variables": ("lists the variables of a layer alone", "3.10-3.15"),
        "_non_trainable_variables": ("lists the variables of a layer alone", "3.10-3.15"),
        "_seed_generators": ("lists the random seeds of a layer alone", "3.10-3.15"),
        "_inbound_nodes": ("lists the calls of a layer in graphs", "3.10-3.15"),
        "_track_trackable": ("adds to what `tf.train.Checkpoint` stores", "3.10-3.15"),
    },
    "keras.layers.Dense": {"_kernel": ("is the variable that LoRA adds to", "3.10-3.15")},
    "keras.layers.EinsumDense": {"_kernel": ("is the variable that LoRA adds to", "3.10-3.15")},
    "keras.layers.Conv2D": {"_kernel": ("is the variable that LoRA adds to", "3.10-3.15")},
    "keras.layers.Embedding": {"_embeddings": ("is the variable that LoRA adds to", "3.10-3.15")},
    "keras.layers.MultiHeadAttention": {
        "_query_dense": ("holds a projection", "3.10-3.15"),
        "_key_dense": ("holds a projection", "3.10-3.15"),
        "_value_dense": ("holds a projection", "3.10-3.15"),
        "_gate_dense": ("holds a projection", "3.14-3.15"),
        "_output_dense": ("holds a projection", "3.10-3.15"),
        "_use_gate": ("says that there is a gate", "3.14-3.15"),
        "_tracker": ("puts a sublayer in the place of another", "3.10-3.15"),
    },
    "keras.src.layers.rnn.conv_lstm": {"ConvLSTMCell": ("is a kind of layer", "3.10-3.15")},
    "keras.src.utils.python_utils": {
        "default": ("has Keras build a layer by a symbolic call", "3.10-3.15"),
        "is_default": ("says that a layer has nothing to build", "3.10-3.15"),
    },
    # Graphs.
    "keras.src.models.functional": {
        "Functional": ("is the class of graphs", "3.10-3.15"),
        "functional_like_constructor": ("says that a class is made of a graph", "3.10-3.15"),
    },
    "keras.models.Sequential": {"_functional": ("is the graph of its layers", "3.10-3.15")},
    "keras.KerasTensor": {
        "_keras_history": ("is the call that made it", "3.10-3.15"),
        "_keras_mask": ("is the mask of timesteps that goes with it", "3.10-3.15"),
    },
    "keras.Function": {"_nodes_by_depth": ("lists the calls in a graph", "3.10-3.15")},
    "keras.src.backend": {
        "compute_output_spec": ("calls a model without adding to its graph", "3.10-3.15"),
        "AutocastScope": ("reads variables in the type they are stored in", "3.10-3.15"),
    },
    "keras.src.ops.core": {"Cast": ("is an operation in graphs", "3.10-3.15")},
    "keras.src.ops.nn": {"Relu": ("is an operation in graphs", "3.10-3.15")},
    "keras.src.ops.numpy": {
        "Add": ("is an operation in graphs", "3.10-3.15"),
        "Maximum": ("is an operation in graphs", "3.10-3.15"),
        "Minimum": ("is an operation in graphs", "3.10-3.15"),
        "Multiply": ("is an operation in graphs", "3.10-3.15"),
        "Subtract": ("is an operation in graphs", "3.10-3.15"),
    },
    # Variables.
    "keras.Variable": {"_direct_assign": ("writes past a stateless scope", "3.10-3.15")},
    "keras.src.backend.common.stateless_scope": {
        "in_stateless_scope": ("says that no variable can be made now", "3.10-3.15"),
    },
    "keras.optimizers.Optimizer": {
        "_trainable_variables": ("lists what the optimizer was built with", "3.10-3.15"),
        "_model_variables_moving_average": ("lists averages of weights", "3.10-3.15"),
    },
    "keras.optimizers.ScheduleFreeAdamW": {
        "_momentums": ("lists copies of weights that it trains", "3.14-3.15"),
    },
    "keras.optimizers.Adagrad": {"_accumulators": ("lists slots that begin above 0", "3.10-3.15")},
    "keras.optimizers.Ftrl": {"_accumulators": ("lists slots that begin above 0", "3.10-3.15")},
    # Training.
    "keras.Model": {
        "_initial_epoch": ("is the epoch at which `fit` goes on after a backup", "3.10-3.15"),
        "_maybe_symbolic_build": ("builds a model before `fit`", "3.10-3.15"),
        "_distribute_strategy": ("is None where a model has no strategy", "3.10-3.15"),
    },
    "keras.src.backend.tensorflow.trainer.TFEpochIterator": {
        "_get_iterator": ("is the data set of `fit`", "3.10-3.15"),
    },
    # Files.
    "keras.src.saving.serialization_lib": {
        "SafeModeScope": ("lets lambdas be copied", "3.10-3.15"),
    },
    "keras.src.backend.common.global_state": {
        "get_global_attribute": ("says that a file of HDF5 is being written", "3.10-3.15"),
    },
    "keras.src.export.export_utils": {
        "get_input_signature": ("says what a model is called on", "3.10-3.15"),
        "_infer_input_signature_from_model": ("the same, if it is only built", "3.10-3.15"),
    },
    "tensorflow.Variable": {
        "_export_to_saved_model_graph": ("copies a variable to a SavedModel", "2.18-2.21"),
        "_serialize_to_tensors": ("says what is stored of a variable", "2.18-2.21"),
    },
    "tensorflow.types.experimental.ConcreteFunction": {
        "_arg_keywords": ("lists the names of inputs in their order", "2.18-2.21"),
    },
    "tensorflow.python.ops.control_flow_util": {
        "GraphOrParentsInXlaContext": ("says that XLA compiles what is traced", "2.18-2.21"),
    },
    # Keras 2, of which tensorflow-model-optimization makes its models.
    "tf_keras.layers.Layer": {"_flatten_layers": ("lists all layers in a layer", "2.18-2.21")},
}
