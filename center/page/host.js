// One host.

import { get, may, send } from "./api.js";
import { chart } from "./chart.js";
import { ago, ask, busy, bytes, fill, h, number, pairs, panel, percent, pill, segments, span, table, time, toast } from "./dom.js";
import { certificatesPanel } from "./enrolment.js";
import { changeGroup, shortId, state } from "./hosts.js";
import { kindName } from "./kinds.js";
import { taskState } from "./tasks.js";

const RANGES = [["3600", "1 h"], ["21600", "6 h"], ["86400", "24 h"], ["604800", "7 days"]];

/** Heartbeats come once a minute; where none came for so long, nothing is known. */
const GAP_MS = 150000;

const SERIES = [
  ["Agent’s CPU", "cpu", percent],
  ["Agent’s memory", "rss", bytes],
  ["Records a second", "tx_tps", number],
  ["Bytes a second", "tx_speed", bytes],
  ["Records not confirmed yet", "records_unconfirmed", number],
  ["Records in the spool", "records_in_spool", number],
];

/** An agent tells what is wrong as a list in JSON, and Elkeid's own as a text. */
function troubles(detail) {
  if (!detail) return [];
  try {
    const list = JSON.parse(detail);
    return Array.isArray(list) ? list.map(String) : [String(detail)];
  } catch {
    return [String(detail)];
  }
}

