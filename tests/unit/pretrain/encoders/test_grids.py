"""Encoders of grids: the published network, periodic cells, patches and their places, fitting without holding grids."""

from __future__ import annotations

import warnings
import weakref

import numpy as np
import pytest
import torch
from torch.nn import functional as F

from pretrain.encoders import grid as grids
from pretrain.encoders.grid import numbers
from pretrain.encoders.resnext3d import Bottleneck, GridConv, Wrap
from shards.errors import ConfigError
from shards.schema import FieldSpec, ModalitySpec
from tests.unit.pretrain.encoders.arrays import SPECS, build, inputs, rows, vectors

PUBLISHED = {"depth": 50, "coarsen": 1, "scale": "linear", "padding": "zeros", "summary": False, "dropout": 0}
BARE = {"summary": False, "dropout": 0, "coarsen": 1}


def test_the_published_network():
    net = build("resnext3d", "grid", **PUBLISHED)
    assert net.stem.weight.shape == (64, 1, 7, 7, 7) and net.stem.stride == (2, 2, 2)
    assert net.stem_norm.num_channels == 64
    assert [type(layer) for layer in net.layers] == [Bottleneck] * (3 + 4 + 6 + 3)
    spatial = [layer.branch[3] for layer in net.layers]
    assert [conv.out_channels for conv in spatial] == [128] * 3 + [256] * 4 + [512] * 6 + [1024] * 3
    assert {conv.groups for conv in spatial} == {32}
    assert [i for i, conv in enumerate(spatial) if conv.stride == (2, 2, 2)] == [3, 7, 13]
    assert net.out[1].weight.shape == (128, 2048)
    convolutions = sum(p.numel() for p in net.parameters() if p.ndim == 5)
    channels, expected = 64, 64 * 343
    for blocks, width in ((3, 128), (4, 256), (6, 512), (3, 1024)):
        for block in range(blocks):
            expected += channels * width + width * width // 32 * 27 + width * 2 * width
            expected += channels * 2 * width if block == 0 else 0
            channels = 2 * width
    assert convolutions == expected


def test_the_memory_order_changes_nothing():
    one, other = (build("resnext3d", "grid", **BARE, channels_last=last) for last in (True, False))
    torch.testing.assert_close(vectors(one, "grid"), vectors(other, "grid"), atol=1e-5, rtol=1e-5)


def test_wrapping_is_circular_padding_forward_and_backward():
    torch.manual_seed(0)
    x = torch.randn(2, 3, 4, 4, 4, dtype=torch.float64, requires_grad=True)
    weight = torch.randn(2, 3, 8, 8, 8, dtype=torch.float64)
    pairs = []
    for padded in (Wrap.apply(x, 2), F.pad(x, (2,) * 6, mode="circular")):
        pairs.append((padded, torch.autograd.grad((padded * weight).sum(), x)[0]))
    torch.testing.assert_close(pairs[0], pairs[1])
    assert not torch.allclose(pairs[0][1], weight[:, :, 2:-2, 2:-2, 2:-2])  # what forgets the added layers
    assert torch.autograd.gradcheck(lambda t: Wrap.apply(t, 1), (x,))


def test_the_origin_of_a_periodic_cell_does_not_matter():
    grid = np.random.default_rng(0).gamma(2.0, 1.0, (16, 16, 16)).astype(np.float16)
    both = [{"density": grid}, {"density": np.roll(grid, (8, 0, 8), (0, 1, 2))}]

    def change(padding):
        # the strides of the stem and of two stages: 8 points are a point of the map that is averaged
        net = build("resnext3d", "grid", **BARE, padding=padding)
        net.layers = net.layers[:3]
        net.out = torch.nn.Identity()
        a, b = vectors(net, "grid", both)
        return float((a - b).norm() / a.norm())

    assert change("periodic") < 1e-5
    assert change("zeros") > 1e-3


SMALL_MAPS = [(3, 1, 2), (3, 2, 1), (5, 3, 1), (5, 4, 2), (7, 3, 2)]  # kernel, points, stride


def wrong_gradients(layer, x):
    """Whether the weights' gradient in bfloat16 is another one than in float64, in any of three tries."""
    for _ in range(3):
        sizes = (10**3, 10**4, 10**5, 3 * 10**5)
        junk = [torch.full((n,), torch.nan, dtype=kind) for n in sizes for kind in (torch.float32, torch.bfloat16)]
        del junk  # whatever is not written afterwards is likely NaN
        (rounded,) = torch.autograd.grad(layer.bfloat16()(x.bfloat16()).float().sum(), layer.weight)
        (exact,) = torch.autograd.grad(layer.double()(x.double()).sum(), layer.weight)
        if not (rounded.double() - exact).norm() < 0.02 * exact.norm():
            return True
    return False


@pytest.mark.parametrize("padding", ["zeros", "periodic"])
def test_gradients_in_bfloat16_are_right_down_to_grids_of_one_point(padding):
    torch.manual_seed(0)
    for size, points, stride in SMALL_MAPS:
        if padding == "zeros" or points >= size // 2:
            x = torch.randn(5, 32, points, points, points)
            assert not wrong_gradients(GridConv(32, 32, size, stride, 1, padding), x), (size, points, stride)


