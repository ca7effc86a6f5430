// All hosts.

import { get, may, send } from "./api.js";
import { ago, ask, bytes, field, fill, h, number, percent, pill, table, toast } from "./dom.js";

const COLUMNS = [
  { name: "Host", cell: (host) => [
    h("a", { href: `#/hosts/${encodeURIComponent(host.id)}` }, host.hostname || host.id), " ",
    host.hostname && h("span", { class: "small quiet", title: host.id }, shortId(host.id)),
  ] },
  { name: "State", cell: state },
  { name: "Group", cell: (host) => host.group ?? "" },
  { name: "Address", cell: (host) => host.addresses?.[0] ?? "" },
  { name: "Version", cell: (host) => host.version },
  { name: "CPU", num: true, cell: (host) => percent(host.cpu) },
  { name: "Memory", num: true, cell: (host) => bytes(host.rss) },
  { name: "Records", num: true, cell: (host) => number(host.records) },
  { name: "Unconfirmed", num: true, cell: (host) => number(host.unconfirmed) },
  { name: "Lost", num: true, cell: (host) => (host.lost > 0 ? pill("bad", number(host.lost)) : number(host.lost)) },
  { name: "Certificate", num: true, cell: certificate },
];

/** Names are not always unique. The beginning of an id mostly is. */
export function shortId(id) {
  return id.length > 12 ? id.slice(0, 8) : id;
}

export function state(host) {
  if (host.connected) return pill("good", "connected");
  return pill("idle", `gone, ${ago(host.last_seen)}`);
}

function certificate(host) {
  if (host.cert_days === null || host.cert_days === undefined) return "–";
  const days = Number(host.cert_days);
  if (days < 0) return pill("bad", "expired");
  return days < 30 ? pill(days < 7 ? "bad" : "warn", `${days} days`) : `${days} days`;
}

export async function hosts(page) {
  const filter = { q: page.query.get("q") ?? "", group: page.query.get("group") ?? "", connected: page.query.get("connected") ?? "" };
  const known = new Map();
  let [next, totals, groups] = [null, null, []];
  const tiles = h("div", { class: "tiles" });
  const alarm = h("div");
  const list = h("div");
  const more = h("div", { class: "empty" });

  const load = async (after) => {
    const answer = await get("/hosts", { ...filter, after, limit: 200 });
    if (!after) known.clear();
    answer.hosts.forEach((host) => known.set(host.id, host));
    next = answer.next;
    totals = { ...totals, known: answer.known, connected: answer.connected };
    draw();
  };

  const draw = () => {
    const rows = [...known.values()];
    const open = (host) => (location.hash = `#/hosts/${encodeURIComponent(host.id)}`);
    const tile = (value, name) => h("div", { class: "tile" }, h("b", {}, value), h("span", {}, name));
    fill(tiles,
      tile(number(totals?.connected), "connected"),
      tile(number((totals?.known ?? 0) - (totals?.connected ?? 0)), "gone"),
      tile(totals?.rate === undefined ? "–" : number(totals.rate), "records a second"),
      tile(totals?.records === undefined ? "–" : number(totals.records), "records since the start"));
    fill(alarm, totals?.storing === false && h("p", { class: "alarm", role: "alert" },
      `The center stores nothing, and agents keep their records: ${totals.refusal}`));
    fill(list, rows.length ? table(COLUMNS, rows, { open }) : nobody());
    fill(more, next && h("button", { onclick: () => load(next) }, "More hosts"));
    more.hidden = !next;
  };

  const nobody = () => {
    if (filter.q || filter.group || filter.connected) return h("p", { class: "empty" }, "No host is like this.");
    return h("p", { class: "empty" }, "No agent has come yet. ", may("admin") && [
      h("a", { href: "#/settings" }, "Enrol a host"), ", or give an agent that has certificates this center’s address: ",
      h("code", {}, "elklet init --server HOST:6751 --certs DIR")]);
  };

  const search = h("input", { type: "search", placeholder: "Name or id", "aria-label": "Name or id", value: filter.q, oninput: () => {
    filter.q = search.value;
    clearTimeout(search.timer);
    search.timer = setTimeout(() => load(), 250);
  } });
  const choose = (name, options) => h("select", { "aria-label": name, onchange: (event) => {
    filter[event.target.name] = event.target.value;
    load();
  }, name }, options.map(([value, text]) => h("option", { value, selected: filter[name] === value }, text)));

  groups = await get("/groups").catch(() => []);
  const states = choose("connected", [["", "Connected or gone"], ["true", "Connected"], ["false", "Gone"]]);
  const inGroup = choose("group", [["", "All groups"], ...groups.map((group) => [group.name, `${group.name} (${group.hosts})`])]);
  fill(page.main, h("div", { class: "headline" }, h("h1", {}, "Hosts")), alarm, tiles,
    h("section", { class: "panel" }, h("header", {}, search, states, groups.length > 0 && inGroup), list, more));
  await load();

  let last = null;
  page.listen({}, {
    totals: (now) => {
      const rate = last && now.at_ms > last.at_ms ? ((now.records - last.records) * 1000) / (now.at_ms - last.at_ms) : undefined;
      last = now;
      totals = { ...totals, ...now, rate: rate ?? totals?.rate };
      draw();
    },
    hosts: (changed) => {
      if (changed.more || filter.q || filter.group || filter.connected) return load();
      changed.hosts.forEach((host) => (next === null || known.has(host.id)) && known.set(host.id, { ...known.get(host.id), ...host }));
      draw();
    },
  });
  // What is said of the past gets older.
  page.every(15000, draw);
}

/** Puts a host into a group. */
export async function changeGroup(host) {
  const groups = await get("/groups").catch(() => []);
  const names = h("datalist", { id: "groups" }, groups.map((group) => h("option", { value: group.name })));
  const input = h("input", { name: "group", list: "groups", value: host.group ?? "" });
  const chosen = await ask(`Group of ${host.hostname || host.id}`,
    [field("Group", input, "Empty: none. A name that is new makes a group."), names]);
  if (!chosen || !may("operate")) return;
  await send("PUT", `/hosts/${encodeURIComponent(host.id)}`, { group: chosen.group || null });
  toast(chosen.group ? `${host.hostname || host.id} is in ${chosen.group}` : `${host.hostname || host.id} is in no group`);
}
