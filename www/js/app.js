// The writing page: puts the model, the text and the settings together.
import { announce, byId, el, formatBytes, formatRate, formatSeconds } from './dom.js';
import { DEFAULT, Engine } from './engine.js';
import { explain } from './errors.js';
import { Figures, summary } from './figures.js';
import { ModelPicker } from './model-picker.js';
import { keepForOffline } from './offline.js';
import { Conversation, Reader, Story } from './pages.js';
import { Settings } from './settings.js';
import { readText, writeText } from './store.js';
import { Thread } from './thread.js';

const OPENINGS = [
  'Once upon a time there was a fisherman who',
  'In a dark wood, where no one ever came, there stood a little house, and',
  'A fox and a crow met at the well. “Sister,” said the fox,',
];
const SAMPLE_EVERY_MS = 250;

const engine = new Engine(showLoading, (warning) => showNotice(explain(warning)));
const settings = new Settings(() => load(engine.choice));
const picker = new ModelPicker((choice) => {
  panel.close();
  load(choice);
}, showNotice);
const thread = new Thread();
const figures = new Figures();
const story = new Story();
const conversation = new Conversation();
const panel = byId('panel');
const prompt = byId('prompt');

/** @type {'story' | 'chat'} */
let mode = 'story';
/** What is being written, or waits for the model. @type {{ stop: () => void } | undefined} */
let work;
/** The load under way. @type {Promise<unknown>} */
let loading = Promise.resolve();
const page = () => (mode === 'story' ? story : conversation);

// ---- loading ----

/** Loads a model in place of what is under way. @param {import('./engine.js').Choice} choice */
function load(choice) {
  work?.stop();
  startLoad(choice);
}

/** @param {import('./engine.js').Choice} choice */
function startLoad(choice) {
  hideNotice();
  loading = engine.load(choice, settings.load).then((model) => {
    if (!model) return;
    figures.begin();
    figures.sample(model);
    showModel();
    announce(`${modelName()} is ready, on ${model.info.device === 'cpu' ? 'the CPU' : 'WebGPU'}`);
    keepForOffline(model.info.wasmBuild);
  }).catch((error) => showNotice(explain(error))).finally(showLoading);
}

/** What the loaded model is called here: the storyteller by that name, others by their own. */
function modelName() {
  const { loaded, model } = engine;
  return loaded === DEFAULT || !loaded ? DEFAULT.name : model?.info.name || loaded.name;
}

function showLoading() {
  const { progress, isLoading, model } = engine;
  byId('cancel-load').hidden = !isLoading;
  byId('state').classList.toggle('loading', isLoading);
  byId('model-name').textContent = isLoading ? engine.choice.name : model ? modelName() : 'No model';
  if (isLoading) {
    const { loadedBytes = 0, totalBytes, phase, secondsLeft } = progress ?? {};
    const of = totalBytes ? `${formatBytes(loadedBytes)} of ${formatBytes(totalBytes)}` : formatBytes(loadedBytes);
    const text = phase === 'prepare' ? 'getting ready' : phase === 'wait' ? 'another tab is downloading it'
      : phase === 'measure' ? 'trying out the GPU' : phase === 'read' ? `opening, ${of}`
        : phase === 'download' ? `downloading, ${of}${secondsLeft === undefined ? '' : `, ${formatSeconds(secondsLeft)} left`}` : 'loading';
    byId('state-text').textContent = text;
    thread.load(totalBytes ? loadedBytes / totalBytes : null, text);
    return;
  }
  thread.load(undefined);
  if (!work) byId('state-text').textContent = idleText();
}

function idleText() {
  const { model } = engine;
  if (!model) return '';
  return model.info.device === 'cpu' ? 'on the CPU' : 'on WebGPU';
}

function showModel() {
  picker.showFacts(engine);
  if (panel.open) {
    picker.showCached();
    figures.show(engine.model);
  }
  const cannotChat = engine.model && !engine.model.info.hasChatTemplate;
  const chat = /** @type {any} */ (document.querySelector('input[value="chat"]'));
  chat.disabled = Boolean(cannotChat);
  chat.parentElement.title = cannotChat ? 'This model has no chat template: it only continues text' : '';
  if (cannotChat && mode === 'chat') setMode('story');
}

// ---- writing ----

/** Has the model write, after the reader's words if there are any. @param {string} words
 * @param {{ seed?: number }} [overrides] */
async function write(words, overrides = {}) {
  if (work) return;
  hideNotice();
  const target = page();
  const kind = mode;
  if (words) target.add(words);
  if (target.isEmpty) return prompt.focus();
  const stopped = new AbortController();
  work = { stop: () => stopped.abort() };
  showWork(true);
  try {
    await untilLoaded(stopped.signal);
    const { model } = engine;
    if (!model || stopped.signal.aborted) return; // The words stay, with a button to go on.
    const options = { ...settings.sampling, ...overrides };
    const generation = kind === 'story' ? model.generate(story.text, options) : model.chat(conversation.messages, options);
    stopped.signal.addEventListener('abort', () => generation.stop());
    const result = await follow(generation, target, model);
    figures.finished(result);
    showAfter(target, summary(result), result);
    if (result.finishReason === 'context_full') announce('The context is full');
  } catch (error) {
    // A model that is being replaced need not have come to its own end.
    if (stopped.signal.aborted) showAfter(target, 'stopped');
    else showNotice(explain(error));
  } finally {
    work = undefined;
    showWork(false);
    if (!target.root.querySelector('.after')) showAfter(target, '');
    figures.sample(engine.model);
    if (panel.open) figures.show(engine.model);
    save();
  }
}

