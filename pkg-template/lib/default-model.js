// Written by build.mjs: the model that comes with the package, and what its content must hash to.
export const MODEL = {
  url: new URL('../models/tales.gguf', import.meta.url).href,
  bytes: 0,
  sha256: '',
};
