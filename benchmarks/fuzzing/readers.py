"""The readers, converters and commands that take files of models, configs and checkpoints."""

from __future__ import annotations

import importlib.util
from collections.abc import Callable, Mapping
from functools import cache
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file

from benchmarks.support.diffsynth.models import bfl_dit, bfl_vae, clip, prefixed, projector, published_llm, siglip, t5
from benchmarks.support.tiny.attribute_values import tiny_value_encoder
from benchmarks.support.tiny.controlnet import tiny_controlnet
from benchmarks.support.tiny.infinite_you import tiny_projector
from benchmarks.support.tiny.ip_adapter import XLABS, tiny_ip_adapter, xlabs_state_dict
from benchmarks.support.tiny.lora_encoder import tiny_lora_encoder
from benchmarks.support.tiny.lora_fusion import tiny_fusion
from benchmarks.support.tiny.nexus_gen import MERGER, published_decoder, tiny_adapter, tiny_merger
from benchmarks.support.tiny.redux import tiny_redux_embedder
from benchmarks.support.tiny.step1x import published_weights, tiny_connector
from diffusers_flux_ext import (
    AttributeValueEncoder,
    AutoencoderKLFlux,
    FluxExtControlNetModel,
    FluxExtTransformer2DModel,
    FluxIPAdapter,
    FluxLoRAEncoder,
    FluxLoRAFusion,
    InfiniteYouImageProjector,
    NexusGenAdapter,
    NexusGenEditingMerger,
    Step1XConnector,
    load_nexus_gen_decoder,
    load_redux_embedder,
    load_streamed,
    tiny_flux_path,
)
from diffusers_flux_ext.checkpoints.layouts import convert_transformer_state_dict
from diffusers_flux_ext.checkpoints.modules import read_weights_file
from diffusers_flux_ext.cli.main import main as command
from diffusers_flux_ext.diffsynth import ModelConfig
from diffusers_flux_ext.diffsynth.loading import load_models
from diffusers_flux_ext.models.text_encoders import load_clip_text, load_qwen_vl, load_siglip, load_t5_encoder
from diffusers_flux_ext.testing import tiny_transformer
from diffusers_flux_ext.training import load_checkpoint, save_checkpoint

from .reader import Reader


AXES: dict[str, Any] = {"axes_dims_rope": (4, 6, 6)}
AXES_FLAG = ("--axes-dims-rope", "4", "6", "6")
SECTION: dict[str, Any] = {"mrope_section": MERGER["mrope_section"]}
SCRIPTS = Path(__file__).parents[2] / "conversion_scripts"
Weights = Callable[[], Mapping[str, Any]]


def stored(name: str, weights: Weights) -> Callable[[Path], Path]:
    """Build a file of weights, as safetensors or as a pickle by the suffix of its name."""

    def build(folder: Path) -> Path:
        content = weights()
        if name.endswith(".safetensors"):
            save_file({k: v.clone().contiguous() for k, v in content.items()}, folder / name, {"format": "pt"})
        else:
            torch.save(dict(content), folder / name)
        return folder / name

    return build


def saved(make: Callable[[], Any], name: str, **options: Any) -> Callable[[Path], Path]:
    """Build a folder as `save_pretrained` writes it, of which one file is changed."""

    def build(folder: Path) -> Path:
        make().save_pretrained(folder, **options)
        return folder / name

    return build


