"""The settings of `tf-rigl tickets`, checked without Keras."""

import dataclasses
import math

from tf_rigl._base.arguments import check_integer, check_number, unknown_name
from tf_rigl.experiments import fields
from tf_rigl.experiments.fields import setting
from tf_rigl.experiments.model_names import MODELS

OPTIMIZERS = ("adam", "sgd")
# The files in the folder of an experiment, see `tf_rigl._base.files.check_folder`.
SEARCHES = {"result.json": ("settings", "rows")}
SWEEPS = {"sweep.json": ("settings", "rows")}
# The controls of a ticket.
CONTROLS = {
    "reinitialised": "the same mask with new random weights",
    "resampled": "the same mask with weights drawn from the initial ones that it keeps",
    "random": "a random mask with as many weights in each layer, and the same initial weights",
    "shuffled": "a random mask with as many inputs of each unit",
}
# The defaults of a search; those of a training are below.
ROUNDS = 15
SEEDS = range(5)
USUAL_CONTROLS = ("reinitialised", "random")
DENSITIES = (0.51, 0.21, 0.07, 0.036)  # Fractions of weights left at which controls are trained.


@dataclasses.dataclass(frozen=True)
class TicketSettings:
    """All settings of a training except its seed.

    The defaults are those of the paper for LeNet-300-100.

    Attributes:
        dataset: str, see `tf_rigl.data.load`.
        model: str, see `tf_rigl.models.get`. Its kernels are initialised by Glorot's normal
            distribution (depthwise kernels by their own initializer).
        prune_fraction: float in (0, 1), the fraction of the remaining weights that a round
            prunes; half of it in the output layer, if the scope is "layer".
        scope: "layer" or "global", as in `tf_rigl.lottery.find_ticket`.
        rewind_step: int, a multiple of `every`.
        optimizer: "adam", or "sgd" with momentum 0.9.
        learning_rate: float, constant after the warm-up.
        warm_up: int, steps of linear warm-up of the learning rate.
        epochs: int, passes over the training data without the held-out part. Training goes on
            to the next multiple of `every` steps.
        batch_size: int.
        every: int, steps between evaluations on the held-out and on the test data.

    Raises:
        ValueError: if a value is out of range.

    Example:

    >>> TicketSettings("fashion_mnist", epochs=6).optimizer
    'adam'

    Reference:

    - [The Lottery Ticket Hypothesis](https://arxiv.org/abs/1803.03635), figure 2.
    """

    dataset: str = setting("digits", "digits, or any image data set of TFDS", fields.any_name)
    model: str = setting("lenet-300-100", "model to train; see below", fields.one_of(MODELS))
    prune_fraction: float = setting(
        0.2,
        "fraction of the remaining weights that a round prunes; half of it in the output layer",
        fields.number(above=0, below=1, what="the fraction that a round prunes"),
    )
    scope: str = setting(
        "layer",
        "layer: prune the same fraction of every layer; global: prune the smallest of all",
        fields.one_of(("layer", "global")),
    )
    rewind_step: int = setting(
        0,
        "step whose weights tickets start from: 0 (initialisation), or a multiple of --every",
        fields.integer(0),
    )
    optimizer: str = setting("adam", "adam, or sgd with momentum 0.9", fields.one_of(OPTIMIZERS))
    learning_rate: float = setting(1.2e-3, "constant learning rate", fields.number(above=0))
    warm_up: int = setting(0, "steps of linear warm-up of the learning rate", fields.integer(0))
    epochs: int = setting(
        60,
        "passes over the training data, of which a twelfth is held out; training goes on to the "
        "next multiple of --every steps",
        fields.integer(1),
    )
    batch_size: int = setting(60, "examples in a batch", fields.integer(1))
    every: int = setting(100, "steps between evaluations", fields.integer(1))

    def __post_init__(self):
        fields.check_all(self)
        if self.rewind_step % self.every:
            raise ValueError(
                "Argument `rewind_step` must be a multiple of `every`. Received: "
                f"rewind_step={self.rewind_step}, every={self.every}"
            )


def rounds_with_controls(settings, rounds, controls, densities) -> list[int]:
    """Returns the rounds whose tickets are compared with controls.

    Args:
        settings: `TicketSettings`.
        rounds: int, the number of pruning rounds.
        controls: list of names from `CONTROLS`.
        densities: iterable of float, the fractions of weights left; None for those in
            `DENSITIES` that the rounds reach.

    Raises:
        ValueError: if an argument is invalid, or the rounds do not reach a density.
    """
    check_integer("rounds", rounds, 0)
    for name in controls:
        if name not in CONTROLS:
            raise unknown_name("controls", name, CONTROLS, or_object=False)
    if not controls:
        return []
    if densities is None:
        reached = (1 - settings.prune_fraction) ** (rounds + 0.5)
        densities = [each for each in DENSITIES if each > reached]
    return compared_rounds(densities, settings.prune_fraction, rounds)


def compared_rounds(densities, prune_fraction, rounds) -> list[int]:
    """Returns the rounds that leave about these fractions of the weights.

    Example:

    >>> compared_rounds([0.51, 0.21, 0.07, 0.036], 0.2, rounds=15)
    [3, 7, 12, 15]
    """
    result = []
    for density in densities:
        what = "the fraction of weights left"
        density = check_number("densities", density, above=0, below=1, what=what)
        number = max(1, round(math.log(density) / math.log(1 - prune_fraction)))
        if number > rounds:
            raise ValueError(
                f"Argument `densities` must hold densities that the rounds reach: {density:g} "
                f"needs {number} rounds. Received: rounds={rounds}"
            )
        result.append(number)
    return sorted(set(result))
