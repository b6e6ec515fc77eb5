"""AttriCtrl: attributes such as brightness, controlled by numbers."""

from ...demand import Demand
from ..method import Method, Release, Trainable


METHOD = Method(
    package=__name__,
    name="AttriCtrl",
    about="brightness and other attributes by numbers",
    state="equals the reference to 1e-3 over a loop",
    page="attribute_control",
    exports={
        "condition": ["AttributeValues"],
        "encoder": ["AttributeValueEncoder"],
        "pipeline": ["FluxAttributeControlPipeline"],
    },
    converters={"attribute-control": ".convert:main"},
    releases=[
        Release(
            "attribute-control",
            "AttriCtrl",
            {"value_encoder": ".encoder:AttributeValueEncoder"},
            counts="attributes",
            demand=lambda number: Demand(appended_tokens=32 * number),
        )
    ],
    trains={
        "attribute-encoder": Trainable(".encoder:AttributeValueEncoder", ".scratch:value_encoder", ".scratch:files")
    },
)
