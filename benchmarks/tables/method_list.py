"""The table of methods in the README and the index of the documentation, from the records of methods.

python -m benchmarks.tables.method_list
"""

import sys
from pathlib import Path

from benchmarks.methods import write_between_markers
from diffusers_flux_ext.methods import METHODS


ROOT = Path(__file__).parents[2]
MARKERS = ("<!-- methods: begin -->\n", "<!-- methods: end -->")


def readme_table() -> str:
    """Return a row for every method: what it is for, its public names, and what its results were compared with."""
    lines = ["| method | public names | state |", "|---|---|---|"]
    for method in METHODS.values():
        names = ", ".join(f"`{name}`" for name in method.public_names)
        lines.append(f"| [{method.name}](docs/{method.page}.md): {method.about} | {names} | {method.state} |")
    return "\n".join(lines) + "\n"


def index_list() -> str:
    """Return a line for every method."""
    return "".join(f"- [{method.name}]({method.page}.md): {method.about}\n" for method in METHODS.values())


PAGES = {ROOT / "README.md": readme_table, ROOT / "docs" / "index.md": index_list}


def main() -> None:
    """Write both lists."""
    for page, make in PAGES.items():
        write_between_markers(page, make(), MARKERS)
        sys.stdout.write(f"{page.name} lists {len(METHODS)} methods\n")


if __name__ == "__main__":
    main()
