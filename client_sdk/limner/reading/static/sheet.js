// The verdict's form: three scales, the features of the lexicon, free text. Radio buttons and a slider of the browser's own,
// so that keyboard and screen reader have what they expect.

const SCALES = [
  { name: "likelihood", title: null, ends: ["very unlikely", "unlikely", "undecided", "likely", "very likely"] },
  { name: "realism", title: "How real does the image look?", ends: ["surely simulated", "rather simulated", "undecided", "rather real", "surely real"] },
  { name: "confidence", title: "How sure are you of the first answer?", ends: ["a guess", "unsure", "fairly sure", "sure", "certain"] },
];
const STEP = 20;

export class Sheet extends EventTarget {
  // `form` is the page's, and outlives the sheet: it is heard until `signal` is aborted.
  constructor(form, asked, signal) {
    super();
    this.form = form;
    this.asked = asked;
    this.likelihood = null;
    const places = form.querySelector("#questions");
    places.replaceChildren(...SCALES.map((scale, number) => this.scale(scale, number)), this.features(), this.comment());
    this.groups = [...places.querySelectorAll("fieldset.scale")];
    form.addEventListener("input", () => this.changed(), { signal });
    form.addEventListener("focusin", (event) => {
      const group = event.target.closest("fieldset.scale");
      if (group) this.point(this.groups.indexOf(group));
    }, { signal });
    form.addEventListener("focusout", (event) => {
      const group = event.target.closest("fieldset.scale");
      const open = this.firstOpen();
      if (group && !group.contains(event.relatedTarget) && open >= 0) this.point(open);
    }, { signal });
    this.fill(null);
  }

  scale({ name, title, ends }, number) {
    const group = element("fieldset", { className: "scale" });
    const legend = element("legend", {}, title ?? this.asked.question);
    const choices = ends.map((text, place) => {
      const input = element("input", { type: "radio", name, value: String(place + 1), required: true });
      return element("label", { className: "choice", title: text }, input, element("span", { className: "digit", ariaHidden: "true" }, String(place + 1)), element("span", { className: "word" }, text));
    });
    group.append(legend, element("div", { className: "choices" }, ...choices));
    if (number === 0) group.append(this.slider());
    return group;
  }

  slider() {
    this.range = element("input", { type: "range", id: "likelihood", min: "0", max: "100", step: "1", value: "50" });
    this.range.setAttribute("aria-label", `${this.asked.question} In percent`);
    this.percent = element("output", { htmlFor: "likelihood" });
    this.range.addEventListener("input", () => this.setLikelihood(Number(this.range.value), true));
    return element("div", { className: "slider" }, this.range, this.percent);
  }

  features() {
    const rows = this.asked.lexicon.map((entry, place) => {
      const choices = ["not judged", ...entry.options].map((option, number) => {
        const input = element("input", { type: "radio", name: `feature-${place}`, value: number ? option : "" });
        return element("label", { className: `chip${number ? "" : " none"}` }, input, element("span", {}, number ? option : "–"), number ? "" : element("span", { className: "visually-hidden" }, option));
      });
      return element("fieldset", { className: "feature" }, element("legend", {}, entry.name), element("div", { className: "chips" }, ...choices));
    });
    return element("section", { className: "features", ariaLabel: "Features seen" }, element("h2", {}, "Features seen"), ...rows);
  }

  comment() {
    this.text = element("textarea", { id: "comment", name: "comment", rows: 2, maxLength: 4000 });
    return element("div", { className: "comment" }, element("label", { htmlFor: "comment" }, "Anything else"), this.text);
  }

  // Show a verdict, or an empty sheet.
  fill(verdict) {
    this.form.reset();
    this.setLikelihood(verdict?.likelihood ?? null);
    this.choose("realism", verdict?.realism);
    this.choose("confidence", verdict?.confidence);
    this.asked.lexicon.forEach((entry, place) => this.choose(`feature-${place}`, verdict?.features?.[entry.name] ?? ""));
    this.text.value = verdict?.comment ?? "";
    this.point(this.firstOpen());
    this.error("");
  }

  // What is said so far.
  get said() {
    const features = {};
    this.asked.lexicon.forEach((entry, place) => {
      const option = this.value(`feature-${place}`);
      if (option) features[entry.name] = option;
    });
    return {
      likelihood: this.likelihood,
      realism: Number(this.value("realism")) || null,
      confidence: Number(this.value("confidence")) || null,
      features,
      comment: this.text.value.trim(),
    };
  }

  // The first scale without an answer; -1 where all have one.
  firstOpen() {
    const said = this.said;
    return SCALES.findIndex(({ name }) => said[name] === null);
  }

  // Answer the scale that is pointed at, and go on to the next without an answer.
  answer(step) {
    const number = this.current < 0 ? 0 : this.current;
    const { name } = SCALES[number];
    if (name === "likelihood") this.setLikelihood(STEP * (step - 1) + STEP / 2);
    else this.choose(name, step);
    const open = this.firstOpen();
    this.point(open < 0 ? number : open);
    this.changed();
    return `${this.groups[number].querySelector("legend").textContent} ${SCALES[number].ends[step - 1]}`;
  }

  point(number) {
    this.current = number;
    this.groups.forEach((group, place) => group.classList.toggle("current", place === number));
  }

  step(by) {
    const count = this.groups.length;
    this.point((Math.max(this.current, 0) + by + count) % count);
    this.groups[this.current].scrollIntoView({ block: "nearest" });
  }

  // True where the verdict can be kept; else says what is missing, and where.
  check() {
    const open = this.firstOpen();
    this.error(open < 0 ? "" : `Not answered yet: ${this.groups[open].querySelector("legend").textContent}`);
    if (open >= 0) {
      this.point(open);
      this.groups[open].querySelector("input").focus();
    }
    return open < 0;
  }

  error(text) {
    this.form.querySelector("#sheet-error").textContent = text;
  }

  changed() {
    const step = this.value("likelihood");
    if (step && (this.likelihood === null || Number(step) !== stepOf(this.likelihood))) {
      this.setLikelihood(STEP * (Number(step) - 1) + STEP / 2);
    }
    if (this.firstOpen() < 0) this.error("");
    this.dispatchEvent(new Event("change"));
  }

  setLikelihood(value) {
    this.likelihood = value;
    this.range.value = String(value ?? 50);
    this.range.classList.toggle("unset", value === null);
    this.percent.value = value === null ? "– %" : `${Math.round(value)} %`;
    this.range.setAttribute("aria-valuetext", value === null ? "not answered" : `${Math.round(value)} percent`);
    this.choose("likelihood", value === null ? null : stepOf(value));
  }

  choose(name, value) {
    for (const input of this.form.elements) if (input.name === name && input.type === "radio") input.checked = input.value === String(value ?? "—");
  }

  value(name) {
    return this.form.querySelector(`input[name="${name}"]:checked`)?.value ?? "";
  }
}

function stepOf(likelihood) {
  return Math.min(Math.floor(likelihood / STEP) + 1, 5);
}

function element(tag, properties, ...children) {
  const made = document.createElement(tag);
  Object.assign(made, properties);
  made.append(...children);
  return made;
}
