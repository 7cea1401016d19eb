"""Write the picture of the packages into docs/architecture.md, and the list of modules: `make architecture`.

The layers come from the import contract in ``pyproject.toml``; the arrows come from the imports themselves, so the
picture cannot disagree with the code. Arrows to the ground layer are left out: every package imports it.
"""

import ast
import re
import sys
import tomllib
from pathlib import Path

import grimp

PACKAGE = "trajectory_pipeline"
BEGIN, END = "<!-- begin: make architecture -->", "<!-- end: make architecture -->"


def layers(pyproject: Path) -> list[list[str]]:
    """Return the layers of the import contract, top first, each as the names of its packages."""
    contracts = tomllib.loads(pyproject.read_text(encoding="utf-8"))["tool"]["importlinter"]["contracts"]
    contract = next(contract for contract in contracts if contract["type"] == "layers")
    return [[name.strip() for name in re.split("[|:]", line)] for line in contract["layers"]]


def arrows() -> set[tuple[str, str]]:
    """Return the pairs (importer, imported) of top-level packages and modules."""
    graph = grimp.build_graph(PACKAGE)
    found: set[tuple[str, str]] = set()
    for importer in graph.modules:
        for imported in graph.find_modules_directly_imported_by(importer):
            upper, lower = (name.removeprefix(f"{PACKAGE}.").partition(".")[0] for name in (importer, imported))
            if upper != lower and PACKAGE not in (upper, lower):
                found.add((upper, lower))
    return found


def picture(stack: list[list[str]], pairs: set[tuple[str, str]]) -> str:
    """Return a Mermaid flowchart of the layers above the ground, with the ground as one box."""
    *upper, ground = stack
    shown = {name for layer in upper for name in layer}
    lines = ["```mermaid", "flowchart TD"]
    for number, layer in enumerate(upper):
        lines += [f"  subgraph layer{number}[ ]", "    direction LR", *(f"    {name}" for name in layer), "  end"]
    lines.append(f'  ground["{", ".join(sorted(ground))}"]')
    lines += [f"  {importer} --> {imported}" for importer, imported in sorted(pairs) if {importer, imported} <= shown]
    return "\n".join([*lines, f"  {upper[-1][0]} --> ground", "```"])


def module_list(root: Path) -> str:
    """Return a page that lists each module with the first sentence of its docstring, a table a package."""
    lines = ["# Modules", "", "<!-- Made by `make architecture` from the docstrings: change those, not this page. -->"]
    folders = sorted({path.parent for path in root.rglob("*.py") if "versions" not in path.parts})
    for folder in folders:
        shown = [path for path in sorted(folder.glob("*.py")) if docstring(path)]
        if shown:
            lines += ["", f"## `{folder.relative_to(root.parent)}/`", "", "| module | what it is for |", "|---|---|"]
            lines += [f"| `{path.name}` | {docstring(path)} |" for path in shown]
    return "\n".join(lines) + "\n"


def docstring(path: Path) -> str:
    """Return the first sentence of a module's docstring as Markdown; empty where it has none."""
    text = " ".join((ast.get_docstring(ast.parse(path.read_text(encoding="utf-8"))) or "").partition("\n\n")[0].split())
    return re.split(r"(?<=[.?]) (?=[A-Z])", text)[0].replace("``", "`").replace("|", "\\|")


def main(page: Path) -> None:
    """Replace the text between the two markers of the page, and write the page `modules.md` in the same folder.

    Raises:
        SystemExit: the page has no markers.
    """
    text = page.read_text(encoding="utf-8")
    if BEGIN not in text or END not in text:
        sys.exit(f"{page} has no line {BEGIN} and {END}: add both where the picture belongs.")
    before, after = text.partition(BEGIN)[0], text.partition(END)[2]
    drawn = picture(layers(Path("pyproject.toml")), arrows())
    page.write_text(f"{before}{BEGIN}\n{drawn}\n{END}{after}", encoding="utf-8")
    page.with_name("modules.md").write_text(module_list(Path(PACKAGE)), encoding="utf-8")


if __name__ == "__main__":
    main(Path(sys.argv[1]))
