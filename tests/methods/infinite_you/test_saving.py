"""InfiniteYou: saving, sharing, and files of the projector."""

import pytest
import torch
from diffusers import DiffusionPipeline, FluxPipeline

import diffusers_flux_ext
from benchmarks.support.tiny.infinite_you import ColorFaceEncoder, face, tiny_identity_modules, tiny_projector
from diffusers_flux_ext import (
    FluxInfiniteYouPipeline,
    InfiniteYouImageProjector,
)
from diffusers_flux_ext.testing import call_kwargs, quiet, tiny_pipeline


@pytest.fixture(scope="module")
def pipe():
    return tiny_pipeline(FluxInfiniteYouPipeline, **tiny_identity_modules(), face_encoder=ColorFaceEncoder())


class TestFiles:
    def test_saved_and_reloaded(self, pipe, tmp_path):
        pipe.save_pretrained(tmp_path)
        expected = pipe(**call_kwargs(id_embeds=face())).images
        for loader in (FluxInfiniteYouPipeline, DiffusionPipeline):
            loaded = quiet(loader.from_pretrained(tmp_path))
            assert type(loaded) is FluxInfiniteYouPipeline
            for name in ("controlnet", "image_projector"):
                weights = getattr(pipe, name).state_dict()
                assert all(
                    torch.equal(weight, weights[key]) for key, weight in getattr(loaded, name).state_dict().items()
                )
            # Weights in a mapped file are aligned differently, which changes the rounding of a product with one row.
            torch.testing.assert_close(loaded(**call_kwargs(id_embeds=face())).images, expected, atol=1e-5, rtol=0)
        encoder = ColorFaceEncoder()
        loaded = quiet(FluxInfiniteYouPipeline.from_pretrained(tmp_path, face_encoder=encoder))
        assert loaded.face_encoder is encoder

    def test_on_a_plain_repository(self, pipe, tmp_path):
        tiny_pipeline(FluxPipeline).save_pretrained(tmp_path)
        modules = tiny_identity_modules()
        for arguments in (
            {"custom_pipeline": diffusers_flux_ext.custom_pipeline("infinite_you"), "trust_remote_code": True},
            {},
        ):
            loader = DiffusionPipeline if arguments else FluxInfiniteYouPipeline
            loaded = quiet(loader.from_pretrained(tmp_path, **modules, **arguments))
            assert type(loaded) is FluxInfiniteYouPipeline
            loaded(**call_kwargs(id_embeds=face()))

    def test_from_pipe_both_ways(self, pipe):
        modules = tiny_identity_modules()
        stock = tiny_pipeline(FluxPipeline).to(torch.bfloat16)
        ours = FluxInfiniteYouPipeline.from_pipe(stock, **modules, face_encoder=ColorFaceEncoder())
        assert ours.transformer is stock.transformer
        assert ours.transformer.dtype == torch.bfloat16
        again = FluxInfiniteYouPipeline.from_pipe(ours)
        assert (again.controlnet, again.face_encoder) == (ours.controlnet, ours.face_encoder)
        assert pipe.to_pipeline(FluxPipeline).transformer is pipe.transformer
        assert pipe.to_pipeline(FluxInfiniteYouPipeline).face_encoder is pipe.face_encoder

    def test_without_its_modules(self):
        bare = tiny_pipeline(FluxInfiniteYouPipeline)
        bare(**call_kwargs())
        with pytest.raises(ValueError, match=r"has no \['controlnet', 'image_projector'\]"):
            bare(**call_kwargs(id_embeds=face()))


class TestProjectorFile:
    def test_the_published_layout(self, tmp_path):
        projector = tiny_projector(3)
        torch.save({"image_proj": projector.state_dict()}, tmp_path / "image_proj_model.bin")
        loaded = InfiniteYouImageProjector.from_single_file(tmp_path / "image_proj_model.bin", dim_head=8)
        assert dict(loaded.config) == dict(projector.config)
        assert torch.equal(loaded(face()[None, None]), projector(face()[None, None]))
        loaded.save_pretrained(tmp_path / "folder")
        again = InfiniteYouImageProjector.from_pretrained(tmp_path / "folder")
        assert all(torch.equal(weight, again.state_dict()[key]) for key, weight in projector.state_dict().items())

    def test_the_released_sizes(self):
        with torch.device("meta"):
            released = InfiniteYouImageProjector()
        assert released.latents.shape == (1, 8, 1280)
        assert released.layers[3][0].to_kv.weight.shape == (2560, 1280)

    def test_code_in_a_pickle_is_not_run(self, tmp_path):
        torch.save({"image_proj": ColorFaceEncoder()}, tmp_path / "bad.bin")
        with pytest.raises(ValueError, match="not a pickle of plain tensors"):
            InfiniteYouImageProjector.from_single_file(tmp_path / "bad.bin")

    @pytest.mark.parametrize(
        ("change", "message"),
        [
            (lambda weights: {"a": torch.zeros(1)}, "not an image projector of InfiniteYou"),
            (lambda weights: {**weights, "b": torch.zeros(1)}, "surplus or of a wrong shape .*: `b`"),
            (
                lambda weights: {key: value for key, value in weights.items() if key != "norm_out.bias"},
                "norm_out.bias",
            ),
        ],
    )
    def test_other_files(self, change, message):
        with pytest.raises(ValueError, match=message):
            InfiniteYouImageProjector.from_single_file(change(tiny_projector().state_dict()), dim_head=8)

    def test_no_file(self, tmp_path):
        with pytest.raises(FileNotFoundError):
            InfiniteYouImageProjector.from_single_file(tmp_path / "absent.bin")
