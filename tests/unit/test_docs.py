"""The pages of docs/: generated parts are up to date, and the files that pages name exist."""

import re

from benchmarks.reproduce import CARDS, add_ids
from docs.generate import PAGES, render_page
from tests.structure import ROOT

FILE = r"(?<!# )(?<!\w)(?:tests|diffusion_lit|conf|examples/(?:own_parts|slurm))/[\w/]+\.(?:py|yaml|sbatch)"


def test_generated_pages_are_up_to_date():
    for name in PAGES:
        assert (ROOT / "docs" / f"{name}.md").read_text() == render_page(name), "run python -m docs.generate"
    for card in CARDS:
        assert card.read_text() == add_ids(card.read_text(), card.parent.name), "run python -m docs.generate"


def test_files_that_pages_name_exist():
    pages = [ROOT / "README.md", ROOT / "CONTRIBUTING.md", ROOT / "SECURITY.md", *(ROOT / "docs").glob("*.md")]
    for page in pages:
        text = page.read_text()
        named = re.findall(FILE, text)
        linked = re.findall(r"\]\(([^)#:]+)\)", text)
        missing = [name for name in named if not (ROOT / name).exists()]
        missing += [link for link in linked if not (page.parent / link).exists()]
        assert missing == [], page


def test_the_figures_of_the_gallery_exist_and_are_small():
    folder = ROOT / "docs" / "gallery"
    named = re.findall(r"\]\(gallery/([\w.]+)\)", (ROOT / "docs" / "gallery.md").read_text())
    assert sorted(named) == sorted(file.name for file in folder.iterdir())
    assert sum(file.stat().st_size for file in folder.iterdir()) <= 1_500_000


def test_the_readme_is_short():
    assert len((ROOT / "README.md").read_text().split()) <= 900
