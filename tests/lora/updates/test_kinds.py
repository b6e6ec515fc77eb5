"""Every kind of update keeps the same laws: what it is as a LoRA, as a module, in parts and turned round."""

import pytest
import torch

from diffusers_flux_ext import convert_lora
from diffusers_flux_ext.lora.errors import LoRAError, UnsupportedLoRAError
from diffusers_flux_ext.lora.updates import (
    Bias,
    Dense,
    DoRA,
    Dynamic,
    LoHa,
    LoKr,
    LoRA,
    Norm,
    Timed,
    Update,
    join_rows,
    kinds,
    update_of,
)
from tests.lora.lora_evaluation import assert_bit_equal


OUT, IN, RANK = 24, 10, 2
SHAPES = {
    "lora": {"down": (RANK, IN), "up": (OUT, RANK)},
    "loha": {"hada_w1_a": (OUT, RANK), "hada_w1_b": (RANK, IN), "hada_w2_a": (OUT, RANK), "hada_w2_b": (RANK, IN)},
    "loha_of_large_rank": {"hada_w1_a": (OUT, 5), "hada_w1_b": (5, IN), "hada_w2_a": (OUT, 5), "hada_w2_b": (5, IN)},
    "lokr": {"lokr_w1": (4, 2), "lokr_w2": (6, 5)},
    "lokr_of_pairs": {"lokr_w1_a": (4, 1), "lokr_w1_b": (1, 2), "lokr_w2_a": (6, RANK), "lokr_w2_b": (RANK, 5)},
    "diff": {"diff": (OUT, IN)},
}
CLASSES = {"lora": LoRA, "loha": LoHa, "loha_of_large_rank": LoHa, "lokr": LoKr, "lokr_of_pairs": LoKr, "diff": Dense}
# Rows are cut in these shares.
SHARES = (1, 1, 4)


def made(kind, *, scale=0.5, **extra):
    generator = torch.Generator().manual_seed(len(kind))
    parts = {name: torch.randn(shape, generator=generator) for name, shape in SHAPES[kind].items()}
    return update_of({**parts, **extra}, scale)


@pytest.fixture(params=SHAPES)
def update(request):
    vectors = {"bias": torch.arange(OUT).float(), "diff_b": torch.ones(OUT)}
    return made(request.param, **vectors)


@pytest.mark.parametrize("kind", SHAPES)
def test_parts_tell_the_kind(kind):
    assert type(made(kind)) is CLASSES[kind]
    assert (made(kind).out_features, made(kind).in_features) == (OUT, IN)


@pytest.mark.parametrize(
    "parts, kind",
    [
        ({"diff_b": torch.ones(3)}, Bias),
        ({"diff": torch.ones(3)}, Norm),
        ({"set": torch.ones(3)}, Norm),
        ({"oft_blocks": torch.ones(2, 3, 3)}, Dynamic),
        ({"lora_time_beta.bias": torch.ones(2), "down": torch.ones(2, 3), "up": torch.ones(3, 2)}, Timed),
        ({"magnitude": torch.ones(3), "down": torch.ones(2, 3), "up": torch.ones(3, 2)}, DoRA),
    ],
)
def test_parts_tell_what_is_not_a_product(parts, kind):
    assert type(update_of(parts)) is kind


def test_as_a_lora_it_is_the_same(update):
    lora = update.to_lora()
    assert type(lora) is LoRA
    torch.testing.assert_close(lora.dense(), update.dense())
    torch.testing.assert_close(lora.bias_delta(), update.bias_delta())


def test_a_muted_one_keeps_its_bias():
    for kind in ("lora", "loha", "lokr", "lokr_of_pairs"):
        lora = made(kind, scale=0.0, diff_b=torch.ones(OUT)).to_lora()
        assert not lora.dense().any(), kind
        assert torch.equal(lora.bias_delta(), torch.ones(OUT)), kind


def test_its_module_computes_it(update):
    x = torch.randn(2, 3, IN, generator=torch.Generator().manual_seed(1))
    expected = x @ update.dense().T + update.bias_delta()
    if update.is_plain:
        lora = update.to_lora()
        found = x @ lora.dense().T + lora.bias_delta()
    else:
        found = update.module(torch.float32, with_bias=False)(x, torch.float32)
    torch.testing.assert_close(found, expected, atol=1e-4, rtol=1e-4)


