"""Which conditions run together: what is refused, and what the documentation promises."""

from benchmarks.support.conditions.cases import CASES


# Pairs that cannot run together, and how the error names both.
REFUSED: dict[frozenset[str], str] = {
    frozenset({"flex", "channels"}): "takes 196 channels.*add",
    frozenset({"flex", "fill"}): "takes 384 channels.*add",
    frozenset({"fill", "channels"}): "takes 384 channels.*add",
    frozenset({"nexus-gen", "prompt"}): "(NexusGenEmbedding and ReplacedPrompt|ReplacedPrompt and NexusGenEmbedding)",
    frozenset({"nexus-gen", "another prompt"}): "(NexusGenEmbedding and Also|AlsoReplacedPrompt and NexusGen)",
    frozenset({"nexus-gen", "step1x"}): "(NexusGenEmbedding and Step1XInstr|Step1XInstruction and NexusGen)",
    frozenset({"step1x", "prompt"}): "(Step1XInstruction and ReplacedPrompt|ReplacedPrompt and Step1XInstruction)",
    frozenset({"step1x", "another prompt"}): "AlsoReplacedPrompt",
    frozenset({"prompt", "another prompt"}): "(ReplacedPrompt and AlsoReplacedPrompt|AlsoReplacedPrompt and Repl)",
}
# The same condition twice.
REFUSED_TWICE: dict[str, str] = {
    "inpaint": "InpaintRegion and InpaintRegion decides the pixels",
    "nexus-gen": "NexusGenEmbedding and NexusGenEmbedding",
    "references": "ReferenceImages and ReferenceImages decides the positions",
    "step1x": "Step1XInstruction and Step1XInstruction replaces the prompt",
    "prompt": "ReplacedPrompt and ReplacedPrompt",
    "another prompt": "AlsoReplacedPrompt and AlsoReplacedPrompt",
    "flex": "FlexControl and FlexControl decides the channels",
    "fill": "takes 384 channels.*add \\[320, 320\\]",
    "channels": "takes 68 channels.*add \\[4, 4\\]",
}

LORA = "lora"
"""Stands among the names of conditions for a LoRA of all layers that is loaded into the transformer."""

# What the documentation promises together, by class; `LORA` is a loaded one.
PROMISED: tuple[tuple[str, ...], ...] = (
    ("EntityRegions", "IPAdapterImages", "ControlNetImage"),
    ("InfiniteYouIdentity", "EntityRegions", LORA),
    ("ReferenceImages", "EntityRegions", "AttributeValues"),
    ("FillMask", "EntityRegions", "ReduxImages"),
    ("FillMask", "EntityRegions", "IPAdapterImages"),
    ("ReferenceImages", "ControlNetImage", "InpaintRegion"),
    ("LoRAEmbedding", "EntityRegions", LORA),
    ("FlexControl", "EntityRegions", "ControlNetImage"),
)


def promised() -> list[tuple[str, ...]]:
    """The combinations of `PROMISED` by their names here; without those whose classes do not exist."""
    first = {case.make.__name__: name for name, case in reversed(CASES.items())} | {LORA: LORA}
    return [tuple(first[part] for part in parts) for parts in PROMISED if first.keys() >= set(parts)]
