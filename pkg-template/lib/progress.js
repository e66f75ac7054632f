// How far a load has come, in events that are not too many.

const EVERY_MS = 100;
/** The speed is that of the last few seconds. */
const WINDOW_MS = 5000;

export class Progress {
  /** @param {(event: import('../index.js').Progress) => void} emit */
  constructor(emit) {
    this.emit = emit;
    /** @type {import('./source.js').File[]} */
    this.files = [];
    /** @type {import('../index.js').Progress['phase']} */
    this.current = 'download';
    this.loaded = 0;
    this.stored = 0;
    this.sent = 0;
    /** Bytes from the network at past times. @type {{ at: number, bytes: number }[]} */
    this.samples = [];
  }

  /** @param {import('./source.js').File[]} files */
  begin(files) {
    this.files = files;
    this.loaded = this.stored = 0;
    this.samples = [];
  }

  /** @param {import('../index.js').Progress['phase']} phase */
  phase(phase) {
    if (phase === this.current && this.sent) return;
    this.current = phase;
    this.send();
  }

  sizes() {
    this.send();
  }

  /** @param {number} bytes @param {boolean} stored */
  add(bytes, stored) {
    this.loaded += bytes;
    if (stored) this.stored += bytes;
    if (performance.now() - this.sent >= EVERY_MS) this.send();
  }

  send() {
    const now = (this.sent = performance.now());
    const total = this.files.every((f) => f.bytes !== undefined)
      ? this.files.reduce((sum, f) => sum + (f.bytes ?? 0), 0) : undefined;
    this.samples.push({ at: now, bytes: this.loaded - this.stored });
    while (this.samples.length > 2 && now - this.samples[0].at > WINDOW_MS) this.samples.shift();
    const [first] = this.samples;
    const speed = (this.loaded - this.stored - first.bytes) / Math.max(1, now - first.at) * 1000;
    this.emit({
      phase: this.current,
      loadedBytes: this.loaded,
      totalBytes: total,
      storedBytes: this.stored,
      secondsLeft: this.current === 'download' && total !== undefined && speed > 0
        ? (total - this.loaded) / speed : undefined,
    });
  }
}
