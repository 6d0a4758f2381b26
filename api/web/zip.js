// Writes a ZIP file whose entries are stored without compression: pictures are compressed already.

const LOCAL_HEADER = 0x04034b50, CENTRAL_HEADER = 0x02014b50, END = 0x06054b50;
const ZIP64_END = 0x06064b50, ZIP64_LOCATOR = 0x07064b50, ZIP64_EXTRA = 1;
const VERSION = 45, UTF8_NAMES = 0x0800;  // 4.5: may use ZIP64
// The largest values of fields; where they do not suffice, they refer to the fields of ZIP64.
const MAX_32 = 0xffffffff, MAX_16 = 0xffff;

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
  const bytes = fields.flatMap(([value, size]) =>
    Array.from({ length: size }, (_, i) => Math.floor(value / 256 ** i) % 256));
  return Uint8Array.from(bytes);
}

// The local time, as MS-DOS stored it: in steps of two seconds, since 1980.
const encodeDate = (date) => [
  [(date.getHours() << 11) | (date.getMinutes() << 5) | (date.getSeconds() >> 1), 2],
  [((date.getFullYear() - 1980) << 9) | ((date.getMonth() + 1) << 5) | date.getDate(), 2],
];

// files: [{name, blob, date}, …], with different names; each has less than 4 GB, all together may
// have more. Only one blob at a time is in memory.
export async function createZip(files) {
  const parts = [], directory = [];
  let offset = 0, directorySize = 0;
  for (const { name, blob, date } of files) {
    const text = new TextEncoder().encode(name);
    const crc = computeCrc(new Uint8Array(await blob.arrayBuffer()));
    const about = [
      [VERSION, 2], [UTF8_NAMES, 2], [0, 2], ...encodeDate(new Date(date)), [crc, 4],
      [blob.size, 4], [blob.size, 4], [text.length, 2],
    ];
    const header = encode([[LOCAL_HEADER, 4], ...about, [0, 2]]);
    const extra = encode(offset < MAX_32 ? [] : [[ZIP64_EXTRA, 2], [8, 2], [offset, 8]]);
    const entry = encode([
      [CENTRAL_HEADER, 4], [VERSION, 2], ...about, [extra.length, 2], [0, 2], [0, 2], [0, 2], [0, 4],
      [Math.min(offset, MAX_32), 4],
    ]);
    parts.push(header, text, blob);
    directory.push(entry, text, extra);
    offset += header.length + text.length + blob.size;
    directorySize += entry.length + text.length + extra.length;
  }
  const { length } = files, isLarge = length >= MAX_16 || offset + directorySize >= MAX_32;
  const largeEnd = [
    [ZIP64_END, 4], [44, 8], [VERSION, 2], [VERSION, 2], [0, 4], [0, 4], [length, 8], [length, 8],
    [directorySize, 8], [offset, 8],
    [ZIP64_LOCATOR, 4], [0, 4], [offset + directorySize, 8], [1, 4],
  ];
  const count = Math.min(length, MAX_16);
  const end = encode([
    ...(isLarge ? largeEnd : []),
    [END, 4], [0, 2], [0, 2], [count, 2], [count, 2], [directorySize, 4],
    [Math.min(offset, MAX_32), 4], [0, 2],
  ]);
  return new Blob([...parts, ...directory, end], { type: "application/zip" });
}
