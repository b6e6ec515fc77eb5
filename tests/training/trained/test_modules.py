"""Untrained modules of methods: their first step, their gradients and their files."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from diffusers import FluxControlNetModel, ReduxImageEncoder
from safetensors.torch import load_file

from benchmarks.support.tiny.controlnet import EXTRA, PICTURE
from benchmarks.support.tiny.infinite_you import face
from benchmarks.support.tiny.ip_adapter import image_embeds
from benchmarks.support.tiny.lora_encoder import tiny_lora
from benchmarks.support.tiny.nexus_gen import MERGER
from diffusers_flux_ext import (
    AttributeValueEncoder,
    Canvas,
    ControlNetImage,
    EncodedConditions,
    FluxCondition,
    FluxConditionedPipeline,
    FluxExtControlNetModel,
    FluxIPAdapter,
    FluxLoRAEncoder,
    FluxLoRAFusion,
    InfiniteYouIdentity,
    InfiniteYouImageProjector,
    IPAdapterImages,
    NexusGenAdapter,
    NexusGenEditingMerger,
    Step1XConnector,
    enable_lora_fusion,
    load_lora,
    predict_velocity,
    regional_attention,
)
from diffusers_flux_ext.denoise import DenoisingStep, PromptEmbeds
from diffusers_flux_ext.methods.method import resolve
from diffusers_flux_ext.methods.redux.checkpoint import load_redux_embedder
from diffusers_flux_ext.testing import seeded, tiny_pipeline, tiny_transformer
from diffusers_flux_ext.training.trained import (
    ExportInfo,
    LoRAOptions,
    TrainedModule,
    TrainedTogether,
    add_lora,
    from_scratch,
    mark_trainable,
    trainable_modules,
)
from tests.fixtures.trained import shake, velocity


BLOCKS = {"num_layers": 1, "num_single_layers": 2}
# Modules that are not in these tables are made of their default sizes, and read back by `from_single_file` if they
# have it.
SIZES: dict[str, dict[str, Any]] = {
    "controlnet": BLOCKS,
    "infuse-net": BLOCKS,
    "identity-projector": {"dim": 24, "depth": 2, "dim_head": 6, "heads": 4, "num_queries": 3},
    "ip-adapter": {"image_embed_dim": 24, "num_tokens": 3},
    "attribute-encoder": {"attributes": ("brightness", "detail"), "num_tokens": 3, "embed_dim": 16},
    "lora-encoder": {"intermediate_size": 48, "num_attention_heads": 4, "num_embeds_per_layer": 3},
    "lora-fusion": {},
    "nexus-adapter": {"input_dim": 32},
    "nexus-merger": {name: value for name, value in MERGER.items() if name != "output_dim"},
    "redux-embedder": {"redux_dim": 24},
    "step1x-connector": {"in_channels": 32, "num_attention_heads": 4, "frequency_dim": 16},
}
READERS: dict[str, tuple[type, Callable[..., Any]]] = {
    "controlnet": (FluxControlNetModel, lambda files: FluxExtControlNetModel.from_single_file(
        files[0], attention_head_dim=16, num_attention_heads=2, axes_dims_rope=(4, 6, 6)
    )),
    "identity-projector": (
        InfiniteYouImageProjector, lambda files: InfiniteYouImageProjector.from_single_file(files[0], dim_head=6)
    ),
    "ip-adapter": (FluxIPAdapter, lambda files: FluxIPAdapter.from_single_file(files[0], attention_head_dim=16)),
    "attribute-encoder": (
        AttributeValueEncoder,
        lambda files: AttributeValueEncoder.from_single_file({file.stem: file for file in files}),
    ),
    "lora-encoder": (
        FluxLoRAEncoder, lambda files: FluxLoRAEncoder.from_single_file(files[0], num_attention_heads=4)
    ),
    "lora-fusion": (FluxLoRAFusion, lambda files: FluxLoRAFusion.from_single_file(files[0])),
    "nexus-adapter": (NexusGenAdapter, lambda files: NexusGenAdapter.from_single_file(files[0])),
    "nexus-merger": (
        NexusGenEditingMerger, lambda files: NexusGenEditingMerger.from_single_file(files[0], mrope_section=(2, 3, 3))
    ),
    "redux-embedder": (ReduxImageEncoder, lambda files: load_redux_embedder(files[0])),
    "step1x-connector": (
        Step1XConnector, lambda files: Step1XConnector.from_single_file(files[0], num_attention_heads=4)
    ),
}  # fmt: skip
READERS["infuse-net"] = READERS["controlnet"]


def reader_of(name: str) -> tuple[type, Callable[..., Any] | None]:
    """The class of a module, and what reads its published files, if it has any."""
    if name in READERS:
        return READERS[name]
    method, record = trainable_modules()[name]
    kind = resolve(method.package, record.module)
    return kind, (lambda files: kind.from_single_file(files[0])) if hasattr(kind, "from_single_file") else None


def test_the_tables_name_modules() -> None:
    assert SIZES.keys() | READERS.keys() <= trainable_modules().keys()


@pytest.mark.parametrize("name", trainable_modules())
def test_modules_are_drawn_from_the_seed_trained_exported_and_read_back(name: str, tmp_path: Path) -> None:
    transformer = tiny_transformer()
    before = torch.get_rng_state()
    given = SIZES.get(name, {})
    module, same, other = (from_scratch(name, transformer, seed=seed, **given) for seed in (0, 0, 1))
    assert torch.equal(torch.get_rng_state(), before)
    weights = module.state_dict()
    assert all(torch.equal(value, same.state_dict()[key]) for key, value in weights.items())
    if name not in ("controlnet", "infuse-net"):
        assert any(not torch.equal(value, other.state_dict()[key]) for key, value in weights.items())

    trained = TrainedModule(module, name, single_file=True)
    assert len(trained.named_parameters()) == len(list(module.parameters()))
    assert all(parameter.requires_grad for parameter in module.parameters())
    shake(trained)
    state = trained.state()
    folder, *files = trained.export(tmp_path, ExportInfo("owner/base"))
    kind, read = reader_of(name)
    for loaded in (kind.from_pretrained(folder), *([read(files)] if read else [])):
        assert loaded.state_dict().keys() == weights.keys()
        assert all(torch.equal(value, state[f"{name}.{key}"]) for key, value in loaded.state_dict().items())
        # JSON has lists for tuples.
        sizes = {key: module.config[key] for key in given}
        assert json.loads(json.dumps({key: loaded.config[key] for key in sizes})) == json.loads(json.dumps(sizes))


@pytest.mark.parametrize(
    "name, sizes, key",
    [
        ("controlnet", {"num_layers": 2, "num_single_layers": 0, "pixels": True}, "pos_embed_input.weight"),
        (
            "ip-adapter",
            {"kind": "xlabs", "image_embed_dim": 12},
            "double_blocks.1.processor.ip_adapter_double_stream_v_proj.bias",
        ),
    ],
)
def test_xlabs_modules_are_written_with_their_names(
    name: str, sizes: dict[str, Any], key: str, tmp_path: Path
) -> None:
    trained = TrainedModule(from_scratch(name, tiny_transformer(), **sizes), name, single_file=True)
    shake(trained)
    _, *files = trained.export(tmp_path, ExportInfo("base"))
    assert key in load_file(files[0])
    loaded = READERS[name][1](files)
    assert all(torch.equal(value, trained.state()[f"{name}.{key}"]) for key, value in loaded.state_dict().items())
    assert loaded.config.get("after_block", True)


def canvas() -> Canvas:
    return Canvas(32, 48, 1, 1, torch.device("cpu"), torch.float32)


def some_step() -> DenoisingStep:
    generator = seeded(0)
    prompt = PromptEmbeds(
        torch.randn(1, 5, 40, generator=generator), torch.randn(1, 24, generator=generator), torch.zeros(5, 3)
    )
    latents = torch.randn(1, 6, 64, generator=generator)
    ids = torch.cartesian_prod(torch.arange(1.0), torch.arange(2.0), torch.arange(3.0))
    return DenoisingStep(0, 1, "cond", torch.tensor([0.5]), latents, ids, prompt, torch.tensor([1.0]))


def predicted(transformer: Any, condition: FluxCondition) -> torch.Tensor:
    """The velocity with a condition, as training computes it."""
    pipe = tiny_pipeline(FluxConditionedPipeline, transformer=transformer)
    with torch.no_grad():
        encoded = condition.encode(pipe, canvas())
    whole = EncodedConditions.from_tensors([condition], [encoded])
    step = whole.with_prompt(some_step())
    with regional_attention(transformer):
        return predict_velocity(transformer, step, whole.contributions(step))


CONTROLNETS: dict[str, tuple[dict[str, Any], dict[str, Any]]] = {
    "plain": (BLOCKS, {}),
    "blocks by default": ({}, {}),
    "single blocks only": ({"num_layers": 0, "num_single_layers": 3}, {}),
    "union": ({**BLOCKS, "num_mode": 10}, EXTRA["union"]),
    "inpaint": ({**BLOCKS, "num_single_layers": 0, "extra_condition_channels": 4}, EXTRA["inpaint"]),
    "pixels": ({"num_layers": 2, "num_single_layers": 0, "pixels": True}, {}),
}


@pytest.mark.parametrize("kind", CONTROLNETS)
def test_an_untrained_controlnet_changes_nothing_and_learns(kind: str) -> None:
    sizes, inputs = CONTROLNETS[kind]
    transformer = tiny_transformer()
    controlnet = from_scratch("controlnet", transformer, **sizes)
    condition = ControlNetImage(controlnet, PICTURE, **inputs)
    base = predict_velocity(transformer, some_step(), [])
    velocity = predicted(transformer, condition)
    assert torch.equal(velocity, base)
    trained = TrainedModule(controlnet, "controlnet")
    mark_trainable([transformer, controlnet], trained)
    predicted(transformer, condition).pow(2).sum().backward()
    outputs = [
        parameter
        for key, parameter in controlnet.named_parameters()
        if key.startswith(("controlnet_blocks", "controlnet_single_blocks"))
    ]
    assert outputs
    assert all(bool(parameter.grad.any()) for parameter in outputs)
    assert not any(parameter.grad is not None for parameter in transformer.parameters())
    shake(trained)
    predicted(transformer, condition).pow(2).sum().backward()
    assert bool(controlnet.controlnet_x_embedder.weight.grad.any())
    assert bool(controlnet.time_text_embed.text_embedder.linear_1.weight.grad.any())


def test_the_copy_of_a_transformer_with_further_inputs_takes_the_latents() -> None:
    transformer = tiny_transformer(in_channels=384, out_channels=64)
    controlnet = from_scratch("controlnet", transformer, **BLOCKS)
    assert controlnet.config.in_channels == 64
    assert torch.equal(controlnet.x_embedder.weight, transformer.x_embedder.weight[:, :64])


def test_the_blocks_of_a_controlnet_are_the_transformers_without_adapters() -> None:
    transformer = tiny_transformer()
    weights = {name: value.clone() for name, value in transformer.state_dict().items()}
    add_lora(transformer, LoRAOptions("reference", rank=2))
    made = from_scratch("controlnet", transformer, num_layers=2, num_single_layers=1)
    copied = {key: value for key, value in made.state_dict().items() if not key.startswith("controlnet_")}
    assert len([key for key in copied if key.startswith("transformer_blocks.1.")]) > 0
    assert all(torch.equal(value, weights[key]) for key, value in copied.items())
    assert not any(bool(value.any()) for key, value in made.state_dict().items() if key.startswith("controlnet_"))


@pytest.mark.parametrize("kind", ["instantx", "xlabs"])
def test_an_untrained_ip_adapter_changes_nothing_and_learns(kind: str) -> None:
    transformer = tiny_transformer()
    adapter = from_scratch("ip-adapter", transformer, kind=kind, image_embed_dim=12, num_tokens=3)
    condition = IPAdapterImages(adapter, image_embeds=image_embeds(2))
    assert torch.equal(predicted(transformer, condition), predict_velocity(transformer, some_step(), []))
    trained = TrainedModule(adapter, "ip_adapter")
    mark_trainable([transformer, adapter], trained)
    predicted(transformer, condition).pow(2).sum().backward()
    values = {key: parameter for key, parameter in trained.named_parameters().items() if "to_v_ip" in key}
    assert values
    assert all(bool(parameter.grad.any()) for parameter in values.values())


def test_an_untrained_infuse_net_changes_nothing_and_passes_gradients_to_the_projector() -> None:
    transformer = tiny_transformer()
    net = from_scratch("infuse-net", transformer, **BLOCKS)
    sizes = {**SIZES["identity-projector"], "embedding_dim": len(face())}
    projector = from_scratch("identity-projector", transformer, **sizes)
    condition = InfiniteYouIdentity(net, projector, id_embeds=face())
    assert torch.equal(predicted(transformer, condition), predict_velocity(transformer, some_step(), []))
    trained = TrainedTogether({"net": TrainedModule(net, "net"), "projector": TrainedModule(projector, "projector")})
    assert all(parameter.requires_grad for module in (net, projector) for parameter in module.parameters())
    shake(trained)
    predicted(transformer, condition).pow(2).sum().backward()
    assert all(bool(parameter.grad.any()) for parameter in projector.parameters())


def test_gates_of_lora_fusion_learn_on_a_running_transformer() -> None:
    pipe = tiny_pipeline(FluxConditionedPipeline)
    gates = from_scratch("lora-fusion", pipe.transformer)
    for index in range(2):
        load_lora(pipe, tiny_lora(index), f"lora{index}", 0.3)
    trained = TrainedModule(gates, "gates")
    mark_trainable([pipe.transformer, gates], trained)
    enable_lora_fusion(pipe, gates)
    velocity(pipe.transformer).pow(2).sum().backward()
    assert all(bool(parameter.grad.any()) for parameter in gates.parameters())


def test_a_module_trains_beside_a_lora_and_in_parts(tmp_path: Path) -> None:
    transformer = tiny_transformer()
    controlnet = from_scratch("controlnet", transformer, **BLOCKS)
    part = TrainedModule(controlnet, "controlnet", ["controlnet_blocks", "controlnet_x_embedder"])
    assert {name.split(".")[1] for name in part.named_parameters()} == {"controlnet_blocks", "controlnet_x_embedder"}
    assert {key for key, parameter in controlnet.named_parameters() if parameter.requires_grad} == {
        name.removeprefix("controlnet.") for name in part.named_parameters()
    }
    both = TrainedTogether({"lora": add_lora(transformer, LoRAOptions("attention", rank=2)), "control": part})
    average = {name: value + 1 for name, value in both.state().items()}
    file, folder = both.export(tmp_path, ExportInfo("base"), average)
    assert (file.name, folder.name) == ("pytorch_lora_weights.safetensors", "controlnet")
    loaded = FluxControlNetModel.from_pretrained(folder)
    assert bool((loaded.controlnet_blocks[0].weight == 1).all())
    assert torch.equal(loaded.x_embedder.weight, controlnet.x_embedder.weight)


def test_wrong_names_and_sizes_are_refused() -> None:
    transformer = tiny_transformer()
    with pytest.raises(ValueError, match="`name` is 'control'; expected one of \\[.*'controlnet'"):
        from_scratch("control", transformer)
    with pytest.raises(TypeError, match="'controlnet' has no sizes \\['layers'\\]; it takes \\['num_layers'"):
        from_scratch("controlnet", transformer, layers=2)
    with pytest.raises(TypeError, match="'ip-adapter' has no sizes \\['tokens'\\]; it takes .*'num_tokens'"):
        from_scratch("ip-adapter", transformer, tokens=2)
    with pytest.raises(ValueError, match="`num_layers` is 3; expected a number from 0 to 2"):
        from_scratch("controlnet", transformer, num_layers=3)
    with pytest.raises(ValueError, match="`kind` of the IP-Adapter is 'other'"):
        from_scratch("ip-adapter", transformer, kind="other")
    with pytest.raises(ValueError, match="`version` of Step1X-Edit's connector is '1.2'"):
        from_scratch("step1x-connector", transformer, version="1.2")
    with pytest.raises(ValueError, match="`name` is 'a.b'; expected a name without dots"):
        TrainedModule(from_scratch("lora-fusion", transformer), "a.b")
    quanto = pytest.importorskip("optimum.quanto", reason="needs optimum-quanto")
    quanto.quantize(transformer, weights=quanto.qint8)
    quanto.freeze(transformer)
    with pytest.raises(ValueError, match="of the transformer is quantised, so a ControlNet cannot begin as its copy"):
        from_scratch("controlnet", transformer, **BLOCKS)
