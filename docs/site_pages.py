"""MkDocs hook that builds the site from the checkout, so that links work in the checkout and on the site.

MkDocs reads a single folder, but README.md, CONTRIBUTING.md and the records in experiments/ lie beside
docs/. The hook is ours because the plugins for this need a copy of every page or a rewritten link.
"""

from pathlib import Path

from mkdocs.config.defaults import MkDocsConfig
from mkdocs.structure.files import File, Files

FOLDERS = ("docs", "experiments", "conf", "src", "benchmarks")
"""Folders whose files a page may link to."""

SUFFIXES = {".md", ".png", ".jpg", ".svg", ".csv", ".json", ".yaml", ".py"}


def on_files(files: Files, config: MkDocsConfig) -> Files:
    """Replace the files of docs/ by files of the checkout, named by their path in the checkout."""
    root = Path(config.config_file_path).parent
    paths = [*root.glob("*.md"), root / "LICENSE", root / "CITATION.cff"]
    for folder in FOLDERS:
        paths += [path for path in (root / folder).rglob("*") if path.suffix in SUFFIXES]
    theme = [file for file in files if file.src_dir != config.docs_dir]
    names = sorted(path.relative_to(root).as_posix() for path in paths)
    pages = [File(name, str(root), config.site_dir, config.use_directory_urls) for name in names]
    return Files([*theme, *pages])
