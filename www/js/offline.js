// Makes the page work without a network after its first visit: see ../sw.js. The model itself is
// kept by the package.

/** Registers the service worker and fills its cache with what this visit used.
 * @param {string} [wasmBuild] the build in use; the other one is not fetched */
export async function keepForOffline(wasmBuild) {
  if (!('serviceWorker' in navigator) || !isSecureContext) return;
  try {
    const registration = await navigator.serviceWorker.register('sw.js');
    const worker = registration.installing ?? registration.waiting ?? registration.active;
    worker?.postMessage({ keep: wasmBuild });
  } catch {
    // Private windows and some settings forbid it; then the page needs the network, as any other.
  }
}
