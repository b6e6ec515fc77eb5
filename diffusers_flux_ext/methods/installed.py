"""Methods of other packages that are installed and say so."""

from __future__ import annotations

from importlib.metadata import entry_points


GROUP = "diffusers_flux_ext.methods"
"""The entry points whose modules call `register_method`."""


def load_installed_methods() -> dict[str, Exception]:
    """Import what installed packages name as entry points of `"diffusers_flux_ext.methods"`.

    The command line does this, since nothing else imports these packages there; Python code imports what it uses.

    Returns:
        `dict[str, Exception]`: what could not be imported, by the entry point, `"name = package.module"`.
    """
    failed: dict[str, Exception] = {}
    for entry in entry_points(group=GROUP):
        try:
            entry.load()
        # Code of another package, which may raise anything.
        except Exception as error:
            failed[f"{entry.name} = {entry.value}"] = error
    return failed
