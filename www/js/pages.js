// What has been written: a story (one text by two hands) and a conversation (turns), as data and
// as elements.
import { announce, byId, el } from './dom.js';

/** @typedef {import('./store.js').Piece} Piece */
/** @typedef {{ label: string, run: () => void }} Command */

/** What both kinds of page share: pieces by the reader and by the model, in order. */
class Page {
  /** @type {Piece[]} */
  pieces = [];
  /** The text node that grows while the model writes. @type {Text | undefined} */
  #open;

  /** @param {HTMLElement} root */
  constructor(root) {
    this.root = root;
  }

  get isEmpty() {
    return this.pieces.length === 0;
  }

  /** Whether the last piece is the model's. */
  get endsWithModel() {
    return this.pieces.at(-1)?.by === 'model';
  }

  /** Opens a piece by the model, which `grow` adds to. */
  open() {
    this.pieces.push({ by: 'model', text: '' });
    this.render();
    this.#open = this.place();
    this.root.classList.add('writing');
    this.root.setAttribute('aria-busy', 'true');
  }

  /** @param {string} text */
  grow(text) {
    const piece = /** @type {Piece} */ (this.pieces.at(-1));
    piece.text += text;
    if (this.#open) this.#open.data === '' ? (this.#open.data = this.shown(piece)) : this.#open.appendData(text);
  }

  close() {
    this.#open = undefined;
    if (this.pieces.at(-1)?.text === '') this.pieces.pop();
    this.root.classList.remove('writing');
    this.root.removeAttribute('aria-busy');
    this.render();
  }

  /** Takes the model's last piece away. */
  takeBack() {
    if (this.endsWithModel) this.pieces.pop();
    this.render();
  }

  clear() {
    this.pieces = [];
    this.render();
  }

  /** The line below the text. @param {string} figures @param {Command[]} commands @param {string} [title] */
  after(figures, commands, title) {
    this.root.querySelector('.after')?.remove();
    if (this.isEmpty) return;
    const buttons = commands.map(({ label, run }) => el('button', { type: 'button', className: 'link', textContent: label, onclick: run }));
    const row = el('div', { className: 'after' }, ...buttons);
    if (figures) row.append(el('span', { className: 'figures', textContent: figures, title }));
    this.afterHost().append(row);
  }

  /** How a piece looks. What the model wrote is kept as it is: the KV cache only knows it so.
   * @param {Piece} piece */
  shown({ text }) { return text; }
  /** @abstract */
  render() {}
  /** @abstract @returns {Text} */
  place() { throw new Error('abstract'); }
  afterHost() { return this.root; }
}

export class Story extends Page {
  constructor() {
    super(byId('story'));
  }

  /** @param {string} text by the reader */
  add(text) {
    const before = this.pieces.at(-1);
    if (before && !/\s$/.test(before.text) && !/^[\s.,;:!?’”)]/.test(text)) before.text += ' ';
    this.pieces.push({ by: 'you', text });
    this.render();
  }

  /** All of it: what the model goes on from, and what is copied. */
  get text() {
    return this.pieces.map((p) => p.text).join('');
  }

  render() {
    this.root.hidden = this.isEmpty;
    this.root.replaceChildren(el('div', { className: 'text' },
      ...this.pieces.map(({ by, text }) => el('span', { className: `by-${by}` }, document.createTextNode(text)))));
  }

  place() {
    const span = /** @type {any} */ (this.root.querySelector('.text')).lastChild;
    return span.firstChild;
  }
}

export class Conversation extends Page {
  constructor() {
    super(byId('turns'));
  }

  /** @param {string} text by the reader */
  add(text) {
    this.pieces.push({ by: 'you', text });
    this.render();
  }

  /** What is copied: the last answer. */
  get text() {
    return this.pieces.at(-1)?.text.trim() ?? '';
  }

  /** In the form that `BitNet.chat` takes. */
  get messages() {
    return this.pieces.map(({ by, text }) => ({ role: by === 'you' ? 'user' : 'assistant', content: text }));
  }

  /** @param {Piece} piece */
  shown({ text }) {
    return text.trimStart(); // Templates often leave the first space to the model.
  }

  render() {
    this.root.hidden = this.isEmpty;
    this.root.replaceChildren(...this.pieces.map((piece) => el('li', { className: 'turn' },
      el('h2', { className: 'visually-hidden', textContent: piece.by === 'you' ? 'You' : 'Model' }),
      el('div', { className: piece.by === 'you' ? 'turn-you' : 'text model-text' }, document.createTextNode(this.shown(piece))))));
  }

  place() {
    return /** @type {any} */ (this.root.lastElementChild).lastElementChild.firstChild;
  }

  afterHost() {
    return /** @type {HTMLElement} */ (this.root.lastElementChild);
  }
}

/** Reads out a text sentence by sentence while it is written. */
export class Reader {
  #rest = '';

  /** @param {string} text */
  add(text) {
    this.#rest += text;
    // An end of sentence, with closing quotes, that something follows.
    const end = /^[^]*[.!?…][”"’')]*(?=\s)/.exec(this.#rest);
    if (!end) return;
    announce(end[0].trim());
    this.#rest = this.#rest.slice(end[0].length);
  }

  end() {
    if (this.#rest.trim()) announce(this.#rest.trim());
    this.#rest = '';
  }
}
