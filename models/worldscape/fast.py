"""Inference-only rewrite of a finished generator: the same numbers to rounding, with far fewer operations.

At 16 tokens a frame the time goes into launching operations and reading weights, not into arithmetic. So what depends
on the noise level alone is tabulated, weights lie as matrix products read them, and history leaves room for a frame.
In bf16 the matrix products take half the time; sums and norms stay float32, and so do attention and the keys in memory
but for GPUs, whose fast kernels for attention read half precision.
"""

from collections.abc import Sequence
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from worldscape.fast_linear import AnyLinear, Packer
from worldscape.nn.attention import attend
from worldscape.nn.blocks import Block, KeysValues
from worldscape.nn.rope import space_angles, split_pairs, time_angles
from worldscape.steady import sigmoid
from worldscape.transformer import (
    EmbeddedView,
    History,
    Levels,
    PlacedHistory,
    Prediction,
    WorldTransformer,
    level_features,
    no_hands_known,
    pack_hands,
    pack_rays,
    shows_hand,
)


class Layer(NamedTuple):
    """One block's maps; q and k have rotary partners side by side, norm [2, D] belongs to them."""

    qkv: AnyLinear
    norm: Tensor
    out: AnyLinear
    widen: AnyLinear
    narrow: AnyLinear


class Modulation(NamedTuple):
    """What a block's two halves do at one noise level: each [D], or [T, 1, D] for T frames each at its own."""

    scale1: Tensor
    shift1: Tensor
    gate1: Tensor
    scale2: Tensor
    shift2: Tensor
    gate2: Tensor


class Level(NamedTuple):
    """All that depends on the noise level: a modulation for each block, and scale and shift of the last layer."""

    blocks: list[Modulation]
    scale: Tensor
    shift: Tensor


