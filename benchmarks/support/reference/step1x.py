"""The reference's Step1X-Edit: its connector, and its embedder around any language model."""

from typing import Any

import torch
from torch import nn
from transformers import BatchFeature

from benchmarks.support.reference.boot import import_reference
from benchmarks.support.tiny.step1x import published_weights
from diffusers_flux_ext import QwenVLProcessor, Step1XConnector
from diffusers_flux_ext.inputs.qwen_vl import known_inputs, qwen_vl_inputs


step1x_connector = import_reference("diffsynth.models.step1x_connector")
step1x_text_encoder = import_reference("diffsynth.models.step1x_text_encoder")
# As Qwen2.5-VL publishes it, without its branches for videos and other roles.
CHAT_TEMPLATE = (
    "{% set image_count = namespace(value=0) %}{% for message in messages %}"
    "{% if loop.first and message['role'] != 'system' %}<|im_start|>system\nYou are a helpful assistant.<|im_end|>\n"
    "{% endif %}<|im_start|>{{ message['role'] }}\n{% for content in message['content'] %}"
    "{% if content['type'] == 'image' %}{% set image_count.value = image_count.value + 1 %}"
    "{% if add_vision_id %}Picture {{ image_count.value }}: {% endif %}<|vision_start|><|image_pad|><|vision_end|>"
    "{% else %}{{ content['text'] }}{% endif %}{% endfor %}<|im_end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)


def reference_connector(connector: Step1XConnector) -> nn.Module:
    """The reference's connector in float32, with the sizes and weights of `connector`."""
    config = connector.config
    module = step1x_connector.Qwen2Connector(
        config.in_channels, config.hidden_size, config.num_attention_heads, config.num_layers, dtype=torch.float32
    )
    module.global_proj_out = nn.Linear(config.in_channels, config.pooled_dim)
    module.load_state_dict(published_weights(connector))
    return module.eval().requires_grad_(False)


class _Processor:
    """transformers' processor of Qwen2.5-VL, which needs torchvision, as far as the reference calls it."""

    def __init__(self, processor: QwenVLProcessor, **bounds: int) -> None:
        self.processor, self.bounds = processor, bounds

    def apply_chat_template(self, messages: Any, **kwargs: Any) -> str:
        return self.processor.tokenizer.apply_chat_template(messages, chat_template=CHAT_TEMPLATE, **kwargs)

    def __call__(self, text: Any, images: Any = None, **kwargs: Any) -> BatchFeature:
        if images is None:
            return self.processor.tokenizer(text=[text] if isinstance(text, str) else text, return_tensors="pt")
        return BatchFeature(qwen_vl_inputs(self.processor, text[0], images, **self.bounds))


class _LanguageModel:
    """The language model as the reference calls it, told where the picture is."""

    def __init__(self, mllm: Any) -> None:
        self.mllm, self.config = mllm, mllm.config.get_text_config()
        self.config.output_attentions = self.config.output_hidden_states = None

    def model(self, input_ids: torch.Tensor, **kwargs: Any) -> Any:
        inputs = {name: value for name, value in kwargs.items() if value is not None}
        inputs["mm_token_type_ids"] = (input_ids == self.mllm.config.image_token_id).long()
        with torch.no_grad():
            return self.mllm.model(input_ids=input_ids, **known_inputs(inputs))


def reference_embedder(mllm: Any, processor: QwenVLProcessor) -> Any:
    """The reference's `Step1xEditEmbedder`; returns `(embeddings in bfloat16, masks)` of texts and pictures."""
    bounds = {"min_pixels": 256 * 28 * 28, "max_pixels": 324 * 28 * 28}
    return step1x_text_encoder.Step1xEditEmbedder(_LanguageModel(mllm), _Processor(processor, **bounds), device="cpu")
