"""ControlNets."""

from ..method import Method, Release, Trainable


METHOD = Method(
    package=__name__,
    name="ControlNet",
    about="structure from images: several ControlNets, union, inpainting, XLabs; per region",
    state="bit-equal to diffusers' ControlNet pipelines, with `generator=` on the condition",
    page="controlnet",
    exports={"condition": ["ControlNetImage"], "model": ["FluxExtControlNetModel"]},
    converters={"controlnet": ".convert:main"},
    releases=[
        Release("controlnet", "ControlNet Union-Pro", {"controlnet": ".released:union_pro"}),
        Release("controlnet-inpaint", "ControlNet Inpainting-Beta", {"controlnet_inpaint": ".released:inpaint"}),
        Release("controlnet-xlabs", "ControlNet of XLabs", {"controlnet_xlabs": ".released:xlabs"}),
    ],
    loaders={"diffusers:FluxControlNetModel": ".model:FluxExtControlNetModel"},
    trains={"controlnet": Trainable("diffusers:FluxControlNetModel", ".scratch:controlnet", ".scratch:files")},
)
