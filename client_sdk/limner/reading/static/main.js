// The reading room: from a token to a verdict on each case. Parts do the work; here they are put together.

import { Refused, fetchVerdict, openReading } from "./api.js";
import { Images } from "./images.js";
import { Keys } from "./keys.js";
import { Outbox, newId, waitingHere } from "./outbox.js";
import { Sheet } from "./sheet.js";
import { View, Viewer } from "./viewer.js";

const TOKEN = "limner-reading-token";
const THEME = "limner-reading-theme";
const RETRY_MS = 1_500;
const $ = (id) => document.getElementById(id);

class Room {
  constructor(token, form) {
    this.token = token;
    this.form = form;
    this.life = new AbortController();
    const { signal } = this.life;
    this.total = form.cases.length;
    this.done = new Set(form.done);
    this.verdicts = new Map();
    this.seconds = new Map();
    this.images = new Images(token, form.size, this.total);
    this.outbox = new Outbox(`${form.cases[0]}-${form.reader}`, token, signal);
    for (const { verdict } of this.outbox.waiting) this.remember(verdict);
    this.outbox.addEventListener("change", () => this.tell(), { signal });
    this.outbox.addEventListener("sent", () => this.tell(), { signal });
    this.sheet = new Sheet($("sheet"), form, signal);
    this.sheet.addEventListener("change", () => this.draft(), { signal });
    this.view = new View();
    this.viewer = new Viewer($("viewer"), this.view, signal);
    this.other = new Viewer($("other"), this.view, signal);
    this.view.addEventListener("change", () => this.readout(), { signal });
    this.clock = { since: null };
  }

  start() {
    $("title").textContent = this.form.title;
    document.title = `${this.form.title} · Reading room`;
    $("state").hidden = false;
    this.tell();
    this.readout();
    this.outbox.flush();
    const open = this.firstOpen();
    if (open === null || this.form.closed) this.finish();
    else this.go(open);
  }

  firstOpen(after = 0) {
    for (let step = 1; step <= this.total; step++) {
      const position = ((after + step - 1) % this.total) + 1;
      if (!this.done.has(position)) return position;
    }
    return null;
  }

  // Show a case. What is on the screen is never another case's image beside this one's sheet.
  async go(position) {
    this.stopClock();
    this.position = position;
    this.shown = false;
    delete $("viewer").dataset.case;
    show("room");
    $("case-name").textContent = `Case ${position} of ${this.total}`;
    $("back").disabled = position === 1;
    $("on").disabled = position === this.total;
    this.viewer.show(null);
    this.view.set({ zoom: 1, x: 0, y: 0 });
    this.sheet.fill(this.loadDraft(position) ?? this.verdicts.get(position) ?? null);
    this.tell();
    this.setCompared(this.compared);
    this.images.wanted = null;
    try {
      const pixels = await this.images.get(position);
      if (this.position !== position) return;
      this.viewer.show(pixels, this.form.size, this.form.spacing_mm);
      this.shown = true;
      $("viewer").dataset.case = position;
      this.startClock();
      performance.mark(`case-${position}`);
      $("viewer").focus({ preventScroll: true });
      announce(`Case ${position} of ${this.total}`);
      this.recall(position);
      this.images.ahead(this.next(position));
    } catch (error) {
      if (this.position !== position) return;
      if (error instanceof Refused && error.status === 401) return leave("This token does not open the reading any more.");
      this.sheet.error(`The image is not here yet: ${error.message} Trying again.`);
      setTimeout(() => this.position === position && !this.shown && this.go(position), RETRY_MS);
    }
  }

  // A verdict given before, on another visit, is the reader's own to see and to change.
  async recall(position) {
    if (!this.done.has(position) || this.verdicts.has(position)) return;
    const given = await fetchVerdict(this.token, position).catch(() => null);
    if (!given) return;
    this.verdicts.set(position, given);
    if (this.position === position && !this.loadDraft(position)) this.sheet.fill(given);
  }

  next(position) {
    const after = Array.from({ length: this.total }, (_, step) => ((position + step) % this.total) + 1);
    return after.filter((place) => !this.done.has(place) && place !== position);
  }

