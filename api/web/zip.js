// Writes a ZIP file whose entries are stored without compression: pictures are compressed already.

import { t } from "./text.js";

const LOCAL_HEADER = 0x04034b50, CENTRAL_HEADER = 0x02014b50, END = 0x06054b50;
const VERSION = 20, UTF8_NAMES = 0x0800, MAX_BYTES = 0xffffffff;  // more needs ZIP64

const CRC_TABLE = Uint32Array.from({ length: 256 }, (_, value) => {
  for (let bit = 0; bit < 8; bit++) value = value & 1 ? (value >>> 1) ^ 0xedb88320 : value >>> 1;
  return value;
});

function computeCrc(bytes) {
  let crc = -1;
  for (const byte of bytes) crc = CRC_TABLE[(crc ^ byte) & 255] ^ (crc >>> 8);
  return ~crc >>> 0;
}

// fields: [value, bytes], …; ZIP is little-endian.
function encode(fields) {
  const view = new DataView(new ArrayBuffer(fields.reduce((sum, [, size]) => sum + size, 0)));
  let offset = 0;
  for (const [value, size] of fields) {
    if (size === 2) view.setUint16(offset, value, true);
    else view.setUint32(offset, value, true);
    offset += size;
  }
  return view;
}

// The local time, as MS-DOS stored it: in steps of two seconds, since 1980.
const encodeDate = (date) => [
  [(date.getHours() << 11) | (date.getMinutes() << 5) | (date.getSeconds() >> 1), 2],
  [((date.getFullYear() - 1980) << 9) | ((date.getMonth() + 1) << 5) | date.getDate(), 2],
];

// files: [{name, blob, date}, …], with different names. Only one blob at a time is in memory.
export async function createZip(files) {
  const parts = [], directory = [];
  let offset = 0, directorySize = 0;
  for (const { name, blob, date } of files) {
    const text = new TextEncoder().encode(name);
    const crc = computeCrc(new Uint8Array(await blob.arrayBuffer()));
    const about = [
      [VERSION, 2], [UTF8_NAMES, 2], [0, 2], ...encodeDate(new Date(date)), [crc, 4],
      [blob.size, 4], [blob.size, 4], [text.length, 2], [0, 2],
    ];
    const header = encode([[LOCAL_HEADER, 4], ...about]);
    directory.push(encode([
      [CENTRAL_HEADER, 4], [VERSION, 2], ...about, [0, 2], [0, 2], [0, 2], [0, 4], [offset, 4],
    ]), text);
    parts.push(header, text, blob);
    offset += header.byteLength + text.length + blob.size;
    directorySize += directory.at(-2).byteLength + text.length;
  }
  if (offset + directorySize > MAX_BYTES) throw new Error(t("zipTooLarge"));
  const end = encode([
    [END, 4], [0, 2], [0, 2], [files.length, 2], [files.length, 2], [directorySize, 4], [offset, 4],
    [0, 2],
  ]);
  return new Blob([...parts, ...directory, end], { type: "application/zip" });
}
