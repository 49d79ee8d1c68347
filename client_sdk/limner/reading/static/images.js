// The images of the cases: fetched once, kept within a budget, the next ones before they are asked for.

import { fetchPixels } from "./api.js";

const AHEAD = 6;
const BUDGET_BYTES = 64 * 2 ** 20;

export class Images {
  constructor(token, size, total) {
    this.token = token;
    this.total = total;
    this.keep = Math.max(AHEAD + 3, Math.floor(BUDGET_BYTES / (2 * size * size)));
    this.cache = new Map();
  }

  // A promise of the pixels of a case. One that failed is asked for again by the next call.
  get(position) {
    let found = this.cache.get(position);
    this.cache.delete(position);
    if (!found) {
      found = fetchPixels(this.token, position);
      found.catch(() => this.cache.get(position) === found && this.cache.delete(position));
    }
    this.cache.set(position, found);
    while (this.cache.size > this.keep) this.cache.delete(this.cache.keys().next().value);
    return found;
  }

  // Fetch the cases that come next, one after the other, so that none holds up the one that is wanted now.
  async ahead(positions) {
    this.wanted = positions;
    for (const position of positions.slice(0, AHEAD)) {
      if (this.wanted !== positions) return;
      if (!this.cache.has(position)) await this.get(position).catch(() => {});
    }
  }
}
