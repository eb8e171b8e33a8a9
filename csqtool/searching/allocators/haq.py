"""HAQ: an agent that learns by reinforcement chooses the planes, layer by layer (Wang et al., CVPR 2019)."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from typing import Any, ClassVar

import numpy as np
from numpy.typing import NDArray

from csqtool.nn.weights import Weight
from csqtool.searching.allocation import Planes, SchemeAllocator, choices
from csqtool.searching.budget import Budget, uniform
from csqtool.searching.network import Network
from csqtool.searching.options import HaqOptions, Options
from csqtool.searching.trials import Trials

RANDOM_EPISODES = 20  # at the beginning
NOISE = 0.5  # of actions, in the first episode after these; it shrinks by NOISE_FALLS an episode
NOISE_FALLS = 0.99
HIDDEN = (300, 300)
RATE = 1e-4
SOFT_UPDATE = 0.01  # τ
BATCH = 64
EPISODES_KEPT = 128
REWARD_SCALE = 0.1


class Haq(SchemeAllocator):
    """The best scheme of all episodes of a DDPG agent.

    An episode goes through the layers; an action in [0, 1] is a layer's planes. At its end planes are taken away from
    the last layer to the first, again and again, until the budget is met, and the reward is 0.1 · (loss of the float
    network − loss of the scheme).
    """

    description = "an agent (DDPG) chooses planes layer by layer and is rewarded by the loss (HAQ, Wang et al. 2019)"
    data: ClassVar[str] = "labelled"
    Options: ClassVar[type[Options]] = HaqOptions
    requires: ClassVar[str] = "stable_baselines3"

    def scheme(self) -> Planes:
        """Return the scheme of the episode with the highest reward."""
        options = self.given.options
        assert isinstance(options, HaqOptions)
        trials = Trials(self, options.trial_rate)
        floats = sum(float(loss.detach()) * share for loss, share in self.losses(self.batches()))

        def reward(planes: Mapping[str, int]) -> float:
            loss = trials.loss(planes, options.haq_steps)
            return REWARD_SCALE * (floats - min(loss, floats + 100.0))

        layers = LayerByLayer(features(self.given.network), self.given.budget, reward)
        learn(layers, options.haq_episodes, self.given.config.seed, told=lambda number, best: self.given.progress.step(
            "episodes", number, options.haq_episodes, {"reward": best}))  # fmt: skip
        return {name: uniform(k) for name, k in layers.best.items()}


def features(network: Network) -> NDArray[np.float32]:
    """Return what the agent knows of each layer, [layers, 8], each column from 0 to 1.

    Columns: whether it is depthwise, channels in and out, stride, kernel, weights, places that it is computed at, and
    its index.
    """
    rows = [_features(weight, network.multiplications[weight.name]) for weight in network.weights]
    found = np.array([[*row, index] for index, row in enumerate(rows)], np.float64)
    low, high = found.min(0), found.max(0)
    scaled: NDArray[np.float32] = ((found - low) / np.where(high > low, high - low, 1)).astype(np.float32)
    return scaled


def _features(weight: Weight, multiplications: int) -> tuple[float, ...]:
    module, shape = weight.places[0][0], weight.shape
    groups = getattr(module, "groups", 1)
    stride = getattr(module, "stride", (1,))
    kernel = shape[2:].numel() ** (1 / len(shape[2:])) if len(shape) > 2 else 1
    return (
        float(groups > 1 and groups == shape[0]), shape[1] * groups, shape[0], float(stride[0]), kernel,
        weight.elements, multiplications / weight.elements,
    )  # fmt: skip


class LayerByLayer:
    """An episode: an action for each layer in turn, then the budget, then the reward.

    Args:
        layers: what is known of each layer [layers, n].
        budget: the limit, the layers in their order, and their bounds.
        reward: of a scheme.

    Attributes:
        best: the scheme of the highest reward so far.
        highest: that reward.
        episodes: how many are finished.
    """

    def __init__(
        self, layers: NDArray[np.float32], budget: Budget, reward: Callable[[Mapping[str, int]], float]
    ) -> None:
        self.layers, self.budget = layers, budget
        self.names = list(budget.elements)
        self.best: Mapping[str, int] = {name: len(planes) for name, planes in budget.uniform(1).items()}
        self.highest, self.episodes = -math.inf, 0
        self._reward = reward
        self._actions: list[float] = []

    def reset(self) -> NDArray[np.float32]:
        """Begin an episode; return the first layer's observation."""
        self._actions = []
        return self.observation()

    def observation(self) -> NDArray[np.float32]:
        """Return the features of the layer that is next, and the action before it (0.5 at first)."""
        index = min(len(self._actions), len(self.names) - 1)
        return np.append(self.layers[index], np.float32(self._actions[-1] if self._actions else 0.5))

    def step(self, action: float) -> tuple[NDArray[np.float32], float, bool]:
        """Take an action; return the next observation, the reward (0 before the end), and whether it is the end."""
        self._actions.append(min(max(action, 0.0), 1.0))
        if len(self._actions) < len(self.names):
            return self.observation(), 0.0, False
        planes = within(self._actions, self.budget)
        found = self._reward(planes)
        self.episodes += 1
        if found > self.highest:
            self.best, self.highest = planes, found
        return self.observation(), found, True