class FastTransformer:
    """The calls that engines make of a WorldTransformer, for one new frame of each slot or a few, without gradients.

    Its keys pair neighbouring channels, so what it commits can be read by a FastTransformer only.

    Args:
        plain: the finished generator; later changes of its weights are not seen.
        levels: the noise levels that `refine` will be asked for; a tuple for frames each at its own. More: `prepare`.
        dtype: of weights and of what they are multiplied with.
        keys_dtype: of keys and values, as memory keeps them and attention reads them; None: dtype on a GPU, float32
            elsewhere.
    """

    @torch.no_grad()
    def __init__(
        self,
        plain: WorldTransformer,
        levels: Sequence[Levels],
        dtype: torch.dtype = torch.float32,
        keys_dtype: torch.dtype | None = None,
    ):
        packer = Packer(dtype)
        self.config, self.grid = plain.config, plain.grid
        order = pair_neighbours(self.config.head_width, self.config.num_heads)
        device = plain.final_modulation.device
        self.keys_dtype = keys_dtype or (dtype if device.type == "cuda" else torch.float32)
        self.layers = [fuse(block, order, packer) for block in plain.blocks if isinstance(block, Block)]
        self.levels: dict[Levels, Level] = {}
        self.prepare(plain, levels)
        first, _, second = plain.embed_rays
        assert isinstance(second, nn.Linear)
        self.embed_rays = packer.of(first), packer.of(second)
        self.embed_anchor, self.embed_latent = packer.of(plain.embed_anchor), packer.of(plain.embed_latent)
        self.embed_hands, self.no_hand = None, torch.zeros_like(second.bias)
        if self.config.hands:
            widen, _, narrow = plain.embed_hands
            self.embed_hands, self.no_hand = (packer.of(widen), packer.of(narrow)), plain.no_hand.detach().clone()
        self.embed_rays_alone = packer.pack(second.weight, second.bias + self.no_hand)
        self.to_latent = packer.of(plain.to_latent)
        self.space = turns(space_angles(self.grid, self.config.head_width, self.config.rope_base, device))

    @torch.no_grad()
    def prepare(self, plain: WorldTransformer, levels: Sequence[Levels]) -> None:
        """Tabulate noise levels that were not asked for before; `plain` has the weights it had when this was made."""
        blocks = [block for block in plain.blocks if isinstance(block, Block)]
        for level in levels:
            if level not in self.levels:
                self.levels[level] = tabulate(plain, blocks, level)

    def embed_view(self, rays: Tensor, anchor: Tensor, coverage: Tensor, hands: Tensor | None = None) -> EmbeddedView:
        """As WorldTransformer.embed_view."""
        first, second = self.embed_rays
        inner = first.then_silu(pack_rays(rays, self.grid).flatten(0, 2))
        tokens = (self.embed_rays_alone(inner) if hands is None else second(inner)).float()
        if self.config.anchor:
            tokens = tokens + self.embed_anchor(torch.cat([anchor, coverage[..., None]], -1).flatten(0, 2))
        view = EmbeddedView(tokens.unflatten(0, anchor.shape[:3]), anchor)
        return view if hands is None else self._with_hands(view, hands)

    def _with_hands(self, view: EmbeddedView, hands: Tensor) -> EmbeddedView:
        if self.embed_hands is None:
            raise no_hands_known()
        present, (widen, narrow) = shows_hand(hands), self.embed_hands
        drawn = narrow(widen.then_silu(pack_hands(hands, self.grid).flatten(0, 2))).float()
        tokens = view.tokens + torch.where(present[..., None, None], 0.0, self.no_hand)
        return EmbeddedView(tokens, view.anchor, drawn.view_as(tokens), present)

    def room(self, present: Tensor | None, num_new: int = 1) -> int:
        """Frames' places behind history that `place` wants for num_new new frames; present: EmbeddedView's."""
        return num_new * (1 if present is None else 2)

    def place(self, history: History, present: Tensor | None = None, sees: Tensor | None = None) -> PlacedHistory:
        """Rotate stored keys to their relative times, and leave room for T new frames behind them: once a step.

        sees: which of the new frames sees which, bool [B, T, T] (None: there is one). present: the new frames'
        EmbeddedView.present; with it there is room for the pose video's tokens too, N = 2 * P a frame instead of P.
        Keys and values are [L, B, S * P + T * N, H, K], `valid` is a mask that broadcasts to
        [B, 1, T * N, S * P + T * N]. History that was read with that room is written into, any other is copied.
        """
        past = history.positions.shape[1]
        frames = past + self.room(present, 1 if sees is None else sees.shape[1])
        keys, values = (self._roomy(part, frames) for part in (history.keys, history.values))
        config = self.config
        angles = time_angles(history.positions, config.head_width, config.rope_base)
        turn = turns(angles[..., : split_pairs(config.head_width)[0]])  # the other pairs tell rows and columns
        timely = keys[:, :, :past, ..., : 2 * turn.shape[-1]]
        if timely.dtype == torch.float32:
            as_complex(timely).mul_(turn)
        else:
            timely.copy_(turned(timely.float(), turn))
        return PlacedHistory(keys.flatten(2, 3), values.flatten(2, 3), self._mask(see(history.valid, sees, present)))

    def _roomy(self, stored: Tensor, frames: int) -> Tensor:
        """Keys or values [L, B, S, P, H, K] in places of so many frames: themselves, where they have the room."""
        if stored.shape[2] == frames and stored.dtype == self.keys_dtype:
            return stored
        layers, slots, past, *token = stored.shape
        places = stored.new_empty((layers, slots, frames, *token), dtype=self.keys_dtype)
        places[:, :, :past] = stored
        return places

    def refine(
        self, latent: Tensor, level: Levels, view: EmbeddedView, positions: Tensor, history: PlacedHistory
    ) -> Prediction:
        """As WorldTransformer.refine, for T new frames: latent [B, T, P, C], positions [B, T], a level of `levels`.

        What an earlier call made of the pose video lies where that call has put it, behind the new frame.
        """
        known, (slots, times, tokens, _) = self.levels[level], latent.shape
        time = turns(time_angles(positions, self.config.head_width, self.config.rope_base))
        turn = self.space * time
        x = self.embed_latent(latent.flatten(0, 2)) + view.tokens.flatten(0, 2)
        kinds = 1 if view.hands is None or history.hands is not None else 2
        if view.hands is not None and kinds == 2:
            turn = torch.cat([turn, turn], 2)
            x = torch.cat([x.view(*latent.shape[:3], -1), view.hands], 2).flatten(0, 2)
        turn, num_new = turn.flatten(1, 2)[:, :, None], times * kinds * tokens
        past = history.keys.shape[2] - times * tokens * (1 if view.hands is None else 2)
        new_keys, new_values = (every[:, :, past : past + num_new] for every in (history.keys, history.values))
        places = zip(history.keys, history.values, new_keys, new_values, strict=True)
        # Nobody asks what the last block makes of the pose video.
        asked = tokens if times == 1 else num_new
        for layer, modulation, place in zip(self.layers, known.blocks, places, strict=True):
            is_last = layer is self.layers[-1]
            x = self._block(layer, modulation, x, turn, place, history.valid, asked if is_last else num_new)
        both = KeysValues(*(y.unflatten(2, (times * kinds, -1)) for y in (new_keys, new_values)))
        new_keys, new_values = (y[:, :, ::kinds] for y in both)
        hands = KeysValues(*(y[:, :, 1:] for y in both)) if kinds == 2 and times == 1 else None
        if kinds == 2 and times > 1:
            x = x.view(slots, times, kinds * tokens, -1)[:, :, :tokens].flatten(0, 2)
        stored = turned(new_keys.float(), time.conj())
        layers = [KeysValues(k, v) for k, v in zip(stored, new_values.float(), strict=True)]
        clean = self._read_clean(x, known, view.anchor.flatten(0, 2), slots).view_as(latent)
        return Prediction(clean, x.view(slots, times, tokens, -1), layers, hands)

    def _block(
        self, layer: Layer, level: Modulation, x: Tensor, turn: Tensor, place, mask: Tensor, asked: int
    ) -> Tensor:
        """x [B * N, D] of N tokens a slot -> [B * asked, D], the first ones; turn [B, N, 1, 1, K / 2]; place: all keys
        and values, and the new frames' part of each."""
        keys, values, new_keys, new_values = place
        slots, tokens, heads, width = new_keys.shape
        inner = modulated(x, level.scale1, level.shift1, slots)
        qkv = layer.qkv(inner).view(slots, tokens, 3, heads * width)
        qk = F.rms_norm(qkv[:, :, :2].float(), (heads * width,), None, 1e-6) * layer.norm
        rotated = turned(qk.unflatten(-1, (heads, width)), turn)
        new_keys.copy_(rotated[:, :, 1])
        new_values.copy_(qkv[:, :, 2].unflatten(-1, (heads, width)))
        q, k, v = (y.transpose(1, 2) for y in (rotated[:, :asked, 0].to(keys.dtype), keys, values))
        x = x if asked == tokens else x.view(slots, tokens, -1)[:, :asked].flatten(0, 1)
        mixed = attend(q, k, v, mask, self.config.attention).transpose(1, 2).reshape(x.shape)
        x = gated(x, level.gate1, layer.out(mixed), slots)
        inner = modulated(x, level.scale2, level.shift2, slots)
        return gated(x, level.gate2, layer.narrow(layer.widen.then_gelu(inner)), slots)

    def _read_clean(self, x: Tensor, level: Level, anchor: Tensor, slots: int) -> Tensor:
        last = self.to_latent(modulated(x, level.scale, level.shift, slots)).float()
        change, trust = last.split([anchor.shape[-1], 1], -1)
        return torch.addcmul(change, sigmoid(trust + 1.0), anchor) if self.config.anchor else change

    def _mask(self, valid: Tensor) -> Tensor:
        """Which groups of P tokens the new ones see (`see`) -> the same of tokens, as attention reads it."""
        seen = valid.repeat_interleave(self.grid**2, 2)[:, None]
        if valid.shape[1] > 1:
            seen = seen.repeat_interleave(self.grid**2, 2)
        if self.config.attention == "reference":
            return seen
        return torch.zeros_like(seen, dtype=self.keys_dtype).masked_fill(~seen, -torch.inf)