  submit() {
    if (!this.shown) return this.sheet.error("The image is not here yet.");
    if (this.form.closed) return this.sheet.error("The reading is closed: no verdict is taken any more.");
    if (!this.sheet.check()) return;
    performance.mark("submit");
    this.stopClock();
    const seconds = Math.min(Math.round((this.seconds.get(this.position) ?? 0) * 1000) / 1000, 86_400);
    const verdict = { id: newId(), case: this.form.cases[this.position - 1], ...this.sheet.said, seconds };
    try {
      this.outbox.put(verdict);
    } catch (error) {
      this.startClock();
      return this.sheet.error(`This browser cannot keep the verdict (${error.name}): it is not saved. Free some space and try again.`);
    }
    this.remember(verdict);
    this.forgetDraft(this.position);
    const open = this.firstOpen(this.position);
    if (open === null) this.finish();
    else this.go(open);
  }

  remember(verdict) {
    const position = this.form.cases.indexOf(verdict.case) + 1;
    if (!position) return;
    this.verdicts.set(position, verdict);
    this.done.add(position);
  }

  finish() {
    this.stopClock();
    this.position = null;
    show("done");
    this.tell();
    $("done-title").focus();
  }

  // The reader has left. Timers and answers still to come find no case here, and nothing hears the page any more: what it
  // shows and what is typed into it is the next reader's.
  end() {
    this.stopClock();
    this.position = this.compared = this.images.wanted = null;
    this.life.abort();
  }

  // Time counts while the case is on the screen and the page is looked at.
  startClock() {
    if (this.shown && !document.hidden && this.clock.since === null) this.clock.since = performance.now();
  }

  stopClock() {
    if (this.clock.since === null) return;
    const spent = (performance.now() - this.clock.since) / 1000;
    this.seconds.set(this.position, (this.seconds.get(this.position) ?? 0) + spent);
    this.clock.since = null;
  }

  // What is half filled in survives a reload of this tab.
  draft() {
    if (this.position) sessionStorage.setItem(`limner-reading-draft:${this.form.cases[this.position - 1]}`, JSON.stringify(this.sheet.said));
  }

  loadDraft(position) {
    return JSON.parse(sessionStorage.getItem(`limner-reading-draft:${this.form.cases[position - 1]}`));
  }

  forgetDraft(position) {
    sessionStorage.removeItem(`limner-reading-draft:${this.form.cases[position - 1]}`);
  }

  move(by) {
    const position = this.position + by;
    if (position >= 1 && position <= this.total) this.go(position);
  }

  // Beside the case an earlier one that this reader has judged: it tells no more than they have seen.
  get comparable() {
    return [...this.done].filter((position) => position !== this.position).sort((one, other) => one - other);
  }

  compare() {
    this.setCompared(this.compared ? null : (this.comparable.findLast((position) => position < this.position) ?? this.comparable.at(-1) ?? null), true);
  }

  async setCompared(position, asked = false) {
    if (position && !this.comparable.includes(position)) position = this.comparable.at(-1) ?? null;
    this.compared = position;
    $("pane-other").hidden = !position;
    $("panes").classList.toggle("two", Boolean(position));
    $("compare").setAttribute("aria-pressed", String(Boolean(position)));
    $("compare").disabled = this.comparable.length === 0;
    if (asked && !position) announce("There is no case to compare with before the first verdict.");
    if (!position) return;
    $("other-name").textContent = `Case ${position}, judged`;
    const pixels = await this.images.get(position).catch(() => null);
    if (this.compared === position) this.other.show(pixels, this.form.size, this.form.spacing_mm);
  }

  stepCompared(by) {
    if (!this.compared) return;
    const places = this.comparable;
    this.setCompared(places[(places.indexOf(this.compared) + by + places.length) % places.length]);
  }

  readout() {
    const { window, level, zoom } = this.view;
    $("readout").textContent = `W ${Math.round(100 * window)} · L ${Math.round(100 * level)} · ${zoom.toFixed(1)}×`;
    $("invert").setAttribute("aria-pressed", String(this.view.invert));
    $("smooth").setAttribute("aria-pressed", String(this.view.smooth));
    $("drag-window").setAttribute("aria-pressed", String(this.view.drag === "window"));
    $("drag-pan").setAttribute("aria-pressed", String(this.view.drag === "pan"));
  }