def within(actions: Sequence[float], budget: Budget) -> dict[str, int]:
    """Return the planes of actions in [0, 1], less one at a time from the last layer to the first until they fit."""
    planes = {}
    for name, action in zip(budget.elements, actions, strict=True):
        allowed = choices(budget, name)
        low, high = allowed.start, allowed.stop - 1
        planes[name] = min(max(round((high - low + 1) * action + low - 0.5), low), high)

    def cost() -> float:
        return sum(budget.layer_cost(name, uniform(k)) for name, k in planes.items())

    while cost() > budget.room:
        before = dict(planes)
        for name in reversed(planes):
            if planes[name] > choices(budget, name).start:
                planes[name] -= 1
                if cost() <= budget.room:
                    break
        if planes == before:  # every layer has its fewest
            break
    return planes


def learn(layers: LayerByLayer, episodes: int, seed: int, *, told: Callable[[int, float], None]) -> None:
    """Let an agent of stable-baselines3 (DDPG) go through episodes, with the published settings.

    Its actor and critic have one learning rate, and only the last step of an episode is rewarded; published are two
    rates, and the last reward for every step.
    """
    import gymnasium
    from stable_baselines3 import DDPG
    from stable_baselines3.common.callbacks import BaseCallback
    from stable_baselines3.common.noise import NormalActionNoise

    count = len(layers.names)
    size = layers.observation().shape

    class Environment(gymnasium.Env):  # type: ignore[misc]
        observation_space = gymnasium.spaces.Box(0.0, 1.0, size, np.float32)
        action_space = gymnasium.spaces.Box(0.0, 1.0, (1,), np.float32)

        def reset(self, *, seed: int | None = None, options: Any = None) -> tuple[Any, dict[str, Any]]:
            super().reset(seed=seed)
            return layers.reset(), {}

        def step(self, action: Any) -> tuple[Any, float, bool, bool, dict[str, Any]]:
            seen, reward, last = layers.step(float(action[0]))
            return seen, reward, last, False, {}

    noise = NormalActionNoise(np.zeros(1), np.full(1, NOISE))

    class Falling(BaseCallback):  # type: ignore[misc]
        def _on_step(self) -> bool:
            if layers.episodes > RANDOM_EPISODES:
                noise._sigma = np.full(1, NOISE * NOISE_FALLS ** (layers.episodes - RANDOM_EPISODES))
            if self.n_calls % count == 0:
                told(layers.episodes, layers.highest)
            return True

    agent = DDPG(
        "MlpPolicy", Environment(), learning_rate=RATE, buffer_size=EPISODES_KEPT * count, gamma=1.0, tau=SOFT_UPDATE,
        batch_size=BATCH, learning_starts=RANDOM_EPISODES * count, action_noise=noise, seed=seed, device="cpu",
        policy_kwargs={"net_arch": list(HIDDEN)},
    )  # fmt: skip
    agent.learn(episodes * count, callback=Falling())
