// The page: who looks at it, where they are, and the bar on top.

import { listen, loadSession, may, send, session } from "./api.js";
import { busy, field, fill, h, toast } from "./dom.js";
import { audit } from "./audit.js";
import { events } from "./events.js";
import { host } from "./host.js";
import { hosts } from "./hosts.js";
import { plugins } from "./plugins.js";
import { settings } from "./settings.js";
import { tasks } from "./tasks.js";

const PLACES = [
  { path: "hosts", name: "Hosts", show: hosts, role: "view" },
  { path: "events", name: "Events", show: events, role: "view" },
  { path: "plugins", name: "Plugins", show: plugins, role: "view" },
  { path: "tasks", name: "Tasks", show: tasks, role: "view" },
  { path: "audit", name: "Audit", show: audit, role: "admin" },
  { path: "settings", name: "Settings", show: settings, role: "view" },
];

const main = document.getElementById("main");
const bar = document.getElementById("top");

/** Ends what the place before has started. */
let leave = () => {};

function theme() {
  return localStorage.getItem("theme") ?? "system";
}

function applyTheme() {
  const dark = theme() === "dark" || (theme() === "system" && matchMedia("(prefers-color-scheme: dark)").matches);
  document.documentElement.dataset.theme = dark ? "dark" : "light";
}

/** `#/hosts/ID?x=1` as `{place, rest, query}`. */
function address() {
  const [path, query = ""] = location.hash.replace(/^#\/?/, "").split("?");
  const [place, ...rest] = path.split("/").map(decodeURIComponent);
  return { place: place || "hosts", rest: rest.join("/"), query: new URLSearchParams(query) };
}

function drawBar(place) {
  const links = PLACES.filter(({ role }) => may(role)).map(({ path, name }) =>
    h("a", { href: `#/${path}`, "aria-current": path === place ? "page" : null }, name));
  const other = document.documentElement.dataset.theme === "dark" ? "light" : "dark";
  const choose = h("button", { class: "plain", title: `To the ${other} theme`, "aria-label": `To the ${other} theme`, onclick: () => {
    // Where the system says the same, it decides from now on.
    const system = matchMedia("(prefers-color-scheme: dark)").matches ? "dark" : "light";
    if (system === other) localStorage.removeItem("theme");
    else localStorage.setItem("theme", other);
    applyTheme();
    drawBar(place);
  } }, "◐");
  const name = session.user ?? "";
  const out = h("button", { class: "plain", onclick: signOut }, "Sign out");
  fill(bar,
    h("a", { class: "brand", href: "#/hosts" }, h("img", { src: "icon.svg", alt: "" }), "Elklet center"),
    h("nav", { class: "places", "aria-label": "Places" }, links),
    h("div", { class: "who" }, session.role && h("span", { id: "who" }, `${name} (${session.role})`), choose, session.csrf && out));
}

async function signOut() {
  await send("DELETE", "/session").catch((error) => toast(error.message, true));
  await start();
}

function login() {
  const name = h("input", { name: "user", autocomplete: "username", required: true });
  const password = h("input", { name: "password", type: "password", autocomplete: "current-password", required: true });
  const button = h("button", { class: "primary" }, "Sign in");
  const submit = (event) => {
    event.preventDefault();
    busy(button, async () => {
      await send("POST", "/session", { user: name.value, password: password.value });
      await start();
    });
  };
  const noUsers = h("p", { class: "quiet" }, "There are no users yet. Make one on the center’s host with ",
    h("code", {}, "elklet-center user add NAME --role admin"), ", or open the link that ", h("code", {}, "elklet-center link"), " prints.");
  const form = h("form", { class: "stack", onsubmit: submit }, field("User", name), field("Password", password), button);
  fill(main, h("section", { class: "panel login stack" }, h("h1", {}, "Elklet center"), session.users ? form : noUsers));
  (session.users ? name : main).focus();
}

/** Shows the place that the address names. */
async function go() {
  leave();
  leave = () => {};
  const { place, rest, query } = address();
  drawBar(place);
  if (!session.role) return login();
  const found = PLACES.find(({ path, role }) => path === place && may(role));
  if (!found) return fill(main, h("p", { class: "empty" }, "There is nothing here for you."));
  document.title = `${found.name} – Elklet center`;
  const shown = fill(h("div", { class: "stack" }), h("p", { class: "quiet" }, "Loading…"));
  fill(main, shown);
  const cleanups = [];
  const context = {
    main: shown,
    rest,
    query,
    /** Is done when the place is left. */
    onLeave: (work) => cleanups.push(work),
    /** Hears of changes for as long as the place is open. */
    listen: (parameters, handlers) => {
      const stream = listen(parameters, handlers);
      cleanups.push(() => stream.close());
      return stream;
    },
    every: (ms, work) => {
      const timer = setInterval(work, ms);
      cleanups.push(() => clearInterval(timer));
    },
    get left() {
      return leave !== mine;
    },
  };
  const mine = () => cleanups.forEach((work) => work());
  leave = mine;
  try {
    const show = place === "hosts" && rest ? host : found.show;
    await show(context);
  } catch (error) {
    if (!context.left) fill(shown, h("p", { class: "alarm" }, error.message));
  }
}

/** A link that needs no password carries its key behind the `#`, which browsers send to nobody. */
async function openLink() {
  const key = /^#key=([\w-]+)/.exec(location.hash)?.[1];
  if (!key) return;
  history.replaceState(null, "", "#/hosts");
  await send("POST", "/session", { link: key }).catch((error) => toast(error.message, true));
}

async function start() {
  try {
    await loadSession();
    if (/^#key=/.test(location.hash)) {
      await openLink();
      await loadSession();
    }
  } catch (error) {
    fill(main, h("p", { class: "alarm" }, `The center does not answer: ${error.message}`));
    setTimeout(start, 3000);
    return;
  }
  await go();
}

applyTheme();
matchMedia("(prefers-color-scheme: dark)").addEventListener("change", applyTheme);
window.addEventListener("hashchange", () => (location.hash.startsWith("#key=") ? start() : go()));
window.addEventListener("signed-out", () => {
  if (session.role) start();
});
start();
