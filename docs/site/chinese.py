"""The search of the site for English and Chinese words.

Chinese has no spaces. Sphinx's own search for it splits the pages by a dictionary, but not what a
reader types, so it finds few phrases. Here, both are split into all pairs of neighboring
characters, and a page is found if it has each pair.
"""

import re

from sphinx.search.en import SearchEnglish

HAN = r"\u3400-\u9fff\uf900-\ufaff"
_PARTS = re.compile(rf"[{HAN}]+|[^{HAN}]+")


class SearchEnglishAndChinese(SearchEnglish):
    """Words as in English; pairs of characters, and single ones, of Chinese."""

    lang = "en-zh"
    js_splitter_code = rf"""
var splitQuery = (query) =>
  query
    .split(/[^\p{{Letter}}\p{{Number}}_\p{{Emoji_Presentation}}]+/gu)
    .flatMap((word) => word.match(/[{HAN}]+|[^{HAN}]+/g) ?? [])
    .flatMap((part) =>
      /[{HAN}]{{2}}/.test(part)
        ? Array.from({{ length: part.length - 1 }}, (_, at) => part.slice(at, at + 2))
        : [part],
    );
"""

    def split(self, input: str) -> list[str]:
        """Split a text into what is searched for."""
        return [term for word in super().split(input) for term in _split_word(word)]


def _split_word(word: str) -> list[str]:
    terms: list[str] = []
    for part in _PARTS.findall(word):
        if re.match(f"[{HAN}]", part):
            terms += [*part, *(part[at : at + 2] for at in range(len(part) - 1))]
        else:
            terms.append(part)
    return terms
