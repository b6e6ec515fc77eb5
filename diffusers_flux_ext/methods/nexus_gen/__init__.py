"""Nexus-Gen V2: one language model that draws, edits and describes."""

from ..method import Method, Release, Trainable


METHOD = Method(
    package=__name__,
    name="Nexus-Gen V2",
    about="drawing, editing and describing by one language model",
    state="equals the reference to 1e-3 over a loop, its language model (transformers 4.49) to 2e-6",
    page="nexus_gen",
    exports={
        "adapter": ["NexusGenAdapter"],
        "condition": ["NexusGenEmbedding"],
        "decoder": ["load_nexus_gen_decoder"],
        "language_model": ["NexusGenModel"],
        "merger": ["NexusGenEditingMerger"],
        "pipeline": ["FluxNexusGenPipeline"],
    },
    converters={"nexus-gen": ".convert:main"},
    loadable=["NexusGenModel"],
    releases=[
        Release(
            "nexus-gen",
            "Nexus-Gen V2, drawing",
            {"mllm_nexus_gen": ".released:language_model", "generation_adapter": ".adapter:NexusGenAdapter"},
        ),
        Release(
            "nexus-gen-edit",
            "Nexus-Gen V2, editing",
            {"mllm_nexus_gen": ".released:language_model", "editing_adapter": ".merger:NexusGenEditingMerger"},
        ),
    ],
    trains={
        "nexus-adapter": Trainable(".adapter:NexusGenAdapter", ".scratch:generation_adapter"),
        "nexus-merger": Trainable(".merger:NexusGenEditingMerger", ".scratch:editing_merger", ".scratch:merger_files"),
    },
)
