"""docs/registries.md is what the registries say."""

import runpy

from tests.conftest import ROOT


def test_the_page_is_up_to_date():
    written = runpy.run_path(str(ROOT / "docs" / "registries.py"))
    assert written["page"]() == (ROOT / "docs" / "registries.md").read_text(), (
        "write it again: python docs/registries.py"
    )
