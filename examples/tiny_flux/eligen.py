"""Stage "eligen": a LoRA that makes the finished model obey entity regions."""

import random
from dataclasses import dataclass

import torch
from diffusers.pipelines.flux.pipeline_flux import FluxPipeline
from diffusers.training_utils import _collate_lora_metadata
from peft import LoraConfig
from peft.utils import get_peft_model_state_dict

from diffusers_flux_ext import flux_shapes
from diffusers_flux_ext.canvas import Canvas
from diffusers_flux_ext.denoise import PromptEmbeds
from diffusers_flux_ext.inputs.masks import mask_to_tokens
from diffusers_flux_ext.methods.eligen.condition import entity_rules
from diffusers_flux_ext.sequence import Contribution, TokenGroup
from diffusers_flux_ext.training import atomic_path, flow_matching_loss, sample_timesteps

from .flow import TIMESTEP_SHIFT, UNIFORM_SHARE, image_ids
from .latents import load_latents
from .loop import train_stage
from .settings import Draws, Settings


RANK = 32
_LEARNING_RATE = 2e-3
_PROMPT_LENGTH = 32
_GUIDANCE = 3.5
_LEAVES = (
    "to_q",
    "to_k",
    "to_v",
    "to_out.0",
    "add_q_proj",
    "add_k_proj",
    "add_v_proj",
    "to_add_out",
    "ff.net.0.proj",
    "ff.net.2",
    "ff_context.net.0.proj",
    "ff_context.net.2",
    "proj_mlp",
)


@dataclass(frozen=True)
class BatchKind:
    """Shape of a batch: all its samples have the same number of entities and text length.

    Args:
        entities (`int`): Entities per image; 0 trains the empty prompt that guidance compares with.
        length (`int`): Text tokens per entity.
        weight (`float`): Relative frequency.
    """

    entities: int
    length: int
    weight: float


# Few shapes, so that a compiled transformer is compiled for few: 32, 48 or 96 entity tokens, or none.
BATCH_KINDS = (
    BatchKind(2, 16, 0.38),
    BatchKind(3, 16, 0.40),
    BatchKind(2, 24, 0.04),
    BatchKind(1, 32, 0.04),
    BatchKind(2, 48, 0.02),
    BatchKind(3, 32, 0.07),
    BatchKind(0, 0, 0.05),
)


def train_eligen(settings: Settings) -> None:
    """Train the LoRA on the finished pipeline and save it in diffusers' layout.

    Args:
        settings (`Settings`): The run; writes its `lora` file.
    """
    torch.manual_seed(settings.seed)
    pipeline = FluxPipeline.from_pretrained(settings.pipeline, dtype=torch.float32).to(settings.device)
    transformer = pipeline.transformer.requires_grad_(False)
    transformer.add_adapter(LoraConfig(r=RANK, lora_alpha=RANK, target_modules=lora_targets(transformer)))
    parameters = {name: value for name, value in transformer.named_parameters() if value.requires_grad}
    optimizer = torch.optim.AdamW(parameters.values(), lr=_LEARNING_RATE, betas=(0.9, 0.98), weight_decay=0.0)
    batches, steps = EntityBatches(settings, pipeline), settings.amounts.eligen_steps
    average = train_stage(settings, "eligen", steps, parameters, [optimizer], batches.loss, flat_until=0.5)
    with average.applied():
        save_lora(settings, transformer)


def lora_targets(transformer: torch.nn.Module) -> list[str]:
    """Return full names of the adapted Linears: attention and MLPs of all blocks, neither modulation nor embedders.

    Args:
        transformer (`FluxTransformer2DModel`): The model.

    Returns:
        `list[str]`
    """
    linears = [name for name, module in transformer.named_modules() if isinstance(module, torch.nn.Linear)]
    in_blocks = [name for name in linears if "transformer_blocks." in name]
    # The full name tells a single block's output from the model's last layer, which has the same name.
    return [name for name in in_blocks if name.endswith(_LEAVES) or name.endswith(".proj_out")]


def save_lora(settings: Settings, transformer: torch.nn.Module) -> None:
    """Write the adapter in bfloat16.

    Args:
        settings (`Settings`): The run; writes its `lora` file.
        transformer (`FluxTransformer2DModel`): The model with the adapter.
    """
    layers = {name: value.bfloat16() for name, value in get_peft_model_state_dict(transformer).items()}
    metadata = _collate_lora_metadata({"transformer": transformer})
    with atomic_path(settings.lora) as file:
        FluxPipeline.save_lora_weights(file.parent, layers, weight_name=file.name, **metadata)


