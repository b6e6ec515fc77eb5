"""The reference's value encoders with the weights of ours."""

from typing import Any

from benchmarks.support.reference.boot import import_reference
from diffusers_flux_ext import AttributeValueEncoder


flux_value_control = import_reference("diffsynth.models.flux_value_control")


def reference_value_encoder(encoder: AttributeValueEncoder) -> Any:
    """The reference's `MultiValueEncoder` with one `SingleValueEncoder` for each attribute of `encoder`."""
    config, parts = encoder.config, []
    for part in encoder.encoders:
        module = flux_value_control.SingleValueEncoder(config.embed_dim, config.output_dim, config.num_tokens)
        module.load_state_dict(part.state_dict())
        parts.append(module.eval().requires_grad_(False))
    return flux_value_control.MultiValueEncoder(parts)
