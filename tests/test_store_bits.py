"""Bits of a store: what is packed is found again where the layout says, products need no unpacking, r is the error."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from oracle import assert_close
from torch import Tensor

from inflib.index.axes import by_components, by_eigenvalue, largest
from inflib.index.bits import BITS, levels, pack, packed_bytes, quantise, unpack
from inflib.index.packed import Weights

pytestmark = pytest.mark.usefixtures("float64")

COUNTS = (1, 7, 8, 9, 100)


def codes_of(packed: np.ndarray, bits: int, count: int) -> np.ndarray:
    """The layout, read by NumPy: coordinate f · nb + m is the f-th run of bits of byte m, from the lowest."""
    if bits == 16:
        return packed.copy().view("<u2")[:, :count].astype(int)
    bit = np.unpackbits(packed, axis=1, bitorder="little").reshape(*packed.shape, 8 // bits, bits)
    values = (bit * 2 ** np.arange(bits)).sum(-1)  # (B, nb, fields)
    return values.transpose(0, 2, 1).reshape(len(packed), -1)[:, :count].astype(int)


def drawn_codes(bits: int, count: int, rows: int = 5) -> Tensor:
    return torch.randint(0, 2**bits, (rows, count), dtype=torch.int32)


@pytest.mark.parametrize("bits", BITS)
@pytest.mark.parametrize("count", COUNTS)
def test_codes_are_packed_as_the_layout_says_and_found_again(bits: int, count: int) -> None:
    codes = drawn_codes(bits, count)
    packed = pack(codes, bits)
    assert packed.dtype == torch.uint8 and packed.shape == (5, packed_bytes(count, bits))
    assert packed_bytes(count, bits) == int(np.ceil(count * bits / 8))
    assert np.array_equal(codes_of(packed.numpy(), bits, count), codes.numpy())
    assert torch.equal(unpack(packed, bits, count), codes)


@pytest.mark.parametrize("bits", BITS)
def test_levels_lie_evenly_about_zero(bits: int) -> None:
    v = levels(torch.arange(2**bits), bits, torch.float64)
    assert float(v.sum()) == 0
    assert_close(v.diff(), torch.ones(2**bits - 1), 1e-15)


@pytest.mark.parametrize("bits", BITS)
def test_r_is_the_distance_to_what_the_code_stands_for_and_no_other_scale_is_nearer(bits: int) -> None:
    z, spread = torch.randn(6, 40), torch.rand(40) + 0.1
    packed, scale, r = quantise(z, spread, bits)
    v = torch.from_numpy(codes_of(packed.numpy(), bits, 40)) - (2**bits - 1) / 2
    assert_close(r, (z - scale.double()[:, None] * spread * v).norm(dim=1), 1e-12)
    for other in (0.99, 1.01):
        assert bool(((z - other * scale.double()[:, None] * spread * v).norm(dim=1) > r).all())


def test_one_bit_is_the_sign_and_more_bits_come_nearer() -> None:
    z = torch.randn(50, 400)
    packed, _, _ = quantise(z, torch.ones(400), 1)
    assert np.array_equal(codes_of(packed.numpy(), 1, 400), (z > 0).int().numpy())
    errors = [float(quantise(z, torch.ones(400), bits)[2].norm() / z.norm()) for bits in BITS]
    assert errors == sorted(errors, reverse=True)
    assert errors[0] == pytest.approx((1 - 2 / np.pi) ** 0.5, rel=0.02)  # of a Gaussian: E|z|² = 2/π
    assert errors[1] == pytest.approx(0.1188**0.5, rel=0.02)  # Max 1960: a unit Gaussian in four even steps
    assert errors[2] == pytest.approx(0.01154**0.5, rel=0.03)  # in sixteen


@pytest.mark.parametrize("bits", BITS)
@pytest.mark.parametrize("queries", [1, 3, 17])
def test_a_product_on_packed_codes_is_that_of_their_levels(bits: int, queries: int) -> None:
    for count in COUNTS:
        codes, w = drawn_codes(bits, count), torch.randn(queries, count) ** 3
        weights = Weights.of(w, bits)
        expected = w @ (codes - (2**bits - 1) / 2).T
        found = weights.product(pack(codes, bits))
        assert found.shape == (queries, 5)
        assert bool(((found - expected).abs() <= weights.left[:, None]).all())
        assert float((weights.left / w.norm(dim=1)).max()) < 1e-3 * 2**bits * count**0.5


def test_blocks_and_long_rows_change_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    codes, w = drawn_codes(1, 999, 40), torch.randn(2, 999)
    whole = Weights.of(w, 1).product(pack(codes, 1))
    for name in ("BLOCK", "LONGEST"):
        with monkeypatch.context() as patched:
            patched.setattr(f"inflib.index.packed.{name}", 50)
            assert_close(Weights.of(w, 1).product(pack(codes, 1)), whole, 1e-14)


@pytest.mark.parametrize("bits", [1, 2, 4])
def test_the_largest_sums_fit_their_32_bits(bits: int) -> None:
    count = 2**18 * (8 // bits)
    codes, w = torch.full((1, count), 2**bits - 1, dtype=torch.int32), torch.ones(1, count)
    assert float(Weights.of(w, bits).product(pack(codes, bits))) == pytest.approx(count * (2**bits - 1) / 2)


def test_axes_are_those_with_the_largest_eigenvalues() -> None:
    values = torch.tensor([[1.0, 5.0, 3.0], [4.0, 0.0, 2.0]])
    assert largest(values, 2).tolist() == [1, 3]
    assert largest(values, 0.5).tolist() == [1, 2, 3]
    assert largest(values, 1.0).tolist() == list(range(6)) == largest(values, 100).tolist()
    assert largest(values, 1e-9).tolist() == [1]


def test_what_is_kept_and_what_is_left_add_up() -> None:
    t, y, values = torch.randn(7, 12), torch.randn(3, 12), torch.rand(3, 4)
    for components in (None, 3):
        axes = by_eigenvalue(values, 0.1, 8)
        if components:
            axes = by_components(axes, axes.coordinates(torch.randn(9, 12)), components)
        z, of_y = axes.coordinates(t), axes.coordinates(y)
        assert_close(z.square().sum(1) + axes.rest(t, z).square(), t.square().sum(1), 1e-12)
        room = torch.outer(axes.rest(y, of_y), axes.rest(t, z))
        assert bool(((y @ t.T - of_y @ z.T).abs() <= room * (1 + 1e-12)).all())


def test_components_are_the_directions_in_which_the_sample_is_largest() -> None:
    sample = torch.randn(9, 12) * torch.linspace(3, 0.1, 12)
    axes = by_components(by_eigenvalue(torch.rand(3, 4), 0.1, 12), sample, 4)
    assert axes.P is not None
    assert_close(axes.P @ axes.P.T, torch.eye(4), 1e-12)
    _, singular, V = torch.linalg.svd(sample, full_matrices=False)
    assert_close(axes.P.T @ axes.P, V[:4].T @ V[:4], 1e-9)
    assert_close(axes.spread.double(), singular[:4] / 3, 1e-6)
