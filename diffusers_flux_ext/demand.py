"""What a condition costs: the tokens and bytes that it adds to a call."""

from dataclasses import dataclass


@dataclass(frozen=True)
class Demand:
    """What a condition adds to a call, for VRAM plans.

    Attributes:
        text_tokens (`int`): Text tokens in the transformer.
        appended_tokens (`int`): Further text tokens, which are part of the prompt: ControlNets see them as well.
        reference_tokens (`int`): Image tokens in the transformer, beside those of the image that is drawn.
        prompt_tokens (`int`): Tokens of what takes the prompt's place.
        canvases (`int`): References of the size of the image that is drawn.
        texts (`int`): Texts that T5 encodes at once.
        held_bytes (`int`): What stays on the card for all steps, such as keys and values of an IP-Adapter.
        masked (`bool`): Whether attention is restricted.
    """

    text_tokens: int = 0
    appended_tokens: int = 0
    reference_tokens: int = 0
    prompt_tokens: int = 0
    canvases: int = 0
    texts: int = 0
    held_bytes: int = 0
    masked: bool = False
