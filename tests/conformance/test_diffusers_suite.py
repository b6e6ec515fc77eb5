"""diffusers' own tests of `FluxPipeline`, run against the pipelines of this package.

The tests are not part of diffusers' wheel. They run when `DIFFUSERS_SOURCE` names a checkout of diffusers, at the tag
of the installed version:

    DIFFUSERS_SOURCE=../diffusers python -m pytest tests/conformance/test_diffusers_suite.py

`FluxPipeline` itself is among the classes, as a control: a test that fails for it tells nothing about this package.
"""

import importlib
import os
import sys
import warnings
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType
from typing import Any

import diffusers
import pytest
import torch
from diffusers import AutoencoderKL, FlowMatchEulerDiscreteScheduler, FluxPipeline, FluxTransformer2DModel
from transformers import CLIPTextConfig, CLIPTextModel, T5Config, T5EncoderModel

from diffusers_flux_ext import FluxConditionedPipeline, FluxEliGenPipeline
from tests.parity.reference.components import CLIP, T5
from tests.parity.reference.tokenizers import tiny_tokenizers


SOURCE = os.environ.get("DIFFUSERS_SOURCE", "")
SUITE = Path(SOURCE, "tests", "pipelines", "flux", "test_pipeline_flux.py")
if not SOURCE or not SUITE.is_file():
    pytest.skip(
        f"diffusers' tests are not in its wheel: set DIFFUSERS_SOURCE to a checkout of diffusers v"
        f"{diffusers.__version__} (now {SOURCE!r}) to run them",
        allow_module_level=True,
    )

PIPELINES = (FluxPipeline, FluxConditionedPipeline, FluxEliGenPipeline)
WIDTH = 32
# Not `tests`: that is this repository's package. The modules of the checkout only use relative imports.
ALIAS = "diffusers_checkout_tests"


def upstream(name: str) -> ModuleType:
    """A module below the checkout's `tests`."""
    if ALIAS not in sys.modules:
        package = ModuleType(ALIAS)
        package.__path__ = [str(Path(SOURCE, "tests"))]
        sys.modules[ALIAS] = package
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", pytest.PytestUnknownMarkWarning)
        return importlib.import_module(f"{ALIAS}.{name}")


def text_encoders() -> dict[str, Any]:
    tokenizer, tokenizer_2 = tiny_tokenizers()
    ids = {"bos_token_id": tokenizer.bos_token_id, "eos_token_id": tokenizer.eos_token_id, "pad_token_id": None}
    # One of the LoRA tests leaves the fifth layer out.
    clip = {**CLIP, **ids, "hidden_size": WIDTH, "num_attention_heads": 4, "num_hidden_layers": 5}
    torch.manual_seed(0)
    return {
        "tokenizer": tokenizer,
        "text_encoder": CLIPTextModel(CLIPTextConfig(vocab_size=len(tokenizer), **clip)).eval(),
        "tokenizer_2": tokenizer_2,
        "text_encoder_2": T5EncoderModel(T5Config(vocab_size=len(tokenizer_2), **{**T5, "d_model": WIDTH})).eval(),
    }


def vae() -> AutoencoderKL:
    torch.manual_seed(0)
    return AutoencoderKL(
        block_out_channels=(4,),
        latent_channels=1,
        layers_per_block=1,
        norm_num_groups=1,
        sample_size=32,
        scaling_factor=1.5,
        shift_factor=0.06,
        use_post_quant_conv=False,
        use_quant_conv=False,
    )


def transformer(num_layers: int, num_single_layers: int) -> FluxTransformer2DModel:
    torch.manual_seed(0)
    return FluxTransformer2DModel(
        attention_head_dim=16,
        axes_dims_rope=(4, 4, 8),
        in_channels=4,
        joint_attention_dim=WIDTH,
        num_attention_heads=2,
        num_layers=num_layers,
        num_single_layers=num_single_layers,
        patch_size=1,
        pooled_projection_dim=WIDTH,
    )


class LocalComponents:
    """Components with the sizes that the suite expects; its own fetch tokenizers from the hub."""

    pipeline_class: type[FluxPipeline]

    def get_dummy_components(self, num_layers: int = 1, num_single_layers: int = 1) -> dict[str, Any]:
        return {
            **text_encoders(),
            "scheduler": FlowMatchEulerDiscreteScheduler(),
            "transformer": transformer(num_layers, num_single_layers),
            "vae": vae(),
            "image_encoder": None,
            "feature_extractor": None,
        }

    @pytest.fixture(autouse=True)
    def _visible_to_source_parser(self, monkeypatch: pytest.MonkeyPatch) -> None:
        # The suite reads the source of the class that diffusers has under its name.
        monkeypatch.setattr(diffusers.pipelines, self.pipeline_class.__name__, self.pipeline_class, raising=False)


def suites() -> Iterator[tuple[str, tuple[type, ...]]]:
    """Names and bases of the test classes, without those that load released checkpoints."""
    tools = upstream("pipelines.testing_utils")
    module = upstream("pipelines.flux.test_pipeline_flux")
    for name, value in vars(module).items():
        if name.startswith("Test") and issubclass(value, tools.BasePipelineTesterConfig):
            yield name, (LocalComponents, value)
    # Upstream skips all memory tests without an accelerator; these two run anywhere.
    anywhere = (tools.PipelineOffloadTesterMixin, tools.LayerwiseCastingTesterMixin)
    yield "TestFluxPipelinePlacement", (LocalComponents, *anywhere, module.FluxPipelineTesterConfig)


for suite_name, bases in suites():
    for pipeline_class in PIPELINES:
        class_name = suite_name.replace("FluxPipeline", pipeline_class.__name__)
        namespace = {"pipeline_class": pipeline_class, "__module__": __name__}
        globals()[class_name] = type(class_name, bases, namespace)
