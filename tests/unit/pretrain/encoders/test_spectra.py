"""Encoders of spectra: what a shift does to a convolutional network, and tokens of single points."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from shards.errors import ConfigError
from shards.schema import FieldSpec, ModalitySpec
from tests.unit.pretrain.encoders.arrays import build, inputs, rows, vectors

BARE = {"scale": "linear", "dropout": 0}


def peak(centre):
    axis = torch.arange(601.0)
    return {"intensity": (torch.exp(-(((axis - centre) / 3) ** 2)) * ((axis - centre).abs() < 12)).numpy()}


class TestShift:
    """Four stages halve the points three times: eight points are one token."""

    def both(self, **options):
        net = build("spectrum_cnn", "dos", **BARE, **options)
        with torch.no_grad():
            return net(inputs("dos", [peak(300), peak(308)]))

    def test_without_the_axis_tokens_move_and_the_vector_stays(self):
        encoded = self.both(axis=False)
        torch.testing.assert_close(encoded.vector[0], encoded.vector[1], atol=1e-5, rtol=1e-5)
        first, second = encoded.tokens
        torch.testing.assert_close(second[13:-12], first[12:-13], atol=1e-5, rtol=1e-5)
        assert not torch.allclose(second[13:-12], first[13:-12], atol=1e-3)

    @pytest.mark.parametrize("options", [{"axis": True}, {"axis": False, "pool": "flatten"}])
    def test_with_the_axis_or_all_points_a_shift_is_seen(self, options):
        vector = self.both(**options).vector
        assert (vector[0] - vector[1]).norm() > 1e-3 * vector[0].norm()


def test_flattening_is_a_linear_map_of_all_features():
    net = build("spectrum_cnn", "dos", **BARE, pool="flatten", channels=[8, 6], axis=False)
    seen = {}
    net.dropout.register_forward_hook(lambda module, args, out: seen.update(features=out))
    encoded = net(inputs("dos"))
    flat = torch.nn.functional.linear(seen["features"].flatten(1), net.out.weight.flatten(1), net.out.bias)
    torch.testing.assert_close(encoded.vector, flat, atol=1e-5, rtol=1e-5)
    torch.testing.assert_close(encoded.tokens.sum(1) + net.out.bias, flat, atol=1e-5, rtol=1e-5)


def test_the_published_network_has_26_layers():
    spec = ModalitySpec(name="raman", kind="spectrum", fields={"y": FieldSpec(dtype="float32", shape=(1000,))})
    values = [{"y": rows("dos")[0]["intensity"].repeat(2)[:1000]}]
    net = build(
        "spectrum_cnn", "dos", spec=spec, values=values, stem=64, channels=[100] * 6, blocks=2, kernel=5,
        pool="flatten", axis=False, scale="linear", dropout=0,
    )  # fmt: skip
    wide = [m for m in net.modules() if isinstance(m, nn.Conv1d) and m.kernel_size == (5,)]
    assert len(wide) + 1 == 26
    assert net.out.weight.shape == (128, 100, 32)


def test_a_kernel_without_a_centre_is_refused():
    with pytest.raises(ConfigError, match="no centre"):
        build("spectrum_cnn", "dos", kernel=4)


def test_neighbouring_energies_stay_apart_under_autocast():
    net = build("spectrum_transformer", "dos", **BARE, patch=1, depth=0, summary=False)
    with torch.autocast("cpu", torch.bfloat16):
        tokens = net.tokens(torch.zeros(1, 601))[0]
        naive = net.merge(torch.cat([net.embed_axis(net.axis[:, None]), net.embed_value(torch.zeros(601, 1))], dim=1))
    assert not (tokens[1:] == tokens[:-1]).all(1).any()
    assert (naive[1:] == naive[:-1]).all(1).any()  # the axis rounded to eight bits has twins


@pytest.mark.parametrize("options", [{"patch": 1, "depth": 1}, {"patch": 8, "depth": 2}])
def test_bfloat16_is_near(options):
    net = build("spectrum_transformer", "dos", **BARE, summary=False, **options)
    exact = vectors(net, "dos")
    with torch.autocast("cpu", torch.bfloat16):
        rounded = vectors(net, "dos").float()
    assert torch.nn.functional.cosine_similarity(exact, rounded).min() > 0.999
