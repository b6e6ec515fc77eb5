"""Former names and values of arguments: they count, warn of the present ones, and are refused beside them."""

import inspect
import warnings
from dataclasses import dataclass, field, fields

import pytest
import torch

from benchmarks.support.conditions import CASES
from diffusers_flux_ext import AutoencoderKLFlux, EntityRegions, ReferenceImages
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


@former_arguments(level="scale")
def passing_on(*args, scale=1.0):
    return args, scale


def test_arguments_that_are_passed_on_take_no_name():
    with pytest.warns(FutureWarning, match="`level` of passing_on is now called `scale`"):
        assert passing_on("a", "b", level=2.0) == (("a", "b"), 2.0)


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


LEFT = (0.0, 0.0, 0.5, 1.0)


class TestConditions:
    """Each former name and value makes the same condition as the present one."""

    @pytest.mark.parametrize(
        "name, former, present",
        [
            ("controlnet", {"mask_region": LEFT}, {"region": LEFT}),
            ("controlnet", {"negative": "shared"}, {"negative": "same"}),
            ("identity", {"negative": "shared"}, {"negative": "same"}),
            ("ip-adapter", {"mask": LEFT}, {"region": LEFT}),
            ("redux", {"strengths": 0.5, "mask": LEFT}, {"scale": 0.5, "region": LEFT}),
            ("references", {"strengths": 0.5}, {"scale": 0.5}),
            ("entities", {"on_negative": True}, {"negative": "own"}),
            ("entities", {"on_negative": False}, {"negative": None}),
        ],
    )
    def test_former_arguments(self, name, former, present):
        case = CASES[name]
        given = {key: value for key, value in case.inputs.items() if key not in present}
        with pytest.warns(FutureWarning, match=f"`{next(iter(former))}"):
            condition = case.make(**given, **former)
        assert {key: getattr(condition, key) for key in present} == present
        with warnings.catch_warnings():
            warnings.simplefilter("error", FutureWarning)
            case.make(**given, **present)

    def test_by_position(self):
        with pytest.warns(FutureWarning, match="`negative=True` of EntityRegions is now `negative='own'`"):
            assert EntityRegions(["a cat"], [LEFT], True).negative == "own"

    def test_both_names(self):
        with pytest.raises(TypeError, match="`strengths` of ReferenceImages .*`scale`, but both were given"):
            ReferenceImages(torch.zeros(3, 16, 16), scale=1.0, strengths=1.0)
