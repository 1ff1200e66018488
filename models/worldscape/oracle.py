"""What codec and memory alone would make of a generator that is always right: all that training one can gain."""

from __future__ import annotations

from torch import Tensor

from worldscape.engine import WorldEngine
from worldscape.slots import SlotState, View
from worldscape.transformer import PlacedHistory


class OracleEngine(WorldEngine):
    """A WorldEngine that is told, before it dreams, what its next frames are: their latents are the encoder's of the
    true frames. It decodes them with what memory shows of the view, remembers what it decoded, and so on, as in any
    dream."""

    _truth: Tensor
    _place: int = 0

    def tell(self, truth: Tensor) -> None:
        """Say what the next S frames show: RGB-D [B, S, 4, h, w] in [-1, 1], a row for each slot. It takes the place
        of what was told before."""
        if len(truth) != self.num_slots:
            raise ValueError(f"{len(truth)} episodes are told to {self.num_slots} slots; give one for each.")
        self._truth, self._place = truth.to(self.device), 0

    def denoise(self, state: SlotState, view: View, history: PlacedHistory) -> tuple[Tensor, PlacedHistory]:
        """As FrameMaker.denoise, and then the true frame's latent in place of what it found."""
        _, history = super().denoise(state, view, history)
        latent = self.codec.encode(self._truth[:, self._place]).float()
        self._place += 1
        return latent, history
