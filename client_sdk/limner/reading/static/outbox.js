// Verdicts that the server has not acknowledged yet. They are in this browser's storage before anything else happens, each
// under an id of its own: sent again after a lost answer, the server keeps it once.

import { Refused, sendVerdict } from "./api.js";

const PREFIX = "limner-reading-outbox:";
const WAIT_MS = [500, 1_000, 2_000, 5_000, 10_000];

export class Outbox extends EventTarget {
  // `owner` names reading and reader; a token is never stored with a verdict. Nothing more is sent once `signal` is aborted.
  constructor(owner, token, signal) {
    super();
    this.owner = owner;
    this.token = token;
    this.signal = signal;
    this.sending = false;
    this.failures = 0;
    this.reason = ""; // for which verdicts wait
    this.refused = [];
    this.refusal = ""; // of the last one refused
    window.addEventListener("online", () => this.flush(), { signal });
  }

  get key() {
    return `${PREFIX}${this.owner}:`;
  }

  // Oldest first: of two verdicts on one case the later one has to arrive last.
  get waiting() {
    return Object.keys(localStorage)
      .filter((key) => key.startsWith(this.key))
      .map((key) => JSON.parse(localStorage.getItem(key)))
      .sort((one, other) => one.made - other.made || one.number - other.number);
  }

  // Keep a verdict here; throws where the browser cannot, so that nobody believes it is kept.
  put(verdict) {
    const number = Number(localStorage.getItem("limner-reading-number") ?? 0) + 1;
    localStorage.setItem("limner-reading-number", String(number));
    localStorage.setItem(this.key + verdict.id, JSON.stringify({ made: Date.now(), number, verdict }));
    this.changed();
    this.flush();
  }

  // Start sending; whoever wants to know when all is sent awaits this.
  async flush() {
    if (this.sending || this.signal.aborted) return;
    this.sending = true;
    clearTimeout(this.timer);
    try {
      for (let next = this.first(); next && !this.signal.aborted; next = this.first()) {
        await this.send(next.verdict);
      }
      this.failures = 0;
      this.reason = "";
    } catch (error) {
      this.failures += 1;
      this.reason = error.message;
      this.timer = setTimeout(() => this.flush(), WAIT_MS[Math.min(this.failures, WAIT_MS.length) - 1]);
    } finally {
      this.sending = false;
      this.changed();
    }
  }

  first() {
    return this.waiting.find((entry) => !this.refused.includes(entry.verdict.id));
  }

  async send(verdict) {
    try {
      const receipt = await sendVerdict(this.token, verdict);
      localStorage.removeItem(this.key + verdict.id);
      this.failures = 0;
      this.dispatchEvent(new CustomEvent("sent", { detail: { verdict, receipt } }));
    } catch (error) {
      if (!(error instanceof Refused) || error.passing) throw error;
      // Refused for good: it stays in this browser, to be saved as a file, and the next ones go on.
      this.refused.push(verdict.id);
      this.refusal = error.message;
    }
    this.changed();
  }

  changed() {
    this.dispatchEvent(new Event("change"));
  }
}

// How many verdicts of any reader wait in this browser.
export function waitingHere() {
  return Object.keys(localStorage).filter((key) => key.startsWith(PREFIX)).length;
}

export function newId() {
  if (crypto.randomUUID) return crypto.randomUUID();
  // Not there without https on an address that is not this machine's.
  return [...crypto.getRandomValues(new Uint8Array(16))].map((byte) => byte.toString(16).padStart(2, "0")).join("");
}
