"""The files of the page: read once, bundled, compressed, and named by one version.

Their addresses are `web-VERSION/PATH`. The version is a hash of all of them, so an address never
changes its content, and a browser may keep it for ever. All files of a version are in one folder,
so relative addresses in modules, style sheets and the manifest stay true.
"""

import gzip
import hashlib
import json
import logging
import mimetypes
import re
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

from api.assets import bundle

log = logging.getLogger(__name__)

# The standard library's table depends on the machine, so what matters is here.
_TYPES = {
    ".avif": "image/avif",
    ".css": "text/css; charset=utf-8",
    ".html": "text/html; charset=utf-8",
    ".js": "text/javascript; charset=utf-8",
    ".json": "application/json",
    ".svg": "image/svg+xml",
    ".webmanifest": "application/manifest+json",
    ".woff2": "font/woff2",
}
_COMPRESSED = (".css", ".html", ".js", ".json", ".svg", ".webmanifest")
_SHELL = (".css", ".js", ".svg")  # what the service worker keeps
_MANIFEST = "manifest.webmanifest"
_DOCUMENT_FOLDER = b"./web/"  # where the documents refer to files


@dataclass(frozen=True)
class StaticFile:
    """A file with its media type. `gzip` is None where compression is useless."""

    content: bytes
    media_type: str
    is_compressible: bool = True

    @classmethod
    def of(cls, path: str, content: bytes) -> "StaticFile":
        """Return the file with the type that its name tells."""
        suffix = Path(path).suffix
        media_type = _TYPES.get(suffix) or mimetypes.guess_type(path)[0]
        return cls(content, media_type or "application/octet-stream", suffix in _COMPRESSED)

    @cached_property
    def gzip(self) -> bytes | None:
        """The compressed content."""
        return gzip.compress(self.content, 9, mtime=0) if self.is_compressible else None

    @cached_property
    def etag(self) -> str:
        """The entity tag: weak, because it is the same for both codings."""
        return f'W/"{hashlib.sha256(self.content).hexdigest()[:32]}"'


class PageFiles:
    """The files of one folder, as they are served. Changes of the folder need a new object."""

    def __init__(self, folder: Path, form: bytes = b"") -> None:
        """form: JSON that the document index.html carries in its element `form`.

        Its element `gallery` carries gallery/index.json, if the folder has it.
        """
        self._sources = {
            path.relative_to(folder).as_posix(): path.read_bytes()
            for path in sorted(folder.rglob("*"))
            if path.is_file()
        }
        self._form = form
        parts = [Path(bundle.__file__).read_bytes(), form]
        parts += [part for name, data in self._sources.items() for part in (name.encode(), data)]
        lengths = [str(len(part)).encode() for part in parts]
        self.version = hashlib.sha256(b" ".join([*lengths, *parts])).hexdigest()[:16]
        contents = self._sources | _complete_manifests(self._sources) | self._bundle_modules()
        self._files = {name: StaticFile.of(name, content) for name, content in contents.items()}

    @property
    def folder(self) -> str:
        """The folder of the addresses of all files."""
        return f"web-{self.version}"

    def get(self, path: str) -> StaticFile | None:
        """Return a file by its path in the folder; a module with all that it imports."""
        return self._files.get(path)

    def document(self, name: str, *, is_nested: bool = False) -> StaticFile:
        """Return an HTML file whose addresses lead to this version's files.

        is_nested: whether its own address is one folder deeper than the root of the service.
        """
        html = self._sources[name].replace(_DOCUMENT_FOLDER, f"./{self.folder}/".encode())
        data = {b"form": self._form, b"gallery": self._sources.get("gallery/index.json", b"")}
        for element, content in data.items():
            start, end = b'id="' + element + b'">', b"</script>"
            # In HTML, only `<` could end the element.
            html = html.replace(start + end, start + content.replace(b"<", rb"\u003c") + end)
        return StaticFile.of(name, html.replace(b'="./', b'="../') if is_nested else html)

    def service_worker(self, document: str) -> StaticFile:
        """Return the service worker, which keeps this document and the code that it names."""
        html = self.document(document).content.decode()
        named = re.findall(rf'="\./({self.folder}/[^"]+)"', html)
        fonts = [f"{self.folder}/{path}" for path in self._sources if path.endswith(".woff2")]
        shell = ["./", *(path for path in named if path.endswith(_SHELL)), *fonts]
        listed = json.dumps([*dict.fromkeys(shell)])  # a cache refuses a list with a path twice
        constants = f"const VERSION = {json.dumps(self.version)}, SHELL = {listed};\n"
        return StaticFile.of("sw.js", constants.encode() + self._sources["service-worker.js"])

    def _bundle_modules(self) -> dict[str, bytes]:
        names = [name for name in self._sources if name.endswith(".js")]
        modules = {name: self._sources[name].decode() for name in names}
        try:
            return {name: bundle.bundle(modules, name).encode() for name in names}
        except bundle.UnsupportedModuleError as error:
            # The page works all the same, with one request for each module.
            log.warning("the modules of the page are served one by one: %s", error)
            return {}


def _complete_manifests(sources: dict[str, bytes]) -> dict[str, bytes]:
    """Return the manifests in other languages: their sources have only what differs."""
    names = [name for name in sources if name.endswith(".webmanifest") and name != _MANIFEST]
    manifest = json.loads(sources.get(_MANIFEST, b"{}"))
    return {name: json.dumps(manifest | json.loads(sources[name])).encode() for name in names}
