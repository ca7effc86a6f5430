// Records: live, and those that are stored.

import { get, listen, url } from "./api.js";
import { fill, h, number, pairs, pill, segments, select, tableRow, time, toast } from "./dom.js";
import { KINDS, kindName, known, summary } from "./kinds.js";

const RANGES = [["900", "Last 15 minutes"], ["3600", "Last hour"], ["86400", "Last 24 hours"], ["604800", "Last 7 days"], ["", "Everything kept"]];

/** Rows of a page, and those that the live view keeps. */
const PAGE = 100;
const LIVE_ROWS = 200;

/** Names that people search for first. */
const COMMON_FIELDS = ["exe", "argv", "comm", "pid", "ppid", "username", "dip", "dport", "sip", "sport", "query", "file_path", "pid_tree", "exe_hash"];

export async function events(page) {
  const filter = {
    host: page.query.get("host") ?? "",
    type: page.query.get("type") ?? "",
    range: page.query.get("range") ?? "86400",
    conditions: [...page.query].filter(([name]) => /^(field|contains)\./.test(name)),
  };
  let [live, stream, search] = [page.query.get("live") === "1", null, null];
  const found = h("tbody");
  const status = h("p", { class: "small quiet", "aria-live": "polite" });
  const foot = h("div", { class: "empty" });
  const chips = h("div", { class: "chips" });
  const bar = h("div", { class: "row" });
  page.onLeave(() => {
    stream?.close();
    search?.abort();
  });

  const parameters = () => {
    const now = Math.floor(Date.now() / 1000);
    const wanted = { host: filter.host, type: filter.type, ...Object.fromEntries(filter.conditions) };
    if (filter.range && !live) wanted.since = now - Number(filter.range);
    return wanted;
  };

  /** Keeps the address in step, so that a search can be sent to somebody. */
  const remember = () => {
    const query = new URLSearchParams();
    if (filter.host) query.set("host", filter.host);
    if (filter.type) query.set("type", filter.type);
    if (filter.range !== "86400") query.set("range", filter.range);
    filter.conditions.forEach(([name, value]) => query.append(name, value));
    if (live) query.set("live", "1");
    history.replaceState(null, "", `#/events?${query}`);
  };

  const columns = [
    { name: "Time", nowrap: true, cell: (record) => time(record.received_ms) },
    { name: "Host", nowrap: true, cell: (record) => h("a", { href: `#/hosts/${encodeURIComponent(record.agent_id)}` }, record.hostname || record.agent_id.slice(0, 8)) },
    { name: "What", nowrap: true, cell: (record) => pill(record.data_type === 1010 || record.data_type >= 611 && record.data_type < 800 ? "warn" : "accent", kindName(record.data_type)) },
    { name: "", what: true, cell: (record) => h("code", {}, summary(record)) },
  ];

  const row = (record) => {
    const line = tableRow(columns, record, { open: () => toggle(line, record) });
    line.setAttribute("aria-expanded", "false");
    return line;
  };

  const toggle = (line, record) => {
    const isOpen = line.getAttribute("aria-expanded") === "true";
    line.setAttribute("aria-expanded", String(!isOpen));
    if (isOpen) return line.nextSibling?.classList.contains("detail") && line.nextSibling.remove();
    const detail = h("tr", { class: "detail" }, h("td", { colspan: columns.length }, h("div", { class: "two" }, details(record), tree(record))));
    line.after(detail);
    return undefined;
  };

  const details = (record) => {
    const search = (name, value) => h("button", { class: "plain small", title: `Find ${name} = ${value}`, "aria-label": `Find ${name} = ${value}`, onclick: () => {
      filter.conditions = [...filter.conditions.filter(([other]) => other !== `field.${name}`), [`field.${name}`, value]];
      restart();
    } }, "find");
    const fields = Object.entries(record.fields ?? {}).filter(([, value]) => known(value) !== null).sort(([a], [b]) => a.localeCompare(b));
    return h("div", {}, h("h3", {}, `Record ${record.seq}, data type ${record.data_type}`), pairs([
      ["agent", h("code", {}, record.agent_id)],
      ["host’s time", time(record.timestamp * 1000)],
      ...fields.map(([name, value]) => [name, [h("code", {}, value), " ", value.length < 512 && search(name, value)]]),
    ]));
  };

  /** The processes above one, as it says itself, and those below it, which are searched for. */
  const tree = (record) => {
    if (![59, 60].includes(record.data_type) || !record.fields) return null;
    const { fields } = record;
    const above = (known(fields.pid_tree) ?? "").split("<").filter(Boolean).slice(1).map((step) => step.split("."));
    const below = h("ul", {}, h("li", { class: "quiet" }, "looking…"));
    const self = h("li", {}, h("span", { class: "this" }, `${fields.pid} ${known(fields.argv) ?? known(fields.exe) ?? ""}`), below);
    const around = { host: record.agent_id, type: 59, "field.ppid": fields.pid, since: Math.floor(record.received_ms / 1000) - 3600,
      until: Math.floor(record.received_ms / 1000) + 86400, order: "oldest", limit: 20 };
    get("/records", around).then(({ records }) => {
      const children = records.filter((child) => child.fields);
      fill(below, children.map((child) => h("li", {}, `${child.fields.pid} ${known(child.fields.argv) ?? child.fields.exe}`)));
      below.hidden = children.length === 0;
    }, (error) => fill(below, h("li", { class: "quiet" }, error.message)));
    const whole = above.reduce((inner, [pid, ...comm]) => h("li", {}, `${pid} ${comm.join(".")}`, h("ul", {}, inner)), self);
    return h("div", {}, h("h3", {}, "Process tree"), h("ul", { class: "tree" }, whole));
  };

  /** Looks further until a page is full, everything was seen, or somebody stops it. A part takes the center 5 s at most. */
  const look = async (cursor) => {
    search?.abort();
    search = new AbortController();
    const { signal } = search;
    const wanted = parameters();
    let [count, next] = [0, cursor];
    const stop = h("button", { onclick: () => search.abort() }, "Stop");
    const began = Date.now();
    try {
      for (;;) {
        fill(foot, h("p", {}, `Searching… ${number(found.children.length)} found, ${Math.round((Date.now() - began) / 1000)} s `), h("progress"), stop);
        const answer = await get("/records", { ...wanted, limit: PAGE - count, cursor: next }, signal);
        answer.records.forEach((record) => found.append(row(record)));
        count += answer.records.length;
        next = answer.next;
        if (answer.damaged_blocks > 0) toast(`${answer.damaged_blocks} blocks of the store are damaged and were passed over`, true);
        if (answer.end === "complete" || next === null) return fill(foot, count || cursor ? "That is all." : "Nothing was found.");
        if (count >= PAGE) return fill(foot, h("button", { onclick: () => look(next) }, "More"));
      }
    } catch (error) {
      if (signal.aborted) fill(foot, next ? h("button", { onclick: () => look(next) }, "Go on") : "Stopped.");
      else fill(foot, h("span", { class: "pill bad" }, error.message));
      return undefined;
    }
  };

  const watch = () => {
    fill(foot, "The newest records are shown as they come. All of them are in the store.");
    let [seen, shown] = [0, 0];
    const matches = (record) => filter.conditions.every(([name, value]) => {
      const [test, ...rest] = name.split(".");
      const has = record.fields?.[rest.join(".")];
      return test === "field" ? has === value : has?.includes(value);
    });
    stream = listen({ host: filter.host, type: filter.type, records: 1 }, {
      records: (batch) => {
        const records = batch.records.filter(matches);
        seen += batch.seen;
        shown += records.length;
        const lines = [...records].sort((a, b) => b.received_ms - a.received_ms || b.seq - a.seq).map(row);
        lines.forEach((line) => line.classList.add("fresh"));
        found.prepend(...lines);
        while (found.children.length > LIVE_ROWS) found.lastChild.remove();
        status.textContent = `${number(seen)} records came, ${number(shown)} of them were shown.`;
      },
    });
  };

  const restart = () => {
    stream?.close();
    stream = null;
    search?.abort();
    remember();
    fill(found);
    status.textContent = "";
    drawFilter();
    if (live) watch();
    else look(null);
  };

  const drawFilter = () => {
    const remove = (condition) => {
      filter.conditions = filter.conditions.filter((other) => other !== condition);
      restart();
    };
    fill(chips, filter.conditions.map((condition) => {
      const [test, ...name] = condition[0].split(".");
      const text = `${name.join(".")} ${test === "field" ? "is" : "contains"} ${condition[1]}`;
      return h("span", { class: "chip" }, text, h("button", { "aria-label": `Remove: ${text}`, onclick: () => remove(condition) }, "×"));
    }));
    chips.hidden = filter.conditions.length === 0;
    const exported = (kind) => h("a", { class: "button", download: true, href: url(`/records.${kind}`, { ...parameters(), limit: 100000 }) }, kind.toUpperCase());
    fill(bar, segments([[false, "Stored"], [true, "Live"]], live, (value) => {
      live = value;
      restart();
    }), !live && [exported("csv"), exported("ndjson")]);
  };

  const host = h("input", { name: "host", placeholder: "any", value: filter.host });
  const kinds = h("datalist", { id: "kinds" }, KINDS.map(([type, name]) => h("option", { value: type }, name)));
  const type = h("input", { name: "type", placeholder: "any, or 59,42", list: "kinds", value: filter.type, pattern: "[0-9, -]*" });
  const range = select(RANGES, filter.range);
  const name = h("input", { placeholder: "exe", list: "names" });
  const names = h("datalist", { id: "names" }, COMMON_FIELDS.map((value) => h("option", { value })));
  const test = select([["field", "is"], ["contains", "contains"]], "field", { "aria-label": "Test" });
  const value = h("input", { placeholder: "/usr/bin/curl" });
  const labelled = (text, control) => h("label", {}, text, control);
  const submit = (event) => {
    event.preventDefault();
    Object.assign(filter, { host: host.value.trim(), type: type.value.replaceAll(" ", ""), range: range.value });
    if (name.value.trim() && value.value) {
      filter.conditions = [...filter.conditions, [`${test.value}.${name.value.trim()}`, value.value]];
      name.value = "";
      value.value = "";
    }
    restart();
  };
  const form = h("form", { class: "fields search", onsubmit: submit }, labelled("Host (name or id)", host), labelled("Data type", type), labelled("Received", range),
    labelled("Field", name), labelled("Test", test), labelled("Value", value), h("button", { class: "primary" }, "Search"), kinds, names);
  const head = h("thead", {}, h("tr", {}, columns.map((column) => h("th", { scope: "col" }, column.name))));
  fill(page.main, h("div", { class: "headline" }, h("h1", {}, "Events"), h("div", { class: "push" }, bar)),
    h("section", { class: "panel" }, h("div", { class: "body stack" }, form, chips)),
    h("section", { class: "panel" }, h("div", { class: "scroll" }, h("table", { class: "cards feed" }, head, found)), h("div", { class: "body" }, status, foot)));
  restart();
}