def fuse(block: Block, order: Tensor, packer: Packer) -> Layer:
    """A block's maps as FastTransformer reads them."""
    widen, _, narrow = block.mlp
    qkv = packer.pack(reorder_qkv(block.qkv.weight, order), reorder_qkv(block.qkv.bias, order))
    norm = torch.stack([block.norm_q.weight[order], block.norm_k.weight[order]]).detach()
    return Layer(qkv, norm, packer.of(block.out), packer.of(widen), packer.of(narrow))


def tabulate(plain: WorldTransformer, blocks: Sequence[Block], level: Levels) -> Level:
    """All that depends on the noise level: of one level each [D], of T levels [T, 1, D]."""
    at = plain.final_modulation.new_tensor(level)
    embedded = plain.embed_level(level_features(at, plain.config.width))
    shared = plain.level_modulation(embedded).unflatten(-1, (6, plain.config.width))
    embedded, shared = (embedded, shared) if at.ndim == 0 else (embedded[:, None, None], shared[:, None])
    modulations = []
    for block in blocks:
        shift1, scale1, gate1, shift2, scale2, gate2 = (shared + block.modulation).unbind(-2)
        modulations.append(Modulation(1 + scale1, shift1, gate1, 1 + scale2, shift2, gate2))
    shift, scale = (embedded + plain.final_modulation).unbind(-2)
    return Level(modulations, 1 + scale, shift)


