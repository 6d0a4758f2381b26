"""Joins a JavaScript module and all that it imports into one module, so that one request loads it.

Each module becomes a function that runs once and returns its exports:

    $modules["dom.js"] ??= (() => { ...; return { byId, setText }; })();

`$modules` belongs to the document. So a module runs once even if two bundles contain it, as it does
without bundles. The order is that of the imports; nothing else in the code changes.

It understands this part of the language, which the modules of the page keep to:

- A line that begins with `//` is a comment, and so is the end of a line after two spaces and `// `,
  also in a string or template; they are left out. So is indentation.
- An import or export begins its line. An import is `import { a, b as c } from "./x.js";`,
  `import * as x from "./x.js";`, `import x from "./x.js";` or `import "./x.js";`.
- Exported are `const`, `function` and `class`, the list `export { a, b as c };`, and
  `export default` with an expression. They do not change after the module has run.
- Modules do not import each other in a circle, and do not wait with `await` outside functions.
- `import.meta.url` and `import("./x.js")` mean what they mean in the module's own file.
"""

import posixpath
import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from functools import cache

_COMMENT = re.compile(r"^[ \t]*//.*\n?|  // .*$", re.MULTILINE)
_INDENTATION = re.compile(r"^[ \t]+", re.MULTILINE)
_NAME = r"[A-Za-z_$][\w$]*"
_IMPORT = re.compile(
    r'^import\s+(?:(?P<bound>[^"\';]+?)\s+from\s+)?"(?P<path>\.{1,2}/[^"\n]+)";', re.MULTILINE
)
_BOUND = re.compile(
    rf"(?:(?P<default>{_NAME})\s*(?:,\s*|$))?"
    rf"(?:\{{(?P<names>[^{{}}]*)\}}|\*\s+as\s+(?P<all>{_NAME}))?"
)
_EXPORTED_DECLARATION = re.compile(
    rf"^export (?=(?:const|class|(?:async )?function ?\*?) ?({_NAME})\b)", re.MULTILINE
)
_EXPORTED_LIST = re.compile(r"^export \{([^{}]*)\};", re.MULTILINE)
_EXPORTED_DEFAULT = re.compile(r"^export default (?!(?:async )?function\b|class\b)", re.MULTILINE)
# Not a method of that name, nor its definition.
_IMPORT_CALL = re.compile(r"(?<![.#\w$])import\s*\((?![^()]*\)\s*\{)")
_UNSUPPORTED = re.compile(
    r"^\s*export\s*(?:[{*]|(?:default|async|function|class|const|let|var)\b).*"
    r"|^\s*import\s*(?:[\"'{*]|[\w$]+\s*(?:,|from\b)).*"
    r"|\bimport\.meta(?!\.url\b).*"
    r"|^(?=[\w$(\[])(?!.*\basync\b).*\bawait\b.*",
    re.MULTILINE,
)


class UnsupportedModuleError(Exception):
    """A module that does not keep to the rules above. The message names it and the line."""


@dataclass(frozen=True)
class _Module:
    imports: tuple[tuple[str, tuple[str, ...]], ...]  # of a module, these names
    exports: Mapping[str, str]  # by the exported name: the local one
    code: str


def bundle(sources: Mapping[str, str], entry: str) -> str:
    """Return one module that runs and exports what the module `entry` does.

    sources: the code of the modules by their paths. Raises UnsupportedModuleError.
    """
    modules: dict[str, _Module] = {}
    order = list(_walk(sources, entry, modules, ()))
    parts = ["const $modules = globalThis.$modules ??= {};\n"]
    for name in order:
        for other, wanted in modules[name].imports:
            if missing := {*wanted} - modules[other].exports.keys():
                raise UnsupportedModuleError(f"{name}: {other} does not export {min(missing)}")
        parts.append(_wrap(name, modules[name], posixpath.dirname(entry)))
    names = modules[entry].exports.keys()
    if named := sorted(names - {"default"}):
        parts.append(f'export const {{ {", ".join(named)} }} = $modules["{entry}"];\n')
    if "default" in names:
        parts.append(f'export default $modules["{entry}"].default;\n')
    return "".join(parts)


def _walk(
    sources: Mapping[str, str], name: str, modules: dict[str, _Module], path: tuple[str, ...]
) -> Iterator[str]:
    """Yield the module after all that it imports, each once."""
    if name in path:
        raise UnsupportedModuleError(f"{' imports '.join([*path, name])}: a circle")
    if name in modules:
        return
    if name not in sources:
        raise UnsupportedModuleError(f"{path[-1]} imports {name}, which is missing")
    module = _parse(name, sources[name])
    for other, _ in module.imports:
        yield from _walk(sources, other, modules, (*path, name))
    modules[name] = module
    yield name


@cache
def _parse(name: str, source: str) -> _Module:
    imports: list[tuple[str, tuple[str, ...]]] = []
    exports: dict[str, str] = {}

    def take_import(match: re.Match[str]) -> str:
        bound = _BOUND.fullmatch(match["bound"] or "")
        if bound is None:
            return match[0]
        other = posixpath.normpath(posixpath.join(posixpath.dirname(name), match["path"]))
        pairs = [("default", bound["default"])] if bound["default"] else []
        pairs += _pairs(bound["names"] or "")
        imports.append((other, tuple(wanted for wanted, _ in pairs)))
        targets = [bound["all"]] if bound["all"] else []
        if pairs:
            targets.append(f"{{ {', '.join(f'{wanted}: {local}' for wanted, local in pairs)} }}")
        return " ".join(f'const {target} = $modules["{other}"];' for target in targets)

    def take_list(match: re.Match[str]) -> str:
        exports.update((exported, local) for local, exported in _pairs(match[1]))
        return ""

    def take_declaration(match: re.Match[str]) -> str:
        exports[match[1]] = match[1]
        return ""

    def take_default(_: re.Match[str]) -> str:
        exports["default"] = "$default"
        return "const $default = "

    code = _COMMENT.sub("", source)
    code = _IMPORT.sub(take_import, code)
    code = _EXPORTED_LIST.sub(take_list, code)
    code = _EXPORTED_DECLARATION.sub(take_declaration, code)
    code = _EXPORTED_DEFAULT.sub(take_default, code)
    if unsupported := _UNSUPPORTED.search(code):
        raise UnsupportedModuleError(f"{name}: {unsupported[0].strip()}")
    code = _IMPORT_CALL.sub("$import(", code).replace("import.meta.url", "$url")
    return _Module(tuple(imports), exports, code)


def _pairs(names: str) -> list[tuple[str, str]]:
    """Return the pairs of `a, b as c`: ("a", "a"), ("b", "c")."""
    words = [part.split() for part in names.split(",") if part.strip()]
    return [(word[0], word[-1]) for word in words]


def _wrap(name: str, module: _Module, folder: str) -> str:
    """Return the module as a function. folder: that of the bundle, to find the module's own URL."""
    helpers = ""
    if "$url" in module.code or "$import" in module.code:
        path = posixpath.relpath(name, folder or ".")
        helpers += f'const $url = new URL("{path}", import.meta.url).href;\n'
    if "$import" in module.code:
        helpers += "const $import = (path) => import(new URL(path, $url).href);\n"
    values = ", ".join(f"{exported}: {local}" for exported, local in module.exports.items())
    source = _INDENTATION.sub("", module.code)
    code = f"{helpers}{source}\nreturn {{ {values} }};\n"
    return f'$modules["{name}"] ??= (() => {{\n{code}}})();\n'
