"""Configs of the world model and their named presets; saved beside the weights, checked when read back.

Presets differ in numbers only: `debug` for tests, `nano` for two CPU cores, `small` for one GPU.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass, field, fields, replace
from typing import Any

from worldscape.conditioning.controls import ControlScale
from worldscape.conditioning.hands import HandScale
from worldscape.conditioning.sharpen import SharpenConfig

POLICIES = ("maco", "sink+local", "local", "full")


def _require(is_fine: bool, what: str, rule: str) -> None:
    if not is_fine:
        raise ValueError(f"{what} is not allowed: {rule}.")


@dataclass(frozen=True, kw_only=True, slots=True)
class CodecConfig:
    """Frames RGB + inverse depth (size x size) <-> latents (grid x grid tokens, latent_channels each).

    widths: channels of the stages, from half resolution down to the token grid. hand_width: channels of the first layer
    that shows the decoder the pose video; 0 in weights whose decoder is not shown hands. hand_decoder: whether worlds
    with hands have a decoder of their own, so that what is learned about hands changes nothing for walkers.
    """

    size: int = 64
    widths: tuple[int, ...] = (64, 96, 160, 256)
    latent_channels: int = 32
    hand_width: int = 0
    hand_decoder: bool = False

    def __post_init__(self) -> None:
        is_shown = self.hand_width > 0 or not self.hand_decoder
        _require(is_shown, "hand_decoder", "a decoder for hands has to be shown them: give hand_width")
        _require(len(self.widths) >= 2, f"widths {self.widths}", "a codec has at least two stages")
        _require(min(self.widths) >= 8, f"widths {self.widths}", "a stage has at least 8 channels")
        _require(self.latent_channels >= 1, f"latent_channels {self.latent_channels}", "it must be at least 1")
        _require(self.hand_width >= 0, f"hand_width {self.hand_width}", "it must be at least 0")
        is_divisible = self.size > 0 and self.size % (1 << len(self.widths)) == 0
        _require(is_divisible, f"size {self.size}", f"it must be a positive multiple of {1 << len(self.widths)}")

    @property
    def grid(self) -> int:
        """Tokens along one side of the picture."""
        return self.size >> len(self.widths)

    @property
    def num_tokens(self) -> int:
        """Tokens of one frame, P."""
        return self.grid**2


@dataclass(frozen=True, kw_only=True, slots=True)
class TransformerConfig:
    """The generator: a Wan-style transformer over the tokens of a few frames.

    anchor: whether memory reprojected into the new view is an input (else Pluecker rays and history alone).
    hands: whether a pose video of hands is an input; False in weights from before there were any.
    is_causal: a frame sees itself and earlier ones; without it, a teacher, all frames of a clip see each other.
    """

    width: int = 256
    num_layers: int = 6
    num_heads: int = 8
    mlp_width: int = 1024
    anchor: bool = True
    hands: bool = False
    is_causal: bool = True
    attention: str = "sdpa"
    rope_base: float = 100.0

    def __post_init__(self) -> None:
        for name in ("width", "num_layers", "num_heads", "mlp_width"):
            _require(getattr(self, name) >= 1, f"{name} {getattr(self, name)}", "it must be at least 1")
        is_split = self.width % self.num_heads == 0 and (self.width // self.num_heads) % 2 == 0
        _require(is_split, f"width {self.width} with {self.num_heads} heads", "each head needs an even share of it")
        allowed = ("reference", "sdpa")
        _require(self.attention in allowed, f"attention {self.attention!r}", f"choose one of {', '.join(allowed)}")

    @property
    def head_width(self) -> int:
        """Width of one attention head, K."""
        return self.width // self.num_heads


@dataclass(frozen=True, kw_only=True, slots=True)
class MemoryConfig:
    """What a slot remembers, one page a frame, in three levels: the first num_sink frames for good (sink), frames
    chosen from all of its past (pool), the last local_window frames (local). num_keyframes: sink and pool together.

    policy: `maco` chooses the pool; `full` puts every frame into it, the oldest leaving when it overflows (size it for
    the whole dream); `sink+local` has no pool; `local` has neither pool nor sink. num_anchors pages are reprojected
    into each new view; keys and values of num_retrieved pool pages join the generator's history. A frame enters the
    pool when memory explains less than `novelty` of it: of a covered pixel, 1 minus residual_weight times what its
    colour and depth still cost (memory/policy.py).
    """

    policy: str = "maco"
    num_sink: int = 1
    local_window: int = 6
    num_keyframes: int = 32
    num_anchors: int = 4
    num_retrieved: int = 0
    novelty: float = 0.97
    residual_weight: float = 0.0

    def __post_init__(self) -> None:
        _require(self.policy in POLICIES, f"policy {self.policy!r}", f"choose one of {', '.join(POLICIES)}")
        for name in ("num_sink", "local_window", "num_anchors"):
            _require(getattr(self, name) >= 1, f"{name} {getattr(self, name)}", "it must be at least 1")
        least = max(self.num_anchors, self.num_sink + self.num_retrieved)
        rule = f"num_anchors ({self.num_anchors}) or num_sink + num_retrieved ({self.num_sink} + {self.num_retrieved})"
        _require(
            self.num_keyframes >= least, f"num_keyframes {self.num_keyframes}", f"it must not be smaller than {rule}"
        )
        _require(self.num_retrieved >= 0, f"num_retrieved {self.num_retrieved}", "it must be at least 0")
        _require(0 < self.novelty <= 1, f"novelty {self.novelty}", "it is a share of the pixels in (0, 1]")
        _require(0 <= self.residual_weight <= 1, f"residual_weight {self.residual_weight}", "it lies in [0, 1]")

    @property
    def num_context(self) -> int:
        """Frames of history that the generator reads at most."""
        return self.num_sink + self.num_retrieved + self.local_window

    @property
    def num_refined(self) -> int:
        """New frames that a bidirectional teacher refines at once: half of a clip, one more than the local window."""
        return self.local_window // 2 + 1


@dataclass(frozen=True, kw_only=True, slots=True)
class HeadsConfig:
    """The small networks that say what the world lets happen, of motion, reward and termination: their width.

    blocked_logit: the motion head refuses a walk at or below this. goal: there is a head that finds a walker's goal in
    the picture. object: there is one that moves a hand's object along, of a model that knows hands.
    """

    width: int = 128
    blocked_logit: float = 0.0
    goal: bool = False
    object: bool = False

    def __post_init__(self) -> None:
        _require(self.width >= 4, f"heads width {self.width}", "it must be at least 4")


@dataclass(frozen=True, kw_only=True, slots=True)
class BodyConfig:
    """The walker's body, metres: remembered surfaces nearer than `radius` stop it. What lies between `above` the camera
    and `below` it can be in its way (what is higher is walked under, what is lower is floor).
    """

    radius: float = 0.4
    above: float = 0.3
    below: float = 1.2

    def __post_init__(self) -> None:
        _require(self.radius >= 0, f"body radius {self.radius}", "metres, 0 or more")
        _require(self.above + self.below > 0, f"body from {self.above} above to {self.below} below", "it has a height")


@dataclass(frozen=True, kw_only=True, slots=True)
class WorldConfig:
    """All that defines a world model but its weights.

    steps_per_frame: denoising model calls a frame by default. context_level: noise level at which finished frames are
    committed to history. field_of_view: degrees, assumed for pictures that come without intrinsics.
    """

    preset: str = "nano"
    codec: CodecConfig = field(default_factory=CodecConfig)
    transformer: TransformerConfig = field(default_factory=TransformerConfig)
    memory: MemoryConfig = field(default_factory=MemoryConfig)
    heads: HeadsConfig = field(default_factory=HeadsConfig)
    controls: ControlScale = field(default_factory=ControlScale)
    hands: HandScale = field(default_factory=HandScale)
    body: BodyConfig = field(default_factory=BodyConfig)
    sharpen: SharpenConfig = field(default_factory=SharpenConfig)
    steps_per_frame: int = 2
    context_level: float = 0.0
    field_of_view: float = 80.0

    def __post_init__(self) -> None:
        _require(self.steps_per_frame >= 1, f"steps_per_frame {self.steps_per_frame}", "it must be at least 1")
        _require(0 <= self.context_level < 1, f"context_level {self.context_level}", "it lies in [0, 1)")
        _require(0 < self.field_of_view < 180, f"field_of_view {self.field_of_view}", "degrees between 0 and 180")

    def to_dict(self) -> dict[str, Any]:
        """Plain JSON types."""
        return _plain(asdict(self))

    @classmethod
    def from_dict(cls, values: Mapping[str, Any]) -> WorldConfig:
        """The inverse of to_dict. Raises ValueError for unknown keys and values that are not allowed."""
        return _build(cls, values, "config")


def preset(name: str) -> WorldConfig:
    """The named preset. Raises ValueError for an unknown name."""
    if name not in PRESETS:
        raise ValueError(f"unknown preset {name!r}: choose one of {', '.join(PRESETS)}.")
    return PRESETS[name]


PRESETS: dict[str, WorldConfig] = {
    "debug": WorldConfig(
        preset="debug",
        codec=CodecConfig(widths=(8, 8, 12, 16), latent_channels=8, hand_width=4),
        transformer=TransformerConfig(width=24, num_layers=2, num_heads=2, mlp_width=48, hands=True),
        memory=MemoryConfig(local_window=3, num_keyframes=6, num_anchors=2),
        heads=HeadsConfig(width=16, goal=True, object=True),
        sharpen=SharpenConfig(dreamed=0.7, real=0.2),
        steps_per_frame=1,
    ),
    "nano": WorldConfig(
        preset="nano",
        codec=CodecConfig(latent_channels=64, hand_width=32),
        transformer=TransformerConfig(hands=True),
        memory=MemoryConfig(num_retrieved=2),
        heads=HeadsConfig(goal=True, object=True),
        sharpen=SharpenConfig(dreamed=0.7, real=0.2),
        steps_per_frame=1,
    ),
    "small": WorldConfig(
        preset="small",
        codec=CodecConfig(size=128, widths=(64, 96, 160, 256), latent_channels=32, hand_width=32),
        transformer=TransformerConfig(width=384, num_layers=10, num_heads=12, mlp_width=1536, hands=True),
        memory=MemoryConfig(num_retrieved=2),
        heads=HeadsConfig(width=256, goal=True, object=True),
    ),
}


def _plain(value: Any) -> Any:
    if isinstance(value, dict):
        return {key: _plain(item) for key, item in value.items()}
    return list(value) if isinstance(value, tuple) else value


def _build(kind: Any, values: Mapping[str, Any], where: str) -> Any:
    """A config dataclass from plain values; nested configs by the type of their defaults."""
    if not isinstance(values, Mapping):
        raise ValueError(f"{where} is {values!r}; it must be a table of settings.")
    known = {item.name: item for item in fields(kind)}
    unknown = sorted(set(values) - set(known))
    if unknown:
        raise ValueError(f"{where} has unknown keys {unknown}; known are {sorted(known)}.")
    default = kind()
    changes = {name: _read(getattr(default, name), value, f"{where}.{name}") for name, value in values.items()}
    return replace(default, **changes)


def _read(default: Any, value: Any, where: str) -> Any:
    if hasattr(default, "__dataclass_fields__"):
        return _build(type(default), value, where)
    if isinstance(default, tuple) and isinstance(value, (list, tuple)):
        return tuple(value)
    if isinstance(default, float) and isinstance(value, int) and not isinstance(value, bool):
        return float(value)
    if type(default) is not type(value):
        raise ValueError(f"{where} is {value!r}; it must be of type {type(default).__name__}.")
    return value