def test_small_grids_padded_here_are_the_same_convolution():
    torch.manual_seed(0)
    for size, points in ((3, 1), (3, 2), (3, 6), (3, 7), (7, 14), (7, 15)):
        layer, x = GridConv(4, 8, size, 2, 4, "zeros"), torch.rand(2, 4, points, points, points)
        torch.testing.assert_close(layer(x), F.conv3d(x, layer.weight, None, 2, size // 2, groups=4))


class TestFit:
    def test_grids_are_let_go_and_never_written_to(self):
        alive, most = weakref.WeakSet(), 0

        class Grid(np.ndarray):
            """An array that can be counted."""

            __hash__ = object.__hash__

        def values():
            nonlocal most
            for value in rows("grid") * 4:
                grid = value["density"].copy().view(Grid)
                grid.flags.writeable = False
                alive.add(grid)
                most = max(most, len(alive))
                yield {"density": grid}
                del grid

        for options in ({}, {"summary": False}, {"scale": "linear"}):
            with warnings.catch_warnings():
                warnings.simplefilter("error")
                build("resnext3d", "grid", values=values(), **options)
        assert most <= 2

    def test_the_statistics_are_those_of_all_grids(self):
        encoder = build("vit3d", "grid")
        density = torch.from_numpy(np.stack([value["density"] for value in rows("grid")])).float()
        assert encoder.unit == pytest.approx(float(density.mean()), rel=1e-4)
        table = numbers(grids.halved(density), encoder.unit, encoder.config)
        torch.testing.assert_close(encoder.summary.centre, table.mean(0), atol=1e-4, rtol=1e-4)

    def test_many_grids_are_thinned_evenly(self, monkeypatch):
        monkeypatch.setattr(grids, "LOOKED_AT", 2)
        steps = [{"density": np.full((16, 16, 16), float(i), np.float16)} for i in range(16)]
        encoder = build("vit3d", "grid", values=steps, scale="linear")
        # deviations of constant grids are zero, so the unit is one: the places that were looked at are 0, 8
        assert encoder.unit == 1.0
        assert float(encoder.summary.centre[0]) in (4.0, 6.0)


class TestPatches:
    def net(self, **options):
        return build("vit3d", "grid", **{**BARE, "scale": "linear", "patch": 4, "dim": 24, **options})

    @pytest.mark.parametrize("position", ["sincos", "learned"])
    def test_tokens_are_a_plain_loop_over_cubes(self, position):
        net, grid = self.net(depth=0, position=position), torch.rand(2, 16, 16, 16)
        places, kernel = net.places(), net.embed.weight[:, 0]

        def loop(order):
            cubes = [grid[:, 4 * i : 4 * i + 4, 4 * j : 4 * j + 4, 4 * k : 4 * k + 4] for i, j, k in order]
            tokens = [torch.einsum("rabc,dabc->rd", cube, kernel) + net.embed.bias for cube in cubes]
            return net.norm(torch.stack(tokens, 1) + places)

        order = [(i, j, k) for i in range(4) for j in range(4) for k in range(4)]
        torch.testing.assert_close(net.tokens(grid), loop(order), atol=1e-5, rtol=1e-5)
        wrong = [(k, j, i) for i, j, k in order]
        assert not torch.allclose(net.tokens(grid), loop(wrong), atol=1e-3)

    @pytest.mark.parametrize("position", ["sincos", "learned"])
    def test_cubes_may_be_shuffled_with_their_places(self, position):
        net, grid = self.net(position=position), torch.rand(2, 16, 16, 16)
        order = torch.randperm(64, generator=torch.Generator().manual_seed(1))
        cubes = grid.view(2, 4, 4, 4, 4, 4, 4).permute(0, 1, 3, 5, 2, 4, 6).reshape(2, 64, 4, 4, 4)[:, order]
        shuffled = cubes.view(2, 4, 4, 4, 4, 4, 4).permute(0, 1, 4, 2, 5, 3, 6).reshape(2, 16, 16, 16)
        before, without = net.tokens(grid), net.tokens(shuffled)
        codes = net.turns if position == "sincos" else net.place.weight
        with torch.no_grad():
            codes.copy_(codes[order].clone())
        torch.testing.assert_close(net.tokens(shuffled), before[:, order], atol=1e-5, rtol=1e-5)
        assert not torch.allclose(without.mean(1), before.mean(1), atol=1e-4)

    def test_opposite_faces_of_the_cell_are_neighbours(self):
        def steps(codes):
            codes = codes.view(8, 8, 8, -1)
            return [float((codes[i, 0, 0] - codes[0, 0, 0]).norm()) for i in (1, 7)]

        inside, across = steps(self.net(patch=2).turns)
        assert inside == pytest.approx(across)
        angle = torch.pi * torch.cartesian_prod(*[torch.arange(8.0)] * 3) / 8
        inside, across = steps(torch.cat([angle.sin(), angle.cos()], dim=1))  # half a turn along each axis
        assert across > 1.1 * inside

    def test_patches_that_do_not_fill_the_grid_are_refused(self):
        with pytest.raises(ConfigError, match="do not fill the grid"):
            self.net(patch=5)
        flat = ModalitySpec(name="rho", kind="grid", fields={"density": FieldSpec(dtype="float16", shape=(16, 16, 8))})
        with pytest.raises(ConfigError, match="do not fill the grid"):
            build("vit3d", "grid", spec=flat, **BARE, patch=4)

    def test_two_grids_are_refused(self):
        two = ModalitySpec(name="rho", kind="grid", fields=dict.fromkeys("ab", SPECS["grid"].fields["density"]))
        with pytest.raises(ConfigError, match="reads one grid"):
            build("vit3d", "grid", spec=two)


def test_bfloat16_is_near():
    for kind, options in (("resnext3d", {"depth": 26, "width": 32, "cardinality": 8}), ("vit3d", {"patch": 4})):
        net = build(kind, "grid", **BARE, **options)
        exact = vectors(net, "grid")
        with torch.autocast("cpu", torch.bfloat16):
            rounded = net(inputs("grid")).vector.float()
        assert F.cosine_similarity(exact, rounded).min() > 0.99