/** Puts the pieces of a text on the page as they come; resolves to its result.
 * @param {import('../pkg/index.js').Generation} generation
 * @param {Story | Conversation} target @param {import('../pkg/index.js').BitNet} model */
async function follow(generation, target, model) {
  const reader = new Reader();
  let waiting = '';
  let scheduled = false;
  let isFirst = true;
  let sampled = 0;
  // Once a frame, however fast the tokens come: the page never has more to do than it can show.
  const flush = () => {
    scheduled = false;
    if (!waiting) return;
    const follows = isAtEnd();
    target.grow(waiting);
    reader.add(waiting);
    waiting = '';
    if (follows) toEnd();
    thread.draw();
    const now = performance.now();
    if (now - sampled < SAMPLE_EVERY_MS) return;
    sampled = now;
    byId('rate').textContent = `${formatRate(thread.rate)} tok/s`;
    figures.sample(model, thread.rate);
    if (panel.open) figures.show(model);
  };
  byId('state-text').textContent = 'reading';
  generation.onPrefill = (done, total) => { byId('state-text').textContent = `reading, ${done} of ${total} tokens`; };
  // `result` also rejects when the iteration does; without a listener that is an error of its own.
  generation.result.catch(() => {});
  target.open();
  thread.begin();
  try {
    for await (const piece of generation) {
      if (isFirst) byId('state-text').textContent = 'writing';
      isFirst = false;
      waiting += piece;
      thread.mark(generation.tokenCount);
      if (!scheduled) requestAnimationFrame(flush);
      scheduled = true;
    }
    return await generation.result;
  } finally {
    flush(); // A hidden tab has no frames.
    reader.end();
    target.close();
    showAfter(target, '');
  }
}

/** Resolves when no load is under way any more. @param {AbortSignal} signal */
async function untilLoaded(signal) {
  if (!engine.model && !engine.isLoading) startLoad(engine.choice);
  const aborted = new Promise((done) => { signal.addEventListener('abort', done, { once: true }); });
  while (engine.isLoading && !signal.aborted) await Promise.race([loading, aborted]);
}

/** The line below the text. @param {Story | Conversation} target @param {string} text
 * @param {import('../pkg/index.js').GenerateResult} [result] */
function showAfter(target, text, result) {
  const again = () => {
    target.takeBack();
    // Another draw: the seed that was set would only give the same words again.
    write('', { seed: crypto.getRandomValues(new Uint32Array(1))[0] });
  };
  const commands = [{ label: 'Copy', run: () => copy(target) }];
  if (target.endsWithModel) commands.push({ label: 'Try again', run: again });
  else commands.push({ label: 'Write', run: () => write('') });
  if (mode === 'story' && target.endsWithModel) commands.push({ label: 'Go on', run: () => write('') });
  commands.push({ label: mode === 'story' ? 'New page' : 'New conversation', run: clear });
  const follows = isAtEnd();
  target.after(text, commands, result && `Seed ${result.seed}`);
  if (follows) toEnd();
}

/** @param {Story | Conversation} target */
async function copy(target) {
  try {
    await navigator.clipboard.writeText(target.text);
    byId('state-text').textContent = 'copied';
    announce('Copied');
  } catch {
    // Not allowed (an insecure address, or a setting): the reader can still do it by hand.
    getSelection()?.selectAllChildren(target.root);
    byId('state-text').textContent = 'selected; press Ctrl+C to copy';
    announce('The text is selected; press Control C to copy');
  }
}

function clear() {
  work?.stop();
  page().clear();
  hideNotice();
  showPage();
  save();
  prompt.focus();
}

// ---- what is shown ----

/** @param {boolean} isBusy */
function showWork(isBusy) {
  byId('send').hidden = isBusy;
  byId('stop').hidden = !isBusy;
  const hadFocus = document.activeElement === byId('stop');
  /** @type {any} */ (document.querySelector('.modes')).disabled = isBusy;
  if (!isBusy) {
    byId('state-text').textContent = engine.isLoading ? byId('state-text').textContent : idleText();
    byId('rate').textContent = '';
    if (hadFocus || document.activeElement === document.body) prompt.focus({ preventScroll: true });
  } else if (engine.isLoading) announce('The text begins when the model is loaded');
  showPage();
}

function showPage() {
  const isEmpty = page().isEmpty;
  byId('opening').hidden = !isEmpty;
  byId('title').hidden = isEmpty;
  byId('title').textContent = mode === 'story' ? 'Story' : 'Conversation';
  story.root.hidden = mode !== 'story' || isEmpty;
  conversation.root.hidden = mode !== 'chat' || isEmpty;
  byId('openings').hidden = mode === 'chat';
  prompt.placeholder = mode === 'chat' ? 'Say something' : isEmpty ? 'Begin a story' : 'Add a line, or just go on';
  byId('prompt-label').textContent = prompt.placeholder;
  byId('send-label').textContent = mode === 'chat' ? 'Send' : 'Write';
}

