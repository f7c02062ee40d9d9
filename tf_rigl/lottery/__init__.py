"""Lottery tickets: sparse networks that were there before training, and how to doubt them."""

from tf_rigl.lottery.controls import (
    random_mask,
    reinitialised,
    shuffled,
    transplanted,
    warm_up,
)
from tf_rigl.lottery.search import find_ticket
from tf_rigl.lottery.ticket import Ticket

__all__ = [
    "Ticket",
    "find_ticket",
    "random_mask",
    "reinitialised",
    "shuffled",
    "transplanted",
    "warm_up",
]
