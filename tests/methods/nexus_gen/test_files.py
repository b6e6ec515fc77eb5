"""Nexus-Gen: saving, reloading, sharing components, and decoders from published files."""

import pytest
import torch
from diffusers import DiffusionPipeline, FluxPipeline

import diffusers_flux_ext
from benchmarks.support.tiny.nexus_gen import (
    nexus_components,
    published_decoder,
    tiny_adapter,
    tiny_merger,
)
from diffusers_flux_ext import (
    FluxNexusGenPipeline,
    load_nexus_gen_decoder,
)
from diffusers_flux_ext.testing import quiet, tiny_pipeline, tiny_transformer
from tests.methods.nexus_gen.drawing import GUIDED, PICTURE, draw


pytestmark = pytest.mark.versions


class TestFiles:
    def test_saved_and_reloaded(self, pipe, tmp_path):
        pipe.save_pretrained(tmp_path)
        expected = draw(pipe, image=PICTURE)
        for loader in (FluxNexusGenPipeline, DiffusionPipeline):
            loaded = quiet(loader.from_pretrained(tmp_path))
            assert type(loaded) is FluxNexusGenPipeline
            assert torch.equal(draw(loaded, image=PICTURE), expected)

    def test_reloaded_in_bfloat16(self, pipe, tmp_path):
        pipe.save_pretrained(tmp_path)
        loaded = quiet(FluxNexusGenPipeline.from_pretrained(tmp_path, dtype=torch.bfloat16))
        assert loaded.mllm.dtype == loaded.editing_adapter.dtype == torch.bfloat16
        for picture in (None, PICTURE):
            assert torch.isfinite(draw(loaded, image=picture, **GUIDED).float()).all()
        assert loaded.describe(PICTURE, max_new_tokens=1) is not None

    def test_on_a_plain_repository(self, tmp_path):
        tiny_pipeline(FluxPipeline).save_pretrained(tmp_path)
        shim = diffusers_flux_ext.custom_pipeline("nexus_gen")
        loaded = DiffusionPipeline.from_pretrained(
            tmp_path, **nexus_components(), custom_pipeline=shim, trust_remote_code=True
        )
        assert type(loaded) is FluxNexusGenPipeline
        draw(quiet(loaded), image=PICTURE)

    def test_from_pipe_both_ways(self, pipe):
        stock = tiny_pipeline(FluxPipeline).to(torch.bfloat16)
        ours = FluxNexusGenPipeline.from_pipe(stock, **nexus_components())
        assert ours.transformer is stock.transformer
        assert ours.transformer.dtype == torch.bfloat16
        assert FluxNexusGenPipeline.from_pipe(ours).mllm is pipe.mllm
        assert pipe.to_pipeline(FluxPipeline).transformer is pipe.transformer

    def test_one_pipeline_for_each_decoder(self, pipe, tmp_path):
        both = {"generation": (tiny_transformer(7), tiny_adapter(7)), "editing": (tiny_transformer(8), tiny_merger(8))}
        loaded = {}
        for name, parts in both.items():
            torch.save(published_decoder(*parts), tmp_path / f"{name}.bin")
            sizes = {"axes_dims_rope": (4, 6, 6), "mrope_section": (2, 3, 3)}
            loaded[name] = load_nexus_gen_decoder(tmp_path / f"{name}.bin", **sizes)
        (transformer, adapter), (edit_transformer, merger) = loaded["generation"], loaded["editing"]
        base = quiet(
            FluxNexusGenPipeline.from_pipe(
                pipe, transformer=transformer, generation_adapter=adapter, editing_adapter=None
            )
        )
        edit = quiet(
            FluxNexusGenPipeline.from_pipe(
                base, transformer=edit_transformer, generation_adapter=None, editing_adapter=merger
            )
        )
        assert edit.mllm is base.mllm
        assert edit.vae is base.vae
        assert base.transformer is transformer
        assert draw(base).isfinite().all()
        assert draw(edit, image=PICTURE).isfinite().all()
        with pytest.raises(ValueError, match="no `editing_adapter`.*as `transformer` and `editing_adapter`"):
            draw(base, image=PICTURE)
