"""Redux: images as a part of the prompt."""

from ...demand import Demand
from ..method import Method, Release, Trainable


# Patches of an image in FLUX.1-Redux-dev's vision model.
IMAGE_TOKENS = 729

METHOD = Method(
    package=__name__,
    name="Redux",
    about="images as a part of the prompt, which is kept; scale and region each",
    state="equals the reference to 1e-3 over a loop, `FluxPriorReduxPipeline` to 1e-4",
    page="redux",
    exports={"checkpoint": ["load_redux_embedder"], "condition": ["ReduxImages"]},
    converters={"redux": ".convert:main"},
    releases=[
        Release(
            "redux",
            "FLUX.1 Redux",
            {"image_encoder": "...models.released:siglip", "image_embedder": "diffusers:ReduxImageEncoder"},
            counts="images",
            demand=lambda number: Demand(appended_tokens=IMAGE_TOKENS * number),
        )
    ],
    loaders={"diffusers:ReduxImageEncoder": ".checkpoint:load_redux_embedder"},
    trains={"redux-embedder": Trainable("diffusers:ReduxImageEncoder", ".scratch:image_embedder")},
)
