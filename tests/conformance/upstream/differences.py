"""Where this package differs from diffusers on purpose, so that an upstream test cannot pass."""

from fnmatch import fnmatchcase


STRICT = "keys that are not understood are refused, where the stock class logs them"
OWN_WARNING = "the warning about names that do not exist has other words"
KNOWN: dict[tuple[str, str, str], str] = {
    ("*LoRA", "ours", "test_logs_info_when_no_lora_keys_found"): STRICT,
    ("*LoRA", "ours", "test_multiple_wrong_adapter_name_raises_error"): OWN_WARNING,
    ("scheduler", "ours", "test_compatibles"): "made from a stock config, it says explicitly that the shift is static",
    ("transformer", "ours", "test_gradient_checkpointing_is_applied"): "the test asks for the stock class's name",
} | {
    (suite, "ours", "test_components_function"): (
        "one pipeline class serves all methods, so that it has the optional image encoder of FluxPipeline"
    )
    for suite in (
        "fill",
        "control",
        "control_img2img",
        "control_inpaint",
        "controlnet_flux_img2img",
        "controlnet_flux_inpaint",
    )
}
"""Reasons by patterns of the suite, the variant and the test's name."""


def known_difference(suite: str, variant: str, test: str) -> str | None:
    """Why a test may fail or be skipped, if it may."""
    key = (suite, variant, test)
    return next((reason for patterns, reason in KNOWN.items() if all(map(fnmatchcase, key, patterns))), None)
