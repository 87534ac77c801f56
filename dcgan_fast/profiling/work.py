"""What a layer must compute and move at least."""

from __future__ import annotations

import math
from dataclasses import dataclass

__all__ = ["FORWARD", "INPUT_GRAD", "WEIGHT_GRAD", "Work"]

FORWARD, INPUT_GRAD, WEIGHT_GRAD = "forward", "input_grad", "weight_grad"


@dataclass(frozen=True)
class Work:
    """The work of one layer at one batch size, by the shapes of its tensors, the batch first.

    Convolutions are counted as direct ones, whatever computes them; what is elementwise costs bytes, not FLOPs. A pass
    over a map counts the bytes of the map, on the assumption that no map outlives a pass in cache; weights count once.

    Attributes:
        weight: () where there is none: batch norm, an activation by itself.
        transposed: a transposed convolution.
        normalised: batch norm is part of the layer.
        active: an activation is.
    """

    input: tuple[int, ...]
    output: tuple[int, ...]
    weight: tuple[int, ...]
    transposed: bool = False
    normalised: bool = False
    active: bool = False

    def flop(self, *passes: str) -> float:
        """2 x multiplications of the direct convolution, or product, in each of ``passes``."""
        if not self.weight:
            return 0.0
        coarse = self.input if self.transposed else self.output
        return 2.0 * len(passes) * math.prod(self.weight) * self.input[0] * math.prod(coarse[2:])

    def bytes(self, itemsize: int, *passes: str, training: bool = True) -> float:
        """Bytes that ``passes`` must move, with what is elementwise before and after them.

        Forward: input, weight, output; batch statistics are gathered while the convolution writes, but
        can be applied only after it: one reading and one writing more. Backward, where either gradient
        is wanted: the sums of batch norm read gradient and map, the gradient through it reads both again
        and writes (5 passes; activation alone: 3); each convolution then reads two tensors and writes one.
        """
        x, y, w = math.prod(self.input), math.prod(self.output), math.prod(self.weight or (0,))
        values = 0
        if FORWARD in passes:
            statistics = self.normalised and training
            values += (
                (3 * y if statistics else x + y) if not w else x + w + (3 * y if statistics else y)
            )
        if INPUT_GRAD in passes or WEIGHT_GRAD in passes:
            values += 5 * y if self.normalised else 3 * y if self.active else 0
        if w:
            values += (INPUT_GRAD in passes) * (y + w + x) + (WEIGHT_GRAD in passes) * (y + x + w)
        return float(values * itemsize)