export async function host(page) {
  const id = page.rest;
  const path = `/hosts/${encodeURIComponent(id)}`;
  let [shown, beats, seconds, tasks] = [await get(path), [], "3600", []];
  const parts = Object.fromEntries(["head", "facts", "plugins", "charts", "certificates", "counts", "timeline"].map((name) => [name, h("div")]));

  let head = "";
  const drawHead = () => {
    // A button that is replaced between the two halves of a click is not clicked. These stay for as long as they say the same.
    const said = JSON.stringify([shown.hostname, shown.connected, shown.group, shown.connected || ago(shown.last_seen)]);
    if (said === head) return;
    head = said;
    const act = (text, work, kind) => h("button", { class: kind, onclick: (event) => busy(event.currentTarget, work) }, text);
    const forget = async () => {
      const sure = await ask("Forget this host?", [h("p", {}, "Its records stay. It is known again when its agent comes back.")], "Forget", true);
      if (!sure) return;
      await send("DELETE", path);
      location.hash = "#/hosts";
    };
    const regroup = async () => {
      await changeGroup(shown);
      await reload();
    };
    fill(parts.head, h("div", { class: "headline" }, h("a", { href: "#/hosts" }, "Hosts"), h("span", { class: "quiet" }, "/"),
      h("h1", {}, shown.hostname || id), shown.hostname && h("span", { class: "quiet", title: id }, shortId(id)), state(shown), shown.group && pill("accent", shown.group),
      h("div", { class: "push" },
        h("a", { class: "button", href: `#/events?host=${encodeURIComponent(id)}` }, "Events"),
        may("operate") && [
          h("a", { class: "button", href: `#/tasks?agent_id=${encodeURIComponent(id)}` }, "Give a task"),
          act("Group", regroup),
          !shown.connected && act("Forget", forget, "danger"),
        ])));
  };

  const drawFacts = () => {
    const info = shown.agent_info ?? {};
    const wrong = troubles(info.state_detail).map((text) => h("div", { class: "small bad" }, text));
    fill(parts.facts, panel("About", null, h("div", { class: "body" }, pairs([
      ["Id", h("code", {}, id)],
      ["Addresses", (shown.addresses ?? []).join(", ")],
      ["Connects from", shown.peer],
      ["Connected", shown.connected ? `for ${span(Date.now() / 1000 - shown.connected_since)}, stream ${shown.streams}` : `last ${ago(shown.last_seen)}`],
      ["Network", shown.mode],
      ["System", [info.platform, info.platform_version, info.arch].filter(Boolean).join(" ")],
      ["Kernel", info.kernel_version],
      ["Agent", shown.version],
      ["State", info.state === undefined ? null : [info.state, wrong]],
      ["Certificate", shown.cert_days === null || shown.cert_days === undefined ? null : `${shown.cert_days} days left`],
      ["Lost records", shown.lost === null || shown.lost === undefined ? null : number(shown.lost)],
      ["First seen", shown.first_seen ? time(shown.first_seen * 1000) : null],
    ]))));
  };

  const drawPlugins = () => {
    const columns = [
      { name: "Plugin", cell: (plugin) => plugin.name },
      { name: "Version", cell: (plugin) => plugin.pversion },
      { name: "Process", num: true, cell: (plugin) => plugin.pid },
      { name: "CPU", num: true, cell: (plugin) => percent(plugin.cpu) },
      { name: "Memory", num: true, cell: (plugin) => bytes(plugin.rss) },
      { name: "Restarts", num: true, cell: (plugin) => (plugin.restarts > 0 ? pill("warn", plugin.restarts) : number(plugin.restarts)) },
      { name: "Limits and walls", what: true, cell: (plugin) => h("span", { class: "small quiet" }, plugin.limits ?? "none") },
    ];
    const plugins = shown.plugins_info ?? [];
    fill(parts.plugins, panel("Plugins", null,
      plugins.length ? table(columns, plugins) : h("p", { class: "empty" }, "No plugin runs, or none has reported yet.")));
  };

  const drawCharts = () => {
    const to = Date.now();
    const from = to - Number(seconds) * 1000;
    const figures = SERIES.map(([name, key, write]) => {
      const points = beats.map((beat) => [beat.received_ms, Number(beat.fields?.[key])]).filter(([at, value]) => at >= from && Number.isFinite(value));
      return chart(name, points, from, to, write, Math.max(GAP_MS, (to - from) / 100));
    });
    const range = segments(RANGES, seconds, (value) => {
      seconds = value;
      loadBeats();
    });
    fill(parts.charts, panel("Load", h("div", { class: "push" }, range), h("div", { class: "charts" }, figures)));
  };

  const drawCounts = () => {
    const counts = [...(shown.counts ?? [])].sort((a, b) => b.records - a.records);
    const link = (count) => h("a", { href: `#/events?host=${encodeURIComponent(id)}&type=${count.data_type}` }, kindName(count.data_type));
    const columns = [
      { name: "Type", cell: link },
      { name: "Number", num: true, cell: (count) => count.data_type },
      { name: "Records", num: true, cell: (count) => number(count.records) },
      { name: "Bytes", num: true, cell: (count) => bytes(count.bytes) },
    ];
    fill(parts.counts, panel("Records since the center started", null,
      counts.length ? table(columns, counts) : h("p", { class: "empty" }, "None yet.")));
  };

  const drawTimeline = () => {
    const links = (shown.history ?? []).map((event) => [event.at * 1000,
      event.connected ? [pill("good", "connected"), event.peer && ` from ${event.peer}`] : pill("idle", "gone")]);
    const given = tasks.map((task) => [task.created_ms, [taskState(task), ` ${task.name}, task ${task.data_type}`]]);
    const all = [...links, ...given].sort(([a], [b]) => b - a).slice(0, 30);
    fill(parts.timeline, panel("What happened", null, h("div", { class: "body" },
      all.length ? h("ol", { class: "timeline" }, all.map(([at, what]) => h("li", {}, time(at), h("span", {}, what)))) : h("p", { class: "quiet" }, "Nothing yet."))));
  };

  const draw = () => {
    drawHead();
    drawFacts();
    drawPlugins();
    drawCounts();
    drawTimeline();
  };

  const loadBeats = async () => {
    const since = Math.floor(Date.now() / 1000) - Number(seconds);
    const found = [];
    let cursor = null;
    // A week has ten pages of a thousand heartbeats.
    for (let pages = 0; pages < 12; pages += 1) {
      const page = await get("/records", { host: id, type: 1000, since, limit: 1000, order: "oldest", cursor });
      found.push(...page.records);
      cursor = page.next;
      if (!cursor || page.end === "complete") break;
    }
    beats = found;
    drawCharts();
  };

  const reload = async () => {
    shown = await get(path);
    draw();
  };

  fill(page.main, parts.head, parts.charts, h("div", { class: "two" }, parts.facts, parts.timeline), parts.plugins, parts.certificates, parts.counts);
  draw();
  drawCharts();
  const report = (error) => toast(error.message, true);
  await Promise.all([
    loadBeats().catch(report),
    may("admin") && certificatesPanel(id).then((panel) => fill(parts.certificates, panel)).catch(report),
    get("/tasks", { agent_id: id, limit: 20 }).then((answer) => {
      tasks = answer.tasks;
      drawTimeline();
    }).catch(report),
  ]);
  page.listen({ host: id }, {
    host: (now) => {
      shown = now;
      draw();
    },
    tasks: ({ tasks: changed }) => {
      const mine = changed.filter((task) => task.agent_id === id);
      tasks = [...mine, ...tasks.filter((task) => !mine.some((other) => other.token === task.token))];
      drawTimeline();
    },
  });
  page.every(60000, () => loadBeats().catch(() => {}));
}
