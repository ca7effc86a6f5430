// Building elements, and how times, sizes and numbers are written.

/** Builds an element. Attributes that are functions listen; `null` and `false` leave an attribute or a child out. */
export function h(name, attributes = {}, ...children) {
  const svg = ["svg", "path", "rect", "line", "title"].includes(name);
  const element = svg ? document.createElementNS("http://www.w3.org/2000/svg", name) : document.createElement(name);
  for (const [key, value] of Object.entries(attributes)) {
    if (value === null || value === undefined || value === false) continue;
    if (typeof value === "function") element.addEventListener(key.replace(/^on/, ""), value);
    else if (key === "value") element.value = value;
    else element.setAttribute(key, value === true ? "" : value);
  }
  add(element, children);
  return element;
}

function add(element, children) {
  for (const child of children.flat(Infinity)) {
    if (child !== null && child !== undefined && child !== false) element.append(child);
  }
}

/** Replaces everything in an element. */
export function fill(element, ...children) {
  element.replaceChildren();
  add(element, children);
  return element;
}

export function pill(kind, text) {
  return h("span", { class: `pill ${kind}` }, text);
}

export function panel(title, actions, ...body) {
  return h("section", { class: "panel" }, h("header", {}, h("h2", {}, title), actions), ...body);
}

/** A table. A column is `{name, num, what, cell(row)}`; `options.open(row)` makes rows lead somewhere. */
export function table(columns, rows, options = {}) {
  const head = h("tr", {}, columns.map((column) => h("th", { class: column.num && "num", scope: "col" }, column.name)));
  const body = h("tbody", {}, rows.map((row) => tableRow(columns, row, options)));
  return h("div", { class: "scroll" }, h("table", { class: "cards" }, h("thead", {}, head), body));
}

export function tableRow(columns, row, options = {}) {
  const open = options.open && (() => options.open(row));
  const key = (event) => {
    if (event.key === "Enter" && event.target === event.currentTarget) open();
  };
  const click = (event) => {
    if (!event.target.closest("a, button, input, select")) open();
  };
  const cells = columns.map((column) => {
    const kind = [column.num && "num", column.what && "what", column.nowrap && "nowrap"].filter(Boolean).join(" ");
    const content = column.cell(row);
    const empty = content === null || content === undefined || content === "" || content === false;
    return h("td", { class: kind || null, "data-name": column.name || null }, !empty && h("span", {}, content));
  });
  return h("tr", open ? { class: "opens", tabindex: "0", onclick: click, onkeydown: key } : {}, cells);
}

export function pairs(list) {
  const known = list.filter(([, value]) => value !== null && value !== undefined && value !== "");
  return h("dl", { class: "pairs" }, known.map(([name, value]) => [h("dt", {}, name), h("dd", {}, value)]));
}

export function field(name, control, hint) {
  return h("label", {}, name, control, hint && h("span", { class: "small quiet" }, hint));
}

export function select(options, chosen, attributes = {}) {
  const list = options.map((option) => {
    const [value, text] = Array.isArray(option) ? option : [option, option];
    return h("option", { value, selected: value === chosen }, text);
  });
  return h("select", attributes, list);
}

/** Buttons of which one is pressed. */
export function segments(options, chosen, choose) {
  const buttons = options.map(([value, text]) =>
    h("button", { type: "button", "aria-pressed": String(value === chosen), onclick: () => choose(value) }, text));
  return h("div", { class: "segments", role: "group" }, buttons);
}

export function toast(text, bad = false) {
  const note = h("div", { class: bad ? "toast bad" : "toast" }, text);
  const notes = document.getElementById("toasts");
  notes.append(note);
  if (notes.children.length > 3) notes.firstChild.remove();
  setTimeout(() => note.remove(), bad ? 9000 : 4000);
}

/** Does something that may fail, and says so. The control cannot be used meanwhile. */
export async function busy(control, work) {
  control.disabled = true;
  try {
    return await work();
  } catch (error) {
    toast(error.message, true);
    return undefined;
  } finally {
    control.disabled = false;
  }
}

/** Asks a question in a dialog. Resolves with what `form` holds, or with nothing. */
export function ask(title, fields, action = "OK", danger = false) {
  return new Promise((resolve) => {
    const close = (value) => {
      dialog.close();
      dialog.remove();
      resolve(value);
    };
    const submit = (event) => {
      event.preventDefault();
      close(Object.fromEntries(new FormData(event.target)));
    };
    const buttons = h("div", { class: "row" },
      h("button", { class: danger ? "danger" : "primary" }, action),
      h("button", { type: "button", class: "plain", onclick: () => close(undefined) }, "Cancel"));
    const dialog = h("dialog", { oncancel: () => close(undefined) },
      h("form", { onsubmit: submit }, h("h2", {}, title), fields, buttons));
    document.body.append(dialog);
    dialog.showModal();
  });
}

const two = (number) => String(number).padStart(2, "0");

/** `14:03:22`, with the date if it is not today. */
export function time(ms) {
  if (!ms) return "–";
  const at = new Date(ms);
  const clock = `${two(at.getHours())}:${two(at.getMinutes())}:${two(at.getSeconds())}`;
  const today = at.toDateString() === new Date().toDateString();
  const text = today ? clock : `${at.getFullYear()}-${two(at.getMonth() + 1)}-${two(at.getDate())} ${clock}`;
  return h("time", { datetime: at.toISOString(), title: at.toLocaleString() }, text);
}

/** `3 min ago`. */
export function ago(seconds) {
  if (!seconds) return "never";
  const past = Math.max(0, Date.now() / 1000 - seconds);
  return past < 5 ? "now" : `${span(past)} ago`;
}

export function span(seconds) {
  if (seconds < 90) return `${Math.round(seconds)} s`;
  if (seconds < 5400) return `${Math.round(seconds / 60)} min`;
  if (seconds < 129600) return `${Math.round(seconds / 3600)} h`;
  return `${Math.round(seconds / 86400)} days`;
}

export function bytes(count) {
  if (count === null || count === undefined || Number.isNaN(Number(count))) return "–";
  let [value, unit] = [Number(count), 0];
  const units = ["B", "KiB", "MiB", "GiB", "TiB"];
  while (value >= 1024 && unit < units.length - 1) {
    value /= 1024;
    unit += 1;
  }
  return `${value >= 100 || unit === 0 ? Math.round(value) : value.toFixed(1)} ${units[unit]}`;
}

export function number(count) {
  if (count === null || count === undefined || Number.isNaN(Number(count))) return "–";
  const value = Number(count);
  return Math.abs(value) >= 100 || Number.isInteger(value) ? Math.round(value).toLocaleString("en-US").replaceAll(",", " ") : value.toPrecision(2);
}

export function percent(share) {
  if (share === null || share === undefined || Number.isNaN(Number(share))) return "–";
  return `${(Number(share) * 100).toFixed(Number(share) < 0.1 ? 1 : 0)} %`;
}
