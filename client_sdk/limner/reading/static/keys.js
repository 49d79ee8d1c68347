// Every key of the reading room in one table: what it does, and what the help says of it.

export class Keys {
  // `actions` is a list of { keys, label, run, group }; a key is as the browser names it, "Shift+ArrowUp" with its modifier.
  constructor(actions, dialog) {
    this.actions = actions;
    this.dialog = dialog;
    this.byKey = new Map(actions.flatMap((action) => action.keys.map((key) => [key, action])));
    this.on = localStorage.getItem("limner-reading-keys") !== "off";
    const on = dialog.querySelector("#keys-on");
    on.checked = this.on;
    on.addEventListener("change", () => {
      this.on = on.checked;
      localStorage.setItem("limner-reading-keys", this.on ? "on" : "off");
    });
    dialog.querySelector("#help-close").addEventListener("click", () => dialog.close());
    dialog.querySelector("#help-keys").replaceChildren(...this.table());
    document.addEventListener("keydown", (event) => this.press(event));
  }

  press(event) {
    if (event.defaultPrevented || event.metaKey || event.altKey || this.dialog.open) return;
    const target = event.target;
    const typing = target.matches("textarea, input:not([type=radio], [type=range], [type=checkbox])");
    if (typing) {
      if (event.key === "Escape") target.blur();
      if (!(event.key === "Enter" && event.ctrlKey)) return;
    } else if (event.ctrlKey && event.key !== "Enter") return;
    if (event.key === "Enter" && target.matches("button, a, summary") && !event.ctrlKey) return;
    // A slider and radio buttons have arrow keys of their own.
    if (event.key.startsWith("Arrow") && target.matches("input")) return;
    const name = (event.shiftKey && event.key.startsWith("Arrow") ? "Shift+" : "") + (event.key.length === 1 ? event.key.toLowerCase() : event.key);
    const action = this.byKey.get(name);
    if (!action || !action.when()) return;
    // WCAG 2.2, 2.1.4: keys that are one character can be turned off; on the image itself they are its own.
    if (event.key.length === 1 && !this.on && !target.closest(".viewer")) return;
    event.preventDefault();
    action.run(event);
  }

  table() {
    const groups = Map.groupBy ? Map.groupBy(this.actions, (action) => action.group) : groupBy(this.actions);
    return [...groups].map(([title, actions]) => {
      const list = document.createElement("dl");
      for (const { keys, label, shown } of actions) {
        const [term, said] = [document.createElement("dt"), document.createElement("dd")];
        term.append(...(shown ?? keys).flatMap((key) => [Object.assign(document.createElement("kbd"), { textContent: key }), " "]));
        said.textContent = label;
        list.append(term, said);
      }
      const section = document.createElement("section");
      section.append(Object.assign(document.createElement("h3"), { textContent: title }), list);
      return section;
    });
  }
}

function groupBy(actions) {
  const groups = new Map();
  for (const action of actions) groups.set(action.group, [...(groups.get(action.group) ?? []), action]);
  return groups;
}
