"""Former names and values of arguments: they count, warn of the present ones, and are refused beside them."""

import inspect
import warnings
from dataclasses import dataclass, field, fields

import pytest

from diffusers_flux_ext import AutoencoderKLFlux
from diffusers_flux_ext.former_arguments import former_arguments
from diffusers_flux_ext.testing import tiny_vae


@former_arguments({"mode": {True: "on", False: None}}, area="region", level="scale")
@dataclass(frozen=True, eq=False)
class Part:
    """A dataclass with a positional, a keyword and a renamed value."""

    text: str
    region: tuple | None = field(default=None, repr=False)
    scale: float = 1.0
    mode: object = None


@former_arguments({"mode": {"old": "new"}}, level="scale")
def call(text, scale=1.0, *, mode="new"):
    return text, scale, mode


class TestDataclasses:
    def test_former_names_count_and_name_the_present_ones(self):
        with pytest.warns(FutureWarning, match="`area` of Part is now called `region`.*version") as caught:
            part = Part("a", area=(0, 0, 1, 1))
        assert part.region == (0, 0, 1, 1)
        assert caught[0].filename == __file__

    def test_several_former_names_are_one_warning(self):
        with pytest.warns(FutureWarning, match="`area`.*; `level`.*; `mode=True`.*`mode='on'`") as caught:
            part = Part("a", area=None, level=2.0, mode=True)
        assert (part.scale, part.mode, len(caught)) == (2.0, "on", 1)

    def test_former_values_count_by_position_too(self):
        with pytest.warns(FutureWarning, match="`mode=False` of Part is now `mode=None`"):
            assert Part("a", None, 1.0, False).mode is None

    def test_fields_are_read_by_their_former_names(self):
        part = Part("a", scale=3.0)
        with pytest.warns(FutureWarning, match="`level` of Part is now called `scale`"):
            assert part.level == 3.0

    @pytest.mark.parametrize("given", [{"region": None}, {}], ids=["by name", "by position"])
    def test_both_names_are_refused(self, given):
        positions = () if given else (None,)
        with pytest.raises(TypeError, match="`area` of Part is the former name of `region`, but both were given"):
            Part("a", *positions, area=None, **given)

    def test_present_names_and_values_do_not_warn(self):
        with warnings.catch_warnings():
            warnings.simplefilter("error")
            part = Part("a", (0, 0, 1, 1), scale=2.0, mode={"not": "hashable"})
        assert part.mode == {"not": "hashable"}

    def test_the_signature_shows_present_names_only(self):
        names = [each.name for each in fields(Part)]
        assert list(inspect.signature(Part).parameters) == names == ["text", "region", "scale", "mode"]


def test_functions():
    with pytest.warns(FutureWarning, match="`level` of call is now called `scale`; `mode='old'` .*`mode='new'`"):
        assert call("a", level=2.0, mode="old") == ("a", 2.0, "new")
    with pytest.raises(TypeError, match="both were given"):
        call("a", 1.0, level=2.0)
    assert call("a") == ("a", 1.0, "new")


def test_the_autoencoder_takes_the_former_name():
    vae = AutoencoderKLFlux.from_config(tiny_vae(0).config)
    with pytest.warns(FutureWarning, match="AutoencoderKLFlux.enable_tiling .*`ramp_image_borders`"):
        vae.enable_tiling(64, 32, ramp_picture_borders=True)
    assert vae.tile_ramp_image_borders