def test_its_norm_is_that_of_the_matrix(update):
    assert update.squared_norm() == pytest.approx(float(update.dense().norm() ** 2), rel=1e-5)


def test_its_rows_are_cut_and_joined(update):
    cuts = update.split_rows(SHARES, "layer")
    assert [cut.out_features for cut in cuts] == [4, 4, 16]
    torch.testing.assert_close(torch.cat([cut.dense() for cut in cuts]), update.dense())
    joined = join_rows([cut.to_lora() for cut in cuts], SHARES, "layer")
    whole = {name: part if isinstance(part, torch.Tensor) else part.build() for name, part in joined.parts.items()}
    torch.testing.assert_close(update_of(whole, joined.scale).dense(), update.dense())


def test_its_halves_are_exchanged(update):
    turned = update.swap_rows()
    torch.testing.assert_close(turned.dense(), torch.cat(update.dense().chunk(2)[::-1]))
    assert_bit_equal(dict(turned.swap_rows().parts), dict(update.parts))


@pytest.mark.parametrize("kind", [kind for kind in SHAPES if kind != "diff"])
@pytest.mark.parametrize("shape", [(OUT, 1), (1, IN)])
def test_dora_is_one_around_any_product(kind, shape):
    update = made(kind, magnitude=torch.rand(shape) + 1)
    weight = torch.randn(OUT, IN, generator=torch.Generator().manual_seed(2))
    base = torch.nn.Linear(IN, OUT)
    base.weight.data.copy_(weight)
    module = update.module(torch.float32, with_bias=False)
    module.prepare(base)
    expected = weight + update.dense()
    expected *= update.magnitude / expected.norm(dim=shape.index(1), keepdim=True)
    torch.testing.assert_close(update.applied(weight, 1.0, "layer"), expected)
    torch.testing.assert_close(weight + module.dense(), expected, atol=1e-5, rtol=1e-5)
    assert not update.is_plain
    assert type(update.to_lora()) is DoRA


def test_parts_of_an_update_that_depends_on_the_weights_survive_a_cut():
    cuts = made("lokr", oft_blocks=torch.ones(2, 3, 3)).split_rows(SHARES, "layer")
    for cut in cuts:
        with pytest.raises(UnsupportedLoRAError, match="OFT"):
            cut.check_static("layer")


@pytest.mark.parametrize("parts", [{"diff": torch.zeros(OUT, IN)}, {}])
def test_both_biases_of_an_update_without_a_scale_count(parts):
    bias, added = torch.arange(OUT).float(), torch.ones(OUT)
    update = update_of({**parts, "bias": bias, "diff_b": added}, 2.0)
    assert torch.equal(update.to_lora().bias_delta(), 2 * bias + added)
    assert torch.equal(update.to_lora().bias_delta(), update.bias_delta())


def test_both_biases_of_a_dense_layer_are_written():
    name = "transformer.x_embedder"
    bias, added = torch.arange(8.0), torch.ones(8)
    lora = {f"{name}.diff": torch.ones(8, 4), f"{name}.lora_B.bias": bias, f"{name}.diff_b": added}
    assert torch.equal(convert_lora(lora)[0][f"{name}.lora_B.bias"], bias + added)


def test_a_layer_that_shows_no_size_is_an_error():
    with pytest.raises(LoRAError, match="how many outputs"):
        update_of({"magnitude": torch.ones(3)}).split_rows(SHARES, "layer")


def test_a_new_kind_is_one_class(monkeypatch):
    class RankOne(Update):
        """`scale * outer(u, v)`."""

        label, title, own = "rank_one", "rank-one update", frozenset({"u", "v"})
        rows = ("u",)

        @property
        def in_features(self):
            return self.parts["v"].shape[0]

        def _product(self, parts):
            return torch.outer(parts["u"], parts["v"])

        def factors(self):
            return self.parts["u"][:, None], self.parts["v"][None]

    monkeypatch.setattr(kinds, "KINDS", (RankOne, *kinds.KINDS))
    update = update_of({"u": torch.arange(4.0), "v": torch.ones(3)}, 2.0)
    assert type(update) is RankOne
    assert torch.equal(update.to_lora().dense(), update.dense())
    assert torch.equal(update.module(torch.float32, with_bias=True).dense(), update.dense())
