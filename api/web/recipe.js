// Reads the record of how a painting was made from its PNG: docs/api.md.

const SIGNATURE = "\x89PNG\r\n\x1a\n", KEYWORD = "impasto", MAX_BYTES = 1 << 20;

const toText = (bytes) => new TextDecoder().decode(bytes);

// Returns {content, styles, masks, style_masks, init_image, spec}, or null for any other file.
export async function readRecipe(file) {
  try {
    const head = new Uint8Array(await file.slice(0, 8).arrayBuffer());
    if (String.fromCharCode(...head) !== SIGNATURE) return null;
    for (let offset = 8; offset + 12 <= file.size;) {
      const view = new DataView(await file.slice(offset, offset + 8).arrayBuffer());
      const length = view.getUint32(0), name = toText(new Uint8Array(view.buffer, 4));
      if (name === "iTXt" && length < MAX_BYTES) {
        const body = new Uint8Array(await file.slice(offset + 8, offset + 8 + length).arrayBuffer());
        // Keyword, two bytes about compression, language, translated keyword, text.
        const keyword = toText(body.subarray(0, body.indexOf(0)));
        const language = body.indexOf(0, keyword.length + 3), text = body.indexOf(0, language + 1) + 1;
        if (keyword === KEYWORD && !body[keyword.length + 1]) return parse(toText(body.subarray(text)));
      }
      if (name === "IDAT" || name === "IEND") return null;
      offset += 12 + length;
    }
  } catch { /* a damaged file: not a record */ }
  return null;
}

function parse(text) {
  const { content, styles, masks = [], style_masks = [], init_image = null, spec } = JSON.parse(text);
  const isDigest = (digest) => /^sha256:[0-9a-f]{64}$/.test(digest);
  const isValid = spec?.constructor === Object && Array.isArray(styles) && styles.length
    && [content, ...styles, ...masks, ...style_masks].every(isDigest);
  return isValid ? { content, styles, masks, style_masks, init_image, spec } : null;
}
