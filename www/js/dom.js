// Small helpers around the document. Text only ever enters as text, never as markup.

/** @param {string} id @returns {any} */
export const byId = (id) => document.getElementById(id);

/** An element with properties and children.
 * @param {string} tag @param {Record<string, any>} [props] @param {...(Node | string)} children
 * @returns {any} */
export function el(tag, props = {}, ...children) {
  const node = document.createElement(tag);
  for (const [name, value] of Object.entries(props)) {
    if (value === undefined) continue;
    if (name in node && name !== 'list') /** @type {any} */ (node)[name] = value;
    else node.setAttribute(name, String(value));
  }
  node.append(...children);
  return node;
}

/** @param {string} tag @param {Record<string, any>} attributes @param {...(Node | string)} children */
export function svg(tag, attributes = {}, ...children) {
  const node = document.createElementNS('http://www.w3.org/2000/svg', tag);
  for (const [name, value] of Object.entries(attributes)) node.setAttribute(name, String(value));
  node.append(...children);
  return node;
}

/** @param {number} bytes */
export function formatBytes(bytes) {
  if (!Number.isFinite(bytes)) return '';
  const units = ['bytes', 'kB', 'MB', 'GB'];
  let unit = 0;
  while (bytes >= 999.5 && unit < units.length - 1) {
    bytes /= 1000;
    unit++;
  }
  return `${unit === 0 || bytes >= 100 ? Math.round(bytes) : bytes.toFixed(1)} ${units[unit]}`;
}

/** @param {number} ms */
export const formatMs = (ms) => (ms < 1000 ? `${Math.round(ms)} ms` : `${(ms / 1000).toFixed(1)} s`);

/** @param {number} seconds */
export function formatSeconds(seconds) {
  if (seconds < 1) return 'a moment';
  return seconds < 90 ? `${Math.ceil(seconds)} s` : `${Math.ceil(seconds / 60)} min`;
}

/** @param {number} n of tokens a second */
export const formatRate = (n) => (n < 10 ? n.toFixed(1) : String(Math.round(n)));

/** Hands `data` to the reader as a JSON file. @param {string} name @param {unknown} data */
export function download(name, data) {
  const url = URL.createObjectURL(new Blob([`${JSON.stringify(data, null, 2)}\n`], { type: 'application/json' }));
  el('a', { href: url, download: name }).click();
  setTimeout(() => URL.revokeObjectURL(url), 1000);
}

let spoken = '';
/** Says something through the page's polite live region. @param {string} text */
export function announce(text) {
  const region = byId('live');
  // The same words twice are only read twice if they differ to the browser.
  spoken = text === spoken ? `${text}\u00a0` : text;
  region.textContent = spoken;
}
