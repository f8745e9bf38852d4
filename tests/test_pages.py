"""Pages: what comes from outside is text in them, wherever it is put."""

from __future__ import annotations

from pathlib import Path

import pytest
from jinja2 import UndefinedError

from storyreel.pages import filled


def test_values_are_escaped_and_a_missing_one_is_a_bug(tmp_path: Path) -> None:
    template = tmp_path / "page.html.j2"
    template.write_text('<p title="{{ words }}">{{ words }}</p>\n')
    page = filled(template, words='"><script>')
    assert page == '<p title="&#34;&gt;&lt;script&gt;">&#34;&gt;&lt;script&gt;</p>\n'
    template.write_text("{{ word }}")
    with pytest.raises(UndefinedError):
        filled(template, words="")
