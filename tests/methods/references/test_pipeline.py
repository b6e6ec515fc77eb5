"""Reference pictures: bit-equality with diffusers' Kontext pipelines, layouts, strengths, batches and inputs."""

import numpy as np
import pytest
import torch
from diffusers import FluxKontextInpaintPipeline, FluxKontextPipeline

from benchmarks.support.conditions import CASES
from benchmarks.support.tiny.controlnet import OTHER_PICTURE, PICTURE
from diffusers_flux_ext import Canvas, EntityRegions, FluxConditionedPipeline, InpaintRegion, ReferenceImages
from diffusers_flux_ext.canvas import encode_image, pack_latents
from diffusers_flux_ext.testing import call_kwargs, quiet, seeded, tiny_components, tiny_pipeline


pytestmark = pytest.mark.versions
GUIDED = {"negative_prompt": ["ugly", "blurry"], "true_cfg_scale": 2.0}
# diffusers rounds the size of the canvas to this area; 48 x 32 stays as it is.
AREA = {"max_area": 32 * 48}


@pytest.fixture(scope="module")
def pipe():
    return tiny_pipeline(FluxConditionedPipeline)


def condition(images=PICTURE, **arguments):
    return ReferenceImages(images, **{"preferred_size": False, **arguments})


def encode(pipe, given, batch_size=1, num_images_per_prompt=1):
    canvas = Canvas(32, 48, batch_size, num_images_per_prompt, torch.device("cpu"), torch.float32)
    return given.encode(pipe, canvas)


def draw(pipe, *conditions, **arguments):
    return pipe(**call_kwargs(conditions=conditions, **arguments)).images


def different(one, other):
    return bool((one - other).abs().max() > 1e-4)


class TestDiffusers:
    @pytest.mark.parametrize("guided", [{}, GUIDED], ids=["", "guided"])
    def test_one_in_its_own_size(self, pipe, guided):
        stock = quiet(pipe.to_pipeline(FluxKontextPipeline))
        arguments = {**guided, "prompt": ["a cat", "a dog"], "num_images_per_prompt": 2}
        expected = stock(**call_kwargs(image=PICTURE, **AREA, **arguments, _auto_resize=False)).images
        images = draw(pipe, condition(), guidance_scale=3.5, **arguments)
        assert torch.equal(images, expected)
        assert different(images, draw(pipe, **arguments))

    @pytest.mark.slow
    def test_the_preferred_size(self, pipe):
        stock = quiet(pipe.to_pipeline(FluxKontextPipeline))
        short = {"num_inference_steps": 1}
        expected = stock(**call_kwargs(image=PICTURE, **AREA, **short)).images
        assert torch.equal(draw(pipe, ReferenceImages(PICTURE), **short), expected)
        assert different(expected, draw(pipe, condition(), **short))

    def test_latents(self, pipe):
        latents = torch.randn(1, 16, 6, 4, generator=seeded(2))
        stock = quiet(pipe.to_pipeline(FluxKontextPipeline))
        expected = stock(**call_kwargs(image=latents, **AREA)).images
        assert torch.equal(draw(pipe, ReferenceImages(latents)), expected)

    def test_bfloat16(self):
        pipe = tiny_pipeline(FluxConditionedPipeline).to(torch.bfloat16)
        stock = quiet(pipe.to_pipeline(FluxKontextPipeline))
        expected = stock(**call_kwargs(image=PICTURE, **AREA, _auto_resize=False)).images
        images = draw(pipe, condition())
        assert torch.equal(images, expected)
        assert torch.isfinite(images).all()

    def test_inpainting(self, pipe):
        """Both redraw a hole; ours pastes the outside back after decoding, so latents are compared."""
        stock = quiet(pipe.to_pipeline(FluxKontextInpaintPipeline))
        picture, hole = PICTURE.resize((48, 32)), np.zeros((32, 48), dtype=np.float32)
        hole[:, 16:] = 1
        noise = torch.randn(1, 16, 4, 6, generator=seeded(4))
        inputs = {"image": picture, "mask_image": hole, "strength": 1.0, **AREA, "_auto_resize": False}
        expected = stock(**call_kwargs(**inputs, latents=noise, output_type="latent")).images
        conditions = [condition(picture), InpaintRegion(picture, hole)]
        images = draw(pipe, *conditions, latents=pack_latents(noise), output_type="latent")
        torch.testing.assert_close(images, expected, atol=1e-5, rtol=0)


