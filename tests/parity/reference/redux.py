"""The reference's Redux embedder with the weights of ours."""

from diffusers import ReduxImageEncoder
from torch import nn

from tests.parity.reference.boot import import_reference


flux_redux = import_reference("diffsynth.models.flux_redux")


def reference_redux(embedder: ReduxImageEncoder) -> nn.Module:
    """The reference's `FluxReduxImageEncoder` of the same sizes."""
    module = flux_redux.FluxReduxImageEncoder(embedder.config.redux_dim, embedder.config.txt_in_features)
    module.load_state_dict(embedder.state_dict())
    return module.eval().requires_grad_(False)
