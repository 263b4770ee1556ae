"""What the browsers ask: the K-FAC in EK-FAC's eigenbasis is ``kfac``'s own."""

from __future__ import annotations

import pytest
from networks import zoo
from oracle import assert_close

from inflib import ekfac, kfac
from inflib.widgets import three_methods


@pytest.mark.parametrize("sharing", ["expand", "reduce"])
@pytest.mark.parametrize("animal", ["tokens", "convolution", "called twice"])
def test_the_kfac_of_three_methods_has_the_sharing_of_its_ekfac(animal: str, sharing: str) -> None:
    case = zoo(animal)
    how = {"sharing": sharing, "progress": False}
    curvature = ekfac(case.model, case.objective, case.train, **how)
    found = three_methods(case.model, case.objective, case.train, curvature, progress=False)["K-FAC"]
    assert found.facts.sharing == sharing
    assert_close(found.to_dense(), kfac(case.model, case.objective, case.train, **how).to_dense(), 1e-10)