class TestLayout:
    def test_positions(self, pipe):
        pictures = [PICTURE.resize((48, 32)), PICTURE.resize((16, 32)), PICTURE.resize((32, 16))]
        ids = {layout: encode(pipe, condition(pictures, layout=layout)) for layout in ("index", "offset", "same")}
        corners = {
            layout: [encoded[f"ids_{index}"][0].tolist() for index in range(3)] for layout, encoded in ids.items()
        }
        assert corners["index"] == [[1, 0, 0], [2, 0, 0], [3, 0, 0]]
        assert corners["offset"] == [[1, 0, 0], [1, 0, 3], [1, 0, 4]]
        assert corners["same"] == [[1, 0, 0]] * 3
        assert ids["offset"]["ids_2"].tolist() == [[1, 0, 4], [1, 0, 5]]
        assert ids["same"]["ids_0"].tolist() == [[1, y, x] for y in range(2) for x in range(3)]

    def test_no_two_tokens_share_a_position_but_in_same(self, pipe):
        for layout, shared in (("index", False), ("offset", False), ("same", True)):
            encoded = encode(pipe, condition([PICTURE, OTHER_PICTURE], layout=layout))
            ids = torch.cat([encoded["ids_0"], encoded["ids_1"]])
            assert (len(ids.unique(dim=0)) < len(ids)) == shared

    def test_one_is_the_same_in_every_layout(self, pipe):
        images = [draw(pipe, condition(layout=layout)) for layout in ("index", "offset", "same")]
        assert torch.equal(images[0], images[1])
        assert torch.equal(images[0], images[2])

    def test_far_columns_are_exact_in_bfloat16(self):
        pipe = tiny_pipeline(FluxConditionedPipeline).to(torch.bfloat16)
        wide = torch.zeros(1, 16, 2, 2 * 259, dtype=torch.bfloat16)
        canvas = Canvas(32, 48, 1, 1, torch.device("cpu"), torch.bfloat16)
        encoded = ReferenceImages([wide, wide], layout="offset").encode(pipe, canvas)
        assert encoded["ids_1"][:, 2].tolist() == list(range(259, 518))
        assert torch.isfinite(draw(pipe, ReferenceImages([wide, wide], layout="offset"))).all()


class TestStrength:
    def test_one_is_no_rule(self, pipe):
        assert torch.equal(draw(pipe, condition(scale=1.0)), draw(pipe, condition()))
        assert "visible_0" not in encode(pipe, condition(scale=1))

    def test_zero_is_no_reference(self, pipe):
        assert torch.equal(draw(pipe, condition(scale=0)), draw(pipe))

    @pytest.mark.parametrize("layout", ["index", "offset", "same"])
    def test_zero_leaves_the_others_where_they_are(self, pipe, layout):
        both = encode(pipe, condition([PICTURE, OTHER_PICTURE], layout=layout))
        second = encode(pipe, condition([PICTURE, OTHER_PICTURE], layout=layout, scale=[0, 1]))
        assert second.keys() == {"tokens_1", "ids_1"}
        assert torch.equal(second["ids_1"], both["ids_1"])

    def test_between_a_share_of_the_tokens_is_seen(self, pipe):
        picture = PICTURE.resize((256, 160))
        shares = [0.001, 0.1, 0.5, 0.8]
        visible = [encode(pipe, condition(picture, scale=share))["visible_0"] for share in shares]
        assert [int(table.sum()) for table in visible] == [1, 16, 80, 128]
        for smaller, larger in zip(visible, visible[1:]):
            assert (larger | ~smaller).all()
        quarters = visible[2].view(2, 5, 2, 8).sum(dim=(1, 3))
        assert quarters.min() >= 17
        assert quarters.max() <= 23

    def test_between_differs_from_both_ends(self, pipe):
        latents = torch.randn(1, 16, 2, 4, generator=seeded(3))
        images = draw(pipe, ReferenceImages(latents, scale=0.5))
        full, none = draw(pipe, ReferenceImages(latents)), draw(pipe)
        assert different(images, full)
        assert different(images, none)

    def test_of_one_of_two(self, pipe):
        pictures = [PICTURE, OTHER_PICTURE]
        images = [draw(pipe, condition(pictures, scale=pair)) for pair in ([1, 1], [0.4, 1], [1, 0.4])]
        assert different(images[0], images[1])
        assert different(images[0], images[2])
        assert different(images[1], images[2])


