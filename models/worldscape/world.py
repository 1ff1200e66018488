"""The world model as one module: codec, generator, heads, and the config they were built from."""

import torch
from torch import nn

from worldscape.codec import Codec
from worldscape.config import WorldConfig, preset
from worldscape.heads import Heads
from worldscape.splats.aggregator import Aggregator
from worldscape.transformer import WorldTransformer

DEBUG_SEED = 20261122


class WorldModel(nn.Module):
    """Codec (frames <-> latents), transformer (the generator) and heads (motion, reward, termination).

    `aggregator` is there while training on space only: it reads the generator's features and takes no part in a dream.
    """

    def __init__(self, config: WorldConfig):
        super().__init__()
        self.config = config
        self.codec = Codec(config.codec)
        self.transformer = WorldTransformer(config.transformer, config.codec, config.memory)
        width, channels = config.transformer.width, config.codec.latent_channels
        self.heads = Heads(config.heads, width, channels, hands=config.transformer.hands)
        self.aggregator: Aggregator | None = None


def debug_world() -> WorldModel:
    """The `debug` preset with reproducible random weights; leaves the global random state as it was.

    What training starts at zero is random too, so that a dream depends on everything it should.
    """
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(DEBUG_SEED)
        model = WorldModel(preset("debug")).eval().requires_grad_(False)
        for parameter in model.parameters():
            if not parameter.any():
                torch.nn.init.normal_(parameter, std=0.1)
    return model
