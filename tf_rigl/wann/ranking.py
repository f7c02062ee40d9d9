"""Ranks networks by two goals at once: fronts of those that no other beats in both."""

import numpy as np


def fronts(goals) -> np.ndarray:
    """Returns the front of each row: 0 for those that no other row dominates, and so on.

    A row dominates another if it is at least as high in both goals and higher in one.

    Args:
        goals: float array of shape (rows, 2); larger is better.
    """
    at_least = (goals[:, None] >= goals[None]).all(axis=2)
    beats = at_least & (goals[:, None] > goals[None]).any(axis=2)
    found, left, number = np.full(len(goals), -1), np.ones(len(goals), bool), 0
    while left.any():
        front = left & ~(beats & left[:, None]).any(axis=0)
        found[front], number = number, number + 1
        left &= ~front
    return found


def crowding(goals) -> np.ndarray:
    """Returns how far the neighbours of each row are, along both goals; the ends are infinite.

    Args:
        goals: float array of shape (rows, 2), of one front.
    """
    distance = np.zeros(len(goals))
    for goal in goals.T:
        order = np.argsort(goal, kind="stable")
        span = goal[order[-1]] - goal[order[0]]
        distance[order[[0, -1]]] = np.inf
        if span > 0:
            distance[order[1:-1]] += (goal[order[2:]] - goal[order[:-2]]) / span
    return distance


def order(goals) -> np.ndarray:
    """Returns the rows from the best to the worst: by front, then the least crowded first."""
    front = fronts(goals)
    distance = np.zeros(len(goals))
    for number in range(front.max() + 1):
        distance[front == number] = crowding(goals[front == number])
    return np.lexsort((-distance, front))