@cache
def _script(name: str) -> Any:
    spec = importlib.util.spec_from_file_location(name, SCRIPTS / f"{name}.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def script(name: str, *options: str, suffix: str = "", whole: bool = False) -> Callable[[Path, Path], int]:
    """Call a conversion script on the file, or on its `whole` folder, with a target of the given suffix."""

    def call(path: Path, target: Path) -> int:
        source = path.parent if whole else path
        return _script(name).main([str(source), str(target.with_suffix(suffix)), *options])

    return call


def tiny_transformer_in(layout: Any) -> Weights:
    """Return the tiny transformer's weights in a layout."""
    return lambda: convert_transformer_state_dict(tiny_transformer(0).state_dict(), to=layout)


def _step1x() -> dict[str, Any]:
    connector = {f"connector.{key}": value for key, value in published_weights(tiny_connector()).items()}
    return {**tiny_transformer_in("bfl")(), **connector}


def _infinite_you(folder: Path) -> Path:
    infusenet = folder / "InfuseNetModel"
    tiny_controlnet().save_pretrained(infusenet)
    return stored("image_proj_model.bin", lambda: {"image_proj": tiny_projector().state_dict()})(folder)


def _infusenet(folder: Path) -> Path:
    _infinite_you(folder)
    return folder / "InfuseNetModel" / "config.json"


def _training_weights() -> dict[str, torch.Tensor]:
    return {"a.weight": torch.ones(3, 2), "b": torch.arange(4.0)}


def _training(folder: Path) -> Path:
    weights = {"a.weight": torch.nn.Parameter(torch.ones(3, 2)), "b": torch.nn.Parameter(torch.arange(4.0))}
    optimizer = torch.optim.AdamW(weights.values())
    sum(weight.sum() for weight in weights.values()).backward()  # type: ignore[union-attr]
    optimizer.step()
    save_checkpoint(folder / "checkpoint.safetensors", 3, weights, [optimizer])
    return folder / "checkpoint.safetensors"


def _read_training(path: Path, target: Path) -> None:
    weights = {name: torch.nn.Parameter(value) for name, value in _training_weights().items()}
    load_checkpoint(path, weights, [torch.optim.AdamW(weights.values())])


def _pipeline_configs(name: str) -> Callable[[Path], Path]:
    """Return the configs of the tiny pipeline, without weights."""

    def build(folder: Path) -> Path:
        source = Path(tiny_flux_path())
        for config in (*source.glob("*.json"), *source.glob("*/*config.json")):
            copy = folder / config.relative_to(source)
            copy.parent.mkdir(exist_ok=True)
            copy.write_bytes(config.read_bytes())
        return folder / name

    return build


def _plan(path: Path, target: Path) -> int:
    code = command(["plan", "--model", str(_root(path)), "--size", "128", "--vram", "8"])
    # 1 is a valid exit code: such models do not fit on such a card.
    return 0 if code == 1 else code


def _pipeline(name: str) -> Callable[[Path], Path]:
    """Return the tiny pipeline; of its large files only the changed one is a copy."""

    def build(folder: Path) -> Path:
        source = Path(tiny_flux_path())
        for file in source.rglob("*.*"):
            copy = folder / file.relative_to(source)
            copy.parent.mkdir(exist_ok=True)
            if str(file.relative_to(source)) == name:
                copy.write_bytes(file.read_bytes())
            else:
                copy.symlink_to(file)
        return folder / name

    return build


def _generate(path: Path, target: Path) -> int:
    call = ["--prompt", "a red circle", "--steps", "1", "--size", "32", "--text-tokens", "16", "--device", "cpu"]
    return command(["generate", "--model", str(_root(path)), *call, "--out", str(target.with_suffix(".png"))])


def _root(path: Path) -> Path:
    return path.parent if (path.parent / "model_index.json").exists() else path.parent.parent


def _unsharded(folder: Path) -> Path:
    return saved(lambda: tiny_transformer(0), "diffusion_pytorch_model.safetensors")(folder)


def _shard(folder: Path) -> Path:
    saved(lambda: tiny_transformer(0), "", max_shard_size="100KB")(folder)
    return sorted(folder.glob("*.safetensors"))[0]


def _index(folder: Path) -> Path:
    return saved(
        lambda: tiny_transformer(0), "diffusion_pytorch_model.safetensors.index.json", max_shard_size="100KB"
    )(folder)


def _streamed(path: Path, target: Path) -> Any:
    return load_streamed(FluxExtTransformer2DModel, path.parent)


def _config(folder: Path) -> Path:
    return saved(lambda: tiny_transformer(0), "config.json")(folder)


def _translated(path: Path) -> Any:
    return load_models([ModelConfig(path=str(path))], torch.float32)


CLASSES: tuple[tuple[str, str, Weights, Callable[[Path], Any]], ...] = (
    *(
        (f"transformer, {layout}", "model.safetensors", tiny_transformer_in(layout),
         lambda path: FluxExtTransformer2DModel.from_single_file(path, **AXES))
        for layout in ("diffusers", "bfl", "diffsynth")
    ),
    ("controlnet", "model.safetensors", lambda: tiny_controlnet(0, "inpaint").state_dict(),
     lambda path: FluxExtControlNetModel.from_single_file(path, **AXES)),
    ("controlnet, union", "model.safetensors", lambda: tiny_controlnet(0, "union").state_dict(),
     lambda path: FluxExtControlNetModel.from_single_file(path, **AXES)),
    ("step1x connector", "step1x.safetensors", _step1x,
     lambda path: Step1XConnector.from_single_file(path, num_attention_heads=2)),
    ("infinite you projector", "image_proj_model.bin", lambda: {"image_proj": tiny_projector().state_dict()},
     lambda path: InfiniteYouImageProjector.from_single_file(path, dim_head=8)),
    ("infinite you projector, safetensors", "projector.safetensors", lambda: tiny_projector().state_dict(),
     lambda path: InfiniteYouImageProjector.from_single_file(path, dim_head=8)),
    ("ip-adapter, pickle", "ip-adapter.bin", lambda: tiny_ip_adapter(1).state_dict(),
     lambda path: FluxIPAdapter.from_single_file(path, attention_head_dim=16)),
    ("ip-adapter, xlabs", "ip.safetensors",
     lambda: xlabs_state_dict(tiny_ip_adapter(1, **XLABS)),
     lambda path: FluxIPAdapter.from_single_file(path, attention_head_dim=16)),
    ("redux", "redux.safetensors", lambda: tiny_redux_embedder().state_dict(), load_redux_embedder),
    ("redux, pickle", "redux.pt", lambda: tiny_redux_embedder().state_dict(), load_redux_embedder),
    ("attribute values", "detail.safetensors", lambda: dict(tiny_value_encoder().encoders[0].state_dict()),
     AttributeValueEncoder.from_single_file),
    ("lora encoder", "encoder.safetensors", lambda: tiny_lora_encoder().state_dict(),
     lambda path: FluxLoRAEncoder.from_single_file(path, num_attention_heads=4)),
    ("lora fusion", "fusion.safetensors", lambda: tiny_fusion().state_dict(), FluxLoRAFusion.from_single_file),
    ("nexus adapter", "generation_decoder.bin", lambda: published_decoder(tiny_transformer(0), tiny_adapter()),
     NexusGenAdapter.from_single_file),
    ("nexus merger", "edit_decoder.bin", lambda: published_decoder(tiny_transformer(0), tiny_merger()),
     lambda path: NexusGenEditingMerger.from_single_file(path, **SECTION)),
    ("nexus decoder", "edit_decoder.bin", lambda: published_decoder(tiny_transformer(0), tiny_merger()),
     lambda path: load_nexus_gen_decoder(path, **SECTION, **AXES)),
    ("single clip", "clip.safetensors", lambda: prefixed(clip(), "text_model."), load_clip_text),
    ("single t5", "t5.safetensors", lambda: t5().state_dict(), load_t5_encoder),
    ("single siglip", "siglip.safetensors", lambda: prefixed(siglip(16), "vision_model."), load_siglip),
    ("single qwen", "qwen.safetensors", lambda: published_llm("step1x"), load_qwen_vl),
    ("single vae", "ae.safetensors", bfl_vae, AutoencoderKLFlux.from_single_file),
    ("diffsynth, transformer", "flux1-dev.safetensors", bfl_dit, _translated),
    ("diffsynth, vae", "ae.safetensors", bfl_vae, _translated),
    ("diffsynth, t5", "t5.safetensors", lambda: t5().state_dict(), _translated),
    ("diffsynth, projector", "image_proj_model.bin", lambda: {"image_proj": dict(projector().state_dict())},
     _translated),
    ("weights file", "weights.pt", lambda: tiny_redux_embedder().state_dict(), read_weights_file),
)  # fmt: skip


def _class_reader(name: str, file: str, weights: Weights, read: Callable[[Path], Any]) -> Reader:
    return Reader(name, stored(file, weights), lambda path, target: read(path))


READERS: tuple[Reader, ...] = (
    *(_class_reader(*row) for row in CLASSES),
    Reader("streamed, shard", _shard, _streamed),
    Reader("streamed, one file", _unsharded, _streamed),
    Reader("streamed, index", _index, _streamed),
    Reader("streamed, config", _config, _streamed),
    Reader("training checkpoint", _training, _read_training),
    Reader(
        "convert_transformer to file",
        stored("model.safetensors", tiny_transformer_in("diffusers")),
        script("convert_transformer", "--to", "bfl", suffix=".safetensors"),
    ),
    Reader(
        "convert_transformer to folder",
        stored("model.safetensors", tiny_transformer_in("bfl")),
        script("convert_transformer", *AXES_FLAG),
    ),
    Reader(
        "convert_controlnet",
        stored("model.safetensors", lambda: tiny_controlnet(0, "inpaint").state_dict()),
        script("convert_controlnet", "--to", "bfl", suffix=".safetensors"),
    ),
    Reader("convert_redux", stored("redux.pt", lambda: tiny_redux_embedder().state_dict()), script("convert_redux")),
    Reader(
        "convert_ip_adapter",
        stored("ip-adapter.bin", lambda: tiny_ip_adapter(1).state_dict()),
        script("convert_ip_adapter", "--attention-head-dim", "16"),
    ),
    Reader(
        "convert_step1x_edit",
        stored("step1x.safetensors", _step1x),
        script("convert_step1x_edit", *AXES_FLAG, "--num-attention-heads", "2"),
    ),
    Reader("convert_infinite_you", _infinite_you, script("convert_infinite_you", "--dim-head", "8", whole=True)),
    Reader(
        "convert_lora_encoder",
        stored("encoder.safetensors", lambda: tiny_lora_encoder().state_dict()),
        script("convert_lora_encoder", "--num-attention-heads", "4"),
    ),
    Reader(
        "convert_attribute_values",
        stored("detail.safetensors", lambda: dict(tiny_value_encoder().encoders[0].state_dict())),
        script("convert_attribute_values"),
    ),
    Reader(
        "convert_nexus_gen",
        stored("generation_decoder.bin", lambda: published_decoder(tiny_transformer(0), tiny_adapter())),
        script("convert_nexus_gen", *AXES_FLAG, whole=True),
    ),
    *(
        Reader(f"plan, {name}", _pipeline_configs(name), _plan)
        for name in ("transformer/config.json", "vae/config.json", "text_encoder/config.json",
                     "text_encoder_2/config.json")
    ),
    *(
        Reader(f"generate, {name}", _pipeline(name), _generate, memory=2**28)
        for name in (
            "model_index.json", "transformer/config.json", "vae/config.json", "scheduler/scheduler_config.json",
            "text_encoder_2/config.json", "vae/diffusion_pytorch_model.safetensors",
        )
    ),
)  # fmt: skip