class TestInputs:
    def test_kinds_of_pictures(self, pipe):
        array = np.asarray(PICTURE)
        expected = draw(pipe, condition(array))
        tensor = torch.from_numpy(array.copy()).permute(2, 0, 1)
        for given in (array[None], array.astype(np.float32) / 255, tensor, tensor[None], [tensor / 255]):
            # Their layout in memory differs, and with it the kernel of the VAE's convolutions.
            torch.testing.assert_close(draw(pipe, condition(given)), expected, atol=1e-5, rtol=0)
        assert torch.equal(draw(pipe, condition(PICTURE.convert("RGBA"))), draw(pipe, condition(PICTURE)))

    def test_sizes(self, pipe):
        def tokens(**arguments):
            return encode(pipe, ReferenceImages(PICTURE.resize((310, 150)), **arguments))["ids_0"].shape[0]

        assert tokens(preferred_size=False) == 19 * 9
        assert tokens(preferred_size=False, max_area=64 * 64) <= 16
        assert tokens(preferred_size=False, max_area=1) == 1
        assert tokens(max_area=256 * 256) <= 256
        assert tokens(preferred_size=False, max_area=10**7) == 19 * 9

    def test_latents_of_a_picture_are_the_picture(self, pipe):
        picture = PICTURE.resize((48, 32))
        pixels = pipe.image_processor.preprocess(picture)
        assert torch.equal(draw(pipe, ReferenceImages(encode_image(pipe.vae, pixels))), draw(pipe, condition(picture)))

    def test_batches(self, pipe):
        latents = torch.randn(4, 6, 64, generator=seeded(5))
        prompts, pictures = ["a cat", "a dog"], [PICTURE, OTHER_PICTURE.resize(PICTURE.size)]
        together = draw(
            pipe, condition([pictures, PICTURE]), prompt=prompts, latents=latents, num_images_per_prompt=2, **GUIDED
        )
        for index in range(4):
            prompt = index // 2
            inputs = {"prompt": prompts[prompt], "latents": latents[index : index + 1]}
            guided = {**GUIDED, "negative_prompt": GUIDED["negative_prompt"][prompt]}
            alone = draw(pipe, condition([pictures[prompt], PICTURE]), **inputs, **guided)
            torch.testing.assert_close(together[index : index + 1], alone, atol=1e-5, rtol=0)

    def test_image_to_image(self, pipe):
        start = {"image": OTHER_PICTURE, "strength": 0.7}
        assert different(draw(pipe, condition(), **start), draw(pipe, **start))

    def test_entities_do_not_see_references(self, pipe):
        entity = EntityRegions(["a red dog"], [(0.0, 0.0, 0.5, 1.0)])
        images = draw(pipe, condition(scale=0.5), entity)
        torch.testing.assert_close(images, draw(pipe, entity, condition(scale=0.5)), atol=1e-5, rtol=0)
        assert different(images, draw(pipe, entity))
        assert different(images, draw(pipe, condition(scale=0.5)))

    @pytest.mark.parametrize(
        "arguments, error, message",
        [
            ({"layout": "grid"}, ValueError, "`layout` .*one of .*'offset'.*got 'grid'"),
            ({"images": []}, ValueError, "no image"),
            ({"images": None}, ValueError, "no image"),
            ({"images": [PICTURE, None]}, ValueError, "None"),
            ({"scale": [1.0, 0.5]}, ValueError, "2 numbers, but 1 are needed"),
            ({"scale": 1.5}, ValueError, "from 0 to 1, got 1.5"),
            ({"scale": float("nan")}, ValueError, "from 0 to 1, got nan"),
            ({"scale": "strong"}, TypeError, "must be a number"),
            ({"scale": True}, TypeError, "must be a number .*got True"),
            ({"max_area": 0}, ValueError, "`max_area` .*from 1 to .*got 0"),
            ({"max_area": "large"}, TypeError, "must be a whole number"),
        ],
    )
    def test_bad_arguments(self, arguments, error, message):
        with pytest.raises(error, match=message):
            condition(**{"images": PICTURE, **arguments})

    def test_a_picture_smaller_than_a_token(self, pipe):
        with pytest.raises(ValueError, match="smaller than a token of 16 x 16"):
            draw(pipe, condition(PICTURE.resize((40, 15))))

    def test_another_number_of_pictures_than_prompts(self, pipe):
        with pytest.raises(ValueError, match="2 samples, but there are 3 prompts"):
            draw(pipe, condition([[PICTURE, PICTURE]]), prompt=["a", "b", "c"])

    def test_twice_is_refused(self, pipe):
        with pytest.raises(ValueError, match="ReferenceImages and ReferenceImages decides"):
            draw(pipe, condition(), condition())


def test_a_saved_pipeline_draws_the_same(pipe, tmp_path):
    stock = quiet(FluxKontextPipeline(**tiny_components(0)))
    stock.save_pretrained(tmp_path)
    loaded = quiet(FluxConditionedPipeline.from_pretrained(tmp_path))
    assert torch.equal(draw(loaded, condition()), draw(pipe, condition()))


def test_the_case_of_the_composition_matrix_hides_tokens(pipe):
    assert "visible_0" in encode(pipe, CASES["references"].build())
