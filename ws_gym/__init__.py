"""WorldScape's Gymnasium face: importing it registers the environment ids and does not import torch.

`WorldScape-Nav-v0` walks through a learned world, `WorldScape-Hand-v0` moves hands in one, `WorldScape-Universal-v0`
does both; `WorldScape-Rooms-v0` and `WorldScape-Tabletop-v0` are the simulators that they are learned from.
"""

import os

import gymnasium as gym

__version__ = "0.1.0"

IMPORTED_IN = os.getpid()
"""The process of the first import: worlds made in another one were made after a fork."""


def _register(env_id: str, entry_point: str, **settings: object) -> None:
    if env_id not in gym.registry:
        gym.register(id=env_id, entry_point=entry_point, **settings)  # pyright: ignore[reportArgumentType]


_register(
    "WorldScape-Nav-v0",
    "ws_gym.env:WorldScapeEnv",
    vector_entry_point="ws_gym.vector_env:WorldScapeVectorEnv",
    max_episode_steps=300,
)
for _name, _steps in (("Hand", 150), ("Universal", 300)):
    _register(
        f"WorldScape-{_name}-v0",
        f"ws_gym.hand_env:WorldScape{_name}Env",
        vector_entry_point=f"ws_gym.hand_env:WorldScape{_name}VectorEnv",
        max_episode_steps=_steps,
    )
_register("WorldScape-Rooms-v0", "worldscape.data.rooms:RoomsEnv", max_episode_steps=300)
_register("WorldScape-Tabletop-v0", "worldscape.data.tabletop:TabletopEnv", max_episode_steps=150)
