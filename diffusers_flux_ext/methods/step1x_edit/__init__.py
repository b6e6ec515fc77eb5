"""Step1X-Edit: edits by instructions."""

from ...demand import Demand
from ..method import Method, Release, Trainable


# Tokens of an instruction.
INSTRUCTION_TOKENS = 640

METHOD = Method(
    package=__name__,
    name="Step1X-Edit",
    about="edits by instructions (1.0 and 1.1), with today's transformers",
    state="equals the reference to 1e-3 over a loop",
    page="step1x_edit",
    exports={
        "condition": ["Step1XInstruction"],
        "connector": ["Step1XConnector"],
        "pipeline": ["FluxStep1XEditPipeline"],
    },
    converters={"step1x-edit": ".convert:main"},
    releases=[
        Release(
            "step1x-edit",
            "Step1X-Edit",
            {"mllm": "...models.released:qwen_vl", "connector": ".connector:Step1XConnector"},
            {"guidance_embeds": False},
            demand=lambda number: Demand(prompt_tokens=INSTRUCTION_TOKENS, canvases=number),
        )
    ],
    trains={"step1x-connector": Trainable(".connector:Step1XConnector", ".scratch:connector", ".scratch:files")},
)
