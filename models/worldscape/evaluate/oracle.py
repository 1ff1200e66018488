"""What codec and memory alone would make of a generator that is always right: all that training one can gain."""

from __future__ import annotations

import torch
from torch import Tensor

from worldscape.codec import frame_to_rgbd
from worldscape.conditioning.reproject import encode_depth
from worldscape.engine import WorldEngine
from worldscape.evaluate.episodes import EpisodeBatch
from worldscape.slots import SlotState, View
from worldscape.transformer import PlacedHistory


class OracleEngine(WorldEngine):
    """A WorldEngine that is told, before it dreams, what its next frames are: their latents are the encoder's of the
    true frames. It decodes them with what memory shows of the view, remembers what it decoded, and so on, as in any
    dream."""

    _truth: Tensor  # RGB-D [B, S, 4, h, w] of the frames to come
    _place: int = 0

    def tell(self, episodes: EpisodeBatch, context: int) -> None:
        """Say what the steps after the first `context` frames show, in as many episodes as there are slots."""
        frames, depth = (torch.from_numpy(part[:, context:]) for part in (episodes.frames, episodes.depth))
        if len(frames) != self.num_slots:
            raise ValueError(f"{len(frames)} episodes are told to {self.num_slots} slots; give one for each.")
        rgbd = frame_to_rgbd(frames.flatten(0, 1), encode_depth(depth.float()).flatten(0, 1))
        self._truth, self._place = rgbd.unflatten(0, frames.shape[:2]).to(self.device), 0

    def denoise(self, state: SlotState, view: View, history: PlacedHistory) -> tuple[Tensor, PlacedHistory]:
        """As FrameMaker.denoise, and then the true frame's latent in place of what it found."""
        _, history = super().denoise(state, view, history)
        latent = self.codec.encode(self._truth[:, self._place]).float()
        self._place += 1
        return latent, history
