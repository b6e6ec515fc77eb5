"""Files that are not InfiniteYou's are refused with a sentence."""

import pickle

import pytest
import torch

from benchmarks.support.tiny.infinite_you import tiny_projector
from diffusers_flux_ext import InfiniteYouImageProjector
from diffusers_flux_ext.methods.infinite_you.arcface import ArcFaceIRSE50


@pytest.mark.parametrize("model", [InfiniteYouImageProjector, ArcFaceIRSE50])
@pytest.mark.parametrize("content", [b"", b"hello", pickle.dumps(print), None], ids=["empty", "text", "code", "list"])
def test_other_files_are_refused(tmp_path, model, content):
    path = tmp_path / "weights.bin"
    if content is None:
        torch.save([1, 2], path)
    else:
        path.write_bytes(content)
    with pytest.raises(ValueError, match="weights.bin") as caught:
        model.from_single_file(path)
    assert "weights_only" not in str(caught.value)


def test_the_data_type_has_two_names(tmp_path):
    torch.save({"image_proj": tiny_projector().state_dict()}, tmp_path / "image_proj_model.bin")
    for name in ("dtype", "torch_dtype"):
        model = InfiniteYouImageProjector.from_single_file(
            tmp_path / "image_proj_model.bin", dim_head=8, **{name: torch.bfloat16}
        )
        assert next(model.parameters()).dtype == torch.bfloat16
