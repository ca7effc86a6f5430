// Who did what.

import { get } from "./api.js";
import { fill, h, pill, table, time } from "./dom.js";

/** Outcomes that are none to worry about. The others are. */
const GOOD = { ok: "good", done: "good", rolling: "accent", canary: "accent" };

export async function audit(page) {
  const entries = [];
  let next = null;
  const list = h("div");
  const foot = h("div", { class: "empty" });
  const columns = [
    { name: "When", nowrap: true, cell: (entry) => time(entry.at_ms) },
    { name: "Who", nowrap: true, cell: (entry) => entry.who },
    { name: "From", nowrap: true, cell: (entry) => h("code", {}, entry.origin) },
    { name: "Did", nowrap: true, cell: (entry) => entry.action },
    { name: "What", cell: (entry) => entry.object },
    { name: "Detail", what: true, cell: (entry) => h("code", {}, entry.detail) },
    { name: "Outcome", cell: (entry) => pill(GOOD[entry.outcome] ?? "bad", entry.outcome) },
  ];
  const load = async (before) => {
    const answer = await get("/audit", { before, limit: 100 });
    entries.push(...answer.entries);
    next = answer.next;
    fill(list, entries.length ? table(columns, entries) : h("p", { class: "empty" }, "Nothing was changed yet."));
    fill(foot, next && h("button", { onclick: () => load(next) }, "Earlier"));
    foot.hidden = !next;
  };
  fill(page.main, h("div", { class: "headline" }, h("h1", {}, "Audit")), h("section", { class: "panel" }, list, foot));
  await load();
}
