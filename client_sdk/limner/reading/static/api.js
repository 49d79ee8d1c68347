// Calls to the reading room's server. Every one carries the reader's token, which lives in this tab's session alone.

export class Refused extends Error {
  constructor(status, message, code) {
    super(message);
    this.status = status;
    this.code = code;
  }
  // Whether the same call may succeed later without anybody doing anything.
  get passing() {
    return this.status === 0 || this.status === 429 || this.status >= 500;
  }
}

const PATIENCE_MS = 20_000;

async function ask(path, token, options = {}) {
  const timeout = AbortSignal.timeout(PATIENCE_MS);
  const signal = options.signal ? AbortSignal.any([options.signal, timeout]) : timeout;
  let response;
  try {
    response = await fetch(path, {
      ...options,
      signal,
      cache: "no-store",
      headers: { authorization: `Bearer ${token}`, ...options.headers },
    });
  } catch (error) {
    throw new Refused(0, "The server cannot be reached.", error.name);
  }
  if (!response.ok) {
    const told = await response.json().catch(() => ({}));
    throw new Refused(response.status, told.error ?? `The server answered ${response.status}.`, told.code);
  }
  return response;
}

export async function openReading(token) {
  return (await ask("api/reading", token)).json();
}

// The pixels of a case: size × size values from 0 to 65535.
export async function fetchPixels(token, position) {
  const bytes = await (await ask(`api/cases/${position}`, token)).arrayBuffer();
  const view = new DataView(bytes);
  const pixels = new Uint16Array(bytes.byteLength / 2);
  for (let place = 0; place < pixels.length; place++) pixels[place] = view.getUint16(2 * place, true);
  return pixels;
}

export async function fetchVerdict(token, position) {
  return (await ask(`api/cases/${position}/verdict`, token)).json();
}

export async function sendVerdict(token, verdict) {
  const body = JSON.stringify(verdict);
  return (await ask("api/verdicts", token, { method: "POST", body, headers: { "content-type": "application/json" } })).json();
}
