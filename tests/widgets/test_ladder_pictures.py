"""The ladder's pictures: the same on every machine."""

from __future__ import annotations

import numpy as np
import torch

from inflib.widgets.ladder_view import PIXELS, coloured


def test_of_entries_equal_but_for_rounding_the_first_is_drawn() -> None:
    """Which of +1 and −1 is larger by a last digit differs between machines; the colour must not."""
    drawn = []
    for other in (1 - 1e-14, 1 + 1e-14):
        matrix = torch.zeros(2 * PIXELS, 2 * PIXELS, dtype=torch.float64)
        matrix[0, 0], matrix[1, 1] = 1.0, -other
        drawn.append(coloured(matrix, 1.0))
    assert np.array_equal(*drawn)
    assert drawn[0][0, 0, 0] > drawn[0][0, 0, 2]  # orange: the first, which is positive
