"""Stage "flow": the transformer, together with the text encoders, by flow matching."""

import random

import torch
from diffusers.pipelines.flux.pipeline_flux import FluxPipeline
from transformers import CLIPTextModel, T5EncoderModel

from diffusers_flux_ext.denoise import PromptEmbeds
from diffusers_flux_ext.training import atomic_path, flow_matching_loss, sample_timesteps

from .latents import load_latents
from .loop import train_stage
from .models import assemble, build_transformer, load_tokenizers
from .settings import Draws, Settings
from .text import clip_ids, t5_ids, varied_caption


TIMESTEP_SHIFT, UNIFORM_SHARE = 3.2, 0.15
_LENGTHS, _LENGTH_WEIGHTS = (32, 64, 128), (0.75, 0.15, 0.1)
# Shares of images without any text, without CLIP's and without T5's.
_NO_TEXT, _NO_CLIP, _NO_T5 = 0.10, 0.06, 0.03


def train_flow(settings: Settings) -> None:
    """Train the transformer from nothing and save the finished pipeline in bfloat16.

    Muon moves the blocks' matrices, AdamW everything else, the text encoders at 0.3 of its rate.

    Args:
        settings (`Settings`): The run; writes its `pipeline` folder.
    """
    torch.manual_seed(settings.seed)
    folder = settings.text_encoders
    transformer = build_transformer()
    clip = CLIPTextModel.from_pretrained(folder / "text_encoder")
    t5 = T5EncoderModel.from_pretrained(folder / "text_encoder_2")
    networks = torch.nn.ModuleDict({"transformer": transformer, "text_encoder": clip, "text_encoder_2": t5})
    networks.to(settings.device)
    parameters = dict(networks.named_parameters())
    batches = FlowBatches(settings, networks)
    steps = settings.amounts.flow_steps
    average = train_stage(settings, "flow", steps, parameters, build_optimizers(parameters), batches.loss)
    with average.applied():
        pipeline = assemble(settings, clip, t5, transformer.eval())
        with atomic_path(settings.pipeline) as path:
            pipeline.to(dtype=torch.bfloat16).save_pretrained(path)


class FlowBatches:
    """Draws batches and computes their loss.

    Args:
        settings (`Settings`): The run.
        networks (`torch.nn.ModuleDict`): `transformer`, `text_encoder` and `text_encoder_2`.
    """

    def __init__(self, settings: Settings, networks: torch.nn.ModuleDict) -> None:
        self.settings, self.networks = settings, networks
        self.transformer = networks["transformer"]
        if settings.compile:
            self.transformer.compile(dynamic=False)
        self.tokenizer, self.tokenizer_2 = load_tokenizers(settings)
        self.latents, self.scenes = load_latents(settings, "named")
        self.latent_ids = image_ids(settings.device)

    def loss(self, step: int, draws: Draws) -> torch.Tensor:
        """Return the loss of one batch.

        Args:
            step (`int`): Unused: every step is alike.
            draws (`Draws`): Random sources.

        Returns:
            `torch.Tensor` of shape `()`.
        """
        size, device = self.settings.amounts.batch_size, self.settings.device
        chosen = [draws.rng.randrange(len(self.scenes)) for _ in range(size)]
        latents = self.latents[chosen].float()
        noise = draws.normal(*latents.shape)
        timestep = sample_timesteps(size, TIMESTEP_SHIFT, UNIFORM_SHARE, draws.generator)
        # The architecture needs this input; the model is not distilled, so any value must work.
        guidance = 1 + 4 * torch.rand(size, generator=draws.generator)
        prompt = self._encode(chosen, draws.rng)
        return flow_matching_loss(
            self.transformer,
            latents.to(device),
            noise.to(device),
            timestep.to(device),
            self.latent_ids,
            prompt,
            guidance=guidance.to(device),
        ).mean()

    def _encode(self, chosen: list[int], rng: random.Random) -> PromptEmbeds:
        length = rng.choices(_LENGTHS, _LENGTH_WEIGHTS)[0]
        captions = [varied_caption(self.scenes[index], rng) for index in chosen]
        kept = [_drop(caption, rng.random()) for caption in captions]
        device = self.settings.device
        pooled_ids = clip_ids(self.tokenizer, [for_clip for for_clip, _ in kept]).to(device)
        token_ids = t5_ids(self.tokenizer_2, [for_t5 for _, for_t5 in kept], length).to(device)
        return PromptEmbeds(
            self.networks["text_encoder_2"](token_ids).last_hidden_state,
            self.networks["text_encoder"](pooled_ids).pooler_output,
            torch.zeros(length, 3, device=device),
        )


def build_optimizers(parameters: dict[str, torch.nn.Parameter]) -> list[torch.optim.Optimizer]:
    """Muon for the matrices of the transformer's blocks, AdamW for the rest.

    Args:
        parameters (`dict[str, torch.nn.Parameter]`): By name, `transformer.` and `text_encoder` in front.

    Returns:
        `list[torch.optim.Optimizer]`

    Raises:
        RuntimeError: if this version of torch has no Muon.
    """
    if not hasattr(torch.optim, "Muon"):
        raise RuntimeError(f"This stage needs `torch.optim.Muon`, which torch {torch.__version__} lacks; take 2.9.")
    matrices = [value for name, value in parameters.items() if _is_block_matrix(name, value)]
    texts = [value for name, value in parameters.items() if name.startswith("text_encoder")]
    others = [
        value
        for name, value in parameters.items()
        if not name.startswith("text_encoder") and not _is_block_matrix(name, value)
    ]
    groups = [{"params": others, "lr": 1e-3}, {"params": texts, "lr": 3e-4}]
    return [
        torch.optim.Muon(matrices, lr=2e-3, weight_decay=0.01, adjust_lr_fn="match_rms_adamw"),
        torch.optim.AdamW(groups, betas=(0.9, 0.98), weight_decay=0.01),
    ]


def image_ids(device: str | torch.device) -> torch.Tensor:
    """Return rotary positions `(64, 3)` of an image of 128 x 128 pixels."""
    return FluxPipeline._prepare_latent_image_ids(1, 8, 8, torch.device(device), torch.float32)


def _is_block_matrix(name: str, value: torch.Tensor) -> bool:
    return "transformer_blocks." in name and value.ndim == 2 and ".norm" not in name


def _drop(caption: str, draw: float) -> tuple[str, str]:
    """Return what CLIP and T5 get to read."""
    for_clip = "" if draw < _NO_TEXT + _NO_CLIP else caption
    without_t5 = draw < _NO_TEXT or _NO_TEXT + _NO_CLIP < draw < _NO_TEXT + _NO_CLIP + _NO_T5
    return for_clip, "" if without_t5 else caption
