"""Every command in README and docs does what its page says, or says why it is not run."""

import re

import pytest

from harness import shell
from harness.places import REPOSITORY

DOCUMENTS = sorted(
    path
    for path in [*REPOSITORY.glob("*.md"), *REPOSITORY.glob("docs/**/*.md"), *REPOSITORY.glob("bench/*.md")]
    if "```sh" in path.read_text()
)


@pytest.mark.parametrize("document", DOCUMENTS, ids=lambda path: str(path.relative_to(REPOSITORY)))
def test_the_commands_of_a_document_work(document, directory):
    shell.run(document, directory)


def test_the_readme_has_commands():
    """Otherwise a typing error in the marking would make the test above an empty one."""
    markings = [marking for marking, _ in shell.blocks(REPOSITORY / "README.md")]
    assert "serves" in markings
    assert "" in markings


def test_links_between_documents_lead_somewhere():
    broken = []
    for path in [*REPOSITORY.glob("*.md"), *REPOSITORY.glob("docs/**/*.md")]:
        for target in re.findall(r"\]\(([^)#]+)(?:#[^)]*)?\)", path.read_text()):
            if "://" not in target and not target.startswith("mailto:") and not (path.parent / target).exists():
                broken.append(f"{path.relative_to(REPOSITORY)}: {target}")
    assert not broken
