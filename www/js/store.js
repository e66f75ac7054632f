// What outlives a reload: the settings (on this device) and the text (in this tab).
// What is read back is checked like any other input.

const SETTINGS = 'bitnet-rust:settings';
const TEXT = 'bitnet-rust:text';

/** @typedef {{ by: 'you' | 'model', text: string }} Piece */
/** @typedef {{ mode: 'story' | 'chat', draft: string, story: Piece[], turns: Piece[] }} Text */

/** @param {'localStorage' | 'sessionStorage'} where @param {string} key */
function read(where, key) {
  try {
    return JSON.parse(globalThis[where].getItem(key) ?? 'null');
  } catch {
    return null; // Forbidden, or not ours.
  }
}

/** @param {'localStorage' | 'sessionStorage'} where @param {string} key @param {unknown} value */
function write(where, key, value) {
  try {
    globalThis[where].setItem(key, JSON.stringify(value));
  } catch {
    // Full or forbidden: the page works on without it.
  }
}

/** @returns {Record<string, unknown>} */
export function readSettings() {
  const value = read('localStorage', SETTINGS);
  return value && typeof value === 'object' && !Array.isArray(value) ? value : {};
}

/** @param {Record<string, unknown>} values */
export const writeSettings = (values) => write('localStorage', SETTINGS, values);

/** @returns {Text} */
export function readText() {
  const value = read('sessionStorage', TEXT) ?? {};
  return {
    mode: value.mode === 'chat' ? 'chat' : 'story',
    draft: typeof value.draft === 'string' ? value.draft : '',
    story: pieces(value.story),
    turns: pieces(value.turns),
  };
}

/** @param {Text} text */
export const writeText = (text) => write('sessionStorage', TEXT, text);

/** @param {any} list @returns {Piece[]} */
function pieces(list) {
  if (!Array.isArray(list)) return [];
  return list
    .filter((p) => (p?.by === 'you' || p?.by === 'model') && typeof p.text === 'string')
    .map(({ by, text }) => ({ by, text }));
}