/** @param {'story' | 'chat'} next */
function setMode(next) {
  mode = next;
  /** @type {any} */ (document.querySelector(`input[name="mode"][value="${next}"]`)).checked = true;
  showPage();
  if (!page().isEmpty && !page().root.querySelector('.after')) showAfter(page(), '');
  save();
}

const isAtEnd = () => scrollY + innerHeight >= document.documentElement.scrollHeight - 90;
const toEnd = () => scrollTo({ top: document.documentElement.scrollHeight });

const ACTIONS = {
  retry: { label: 'Try again', run: () => load(engine.choice) },
  cpu: { label: 'Use the CPU', run: () => { settings.set('device', 'cpu'); load(engine.choice); } },
  default: { label: 'Use the storyteller', run: () => (engine.model && engine.loaded === DEFAULT ? hideNotice() : load(DEFAULT)) },
  settings: { label: 'Model and settings', run: openPanel },
  new: { label: 'New page', run: clear },
  reload: { label: 'Reload the page', run: () => location.reload() },
};

/** @param {{ title: string, detail: string, advice?: string, actions?: (keyof typeof ACTIONS)[], code?: string }} error */
function showNotice({ title, detail, advice, actions = [], code }) {
  const notice = byId('notice');
  const button = (/** @type {keyof typeof ACTIONS} */ name) => el('button', { type: 'button', textContent: ACTIONS[name].label,
    onclick: () => { hideNotice(); ACTIONS[name].run(); } });
  const close = el('button', { type: 'button', textContent: 'Close', onclick: () => { hideNotice(); prompt.focus(); } });
  notice.replaceChildren(el('strong', { textContent: title }), ...(advice ? [el('p', { textContent: advice })] : []),
    el('p', { className: 'detail', textContent: detail }), el('div', { className: 'actions' }, ...actions.map(button), close));
  notice.dataset.code = code ?? '';
  notice.hidden = false;
  if (panel.open) panel.close(); // It would hide the notice.
}

function hideNotice() {
  byId('notice').hidden = true;
  byId('notice').replaceChildren();
}

function openPanel() {
  picker.showFacts(engine);
  picker.showCached();
  panel.showModal();
  figures.show(engine.model);
}

function save() {
  writeText({ mode, draft: prompt.value, story: story.pieces, turns: conversation.pieces });
}

// ---- the reader's hands ----

byId('composer').addEventListener('submit', (/** @type {Event} */ event) => {
  event.preventDefault();
  if (work) return;
  const words = prompt.value.trim();
  if (!words && (mode === 'chat' || page().isEmpty)) return;
  prompt.value = '';
  fit();
  write(words);
  toEnd();
});
prompt.addEventListener('keydown', (/** @type {KeyboardEvent} */ event) => {
  if (event.key !== 'Enter' || event.shiftKey || event.isComposing) return;
  event.preventDefault();
  byId('composer').requestSubmit();
});
addEventListener('keydown', (event) => {
  if (event.key === 'Escape' && !panel.open) work?.stop();
});
byId('stop').addEventListener('click', () => work?.stop());
byId('cancel-load').addEventListener('click', () => {
  work?.stop();
  engine.cancel();
  announce('Loading was cancelled; what has arrived is kept');
});
byId('open-panel').addEventListener('click', openPanel);
byId('close-panel').addEventListener('click', () => panel.close());
panel.addEventListener('click', (/** @type {MouseEvent} */ event) => {
  if (event.target === panel) panel.close(); // The backdrop.
});
for (const input of document.querySelectorAll('input[name="mode"]')) {
  input.addEventListener('change', () => setMode(/** @type {any} */ (input).value));
}

/** The text field is as high as its text, where the style sheet cannot do that. */
function fit() {
  if (CSS.supports('field-sizing', 'content')) return;
  prompt.style.height = 'auto';
  prompt.style.height = `${prompt.scrollHeight}px`;
}
prompt.addEventListener('input', fit);
addEventListener('pagehide', save);

for (const text of OPENINGS) {
  byId('openings').append(el('li', {}, el('button', { type: 'button', textContent: text, onclick: () => write(text) })));
}
const kept = readText();
story.pieces = kept.story;
conversation.pieces = kept.turns;
story.render();
conversation.render();
prompt.value = kept.draft;
fit();
setMode(kept.mode);
// Whoever saves data is asked first: by beginning to write.
if (/** @type {any} */ (navigator).connection?.saveData && !(await isKept())) {
  byId('state-text').textContent = `${formatBytes(DEFAULT.source.bytes)} are loaded when you begin`;
} else load(DEFAULT);

async function isKept() {
  const { BitNet } = await import('../pkg/index.js');
  return (await BitNet.cache.list()).some((file) => file.url === DEFAULT.source.url && file.complete);
}
