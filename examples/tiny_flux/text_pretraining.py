"""Stage "text": teach both text encoders to read scenes, so that the transformer starts from meaningful texts."""

import torch
from transformers import CLIPTextModel, T5EncoderModel

from diffusers_flux_ext import flux_shapes
from diffusers_flux_ext.training import atomic_path

from .loop import train_stage
from .models import build_text_encoder, build_text_encoder_2, load_tokenizers
from .settings import Draws, Settings
from .text import clip_ids, t5_ids, varied_caption


_COLORS, _SHAPES, _SIZES = list(flux_shapes.COLORS), list(flux_shapes.SHAPES), list(flux_shapes.SIZES)
_BACKGROUNDS, _PLACES = list(flux_shapes.BACKGROUNDS), list(flux_shapes.PLACES)
# Each place can be empty, which is answer 0.
_QUESTIONS = [len(_COLORS) + 1, len(_SHAPES) + 1, len(_SIZES) + 1] * len(_PLACES) + [len(_BACKGROUNDS)]
_LENGTHS, _LENGTH_WEIGHTS = (24, 32, 64, 128), (0.5, 0.3, 0.1, 0.1)
_BATCH = 64


class SceneReader(torch.nn.Module):
    """Predicts what is where, from CLIP's pooled token and from T5's tokens; discarded after pretraining.

    Args:
        pooled_size (`int`): Width of CLIP's pooled token.
        hidden_size (`int`): Width of T5's tokens.
    """

    def __init__(self, pooled_size: int, hidden_size: int) -> None:
        super().__init__()
        answers = sum(_QUESTIONS)
        self.from_pooled = torch.nn.Linear(pooled_size, answers)
        self.queries = torch.nn.Parameter(torch.randn(len(_QUESTIONS), hidden_size) * 0.1)
        self.to_key = torch.nn.Linear(hidden_size, hidden_size)
        self.to_value = torch.nn.Linear(hidden_size, hidden_size)
        self.from_tokens = torch.nn.ModuleList(torch.nn.Linear(hidden_size, count) for count in _QUESTIONS)

    def forward(self, pooled: torch.Tensor, tokens: torch.Tensor) -> tuple[list[torch.Tensor], list[torch.Tensor]]:
        """Return logits per question, from the pooled token and from the tokens.

        Args:
            pooled (`torch.Tensor` of shape `(batch_size, pooled_size)`): CLIP's output.
            tokens (`torch.Tensor` of shape `(batch_size, length, hidden_size)`): T5's output.

        Returns:
            `tuple[list[torch.Tensor], list[torch.Tensor]]`: each tensor `(batch_size, answers)`.
        """
        queries = self.queries.expand(tokens.shape[0], 1, -1, -1)
        keys, values = self.to_key(tokens)[:, None], self.to_value(tokens)[:, None]
        read = torch.nn.functional.scaled_dot_product_attention(queries, keys, values)[:, 0]
        from_tokens = [head(read[:, index]) for index, head in enumerate(self.from_tokens)]
        return list(self.from_pooled(pooled).split(_QUESTIONS, dim=1)), from_tokens


def pretrain_text(settings: Settings) -> None:
    """Train both text encoders.

    Args:
        settings (`Settings`): The run; writes its `text_encoders` folder.
    """
    torch.manual_seed(settings.seed)
    tokenizer, tokenizer_2 = load_tokenizers(settings)
    with torch.device(settings.device):
        clip, t5 = build_text_encoder(tokenizer), build_text_encoder_2(tokenizer_2)
        reader = SceneReader(clip.config.projection_dim or 0, t5.config.d_model)

    def loss_of(step: int, draws: Draws) -> torch.Tensor:
        scenes = [flux_shapes.sample_scene(draws.rng, held_out=False) for _ in range(_BATCH)]
        captions = [varied_caption(scene, draws.rng) for scene in scenes]
        length = draws.rng.choices(_LENGTHS, _LENGTH_WEIGHTS)[0]
        pooled = clip(clip_ids(tokenizer, captions).to(settings.device)).pooler_output
        tokens = t5(t5_ids(tokenizer_2, captions, length).to(settings.device)).last_hidden_state
        answers = torch.tensor([_answers(scene) for scene in scenes], device=settings.device)
        return sum(_cross_entropy(logits, answers) for logits in reader(pooled, tokens))  # type: ignore[return-value]

    modules = torch.nn.ModuleDict({"text_encoder": clip, "text_encoder_2": t5, "reader": reader})
    parameters = dict(modules.named_parameters())
    optimizer = torch.optim.AdamW(parameters.values(), lr=2e-3, betas=(0.9, 0.98), weight_decay=0.01)
    train_stage(settings, "text", settings.amounts.text_steps, parameters, [optimizer], loss_of, flat_until=0.0)
    _save(settings, clip, t5)


def _save(settings: Settings, clip: CLIPTextModel, t5: T5EncoderModel) -> None:
    with atomic_path(settings.text_encoders) as folder:
        clip.save_pretrained(folder / "text_encoder")
        t5.save_pretrained(folder / "text_encoder_2")


def _answers(scene: flux_shapes.Scene) -> list[int]:
    by_place = {item.place: item for item in scene.objects}
    answers: list[int] = []
    for place in _PLACES:
        item = by_place.get(place)
        if item is None:
            answers += [0, 0, 0]
        else:
            answers += [1 + _COLORS.index(item.color), 1 + _SHAPES.index(item.shape), 1 + _SIZES.index(item.size)]
    return [*answers, _BACKGROUNDS.index(scene.background)]


def _cross_entropy(logits: list[torch.Tensor], answers: torch.Tensor) -> torch.Tensor:
    losses = [torch.nn.functional.cross_entropy(part, answers[:, index]) for index, part in enumerate(logits)]
    return torch.stack(losses).mean()
