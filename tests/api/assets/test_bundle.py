"""Bundles of JavaScript modules. tests/e2e/test_page_files.py runs them in a browser."""

import re
from pathlib import Path

import pytest

from api.assets.bundle import UnsupportedModuleError, bundle

WEB = Path(__file__).parents[3] / "api" / "web"


def _lines(text: str) -> list[str]:
    return [line for line in text.splitlines() if line.strip()]


def test_a_bundle_runs_each_module_once_after_its_imports() -> None:
    sources = {
        "app.js": 'import { b } from "./b.js";\nimport { a } from "./a.js";\nrun(a, b);\n',
        "a.js": "export const a = 1;\n",
        "b.js": 'import { a } from "./a.js";\nexport function b() { return a; }\n',
        "other.js": "export const c = 3;\n",
    }

    assert _lines(bundle(sources, "app.js")) == [
        "const $modules = globalThis.$modules ??= {};",
        '$modules["a.js"] ??= (() => {',
        "const a = 1;",
        "return { a: a };",
        "})();",
        '$modules["b.js"] ??= (() => {',
        'const { a: a } = $modules["a.js"];',
        "function b() { return a; }",
        "return { b: b };",
        "})();",
        '$modules["app.js"] ??= (() => {',
        'const { b: b } = $modules["b.js"];',
        'const { a: a } = $modules["a.js"];',
        "run(a, b);",
        "return {  };",
        "})();",
    ]


@pytest.mark.parametrize(
    ("line", "expected"),
    [
        ('import { a as b,\n  c } from "./x.js";', 'const { a: b, c: c } = $modules["x.js"];'),
        ('import * as all from "./x.js";', 'const all = $modules["x.js"];'),
        ('import x, { a } from "./x.js";', 'const { default: x, a: a } = $modules["x.js"];'),
        ('import x from "./x.js";', 'const { default: x } = $modules["x.js"];'),
    ],
)
def test_each_form_of_an_import_binds_its_names(line: str, expected: str) -> None:
    x = "const a = 1, c = 2;\nexport { a, c };\nexport default { a };\n"

    assert expected in bundle({"app.js": line, "x.js": x}, "app.js")


def test_a_bundle_exports_what_its_entry_exports() -> None:
    text = bundle({"x.js": "export class A {}\nconst b = 2;\nexport { b as c };\n"}, "x.js")

    assert "return { c: b, A: A };" in text
    assert _lines(text)[-1] == 'export const { A, c } = $modules["x.js"];'


def test_a_module_in_a_folder_keeps_its_own_address() -> None:
    sources = {
        "app.js": 'import "./text/words.js";',
        "text/words.js": 'import "../x.js";\nload(import.meta.url, import("./zh.js"));',
        "x.js": "",
    }
    text = bundle(sources, "app.js")

    assert 'const $url = new URL("text/words.js", import.meta.url).href;' in text
    assert 'load($url, $import("./zh.js"));' in text
    assert text.index('$modules["x.js"] ??=') < text.index('$modules["text/words.js"] ??=')
    assert 'new URL("words.js", import.meta.url)' in bundle(sources, "text/words.js")


def test_other_uses_of_the_words_stay_as_they_are() -> None:
    code = """const words = {
  import: "Import a mask",
  export: "Export",
};
class Mask {
  async import(file) { return file; }
  #import(file) { return this.import(file); }
}
// import { a } from "./a.js" is explained here.
"""

    without_comment = re.sub("^ +", "", code.partition("//")[0], flags=re.MULTILINE)
    assert without_comment in bundle({"app.js": code}, "app.js")
    assert "explained" not in bundle({"app.js": code}, "app.js")


def test_comments_at_the_end_of_a_line_are_left_out_and_addresses_are_not() -> None:
    code = 'const a = 1;  // one\nconst address = "https://a.test// b";\n'
    text = bundle({"app.js": code}, "app.js")
    assert "const a = 1;\n" in text
    assert 'const address = "https://a.test// b";' in text


@pytest.mark.parametrize(
    ("code", "message"),
    [
        ('import { gone } from "./x.js";', "app.js: x.js does not export gone"),
        ('import "./gone.js";', "app.js imports gone.js, which is missing"),
        ('import "./circle.js";', "app.js imports circle.js imports app.js: a circle"),
        ("export let a = 1;", "app.js: export let a = 1;"),
        ("export const { a } = b;", "app.js: export const { a } = b;"),
        ('export { a } from "./x.js";', 'app.js: export { a } from "./x.js";'),
        ('export * from "./x.js";', 'app.js: export * from "./x.js";'),
        ('  import { a } from "./x.js";', 'app.js: import { a } from "./x.js";'),
        ('import a from "./x.json" with { type: "json" };', "app.js: import a from"),
        ("const a = await fetch(b);", "app.js: const a = await fetch(b);"),
        ("const a = b ? c : (await d).e;", "app.js: const a = b ? c : (await d).e;"),
        ("import.meta.resolve('a');", "app.js: import.meta.resolve"),
    ],
)
def test_what_a_bundle_could_change_is_refused(code: str, message: str) -> None:
    sources = {"app.js": code, "x.js": "export const a = 1;", "circle.js": 'import "./app.js";'}
    with pytest.raises(UnsupportedModuleError) as refused:
        bundle(sources, "app.js")

    assert message in str(refused.value)


def test_every_module_of_the_page_can_be_bundled() -> None:
    sources = {
        path.relative_to(WEB).as_posix(): path.read_text(encoding="utf-8")
        for path in WEB.rglob("*.js")
    }

    for name in sources:
        assert f'$modules["{name}"] ??= ' in bundle(sources, name)
