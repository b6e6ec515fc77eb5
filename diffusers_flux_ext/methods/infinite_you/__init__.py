"""InfiniteYou: identities."""

from ..method import Method, Release, Trainable


METHOD = Method(
    package=__name__,
    name="InfiniteYou",
    about="identities, several in regions",
    state="equals the reference to 1e-3 over a loop",
    page="infinite_you",
    exports={
        "condition": ["InfiniteYouIdentity"],
        "faces": ["FaceEmbedding", "FaceEncoder"],
        "insightface": ["InsightFaceEncoder"],
        "keypoints": ["draw_face_keypoints"],
        "pipeline": ["FluxInfiniteYouPipeline", "infinite_you_preset"],
        "projector": ["InfiniteYouImageProjector"],
    },
    converters={"infinite-you": ".convert:main"},
    releases=[
        Release(
            "infinite-you",
            "InfiniteYou; face detection runs on the CPU",
            {
                "image_projector": ".projector:InfiniteYouImageProjector",
                "infuse_net": "..control.released:infuse_net",
            },
        )
    ],
    loaders={".faces:FaceEncoder": ".insightface:load_face_encoder"},
    trains={
        "infuse-net": Trainable("diffusers:FluxControlNetModel", ".scratch:infuse_net", "..control.scratch:files"),
        "identity-projector": Trainable(".projector:InfiniteYouImageProjector", ".scratch:image_projector"),
    },
)
