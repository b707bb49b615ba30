"""The buffers that native kernels keep between calls (csrc/scratch.h): how many bytes they will take.

Every thread has three: one that it works in alone, one of activations that it shares with the team it leads, and one of weights
woven with their columns, for itself or for the team. Each grows to the need of the largest layer and stays.
"""

from __future__ import annotations

from dataclasses import dataclass

from openwork.kernels import native
from openwork.kernels.index import TILE_WIDTH, part_count
from openwork.kernels.planes import BAND_BYTES

HUGE_PAGE = 1 << 21
"""The unit of large buffers."""

SMALL_UNIT = 1 << 16
"""The unit of small ones, of less than a quarter of a large page."""

TILES_AT_ONCE = 8
"""Tiles of a batch that a backward kernel packs at a time (csrc/kernels/linear_gradients.cpp)."""

MOST_OWN_WORDS = 1 << 20
"""Words of woven weights that the threads of a team hold for themselves, in all (csrc/layer.h)."""

BANDS_AT_ONCE = 4
"""Bands of images that are packed at a time for the gradient of a convolution (csrc/kernels/conv_weight_gradient.cpp)."""

PART_PADDING = 16
"""Words behind each part of a weight stream (csrc/runs.h)."""


@dataclass(frozen=True)
class Scratch:
    """Bytes asked for each of the buffers: `own` and `own_weights` by every thread, the others by the one that leads."""

    own: int = 0
    shared: int = 0
    weights: int = 0
    own_weights: int = 0

    def __or__(self, other: Scratch) -> Scratch:
        """What serves both."""
        return Scratch(
            max(self.own, other.own),
            max(self.shared, other.shared),
            max(self.weights, other.weights),
            max(self.own_weights, other.own_weights),
        )

    def held(self, threads: int) -> int:
        """Bytes that a team of so many threads holds."""
        led = whole_pages(self.shared) + whole_pages(max(self.weights, self.own_weights))
        return threads * whole_pages(self.own) + led + (threads - 1) * whole_pages(self.own_weights)


def whole_pages(asked: int) -> int:
    """Bytes that a buffer has when at least so many were asked for."""
    unit = HUGE_PAGE if 4 * asked >= HUGE_PAGE else SMALL_UNIT
    return -(-asked // unit) * unit


def linear_scratch(
    outputs: int, inputs: int, kept: int, batch: int, threads: int, *, chained: bool = False
) -> Scratch:
    """What forward and backward of a sparse linear layer ask for.

    Args:
        chained: activations come and go as tiles, so that only gradients are packed, behind a relu or where they arrive.
    """
    if not native.enabled():
        return Scratch()
    tile, parts = 4 * TILE_WIDTH, part_count(kept)
    tiles = -(-batch // TILE_WIDTH)
    weights = 8 * (kept + PART_PADDING * parts)
    backward = min(tiles, TILES_AT_ONCE) * tile * (outputs if chained else 2 * inputs + outputs)
    forward = 0 if chained else tile * (inputs + 1 + outputs)
    # As in csrc/layer.h: few tiles are shared by the team row by row, and each thread weaves its own rows; otherwise each thread
    # takes whole tiles, and weaves all weights for itself unless they are many.
    many = kept * threads > MOST_OWN_WORDS
    fixed = parts >= threads and (tiles < threads or (many and tiles <= TILES_AT_ONCE))
    alone = 0 if fixed else tiles - tiles % threads
    activations = Scratch(forward if alone else 0, max(backward, (tiles - alone) * forward))
    return activations | (Scratch(weights=weights) if fixed or many else Scratch(own_weights=weights))


def conv_scratch(kept: int) -> Scratch:
    """What forward and backward of a sparse convolution ask for, about: bands of images are made to take BAND_BYTES."""
    if not native.enabled():
        return Scratch()
    return Scratch(BAND_BYTES, BANDS_AT_ONCE * BAND_BYTES, 8 * (kept + PART_PADDING * part_count(kept)))
