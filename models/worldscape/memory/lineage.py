"""How much of a view goes back to real frames, handed on from picture to picture, cell by cell."""

import torch
from torch import Tensor

from worldscape.conditioning.made_once import made_once
from worldscape.memory.pages import probe_places
from worldscape.memory.policy import CELLS

REAL_CELLS = CELLS**2 // 16  # cells of a view in which real frames must be seen for it to count as showing them


def inherited_real(numbers: Tensor, real: Tensor, rebuilt: Tensor) -> Tensor:
    """Share of each cell of a view that goes back to real frames, through the N pictures that it was rebuilt from.

    numbers long [B, N, M] (cell_numbers; CELLS ** 2 for pictures that do not count), real [B, N, M] what the probes
    themselves go back to, rebuilt [B, CELLS ** 2] the share of each cell that was -> [B, CELLS ** 2]. A cell is as real
    as the first picture that shows it; rebuilt cells in which no probe lies are as real as the others on average.
    """
    none = real.new_zeros(2, *numbers.shape[:2], CELLS**2 + 1)
    both = none.scatter_add_(3, numbers.expand(2, -1, -1, -1), torch.stack([torch.ones_like(real), real]))
    count, total = both[..., :-1].unbind(0)
    mean, is_in = total / count.clamp_min(1.0), count > 0
    first = is_in.view(torch.uint8).argmax(1, keepdim=True)
    share, is_shown = mean.gather(1, first)[:, 0], is_in.any(1)
    average = share.sum(1, keepdim=True) / is_shown.sum(1, keepdim=True).clamp_min(1)
    return rebuilt * torch.where(is_shown, share, average)


@made_once
def probe_cells(size: int, device: torch.device) -> Tensor:
    """The cell of its own picture, of `size` pixels a side, that each probe lies in: long [M]."""
    along = torch.arange(size, device=device)[probe_places(size)] * CELLS // size
    return (along[:, None] * CELLS + along).flatten()
