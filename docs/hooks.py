"""What mkdocs writes itself: keys and recipes from the yaml files that the commands read, promises from the README."""

from pathlib import Path

import yaml

CONF = Path(__file__).parents[1] / "conf"
COMMANDS = ("train", "sample", "evaluate", "export", "app", "visualize", "report", "audit", "replay")


def on_page_markdown(markdown: str, page, **kwargs) -> str:
    if page.file.src_uri == "promises.md":
        return markdown.replace("<!-- the section of the README -->", promises())
    made = {"reference.md": reference, "recipes.md": recipes}.get(page.file.src_uri)
    return markdown + made() if made else markdown


def promises() -> str:
    readme = (CONF.parent / "README.md").read_text()
    return readme.partition("## What it promises\n")[2].partition("\n## ")[0]


def reference() -> str:
    """A heading for each command and each group, and the yaml files as they are: their comments say what keys mean."""
    parts = ["\n"]
    for name in COMMANDS:
        text = (CONF / f"{name}.yaml").read_text().partition("\nhydra:")[0]
        parts.append(f"## {name}\n\n{_yaml(text)}")
    for group in sorted(path for path in CONF.iterdir() if path.is_dir() and path.name != "experiment"):
        parts.append(f"## {group.name}=\n")
        for file in sorted(group.glob("*.yaml")):
            parts.append(f"### {group.name}={file.stem}\n\n{_yaml(file.read_text())}")
    return "\n".join(parts)


def recipes() -> str:
    """Each experiment: what its first lines say, what it chooses, and its file."""
    parts = ["\n"]
    for file in sorted((CONF / "experiment").glob("*.yaml")):
        text = file.read_text().removeprefix("# @package _global_\n")
        what = next((line.removeprefix("# ") for line in text.split("\n") if line.startswith("# ")), "")
        body = yaml.safe_load(text) or {}
        chosen = [entry for entry in body.get("defaults", []) if isinstance(entry, dict)]
        words = [f"`{key.split('/')[-1]}={value}`" for entry in chosen for key, value in entry.items()]
        if file.stem != "none":
            parts.append(f"## {file.stem}\n\n{what}\n\n{' '.join(words)}\n\n{_yaml(text)}")
    return "\n".join(parts)


def _yaml(text: str) -> str:
    return f"```yaml\n{text.strip()}\n```\n"
