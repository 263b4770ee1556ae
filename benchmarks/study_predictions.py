"""What scores predict of every retraining of a bank, small enough to ship: ``python benchmarks/study_predictions.py``

Written from the scores that the study keeps (build/study): items "decay" and "twelve" first.
"""

from __future__ import annotations

import study_scores
import torch

from inflib.lab import banks
from inflib.validation.datamodeling import kept_sums

ONE = {
    ("identity", 0): (None,),
    ("K-FAC", 0): (0.03, 0.1, 0.3, 1.0),
    ("EK-FAC", 0): (0.03, 0.1, 0.3, 1.0),
    ("refined", 20): (0.3, 1.0, 2.0, 5.0),
}
TWELVE = {("identity", 0): (None,), ("K-FAC", 0): (0.3,), ("EK-FAC", 0): (0.1,), ("refined", 20): (2.0,)}


def main(name: str = "decay") -> None:
    """Write data/predictions/decay.npz."""
    recipe, found = banks.recipe(name), {}
    for networks, methods in ((1, ONE), (12, TWELVE)):
        for (what, steps), dampings in methods.items():
            for damping in dampings:
                scores = study_scores.method(recipe, what, networks, dampings, steps).scores(damping)
                found[banks.Prediction(what, networks, damping, steps)] = kept_sums(scores, recipe.masks)
    banks.save_predictions(name, found)
    print(f"{len(found)} predictions of {tuple(next(iter(found.values())).shape)}")


if __name__ == "__main__":
    torch.set_num_threads(1)
    main()
