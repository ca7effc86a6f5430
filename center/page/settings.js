// The center itself: its store, its users, oneself.

import { get, loadSession, may, send, session } from "./api.js";
import { ago, ask, busy, bytes, field, fill, h, number, pairs, panel, pill, select, span, table, time, toast } from "./dom.js";
import { enrolmentPanel } from "./enrolment.js";

const ROLES = [["view", "view: looks at everything"], ["operate", "operate: gives tasks and pushes plugins"], ["admin", "admin: decides who may do what"]];

export async function settings(page) {
  const [store, forward, users, enrolment] = await Promise.all([
    get("/store").catch(() => null),
    get("/forward"),
    may("admin") ? get("/users") : [],
    may("admin") && enrolmentPanel().catch(() => null),
  ]);
  fill(page.main, h("div", { class: "headline" }, h("h1", {}, "Settings")),
    h("div", { class: "two" }, store && storePanel(store), self()), forward.outputs.length > 0 && outputsPanel(forward.outputs),
    enrolment, may("admin") && usersPanel(page, users));
}

function storePanel(store) {
  const full = store.failure ? pill("bad", store.failure) : pill("good", "stores");
  return panel("Store", full, h("div", { class: "body" }, pairs([
    ["Records", number(store.records)],
    ["On the disk", `${bytes(store.bytes)} of ${bytes(store.max_bytes)} at most, in ${store.files} files`],
    ["Free on the disk", bytes(store.disk_free_bytes)],
    ["Oldest record", store.oldest_ms ? time(store.oldest_ms) : "none"],
    ["Kept for", span(store.keep_s)],
    ["Waits to be written", bytes(store.queued_bytes)],
    ["Dropped for age or size", `${number(store.dropped_files)} files`],
    ["Damaged", store.corrupt_files || store.damaged_blocks ? pill("bad", `${store.corrupt_files} files, ${store.damaged_blocks} blocks`) : "nothing"],
  ])));
}

function outputsPanel(outputs) {
  const columns = [
    { name: "Output", cell: (output) => `${output.name} (${output.kind})` },
    { name: "State", cell: (output) => pill(output.state === "failing" ? "bad" : "good", output.state) },
    { name: "Since", cell: (output) => ago(output.since_ms / 1000) },
    { name: "Sent", num: true, cell: (output) => number(output.sent) },
    { name: "Not sent yet", num: true, cell: (output) => number(output.lag_records) },
    { name: "Waits for", cell: (output) => (output.lag_seconds ? span(output.lag_seconds) : "") },
    { name: "Given up", num: true, cell: (output) => (output.refused || output.missed ? number(output.refused + output.missed) : "") },
    { name: "Last error", what: true, cell: (output) => output.error && `${output.error}, ${ago(output.error_ms / 1000)}` },
  ];
  return panel("Passed on", null, table(columns, outputs));
}

function self() {
  const change = async () => {
    const form = await ask("Change your password", [
      field("Old password", h("input", { name: "old", type: "password", autocomplete: "current-password", required: true })),
      field("New password", h("input", { name: "new", type: "password", autocomplete: "new-password", required: true, minlength: 10 }), "At least 10 characters"),
    ], "Change");
    if (!form) return;
    await send("PUT", "/session/password", form);
    toast("Your password was changed");
  };
  const isUser = session.users && !["local", "link", "access-key"].includes(session.user);
  return panel("You", null, h("div", { class: "body stack" }, pairs([
    ["Name", session.user], ["Role", session.role], ["Center", session.version],
  ]), isUser && h("div", {}, h("button", { onclick: (event) => busy(event.currentTarget, change) }, "Change password")),
  !session.users && h("p", { class: "small quiet" }, "There are no users: only who is on the center’s own host may look. Add an admin to let others in.")));
}

function usersPanel(page, users) {
  // With the first user, others may sign in.
  const again = async () => {
    await loadSession();
    await settings(page);
  };
  const add = async () => {
    const form = await ask("Add a user", [
      field("Name", h("input", { name: "name", required: true, maxlength: 64, autocomplete: "off" })),
      field("Password", h("input", { name: "password", type: "password", required: true, minlength: 10, autocomplete: "new-password" }), "At least 10 characters"),
      field("Role", select(ROLES, "view", { name: "role" })),
    ], "Add");
    if (!form) return;
    await send("POST", "/users", form);
    toast(`${form.name} may sign in`);
    await again();
  };
  const remove = async (user) => {
    if (!(await ask(`Remove ${user.name}?`, [h("p", {}, "Sessions of this user end at once.")], "Remove", true))) return;
    await send("DELETE", `/users/${encodeURIComponent(user.name)}`);
    await again();
  };
  const role = (user) => select(ROLES.map(([value]) => value), user.role, { "aria-label": `Role of ${user.name}`, onchange: (event) =>
    busy(event.target, async () => {
      await send("PUT", `/users/${encodeURIComponent(user.name)}`, { role: event.target.value });
      toast(`${user.name}: ${event.target.value}`);
    }).finally(again) });
  const columns = [
    { name: "User", cell: (user) => user.name },
    { name: "Role", cell: role },
    { name: "Since", cell: (user) => time(user.created_ms) },
    { name: "Signed in", cell: (user) => (user.last_login_ms ? ago(user.last_login_ms / 1000) : "never") },
    { name: "", num: true, cell: (user) => h("button", { class: "danger plain", onclick: (event) => busy(event.currentTarget, () => remove(user)) }, "Remove") },
  ];
  const button = h("button", { class: "primary push", onclick: (event) => busy(event.currentTarget, add) }, "Add a user");
  return panel("Users", button, users.length ? table(columns, users) : h("p", { class: "empty" }, "There are no users yet."));
}
