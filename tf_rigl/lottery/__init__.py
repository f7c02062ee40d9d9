"""Lottery tickets: sparse networks that train well from their initial weights; and controls."""

from tf_rigl._base import (
    backend,  # noqa: F401, first: registers our Keras classes
    old_names,
)
from tf_rigl.channels.early_bird import EarlyBird, low_precision, mask_distance
from tf_rigl.channels.removal import remove_channels
from tf_rigl.channels.slimming import channel_masks, mask_channels, with_scale_penalty
from tf_rigl.lottery.controls import (
    from_step,
    random_mask,
    reinitialised,
    resampled,
    shuffled,
    transplanted,
    warm_up,
)
from tf_rigl.lottery.scratch import fine_tune, scratch_b, scratch_b_epochs, scratch_e
from tf_rigl.lottery.search import find_ticket
from tf_rigl.lottery.ticket import Ticket

__all__ = [
    "EarlyBird",
    "Ticket",
    "channel_masks",
    "find_ticket",
    "fine_tune",
    "from_step",
    "low_precision",
    "mask_channels",
    "mask_distance",
    "random_mask",
    "reinitialised",
    "remove_channels",
    "resampled",
    "scratch_b",
    "scratch_b_epochs",
    "scratch_e",
    "shuffled",
    "transplanted",
    "warm_up",
    "with_scale_penalty",
]


def __getattr__(name):
    return old_names.attribute(__name__, name)