  // How far the reader is, and where the verdicts are.
  tell() {
    const waiting = this.outbox.waiting.length;
    const refused = this.outbox.refused.length;
    $("progress").max = this.total;
    $("progress").value = this.done.size;
    $("progress-text").textContent = `${this.done.size} of ${this.total}`;
    const saved = $("saved");
    let text = this.done.size ? "All verdicts are at the server" : "";
    if (waiting) text = `${waiting === 1 ? "1 verdict is" : `${waiting} verdicts are`} saved here, not yet at the server`;
    if (refused) text = `${refused === 1 ? "1 verdict was" : `${refused} verdicts were`} not taken: ${this.outbox.refusal}`;
    if (saved.textContent !== text) saved.textContent = text;
    saved.dataset.state = refused ? "refused" : waiting ? "waiting" : "saved";
    saved.title = waiting ? this.outbox.reason : "";
    if (this.position) $("submit-text").textContent = this.done.has(this.position) ? "Save changed verdict" : "Save verdict";
    $("keep-copy").hidden = waiting === 0;
    const closed = this.form.closed ? "The reading is closed: no verdict is taken any more. " : "";
    $("done-title").textContent = this.form.closed ? "This reading is closed" : "Every case is judged";
    $("done-text").textContent = `${closed}${waiting ? "Please leave this page open until all verdicts are at the server." : `You have judged ${this.done.size} of ${this.total} cases. Thank you; you may close this page.`}`;
  }

  // The way out where the server takes a verdict no more: what waits, as a file.
  keepCopy() {
    const content = JSON.stringify(this.outbox.waiting.map((entry) => entry.verdict), null, 1);
    const link = Object.assign(document.createElement("a"), { href: URL.createObjectURL(new Blob([content], { type: "application/json" })), download: "verdicts.json" });
    link.click();
    URL.revokeObjectURL(link.href);
  }
}

let room = null;
let retry = null;

function show(id) {
  for (const one of ["login", "room", "done"]) $(one).hidden = one !== id;
}

function announce(text) {
  $("announce").textContent = text;
}

async function enter(token) {
  const button = $("login-form").querySelector("button");
  clearTimeout(retry);
  button.disabled = true;
  $("login-error").textContent = "";
  performance.mark("login");
  try {
    const form = await openReading(token);
    sessionStorage.setItem(TOKEN, token);
    room = new Room(token, form);
    room.start();
  } catch (error) {
    if (!(error instanceof Refused)) throw error;
    if (error.status === 401) sessionStorage.removeItem(TOKEN);
    if (error.status === 401) ask("No reading has this token. Check it, or ask whoever runs the study for a new one.");
    else {
      ask(`${error.message} Trying again.`);
      retry = setTimeout(() => enter(token), RETRY_MS);
    }
  } finally {
    button.disabled = false;
  }
}

function ask(error = "") {
  show("login");
  $("state").hidden = true;
  $("login-error").textContent = error;
  const waiting = waitingHere();
  $("waiting").textContent = waiting ? `${waiting} ${waiting === 1 ? "verdict waits" : "verdicts wait"} in this browser, and will be sent when their reader is back.` : "";
  $("token").setAttribute("aria-invalid", String(Boolean(error)));
  $("token").focus();
}

function leave(error = "") {
  room?.end();
  room = null;
  sessionStorage.removeItem(TOKEN);
  $("token").value = "";
  $("title").textContent = "Reading room";
  ask(error);
}

function setTheme(theme) {
  document.documentElement.dataset.theme = theme;
  localStorage.setItem(THEME, theme);
}

function otherTheme() {
  const dark = (document.documentElement.dataset.theme ?? (matchMedia("(prefers-color-scheme: dark)").matches ? "dark" : "light")) === "dark";
  setTheme(dark ? "light" : "dark");
}

const reading = () => Boolean(room?.position);
const view = (change) => () => room.view.set(change(room.view));
const VIEW = {
  darker: view(({ level, window }) => ({ level: level + 0.04 * window })),
  brighter: view(({ level, window }) => ({ level: level - 0.04 * window })),
  harder: view(({ window }) => ({ window: window / 1.1 })),
  softer: view(({ window }) => ({ window: window * 1.1 })),
  "zoom-in": view(({ zoom }) => ({ zoom: zoom * 1.25 })),
  "zoom-out": view(({ zoom }) => ({ zoom: zoom / 1.25 })),
  invert: view(({ invert }) => ({ invert: !invert })),
  smooth: view(({ smooth }) => ({ smooth: !smooth })),
  "drag-window": view(() => ({ drag: "window" })),
  "drag-pan": view(() => ({ drag: "pan" })),
  reset: () => room.view.reset(),
  compare: () => room.compare(),
};

