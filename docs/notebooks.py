"""Execute the notebooks that open on shipped models, and keep their outputs: `python -m docs.notebooks --help`."""

import argparse
import base64
from io import BytesIO
from pathlib import Path

import nbformat
from nbclient import NotebookClient
from PIL import Image

FOLDER = Path(__file__).parents[1] / "notebooks"
EXECUTED = (
    "01_quick_start", "02_process", "03_guidance_and_samplers", "04_prompts", "05_few_steps", "06_comparison",
)  # fmt: skip


def execute(path: Path) -> nbformat.NotebookNode:
    """Return a notebook with the outputs of all cells: images as PNG alone, no warnings, no times."""
    notebook = nbformat.read(path, as_version=4)
    NotebookClient(notebook, timeout=300, resources={"metadata": {"path": str(path.parent)}}).execute()
    for cell in notebook.cells:
        cell.metadata.pop("execution", None)
        if cell.cell_type == "code":
            cell.outputs = [output for output in cell.outputs if output.get("name") != "stderr"]
            for output in cell.outputs:
                if "image/png" in output.get("data", {}):
                    output.data.pop("image/jpeg", None)
                    output.data["image/png"] = shrink_png(output.data["image/png"])
    notebook.metadata.pop("language_info", None)
    return notebook


def shrink_png(text: str) -> str:
    """Return a PNG in base64 with at most 256 colors, or as it is where that is smaller."""
    small = BytesIO()
    image = Image.open(BytesIO(base64.b64decode(text))).convert("RGB")
    image.quantize(256, dither=Image.Dither.NONE).save(small, format="PNG", optimize=True)
    return min(text, base64.b64encode(small.getvalue()).decode(), key=len)


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m docs.notebooks", description="Execute notebooks in place.")
    parser.add_argument("names", nargs="*", metavar="name", help=f"of {', '.join(EXECUTED)}; all without one")
    names = parser.parse_args().names
    if unknown := [name for name in names if name not in EXECUTED]:
        parser.error(f"unknown notebook {unknown[0]}. Choose from {', '.join(EXECUTED)}")
    for name in names or EXECUTED:
        path = FOLDER / f"{name}.ipynb"
        nbformat.write(execute(path), path)
        print(f"executed {path.relative_to(FOLDER.parent)}", flush=True)


if __name__ == "__main__":
    main()