class EntityBatches:
    """Draws batches of images with entities and computes their loss.

    Args:
        settings (`Settings`): The run.
        pipeline (`FluxPipeline`): Gives the transformer with the adapter and the frozen text encoders.
    """

    def __init__(self, settings: Settings, pipeline: FluxPipeline) -> None:
        self.settings, self.pipeline = settings, pipeline
        if settings.compile:
            pipeline.transformer.compile(dynamic=False)
        self.data = {count: load_latents(settings, f"free_{count}") for count in (1, 2, 3)}
        self.latent_ids = image_ids(settings.device)
        self.canvas = Canvas(128, 128, 1, 1, torch.device("cpu"), torch.float32)
        self._phrases: dict[tuple[str, int], torch.Tensor] = {}
        self._captions: dict[str, tuple[torch.Tensor, torch.Tensor]] = {}

    def loss(self, step: int, draws: Draws) -> torch.Tensor:
        """Return the loss of one batch.

        Args:
            step (`int`): Unused: every step is alike.
            draws (`Draws`): Random sources.

        Returns:
            `torch.Tensor` of shape `()`.
        """
        rng, size, device = draws.rng, self.settings.amounts.batch_size, self.settings.device
        kind = rng.choices(BATCH_KINDS, [each.weight for each in BATCH_KINDS])[0]
        latents, scenes = self.data[kind.entities or rng.choice((1, 2, 3))]
        chosen = [rng.randrange(len(scenes)) for _ in range(size)]
        picked = [shuffled(scenes[index], rng) for index in chosen]
        clean = latents[chosen].float()
        noise = draws.normal(*clean.shape)
        timestep = sample_timesteps(size, TIMESTEP_SHIFT, UNIFORM_SHARE, draws.generator)
        contributions = [self._entities(picked, kind, rng)] if kind.entities else []
        prompt = self._prompts([global_prompt(scene, rng, bool(kind.entities)) for scene in picked])
        return flow_matching_loss(
            self.pipeline.transformer,
            clean.to(device),
            noise.to(device),
            timestep.to(device),
            self.latent_ids,
            prompt,
            contributions,
            torch.full((size,), _GUIDANCE, device=device),
        ).mean()

    def _entities(self, scenes: list[flux_shapes.Scene], kind: BatchKind, rng: random.Random) -> Contribution:
        """Return what [`EntityRegions`] contributes, from cached texts."""
        boxes = [flux_shapes.sample_boxes(scene, rng) for scene in scenes]
        groups, rules = [], []
        for index in range(kind.entities):
            texts = [spoken(flux_shapes.entity_phrase(scene.objects[index]), rng) for scene in scenes]
            tokens = torch.stack([self._phrase(text, kind.length) for text in texts])
            name = f"entity_{index}"
            groups.append(TokenGroup(name, tokens, torch.zeros(kind.length, 3, device=tokens.device)))
            masks = torch.stack([mask_to_tokens(sample[index], self.canvas) for sample in boxes])
            rules += entity_rules(name, masks)
        return Contribution(text=groups, rules=rules)

    @torch.no_grad()
    def _phrase(self, text: str, length: int) -> torch.Tensor:
        if (text, length) not in self._phrases:
            embeds = self.pipeline._get_t5_prompt_embeds([text], max_sequence_length=length)
            self._phrases[text, length] = embeds[0]
        return self._phrases[text, length]

    @torch.no_grad()
    def _prompts(self, texts: list[str]) -> PromptEmbeds:
        for text in texts:
            if text not in self._captions:
                tokens, pooled, _ = self.pipeline.encode_prompt(text, None, max_sequence_length=_PROMPT_LENGTH)
                self._captions[text] = tokens[0], pooled[0]
        tokens, pooled = (torch.stack(parts) for parts in zip(*(self._captions[text] for text in texts)))
        return PromptEmbeds(tokens, pooled, torch.zeros(_PROMPT_LENGTH, 3, device=tokens.device))


def shuffled(scene: flux_shapes.Scene, rng: random.Random) -> flux_shapes.Scene:
    """Return the same scene with its objects in random order."""
    return flux_shapes.Scene(scene.background, tuple(rng.sample(scene.objects, len(scene.objects))), scene.layout)


def global_prompt(scene: flux_shapes.Scene, rng: random.Random, has_entities: bool) -> str:
    """Return the global prompt: everything, only the background, or nothing; without entities mostly nothing.

    Args:
        scene (`Scene`): The scene.
        rng (`random.Random`): Chooses.
        has_entities (`bool`): Whether the image has entities.

    Returns:
        `str`
    """
    kinds = ("full", "background", "empty")
    kind = rng.choices(kinds, (0.5, 0.3, 0.2) if has_entities else (0.3, 0.0, 0.7))[0]
    if kind == "empty":
        return ""
    return flux_shapes.caption(scene, rng) if kind == "full" else flux_shapes.background_caption(scene)


def spoken(phrase: str, rng: random.Random) -> str:
    """Return an entity phrase as users may write it: usually plain, sometimes without article or with a full stop."""
    variants = (phrase, phrase.split(" ", 1)[1], f"{phrase}.", phrase.capitalize())
    return rng.choices(variants, (3, 1, 1, 1))[0]
