// Runs in the page: one fixture against the recorded outputs of a reference program, with the rules
// of tests/conformance.rs. `maxTokens` of each prompt are generated.

const json = async (url) => (await fetch(url)).json();
const argmax = (row) => row.reduce((best, v, i) => (v > row[best] ? i : best), 0);

/** @param {string} pkg @param {{ family: string, variant: string }} fixture @param {string} device
 * @param {number} [maxTokens] */
export async function conform(pkg, { family, variant }, device, maxTokens = 32) {
  const { BitNet } = await import(pkg);
  const base = `/fixtures/${family}`;
  const record = await json(`${base}/expected/${variant}.json`);
  const source = variant.startsWith('hf-')
    ? {
        model: `${base}/${variant}/model.safetensors`,
        config: `${base}/${variant}/config.json`,
        tokenizer: `${base}/${variant}/tokenizer.json`,
        tokenizerConfig: `${base}/${variant}/tokenizer_config.json`,
      }
    : `${base}/gguf/${variant.replace(/\.(fork|main)$/, '')}.gguf`;
  const model = await BitNet.load(source, { device, contextLength: 512, kvCache: 'f32', cache: false });
  const vocab = model.info.vocabSize;
  const problems = [];
  const close = variant.includes('bf16') ? 3e-2 : 1e-2;
  const total = { positions: 0, same: 0, difference: 0, spread: 0, exact: 0, reference: 0, within: 0 };
  const greedy = {};

  for (const prompt of record.prompts) {
    const logits = await model.logits(prompt.ids);
    const want = new Float32Array(await (await fetch(`${base}/expected/${prompt.logits}`)).arrayBuffer());
    if (want.length !== prompt.positions.length * vocab) throw new Error('size of the record');
    let within = 0;
    prompt.positions.forEach((p, i) => {
      const got = logits.subarray(p * vocab, (p + 1) * vocab);
      const row = want.subarray(i * vocab, (i + 1) * vocab);
      let [dot, got2, want2, max, sum, mean] = [0, 0, 0, 0, 0, 0];
      for (let v = 0; v < vocab; v++) {
        dot += got[v] * row[v];
        got2 += got[v] * got[v];
        want2 += row[v] * row[v];
        mean += row[v] / vocab;
        max = Math.max(max, Math.abs(got[v] - row[v]));
        sum += (got[v] - row[v]) ** 2;
      }
      total.difference += sum;
      total.spread += want2 - vocab * mean * mean;
      within += max < close ? 1 : 0;
      const cosine = dot / Math.sqrt(got2 * want2);
      if (!(cosine >= 0.998)) problems.push(`${prompt.name}: cosine ${cosine} at position ${p}`);
      const same = argmax(got) === prompt.argmax[i];
      if (!same && !(prompt.margin[i] <= 0.6)) problems.push(`${prompt.name}: argmax at position ${p}`);
      total.same += same ? 1 : 0;
      total.positions++;
    });
    if (prompt.f64_max_abs) {
      total.exact += prompt.f64_max_abs.length;
      total.reference += prompt.f64_max_abs.filter((v) => v < 1e-2).length;
      total.within += within;
    }
    const [safe, clear] = prompt.greedy_safe_prefix === undefined || prompt.greedy_safe_prefix === null
      ? [prompt.greedy_margin.length, 0.6] : [prompt.greedy_safe_prefix, 0.2];
    const unsure = prompt.greedy_margin.findIndex((m) => m <= clear);
    const n = Math.min(maxTokens, safe, unsure < 0 ? Infinity : unsure);
    const { tokens } = await model.generate(prompt.ids, { maxTokens, temperature: 0, ignoreEos: true }).result;
    greedy[prompt.name] = tokens;
    if (tokens.length !== maxTokens || tokens.slice(0, n).join() !== prompt.greedy.slice(0, n).join()) {
      problems.push(`${prompt.name}: greedy ${tokens} instead of ${prompt.greedy}, first ${n}`);
    }
  }
  const rms = Math.sqrt(total.difference / total.spread);
  const same = total.same / total.positions;
  const share = (n) => n / Math.max(1, total.exact);
  if (share(total.reference) >= 0.75 && share(total.within) < share(total.reference) - 0.35) {
    problems.push(`${share(total.within)} of the positions agree, ${share(total.reference)} could`);
  }
  if (!(rms <= 0.03)) problems.push(`rms difference ${rms}`);
  if (!(same >= 0.93)) problems.push(`argmax agrees in ${same}`);
  const { device: used, adapter } = model.info;
  await model.dispose();
  return { problems, rms, same, exact: share(total.within), reference: share(total.reference), greedy, used, adapter };
}
