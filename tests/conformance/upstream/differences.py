"""Where this package differs from diffusers on purpose, so that an upstream test cannot pass."""

from fnmatch import fnmatchcase


KNOWN: dict[tuple[str, str, str], str] = {
    ("transformer", "ours", "test_gradient_checkpointing_is_applied"): "the test asks for the stock class's name",
} | {
    (suite, "ours", "test_components_function"): (
        "one pipeline class serves all methods, so that it has the optional image encoder of FluxPipeline"
    )
    for suite in ("fill", "control*", "controlnet_flux_*")
}
"""Reasons by patterns of the suite, the variant and the test's name."""


def known_difference(suite: str, variant: str, test: str) -> str | None:
    """Why a test may fail or be skipped, if it may."""
    key = (suite, variant, test)
    return next((reason for patterns, reason in KNOWN.items() if all(map(fnmatchcase, key, patterns))), None)