def modulated(x: Tensor, scale: Tensor, shift: Tensor, slots: int) -> Tensor:
    """x [B * T * N, D] of B slots normalised, then scaled and shifted: by [D], or frame by frame by [T, 1, D]."""
    if scale.ndim == 1:
        return F.layer_norm(x, x.shape[1:], scale, shift, 1e-6)
    frames = F.layer_norm(x, x.shape[1:], eps=1e-6).view(slots, len(scale), -1, x.shape[1])
    return torch.addcmul(shift, frames, scale).view_as(x)


def gated(x: Tensor, gate: Tensor, update: Tensor, slots: int) -> Tensor:
    """x + gate * update, both [B * T * N, D] of B slots, with a gate [D] or [T, 1, D]."""
    if gate.ndim == 1:
        return torch.addcmul(x, gate, update)
    frames = (part.view(slots, len(gate), -1, x.shape[1]) for part in (x, update.float()))
    return torch.addcmul(next(frames), gate, next(frames)).view_as(x)


def see(valid: Tensor, sees: Tensor | None, present: Tensor | None) -> Tensor:
    """Which groups of P tokens new ones see: bool [B, T * kinds, S + T * kinds]; of one new frame [B, 1, S + kinds].

    valid bool [B, S] or [B, T, S] of history; sees bool [B, T, T]; present bool [B, T] of hands, or None.
    """
    if sees is None:
        seen = F.pad(valid, (0, 1), value=True)
        return (seen if present is None else torch.cat([seen, present], 1))[:, None]
    times = sees.shape[1]
    past, kinds = (valid if valid.ndim == 3 else valid[:, None].expand(-1, times, -1)), sees[..., None]
    if present is not None:
        kinds = torch.cat([kinds, torch.diag_embed(present)[..., None]], -1)
    seen = torch.cat([past, kinds.flatten(2)], 2)
    return seen if present is None else seen.repeat_interleave(2, 1)


def pair_neighbours(head_width: int, num_heads: int) -> Tensor:
    """Channel order [H * K] that puts channel i beside its rotary partner i + K / 2, head by head."""
    head = torch.arange(head_width).reshape(2, -1).T.flatten()
    return (torch.arange(num_heads)[:, None] * head_width + head).flatten()


def reorder_qkv(parameter: Tensor, order: Tensor) -> Tensor:
    """Reorder the outputs of q and k in a joint qkv weight [3 D, D] or bias [3 D]; v stays."""
    q, k, v = parameter.detach().chunk(3, 0)
    return torch.cat([q[order], k[order], v])


def as_complex(x: Tensor) -> Tensor:
    """Neighbouring channels [..., 2 n] as complex numbers [..., n] that share their memory."""
    return torch.view_as_complex(x.unflatten(-1, (-1, 2)))


def turned(x: Tensor, turn: Tensor) -> Tensor:
    """Neighbouring channels [..., 2 n] turned by unit complex numbers that broadcast to [..., n]."""
    return torch.view_as_real(as_complex(x) * turn).flatten(-2)


def turns(angles: Tensor) -> Tensor:
    """Angles in radians -> unit complex numbers."""
    return torch.polar(torch.ones_like(angles), angles)