function act(group, keys, label, run, options = {}) {
  return { group, keys, label, run, when: reading, ...options };
}

const ACTIONS = [
  act("Verdict", ["1", "2", "3", "4", "5"], "answer the marked question, and go to the next", (event) => announce(room.sheet.answer(Number(event.key))), { shown: ["1", "…", "5"] }),
  act("Verdict", ["q"], "mark the next question", () => room.sheet.step(1)),
  act("Verdict", ["l"], "to the slider", () => $("likelihood").focus()),
  act("Verdict", ["f"], "to the features", () => $("sheet").querySelector(".feature input:checked, .feature input")?.focus()),
  act("Verdict", ["t"], "to the text; Esc leaves it, Ctrl+Enter saves", () => $("comment").focus()),
  act("Verdict", ["Enter"], "save the verdict, and go to the next case", () => room.submit()),
  act("Cases", ["k", "PageUp"], "earlier case", () => room.move(-1)),
  act("Cases", ["j", "PageDown"], "later case", () => room.move(1)),
  act("Cases", ["c"], "beside a case judged before", VIEW.compare),
  act("Cases", [",", "."], "the one before or after that", (event) => room.stepCompared(event.key === "," ? -1 : 1)),
  act("Image", ["ArrowLeft"], "more contrast", VIEW.harder, { shown: ["←"] }),
  act("Image", ["ArrowRight"], "less contrast", VIEW.softer, { shown: ["→"] }),
  act("Image", ["ArrowUp"], "darker", VIEW.darker, { shown: ["↑"] }),
  act("Image", ["ArrowDown"], "brighter", VIEW.brighter, { shown: ["↓"] }),
  act("Image", ["Shift+ArrowLeft"], "move the image", view(({ x, zoom }) => ({ x: x - 0.05 / zoom })), { shown: ["Shift", "← ↑ → ↓"] }),
  act("Image", ["+", "="], "zoom in", VIEW["zoom-in"], { shown: ["+"] }),
  act("Image", ["-"], "zoom out", VIEW["zoom-out"], { shown: ["−"] }),
  act("Image", ["p"], "dragging moves, or windows", view(({ drag }) => ({ drag: drag === "pan" ? "window" : "pan" }))),
  act("Image", ["i"], "invert", VIEW.invert),
  act("Image", ["s"], "smooth or plain pixels", VIEW.smooth),
  act("Image", ["0"], "reset", VIEW.reset),
  act("Room", ["d"], "light or dark", otherTheme, { when: () => true }),
  act("Room", ["?"], "this help", () => $("help").showModal(), { when: () => true }),
];
const SILENT = [
  act("", ["Shift+ArrowRight"], "", view(({ x, zoom }) => ({ x: x + 0.05 / zoom }))),
  act("", ["Shift+ArrowUp"], "", view(({ y, zoom }) => ({ y: y - 0.05 / zoom }))),
  act("", ["Shift+ArrowDown"], "", view(({ y, zoom }) => ({ y: y + 0.05 / zoom }))),
];

function wire() {
  if (localStorage.getItem(THEME)) setTheme(localStorage.getItem(THEME));
  const keys = new Keys(ACTIONS, $("help"));
  for (const action of SILENT) keys.byKey.set(action.keys[0], action);
  for (const [id, run] of Object.entries(VIEW)) $(id).addEventListener("click", run);
  const clicks = {
    theme: otherTheme,
    "help-open": () => $("help").showModal(),
    leave: () => leave(),
    back: () => room.move(-1),
    on: () => room.move(1),
    "other-back": () => room.stepCompared(-1),
    "other-on": () => room.stepCompared(1),
    review: () => room.go(1),
    "keep-copy": () => room.keepCopy(),
  };
  for (const [id, run] of Object.entries(clicks)) $(id).addEventListener("click", run);
  $("sheet").addEventListener("submit", (event) => {
    event.preventDefault();
    room.submit();
  });
  $("login-form").addEventListener("submit", (event) => {
    event.preventDefault();
    const token = $("token").value.trim();
    if (token) enter(token);
    else ask("The token is what whoever runs the study gave you.");
  });
  document.addEventListener("visibilitychange", () => (document.hidden ? room?.stopClock() : room?.startClock()));
  window.addEventListener("beforeunload", (event) => room?.outbox.waiting.length && event.preventDefault());
}

wire();
const token = sessionStorage.getItem(TOKEN);
if (token) enter(token);
else ask();
