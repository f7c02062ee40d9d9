"""Control tasks, against rollouts of a single environment in a plain loop."""

import functools
import math

import numpy as np
import pytest

gymnasium = pytest.importorskip("gymnasium")

from benchmarks import swing_up  # noqa: E402
from tf_rigl import wann  # noqa: E402
from tf_rigl.wann import mutations, network  # noqa: E402
from tf_rigl.wann.population import Stack  # noqa: E402


def nets(inputs, outputs, count=3):
    rng = np.random.default_rng(0)
    found = []
    for number in range(count):
        net = network.start(inputs, outputs, 0.7, rng)
        for _ in range(4 * number):
            net = mutations.mutated(net, rng)
        found.append(net)
    return found


def returned(env, net, weight, seed, act):
    """The return of one rollout."""
    observation, _ = env.reset(seed=seed)
    total = 0.0
    while True:
        outputs = Stack([net]).outputs_of(np.asarray(observation, np.float32)[None], weight)[0, 0]
        observation, reward, ended, cut, _ = env.step(act(outputs))
        total += reward
        if ended or cut:
            return total


def test_discrete_actions():
    env = gymnasium.make("CartPole-v1", max_episode_steps=60)
    task = wann.Control(lambda: gymnasium.make("CartPole-v1", max_episode_steps=60), 2, seed=3)
    assert (task.inputs, task.outputs) == (4, 2)
    networks, weights = nets(4, 2), [-1.0, 0.5]
    expected = [
        [np.mean([returned(env, net, w, seed, np.argmax) for seed in (3, 4)]) for w in weights]
        for net in networks
    ]
    np.testing.assert_allclose(task.scores(networks, weights), expected)


@pytest.mark.parametrize("make", [swing_up.SwingUp, swing_up.SwingUps], ids=["single", "vector"])
def test_continuous_actions(make, monkeypatch):
    monkeypatch.setattr(swing_up, "STEPS", 80)
    monkeypatch.setattr(swing_up, "EDGE", 0.5)  # Some leave the track.
    task = wann.Control((lambda n: make(n)) if make is swing_up.SwingUps else make, rollouts=2)
    assert (task.inputs, task.outputs) == (5, 1)
    networks, weights = nets(5, 1), [-1.5, 1.0]
    found = task.scores(networks, weights)
    act = lambda outputs: np.clip(outputs, -1, 1)  # noqa: E731
    if make is swing_up.SwingUp:  # Both kinds of environments draw their states in their own way.
        expected = [
            [np.mean([returned(make(), net, w, s, act) for s in (0, 1)]) for w in weights]
            for net in networks
        ]
        np.testing.assert_allclose(found, expected, rtol=1e-3)
    np.testing.assert_array_equal(found, task.scores(networks, weights))
    assert found.shape == (3, 2)


def test_what_makes_one_environment_may_have_options():
    makers = [
        functools.partial(gymnasium.make, "CartPole-v1"),
        lambda render_mode=None: gymnasium.make("CartPole-v1", render_mode=render_mode),
        gymnasium.envs.classic_control.CartPoleEnv,
    ]
    found = [wann.Control(make, rollouts=1).scores(nets(4, 2), [0.5]) for make in makers]
    np.testing.assert_array_equal(found[0], found[1])
    assert found[2].shape == (3, 1)


def test_environments_that_are_refused():
    class Buttons(swing_up.SwingUp):
        action_space = gymnasium.spaces.MultiBinary(3)

    with pytest.raises(ValueError, match="of discrete or flat actions"):
        wann.Control(Buttons)
    with pytest.raises(ValueError, match="must return a `gymnasium"):
        wann.Control(lambda count: gymnasium.make("CartPole-v1"))


def test_one_environment_for_all_is_refused():
    env = gymnasium.make("CartPole-v1")
    with pytest.raises(ValueError, match="must return a new environment at each call"):
        wann.Control(lambda: env)


def test_a_search_does_not_go_on_in_another_environment(tmp_path):
    given = {"population": 5, "verbose": False, "folder": tmp_path}
    make = functools.partial(gymnasium.make, "CartPole-v1", max_episode_steps=20)
    wann.search(wann.Control(make, rollouts=1), generations=1, **given)
    with pytest.raises(ValueError, match="another task"):
        wann.search(wann.Control(make, rollouts=2), generations=2, **given)


def test_vectorised_environments_with_one_seed_for_all():
    """Those of Gymnasium itself refuse a list of seeds."""
    make = lambda n: gymnasium.make_vec("CartPole-v1", num_envs=n)  # noqa: E731
    with pytest.raises(gymnasium.error.Error):
        make(2).reset(seed=[0, 1])
    task, networks = wann.Control(make, rollouts=2, seed=3), nets(4, 2)
    found = task.scores(networks, [-1.0, 0.5])
    assert found.shape == (3, 2)
    assert (found >= 1).all()
    assert (found <= 500).all()
    np.testing.assert_array_equal(found, task.scores(networks, [-1.0, 0.5]))


def test_the_equations_by_hand():
    """The pole falls from upright, hangs still, and energy is not made."""
    state = np.array([0.1, -0.2, 0.3, 0.4])
    x, v, a, w = state
    s, c, f = math.sin(a), math.cos(a), 5.0
    v_dot = (-2 * 0.3 * w**2 * s + 3 * 0.5 * 9.82 * s * c + 4 * f - 4 * 0.1 * v) / (
        4 * 1.0 - 3 * 0.5 * c**2
    )
    w_dot = (-3 * 0.3 * w**2 * s * c + 6 * 9.82 * s + 6 * (f - 0.1 * v) * c) / (
        4 * 0.6 - 3 * 0.3 * c**2
    )
    expected = [x + 0.01 * v, v + 0.01 * v_dot, a + 0.01 * w, w + 0.01 * w_dot]
    np.testing.assert_allclose(swing_up.moved(state, 0.5), expected)
    hanging = np.array([0.0, 0.0, np.pi, 0.0])
    np.testing.assert_allclose(swing_up.moved(hanging, 0.0), hanging, atol=1e-12)
    assert swing_up.reward_of(np.zeros(4)) == 1
    assert swing_up.reward_of(hanging) == pytest.approx(0)


def test_it_is_registered():
    env = gymnasium.make(swing_up.NAME)
    observation, _ = env.reset(seed=0)
    assert observation.shape == (5,)
    assert gymnasium.make_vec(swing_up.NAME, num_envs=3).num_envs == 3


def test_a_search_learns():
    task = wann.Control(swing_up.SwingUps, rollouts=1)
    result = wann.search(task, population=24, generations=5, seed=0, verbose=False)
    assert result.history[-1]["mean"] > result.history[0]["mean"]


def test_what_it_refuses():
    with pytest.raises(ValueError, match="`rollouts`"):
        wann.Control(swing_up.SwingUps, rollouts=0)

    class Pictures(swing_up.SwingUp):
        observation_space = gymnasium.spaces.Box(0, 255, (8, 8, 3))

    with pytest.raises(ValueError, match="`make_env` must make an environment of flat"):
        wann.Control(Pictures)
