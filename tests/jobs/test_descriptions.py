"""Help texts from docstrings."""

from diffusers_flux_ext.jobs.descriptions import described_arguments, summary


class Described:
    """Summarise in
    two lines ([paper](https://huggingface.co/papers/1)).

    More.

    Args:
        plain (`int`): One line.
        nested (`tuple[int, (str)]` of shape `(n, 1)`, *optional*, defaults to `(1: 2)`):
            Several: lines
            with [`~diffusers.FluxPipeline`] and [`read_job`].
        one, other: Two names.
        bare:
            No type.

    Returns:
        nothing (`None`): Not an argument.
    """


def test_arguments_are_found_with_all_their_lines():
    assert described_arguments(Described) == {
        "plain": "One line.",
        "nested": "Several: lines with `FluxPipeline` and `read_job`.",
        "one": "Two names.",
        "other": "Two names.",
        "bare": "No type.",
    }
    assert described_arguments(described_arguments).keys() == {"owner"}
    assert described_arguments(int) == {}


def test_a_summary_is_one_line():
    assert summary(Described) == "Summarise in two lines ([paper](https://huggingface.co/papers/1))."
